"""A parked event is published by one worker at a time, as it was first seen, and deleted only after Kafka's ack.

One batch of one entity: claim, ask the analysis, publish, and act upon each outcome; never in another order. Nothing is
in flight when ``batch`` returns, and nothing is begun that could outlast the lease or the caller's deadline: the
service and the Lambda functions share this module.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from msgspec import Struct

from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.ports import AnalystSource, ArchiveUnavailable, Kafka, Leases, RepairArchive
from services.dynamo_retrier.verdicts import Refused, Sendable, bug, judge, record_of
from shared import metrics
from shared.events.model import Reason, RejectedEvent
from shared.kafka.records import NotPublished
from shared.logs import get_logger
from shared.parked.analysis import repair_line
from shared.parked.calls import ParkedUnavailable
from shared.parked.leases import Claimed, Due
from shared.parked.policy import after_failure
from shared.parked.transitions import BodyLost, LeaseLost, standing
from shared.retry import backoff

log = get_logger(__name__)

AWAY = frozenset({Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_UNKNOWN})
ADRIFT_MS = 600_000
"""Rows of an entity that is not configured here are looked at this often, until they are too old."""
GIVEN_BACK_MS = 1_000
AT_ONCE = 16
"""When the table or the archive stops answering, no more than these wait for it."""
CLAIM_SHARE, KEEP_SHARE = 0.4, 0.5
"""Of the time until the last publishing may begin: no claim, no upload is begun after it. A slow table or archive makes
a batch smaller; else it would take all the time for rows that then had to be given back, for ever."""

_S = TypeVar("_S")
_T = TypeVar("_T")
Outcome = Literal["published", "again", "hold", "stale", "given_back", "lease_lost", "failed"]
"""The closed set of ``metrics.RETRY_OUTCOMES``."""


class Limits(Struct, frozen=True, kw_only=True):
    lease_s: float
    publish_s_max: float
    """Begin no publishing that could end later than lease or deadline: the delivery deadline and the producer's end."""


class Deadline:
    """When the caller wants everything back; it may come nearer while work is under way. Monotonic seconds."""

    def __init__(self, until_s: float = float("inf")) -> None:
        self.until_s = until_s

    def nearer(self, until_s: float) -> None:
        self.until_s = min(self.until_s, until_s)


class Batch(Struct):
    """What became of one batch."""

    entity: str  # as metrics name it
    deadline: Deadline
    claimed: int = 0
    published: int = 0
    kafka: Literal["", "answered", "away"] = ""  # "": it was not asked
    parked_away: bool = False  # the table did not answer, at least once


class Redrive:
    """Any number of batches at once, each of other rows; they share what may be published in a second."""

    def __init__(
        self,
        leases: Leases,
        kafka: Kafka,
        analysts: AnalystSource,
        repairs: RepairArchive,
        share: Share,
        limits: Limits,
        worker: str,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._leases = leases
        self._kafka = kafka
        self._analysts = analysts
        self._repairs = repairs
        self._share = share
        self._limits = limits
        self._worker = worker
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms

    async def reachable(self) -> bool:
        return await self._kafka.reachable()

    def has_time(self, deadline: Deadline) -> bool:
        """Whether what is claimed now can still be published and settled."""
        return self._monotonic_s() + self._limits.publish_s_max <= deadline.until_s

    async def batch(self, topic: str, hints: Sequence[Due], deadline: Deadline) -> Batch:
        """Re-drive rows of one entity. Raises ``NoAnalyst`` before anything is claimed."""
        done = Batch(hints[0].entity, deadline)
        analyst = await self._analysts.current(done.entity)
        rows = await self._claim(hints, done)
        sendable, refused = await asyncio.to_thread(judge, analyst, rows, self._wall_ms())
        await self._all([self._put_off(one, done) for one in refused])
        sendable = await self._keep_originals(sendable, done)
        await self._publish(topic, sendable, done)
        return done

    async def adrift(self, hints: Sequence[Due], deadline: Deadline) -> Batch:
        """Rows of an entity that is not configured: they wait for it, and become stale when they are too old."""
        done = Batch("unknown", deadline)  # a name that is not configured is no label
        rows = await self._claim(hints, done)
        await self._all([self._wait_for_entity(row, done) for row in rows])
        return done

    async def _claim(self, hints: Sequence[Due], done: Batch) -> list[Claimed]:
        if not self.has_time(done.deadline):
            return []
        lease_end_s = self._monotonic_s() + self._limits.lease_s
        found = await self._while_time(CLAIM_SHARE, lease_end_s, done, hints, partial(self._claim_one, done))
        rows = [row for row in found if row is not None]
        done.claimed = len(rows)
        metrics.RETRIES_CLAIMED.labels(done.entity).inc(len(rows))
        return rows

    async def _claim_one(self, done: Batch, hint: Due) -> Claimed | None:
        if done.parked_away:
            return None
        try:
            return await self._leases.claim(hint, self._worker, self._limits.lease_s)
        except BodyLost as lost:
            await self._put_off(bug(lost.claimed, lost.detail, self._wall_ms()), done)
        except ParkedUnavailable as error:
            done.parked_away = True
            log.warning("claims_stopped", entity=hint.entity, why=str(error))
        except Exception as error:  # noqa: BLE001 (a row that can't be read must not keep the others from their turn)
            log.error("row_unreadable", entity=hint.entity, item=hint.item_id, error=type(error).__name__)
            metrics.RETRIES.labels(done.entity, "failed").inc()
        return None

    async def _keep_originals(self, sendable: list[Sendable], done: Batch) -> list[Sendable]:
        """What a repair changed goes to the archive first, since the table loses it with the row."""
        repaired = [one for one in sendable if one.found.repaired]
        if not repaired:
            return sendable
        lease_end_s = min(one.row.lease_until_s for one in repaired)
        kept = await self._while_time(KEEP_SHARE, lease_end_s, done, repaired, self._keep)
        lost = {one.row.token for one in repaired} - set(kept)
        await self._give_back([one.row for one in repaired if one.row.token in lost], "archive_unavailable", done)
        return [one for one in sendable if one.row.token not in lost]

    async def _keep(self, one: Sendable) -> str:
        """Its lease's token once it is kept, else ``""``."""
        event = one.row.event
        name = f"{event.entity}/{one.row.item_id}-{one.found.rev}-{one.row.tries}"
        try:
            await self._repairs.keep(name, repair_line(event, one.found, self._wall_ms() * 1000))
        except ArchiveUnavailable as error:
            log.warning("repair_waits", entity=event.entity, why=str(error))
            return ""
        metrics.REPAIRED.labels(event.entity).inc()
        return one.row.token

    async def _publish(self, topic: str, waiting: list[Sendable], done: Batch) -> None:
        """As many at a time as the share allows; what Kafka does not take is given back, and so is what it may not
        be asked for any more."""
        while waiting:
            now_s = self._monotonic_s()
            last_s = self._last_s(min(one.row.lease_until_s for one in waiting), done)
            if done.kafka == "away" or now_s > last_s:
                reason = "kafka_unavailable" if done.kafka == "away" else "out_of_time"
                await self._give_back([one.row for one in waiting], reason, done)
                return
            granted = self._share.take(now_s, len(waiting))
            if granted:
                part, waiting = waiting[:granted], waiting[granted:]
                await self._send(topic, part, done)
                continue
            metrics.PACED.inc()
            await asyncio.sleep(max(0.005, min(self._share.next_s(now_s), last_s) - now_s))

    async def _send(self, topic: str, part: Sequence[Sendable], done: Batch) -> None:
        ingest_ms = self._wall_ms()
        outcomes: list[NotPublished | None] = []
        try:
            outcomes = await self._kafka.publish(topic, [record_of(one, ingest_ms) for one in part])
        finally:
            unsent = sum(why is not None and why.reason is Reason.KAFKA_UNAVAILABLE for why in outcomes)
            self._share.settle(self._monotonic_s(), len(part) - unsent, unsent)
        reasons = {why.reason for why in outcomes if why is not None}
        done.kafka = "away" if reasons & AWAY else "answered"
        await self._all([self._act(one.row, why, done) for one, why in zip(part, outcomes, strict=True)])

    async def _act(self, row: Claimed, why: NotPublished | None, done: Batch) -> None:
        if why is None:
            if await self._write(row, "published", lambda: self._leases.published(row), done):
                done.published += 1
                metrics.RETRIER_LAST.labels(done.entity).set_to_current_time()
            return
        after = after_failure(standing(row), why.reason, self._wall_ms())
        error = why.reason.value if after.reason is None else RejectedEvent(why.reason, "", why.detail)
        sent = why.reason is Reason.KAFKA_UNKNOWN
        await self._write(row, after.action, lambda: self._leases.failed(row, after, error, maybe_sent=sent), done)

    async def _put_off(self, one: Refused, done: Batch) -> None:
        row, after = one.row, one.after
        await self._write(
            row, after.action, lambda: self._leases.failed(row, after, one.error, fingerprint=one.fingerprint), done
        )

    async def _wait_for_entity(self, row: Claimed, done: Batch) -> None:
        now_ms = self._wall_ms()
        if row.deadline_ms <= now_ms:
            await self._write(row, "stale", lambda: self._leases.stale(row, "entity_unknown"), done)
        else:
            await self._again(row, min(now_ms + ADRIFT_MS, row.deadline_ms), "entity_unknown", done)

    async def _give_back(self, rows: Sequence[Claimed], code: str, done: Batch) -> None:
        due_ms = self._wall_ms() + GIVEN_BACK_MS
        await self._all([self._again(row, due_ms, code, done) for row in rows])

    async def _again(self, row: Claimed, due_ms: int, code: str, done: Batch) -> None:
        """Nothing was tried, so nothing counts."""
        write = partial(self._leases.again, row, due_ms, code, counts=False, free=True)
        await self._write(row, "given_back", write, done)

    async def _write(self, row: Claimed, outcome: Outcome, write: Callable[[], Awaitable[None]], done: Batch) -> bool:
        """False: the row is not ours any more, or comes due again by itself. Tried until the lease or the deadline is
        over: whoever was frozen past its lease changes nothing, since another worker may have the row."""
        pauses = backoff(0.1, 5.0)
        became: Outcome = "lease_lost"
        while self._monotonic_s() < row.lease_until_s:
            try:
                await write()
                became = outcome
                break
            except LeaseLost:
                break
            except ParkedUnavailable as error:
                done.parked_away = True
                log.warning("row_waits_for_table", entity=row.event.entity, wanted=outcome, why=str(error))
                if self._monotonic_s() >= done.deadline.until_s:
                    break
                await asyncio.sleep(next(pauses))
            except Exception as error:  # noqa: BLE001 (a row that can't be written must not end the work on others)
                log.error("row_unwritable", entity=row.event.entity, item=row.item_id, wanted=outcome, error=str(error))
                became = "failed"
                break
        metrics.RETRIES.labels(done.entity, became).inc()
        return became == outcome

    async def _while_time(
        self, share: float, lease_end_s: float, done: Batch, items: Sequence[_S], call: Callable[[_S], Awaitable[_T]]
    ) -> list[_T]:
        """The answers of those that were begun, in no order."""
        now_s = self._monotonic_s()
        until_s = now_s + share * (self._last_s(lease_end_s, done) - now_s)
        waiting = iter(items)
        answers: list[_T] = []

        async def work() -> None:
            for item in waiting:
                if self._monotonic_s() > until_s:
                    return
                answers.append(await call(item))

        await self._all([work() for _ in range(min(AT_ONCE, len(items)))])
        return answers

    def _last_s(self, lease_end_s: float, done: Batch) -> float:
        """No publishing is begun later."""
        return min(done.deadline.until_s, lease_end_s) - self._limits.publish_s_max

    async def _all(self, calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(call) for call in calls]
        return [task.result() for task in started]
