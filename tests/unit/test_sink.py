"""What the sink promises, each promise with the fault that would break it. No servers, no clock but our own."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog
from prometheus_client import Counter

from services.s3_sink.lane import Rows, Undecodable
from services.s3_sink.limits import SinkSettings
from services.s3_sink.ports import Learned, ParkingUnavailable
from services.s3_sink.sink import Sink
from shared import metrics
from shared.events.lineage import ConsumedRecord
from shared.kafka.chunks import GroupCommit, LogBounds, Partition
from shared.raw import generation
from shared.raw.generation import TopicLife
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import ChainReport, Ledger
from shared.raw.objects import Stored
from tests.fakes.object_store import Fault, MemoryStore
from tests.fakes.partition_log import MemoryLog, MemoryParking, MemorySource, OffsetDecoder

A = Partition("cdc.accounts", 0)
B = Partition("cdc.payments", 0)
KEYS = Keys()
TURNS_MAX = 5_000


class Stop:
    is_set = False


class World:
    def __init__(self, *partitions: Partition) -> None:
        self.partitions = partitions or (A,)
        self.log = MemoryLog()
        self.faults: Callable[[str, str], Fault | None] = lambda _operation, _key: None
        self.store = MemoryStore(lambda operation, key: self.faults(operation, key))
        self.ledger = Ledger(self.store, KEYS)
        self.parking = MemoryParking()
        self.decoder = OffsetDecoder()
        self.settings = SinkSettings(object_age_s_max=30.0)
        self.now_s = 0.0
        self.source: MemorySource
        self.sink: Sink

    def fill(self, partition: Partition, count: int) -> None:
        for _record in range(count):
            self.log.append(partition)

    @asynccontextmanager
    async def running(self, *, drains: bool = False) -> AsyncIterator[None]:
        """A fresh sink; killed at the end, or stopped in good order if it ``drains``."""
        self.source, stop = MemorySource(self.log, self.partitions), Stop()
        self.sink = Sink(
            self.source,
            self.log,
            self.decoder,
            self.parking,
            self.store,
            self.ledger,
            self.settings,
            clock=lambda: self.now_s,
            sleep=self._sleep,
            entities={A.topic: "accounts", B.topic: "payments"},
        )
        task = asyncio.create_task(self.sink.run(stop))
        try:
            yield
            stop.is_set = drains
            if drains:
                async with asyncio.timeout(5):
                    await task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:  # noqa: ASYNC110  # our clock is a number
            await asyncio.sleep(0)

    async def until(self, claim: Callable[[], bool], *, passing_s: float = 0.0) -> None:
        """Turn the loop until ``claim`` holds; ``passing_s`` seconds go by in each turn."""
        for _turn in range(TURNS_MAX):
            if claim():
                return
            self.now_s += passing_s
            await asyncio.sleep(0)
        raise AssertionError("this never came true")

    async def settle(self, turns: int = 200) -> None:
        for _turn in range(turns):
            await asyncio.sleep(0)

    def objects(self, partition: Partition = A, of: int = 1) -> list[str]:
        prefix = KEYS.chain(Chain(partition.topic, of, partition.partition))
        return sorted(key for key in self.store.objects if key.startswith(prefix))

    async def report(self, partition: Partition = A, of: int = 1) -> ChainReport:
        return await Ledger(self.store, KEYS).verify(Chain(partition.topic, of, partition.partition))

    async def offsets(self, partition: Partition = A, of: int = 1) -> list[int]:
        report = await self.report(partition, of)
        assert report.problems == []
        return [int(row) for link in report.objects for row in (await self.ledger.rows(link)).split()]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


def metrics_refused() -> float:
    return float(metrics.REFUSED_TOPICS.labels(A.topic)._value.get())


def counted(counter: Counter, *labels: str) -> float:
    return float(counter.labels(*labels)._value.get())


def shown(name: str, partition: Partition, **labels: str) -> float | None:
    """``None``: there is no such series."""
    where = {"topic": partition.topic, "partition": str(partition.partition), **labels}
    return metrics.REGISTRY.get_sample_value(f"tidemark_{name}", where)


async def test_three_records_and_then_silence_become_an_object_when_the_clock_says_so() -> None:
    world = World()
    world.fill(A, 3)
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 3)
        world.now_s = 29.0
        await world.settle()
        assert world.objects() == []
        world.now_s = 31.0
        await world.until(lambda: world.log.commits.get(A) is not None)

    assert await world.offsets() == [0, 1, 2]
    assert world.log.commits[A] == GroupCommit(3, world.objects()[0])


async def test_objects_are_cut_by_records() -> None:
    world = World()
    world.settings = SinkSettings(object_records_max=100)
    world.fill(A, 1000)
    async with world.running():
        await world.until(lambda: len(world.objects()) == 10)

    assert await world.offsets() == list(range(1000))


async def test_a_lost_group_costs_nothing() -> None:
    world = World()
    for _life in range(3):
        world.fill(A, 5)
        async with world.running(drains=True):
            await world.settle()
        world.log.commits.clear()

    assert await world.offsets() == list(range(15))
    assert len(world.objects()) == 3


async def test_a_commit_without_the_name_of_an_object_is_not_believed() -> None:
    world = World()
    world.fill(A, 10)
    world.log.commits[A] = GroupCommit(7, "")
    async with world.running(drains=True):
        await world.settle()

    assert await world.offsets() == list(range(10))


async def test_nothing_is_committed_while_the_object_cannot_be_written() -> None:
    world = World()
    world.fill(A, 3)
    world.faults = lambda operation, key: Fault.REFUSED if operation == "create" and key.startswith("raw/") else None
    async with world.running():
        await world.settle()
        world.now_s = 31.0
        for _second in range(20):
            world.now_s += 1
            await world.settle(20)
        assert world.log.commits == {}
        world.faults = lambda _operation, _key: None
        await world.until(lambda: A in world.log.commits, passing_s=0.1)

    assert await world.offsets() == [0, 1, 2]


async def test_a_lost_answer_is_not_written_twice() -> None:
    world = World()
    world.fill(A, 3)
    lost = iter([Fault.LOST])
    world.faults = lambda operation, key: next(lost, None) if operation == "create" and key.startswith("raw/") else None
    before = counted(metrics.RAW_ADOPTED, A.topic)
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 3)
        world.now_s = 31.0
        await world.until(lambda: A in world.log.commits, passing_s=0.1)

    assert await world.offsets() == [0, 1, 2]
    assert counted(metrics.RAW_ADOPTED, A.topic) - before == 1


async def test_stopping_writes_and_commits_what_is_buffered() -> None:
    world = World(A, B)
    world.fill(A, 7)
    world.fill(B, 3)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions == {A: 7, B: 3})

    assert await world.offsets(A) == list(range(7))
    assert world.log.commits[A].next_offset == 7
    assert world.log.commits[B].next_offset == 3


async def test_the_lag_reaches_0_when_the_last_offsets_hold_no_record() -> None:
    world = World()
    world.fill(A, 3)
    world.log.end[A] = 9  # transaction markers
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 9)

    report = await world.report()
    assert (report.problems, report.next_start, report.rows) == ([], 9, 3)
    assert world.log.commits[A].next_offset == 9


async def test_offsets_before_the_logs_start_get_a_marker_at_genesis() -> None:
    world = World()
    world.fill(A, 10)
    world.log.expire(A, 4)
    before = counted(metrics.RAW_GAPS, A.topic)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 10)

    report = await world.report()
    assert [(gap.start, gap.end, gap.cause) for gap in report.gaps] == [(0, 3, "genesis")]
    assert await world.offsets() == [4, 5, 6, 7, 8, 9]
    assert counted(metrics.RAW_GAPS, A.topic) == before


async def test_what_retention_took_before_it_was_read_gets_a_marker_and_is_counted() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.fill(A, 10)
    world.log.expire(A, 8)
    before = counted(metrics.RAW_GAPS, A.topic)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 15)

    report = await world.report()
    assert [(gap.start, gap.end, gap.cause) for gap in report.gaps] == [(5, 7, "retention")]
    assert await world.offsets() == [0, 1, 2, 3, 4, *range(8, 15)]
    assert counted(metrics.RAW_GAPS, A.topic) - before == 3
    assert report.gaps[0].last == report.objects[0].last  # so that the check survives the gap


async def test_retention_that_overtakes_a_running_sink_loses_nothing_that_was_buffered() -> None:
    world = World()
    world.fill(A, 3)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 3)
        world.fill(A, 10)
        world.log.expire(A, 10)
        await world.until(lambda: world.source.positions.get(A) == 13)

    assert await world.offsets() == [0, 1, 2, 10, 11, 12]
    assert [(gap.start, gap.end) for gap in (await world.report()).gaps] == [(3, 9)]


async def test_a_log_that_ends_below_the_ledger_is_refused_and_others_go_on() -> None:
    world = World(A, B)
    world.fill(A, 5)
    world.fill(B, 1)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions == {A: 5, B: 1})
    world.log.records[A] = []
    world.log.end[A] = 0
    world.fill(A, 3)
    world.fill(B, 4)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(B) == 5)

    assert await world.offsets(A) == list(range(5))
    assert await world.offsets(B) == list(range(5))
    assert metrics_refused() == 1


async def test_another_record_at_the_ledgers_last_offset_refuses_the_topic_until_a_generation_is_opened() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.log.records[A] = []
    world.log.end[A] = 0
    for number in range(8):
        world.log.append(A, b"other %d" % number)

    async with world.running(drains=True):
        await world.until(lambda: metrics_refused() == 1)
        assert await world.offsets() == [0, 1, 2, 3, 4]
        life = await world.log.life(A.topic)
        await generation.open_next(world.store, KEYS, A.topic, life, "operator", "log was cut back")
        world.now_s += 31
        await world.until(lambda: world.source.positions.get(A) == 8 and metrics_refused() == 0)

    assert await world.offsets(of=2) == list(range(8))
    assert await world.offsets(of=1) == [0, 1, 2, 3, 4]


async def test_a_log_in_which_the_ledgers_last_record_is_missing_refuses_the_topic() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    del world.log.records[A][4]  # compacted away, or cut back and written again
    world.fill(A, 3)
    async with world.running(drains=True):
        await world.until(lambda: metrics_refused() == 1)

    assert await world.offsets() == list(range(5))


async def test_the_ledgers_last_record_is_compared_and_not_written_again() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.fill(A, 2)
    async with world.running(drains=True):
        await world.until(lambda: A in world.source.positions)
        assert world.source.positions[A] == 4
        await world.until(lambda: world.source.positions.get(A) == 7)

    assert await world.offsets() == list(range(7))


async def test_a_topic_made_anew_while_it_is_read_puts_nothing_into_the_old_chain() -> None:
    world = World()
    world.fill(A, 3)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 3)
        world.log.lives[A.topic] = TopicLife("cluster", "second")
        world.fill(A, 3)
        world.now_s = 31.0
        await world.until(lambda: metrics_refused() == 1)

    assert world.objects() == []
    assert world.log.commits == {}


async def test_without_topic_ids_and_without_the_last_record_the_topic_is_refused() -> None:
    world = World()
    world.fill(A, 5)
    world.log.lives[A.topic] = TopicLife(None, None)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.fill(A, 5)
    world.log.expire(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: metrics_refused() == 1)

    assert await world.offsets() == list(range(5))


async def test_a_revoked_partition_drops_its_buffer_and_lets_the_put_under_way_finish() -> None:
    world = World()
    world.settings = SinkSettings(object_records_max=5)
    world.fill(A, 5)
    async with world.running():
        await world.until(lambda: len(world.objects()) == 1)
        world.fill(A, 3)
        await world.until(lambda: world.source.positions.get(A) == 8)
        await world.sink.revoked()
        world.source.assigned, world.source.positions = frozenset(), {}
        world.now_s = 100.0
        await world.settle()

    assert await world.offsets() == [0, 1, 2, 3, 4]
    assert world.log.commits[A].next_offset == 5


async def test_nothing_is_committed_for_a_partition_that_was_lost() -> None:
    world = World()
    world.settings = SinkSettings(object_records_max=5)
    world.fill(A, 5)
    blocked = asyncio.Event()

    async with world.running():
        life = world.log.life

        async def slow(topic: str) -> TopicLife:
            if world.source.positions.get(A) == 5:
                await blocked.wait()
            return await life(topic)

        world.log.life = slow  # type: ignore[method-assign]
        await world.until(lambda: world.source.positions.get(A) == 5)
        await world.settle()
        world.source.assignment += 1  # the group gave it to another, and this one doesn't know yet
        blocked.set()
        await world.until(lambda: len(world.objects()) == 1)
        await world.settle()
        assert world.source.committed == []


async def test_after_an_answer_to_an_old_position_reading_goes_on_from_the_expected_one() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
        world.fill(A, 2)
        world.source.positions[A] = 6  # one offset is passed over, as a faulty client might
        await world.until(lambda: world.sink._lanes[A].expected == 7)

    assert await world.offsets() == list(range(7))


class FatDecoder(OffsetDecoder):
    """Rows of two kilobytes that don't compress."""

    def rows(self, chain: Chain, records: Sequence[ConsumedRecord]) -> Rows:
        lines = [random.randbytes(1_000).hex().encode() + b"\n" for _record in records]
        return Rows(b"".join(lines), len(lines), (1,), ())


async def test_while_s3_is_down_no_more_is_held_than_the_bound() -> None:
    partitions = [Partition("cdc.accounts", number) for number in range(20)]
    world = World(*partitions)
    world.decoder = FatDecoder()
    world.settings = SinkSettings(buffered_bytes_max=1024 * 1024, object_age_s_max=5)
    for partition in partitions:
        for _record in range(200):
            world.log.append(partition, b"x" * 1_000)
    world.faults = lambda operation, key: Fault.REFUSED if operation == "create" and key.startswith("raw/") else None
    held: list[float] = []
    async with world.running():
        for _turn in range(300):
            world.now_s += 0.1
            await world.settle(5)
            held.append(metrics.BUFFERED_BYTES._value.get())
        assert world.source.held == frozenset(partitions)
        world.faults = lambda _operation, _key: None
        for _turn in range(5_000):
            world.now_s += 0.1
            await world.settle(3)
            if len(world.log.commits) == 20 and all(c.next_offset == 200 for c in world.log.commits.values()):
                break

    assert 512 * 1024 < max(held) < 8 * 1024 * 1024  # the bound, and one fetch
    for partition in partitions:
        report = await world.report(partition)
        assert (report.problems, report.rows) == ([], 200)


async def test_an_unknown_schema_waits_and_what_came_before_it_does_not() -> None:
    world = World(A, B)
    world.decoder.answer = Learned.UNKNOWN
    world.fill(A, 3)
    world.log.append(A, b"?7")
    world.fill(A, 2)
    world.fill(B, 4)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions == {A: 6, B: 4})
        world.now_s = 31.0
        await world.until(lambda: len(world.log.commits) == 2)
        assert world.log.commits[A].next_offset == 3
        assert world.log.commits[B].next_offset == 4
        assert metrics.PARTITION_WAITS.labels(A.topic, "0", "schema")._value.get() == 1
        world.decoder.answer = Learned.KNOWN
        await world.until(lambda: 7 in world.decoder.known, passing_s=0.1)

    assert await world.offsets() == list(range(6))
    assert world.parking.parked == {}


async def test_a_sink_that_is_stopped_at_once_still_asks_for_the_schema_it_needs() -> None:
    world = World()
    for _record in range(3):
        world.log.append(A, b"?7")
    asked: list[bool] = []
    learn = world.decoder.learn

    async def slow_at_first(topic: str, schema_id: int) -> Learned:
        asked.append(True)
        if len(asked) == 1:
            await asyncio.Event().wait()
        return await learn(topic, schema_id)

    world.decoder.learn = slow_at_first  # type: ignore[method-assign]
    async with world.running(drains=True):
        await world.until(lambda: asked == [True])

    assert await world.offsets() == [0, 1, 2]


async def test_a_schema_that_stays_unknown_does_not_keep_the_sink_from_stopping() -> None:
    world = World()
    world.decoder.answer = Learned.UNAVAILABLE
    world.fill(A, 2)
    world.log.append(A, b"?7")
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 3)

    assert await world.offsets() == [0, 1]
    assert world.log.commits[A].next_offset == 2


async def test_undecodable_records_are_parked_before_the_object_that_covers_them() -> None:
    world = World()
    world.fill(A, 2)
    world.log.append(A, b"!poison")
    world.fill(A, 2)
    world.parking.down = lambda: ParkingUnavailable("down")
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
        world.now_s = 31.0
        await world.settle()
        assert world.objects() == []
        world.parking.down = lambda: None
        await world.until(lambda: A in world.log.commits, passing_s=0.1)

    assert await world.offsets() == [0, 1, 3, 4]
    assert [(chain.generation, offset) for chain, offset in world.parking.parked] == [(1, 2)]
    assert world.log.commits[A].next_offset == 5


async def test_a_tail_of_bad_records_does_not_hold_the_lag_up() -> None:
    world = World()
    world.fill(A, 2)
    for _record in range(50):
        world.log.append(A, b"!poison")
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 52)

    assert world.log.commits[A].next_offset == 52
    assert len(world.parking.parked) == 50


@pytest.mark.parametrize("chunk", [7, 1_000])
async def test_more_than_50_bad_records_in_a_row_stop_the_partition(chunk: int) -> None:
    world = World()
    world.settings = SinkSettings(pack_records=1)
    world.fill(A, 5)
    for _record in range(200):
        world.log.append(A, b"!poison")
    world.fill(A, 5)
    async with world.running(drains=True):
        world.source._chunk_records = lambda: chunk
        await world.until(lambda: shown("sink_partition_waits", A, why="stopped") == 1)
        await world.settle()
        assert A in world.source.held

    assert await world.offsets() == [0, 1, 2, 3, 4]
    assert len(world.parking.parked) <= 50
    assert world.log.commits[A].next_offset == 5 + len(world.parking.parked)


async def test_51_bad_records_spread_among_good_ones_stop_nothing() -> None:
    world = World()
    for _record in range(60):
        world.log.append(A, b"!poison")
        world.log.append(A)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 120)

    assert await world.offsets() == list(range(1, 120, 2))
    assert len(world.parking.parked) == 60


async def test_a_process_that_was_frozen_while_its_slot_was_expired_writes_nothing_there() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 5)
        others = World()
        others.log, others.store, others.ledger = world.log, world.store, world.ledger
        others.settings = SinkSettings(object_records_max=2)
        world.fill(A, 5)
        held, world.source.held = world.source.positions, frozenset(world.partitions)
        async with others.running(drains=True):
            others.source._chunk_records = lambda: 2
            await others.until(lambda: others.source.positions.get(A) == 10)
        assert len(others.objects()) == 5
        newest = others.objects()[-1]
        for key in others.objects()[:-1]:
            del world.store.objects[key]  # `raw expire`, months later
        floor = KEYS.parse(newest)[1]
        world.store.objects[KEYS.floor(Chain(A.topic, 1, 0))] = Stored(msgspec.json.encode({"floor": floor}), {})
        world.now_s += 7_200
        await world.until(lambda: held[A] == 10 and world.sink._lanes[A].start == 10)
        await world.settle()

    assert world.objects() == [newest]


async def test_a_topic_made_anew_parks_none_of_its_records_under_the_old_generation() -> None:
    world = World()
    world.log.append(A, b"!poison")
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 1)
        world.log.lives[A.topic] = TopicLife("cluster", "second")  # so what was read may be the new topic's
        world.now_s = 31.0
        await world.until(lambda: metrics_refused() == 1)

    assert world.parking.parked == {}
    assert world.objects() == []


async def test_a_topic_made_anew_while_its_records_are_parked_puts_nothing_into_the_old_chain() -> None:
    world = World()
    world.log.append(A, b"!poison")
    park = world.parking.park

    async def then_made_anew(events: Sequence[Undecodable]) -> None:
        await park(events)
        world.log.lives[A.topic] = TopicLife("cluster", "second")

    world.parking.park = then_made_anew  # type: ignore[method-assign]
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 1)
        world.now_s = 31.0
        await world.until(lambda: metrics_refused() == 1)

    assert world.objects() == []


@pytest.mark.parametrize("where", ["park", "rows", "ready", "open"])
async def test_a_fault_that_nobody_foresaw_stops_its_partition_alone_until_it_is_gone(where: str) -> None:
    world = World(A, B)
    for partition in (A, B):
        world.fill(partition, 2)
        world.log.append(partition, b"!poison")
    fails = [True]
    bounds, rows, ready, park = world.log.bounds, world.decoder.rows, world.decoder.ready, world.parking.park

    def trip(at: str, topic: str) -> None:
        if fails and at == where and topic == A.topic:
            raise LookupError("nobody foresaw this")

    async def tripping_bounds(topic: str) -> Mapping[int, LogBounds]:
        trip("open", topic)
        return await bounds(topic)

    def tripping_rows(chain: Chain, records: Sequence[ConsumedRecord]) -> Rows:
        trip("rows", chain.topic)
        return rows(chain, records)

    def tripping_ready(topic: str, records: Sequence[ConsumedRecord]) -> tuple[int, int | None]:
        trip("ready", topic)
        return ready(topic, records)

    async def tripping_park(events: Sequence[Undecodable]) -> None:
        trip("park", events[0].chain.topic)
        await park(events)

    world.log.bounds = tripping_bounds  # type: ignore[method-assign]
    world.decoder.rows = tripping_rows  # type: ignore[method-assign]
    world.decoder.ready = tripping_ready  # type: ignore[method-assign]
    world.parking.park = tripping_park  # type: ignore[method-assign]
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(B) == 3)
        world.now_s = 31.0
        await world.until(lambda: B in world.log.commits, passing_s=0.1)
        await world.until(lambda: shown("sink_partition_waits", A, why="stopped") == 1, passing_s=0.1)
        assert world.objects(A) == []
        fails.clear()
        await world.until(lambda: A in world.log.commits, passing_s=0.1)
        await world.until(lambda: shown("sink_partition_waits", A, why="stopped") == 0)

    assert await world.offsets(A) == await world.offsets(B) == [0, 1]
    assert len(world.parking.parked) == 2


async def test_a_fault_that_nobody_foresaw_does_not_keep_the_sink_from_stopping() -> None:
    world = World(A, B)
    world.fill(A, 3)
    world.log.append(A, b"!poison")
    world.fill(B, 3)
    world.parking.down = lambda: LookupError("nobody foresaw this")
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions == {A: 4, B: 3})

    assert world.objects(A) == []
    assert await world.offsets(B) == [0, 1, 2]


async def test_an_offset_that_cannot_be_read_stops_its_partition_alone_behind_all_that_came_before() -> None:
    world = World(A, B)
    world.fill(A, 5)
    world.fill(B, 5)
    async with world.running(drains=True):
        world.source.unreadable[A] = 3
        await world.until(lambda: A in world.log.commits)  # before the clock says so: nothing more can come
        assert await world.offsets(A) == [0, 1, 2]
        assert shown("sink_partition_waits", A, why="stopped") == 1
        await world.until(lambda: world.source.positions.get(B) == 5)
        world.fill(B, 5)
        await world.until(lambda: world.source.positions.get(B) == 10)
        del world.source.unreadable[A]  # the leader is another, whose copy is sound
        await world.settle()
        assert world.source.positions[A] == 3
        world.now_s += 31
        await world.until(lambda: world.source.positions[A] == 5, passing_s=0.1)
        await world.until(lambda: shown("sink_partition_waits", A, why="stopped") == 0, passing_s=0.1)

    assert await world.offsets(A) == list(range(5))
    assert await world.offsets(B) == list(range(10))


async def test_a_refused_topic_is_not_read_and_others_are() -> None:
    world = World(A, B)
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.log.records[A] = []
    world.log.end[A] = 0
    for number in range(5_000):
        world.log.append(A, b"other %d" % number)
    world.fill(B, 5)

    async with world.running():
        await world.until(lambda: metrics_refused() == 1 and world.source.positions.get(B) == 5)
        read_to = world.source.positions[A]
        await world.settle()
        assert world.source.positions[A] == read_to
        assert world.source.held == {A}


async def test_a_partition_that_is_not_opened_yet_is_held() -> None:
    world = World(A, B)
    world.fill(A, 1)
    world.fill(B, 1)
    opens = asyncio.Event()
    bounds = world.log.bounds

    async def slow(topic: str) -> Mapping[int, LogBounds]:
        if topic == A.topic:
            await opens.wait()
        return await bounds(topic)

    world.log.bounds = slow  # type: ignore[method-assign]
    async with world.running():
        await world.until(lambda: world.source.positions.get(B) == 1)
        assert world.source.held == {A}
        opens.set()
        await world.until(lambda: world.source.positions.get(A) == 1)
        assert world.source.held == frozenset()


async def test_nothing_is_shown_of_partitions_that_were_given_away() -> None:
    world = World(A, B)
    world.settings = SinkSettings(pack_records=1)
    world.fill(A, 1)
    for _record in range(60):
        world.log.append(A, b"!poison")
    world.log.append(B, b"?7")
    world.decoder.answer = Learned.UNKNOWN
    async with world.running():
        await world.until(lambda: shown("sink_partition_waits", A, why="stopped") == 1)
        await world.until(lambda: shown("sink_partition_waits", B, why="schema") == 1)
        await world.until(lambda: shown("sink_next_offset", A) is not None)
        world.source.assigned, world.source.positions = frozenset(), {}
        await world.sink.revoked()
        await world.settle()

        for partition in (A, B):
            assert shown("sink_next_offset", partition) is None
            assert shown("sink_log_end_offset", partition) is None
            assert shown("sink_partition_waits", partition, why="stopped") is None
            assert shown("sink_partition_waits", partition, why="schema") is None


async def test_a_member_that_gave_a_refused_topic_away_refuses_nothing_any_more() -> None:
    world = World()
    world.fill(A, 5)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 5)
    world.log.records[A] = []
    world.log.end[A] = 0
    async with world.running():
        await world.until(lambda: metrics_refused() == 1)
        world.source.assigned, world.source.positions = frozenset(), {}
        await world.sink.revoked()

    assert metrics_refused() == 0
