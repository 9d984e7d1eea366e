"""An entity's contract: its rules over one version of its Avro schema, compiled. JSON events in, Kafka values out.

Value: Confluent framing, ``0x00``, the schema id in 4 bytes, big-endian, and the Avro body of the source's fields as
they are.

A delete that carries no more than key, time stamp, op, event id and version becomes a tombstone (``None``), and so
does one that the schema refuses, if all its other members are null; its key must fit the schema. Any other delete is
judged like every event: its last row travels with op ``d``.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec
from msgspec import UNSET

from shared.events.columns import check_columns
from shared.events.encoder import PageEncoder, compile_encoder
from shared.events.identity import canonical_payload
from shared.events.judge import Judge, Refused, default_datum
from shared.events.model import EventRules, RejectedEvent, Sighting
from shared.events.schema import (
    DEPTH_MAX,
    Array,
    ContractError,
    Field,
    Leaf,
    Map,
    Node,
    Record,
    Union,
    beyond_compiling,
    key_leaf,
    parse,
)

__all__ = ["Contract", "ContractError", "check_columns", "compile_contract"]

# Raised when this package judges otherwise than before: parked events are then worth another try.
_JUDGEMENT_VERSION = 1
_EPOCH_LOGICAL_TYPE = {"epoch_ms": "timestamp-millis", "epoch_us": "timestamp-micros"}


class Contract:
    """Judges and encodes the events of one entity. Compiled once, used from any thread."""

    def __init__(self, rules: EventRules, root: Record, subject: str, schema_id: int, fingerprint: str) -> None:
        self.subject = subject
        self.schema_id = schema_id
        self.fingerprint = fingerprint  # changes with anything that may change a judgement
        self.reasons = beyond_compiling(root)
        self._judge = Judge(rules, root)
        self._header = b"\x00" + schema_id.to_bytes(4, "big")
        self._key = [field for field in root.fields if field.name in rules.key]
        self._bare = {rules.updated_at, rules.op, rules.event_id, rules.version, *rules.key}
        compiled = None if self.reasons else compile_encoder(rules, root, self._header)
        self.source = compiled.source if compiled else ""
        self._encode_page: PageEncoder = compiled.encode_page if compiled else _all_doubtful

    @property
    def general(self) -> bool:
        """True: the schema is beyond what is compiled (``reasons``); events run through fastavro, ten times slower."""
        return bool(self.reasons)

    def encode(self, sightings: Sequence[Sighting]) -> list[bytes | RejectedEvent | None]:
        """One outcome per sighting, in order: the Kafka value, ``None`` for a tombstone, or why it is refused.

        A sighting that already carries a refusal gets that one back. Never raises for bad input.
        """
        raws = [b"" if sighting.is_delete or sighting.refusal else sighting.raw for sighting in sightings]
        outcomes: list[bytes | RejectedEvent | None] = [*self._encode_page(raws)]
        if None in outcomes:
            for index, sighting in enumerate(sightings):
                if outcomes[index] is None:
                    outcomes[index] = sighting.refusal or self._judged(sighting)
        return outcomes

    def _judged(self, sighting: Sighting) -> bytes | RejectedEvent | None:
        try:
            if sighting.is_delete:
                return self._delete(sighting.raw)
            return self._header + self._judge.encode(sighting.raw)
        except Refused as refused:
            return refused.rejection

    def _delete(self, raw: bytes) -> bytes | None:
        """Raises ``Refused``."""
        event = self._judge.parse(raw)
        others = [value for name, value in event.items() if name not in self._bare]
        if others:
            (body,) = self._encode_page([raw])
            try:
                return body or self._header + self._judge.encode(raw)
            except Refused:
                if any(value is not None for value in others):
                    raise
        for field in self._key:
            self._judge.value(field.type, event.get(field.name), (field.name,))
        return None


def compile_contract(rules: EventRules, schema: str, subject: str, schema_id: int) -> Contract:
    """Everything that can be known to be wrong is refused here, before the first event. Raises ``ContractError``."""
    root = parse(schema)
    fields = {field.name: field for field in root.fields}
    for name in rules.key:
        key_leaf(name, root)
    if rules.on_unknown_field == "park":
        _check_members(rules, fields)
    if rules.updated_at in fields:
        _check_time(rules, fields[rules.updated_at])
    _check_defaults(root, (), set())
    check_columns([schema])
    if not 0 <= schema_id < 2**32:
        raise ContractError(f"schema id {schema_id} does not fit the framing's 4 bytes")
    if not 1 <= rules.depth_max <= DEPTH_MAX:
        raise ContractError(f"the limit of an event's depth must lie between 1 and {DEPTH_MAX}, not {rules.depth_max}")
    return Contract(rules, root, subject, schema_id, _fingerprint(rules, schema))


def _check_members(rules: EventRules, fields: Mapping[str, Field]) -> None:
    for role in ("updated_at", "event_id", "op", "version"):
        name = getattr(rules, role)
        if name is not None and name not in fields:
            raise ContractError(
                f"`{role}` names field {name!r}, which is not in the schema: every event would be refused for an "
                "unknown field. Add it to the schema, or set `on_unknown_field: ignore`"
            )


def _check_time(rules: EventRules, field: Field) -> None:
    """An epoch in one unit read as another would be wrong by a factor of a thousand, in every event, without an
    error.
    """
    node = (field.type.nullable() if isinstance(field.type, Union) else None) or field.type
    logical = node.logical if isinstance(node, Leaf) else None
    if rules.updated_at_format == "iso8601":
        fits = isinstance(node, Union) or (isinstance(node, Leaf) and (node.kind == "string" or _is_timestamp(logical)))
    else:
        fits = not _is_timestamp(logical) or logical == _EPOCH_LOGICAL_TYPE.get(rules.updated_at_format)
    if not fits:
        what = logical or (node.kind if isinstance(node, Leaf) else "not a single value")
        raise ContractError(
            f"`updated_at` field {field.name!r} has format {rules.updated_at_format}, but the schema says {what}: "
            "correct `updated_at.format`, or the schema"
        )


def _is_timestamp(logical: str | None) -> bool:
    return logical is not None and "timestamp" in logical


def _check_defaults(node: Node, path: tuple[str | int, ...], seen: set[int]) -> None:
    match node:
        case Record() if id(node) not in seen:
            seen.add(id(node))
            for field in node.fields:
                if field.default is not UNSET:
                    default_datum(field, (*path, field.name))
                _check_defaults(field.type, (*path, field.name), seen)
        case Union():
            for branch in node.branches:
                _check_defaults(branch, path, seen)
        case Array():
            _check_defaults(node.items, path, seen)
        case Map():
            _check_defaults(node.values, path, seen)


def _fingerprint(rules: EventRules, schema: str) -> str:
    settings = msgspec.json.encode((_JUDGEMENT_VERSION, rules), order="deterministic")
    return blake2b(settings + canonical_payload(schema.encode()), digest_size=16).hexdigest()


def _all_doubtful(raws: Sequence[bytes]) -> list[bytes | None]:
    return [None] * len(raws)
