"""What the change feed sends and reads in headers and parameters."""

import pytest

from shared.producer.exchange import read_date_us, read_retry_after_s
from shared.producer.feed import since_text

AT_US = 1_767_323_045_123_456  # 2026-01-02T03:04:05.123456Z


@pytest.mark.parametrize(
    ("time_format", "granularity_us", "expected"),
    [
        ("iso8601", 1, "2026-01-02T03:04:05.123456Z"),
        ("iso8601", 1_000, "2026-01-02T03:04:05.123Z"),
        ("iso8601", 1_000_000, "2026-01-02T03:04:05Z"),
        ("iso8601", 60_000_000, "2026-01-02T03:04:00Z"),
        ("iso8601", 100, "2026-01-02T03:04:05.123400Z"),
        ("epoch_s", 1, "1767323045"),
        ("epoch_ms", 1, "1767323045123"),
        ("epoch_ms", 1_000_000, "1767323045000"),
        ("epoch_us", 1, "1767323045123456"),
    ],
)
def test_since_is_written_as_the_source_writes_its_own_and_never_rounded_up(
    time_format: str, granularity_us: int, expected: str
) -> None:
    assert since_text(AT_US, time_format, granularity_us, None) == expected  # type: ignore[arg-type]


def test_a_source_of_local_times_is_asked_in_local_time() -> None:
    assert since_text(AT_US, "iso8601", 1_000_000, 330) == "2026-01-02T08:34:05"
    assert since_text(AT_US, "epoch_s", 1_000_000, 330) == "1767323045"


def test_times_before_1970_are_rounded_down_too() -> None:
    assert since_text(-1, "iso8601", 1_000_000, None) == "1969-12-31T23:59:59Z"


@pytest.mark.parametrize("time_format", ["epoch_s", "epoch_ms", "epoch_us"])
def test_no_source_is_asked_for_a_number_below_zero(time_format: str) -> None:
    assert since_text(-1, time_format, 1, None) == "0"  # type: ignore[arg-type]
    assert since_text(-1_000_000, time_format, 1_000_000, None) == "0"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fri, 02 Jan 2026 03:04:05 GMT", 1_767_323_045_000_000),
        ("Fri, 02 Jan 2026 03:04:05", 1_767_323_045_000_000),
        ("Friday, 02-Jan-26 03:04:05 GMT", 1_767_323_045_000_000),
        ("yesterday", None),
        ("", None),
        (None, None),
        ("Fri, 02 Jan 99999 03:04:05 GMT", None),
    ],
)
def test_a_date_that_can_not_be_read_is_no_date(text: str | None, expected: int | None) -> None:
    assert read_date_us(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120.0),
        ("315360000", 315_360_000.0),
        ("0", 0.0),
        ("-5", None),
        ("1.5", None),
        ("9" * 5000, None),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:03:05 GMT", 0.0),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(text: str | None, expected: float | None) -> None:
    assert read_retry_after_s(text, 1_767_323_045_000_000) == expected
