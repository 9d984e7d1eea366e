"""The stream's source: one number per chain, whatever lies behind it."""

import json

import pytest

pytest.importorskip("pyspark.sql.streaming.datasource", reason="the stream needs Spark 4; the batch doesn't")

from pyspark.sql.streaming.datasource import ReadAllAvailable, ReadMaxFiles

from services.delta_loader.source import RawReader, options
from shared.raw.keys import Chain, Keys

TOPIC = "cdc.a"
A, B = Chain(TOPIC, 1, 0), Chain(TOPIC, 1, 3)
KEYS = Keys("ns/")


class Bucket:
    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.asked = 0

    def put(self, chain: Chain, *starts: int, size: int = 10) -> None:
        self.sizes |= {KEYS.link(chain, start): size for start in starts}
        self.sizes[KEYS.claim(chain.topic, chain.generation)] = 2

    def listing(self, prefix: str, after: str, limit: int) -> tuple[list[tuple[str, int]], bool]:
        self.asked += 1
        found = sorted((key, size) for key, size in self.sizes.items() if key.startswith(prefix) and key > after)
        return found[:limit], len(found) > limit


def reader(
    bucket: Bucket, positions: dict[Chain, int] | None = None, objects: int = 100, size: int = 1 << 30
) -> RawReader:
    return RawReader(options("raw", "ns/", TOPIC, positions or {}, objects, size), bucket.listing)


def offsets(**by_partition: int) -> dict[str, int]:
    return {f"{TOPIC}/1/{name[1:]}": start for name, start in by_partition.items()}


def test_the_stream_begins_at_the_tables_positions() -> None:
    bucket = Bucket()
    bucket.put(A, 0, 10, 25)
    stream = reader(bucket, {A: 10})
    start = json.loads(json.dumps(stream.initialOffset()))

    assert stream.latestOffset(start, stream.getDefaultReadLimit()) == offsets(p0=25)


def test_a_trigger_takes_no_more_than_the_limits_from_each_chain_its_share() -> None:
    bucket = Bucket()
    bucket.put(A, 0, 10, 20, 30)
    bucket.put(B, 0, 10)

    assert reader(bucket).latestOffset({}, ReadMaxFiles(3)) == offsets(p0=10, p3=0)
    assert reader(bucket, size=25).latestOffset({}, ReadMaxFiles(100)) == offsets(p0=0, p3=0)
    assert reader(bucket, size=1).latestOffset({}, ReadMaxFiles(100)) == offsets(p0=0)
    assert reader(bucket, size=1).latestOffset({}, ReadAllAvailable()) == offsets(p0=30, p3=10)


def test_nothing_new_is_the_same_offset() -> None:
    bucket = Bucket()
    assert reader(bucket).latestOffset({}, ReadMaxFiles(5)) == {}

    bucket.put(A, 0)
    assert reader(bucket).latestOffset(offsets(p0=0), ReadMaxFiles(5)) == offsets(p0=0)


def test_an_available_now_run_ends_where_the_bucket_ended_when_it_began() -> None:
    bucket = Bucket()
    bucket.put(A, 0, 10)
    stream = reader(bucket)
    stream.prepareForTriggerAvailableNow()
    first = stream.latestOffset({}, ReadMaxFiles(1))
    bucket.put(A, 20)
    bucket.put(B, 0)
    second = stream.latestOffset(first, ReadMaxFiles(5))

    assert (first, second) == (offsets(p0=0), offsets(p0=10))
    assert stream.latestOffset(second, ReadMaxFiles(5)) == second


def test_the_rows_of_a_batch_say_how_far_to_go() -> None:
    stream = reader(Bucket())
    parts = stream.partitions(offsets(p0=0, p3=5), offsets(p0=20, p3=5))

    assert [row for part in parts for row in stream.read(part)] == [(TOPIC, 1, 0, 20)]
    assert stream.partitions(offsets(p0=20), offsets(p0=20)) == []


def test_a_new_generation_is_found_and_the_one_before_is_read_on() -> None:
    bucket = Bucket()
    bucket.put(A, 0, 10)
    start = reader(bucket).latestOffset({}, ReadMaxFiles(100))
    bucket.put(A, 20)
    bucket.put(Chain(TOPIC, 2, 1), 0, 7)

    assert reader(bucket).latestOffset(start, ReadMaxFiles(100)) == {f"{TOPIC}/1/0": 20, f"{TOPIC}/2/1": 7}


@pytest.mark.parametrize("old", [100, 2_000])
def test_the_requests_of_a_trigger_do_not_grow_with_the_old_objects(old: int) -> None:
    bucket = Bucket()
    for chain in (A, B):
        bucket.put(chain, *range(0, old * 10, 10))
    start = {str(chain): (old - 2) * 10 for chain in (A, B)}
    bucket.asked = 0
    reader(bucket).latestOffset(start, ReadMaxFiles(100))

    assert bucket.asked == 6  # the claims, three to find two chains, one for each
