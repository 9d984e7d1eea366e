"""Where each raw row comes from: the lineage columns, from a Kafka record's position, time and headers."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

from msgspec import Struct

from shared.events.instants import MAX_US, MIN_US, format_iso_us

HEARTBEAT = "h"
"""The op of a record that is no change: without key and value, sent to see how far it comes."""

_SEQ = re.compile(rb"(-?[0-9]{1,19})\.(-?[0-9]{1,19})")
_WHOLE = re.compile(rb"-?[0-9]{1,19}")
_INT64 = 2**63
_Headers = tuple[str | None, int | None, int | None, int | None, str | None, int | None]


class ConsumedRecord(Protocol):
    """What is needed of a Kafka record: aiokafka's ``ConsumerRecord`` fits as it is. ``timestamp`` in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


def is_heartbeat(record: ConsumedRecord) -> bool:
    """No change of the source: its row has its lineage and nothing else, and no table has it."""
    return record.value is None and not record.key and ("tm-op", HEARTBEAT.encode()) in record.headers


class Origin(Struct, frozen=True):
    """The topic-partition of a batch, and the topic's generation."""

    topic: str
    generation: int
    partition: int


class Lineage(Struct):
    """The lineage of some records of one origin and one schema id, column by column, in the records' order."""

    origin: Origin
    schema_id: int | None
    offsets: Sequence[int]
    timestamps_ms: Sequence[int | None]  # None: outside the years 1 to 9999
    event_ids: Sequence[str | None]
    ranks: Sequence[int | None]
    tiebreaks: Sequence[int | None]
    revs: Sequence[int | None]
    ops: Sequence[str | None]
    attempts: Sequence[int | None]

    @classmethod
    def of(cls, origin: Origin, schema_id: int | None, records: Sequence[ConsumedRecord]) -> Self:
        headers = [_headers(record.headers) for record in records]
        event_ids, ranks, tiebreaks, revs, ops, attempts = zip(*headers, strict=True) if headers else [()] * 6
        offsets = [record.offset for record in records]
        timestamps_ms = [_within_years(record.timestamp) for record in records]
        return cls(
            origin, schema_id, offsets, timestamps_ms, event_ids, ranks, tiebreaks, revs, ops, attempts
        )  # fmt: skip

    def part(self, start: int, end: int) -> "Lineage":
        """That of the records from ``start`` up to ``end``."""
        return Lineage(
            self.origin,
            self.schema_id,
            self.offsets[start:end],
            self.timestamps_ms[start:end],
            self.event_ids[start:end],
            self.ranks[start:end],
            self.tiebreaks[start:end],
            self.revs[start:end],
            self.ops[start:end],
            self.attempts[start:end],
        )

    def cells(self, index: int) -> Iterator[tuple[str, Any]]:
        """The lineage columns of one row, in their order."""
        timestamp_ms = self.timestamps_ms[index]
        yield "_kafka_topic", self.origin.topic
        yield "_kafka_generation", self.origin.generation
        yield "_kafka_partition", self.origin.partition
        yield "_kafka_offset", self.offsets[index]
        yield "_kafka_timestamp", None if timestamp_ms is None else format_iso_us(timestamp_ms * 1_000)
        yield "_event_id", self.event_ids[index]
        yield "_rank", self.ranks[index]
        yield "_tiebreak", self.tiebreaks[index]
        yield "_rev", self.revs[index]
        yield "_op", self.ops[index]
        yield "_schema_id", self.schema_id
        yield "_attempt", self.attempts[index]


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> _Headers:
    """(event id, rank, tiebreak, rev, op, attempt). Absent or unreadable: null; rev and attempt: 0 if absent."""
    found = dict(headers)
    rank, tiebreak = parse_seq(found.get("tm-seq"))
    if len(found) <= 3 and "tm-rev" not in found and "tm-attempt" not in found:  # as first published
        return _text(found.get("tm-event-id")), rank, tiebreak, 0, _text(found.get("tm-op")), 0
    return (
        _text(found.get("tm-event-id")),
        rank,
        tiebreak,
        _whole(found.get("tm-rev", b"0")),
        _text(found.get("tm-op")),
        _whole(found.get("tm-attempt", b"0")),
    )


def parse_seq(value: bytes | None) -> tuple[int | None, int | None]:
    """Rank and tiebreak: both, or neither where it is malformed or beyond 64 bits."""
    match = _SEQ.fullmatch(value or b"")
    if match is None:
        return None, None
    rank, tiebreak = int(match[1]), int(match[2])
    return (rank, tiebreak) if min(rank, tiebreak) >= -_INT64 and max(rank, tiebreak) < _INT64 else (None, None)


def _whole(value: bytes | None) -> int | None:
    if _WHOLE.fullmatch(value or b"") is None:
        return None
    found = int(value or b"")
    return found if -_INT64 <= found < _INT64 else None


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _within_years(timestamp_ms: int) -> int | None:
    return timestamp_ms if MIN_US <= timestamp_ms * 1_000 <= MAX_US else None
