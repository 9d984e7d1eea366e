"""Time stamps as sources write them, to the microsecond."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events.instants import (
    MAX_US,
    MIN_US,
    format_iso_us,
    parse_date,
    parse_exact_iso_us,
    parse_iso_us,
    parse_local_us,
    parse_time_us,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=OFFSETS), st.sampled_from(["T", " ", "t"]))
def test_every_spelling_means_the_same_microsecond(moment: datetime, separator: str) -> None:
    us = (moment - EPOCH) // timedelta(microseconds=1)

    assert parse_iso_us(moment.isoformat(separator)) == us
    assert parse_iso_us(moment.isoformat(separator).replace(".", ",")) == us
    assert parse_iso_us(moment.astimezone(UTC).isoformat().replace("+00:00", "Z")) == us
    assert parse_iso_us(moment.astimezone(UTC).replace(tzinfo=None).isoformat(), 0) == us
    assert parse_iso_us(format_iso_us(us)) == us


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00Z", 0),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1970-01-01T02:00:00+0200", 0),
        ("1970-01-01T02:00:00+02", 0),
        ("1969-12-31T23:59:59-00:00", -1_000_000),
        ("1970-01-01T00:00:00.1Z", 100_000),
        ("1970-01-01T00:00:00.123Z", 123_000),
        ("1970-01-01T00:00:00.1234567Z", 123_456),
        ("1970-01-01T00:00:00.9999999999Z", 999_999),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("1970-01-01T24:00:00Z", 86_400_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("2016-12-31T23:59:60.5Z", 1_483_228_800_500_000),
        ("2017-01-01T05:29:60+05:30", 1_483_228_800_000_000),
        ("0001-01-01T00:00:00Z", MIN_US),
        ("9999-12-31T23:59:59.999999Z", MAX_US),
        ("1970-01-01T14:00:00+14:00", 0),
    ],
)
def test_the_edges_of_iso_8601(text: str, us: int) -> None:
    assert parse_iso_us(text) == us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-03",
        "2026-11-03T12:34:56",  # no offset, and none declared
        "20261103T123456Z",
        "2026-W45-2T12:34:56Z",
        "2026-11-31T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-11-03T25:00:00Z",
        "2026-11-03T24:00:01Z",
        "2026-11-03T24:00:00.0000001Z",
        "2026-11-03T12:60:00Z",
        "2026-11-03T12:34:60Z",
        "2026-11-03T12:34:61Z",
        "2026-11-03T12:34:56+19:00",
        "2026-11-03T12:34:56+02:60",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T24:00:00Z",
        "9999-12-31T23:59:60Z",
        "+12026-11-03T12:34:56Z",
        "2026-11-03T12:34:56.Z",
        "2026-11-03T12:34:56.+1Z",
        "2026-11-03T12:34:56.1_2Z",
        "２026-11-03T12:34:56Z",
        "2026-11-03T12:34:56.１Z",
        " 2026-11-03T12:34:56Z",
        "2026-11-03T12:34:56Z\n",
    ],
)
def test_what_is_no_time_stamp_is_refused_without_being_quoted(text: str) -> None:
    for parse in (parse_iso_us, parse_exact_iso_us):
        with pytest.raises(ValueError) as caught:
            parse(text)
        assert not text or text not in str(caught.value)


def test_a_declared_offset_serves_only_stamps_that_carry_none() -> None:
    assert parse_iso_us("1970-01-01T01:00:00", 60) == 0
    assert parse_iso_us("1970-01-01T01:00:00Z", 60) == 3_600_000_000


def test_an_exact_stamp_loses_nothing() -> None:
    assert parse_exact_iso_us("1970-01-01T00:00:00.1234560Z") == 123_456
    with pytest.raises(ValueError, match="finer"):
        parse_exact_iso_us("1970-01-01T00:00:00.1234561Z")


def test_a_local_stamp_carries_no_offset() -> None:
    assert parse_local_us("1970-01-01T00:00:01") == 1_000_000
    with pytest.raises(ValueError):
        parse_local_us("1970-01-01T00:00:01Z")


def test_dates_and_times_have_one_form_each() -> None:
    assert parse_date("1970-01-02") == 1
    assert parse_time_us("00:00:01.5") == 1_500_000
    for text in ("1970-1-2", "19700102", "1970-W01-1"):
        with pytest.raises(ValueError):
            parse_date(text)
    for text in ("24:00:00", "12:60", "12:00:60", "12", "12:00:00.0000001", "12:00Z"):
        with pytest.raises(ValueError):
            parse_time_us(text)
