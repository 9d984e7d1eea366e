"""Records that can't be rows → the parked table, under their place in the log."""

import time
from collections.abc import Mapping, Sequence

from services.s3_sink.lane import Undecodable
from services.s3_sink.ports import ParkingUnavailable
from shared import logs, metrics
from shared.entities import Entity
from shared.events.flatten import schema_id_of
from shared.events.model import Reason
from shared.kafka.records import parse_headers
from shared.parked.calls import ParkedUnavailable
from shared.parked.model import KafkaPosition, ParkedEvent, undecodable
from shared.parked.store import ParkedStore

log = logs.get_logger(__name__)


class UndecodableParking:
    """A ``Parking`` on the shared parked store."""

    def __init__(self, store: ParkedStore, topics: Mapping[str, Entity]) -> None:
        self._store = store
        self._topics = topics

    async def park(self, events: Sequence[Undecodable]) -> None:
        at_us = time.time_ns() // 1000
        try:
            outcome = await self._store.park([self._item(event, at_us) for event in events])
        except ParkedUnavailable as error:
            raise ParkingUnavailable(str(error)) from error
        topic = events[0].chain.topic
        metrics.PARKED.labels(self._topics[topic].name, Reason.UNDECODABLE.value).inc(outcome.new)
        log.error("undecodable_parked", topic=topic, records=len(events), new=outcome.new, first_rule=events[0].detail)

    def _item(self, event: Undecodable, at_us: int) -> ParkedEvent:
        entity, record, chain = self._topics[event.chain.topic], event.record, event.chain
        said = parse_headers(record.headers)
        schema_id = schema_id_of(record.value)
        return undecodable(
            entity=entity.name,
            position=KafkaPosition(
                topic=chain.topic,
                generation=chain.generation,
                partition=chain.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp,
                key=record.key,
                headers=tuple(record.headers),
            ),
            value=record.value or b"",
            detail=event.detail,
            subject=entity.schema_subject,
            fingerprint=None if schema_id is None else f"id:{schema_id}",
            owner=entity.owner.name,
            at_us=at_us,
            event_id=said.event_id or "",
            rank=said.rank or 0,
            tiebreak=said.tiebreak or 0,
        )
