"""Is this parked event retriable now, and why? Pure: no clock, no I/O; the caller brings the contract and the time.

The answer is tried, not guessed: the stored bytes are identified and encoded anew, exactly as a fresh event with those
bytes would be. What was decided at first sight does not move: event id, key and ``seq`` stay those that were parked.

- *invalid*, *hostile*, *too large*: retriable when the contract as it is now accepts the event, as it is or after the
  entity's repair rules. Raised limits are a change of the contract.
- *future*: also, the clock must have come near enough.
- *kafka_…*, *bug*: retriable, unless the contract has changed meanwhile and refuses the event.
- *undecodable*: a record that lies on its topic already; the sink has read on, and no row stands for it. Re-driving it
  writes a new record: the same key, event id, ``seq`` and op, and the same Avro body under the id of the schema version
  that it really decodes under: its own (after a fix of our reader), else a newer one. Avro bytes do not say what they
  are, so all of them must be used up, the decoded key must be the record's, and newer versions that fit must agree on
  the row; else, and for a record without our headers, it is left to an operator.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct

from shared.events.contract import Contract
from shared.events.identity import Identifier, pointer
from shared.events.model import EventRules, Reason, RejectedEvent, Sighting
from shared.events.repair import Applied, RepairRule, fingerprint_with, repair
from shared.events.rows import BadBody, RowReader
from shared.events.schema import ContractError, parse
from shared.parked.model import KafkaPosition, ParkedEvent

VERSIONS_TRIED_MAX = 16  # schema versions under which one undecodable record is read
DAY_US = 86_400_000_000

ALWAYS_TRIED = frozenset({Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_UNKNOWN, Reason.KAFKA_TOPIC, Reason.BUG})
"""Not the event's fault: nothing has to change before it is tried again."""

_FRAME = 5  # bytes before the Avro body
_OPS: dict[bytes, Literal["u", "d"]] = {b"u": "u", b"d": "d"}
# As in ``shared.kafka.records``, which this package does not import; a test holds them together.
HEADER_SEQ, HEADER_OP = "tm-seq", "tm-op"


class Retriable(Struct, frozen=True):
    """Publish this, under the parked event id and ``seq``."""

    key: str  # the parked one; where that was unreadable, the one that the contract reads now
    value: bytes | None  # None: a tombstone
    op: Literal["u", "d"]
    raw: bytes  # what was encoded: the parked bytes, or the repaired ones
    rev: int  # for ``tm-rev``: one above the parked one if repaired
    applied: tuple[Applied, ...] = ()

    @property
    def repaired(self) -> bool:
        return bool(self.applied)


class NotYet(Struct, frozen=True):
    """Hold it: nothing would be gained by sending it now."""

    reason: Reason  # why it is refused now, which may be another class than the one it was parked under
    path: str
    why: str  # the rule that failed; never a value
    fingerprint: str  # what it was tried against, to be remembered with it
    retry_at_us: int | None = None  # when the clock alone will have changed the answer
    place: str = ""  # ``path`` with the keys of maps, where there are any: the source's data


class _Fit(Struct, frozen=True):
    sighting: Sighting
    value: bytes | None


class Analyst:
    """Knows one entity's contract, repair rules and schema versions. Compiled once, used from any thread."""

    def __init__(
        self,
        contract: Contract,
        rules: EventRules,
        repairs: Sequence[RepairRule] = (),
        *,
        future_us_max: int = DAY_US,
        schemas: Mapping[int, str] | None = None,
        version: int | None = None,
    ) -> None:
        """``schemas``: schema id → Avro text of the subject's versions, oldest first; without them no undecodable
        record is retriable. ``version``: the contract's schema version, as people know it.
        """
        self.contract = contract
        self.fingerprint = contract_fingerprint(contract, repairs)
        self.version = version
        self.repairs = tuple(repairs)
        self._rules = rules
        self._future_us_max = future_us_max
        self._schemas = dict(schemas or {})
        self._readers: dict[int, RowReader | None] = {}
        self._identifier = Identifier(rules)

    def analyse(self, event: ParkedEvent, now_us: int) -> Retriable | NotYet:
        """``now_us``: microseconds since 1970. Never raises for bad input."""
        if event.kafka is not None:
            return self._decoded(event, event.kafka)
        allowed_us = now_us + self._future_us_max
        if event.updated_us > allowed_us and event.reason not in ALWAYS_TRIED:
            why = RejectedEvent(Reason.FUTURE, pointer(self._rules.updated_at), "is still too far in the future")
            return self._not_yet(why, retry_at_us=event.updated_us - self._future_us_max)
        fit = self._judge(event.raw)
        if isinstance(fit, _Fit):
            return self._retriable(event, fit, event.raw, ())
        # INVALID says that the text is JSON, bounded, and no name stands twice; other refusals come back as they are.
        outcome = repair(event.raw, fit, self.repairs, self._judge)
        if isinstance(outcome, RejectedEvent):
            return self._not_yet(outcome)
        repaired, fit = outcome
        return self._retriable(event, fit, repaired.raw, repaired.applied)

    def settles(self, reason: Reason, fingerprint: str | None) -> bool:
        """Whether another try under this contract is known to be in vain for an event that was last tried against
        ``fingerprint``.
        """
        match reason:
            case Reason.UNDECODABLE:
                return fingerprint in (self._decoding, self.fingerprint)
            case Reason.INVALID:
                return fingerprint == self.fingerprint
        return fingerprint in (self.contract.fingerprint, self.fingerprint)  # no rule repairs these

    @property
    def _decoding(self) -> str:
        """As the sink writes it: the schema id that a record was framed with."""
        return f"id:{self.contract.schema_id}"

    def _judge(self, raw: bytes) -> _Fit | RejectedEvent:
        (sighting,) = self._identifier.identify([raw])
        (verdict,) = self.contract.encode([sighting])
        return verdict if isinstance(verdict, RejectedEvent) else _Fit(sighting, verdict)

    def _retriable(self, event: ParkedEvent, fit: _Fit, raw: bytes, applied: tuple[Applied, ...]) -> Retriable | NotYet:
        key = fit.sighting.key
        assert key is not None, "a contract accepts no event without a key"
        if event.key is not None and fit.sighting.key_hash != event.key_hash:
            detail = "the entity's key rule has changed since this event was parked: its key would move"
            return self._not_yet(RejectedEvent(Reason.INVALID, pointer(self._rules.key[0]), detail))
        op: Literal["u", "d"] = "d" if fit.sighting.is_delete else "u"
        return Retriable(key, fit.value, op, raw, event.rev + bool(applied), applied)

    def _not_yet(self, why: RejectedEvent, retry_at_us: int | None = None) -> NotYet:
        return NotYet(why.reason, why.path, why.detail, self.fingerprint, retry_at_us, why.place)

    def _decoded(self, event: ParkedEvent, position: KafkaPosition) -> Retriable | NotYet:
        headers = dict(position.headers)
        op = _OPS.get(headers.get(HEADER_OP) or b"")
        key = None if event.key is None or position.key is None else position.key.decode()
        if op is None or key is None or not event.event_id or not headers.get(HEADER_SEQ):
            return self._undecodable("the record has no readable key or tm- headers: it was not written by Tidemark")
        if len(event.raw) < _FRAME or event.raw[0] != 0:
            return self._undecodable("the record's value has no schema id")
        body = event.raw[_FRAME:]
        schema_id = self._version_of(int.from_bytes(event.raw[1:_FRAME], "big"), body, key)
        if schema_id is None:
            return self._undecodable("no schema version decodes it, beyond doubt, to a row of the record's key")
        return Retriable(key, b"\x00" + schema_id.to_bytes(4, "big") + body, op, event.raw, event.rev)

    def _undecodable(self, detail: str) -> NotYet:
        return NotYet(Reason.UNDECODABLE, "", detail, self._decoding)

    def _version_of(self, own_id: int, body: bytes, key: str) -> int | None:
        """Its own; else the newest one after it, if all that fit agree. Older ones would be a step back."""
        known = list(self._schemas)
        if own_id in self._schemas:
            if self._row(own_id, body, key) is not None:
                return own_id
            known = known[known.index(own_id) + 1 :]
        newest_first = known[::-1][:VERSIONS_TRIED_MAX]
        rows = {schema_id: row for schema_id in newest_first if (row := self._row(schema_id, body, key)) is not None}
        fitting = list(rows)
        return fitting[0] if fitting and all(row == rows[fitting[0]] for row in rows.values()) else None

    def _row(self, schema_id: int, body: bytes, key: str) -> dict[str, Any] | None:
        """What the body says under this schema; ``None``: it does not fit, or is another key's."""
        reader = self._reader(schema_id)
        if reader is None:
            return None
        try:
            row = reader.row(body)
        except BadBody:
            return None
        found = _key_text([row.get(name) for name in self._rules.key])
        return row if found.casefold() == key.casefold() else None  # a uuid may be written either way

    def _reader(self, schema_id: int) -> RowReader | None:
        if schema_id not in self._readers:
            try:
                self._readers[schema_id] = RowReader(parse(self._schemas[schema_id]))
            except ContractError:
                self._readers[schema_id] = None
        return self._readers[schema_id]


def contract_fingerprint(contract: Contract, repairs: Sequence[RepairRule]) -> str:
    """Schema, rules (both in the contract's own) and repair rules. Where there are none, the contract's own.

    What the poller parks carries the contract's own: no repair was tried yet. So, where there are repair rules, it is
    woken once, tried, and remembered under this one.
    """
    return fingerprint_with(contract.fingerprint, repairs)


def repair_line(event: ParkedEvent, found: Retriable, at_us: int) -> bytes:
    """What was repaired, as one line of JSON for the archive: the original bytes too, which the table is about to lose.

    It holds values: it belongs in the archive, never in a log.
    """
    record = {
        "item": event.item_id,
        "entity": event.entity,
        "rev": found.rev,
        "at_us": at_us,
        "applied": found.applied,
        "original_sha256": sha256(event.raw).hexdigest(),
        "repaired_sha256": sha256(found.raw).hexdigest(),
        "original": b64encode(event.raw).decode(),
    }
    return msgspec.json.encode(record) + b"\n"


def _key_text(values: list[Any]) -> str:
    """As ``Identifier`` spells it."""
    if len(values) > 1:
        return msgspec.json.encode(values).decode()
    (value,) = values
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
