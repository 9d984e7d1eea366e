"""Headers of a record: what is written reads back, and what others wrote never raises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events.model import Event, Sighting
from shared.kafka.records import Op, RecordHeaders, event_headers, parse_headers

INT64 = st.integers(-(2**63), 2**63 - 1)


def event(rank: int = 5, tiebreak: int = 0) -> Event:
    sighting = Sighting(b"{}", "k", b"h" * 16, 1, b"i" * 16)
    return Event(sighting, 0, "0123456789abcdef" * 2, 7, rank, tiebreak)


@settings(max_examples=50)
@given(INT64, INT64, st.sampled_from(["u", "d"]), st.integers(0, 999), st.integers(0, 999))
def test_what_is_written_reads_back(rank: int, tiebreak: int, op: Op, attempt: int, rev: int) -> None:
    headers = event_headers(event(rank, tiebreak), op, attempt=attempt, rev=rev)

    assert parse_headers(headers) == RecordHeaders("0123456789abcdef" * 2, rank, tiebreak, op, attempt, rev)


def test_a_first_delivery_has_three_short_headers() -> None:
    headers = event_headers(event(1_763_999_999_000_000, 0), "u")

    assert headers == (
        ("tm-event-id", b"0123456789abcdef" * 2),
        ("tm-seq", b"1763999999000000.0"),
        ("tm-op", b"u"),
    )


@pytest.mark.parametrize(
    "seq",
    [
        *(b"", b"1", b"1.", b".1", b"1.2.3", b"a.b", b"1.2 ", b"9" * 20 + b".0", "١.٢".encode(), b"\xff.1"),
        *(b"9223372036854775808.0", b"0.-9223372036854775809", b"9" * 19 + b".1"),  # beyond 64 bits
    ],
)
def test_a_malformed_order_reads_as_none(seq: bytes) -> None:
    read = parse_headers([("tm-seq", seq)])

    assert (read.rank, read.tiebreak) == (None, None)


@given(st.lists(st.tuples(st.sampled_from(["tm-event-id", "tm-seq", "tm-op", "tm-rev", "x"]), st.binary() | st.none())))
def test_no_headers_of_others_can_raise(headers: list[tuple[str, bytes | None]]) -> None:
    read = parse_headers(headers)

    assert read.op in ("u", "d", None)
