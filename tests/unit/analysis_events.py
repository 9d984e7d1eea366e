"""Contracts and parked events for the tests of the analysis and of what stands on it."""

import json
from collections.abc import Sequence
from typing import Any

from shared.events.contract import Contract, compile_contract
from shared.events.identity import Identifier, event_id, seq
from shared.events.model import Event, EventRules, Reason, RejectedEvent
from shared.events.repair import RepairRule
from shared.parked.analysis import Analyst
from shared.parked.model import KafkaPosition, ParkedEvent, parked_from_event, undecodable

RULES = EventRules(entity="things", key=("id",), updated_at="at", op="op")
AT = "2026-11-03T12:34:56Z"
AT_US = 1_793_709_296_000_000
NOW_US = AT_US + 5_000_000
SHOWN_US = AT_US + 1_000_000
STAMP = {"type": "long", "logicalType": "timestamp-micros"}


def schema(*fields: Any) -> str:
    """A record of key, time stamp, op and more: ``(name, type)`` or ``(name, type, default)``."""
    own = [("id", "string"), ("at", STAMP), ("op", ["null", "string"], None), *fields]
    parts = [dict(zip(("name", "type", "default"), field, strict=False)) for field in own]
    return json.dumps({"type": "record", "name": "bank.Thing", "fields": parts})


def contract(*fields: Any, rules: EventRules = RULES, schema_id: int = 1) -> Contract:
    return compile_contract(rules, schema(*fields), "things-value", schema_id)


def analyst(*fields: Any, rules: EventRules = RULES, repairs: Sequence[RepairRule] = (), **more: Any) -> Analyst:
    return Analyst(contract(*fields, rules=rules), rules, repairs, **more)


def text(**members: Any) -> bytes:
    return json.dumps({"id": "a", "at": AT} | members).encode()


def parked(
    raw: bytes,
    reason: Reason = Reason.INVALID,
    *,
    rules: EventRules = RULES,
    path: str = "",
    fingerprint: str | None = "old",
    at_us: int = SHOWN_US,
) -> ParkedEvent:
    """As the poller parks it at first sight."""
    (sighting,) = Identifier(rules).identify([raw])
    event = Event(sighting, 0, event_id(sighting.identity, 0), SHOWN_US, *seq(rules, sighting, SHOWN_US))
    return parked_from_event(
        event,
        sighting.refusal or RejectedEvent(reason, path, "was refused"),
        entity=rules.entity,
        topic=f"cdc.{rules.entity}",
        subject="things-value",
        fingerprint=fingerprint,
        owner="ledger",
        at_us=at_us,
    )


HEADERS = (("tm-event-id", b"e" * 32), ("tm-seq", b"7.0"), ("tm-op", b"u"))


def undecodable_record(
    value: bytes, *, key: bytes | None = b"a", headers: tuple[tuple[str, bytes], ...] = HEADERS, offset: int = 12
) -> ParkedEvent:
    """As the sink parks it."""
    return undecodable(
        entity="things",
        position=KafkaPosition("cdc.things", 1, 0, offset, 5, key, headers),
        value=value,
        detail="fails under its schema",
        subject="things-value",
        fingerprint=f"id:{int.from_bytes(value[1:5], 'big')}",
        owner="ledger",
        at_us=SHOWN_US,
        event_id=dict(headers).get("tm-event-id", b"").decode(),
        rank=7,
    )
