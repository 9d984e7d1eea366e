"""Parked events as DynamoDB items and statements, and back. Pure."""

import struct
from hashlib import sha256
from secrets import token_hex
from typing import Any, Literal

import msgspec
import zstandard
from msgspec import Struct

from shared.events.model import Reason
from shared.parked.model import (
    KEY_CHARS_MAX,
    KafkaPosition,
    ParkedEvent,
    State,
    body_key,
    due_partition,
    due_sort,
    group_partition,
    group_sort,
    legible,
    meta_key,
    object_key,
    partition_key,
    shard,
)
from shared.parked.policy import POLICIES, deadline_ms, first_due_ms

Item = dict[str, dict[str, Any]]

STORED_FIELDS = ("pk", "sk", "nonce", "body_sha", "seen", "rank", "tie", "maybe_sent", "ver")
RAW_BYTES_MAX = 256 * 1024 * 1024  # of a decompressed body: above any body that a source may send
RECORD_BYTES_MAX = 64 * 1024
"""Of a record's key and headers in META, which DynamoDB bounds at 400 KB: foreign producers know no such bound."""
HEADER_BYTES = 16  # what a header costs in META besides its name and content, at most
OWN_HEADERS_MAX, OWN_HEADER_BYTES_MAX = 16, 256
_SKIPPABLE = 0x184D2A50  # https://github.com/facebook/zstd/blob/dev/doc/zstd_compression_format.md#skippable-frames


class Stored(Struct, frozen=True):
    """What stands under a key already, as far as parking must know it."""

    nonce: str
    body_sha: str
    seen: int
    seq: tuple[int, int]
    maybe_sent: bool
    ver: int


class Draft(Struct):
    """One event on its way into the store."""

    event: ParkedEvent
    pk: str
    sightings: int  # in this call
    nonce: str
    body_sha: str  # of the raw bytes
    body: bytes  # zstd
    rev: int  # raised when the same event id stands there with other bytes
    is_large: bool  # the body is too large for an item
    has_body: bool = False
    stored: Stored | None = None
    outcome: Literal["new", "again"] | None = None

    @property
    def sk(self) -> str:
        return meta_key(self.event, self.rev)

    @property
    def seq(self) -> tuple[int, int]:
        return (self.event.rank, self.event.tiebreak)

    @property
    def in_bucket(self) -> str:
        """The object of a body that is too large for an item, else ``""``.

        Its key holds the nonce, so that no other META names it: then it may go as soon as its own META is gone.
        Under a key of the content alone, a deletion could overtake a park that had found the object there.
        """
        return object_key(self.event.entity, self.body_sha, self.nonce) if self.is_large else ""

    @property
    def needs_body(self) -> bool:
        return self.stored is None and not self.has_body

    @property
    def in_conflict(self) -> bool:
        return self.rev != self.event.rev


def draft_of(event: ParkedEvent, sightings: int, body_bytes_max: int) -> Draft:
    """A body above ``body_bytes_max`` goes to the bucket."""
    body = zstandard.compress(event.raw)
    if event.kafka is not None and not _fits(event.kafka):
        body += _record_frame(event.kafka)
    body_sha = sha256(event.raw).hexdigest()
    return Draft(
        event=event,
        pk=partition_key(event),
        sightings=sightings,
        nonce=token_hex(8),
        body_sha=body_sha,
        body=body,
        rev=event.rev,
        is_large=len(body) > body_bytes_max,
    )


def resolve(draft: Draft, stored: Stored | None) -> None:
    """Take in what a consistent read found under the draft's key, after the write was refused or before the first.

    Same nonce: our own insert, whose answer was lost. Same bytes: the event was parked before, and is to be counted.
    Other bytes under one event id: the next rev. Nothing: gone meanwhile, perhaps with our body, so both start anew.
    """
    draft.stored = stored
    if stored is None:
        draft.nonce = token_hex(8)
        draft.has_body = False
    elif stored.nonce == draft.nonce:
        draft.outcome = "new"
    elif stored.body_sha != draft.body_sha:
        draft.rev += 1
        draft.stored = None


def decompress(body: bytes) -> bytes:
    """The raw bytes: what may lie behind them (``record_of``) is passed over."""
    with zstandard.ZstdDecompressor().stream_reader(body) as reader:
        raw = reader.read(RAW_BYTES_MAX + 1)
    if len(raw) > RAW_BYTES_MAX:
        raise ValueError(f"a parked body decompresses to more than {RAW_BYTES_MAX} bytes")
    return bytes(raw)


def record_of(body: bytes, position: KafkaPosition) -> KafkaPosition:
    """A position that was cut, with its whole key and headers, from behind the raw bytes. Raises ``ValueError``."""
    reader = zstandard.ZstdDecompressor().decompressobj()
    reader.decompress(body)
    frame = bytes(reader.unused_data)
    if len(frame) < 8 or struct.unpack("<II", frame[:8]) != (_SKIPPABLE, len(frame) - 8):
        raise ValueError(f"behind the body of {position.text} there are no key and headers")
    whole = msgspec.msgpack.decode(zstandard.decompress(frame[8:]), type=_Record)
    return msgspec.structs.replace(position, key=whole.key, headers=whole.headers, cut=False)


def body_item(draft: Draft) -> Item:
    return {
        "pk": {"S": draft.pk},
        "sk": {"S": body_key(draft.event, draft.nonce)},
        "raw": {"B": draft.body},
        "at_us": {"N": str(draft.event.at_us)},  # the collector of orphans leaves young bodies alone
    }


def meta_item(draft: Draft) -> Item:
    event = draft.event
    at_ms = event.at_us // 1000
    number = shard(event.item_id)
    fields: dict[str, str | int | bool | bytes | None] = {
        "pk": draft.pk,
        "sk": draft.sk,
        "st": POLICIES[event.reason].state,
        "ver": 1,
        "entity": event.entity,
        "topic": event.topic,
        "id": event.event_id,
        "item": event.item_id,
        "key": None if event.key is None else legible(event.key, KEY_CHARS_MAX),
        "key_cut": True if event.key is not None and legible(event.key, KEY_CHARS_MAX) != event.key else None,
        "updated_us": event.updated_us,
        "rank": event.rank,
        "tie": event.tiebreak,
        "rev": draft.rev,
        "reason": event.reason,
        "path": legible(event.path),
        "detail": legible(event.detail),
        "sub": event.subject,
        "sfp": event.fingerprint,
        "owner": event.owner,
        "maybe_sent": event.maybe_sent,
        "seen": draft.sightings,
        "att": 0,
        "tries": 0,
        "first_at": event.at_us,
        "last_at": event.at_us,
        "deadline_at": deadline_ms(event.reason, at_ms, event.stale_after_s),
        "nonce": draft.nonce,
        "body_sha": draft.body_sha,
        "raw_bytes": len(event.raw),
        "body": None if draft.in_bucket else body_key(event, draft.nonce),
        "s3_uri": draft.in_bucket or None,
        "dq": due_partition("r", number),
        "due": due_sort(first_due_ms(event.reason, at_ms, event.stale_after_s), event.item_id),
        "gk": group_partition(event.entity, event.reason, number),
        "gs": group_sort(event.at_us, event.item_id, draft.rev),
    }
    item = {name: wire(value) for name, value in fields.items() if value is not None}
    item["errs"] = {"L": []}
    if event.kafka is not None:
        item["kafka"] = _kafka(event)
    return item


def insert_statement(draft: Draft, table: str) -> dict[str, Any]:
    """Insert-if-absent: ``DuplicateItem`` when the key is taken."""
    item = meta_item(draft)
    names = ", ".join(f"'{name}': ?" for name in item)
    return {"Statement": f'INSERT INTO "{table}" VALUE {{{names}}}', "Parameters": list(item.values())}


def count_statement(draft: Draft, table: str) -> dict[str, Any]:
    """Count a repetition; the greater ``seq`` stands. ``ConditionalCheckFailed`` when somebody counted meanwhile.

    Without arithmetic, which DynamoDB's PartiQL doesn't document: the condition on ``seen`` does the same.
    """
    stored = draft.stored
    assert stored is not None, "only what was read can be counted"
    rank, tie = max(stored.seq, draft.seq)
    changes: dict[str, str | int | bool] = {
        "seen": stored.seen + draft.sightings,
        "last_at": draft.event.at_us,
        "maybe_sent": stored.maybe_sent or draft.event.maybe_sent,
    }
    if (rank, tie) != stored.seq:
        changes |= {"rank": rank, "tie": tie, "ver": stored.ver + 1}
    sets = " ".join(f'SET "{name}" = ?' for name in changes)
    where = '"pk" = ? AND "sk" = ? AND "body_sha" = ? AND "seen" = ? AND "ver" = ?'
    conditions = (draft.pk, draft.sk, draft.body_sha, stored.seen, stored.ver)
    return {
        "Statement": f'UPDATE "{table}" {sets} WHERE {where}',
        "Parameters": [wire(value) for value in (*changes.values(), *conditions)],
    }


def stored_of(item: Item) -> Stored:
    return Stored(
        nonce=item["nonce"]["S"],
        body_sha=item["body_sha"]["S"],
        seen=int(item["seen"]["N"]),
        seq=(int(item["rank"]["N"]), int(item["tie"]["N"])),
        maybe_sent=item["maybe_sent"]["BOOL"],
        ver=int(item["ver"]["N"]),
    )


class ParkedRow(Struct, frozen=True):
    """One line of a listing, read from the index ``grp`` alone (eventually consistent)."""

    entity: str
    reason: Reason
    item_id: str  # event id, or topic/generation/partition/offset of an undecodable record
    rev: int  # at parking
    state: State
    first_us: int
    path: str
    subject: str | None
    fingerprint: str | None
    attempts: int
    owner: str
    key: str | None
    pk: str = ""  # where the row lies in the table
    sk: str = ""


class ParkedId(Struct, frozen=True):
    """One parked item as the balance sheet counts it."""

    entity: str
    item_id: str
    event_id: str  # "" for an undecodable record without a readable header
    reason: Reason
    state: State
    rev: int
    maybe_sent: bool


class ParkedDetail(Struct, frozen=True):
    """One parked item in full, with its original bytes."""

    row: ParkedRow
    event_id: str
    topic: str
    seq: tuple[int, int]
    rev: int
    updated_us: int
    detail: str
    due_ms: int
    deadline_ms: int
    last_us: int
    seen: int
    tries: int
    maybe_sent: bool
    body_sha: str
    raw: bytes


def row_of(item: Item) -> ParkedRow:
    """From an item, or from the index ``grp``, which projects less."""
    entity, reason, _ = item["gk"]["S"].removeprefix("G#").rsplit("#", 2)
    first_us, item_id, rev = item["gs"]["S"].split("#", 2)
    return ParkedRow(
        entity=entity,
        reason=Reason(reason),
        item_id=item_id,
        rev=int(rev),
        state=State(item["st"]["S"]),
        first_us=int(first_us),
        path=item["path"]["S"],
        subject=_text(item, "sub"),
        fingerprint=_text(item, "sfp"),
        attempts=int(item["att"]["N"]),
        owner=item["owner"]["S"],
        key=_text(item, "key"),
        pk=item["pk"]["S"],
        sk=item["sk"]["S"],
    )


def id_of(item: Item) -> ParkedId:
    return ParkedId(
        entity=item["entity"]["S"],
        item_id=item["item"]["S"],
        event_id=item["id"]["S"],
        reason=Reason(item["reason"]["S"]),
        state=State(item["st"]["S"]),
        rev=int(item["rev"]["N"]),
        maybe_sent=item["maybe_sent"]["BOOL"],
    )


def detail_of(item: Item, raw: bytes) -> ParkedDetail:
    return ParkedDetail(
        row=row_of(item),
        event_id=item["id"]["S"],
        topic=item["topic"]["S"],
        seq=(int(item["rank"]["N"]), int(item["tie"]["N"])),
        rev=int(item["rev"]["N"]),
        updated_us=int(item["updated_us"]["N"]),
        detail=item["detail"]["S"],
        due_ms=int(item["due"]["S"].partition("#")[0]),
        deadline_ms=int(item["deadline_at"]["N"]),
        last_us=int(item["last_at"]["N"]),
        seen=int(item["seen"]["N"]),
        tries=int(item["tries"]["N"]),
        maybe_sent=item["maybe_sent"]["BOOL"],
        body_sha=item["body_sha"]["S"],
        raw=raw,
    )


def wire(value: str | int | bool | bytes | None) -> dict[str, Any]:
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int):
        return {"N": str(value)}
    return {"B": value} if isinstance(value, bytes) else {"S": str(value)}


class _Record(Struct, frozen=True, array_like=True):
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def _fits(position: KafkaPosition) -> bool:
    return len(position.key or b"") + sum(map(_header_bytes, position.headers)) <= RECORD_BYTES_MAX


def _header_bytes(header: tuple[str, bytes | None]) -> int:
    name, content = header
    return len(name.encode("utf-8", "surrogatepass")) + len(content or b"") + HEADER_BYTES


def _record_frame(position: KafkaPosition) -> bytes:
    """Key and headers as a frame that every reader of zstd passes over: so the body has the same raw bytes as ever."""
    record = msgspec.msgpack.encode(_Record(position.key, position.headers))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(record)
    return struct.pack("<II", _SKIPPABLE, len(packed)) + packed


def _cut(position: KafkaPosition) -> KafkaPosition:
    """What META has room for: our own headers, by which a re-drive goes, and a key that is none of the large ones."""
    key = position.key if len(position.key or b"") <= RECORD_BYTES_MAX // 2 else None
    own = [one for one in position.headers if one[0].startswith("tm-") and _header_bytes(one) <= OWN_HEADER_BYTES_MAX]
    return msgspec.structs.replace(position, key=key, headers=tuple(own[-OWN_HEADERS_MAX:]), cut=True)


def _kafka(event: ParkedEvent) -> dict[str, Any]:
    """The record as it lies in the log, so that a re-drive can write the same one."""
    position = event.kafka
    assert position is not None, "only undecodable records have a position"
    if not _fits(position):
        position = _cut(position)
    fields: dict[str, Any] = {
        "topic": wire(position.topic),
        "generation": wire(position.generation),
        "partition": wire(position.partition),
        "offset": wire(position.offset),
        "timestamp_ms": wire(position.timestamp_ms),
        "headers": {"L": [{"L": [wire(name), wire(text)]} for name, text in position.headers]},
    }
    if position.key is not None:
        fields["key"] = wire(position.key)
    if position.cut:
        fields["cut"] = wire(True)
    return {"M": fields}


def _text(item: Item, name: str) -> str | None:
    return item[name]["S"] if name in item else None
