"""How many rows a cause has, read from the index ``grp``; and what of it the gauges show. Edge: the parked table."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol

from services.stale_notifier.delivery import Owners
from services.stale_notifier.grouping import Count
from services.stale_notifier.together import all_of
from shared import metrics
from shared.events.model import Reason
from shared.parked.groups import Cause, Group, OpenGroup, cause_of
from shared.parked.items import ParkedRow
from shared.parked.leases import Due
from shared.parked.model import SHARDS, State
from shared.parked.queries import ParkedFilter

CAUSES_MAX = 10_000  # of one entity and reason; further ones are not told apart from those that are not there
UNTOLD_LOOKS_MAX = 100


class Rows(Protocol):
    """``ParkedStore.streams``."""

    def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]: ...


class Groups(Protocol):
    async def get(self, owner: str, cause_id: str) -> Group | None: ...

    async def open_groups(self) -> list[OpenGroup]: ...


class Queue(Protocol):
    async def due(self, queue: Literal["r", "n"], shard_number: int, now_ms: int, limit: int) -> list[Due]: ...


class Census:
    """One pass over an entity's rows of one reason answers for all their causes, for ``memo_s``.

    The memo must be much shorter than the time for which a group settles before it is resolved.
    """

    def __init__(self, rows: Rows, *, memo_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
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
            self._memo = {
                **{k: v for k, v in self._memo.items() if read_s - v[0] <= self._memo_s},
                key: (read_s, counts),
            }
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

    def __init__(
        self,
        queue: Queue,
        groups: Groups,
        owners: Owners,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._queue = queue
        self._groups = groups
        self._owners = owners
        self._clock_ms = clock_ms

    async def refresh(self) -> None:
        """Raises ``ParkedUnavailable``; the gauges then show what was last known."""
        now_ms = self._clock_ms()
        open_groups = await self._groups.open_groups()
        oldest_ms = min(await self._oldest_overdue(now_ms), await self._oldest_untold(open_groups, now_ms))
        label_of, owner_of = self._owners.entity_label, self._owners.owner_label
        metrics.show_groups(
            Counter((owner_of(group.owner), label_of(group.entity), group.reason.value) for group in open_groups)
        )
        metrics.OLDEST_UNNOTIFIED.set(oldest_ms / 1000)

    async def _oldest_overdue(self, now_ms: int) -> int:
        """A row whose turn has come and whom no notifier has taken."""
        heads = await all_of(self._queue.due("n", number, now_ms, 1) for number in range(SHARDS))
        return min([row.due_ms for head in heads for row in head], default=now_ms)

    async def _oldest_untold(self, open_groups: list[OpenGroup], now_ms: int) -> int:
        oldest_ms = now_ms
        for hint in [group for group in open_groups if group.phase == "waiting"][:UNTOLD_LOOKS_MAX]:
            group = await self._groups.get(hint.owner, hint.cause_id)
            if group is not None and group.phase == "waiting":
                oldest_ms = min(oldest_ms, group.opened_ms)
        return oldest_ms
