"""Batches of stale rows, in memory: what a slow archive and a short lease leave of the notifier's progress."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.stale_notifier.delivery import Owners
from services.stale_notifier.disclosure import Disclosure
from services.stale_notifier.grouping import Timing, opened
from services.stale_notifier.notifier import ROWS_FIRST, Notifier
from services.stale_notifier.rows import RowLimits, Rows
from shared.entities import load_entities
from shared.lifecycle import Stop
from shared.parked.evidence import Written
from shared.parked.groups import Group, OpenGroup, Told, cause_of
from shared.parked.leases import Claimed, Due, Receipt, Row
from shared.parked.model import SHARDS, State, shard
from shared.parked.transitions import LeaseLost
from tests.fakes.leases import HandClock, claimed_of, hint
from tests.fakes.stale_bench import write_entities

LEASE_S = 1.0
GRACE_S = 0.5
ROWS = 100


class Table:
    """Stale rows under leases."""

    def __init__(self, clock: HandClock, count: int) -> None:
        self.clock = clock
        dues = [replace(hint(number), state=State.STALE) for number in range(count)]
        self.rows = {due.item_id: claimed_of(due, b"{}", 0.0, token="") for due in dues}
        self.archived_at: list[float] = []
        self.told: set[str] = set()

    async def due(self, queue: str, shard_number: int, now_ms: int, limit: int) -> list[Due]:
        await asyncio.sleep(0)
        self.clock.now_s += 0.1 / SHARDS  # between two turns
        mine = [row for row in self.rows.values() if shard(row.item_id) == shard_number and row.due_ms <= now_ms]
        mine.sort(key=lambda row: row.due_ms)
        return [
            replace(hint(int(row.item_id, 16), ver=row.ver), state=State.STALE, due_ms=row.due_ms)
            for row in mine[:limit]
        ]

    async def claim(self, due: Due, worker: str, lease_s: float) -> Claimed | None:
        until_s = self.clock.now_s + lease_s * 0.9
        await asyncio.sleep(0)
        row = self.rows[due.item_id]
        if row.ver != due.ver or row.due_ms > self.clock.wall_ms():
            return None
        due_ms = self.clock.wall_ms() + int(lease_s * 1000)
        token = f"t{row.ver}"
        return self._put(row, token=token, lease_until_s=until_s, due_ms=due_ms)

    async def archived(self, claimed: Claimed, uri: str, sha: str) -> Claimed:
        row = await self._held(claimed, "archived")
        return self._put(row, arch_uri=uri, arch_sha=sha, keep_ver=True)

    async def notified(self, claimed: Claimed, receipt: Receipt, grace_s: float) -> None:
        row = await self._held(claimed, "notified")
        until_ms = self.clock.wall_ms() + int(grace_s * 1000)
        self._put(row, ntf=(receipt,), grace_until_ms=until_ms, due_ms=until_ms, token="")
        self.told.add(row.item_id)

    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool) -> None:
        self._put(await self._held(claimed, "again"), due_ms=due_ms, token="")

    async def finish(self, claimed: Claimed) -> None:
        row = await self._held(claimed, "finish")
        assert row.arch_sha is not None
        assert row.ntf
        del self.rows[row.item_id]

    async def original(self, row: Row) -> bytes:
        raise AssertionError("nothing was edited")

    async def _held(self, claimed: Claimed, transition: str) -> Claimed:
        await asyncio.sleep(0)
        row = self.rows.get(claimed.item_id)
        if row is None or row.token != claimed.token:
            raise LeaseLost(claimed, transition, gone=row is None)
        return row

    def _put(self, row: Claimed, *, keep_ver: bool = False, **changes: Any) -> Claimed:
        self.rows[row.item_id] = replace(row, ver=row.ver + (not keep_ver), **changes)
        return self.rows[row.item_id]


class Archive:
    """One object after the other, each in ``keep_s``."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.keep_s = 0.0
        self.written = 0

    async def keep(self, row: Row, original: bytes | None = None) -> Written:
        self.clock.now_s += self.keep_s
        self.written += 1
        await asyncio.sleep(0)
        return Written(row.item_id, sha256(row.event.raw).hexdigest())

    async def holds(self, uri: str, digest: str) -> bool:
        await asyncio.sleep(0)
        return True

    def uri(self, key: str) -> str:
        return f"s3://archive/{key}"

    async def append(self, objects: Sequence[Written]) -> None:
        await asyncio.sleep(0)


class ToldGroups:
    """Every group has been told of."""

    async def get(self, owner: str, cause_id: str) -> Group | None:
        await asyncio.sleep(0)
        told = Told("slack", "key", "id", "200", 1, 1, "new")
        row = claimed_of(hint(0), b"", 0.0)
        group = opened(owner, cause_of(row.event), b"", 1, Timing())
        return replace(group, ver=1, phase="told", receipts=(told,), told_ms=1, last_told_ms=1)

    async def swap(self, group: Group) -> Group | None:
        raise AssertionError("nothing of the group changes")

    async def due(self, shard_number: int, now_ms: int, limit: int) -> list[OpenGroup]:
        await asyncio.sleep(0)
        return []


class Idle:
    async def work(self, hint: OpenGroup) -> None: ...

    async def refresh(self) -> None: ...


class Scene:
    def __init__(self, folder: Path) -> None:
        self.clock = HandClock()
        self.table = Table(self.clock, ROWS)
        self.archive = Archive(self.clock)
        self.batches: list[int] = []
        self.stop = Stop()
        owners = Owners(load_entities(write_entities(folder, [])), {})
        self.rows = Rows(
            self.table, self.archive, self.archive, ToldGroups(), owners, lambda _: Disclosure(None),
            RowLimits(LEASE_S, GRACE_S), Timing(), "w",
            clock_ms=self.clock.wall_ms, monotonic_s=self.clock.monotonic_s,
        )  # fmt: skip
        self.notifier = Notifier(
            self.table, ToldGroups(), self, Idle(), Idle(), poll_s=0.001, refresh_s=60, clock_ms=self.clock.wall_ms
        )

    async def work(self, hints: Sequence[Due]) -> bool:
        self.batches.append(len(hints))
        return await self.rows.work(hints)

    async def drained(self, batches_max: int) -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.notifier.run(self.stop))
            while self.table.rows and len(self.batches) <= batches_max:  # noqa: ASYNC110  # nothing to be woken by
                await asyncio.sleep(0)
            self.stop.set("test")
            await running
        assert not self.table.rows, f"not after {batches_max} batches: {self.batches[-10:]}"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_lease_far_shorter_than_a_large_batch_holds_up_nothing(scene: Scene) -> None:
    scene.archive.keep_s = 0.2  # a lease has time for four
    await scene.drained(batches_max=400)

    assert scene.archive.written < 3 * ROWS, "written again and again"


async def test_batches_grow_while_leases_last(scene: Scene) -> None:
    await scene.drained(batches_max=400)

    assert scene.batches[0] == ROWS_FIRST
    assert max(scene.batches) > 2 * ROWS_FIRST
    assert scene.archive.written == ROWS
