"""How many rows a cause has, read from the index ``grp``; and what of it the gauges show. Edge: the parked table."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from services.stale_notifier.grouping import Count
from shared import metrics
from shared.events.model import Reason
from shared.parked.groups import Cause, OpenGroup, StaleHint, cause_of
from shared.parked.groups import Group as GroupItem
from shared.parked.items import ParkedRow
from shared.parked.model import State
from shared.parked.queries import ParkedFilter

CAUSES_MAX = 10_000  # of one entity and reason; further ones are not told apart from those that are not there
UNTOLD_LOOKS_MAX = 100


class Rows(Protocol):
    """``ParkedStore.streams``."""

    def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]: ...


class Groups(Protocol):
    async def get(self, owner: str, cause_id: str) -> GroupItem | None: ...

    async def open_groups(self) -> list[OpenGroup]: ...

    def stale(self) -> AsyncIterator[list[StaleHint]]: ...


class Census:
    """One pass over an entity's rows of one reason answers for all their causes, for ``memo_s``.

    The memo must be much shorter than the time for which a group settles before it is resolved.
    """

    def __init__(
        self, rows: Rows, *, memo_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._rows = rows
        self._memo_s = memo_s
        self._clock_s = clock_s
        self._memo: dict[tuple[str, Reason], tuple[float, dict[str, Count]]] = {}

    async def count(self, cause: Cause) -> Count:
        """Raises ``ParkedUnavailable``."""
        key = (cause.entity, cause.reason)
        read_s, counts = self._memo.get(key, (-1e9, {}))
        if self._clock_s() - read_s > self._memo_s:
            read_s, counts = self._clock_s(), await self._read(*key)
            self._memo = {**{k: v for k, v in self._memo.items() if read_s - v[0] <= self._memo_s}, key: (read_s, counts)}
        return counts.get(cause.id, Count())

    async def _read(self, entity: str, reason: Reason) -> dict[str, Count]:
        counts: dict[str, Count] = {}
        wanted = ParkedFilter(entities=(entity,), reasons=(reason,), state=State.STALE)
        async for page in self._rows.rows(wanted):
            for row in page:
                cause_id = cause_of(row).id
                known = counts.get(cause_id)
                if known is None and len(counts) >= CAUSES_MAX:
                    continue
                first_ms = row.first_us // 1000
                counts[cause_id] = (
                    Count(1, first_ms, first_ms)
                    if known is None
                    else Count(known.events + 1, min(known.first_ms, first_ms), max(known.last_ms, first_ms))
                )
        return counts


class Gauges:
    """Exact within one refresh."""

    def __init__(self, groups: Groups, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._groups = groups
        self._clock_ms = clock_ms

    async def refresh(self) -> None:
        """Raises ``ParkedUnavailable``; the gauges then show what was last known."""
        now_ms = self._clock_ms()
        stale: dict[tuple[str, str], int] = {}
        oldest_ms = now_ms
        async for page in self._groups.stale():
            for row in page:
                key = (row.entity, row.reason.value)
                stale[key] = stale.get(key, 0) + 1
                oldest_ms = min(oldest_ms, row.due_ms)  # overdue: nobody has taken it
        open_groups = await self._groups.open_groups()
        untold = [group for group in open_groups if group.phase == "waiting"]
        for hint in untold[:UNTOLD_LOOKS_MAX]:
            group = await self._groups.get(hint.owner, hint.cause_id)
            if group is not None and group.phase == "waiting":
                oldest_ms = min(oldest_ms, group.opened_ms)
        metrics.show_stale(stale, _by_owner(open_groups), oldest_ms / 1000)


def _by_owner(groups: list[OpenGroup]) -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = {}
    for group in groups:
        key = (group.owner, group.entity, group.reason.value)
        found[key] = found.get(key, 0) + 1
    return found
