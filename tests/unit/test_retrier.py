"""The loop: what it takes up, what it leaves, and that it ends with nothing in flight."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.due import DEPTH_MAX, DEPTH_MIN, DueQueue
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Batch, Deadline
from services.dynamo_retrier.retrier import Pace, Retrier
from shared.config import ConfigError, load_config
from shared.lifecycle import Stop
from shared.parked.calls import ParkedUnavailable
from shared.parked.leases import Due
from shared.parked.model import shard
from shared.parked.wake import NoAnalyst
from tests.fakes.leases import HandClock, hint


class Rows:
    """An index in memory, and a re-drive that takes from it what it is given. ``hangs``: entities that never end."""

    def __init__(self, *rows: Due) -> None:
        self.rows = list(rows)
        self.batches: list[tuple[str, int]] = []
        self.kafka = "answered"
        self.hangs: set[str] = set()
        self.released = asyncio.Event()
        self.in_flight = 0
        self.is_up = True
        self.reads: list[int] = []
        self.error: Exception | None = None
        self.time_needed_until_s = 0.0

    async def due(self, queue: str, shard_number: int, now_ms: int, limit: int) -> list[Due]:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.reads.append(limit)
        return [row for row in self.rows if shard(row.item_id) == shard_number][:limit]

    async def reachable(self) -> bool:
        return self.is_up

    def has_time(self, deadline: Deadline) -> bool:
        return deadline.until_s > self.time_needed_until_s

    async def batch(self, topic: str, hints: Sequence[Due], deadline: Deadline) -> Batch:
        return await self._take(hints, deadline)

    async def adrift(self, hints: Sequence[Due], deadline: Deadline) -> Batch:
        return await self._take(hints, deadline)

    async def _take(self, hints: Sequence[Due], deadline: Deadline) -> Batch:
        entity = hints[0].entity
        self.batches.append((entity, len(hints)))
        self.in_flight += 1
        try:
            await (self.released.wait() if entity in self.hangs else asyncio.sleep(0))
        finally:
            self.in_flight -= 1
        if entity == "no_contract":
            raise NoAnalyst("the registry is away")
        if self.kafka != "away":
            self.rows = [row for row in self.rows if row not in hints]
        return Batch(entity, deadline, claimed=len(hints), kafka=self.kafka)  # type: ignore[arg-type]


def rows(count: int, entity: str = "a", first: int = 0) -> list[Due]:
    return [hint(number, entity=entity) for number in range(first, first + count)]


class Scene:
    def __init__(self, table: Rows, *, per_s: int = 1_000, batch_rows_max: int = 200) -> None:
        self.clock = HandClock()
        self.stop = Stop()
        self.deadline = Deadline()
        self.share = Share(per_s)
        pace = Pace(batch_rows_max=batch_rows_max, poll_s=0.005, drain_s=7.0)
        self.retrier = Retrier(
            {"a": "cdc.a", "b": "cdc.b", "no_contract": "cdc.c"},
            DueQueue(table),
            table,
            self.share,
            pace,
            monotonic_s=self.clock.monotonic_s,
        )

    async def once(self) -> None:
        async with asyncio.timeout(10):
            await self.retrier.run(self.stop, self.deadline, once=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.retrier.run(self.stop, self.deadline))
            yield
            self.stop.set("test")


async def until(claim: Callable[[], bool]) -> None:
    while not claim():  # noqa: ASYNC110  # nothing to be woken by
        await asyncio.sleep(0.001)


async def test_all_that_is_due_is_taken_up_in_batches_and_once_ends() -> None:
    table = Rows(*rows(30), *rows(20, "b", 30), *rows(5, "gone", 50))
    await Scene(table, batch_rows_max=10).once()

    assert table.rows == []
    assert max(count for _, count in table.batches) <= 10
    assert table.in_flight == 0


async def test_an_entity_that_hangs_keeps_nobody_waiting() -> None:
    table = Rows(*rows(300, "a"), *rows(5, "b", 300))
    table.hangs = {"a"}
    scene = Scene(table, batch_rows_max=10)
    async with scene.running():
        await until(lambda: not [row for row in table.rows if row.entity == "b"])
        assert table.in_flight == 1, "one batch an entity"
        table.released.set()
    assert table.in_flight == 0


async def test_no_more_is_taken_up_than_may_be_published_in_a_second() -> None:
    table = Rows(*rows(100, "a"))
    table.hangs = {"a", "b"}
    scene = Scene(table, per_s=30)
    async with scene.running():
        await until(lambda: table.in_flight == 1)
        table.rows += rows(100, "b", 100)
        for _ in range(10):
            await asyncio.sleep(0.005)
        assert table.batches == [("a", 30)]
        table.hangs = set()
        table.released.set()
        await until(lambda: not table.rows)


async def test_while_kafka_is_down_there_is_one_probe_at_a_time_and_then_all_goes_on() -> None:
    table = Rows(*rows(50, "a"), *rows(50, "b", 50))
    table.kafka = "away"
    scene = Scene(table)
    async with scene.running():
        await until(lambda: {entity for entity, _ in table.batches} == {"a", "b"})
        await until(lambda: table.in_flight == 0)
        first = len(table.batches)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(table.batches) == first, "a probe before its time"
        for _ in range(4):
            scene.clock.now_s += 40
            count = len(table.batches)
            await until(lambda count=count: len(table.batches) > count)  # type: ignore[misc]
        assert {count for _, count in table.batches[first:]} == {1}
        table.kafka = "answered"
        scene.clock.now_s += 40
        await until(lambda: not table.rows)
    assert scene.share.limit(scene.clock.now_s) == 100, "no slow start"


async def test_nothing_is_claimed_before_a_broker_has_answered() -> None:
    table = Rows(*rows(5))
    table.is_up = False
    await Scene(table).once()
    assert (table.batches, table.reads) == ([], [])


async def test_an_entity_without_contract_is_put_off_and_the_others_go() -> None:
    table = Rows(*rows(50, "no_contract"), *rows(5, "a", 50))
    await Scene(table, batch_rows_max=10).once()
    assert [entity for entity, _ in table.batches].count("no_contract") == 1
    assert {row.entity for row in table.rows} == {"no_contract"}


@pytest.mark.parametrize("error", [ParkedUnavailable("parked_unavailable", "no answer")])
async def test_while_the_table_is_away_it_is_not_asked_all_the_time(error: Exception) -> None:
    table = Rows(*rows(5))
    table.error = error
    scene = Scene(table)
    await scene.once()
    table.error = None
    await scene.once()
    assert table.batches == []
    scene.clock.now_s += 2
    await scene.once()
    assert table.rows == []


async def test_a_stop_gives_what_is_under_way_the_time_to_drain_and_no_more() -> None:
    table = Rows(*rows(5))
    table.hangs = {"a"}
    scene = Scene(table)
    async with scene.running():
        await until(lambda: table.in_flight == 1)
        scene.stop.set("SIGTERM")
        await until(lambda: scene.deadline.until_s < float("inf"))
        assert scene.deadline.until_s == scene.clock.now_s + 7.0
        table.released.set()
    assert table.in_flight == 0


async def test_near_the_deadline_nothing_more_is_begun() -> None:
    table = Rows(*rows(5))
    table.time_needed_until_s = 1_500.0
    scene = Scene(table)
    scene.deadline.nearer(1_499.0)
    await scene.once()
    assert (table.batches, table.reads) == ([], [])


async def test_a_row_is_handed_out_once_as_long_as_the_index_is_behind() -> None:
    table = Rows(*rows(3))
    queue = DueQueue(table)
    found = await queue.look(0, 0.0, 10, lambda _: True)
    queue.hand_out(found, 0.0)

    assert len(found) == 3
    assert await queue.look(0, 0.0, 10, lambda _: True) == []
    table.rows = [replace(row, ver=2) for row in table.rows]
    assert len(await queue.look(0, 0.0, 10, lambda _: True)) == 3, "it came back"
    table.rows = rows(3)
    assert len(await queue.look(0, 60.0, 10, lambda _: True)) == 3, "or we were wrong"


async def test_rows_that_have_to_wait_are_looked_past_up_to_a_bound_and_not_all_the_time() -> None:
    table = Rows(*rows(2_000, "a"), *rows(1, "b", 2_000))
    queue = DueQueue(table)
    found = await queue.look(0, 0.0, 5, lambda row: row.entity == "b")

    assert [row.entity for row in found] == ["b"]
    assert DEPTH_MIN < max(table.reads) <= DEPTH_MAX
    table.reads.clear()
    await queue.look(0, 1.0, 5, lambda row: row.entity == "b")
    assert max(table.reads) == DEPTH_MIN
    await queue.look(0, 6.0, 5, lambda row: row.entity == "b")
    assert max(table.reads) > DEPTH_MIN


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("TIDEMARK_LEASE_S", "20", "lease_s 20 is too short"),
        ("TIDEMARK_PUBLISHES_PER_S_MAX", "4", "below 1 a second"),
        ("TIDEMARK_DRAIN_S", "5", "leaves no time to publish"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(setting: str, value: str, says: str) -> None:
    environ = {
        "TIDEMARK_KAFKA_BOOTSTRAP": "127.0.0.1:9092",
        "TIDEMARK_REGISTRY_URL": "http://127.0.0.1:8081",
        "TIDEMARK_ENTITIES_DIR": "entities",
        "TIDEMARK_CACHE_DIR": "cache",
    }
    assert load_config(RetrierConfig, environ).per_s_max == 1_000
    with pytest.raises(ConfigError, match=says):
        load_config(RetrierConfig, environ | {setting: value})
