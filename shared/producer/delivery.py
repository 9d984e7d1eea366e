"""From new events to durable ones: encode, send, or park.

The promise that the cursor relies on: when ``deliver`` returns, each event is acknowledged by Kafka or durable in the
parked store. It may take as long as the world needs; it never drops and never guesses.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import structlog
from msgspec import Struct

from shared import metrics
from shared.events.contract import Contract
from shared.events.identity import Identifier
from shared.events.model import Event, EventRules, Reason, RejectedEvent, Sighting
from shared.events.repair import RepairRule, repair
from shared.kafka.records import NotPublished, Outgoing, event_headers, heartbeats
from shared.parked.calls import ParkedUnavailable
from shared.parked.model import ParkedEvent, parked_from_event
from shared.producer.brake import Brake
from shared.retry import Wakes, backoff

log = structlog.get_logger(__name__)

DATA_REASONS = frozenset({Reason.INVALID, Reason.HOSTILE, Reason.FUTURE, Reason.TOO_LARGE})
"""What the event itself is to blame for: the brake counts these and nothing else, and none that a repair will cure."""

_NOT_SENT = frozenset({Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_TOPIC})
"""Certainly not written, and may be taken later: what the outage budget is for."""


class RecordPublisher(Protocol):
    """What delivery needs of Kafka."""

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[NotPublished | None]:
        """One outcome a record, ``None``: acknowledged. Bounded by the delivery deadline; an outage is an outcome."""


class ParkingPlace(Protocol):
    """What delivery needs of the parked store."""

    async def park(self, events: Sequence[ParkedEvent]) -> object:
        """Durable when it returns, idempotent by event id. Raises ``ParkedUnavailable`` when its budget is spent."""


class PauseEntity(Exception):
    """The entity must stop with its cursor where it is, until an operator or a new schema version resumes it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Interrupted(Exception):
    """The stop came while events were not durable yet: the page must not be committed."""


class Destination(Struct, frozen=True, kw_only=True):
    """Where one entity's events go."""

    entity: str
    topic: str
    owner: str
    outage_parked_events_max: int
    stale_after_s: float | None = None


class Repairs(Struct, frozen=True):
    """What the retrier will do to refused events: of ``rules``' entity."""

    rules: EventRules
    repairs: tuple[RepairRule, ...]


class Delivery:
    """Delivers the pages of one entity, one at a time."""

    def __init__(
        self,
        destination: Destination,
        contract: Contract,
        brake: Brake,
        publisher: RecordPublisher,
        parked: ParkingPlace,
        stop: Wakes,
        repairs: Repairs | None = None,
    ) -> None:
        self.contract = contract  # replaced when a new schema version appears
        self._to = destination
        self._brake = brake
        self._publisher = publisher
        self._parked = parked
        self._stop = stop
        self._parked_in_outage = 0
        self._repairs = () if repairs is None else repairs.repairs
        self._identifier = None if repairs is None else Identifier(repairs.rules)

    async def deliver(self, events: Sequence[Event]) -> None:
        """Make each event durable. Raises ``PauseEntity`` before anything was sent, ``Interrupted`` on a stop."""
        if not events:
            return
        verdicts = self._encoded(events)
        invalid = [type(verdict) is RejectedEvent and verdict.reason in DATA_REASONS for verdict in verdicts]
        if self._repairs and any(invalid):
            invalid = await asyncio.to_thread(self._incurable, events, verdicts)
        now_s = time.monotonic()
        if why := self._brake.refusal(now_s, invalid):
            raise PauseEntity("too_many_invalid", why)
        self._brake.count(now_s, invalid)

        refused: list[tuple[Event, RejectedEvent]] = []
        sendable: list[tuple[Event, Outgoing]] = []
        ingest_ms = time.time_ns() // 1_000_000
        for event, verdict in zip(events, verdicts, strict=True):
            if type(verdict) is RejectedEvent:
                refused.append((event, verdict))
            else:
                sendable.append((event, _record(event, verdict, ingest_ms)))  # type: ignore[arg-type]
        await self._park(refused)
        await self._send(sendable)

    async def beat(self, partitions: int) -> bool:
        """Send a heartbeat through each partition, behind all that was delivered. One that Kafka does not take is
        counted and left: the next one says as much."""
        at_ms = time.time_ns() // 1_000_000
        outcomes = await self._publisher.publish(self._to.topic, heartbeats(partitions, at_ms))
        if any(why is not None for why in outcomes):
            metrics.HEARTBEATS.labels(self._to.entity, "failed").inc()
            return False
        metrics.HEARTBEATS.labels(self._to.entity, "sent").inc()
        metrics.HEARTBEAT.labels(self._to.entity, "kafka", "").set(at_ms / 1000)
        return True

    def _encoded(self, events: Sequence[Event]) -> list[bytes | RejectedEvent | None]:
        """As ``Contract.encode``. An event that trips our own code spoils itself only, not its entity for ever."""
        sightings = [event.sighting for event in events]
        try:
            return self.contract.encode(sightings)
        except Exception:  # noqa: BLE001  # whatever it is: found out below, event by event
            return [self._encoded_alone(sighting) for sighting in sightings]

    def _encoded_alone(self, sighting: Sighting) -> bytes | RejectedEvent | None:
        try:
            return self.contract.encode([sighting])[0]
        except Exception as error:
            log.exception("event_tripped_our_code", entity=self._to.entity)
            return RejectedEvent(Reason.BUG, "", f"{type(error).__name__} in our own code")

    def _incurable(self, events: Sequence[Event], verdicts: Sequence[bytes | RejectedEvent | None]) -> list[bool]:
        """Which of them nothing that the entity's owner has declared will cure: those are too many, or not."""
        return [
            type(verdict) is RejectedEvent
            and verdict.reason in DATA_REASONS
            and not self._is_curable(event.sighting.raw, verdict)
            for event, verdict in zip(events, verdicts, strict=True)
        ]

    def _is_curable(self, raw: bytes, refusal: RejectedEvent) -> bool:
        if refusal.reason is not Reason.INVALID:
            return False
        try:
            return not isinstance(repair(raw, refusal, self._repairs, self._judged), RejectedEvent)
        except Exception:
            log.exception("event_tripped_our_code", entity=self._to.entity)
            return False

    def _judged(self, raw: bytes) -> tuple[bytes | None] | RejectedEvent:
        assert self._identifier is not None, "there are repairs"
        verdict = self._encoded_alone(self._identifier.identify([raw])[0])
        return verdict if isinstance(verdict, RejectedEvent) else (verdict,)

    async def _send(self, pending: list[tuple[Event, Outgoing]]) -> None:
        waits = backoff(1, 30)
        while pending:
            outcomes = await self._publisher.publish(self._to.topic, [record for _, record in pending])
            failed = [(pair, why) for pair, why in zip(pending, outcomes, strict=True) if why is not None]
            metrics.PUBLISHED.labels(self._to.entity).inc(len(pending) - len(failed))
            if not failed:
                self._parked_in_outage = 0
                return
            room = max(0, self._to.outage_parked_events_max - self._parked_in_outage)
            park, pending = _divide(failed, room)
            await self._park(park)
            self._parked_in_outage += len(park)
            if pending:
                await self._wait(waits, "outage_budget_spent", waiting=len(pending))

    async def _park(self, refused: list[tuple[Event, RejectedEvent]]) -> None:
        if not refused:
            return
        at_us = time.time_ns() // 1_000
        parked = [self._parked_event(event, why, at_us) for event, why in refused]
        waits = backoff(1, 30)
        while True:
            try:
                await self._parked.park(parked)
                break
            except ParkedUnavailable as error:
                await self._wait(waits, "parked_unavailable", reason=error.reason, waiting=len(parked))
        for _, why in refused:
            metrics.PARKED.labels(self._to.entity, why.reason.value).inc()

    def _parked_event(self, event: Event, why: RejectedEvent, at_us: int) -> ParkedEvent:
        return parked_from_event(
            event,
            why,
            entity=self._to.entity,
            topic=self._to.topic,
            subject=self.contract.subject,
            fingerprint=self.contract.fingerprint,
            owner=self._to.owner,
            at_us=at_us,
            maybe_sent=why.reason is Reason.KAFKA_UNKNOWN,
            stale_after_s=self._to.stale_after_s,
        )

    async def _wait(self, waits: Iterator[float], event: str, **fields: object) -> None:
        """The source is the cheaper buffer: the cursor stands until the world is back."""
        log.warning(event, entity=self._to.entity, **fields)
        if await self._stop.wait(next(waits)):
            raise Interrupted


def _record(event: Event, value: bytes | None, ingest_ms: int) -> Outgoing:
    key = event.sighting.key
    assert key is not None, "an event without a key is refused before it is encoded"
    return Outgoing(key.encode(), value, event_headers(event, "d" if event.sighting.is_delete else "u"), ingest_ms)


def _divide(
    failed: list[tuple[tuple[Event, Outgoing], NotPublished]], room: int
) -> tuple[list[tuple[Event, RejectedEvent]], list[tuple[Event, Outgoing]]]:
    """(to be parked, to be sent again). What was certainly not sent may wait here once the outage budget is spent;
    what may have been sent, and what no broker will take, is parked at once."""
    park: list[tuple[Event, RejectedEvent]] = []
    again: list[tuple[Event, Outgoing]] = []
    for (event, record), why in failed:
        if why.reason in _NOT_SENT and len(park) >= room:
            again.append((event, record))
        else:
            park.append((event, RejectedEvent(why.reason, "", why.detail)))
    return park, again
