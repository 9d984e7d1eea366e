"""One partition's buffer, by itself: what it takes, where it cuts, what it believes."""

from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from services.s3_sink.lane import Lane, OtherRecord, Rows, bad_run, first_of_long_run
from services.s3_sink.limits import SinkSettings
from services.s3_sink.packing import STREAM_BYTES, Pack
from shared.kafka.chunks import Chunk, Partition
from shared.raw.keys import Chain
from shared.raw.objects import LastRecord, record_digest
from tests.fakes.partition_log import MemoryRecord

CHAIN = Chain("cdc.accounts", 1, 0)
P = Partition("cdc.accounts", 0)
LIMITS = SinkSettings()


def record(offset: int) -> MemoryRecord:
    return MemoryRecord(offset, 1_000 + offset, b"k", b"v%d" % offset)


def chunk(begins_at: int, offsets: list[int], next_offset: int) -> Chunk:
    return Chunk(P, begins_at, next_offset, [record(offset) for offset in offsets])


def lane(start: int = 0, **parts: Any) -> Lane:
    known: dict[str, Any] = {"log_begin": 0, "last": None, "proven": True, "now_s": 0.0, "writer": "me"}
    return Lane(CHAIN, 1, start=start, **(known | parts))


def pack(of: Lane) -> None:
    records = list(of.pending)
    rows = b"".join(b"%d\n" % one.offset for one in records)
    of.pack.add(rows)
    of.absorb(records, Rows(rows, len(records), (7,), ()))


def test_a_chunk_that_does_not_begin_where_the_lane_ends_is_not_taken() -> None:
    of = lane(start=5)
    for wrong in (chunk(0, [0, 1], 2), chunk(6, [6], 7), chunk(4, [4, 5], 6)):
        assert not of.take(wrong, 0.0)

    assert (of.expected, of.pending, of.is_empty) == (5, [], True)
    assert of.take(chunk(5, [5], 6), 0.0)


def test_an_object_covers_exactly_what_was_read_with_and_without_records() -> None:
    of = lane()
    of.take(chunk(0, [0, 3], 9), 0.0)
    pack(of)

    sealed = of.seal("clock", 0.0)

    assert sealed is not None
    link = sealed.link
    assert (link.start, link.end, link.count, link.first_ms, link.last_ms) == (0, 8, 2, 1_000, 1_003)
    assert link.last == LastRecord(3, 1_003, record_digest(b"k", b"v3"))
    assert zstandard.decompress(sealed.body) == b"0\n3\n"


def test_what_is_not_yet_flattened_is_not_covered() -> None:
    of = lane()
    of.take(chunk(0, [0, 1, 5], 6), 0.0)
    of.absorb(of.pending[:2], Rows(b"0\n1\n", 2, (7,), ()))

    sealed = of.seal("clock", 0.0)

    assert sealed is not None
    assert (sealed.link.end, of.start, of.expected) == (4, 5, 6)
    assert [one.offset for one in of.pending] == [5]


def test_after_another_writers_longer_or_shorter_object_the_buffer_is_dropped() -> None:
    for end in (1, 7):
        of = lane()
        of.take(chunk(0, [0, 1, 2], 3), 0.0)
        pack(of)
        sealed = of.seal("clock", 0.0)
        assert sealed is not None
        of.take(chunk(3, [3, 4], 5), 0.0)

        assert not of.settle(replace(sealed.link, end=end, writer="other"), 0.0)
        assert (of.start, of.expected, of.pending, of.held_bytes) == (end + 1, end + 1, [], 0)


def test_after_an_object_with_the_same_end_the_buffer_goes_on_whoever_wrote_it() -> None:
    of = lane()
    of.take(chunk(0, [0, 1, 2], 3), 0.0)
    pack(of)
    sealed = of.seal("clock", 0.0)
    assert sealed is not None
    of.take(chunk(3, [3, 4], 5), 0.0)

    assert of.settle(replace(sealed.link, writer="other"), 0.0)
    assert (of.start, of.expected, len(of.pending)) == (3, 5, 2)


def test_each_limit_cuts_and_an_empty_lane_never_does() -> None:
    of = lane()
    assert of.due(LIMITS, 1e9) is None
    of.take(chunk(0, list(range(10)), 10), 100.0)
    pack(of)
    assert of.due(LIMITS, 129.0) is None
    assert of.due(LIMITS, 130.0) == "clock"
    assert of.due(SinkSettings(object_records_max=10), 100.0) == "records"
    of.pack.compressed_bytes = LIMITS.object_bytes_max
    assert of.due(LIMITS, 100.0) == "bytes"


def test_the_last_record_is_carried_over_objects_that_hold_none() -> None:
    last = LastRecord(2, 5, "digest")
    of = lane(start=10, last=last, log_begin=9)
    of.take(chunk(10, [], 14), 0.0)
    of.absorb([], Rows(b"", 0, (), ()))

    sealed = of.seal("clock", 0.0)

    assert sealed is not None
    assert (sealed.link.last, sealed.link.count, sealed.link.end) == (last, 0, 13)


@pytest.mark.parametrize("change", [{"timestamp_ms": 1}, {"digest": "other"}])
def test_the_ledgers_last_record_must_be_kafkas(change: dict[str, Any]) -> None:
    same = LastRecord(4, 1_004, record_digest(b"k", b"v4"))
    of = lane(start=5, last=same)
    assert of.expected == 4
    assert of.take(chunk(4, [4, 5], 6), 0.0)
    assert [one.offset for one in of.pending] == [5]

    with pytest.raises(OtherRecord):
        lane(start=5, last=replace(same, **change)).take(chunk(4, [4, 5], 6), 0.0)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 6), st.integers(0, 5))
def test_runs_of_failures_are_found_as_by_counting_one_by_one(bad: list[bool], before: int, most: int) -> None:
    failed = [(index, "bad") for index, is_bad in enumerate(bad) if is_bad]
    run, begins, found = before, 0, None
    for index, is_bad in enumerate(bad):
        if not is_bad:
            run, begins = 0, index + 1
            continue
        run += 1
        if run > most and found is None:
            found = begins

    assert first_of_long_run(failed, before, most) == found
    assert bad_run(failed, len(bad), before) == run


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_a_pack_is_one_frame_with_all_rows_whatever_their_sizes(sizes: list[int]) -> None:
    rows = [bytes([65 + index]) * (size * STREAM_BYTES // 4) + b"\n" for index, size in enumerate(sizes)]
    of = Pack()
    for row in rows:
        of.add(row)

    body = of.finish()

    reading = zstandard.ZstdDecompressor().decompressobj()
    assert reading.decompress(body) == b"".join(rows)
    assert reading.unused_data == b""
