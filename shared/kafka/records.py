"""What a Kafka record of Tidemark looks like, and what became of it."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from shared.events.lineage import HEARTBEAT, parse_seq
from shared.events.model import Event, Reason

EVENT_ID = "tm-event-id"
SEQ = "tm-seq"
OP = "tm-op"
ATTEMPT = "tm-attempt"
REV = "tm-rev"

Op = Literal["u", "d"]
"""``d`` for a delete, ``u`` for anything else: sources don't tell an insert from an update reliably."""

_OP_BYTES: dict[Op, bytes] = {"u": b"u", "d": b"d"}


class Outgoing(Struct, frozen=True, gc=False):
    """A record to publish. ``value=None`` is a tombstone. ``timestamp_ms`` is the time of ingest, since 1970."""

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int
    partition: int | None = None
    """``None``: the key's."""


class NotPublished(Struct, frozen=True, gc=False):
    """Why a record has no acknowledgement.

    ``KAFKA_UNAVAILABLE``: it was certainly not written. ``KAFKA_UNKNOWN``: it may have been. ``KAFKA_TOPIC``: the
    topic is unknown or refuses it. ``TOO_LARGE``: no broker of this topic takes it.
    """

    reason: Reason
    detail: str


class RecordHeaders(Struct, frozen=True, gc=False):
    """The headers of one record as read. ``None`` where one is absent or malformed: such a row is quarantined later."""

    event_id: str | None
    rank: int | None
    tiebreak: int | None
    op: Op | None
    attempt: int = 0
    rev: int = 0


def event_headers(event: Event, op: Op, *, attempt: int = 0, rev: int = 0) -> tuple[tuple[str, bytes], ...]:
    """The headers of an event's record; ``attempt`` and ``rev`` only where they are not 0."""
    headers: tuple[tuple[str, bytes], ...] = (
        (EVENT_ID, event.event_id.encode()),
        (SEQ, b"%d.%d" % (event.rank, event.tiebreak)),
        (OP, _OP_BYTES[op]),
    )
    if attempt:
        headers += ((ATTEMPT, b"%d" % attempt),)
    if rev:
        headers += ((REV, b"%d" % rev),)
    return headers


def heartbeats(partitions: int, at_ms: int) -> list[Outgoing]:
    """One for each partition, sent now. See ``lineage.is_heartbeat``."""
    headers = ((OP, HEARTBEAT.encode()),)
    return [Outgoing(b"", None, headers, at_ms, partition) for partition in range(partitions)]


def parse_headers(headers: Iterable[tuple[str, bytes | None]]) -> RecordHeaders:
    """Read the headers of a consumed record. Foreign headers are passed over; of a repeated one the last counts."""
    found = {name: value for name, value in headers if value is not None}
    event_id = found.get(EVENT_ID, b"")
    rank, tiebreak = parse_seq(found.get(SEQ))
    op = found.get(OP)
    return RecordHeaders(
        event_id=event_id.decode() if 0 < len(event_id) <= 64 and event_id.isalnum() else None,
        rank=rank,
        tiebreak=tiebreak,
        op="d" if op == b"d" else "u" if op == b"u" else None,
        attempt=_count(found.get(ATTEMPT)),
        rev=_count(found.get(REV)),
    )


def _count(text: bytes | None) -> int:
    return int(text) if text is not None and len(text) <= 9 and text.isdigit() else 0
