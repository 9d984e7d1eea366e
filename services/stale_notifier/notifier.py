"""The owner of each stale event is told, once per root cause; an event is deleted only after that, and after evidence.

Three lanes side by side, so that none waits for another: *rows* are archived, marked as told, deleted after the grace;
*groups* are told of, through channels that may hang; *gauges* are refreshed. Nothing is held in memory between turns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from services.stale_notifier.ports import Groups, StaleRows
from services.stale_notifier.together import all_of
from shared import metrics
from shared.logs import get_logger
from shared.parked.calls import ParkedUnavailable
from shared.parked.evidence import ArchiveUnavailable
from shared.parked.groups import OpenGroup
from shared.parked.leases import Due
from shared.parked.model import SHARDS
from shared.parked.transitions import ClockSkewed
from shared.retry import backoff

log = get_logger(__name__)

PER_SHARD = 4
ROWS_MAX = PER_SHARD * SHARDS  # of one turn
ROWS_FIRST = 8
GROUPS_AT_ONCE = 16


class Stopping(Protocol):
    @property
    def is_set(self) -> bool: ...

    async def wait(self, timeout_s: float | None = None) -> bool: ...


class WorksRows(Protocol):
    async def work(self, hints: Sequence[Due]) -> bool:
        """False: the batch took longer than a lease. Raises ``ParkedUnavailable``, ``ArchiveUnavailable``."""


class WorksGroup(Protocol):
    def work(self, hint: OpenGroup) -> Coroutine[Any, Any, None]:
        """Raises ``ParkedUnavailable``."""


class Refreshes(Protocol):
    async def refresh(self) -> None: ...


class Notifier:
    def __init__(
        self,
        queue: StaleRows,
        groups: Groups,
        rows: WorksRows,
        teller: WorksGroup,
        gauges: Refreshes,
        *,
        poll_s: float,
        refresh_s: float,
        clock_ms: Callable[[], int],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue, self._groups, self._rows, self._teller, self._gauges = queue, groups, rows, teller, gauges
        self._poll_s, self._refresh_s, self._clock_ms, self._beat = poll_s, refresh_s, clock_ms, beat
        self._rows_max = ROWS_FIRST

    async def run(self, stop: Stopping) -> None:
        """Until ``stop``; each lane then finishes the turn that it is in."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._lane(self._turn_rows, self._poll_s, stop), name="rows")
            lanes.create_task(self._lane(self._turn_groups, self._poll_s, stop), name="groups")
            lanes.create_task(self._lane(self._turn_gauges, self._refresh_s, stop), name="gauges")

    async def _turn_rows(self) -> bool:
        """Evidence, receipt, deletion: each row by its own conditions."""
        self._beat()
        now_ms = self._clock_ms()
        queues = (self._queue.due("n", shard, now_ms, PER_SHARD) for shard in range(SHARDS))
        due = sorted((row for rows in await all_of(queues) for row in rows), key=lambda row: row.due_ms)
        if due:
            batch = due[: self._rows_max]
            metrics.NOTIFIER_IN_PROGRESS.set(len(batch))
            try:
                self._learn(await self._rows.work(batch))
            finally:
                metrics.NOTIFIER_IN_PROGRESS.set(0)
            metrics.NOTIFIER_LAST.set_to_current_time()
        return bool(due)

    def _learn(self, was_in_time: bool) -> None:
        """A batch that takes longer than a lease is begun anew by whoever comes next: a smaller one gets through."""
        if was_in_time:
            self._rows_max = min(ROWS_MAX, self._rows_max + self._rows_max // 4 + 1)
            return
        log.warning("batch_outlasted_lease", rows_max=self._rows_max,
                    action="if this goes on with 1 row, raise TIDEMARK_NOTIFIER_LEASE_S")  # fmt: skip
        self._rows_max = max(1, self._rows_max // 2)

    async def _turn_groups(self) -> bool:
        """Notices. Channels may take long: a turn ends with its slowest one."""
        now_ms = self._clock_ms()
        queues = (self._groups.due(shard, now_ms, GROUPS_AT_ONCE) for shard in range(SHARDS))
        due = [group for groups in await all_of(queues) for group in groups]
        due.sort(key=lambda group: group.due_ms)
        await all_of(self._teller.work(group) for group in due[:GROUPS_AT_ONCE])
        return len(due) > GROUPS_AT_ONCE

    async def _turn_gauges(self) -> bool:
        await self._gauges.refresh()
        return False

    async def _lane(self, turn: Callable[[], Awaitable[bool]], pause_s: float, stop: Stopping) -> None:
        """Turn after turn; what the world refuses now is tried again, ever more slowly."""
        delays = backoff(1.0, 30.0)
        while not stop.is_set:
            try:
                more = await turn()
            except (ParkedUnavailable, ArchiveUnavailable, ClockSkewed) as error:
                metrics.NOTIFIER_WAITS.labels(type(error).__name__).inc()
                log.warning("notifier_waits", why=type(error).__name__, error=str(error))
                await stop.wait(next(delays))
                continue
            delays = backoff(1.0, 30.0)
            if not more:
                await stop.wait(pause_s)
