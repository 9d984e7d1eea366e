"""Three sinks that all believe they own a partition, on a store and a group that fail in every known way.

The simulation of the design's algorithm, run on the sink's own code: nothing lost, nothing doubled, order kept.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest
import structlog

from services.s3_sink.limits import SinkSettings
from services.s3_sink.sink import Sink
from shared.kafka.chunks import GroupCommit, Partition
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject, SlotTaken
from tests.fakes.object_store import Fault, MemoryStore, OverwritingStore
from tests.fakes.partition_log import MemoryLog, MemoryParking, MemorySource, OffsetDecoder

P = Partition("cdc.accounts", 0)
CHAIN = Chain("cdc.accounts", 1, 0)
KEYS = Keys()
WRITERS = 3
RECORDS = 100
FETCHES_MAX = 4_000
SEEDS = 3_000 if os.environ.get("TIDEMARK_TEST_FULL") else 150


class Never:
    is_set = False


class World:
    """One seeded run. Faults and crashes stop at the end, so that every run can finish."""

    def __init__(self, seed: int, store: type[MemoryStore] = MemoryStore, ledger: type[Ledger] = Ledger) -> None:
        self.random = random.Random(seed)
        self.store = store(self._fault, self._turns)
        self.ledger = ledger(self.store, KEYS)
        self.log = MemoryLog()
        self.now_s = 0.0
        self.fetches = 0
        self.crashes = 0
        self.calm = False
        self.log.append(P)

    def _fault(self, _operation: str, _key: str) -> Fault | None:
        if self.calm or self.random.random() > 0.2:
            return None
        return self.random.choice(list(Fault))

    def _turns(self) -> int:
        return self.random.choice((0, 0, 1, 1, 2, 5))

    def on_fetch(self) -> None:
        """Time passes: the log grows with gaps, late requests land, commits regress."""
        self.fetches += 1
        self.now_s += self.random.random()
        if len(self.log.records[P]) < RECORDS:
            for _record in range(self.random.choice((0, 1, 2))):
                self.log.append(P, skip=self.random.randrange(1, 4) if self.random.random() < 0.08 else 0)
        if self.random.random() < 0.1:
            self.store.land_late(1)
        if self.random.random() < 0.05 and P in self.log.commits:
            commit = self.log.commits[P]
            self.log.commits[P] = GroupCommit(self.random.randrange(commit.next_offset + 1), commit.metadata)
        self.calm = self.fetches > FETCHES_MAX // 10

    def sink(self) -> Sink:
        source = MemorySource(
            self.log,
            [P],
            chunk_records=lambda: self.random.choice((1, 2, 5, 20)),
            turns=self._turns,
            commits_arrive=lambda: self.random.random() > 0.2,
            on_fetch=self.on_fetch,
        )
        settings = SinkSettings(
            object_records_max=self.random.choice((2, 5, 12)),
            object_age_s_max=self.random.choice((1.0, 3.0)),
            pack_records=self.random.choice((1, 3)),
        )
        return Sink(
            source,
            self.log,
            OffsetDecoder(),
            MemoryParking(),
            self.store,
            self.ledger,
            settings,
            clock=lambda: self.now_s,
            sleep=lambda _seconds: asyncio.sleep(0),
        )

    async def run(self) -> None:
        writers = [asyncio.create_task(self.sink().run(Never())) for _writer in range(WRITERS)]
        while not (await self._is_complete()):
            assert self.fetches < FETCHES_MAX, "the sinks make no progress"
            for _turn in range(self.random.randrange(1, 15)):
                await asyncio.sleep(0)
            if not self.calm and self.random.random() < 0.2:
                victim = self.random.randrange(WRITERS)
                self.crashes += 1
                await _kill(writers[victim])
                writers[victim] = asyncio.create_task(self.sink().run(Never()))
        for writer in writers:
            await _kill(writer)
        self.store.land_late()

    async def _is_complete(self) -> bool:
        if len(self.log.records[P]) < RECORDS:
            return False
        prefix = KEYS.chain(CHAIN)
        newest = max((key for key in self.store.objects if key.startswith(prefix)), default=None)
        return newest is not None and int(self.store.objects[newest].metadata["tm-end"]) + 1 == self.log.end[P]

    async def faults(self) -> list[str]:
        """What is wrong with the chain: the claims of the design, checked on the objects that are left."""
        ledger = Ledger(MemoryStore(), KEYS)
        ledger._store.objects = self.store.objects  # type: ignore[attr-defined]
        report = await ledger.verify(CHAIN)
        rows = [int(row) for link in report.objects for row in (await ledger.rows(link)).split()]
        wanted = [record.offset for record in self.log.records[P]]
        problems = list(report.problems)
        if set(wanted) - set(rows):
            problems.append(f"lost {sorted(set(wanted) - set(rows))}")
        if len(set(rows)) != len(rows):
            problems.append("doubled")
        if rows != sorted(rows):
            problems.append("reordered")
        return problems


async def _kill(task: asyncio.Task[None]) -> None:
    """Like kill -9: nothing that the sink would do on its way out is allowed to matter."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


async def _run(seed: int, **parts: type) -> list[str]:
    world = World(seed, **parts)
    try:
        await world.run()
    except AssertionError as stuck:
        return [str(stuck)]
    return await world.faults()


async def test_three_zombies_lose_double_and_reorder_nothing() -> None:
    wrong = {seed: found for seed in range(SEEDS) if (found := await _run(seed))}

    assert wrong == {}


async def test_the_simulation_really_meets_what_it_claims_to_meet() -> None:
    worlds = [World(seed) for seed in range(10)]
    for world in worlds:
        await world.run()

    assert sum(world.crashes for world in worlds) > 30
    assert sum(world.store.refused for world in worlds) > 100
    assert sum(len(world.store.objects) for world in worlds) > 100


class CreditsItself(Ledger):
    """The classic mistake: 412 means that our own lost request had landed."""

    async def write(self, candidate: RawObject, body: bytes) -> RawObject:
        try:
            await self._store.create(self.keys.link(candidate.chain, candidate.start), body, candidate.metadata())
        except SlotTaken:
            return candidate
        return candidate


async def test_the_simulation_is_red_when_412_is_taken_for_our_own() -> None:
    assert any([await _run(seed, ledger=CreditsItself) for seed in range(20)])


async def test_the_simulation_is_red_on_a_store_that_overwrites() -> None:
    assert any([await _run(seed, store=OverwritingStore) for seed in range(20)])
