"""One entity under its lease: read a page, make its events durable, commit; then, and only then, the next page.

The promise: a change that the source has shown is published or parked before the cursor passes it. A death on any line
before the commit repeats the page with the same event ids; after it, nothing of the page is needed any more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import structlog

from shared import metrics
from shared.checkpoints.model import (
    CheckpointsMisconfigured,
    CheckpointsUnavailable,
    Committed,
    CursorState,
    Fenced,
    Grant,
    PageCommit,
    SeenPage,
)
from shared.checkpoints.shown import ShownClock, ShownLimitReached
from shared.entities import Entity
from shared.events.contract import Contract, ContractError
from shared.events.identity import Identifier
from shared.events.model import Sighting
from shared.events.split import MalformedPage, split_page
from shared.lifecycle import Stop
from shared.producer.delivery import Delivery, Interrupted, PauseEntity
from shared.producer.feed import FeedAnswer, SourceAuth, SourceError, SourceMalformed
from shared.producer.paging import OPEN_ROWS_MAX
from shared.producer.reading import Answer, Page, Reading, ReadingFault, ReadingLimits, Request, Wait
from shared.producer.seen import Seen
from shared.registry.client import RegistryError, RegistryUnavailable
from shared.retry import backoff

log = structlog.get_logger(__name__)

SCHEMA_REFRESH_S = 30.0
LARGE_BODY_BYTES = 1024 * 1024
BEAT_AGAIN_S = 60.0
"""After a heartbeat that Kafka did not take."""
MALFORMED_PAUSE_S = 600.0
"""A source that has sent nothing but malformed pages for this long is paused."""
SETTLE_S = 5.0
"""How long a release may wait for Postgres on the way out; the lease runs out by itself anyway."""
BACKOFF_S = {
    "source_unavailable": (1.0, 300.0),
    "source_rate_limited": (1.0, 300.0),
    "source_auth": (60.0, 600.0),
    "source_malformed": (5.0, 60.0),
    "source_cursor": (30.0, 300.0),
}
"""(base, cap) of the wait by error class."""


CHECKPOINTS_AWAY = (CheckpointsUnavailable, CheckpointsMisconfigured)
"""Waited for, the cursor standing: a password that is being rotated looks like a wrong one for a while."""


class Feed(Protocol):
    """What capture needs of the source."""

    async def fetch(self, request: Request) -> FeedAnswer:
        """One whole answer, within the feed's own deadlines. Raises ``SourceError``. Cancelled on a stop."""


class CheckpointStore(Protocol):
    """What capture needs of Postgres. Calls raise ``Fenced``, or ``CheckpointsUnavailable`` after their own budget."""

    async def load(self, grant: Grant) -> tuple[CursorState, list[SeenPage]]: ...

    async def commit(self, grant: Grant, page: PageCommit) -> Committed:
        """Idempotent for the same page: after ``CheckpointsUnavailable`` call it again."""

    async def renew(self, grant: Grant) -> Grant: ...

    async def release(self, grant: Grant, *, shown_us: int | None = None, clean: bool = True) -> None: ...

    async def pause(self, entity: str, reason: str, who: str) -> bool: ...


class Capture:
    """Reads one entity from the grant of its lease until a stop, the loss of the lease, or a pause."""

    def __init__(
        self,
        entity: Entity,
        grant: Grant,
        feed: Feed,
        delivery: Delivery,
        checkpoints: CheckpointStore,
        newest_contract: Callable[[], Awaitable[Contract]],
        tidy: Callable[[Grant], Awaitable[object]],
        ended: Stop,
    ) -> None:
        self._entity = entity
        self._grant = grant
        self._feed = feed
        self._delivery = delivery
        self._checkpoints = checkpoints
        self._newest_contract = newest_contract
        self._tidy = tidy
        self._ended = ended  # set by a stop of the process, by us, or by the loss of the lease
        self._identifier = Identifier(entity.rules)
        self._shown = ShownClock(grant)
        self._faults = _Faults()
        self._all_recorded = True  # False from the first send of a page to its commit
        self._requested_us = 0  # of the page in hand
        self._beat_due_s = float("inf") if entity.heartbeat_s is None else 0.0

    async def run(self) -> None:
        """Until ``ended`` is set. Every way out but an unexpected exception returns normally, the lease released."""
        metrics.LEASE_HELD.labels(self._entity.name).set(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_pages(), name=f"read-{self._entity.name}")
                tasks.create_task(self._keep_lease(), name=f"lease-{self._entity.name}")
                tasks.create_task(self._follow_schema(), name=f"schema-{self._entity.name}")
        finally:
            metrics.LEASE_HELD.labels(self._entity.name).set(0)
            # Another's from now on, or nobody's: what we would go on saying is no longer ours to know.
            metrics.unset(metrics.FRESH, self._entity.name, "source", "")
            metrics.unset(metrics.HEARTBEAT, self._entity.name, "kafka", "")

    async def _read_pages(self) -> None:
        try:
            reading = await self._load()
            while not self._ended.is_set:
                await self._read_page(reading)
                await self._beat_if_due()
        except Fenced as fence:
            metrics.LEASE_LOST.labels(self._entity.name).inc()
            log.warning("lease_lost", entity=self._entity.name, reason=str(fence))
        except PauseEntity as pause:
            await self._pause(pause)
        except Interrupted:
            log.info("page_left_unfinished", entity=self._entity.name)
        finally:
            self._ended.set("capture ended")
        await self._release()

    async def _read_page(self, reading: Reading) -> None:
        match reading.next_request(time.monotonic()):
            case Wait(until_monotonic_s=until_s):
                await self._ended.wait(min(until_s, self._beat_due_s) - time.monotonic())
            case request:
                page = await self._ask(reading, request)
                if page is not None:
                    await self._settle(reading, request, page)

    async def _beat_if_due(self) -> None:
        """Between two pages, so that it follows all that was read before it."""
        if self._entity.heartbeat_s is not None and time.monotonic() >= self._beat_due_s and not self._ended.is_set:
            self._beat_due_s = time.monotonic() + self._entity.heartbeat_s
            if not await self._delivery.beat(self._entity.partitions):
                # A partition that does not answer takes the producer, which events share, with it: not at every beat.
                self._beat_due_s = time.monotonic() + max(BEAT_AGAIN_S, self._entity.heartbeat_s)

    async def _ask(self, reading: Reading, request: Request) -> Page | None:
        """One judged answer; ``None`` after a fault, the cursor standing and the wait done."""
        requested_us = time.time_ns() // 1_000
        try:
            start_us = self._shown.start()
            answer = await self._fetch(request)
            sightings = await self._identify(answer.body)
            self._shown.take(start_us, len(sightings))
            seen = Answer(sightings=sightings, server_date_us=answer.server_date_us, requested_us=requested_us)
            page = reading.judge(request, seen, start_us)
            self._requested_us = requested_us
        except ShownLimitReached:
            await self._renew()
            return None
        except (SourceError, MalformedPage, ReadingFault) as fault:
            await self._stand_still(fault, request)
            return None
        self._faults.clear()
        self._observe(page, answer)
        return page

    async def _fetch(self, request: Request) -> FeedAnswer:
        """Raises ``Interrupted`` on a stop: a source that drips must not hold up the drain."""
        fetching = asyncio.ensure_future(self._feed.fetch(request))
        stopping = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({fetching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                raise Interrupted
            return fetching.result()
        finally:
            fetching.cancel()
            stopping.cancel()

    async def _identify(self, body: bytes) -> list[Sighting]:
        """Raises ``MalformedPage``. A large body is taken apart beside the event loop: the worst take a second."""
        if len(body) > LARGE_BODY_BYTES:
            return await asyncio.to_thread(self._sightings, body)
        return self._sightings(body)

    def _sightings(self, body: bytes) -> list[Sighting]:
        return self._identifier.identify(split_page(body, self._entity.records))

    async def _settle(self, reading: Reading, request: Request, page: Page) -> None:
        """Durable first, then the commit, then the next page. Raises ``PauseEntity`` where the page asks for it."""
        self._all_recorded = not page.events
        in_progress = metrics.POLLER_IN_PROGRESS.labels(self._entity.name)
        in_progress.set(len(page.events))
        try:
            await self._delivery.deliver(page.events)
        except PauseEntity:  # raised before anything of the page was sent
            self._all_recorded = True
            raise
        finally:
            in_progress.set(0)
        if page.commit is not None:
            await self._commit(page.commit)
        reading.apply(page)
        self._all_recorded = True
        _count(self._entity.name, request, page, reading)
        if page.pause is not None:
            raise PauseEntity("source_cursor", page.pause)
        if request.lane == "tail" and page.run_ended and page.run.unproved.rows <= OPEN_ROWS_MAX:
            # All that the source had when it was asked is durable: by the time of the question, not of the answer.
            metrics.FRESH.labels(self._entity.name, "source", "").set(self._requested_us / 1e6)

    async def _commit(self, commit: PageCommit) -> None:
        """Until it is known to be committed: an unknown outcome is asked for again, with the same page."""
        waits = backoff(1, 30)
        while True:
            try:
                with metrics.CHECKPOINT_S.time():
                    committed = await self._checkpoints.commit(self._grant, commit)
                break
            except CHECKPOINTS_AWAY as error:
                log.warning("checkpoints_unavailable", entity=self._entity.name, reason=str(error))
                if await self._ended.wait(next(waits)):
                    raise Interrupted from error
        metrics.NEWEST_COMMIT.labels(self._entity.name).set_to_current_time()
        if committed.paused_reason is not None:
            self._ended.set("paused by an operator")
        if committed.tidy_due:
            await self._tidy(self._grant)

    async def _stand_still(self, fault: SourceError | MalformedPage | ReadingFault, request: Request) -> None:
        """Back off by the class of the fault; pause where waiting would not help."""
        name = _error_class(fault)
        metrics.SOURCE_ERRORS_TOTAL.labels(self._entity.name, name).inc()
        metrics.PAGES.labels(self._entity.name, request.lane, "failed").inc()
        log.warning("source_failed", entity=self._entity.name, error_class=name, reason=str(fault))
        self._faults.add(name, time.monotonic())
        if isinstance(fault, SourceAuth):
            raise PauseEntity(name, str(fault))
        if isinstance(fault, ReadingFault) and self._faults.in_a_row > 1:
            raise PauseEntity(name, str(fault))
        if name == "source_malformed" and self._faults.lasts_s(time.monotonic()) > MALFORMED_PAUSE_S:
            raise PauseEntity(name, f"no readable page for {MALFORMED_PAUSE_S:.0f} s, last: {fault}")
        told_s = getattr(fault, "retry_after_s", None)
        await self._ended.wait(told_s if told_s is not None else self._faults.delay_s())

    async def _pause(self, pause: PauseEntity) -> None:
        """One notice: an ERROR line and a metric. The reason is kept in Postgres, where every poller sees it."""
        text = paused_text(pause, self._delivery.contract.schema_id)
        log.error("entity_paused", entity=self._entity.name, owner=self._entity.owner.name, reason=text)
        metrics.PAUSED.labels(self._entity.name).set(1)
        waits = backoff(1, 30)
        while True:
            try:
                await self._checkpoints.pause(self._entity.name, text, self._grant.owner)
                return
            except CHECKPOINTS_AWAY:
                if await self._ended.wait(next(waits)):
                    return

    async def _load(self) -> Reading:
        waits = backoff(1, 30)
        while True:
            try:
                state, pages = await self._checkpoints.load(self._grant)
                break
            except CHECKPOINTS_AWAY as error:
                if await self._ended.wait(next(waits)):
                    raise Interrupted from error
        unclean_us = self._grant.shown_from_us if self._grant.unclean else None
        rules = self._entity.rules
        seen = await asyncio.to_thread(
            Seen.load, rules.shows, [page.entries for page in pages], unclean_us or state.republish_before_us
        )
        log.info("entity_leased", entity=self._entity.name, epoch=self._grant.epoch, cursor_us=state.cursor_us)
        return Reading(rules, reading_limits(self._entity), state, seen, unclean_us)

    async def _keep_lease(self) -> None:
        """Renew three times within a lease; without an answer the reading ends before the lease does."""
        while not await self._ended.wait(self._grant.lease_s / 3):
            try:
                await self._renew()
            except Fenced:
                metrics.LEASE_LOST.labels(self._entity.name).inc()
                self._ended.set("lease lost")

    async def _renew(self) -> None:
        """Raises ``Fenced``. While Postgres is away the grant stays as it is, until its time is over."""
        try:
            self._grant = await self._checkpoints.renew(self._grant)
        except CHECKPOINTS_AWAY:
            if time.monotonic() > self._grant.lease_until_monotonic_s:
                self._ended.set("lease expired")
            return
        self._shown.renewed(self._grant)
        if self._grant.paused_reason is not None:
            self._ended.set("paused by an operator")

    async def _follow_schema(self) -> None:
        """A newer version of the subject is used within ``SCHEMA_REFRESH_S`` of its registration."""
        while not await self._ended.wait(SCHEMA_REFRESH_S):
            try:
                newest = await self._newest_contract()
            except RegistryUnavailable:
                continue  # the contract at hand serves
            except (RegistryError, ContractError) as error:
                log.error("schema_not_renewed", entity=self._entity.name, reason=str(error))
                continue
            if newest.schema_id != self._delivery.contract.schema_id:
                log.info("contract_replaced", entity=self._entity.name, schema_id=newest.schema_id)
                self._delivery.contract = newest

    async def _release(self) -> None:
        try:
            await self._checkpoints.release(self._grant, shown_us=self._shown.last_us, clean=self._all_recorded)
        except CHECKPOINTS_AWAY as error:
            log.warning("lease_not_released", entity=self._entity.name, reason=str(error))

    def _observe(self, page: Page, answer: FeedAnswer) -> None:
        if page.clock_skew_us is not None:
            metrics.CLOCK_SKEW_S.labels(self._entity.source.name).set(page.clock_skew_us / 1e6)
        metrics.SOURCE_S.labels(self._entity.source.name).observe(answer.elapsed_s)
        if page.cap_shrunk_us is not None:
            cap_s = page.cap_shrunk_us / 1e6
            log.error("lateness_cap_shrunk", entity=self._entity.name, cap_s=cap_s, limit="seen_bytes_max")


class _Faults:
    """Faults in a row: how many, since when, and the wait that comes next. A good answer clears them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.in_a_row = 0
        self._name = ""
        self._since_s = 0.0
        self._waits: Iterator[float] = iter(())

    def add(self, name: str, monotonic_s: float) -> None:
        if name != self._name:
            self.clear()
            self._name, self._since_s, self._waits = name, monotonic_s, backoff(*BACKOFF_S[name])
        self.in_a_row += 1

    def lasts_s(self, monotonic_s: float) -> float:
        return monotonic_s - self._since_s

    def delay_s(self) -> float:
        return next(self._waits)


def reading_limits(entity: Entity) -> ReadingLimits:
    """The entity's settings in the units of the reading algorithm."""
    return ReadingLimits(
        window_us=int(entity.window_s * 1e6),
        lookback_period_s=entity.lookback_period_s,
        lateness_cap_us=int(entity.lateness_cap_s * 1e6),
        cap_period_us=int(entity.cap_period_s * 1e6),
        page_rows=entity.page_rows,
        page_rows_max=entity.page_rows_max,
        seen_bytes_max=entity.seen_bytes_max,
        future_us_max=int(entity.future_s_max * 1e6),
        clock_tolerance_us=int(entity.clock_tolerance_s * 1e6),
        poll_interval_s=entity.poll_interval_s,
    )


def paused_text(pause: PauseEntity, schema_id: int) -> str:
    """The reason as Postgres keeps it; it names the schema where a newer one may resume the entity."""
    suffix = f" (schema id {schema_id})" if pause.reason == "too_many_invalid" else ""
    return f"{pause.reason}: {pause.detail}{suffix}"


def paused_under(text: str) -> int | None:
    """The schema id under which too many events were invalid; ``None``: only an operator resumes the entity."""
    if not text.startswith("too_many_invalid: ") or not text.endswith(")"):
        return None
    number = text[:-1].rpartition(" (schema id ")[2]
    return int(number) if number.isdecimal() else None


def _error_class(fault: SourceError | MalformedPage | ReadingFault) -> str:
    match fault:
        case SourceError():
            return fault.error_class
        case MalformedPage():
            return SourceMalformed.error_class
    return "source_cursor"


def _count(entity: str, request: Request, page: Page, reading: Reading) -> None:
    metrics.SHOWN.labels(entity).inc(page.rows)
    metrics.REPETITIONS.labels(entity).inc(page.repetitions)
    metrics.BELOW_FLOOR.labels(entity).inc(page.below_floor)
    metrics.PAGES.labels(entity, request.lane, "committed" if page.commit is not None else "empty").inc()
    for lateness_us in page.lateness_us:
        metrics.LATENESS_S.labels(entity).observe(lateness_us / 1e6)
    state = reading.state
    metrics.CURSOR.labels(entity).set(state.cursor_us / 1e6)
    metrics.SWEPT.labels(entity, "lookback").set(state.swept_us / 1e6)
    metrics.SWEPT.labels(entity, "cap").set(state.cap_swept_us / 1e6)
