"""What is parked, and under which keys: pure, no client library.

A key holds only what is the same at every reading of the event, so that parking twice is parking once. Table design:
one partition per row key (its parked history in order), META beside BODY, two sharded indexes (``due``, ``grp``).
"""

from enum import StrEnum
from hashlib import sha256
from zlib import crc32

from msgspec import Struct

from shared.events.model import Event, Reason, RejectedEvent

SHARDS = 16
"""Of each index queue or group. May grow without a migration: readers then take the larger number."""

TEXT_CHARS_MAX = 256  # path and detail: a META is meant to fit in one kilobyte
KEY_CHARS_MAX = 8_192  # longer keys are cut in META; the raw bytes still hold them


class State(StrEnum):
    PARKED = "PARKED"  # due soon: tried again by itself
    HELD = "HELD"  # no retry would help before its cause is gone; due at its next re-check
    STALE = "STALE"  # given up: the owner is to be told


class KafkaPosition(Struct, frozen=True):
    """The record that a sink could not decode: its identity is its place in the log."""

    topic: str
    generation: int
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    cut: bool = False
    """Key and headers are no more than what META has room for: the whole ones lie behind the body."""

    @property
    def text(self) -> str:
        return f"{self.topic}/{self.generation}/{self.partition}/{self.offset}"


class ParkedEvent(Struct, frozen=True, kw_only=True):
    """Everything that a later re-drive needs to publish the event as if it had never been parked."""

    entity: str
    topic: str
    key: str | None  # text of the Kafka record's key; None: unreadable
    key_hash: bytes  # 16 bytes; of the raw bytes when the key is unreadable
    updated_us: int
    event_id: str
    rank: int
    tiebreak: int
    rev: int = 0
    reason: Reason
    path: str = ""
    detail: str = ""
    raw: bytes  # the event's JSON as shown; the record's value for ``undecodable``
    subject: str | None = None
    fingerprint: str | None = None  # of the schema that refused it
    owner: str = ""
    maybe_sent: bool = False
    stale_after_s: float | None = None  # the entity's; None: the policy's
    at_us: int
    kafka: KafkaPosition | None = None

    @property
    def item_id(self) -> str:
        """What tells this item from others of its key: the event id, or the place in the log."""
        return self.kafka.text if self.kafka is not None else self.event_id


def parked_from_event(
    event: Event,
    refusal: RejectedEvent,
    *,
    entity: str,
    topic: str,
    subject: str | None,
    fingerprint: str | None,
    owner: str,
    at_us: int,
    maybe_sent: bool = False,
    stale_after_s: float | None = None,
) -> ParkedEvent:
    return ParkedEvent(
        entity=entity,
        topic=topic,
        key=event.sighting.key,
        key_hash=event.sighting.key_hash,
        updated_us=event.sighting.updated_us,
        event_id=event.event_id,
        rank=event.rank,
        tiebreak=event.tiebreak,
        reason=refusal.reason,
        path=refusal.path,
        detail=refusal.detail,
        raw=event.sighting.raw,
        subject=subject,
        fingerprint=fingerprint,
        owner=owner,
        maybe_sent=maybe_sent,
        stale_after_s=stale_after_s,
        at_us=at_us,
    )


def undecodable(
    *,
    entity: str,
    position: KafkaPosition,
    value: bytes,
    detail: str,
    subject: str | None,
    fingerprint: str | None,
    owner: str,
    at_us: int,
    event_id: str = "",
    rank: int = 0,
    tiebreak: int = 0,
) -> ParkedEvent:
    key = _text_or_none(position.key)
    digest = sha256(position.key if key is not None and position.key is not None else value).digest()[:16]
    return ParkedEvent(
        entity=entity,
        topic=position.topic,
        key=key,
        key_hash=digest,
        updated_us=0,
        event_id=event_id,
        rank=rank,
        tiebreak=tiebreak,
        reason=Reason.UNDECODABLE,
        detail=detail,
        raw=value,
        subject=subject,
        fingerprint=fingerprint,
        owner=owner,
        maybe_sent=True,  # it is on its topic
        at_us=at_us,
        kafka=position,
    )


def partition_key(event: ParkedEvent) -> str:
    """``P#<entity>#<key hash>``; unreadable keys are spread over 256 partitions by a byte of their raw bytes' hash."""
    if event.key is None:
        return f"P#{event.entity}#!raw{event.key_hash[:1].hex()}"
    return f"P#{event.entity}#{event.key_hash.hex()}"


def meta_key(event: ParkedEvent, rev: int) -> str:
    """Sort key of META. Only an event id that was shown with other bytes gets an item for a rev beyond 0."""
    key = f"E#{event.updated_us:020d}#{event.item_id}"
    return key if rev == 0 else f"{key}#{rev:04d}"


def body_key(event: ParkedEvent, nonce: str) -> str:
    """Each attempt writes its own body, so that no attempt overwrites what a META already names."""
    return f"B#{event.updated_us:020d}#{event.item_id}#{event.rev:04d}#{nonce}"


def object_key(entity: str, body_sha: str, nonce: str) -> str:
    """Where a body lies that is too large for an item."""
    return f"bodies/{entity}/{body_sha}-{nonce}.zst"


def shard(item_id: str) -> int:
    return crc32(item_id.encode("utf-8", "surrogatepass")) % SHARDS


def due_partition(queue: str, shard_number: int) -> str:
    """``queue``: ``r`` re-drive, ``n`` notice."""
    return f"{queue}#{shard_number:02d}"


def due_sort(due_ms: int, item_id: str) -> str:
    """Compare with ``< f"{now_ms + 1:013d}"`` for "is due": the digits come first and have a fixed width."""
    return f"{due_ms:013d}#{item_id}"


def group_partition(entity: str, reason: Reason, shard_number: int) -> str:
    return f"G#{entity}#{reason}#{shard_number:02d}"


def group_sort(first_us: int, item_id: str, rev: int) -> str:
    """Unique over all groups and shards, so that one key tells a listing where to go on."""
    return f"{first_us:020d}#{item_id}#{rev:04d}"


def group_bound(first_us: int) -> str:
    """Below every item first seen at ``first_us``, above every earlier one."""
    return f"{first_us:020d}"


def legible(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Text that every store takes: lone surrogates escaped, cut to ``chars_max``."""
    return text[:chars_max].encode("utf-8", "backslashreplace").decode()[:chars_max]


def _text_or_none(key: bytes | None) -> str | None:
    try:
        return None if key is None else key.decode()
    except UnicodeDecodeError:
        return None
