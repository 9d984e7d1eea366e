"""The words in which the parts speak of one change: how it was seen, and how it was numbered and ordered."""

from enum import StrEnum
from typing import Literal

from msgspec import Struct


class Reason(StrEnum):
    """Why an event is parked. Also the metric label; the retry policy of each stands in ``shared/parked``."""

    INVALID = "invalid"  # wrong type, missing or unknown field: a newer schema may accept it
    HOSTILE = "hostile"  # no JSON, lone surrogates, nesting beyond the limit: never by itself
    FUTURE = "future"  # dated beyond the server's clock by more than ``future_s_max``
    UNDECODABLE = "undecodable"  # a Kafka record that fails under its known schema
    TOO_LARGE = "too_large"
    KAFKA_UNAVAILABLE = "kafka_unavailable"  # breaker open or no broker: certainly not sent
    KAFKA_UNKNOWN = "kafka_unknown"  # our deadline passed after the send: may have been written
    KAFKA_TOPIC = "kafka_topic"  # unknown topic, not authorised
    BUG = "bug"  # an exception of our own code on this one event


class RejectedEvent(Struct, frozen=True, gc=False):
    """Why one event was refused: ``path`` is a JSON pointer into it (``""``: the whole), ``detail`` names the rule.

    Neither quotes a value of the event: they go to logs and notices. So the keys of a map, which are the source's data,
    stand as ``*`` in ``path``; ``place`` is the pointer with them, where there are any: for whoever has the event too.
    """

    reason: Reason
    path: str
    detail: str
    place: str = ""

    @property
    def exact_path(self) -> str:
        return self.place or self.path


class EventRules(Struct, frozen=True, kw_only=True):
    """What an entity's contract says about one event, besides its schema. Field names are top-level JSON names."""

    entity: str
    key: tuple[str, ...]
    updated_at: str
    updated_at_format: Literal["iso8601", "epoch_s", "epoch_ms", "epoch_us"] = "iso8601"
    utc_offset_minutes: int | None = None  # for ISO stamps that carry no offset; without it they are refused
    granularity_us: int = 1  # the source's tick
    event_id: str | None = None  # the source's own event id
    op: str | None = None
    delete_ops: frozenset[str] = frozenset({"d", "delete", "DELETE", "deleted"})
    version: str | None = None
    shows: Literal["rows", "events"] = "rows"
    on_unknown_field: Literal["park", "ignore"] = "park"
    event_bytes_max: int = 1_000_000
    depth_max: int = 64


class Sighting(Struct, frozen=True, gc=False):
    """One element of one answer, identified: nothing here depends on the schema.

    An event without readable key or timestamp has ``key=None``, ``updated_us=0`` and a ``refusal``.
    """

    raw: bytes
    key: str | None  # text of the Kafka record's key; a compact JSON array when composite
    key_hash: bytes  # 16 bytes: sha256 of the key's text; of the raw bytes when the key is unreadable
    updated_us: int  # microseconds since 1970, UTC
    identity: bytes  # 16 bytes, blake2b
    is_delete: bool = False
    version: int | None = None
    refusal: RejectedEvent | None = None


class Event(Struct, frozen=True, gc=False):
    """A change that was not seen before: a sighting, numbered and ordered. ``(rank, tiebreak)`` is its ``seq``."""

    sighting: Sighting
    occurrence: int
    event_id: str  # 32 hex digits: hash of (identity, occurrence)
    shown_us: int
    rank: int
    tiebreak: int
