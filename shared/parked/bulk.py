"""A bulk re-drive: wake what the job selects, in the order of the index, and never the same row twice for one job.

Nothing is published here: a woken row is due, and the retriers do the rest. Each row remembers who woke it, and the
job's place is saved behind them: death between the two makes the next run meet rows again, which it knows as its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from shared.parked.items import ParkedRow
from shared.parked.jobs import Job, Woke
from shared.parked.leases import Claimed, Row
from shared.parked.model import State
from shared.parked.selection import Selection
from shared.parked.transitions import BodyLost, Hint, LeaseLost, Place
from shared.parked.walk import Page, Position, place_of

CHUNK_ROWS = 25
"""Woken at once."""
SAVE_S = 1.0
SPREAD_S = 1.0
LEASE_S = 30.0

_T = TypeVar("_T")


class Takes(Protocol):
    """What it takes of ``Transitions`` to get hold of a row. All raise ``ParkedUnavailable``."""

    async def look(self, place: Place) -> Row | None: ...

    async def wake(
        self,
        place: Place,
        spread_s: float,
        by: str,
        *,
        operator: bool = False,
        stale_after_s: float | None = None,
    ) -> bool: ...

    async def claim(self, hint: Hint, worker: str, lease_s: float, *, early: bool = False) -> Claimed | None:
        """Raises ``BodyLost``."""


class Rows(Takes, Protocol):
    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool, free: bool = False) -> None:
        """Raises ``LeaseLost``."""


class Jobs(Protocol):
    async def save(self, job: Job) -> Job:
        """Raises ``JobTaken``, ``ParkedUnavailable``."""


class Walks(Protocol):
    def pages(self, selection: Selection, start: Position = ...) -> AsyncIterator[Page]:
        """Raises ``ParkedUnavailable``."""


class Pace:
    """``per_second`` events, evenly: what a pause or an outage has cost is not made up for in a burst."""

    def __init__(
        self,
        per_second: float,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._per_second = per_second
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._free_s = 0.0

    @property
    def chunk(self) -> int:
        """How many may be taken at once without a second in which much more than ``per_second`` are."""
        return max(1, min(CHUNK_ROWS, int(self._per_second / 4)))

    async def turn(self, count: int) -> None:
        """Wait until ``count`` events may be begun."""
        now_s = self._monotonic_s()
        begins_s = max(now_s, self._free_s)
        self._free_s = begins_s + count / self._per_second
        if begins_s > now_s:
            await self._sleep(begins_s - now_s)


class Waker:
    """Wakes single rows for an operator, once per ``by``.

    ``patience``: an entity's ``stale_after_s``, by which its events get their new deadline; ``None``: the policy's.
    """

    def __init__(self, rows: Rows, clock_ms: Callable[[], int], patience: Callable[[str], float | None]) -> None:
        self._rows = rows
        self._clock_ms = clock_ms
        self._patience = patience

    async def wake(self, place: Place, by: str, selection: Selection | None = None) -> Woke:
        """Held and stale rows are woken; a parked one that is due later is due now. Raises ``ParkedUnavailable``."""
        row = await self._rows.look(place)
        if row is None:
            return "gone"
        if was_woken_by(row, by):
            return "woken"
        if selection is not None and not selection.still_takes(row):
            return "gone"
        if row.state is State.PARKED:
            return await self._hurry(row, by)
        stale_after_s = self._patience(row.event.entity)
        if await self._rows.wake(row, SPREAD_S, by, operator=True, stale_after_s=stale_after_s):
            return "woken"
        return "gone" if await self._rows.look(place) is None else "due"

    async def _hurry(self, row: Row, by: str) -> Woke:
        now_ms = self._clock_ms()
        if row.due_ms <= now_ms + SPREAD_S * 1000:
            return "due"
        if row.lease_until_ms > now_ms:
            return "busy"
        try:
            claimed = await self._rows.claim(row, by, LEASE_S, early=True)
        except BodyLost as lost:
            claimed = lost.claimed  # the retrier will meet the same, and act upon it
        if claimed is None:
            return "busy"
        try:
            await self._rows.again(claimed, now_ms, by, counts=False, free=True)
        except LeaseLost:
            return "busy"
        return "hurried"


async def run_job(
    job: Job,
    jobs: Jobs,
    walk: Walks,
    waker: Waker,
    pace: Pace,
    progress: Callable[[Job], None] = lambda job: None,
    *,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Job:
    """From where the job stands to its end. Raises ``JobTaken``, ``ParkedUnavailable``: run it again later.

    A kill loses nothing but up to ``SAVE_S`` of counters, for those rows alone that have changed meanwhile.
    """
    selection = job.selection
    assert selection is not None, "a job over the archive has no selection"
    saved_s = monotonic_s()
    async for page in walk.pages(selection, job.position):
        for rows in chunks(page.rows, pace.chunk):
            await pace.turn(len(rows))
            outcomes = await together([waker.wake(row, job.by, selection) for row in rows])
            job = job.moved(Position(page.partition, place_of(rows[-1])), outcomes)
            if monotonic_s() - saved_s >= SAVE_S:
                job = await jobs.save(job)
                saved_s = monotonic_s()
            progress(job)
    return await jobs.save(finished(job))


def finished(job: Job) -> Job:
    return replace(job, done=True)


def was_woken_by(row: Row, by: str) -> bool:
    return any(error.code == by for error in row.errs)


def chunks(rows: Sequence[ParkedRow], size: int) -> list[Sequence[ParkedRow]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


async def together(calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers in order; the first failure ends the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call, name="parked-bulk") for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
