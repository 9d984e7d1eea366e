"""The life of one entity under its lease, with every edge in memory."""

import asyncio
import json
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest

from shared.checkpoints.model import CheckpointsUnavailable, Committed, CursorState, Fenced, Grant, PageCommit, SeenPage
from shared.entities import Entity, Owner, PauseRules, Source
from shared.events.contract import Contract, compile_contract
from shared.lifecycle import Stop
from shared.producer.brake import Brake
from shared.producer.capture import Capture, paused_text, paused_under
from shared.producer.delivery import Delivery, Destination, PauseEntity
from shared.producer.feed import FeedAnswer, SourceUnavailable
from shared.producer.reading import Request
from tests.fakes.delivery import FakeKafka, FakeParked
from tests.unit.test_delivery import RULES, SCHEMA, UNAVAILABLE

NOW_US = time.time_ns() // 1_000
CONTRACT = compile_contract(RULES, SCHEMA, "cdc.accounts-value", 7)


class FakeFeed:
    """Shows ``rows`` in order, inclusively; ``faults`` are raised first, ``bodies`` sent first."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows
        self.faults: list[Exception] = []
        self.bodies: list[bytes] = []
        self.answers = 0

    async def fetch(self, request: Request) -> FeedAnswer:
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        self.answers += 1
        rows = [row for row in self.rows if int(str(row["at"])) >= request.since_us]
        body = self.bodies.pop(0) if self.bodies else json.dumps(rows).encode()
        return FeedAnswer(body, time.time_ns() // 1_000, 0.0, 1)


class FakeCheckpoints:
    """One entity's row. ``failures``: commits whose outcome stays unknown, though they are applied."""

    def __init__(self) -> None:
        self.commits: list[PageCommit] = []
        self.failures = 0
        self.fenced = False
        self.paused: str | None = None
        self.released: list[bool] = []

    async def load(self, grant: Grant) -> tuple[CursorState, list[SeenPage]]:
        return CursorState(cursor_us=0, swept_us=0, cap_swept_us=0), []

    async def commit(self, grant: Grant, page: PageCommit) -> Committed:
        await asyncio.sleep(0)
        if self.fenced:
            raise Fenced(grant.entity, grant.epoch)
        if not self.commits or self.commits[-1].shown_us != page.shown_us:
            self.commits.append(page)
        if self.failures:
            self.failures -= 1
            raise CheckpointsUnavailable("no answer to COMMIT")
        return Committed(seq=len(self.commits), paused_reason=None, tidy_due=False)

    async def renew(self, grant: Grant) -> Grant:
        return grant

    async def release(self, grant: Grant, *, shown_us: int | None = None, clean: bool = True) -> None:
        self.released.append(clean)

    async def pause(self, entity: str, reason: str, who: str) -> bool:
        self.paused = reason
        return True


class World:
    """A capture with its edges; ``run`` ends it as soon as ``done`` is true."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.feed = FakeFeed(rows)
        self.kafka = FakeKafka()
        self.parked = FakeParked()
        self.checkpoints = FakeCheckpoints()
        self.ended = Stop()

    async def run(self, done: Callable[[], bool]) -> None:
        to = Destination(entity="accounts", topic="t", owner="ledger", outage_parked_events_max=0)
        delivery = Delivery(to, CONTRACT, Brake(PauseRules()), self.kafka, self.parked, self.ended)
        capture = Capture(ENTITY, grant(), self.feed, delivery, self.checkpoints, self._newest, self._tidy, self.ended)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(capture.run())
            while not (done() or self.ended.is_set):  # noqa: ASYNC110  # one turn of the loop at a time
                await asyncio.sleep(0)
            self.ended.set("test")

    async def _newest(self) -> Contract:
        return CONTRACT

    async def _tidy(self, grant: Grant) -> None: ...


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.producer.capture.backoff", lambda base_s, cap_s: repeat(0.0))


ENTITY = Entity(
    name="accounts",
    source=Source(name="bank", url="http://127.0.0.1:9/cdc"),
    rules=RULES,
    owner=Owner(name="ledger"),
    topic="t",
    schema_subject="t-value",
    schema_file=Path("accounts.avsc"),
    schema_text=SCHEMA,
    poll_interval_s=0.001,
)


def grant() -> Grant:
    return Grant(
        entity="accounts",
        owner="me",
        epoch=1,
        lease_s=30,
        lease_until_monotonic_s=time.monotonic() + 30,
        shown_from_us=NOW_US,
        shown_limit_us=NOW_US + 60_000_000,
        shown_anchor_monotonic_s=time.monotonic(),
        unclean=False,
    )


def rows(count: int) -> list[dict[str, object]]:
    return [{"id": n, "at": NOW_US - 5_000_000 + n, "op": "u", "name": "x"} for n in range(count)]


async def test_each_change_is_published_once_and_committed() -> None:
    world = World(rows(3))

    await world.run(lambda: world.feed.answers > 3)

    assert [record.key for record in world.kafka.acked] == [b"0", b"1", b"2"]
    assert world.checkpoints.commits[-1].state.cursor_us == NOW_US - 5_000_000 + 2
    assert world.checkpoints.released == [True]


async def test_nothing_is_committed_while_events_are_not_durable() -> None:
    world = World(rows(3))
    world.kafka.answers = [UNAVAILABLE] * 1_000

    await world.run(lambda: world.kafka.calls > 0)

    assert world.checkpoints.commits == []
    assert world.checkpoints.released == [False], "the next owner must know that something may have been sent"


async def test_a_commit_of_unknown_outcome_is_repeated_with_the_same_page() -> None:
    world = World(rows(3))
    world.checkpoints.failures = 2

    await world.run(lambda: world.feed.answers > 3)

    assert len(world.kafka.acked) == 3
    assert len({commit.shown_us for commit in world.checkpoints.commits}) == len(world.checkpoints.commits)


async def test_a_source_that_drips_does_not_hold_up_a_stop() -> None:
    world = World(rows(1))
    asked = asyncio.Event()

    async def drip(request: Request) -> FeedAnswer:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError

    world.feed.fetch = drip  # type: ignore[method-assign]

    await world.run(asked.is_set)

    assert world.checkpoints.released == [True]


async def test_a_lost_lease_ends_the_reading_at_once() -> None:
    world = World(rows(3))
    world.checkpoints.fenced = True

    await world.run(lambda: False)

    assert world.checkpoints.commits == []


async def test_a_source_that_fails_moves_nothing_and_is_asked_again() -> None:
    world = World(rows(1))
    world.feed.faults = [SourceUnavailable("503", 0.0)] * 3

    await world.run(lambda: world.feed.answers > 0 and bool(world.checkpoints.commits))

    assert [record.key for record in world.kafka.acked] == [b"0"]


async def test_a_page_that_is_no_json_parks_nothing_and_moves_nothing() -> None:
    world = World(rows(1))
    world.feed.bodies = [b"<html>login</html>", b'[{"id": 1, "at"']

    await world.run(lambda: bool(world.checkpoints.commits))

    assert world.parked.events == []
    assert [record.key for record in world.kafka.acked] == [b"0"]


async def test_a_flood_of_invalid_events_pauses_the_entity_with_its_cursor_standing() -> None:
    world = World([row | {"name": 7} for row in rows(300)])

    await world.run(lambda: False)

    assert world.checkpoints.paused == "too_many_invalid: 300 invalid events in a row (schema id 7)"
    assert (world.checkpoints.commits, world.parked.events, world.checkpoints.released) == ([], [], [True])


def test_the_reason_of_a_pause_says_which_schema_would_have_to_change() -> None:
    assert paused_under(paused_text(PauseEntity("too_many_invalid", "200 in a row (really)"), 41)) == 41
    assert paused_under(paused_text(PauseEntity("source_auth", "401 (schema id 41)"), 41)) is None
    assert paused_under("by hand") is None
