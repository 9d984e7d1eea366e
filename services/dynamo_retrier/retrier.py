"""A parked event is re-driven soon after its cause is gone, by one worker at a time, deleted only after Kafka's ack.

Look which rows are due, take no more than may be published, re-drive them batch by batch: one batch an entity, so that
an entity whose topic hangs keeps nobody waiting. While Kafka is down nothing is claimed but one probe at a time.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from msgspec import Struct

from services.dynamo_retrier.due import DueQueue
from services.dynamo_retrier.gates import Gates
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.ports import Stopping
from services.dynamo_retrier.redrive import Batch, Deadline
from shared import metrics
from shared.logs import get_logger
from shared.parked.calls import ParkedUnavailable
from shared.parked.leases import Due
from shared.parked.transitions import ClockSkewed
from shared.parked.wake import NoAnalyst
from shared.retry import backoff

log = get_logger(__name__)

NO_ANALYST_S = 5.0
ALL = ""  # no entity has this name


class Redrives(Protocol):
    """One batch of one entity; nothing is in flight when it returns."""

    async def reachable(self) -> bool:
        """Whether a broker answers now."""

    def has_time(self, deadline: Deadline) -> bool:
        """Whether what is claimed now can still be published and settled."""

    async def batch(self, topic: str, hints: Sequence[Due], deadline: Deadline) -> Batch:
        """Raises ``NoAnalyst`` before anything is claimed."""

    async def adrift(self, hints: Sequence[Due], deadline: Deadline) -> Batch:
        """Rows of an entity that is not configured."""


class Pace(Struct, frozen=True, kw_only=True):
    batch_rows_max: int = 200
    poll_s: float = 1.0
    """Between two looks when nothing is due."""
    drain_s: float = 20.0
    """After a stop, what is claimed is published and settled within this time, or given back."""


class Retrier:
    """``topics``: entity → topic, of all that is configured. ``gates``: of the same topics, from an earlier run."""

    def __init__(
        self,
        topics: Mapping[str, str],
        queue: DueQueue,
        redrive: Redrives,
        share: Share,
        pace: Pace,
        *,
        gates: Gates | None = None,
        beat: Callable[[], None] = lambda: None,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._topics = dict(topics)
        self._queue, self._redrive, self._share, self._pace = queue, redrive, share, pace
        self._beat, self._monotonic_s, self._wall_ms = beat, monotonic_s, wall_ms
        self._gates = Gates(self._topics.values()) if gates is None else gates
        self._busy: dict[str, int] = {}  # entity → rows handed to its batch
        self._put_off: dict[str, float] = {}  # entity → not before
        self._news = asyncio.Event()
        self._table_waits = backoff(1, 30)

    async def run(self, stop: Stopping, deadline: Deadline, *, once: bool = False) -> None:
        """Until ``stop`` or the deadline; ``once``: until nothing more is due. Nothing is in flight at return."""
        async with asyncio.TaskGroup() as tasks:
            hurry = tasks.create_task(self._hurry(stop, deadline), name="retrier-stop")
            if await self._kafka_answers(stop, deadline, once):
                while not stop.is_set and self._redrive.has_time(deadline):
                    self._news.clear()
                    for entity, hints in (await self._due()).items():
                        self._begin(tasks, entity, hints, deadline)
                    if once and not self._busy and not self._news.is_set():  # set: a batch ended while we looked
                        break
                    await self._rest(deadline)
            if stop.is_set:  # seen here before ``hurry`` was awake
                deadline.nearer(self._monotonic_s() + self._pace.drain_s)
            hurry.cancel()

    async def _due(self) -> dict[str, list[Due]]:
        """Rows that may go now, by entity: no more than the share has room for, and none while only probes may go
        and it is not their time."""
        now_s = self._monotonic_s()
        limit = self._share.limit(now_s)
        metrics.REDRIVE_LIMIT.set(limit)
        room = min(limit - sum(self._busy.values()), self._pace.batch_rows_max * max(1, len(self._topics)))
        room = self._gates.allowed_of_all(now_s, room)
        if room <= 0 or self._put_off.get(ALL, 0.0) > now_s:
            return {}
        try:
            rows = await self._queue.look(self._wall_ms(), now_s, room, lambda row: self._allowed(row.entity, 1) > 0)
        except (ParkedUnavailable, ClockSkewed) as error:
            self._wait_for_table(str(error))
            return {}
        self._table_waits = backoff(1, 30)
        by_entity: dict[str, list[Due]] = {}
        for row in rows:
            by_entity.setdefault(row.entity, []).append(row)
        each = min(self._pace.batch_rows_max, max(1, room // max(1, len(by_entity))))
        return {entity: hints[:each] for entity, hints in by_entity.items()}

    def _allowed(self, entity: str, wanted: int) -> int:
        now_s = self._monotonic_s()
        if entity in self._busy or self._put_off.get(entity, 0.0) > now_s:
            return 0
        topic = self._topics.get(entity)
        return wanted if topic is None else self._gates.allowed(topic, now_s, wanted)

    def _begin(self, tasks: asyncio.TaskGroup, entity: str, hints: list[Due], deadline: Deadline) -> None:
        hints = hints[: self._allowed(entity, len(hints))]
        if not hints:
            return
        self._queue.hand_out(hints, self._monotonic_s())
        self._busy[entity] = len(hints)
        if entity in self._topics:
            self._gates.claimed(self._topics[entity])
        tasks.create_task(self._batch(entity, hints, deadline), name=f"redrive-{entity}")

    async def _batch(self, entity: str, hints: list[Due], deadline: Deadline) -> None:
        topic = self._topics.get(entity)
        in_progress = metrics.RETRIES_IN_PROGRESS.labels("unknown" if topic is None else entity)
        in_progress.inc(len(hints))
        try:
            if topic is None:
                done = await self._redrive.adrift(hints, deadline)
            else:
                done = await self._redrive.batch(topic, hints, deadline)
                self._learn(topic, done)
            if done.parked_away:
                self._wait_for_table("a row could not be written")
        except NoAnalyst as error:
            self._put_off[entity] = self._monotonic_s() + NO_ANALYST_S
            log.warning("entity_waits", entity=entity, why=str(error))
        finally:
            in_progress.dec(len(hints))
            del self._busy[entity]
            if topic is not None:
                self._gates.settled(topic)
            self._news.set()

    def _learn(self, topic: str, done: Batch) -> None:
        """An outage, or its end, shows in what became of records, and in nothing else."""
        now_s = self._monotonic_s()
        if done.kafka == "away" and self._gates.failed(topic, now_s):
            log.warning("redrive_waits_for_kafka", topic=topic)
        elif done.kafka == "answered" and self._gates.answered(topic, now_s):
            self._share.start_slowly(now_s)
            log.info("redrive_goes_on", topic=topic, per_s=self._share.limit(now_s))

    def _wait_for_table(self, why: str) -> None:
        pause_s = next(self._table_waits)
        self._put_off[ALL] = self._monotonic_s() + pause_s
        log.warning("retrier_waits_for_table", why=why, seconds=round(pause_s, 1))

    async def _kafka_answers(self, stop: Stopping, deadline: Deadline, once: bool) -> bool:
        """Nothing is claimed before a broker has answered once. False: stopped meanwhile."""
        waits = backoff(1, 30)
        while not await self._redrive.reachable():
            pause_s = next(waits)
            if once or self._monotonic_s() + pause_s >= deadline.until_s or await stop.wait(pause_s):
                return False
            self._beat()
        return True

    async def _rest(self, deadline: Deadline) -> None:
        """Until a batch has ended, the stop is set, or it is time to look again."""
        self._beat()
        now_s = self._monotonic_s()
        look_s = max(now_s + self._pace.poll_s, self._put_off.get(ALL, 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(look_s, deadline.until_s) - now_s)):
                await self._news.wait()

    async def _hurry(self, stop: Stopping, deadline: Deadline) -> None:
        await stop.wait()
        deadline.nearer(self._monotonic_s() + self._pace.drain_s)
        self._news.set()
