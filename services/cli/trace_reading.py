"""Where the events of one key are: asked of each store, reading no more of it than must be read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from services.cli.audit_aside import named
from services.cli.audit_raw import RowReader
from services.cli.audit_seen import inflated
from shared.checkpoints.model import SeenPage
from shared.events.identity import event_id, key_hash
from shared.events.instants import parse_iso_us
from shared.events.lineage import is_heartbeat
from shared.kafka.partitions import partition_of_keys
from shared.kafka.records import parse_headers
from shared.parked.census import Counted
from shared.producer.seen import ANCHORED, ENTRY, KEY_BYTES
from shared.raw.keys import Chain
from shared.raw.ledger import Damaged, Ledger
from shared.raw.objects import ObjectStore, RawObject

if TYPE_CHECKING:
    from shared.kafka.reread import Reread

HITS_MAX = 10_000
"""Rows of one key that are kept."""
KAFKA_RECORDS_MAX = 200_000
"""Records behind the ledger's end that are looked through."""


class Sighted(Struct, frozen=True):
    """One seen entry."""

    event_id: str
    shown_us: int
    updated_us: int
    anchored: bool
    page: str


class Hit(Struct, frozen=True, kw_only=True):
    """One record: in a raw object, or, while the sink has not come so far, in Kafka."""

    chain: Chain
    offset: int
    event_id: str | None
    rank: int | None
    tiebreak: int | None
    rev: int
    op: str | None
    attempt: int
    published_ms: int | None
    object_key: str | None = None
    line: int = 0
    """Of the object's rows, from 1."""
    key: str | None = None

    @property
    def order(self) -> tuple[int, int, int, str] | None:
        """``None``: no MERGE can order it."""
        if self.rank is None or self.tiebreak is None or self.event_id is None:
            return None
        return (self.rank, self.tiebreak, self.rev, self.event_id)


class Wanted(Struct, frozen=True):
    """A key, or an event whose key is not known yet."""

    key_fields: tuple[str, ...]
    key: str | None = None
    event_id: str | None = None

    @property
    def needle(self) -> bytes:
        """Bytes that stand in each line that is meant; ``b""``: no line can be left out."""
        if self.key is None:
            return (self.event_id or "").encode()
        if (
            len(self.key_fields) > 1
            or not self.key.isascii()
            or not self.key.isprintable()
            or set('"\\/') & set(self.key)
        ):
            return b""
        return self.key.encode()

    def takes(self, key: str | None, name: str | None) -> bool:
        return key == self.key if self.key is not None else name == self.event_id


class _Line(Struct, frozen=True):
    op: str | None = field(name="_op", default=None)
    attempt: int | None = field(name="_attempt", default=None)
    timestamp: str | None = field(name="_kafka_timestamp", default=None)


_decode_line = msgspec.json.Decoder(_Line).decode


class Found(Struct):
    """What a walk through raw objects met."""

    hits: list[Hit] = field(default_factory=list)
    more: bool = False
    """There are further ones."""
    damaged: list[str] = field(default_factory=list)
    objects: int = 0
    skipped: int = 0


async def in_raw(
    ledger: Ledger,
    store: ObjectStore,
    chains: Sequence[Chain],
    wanted: Wanted,
    since_ms: int | None,
    progress: Callable[[int], None],
    *,
    first_only: bool = False,
) -> Found:
    """Read every object of ``chains`` whose records are not all older than ``since_ms``."""
    found = Found()
    reader = RowReader(wanted.key_fields)
    for chain in chains:
        async for link in ledger.objects(chain, await ledger.floor(chain)):
            if not link.count or (since_ms is not None and link.last_ms is not None and link.last_ms < since_ms):
                found.skipped += 1
                continue
            try:
                rows = await ledger.rows(link)
            except Damaged as damage:
                found.damaged.append(str(damage))
                continue
            found.objects += 1
            hits = await asyncio.to_thread(_hits, ledger.keys.link(chain, link.start), link, rows, wanted, reader)
            found.more = found.more or len(found.hits) + len(hits) > HITS_MAX
            found.hits += hits[: HITS_MAX - len(found.hits)]
            progress(found.objects)
            if first_only and found.hits:
                return found
    return found


def _hits(object_key: str, link: RawObject, rows: bytes, wanted: Wanted, reader: RowReader) -> list[Hit]:
    needle = wanted.needle
    if needle and needle not in rows:
        return []
    hits = []
    for number, line in enumerate(rows.splitlines(), 1):
        if needle and needle not in line:
            continue
        try:
            row, rest = reader.row(line), _decode_line(line)
        except msgspec.MsgspecError:
            continue
        if wanted.takes(row.key, row.event_id):
            hits.append(
                Hit(
                    chain=link.chain,
                    offset=row.offset,
                    event_id=row.event_id,
                    rank=row.rank,
                    tiebreak=row.tiebreak,
                    rev=row.rev or 0,
                    op=rest.op,
                    attempt=rest.attempt or 0,
                    published_ms=_ms(rest.timestamp),
                    object_key=object_key,
                    line=number,
                    key=row.key,
                )
            )
    return hits


async def in_kafka(reread: "Reread", chains: Mapping[Chain, tuple[int, int]], wanted: Wanted) -> tuple[list[Hit], bool]:
    """What lies between the ledger's end and Kafka's, by chain; True: there was more than is looked through."""
    hits: list[Hit] = []
    left = KAFKA_RECORDS_MAX
    for chain, (start, end) in chains.items():
        if start >= end:
            continue
        async for page in reread.records(chain.topic, chain.partition, start, end):
            for record in page:
                headers = parse_headers(record.headers)
                key = None if record.key is None else record.key.decode("utf-8", "replace")
                if wanted.takes(key, headers.event_id) and not is_heartbeat(record):
                    hits.append(
                        Hit(
                            chain=chain,
                            offset=record.offset,
                            event_id=headers.event_id,
                            rank=headers.rank,
                            tiebreak=headers.tiebreak,
                            rev=headers.rev,
                            op=headers.op,
                            attempt=headers.attempt,
                            published_ms=record.timestamp,
                            key=key,
                        )
                    )
            left -= len(page)
            if left <= 0:
                return hits, True
    return hits, False


async def seen(
    pages: AsyncIterator[SeenPage],
    objects: ObjectStore,
    prefix: str,
    wanted: Wanted,
    ids: Iterable[str],
    progress: Callable[[int], None],
) -> list[Sighted]:
    """Entries of the key, or of the ids, in Postgres and in the bucket."""
    key8 = None if wanted.key is None else key_hash(wanted.key)[:KEY_BYTES]
    known = frozenset(ids)
    found: list[Sighted] = []
    done = 0
    async for page in pages:
        name = f"seen_page {page.seq} in Postgres"
        found += await asyncio.to_thread(_sighted, page.entries, key8, known, name)
        done += len(page.entries) // ENTRY.size
        progress(done)
    after, more = "", True
    while more:
        listed = await objects.keys_after(prefix, after)
        for key in listed.keys:
            stored = await objects.read(key)
            entries = b"" if stored is None else await asyncio.to_thread(inflated, stored.body)
            found += await asyncio.to_thread(_sighted, entries, key8, known, f"object {key}")
            done += len(entries) // ENTRY.size
            progress(done)
        more, after = listed.more and bool(listed.keys), listed.keys[-1] if listed.keys else after
    return found


def _sighted(entries: bytes, key8: bytes | None, ids: frozenset[str], page: str) -> list[Sighted]:
    found = []
    if key8 is not None and not ids and key8 not in entries:
        return []
    whole = entries[: len(entries) // ENTRY.size * ENTRY.size]
    for key, identity, occurrence, updated_us, shown_us in ENTRY.iter_unpack(whole):
        if key8 is not None and key != key8 and not ids:
            continue
        name = event_id(identity, occurrence & ~ANCHORED)
        if key == key8 or name in ids:
            found.append(Sighted(name, shown_us, updated_us, occurrence >= ANCHORED, page))
    return found


async def in_archive(
    uris: AsyncIterator[str], entity: str, ids: Iterable[str], progress: Callable[[int], None]
) -> dict[str, list[str]]:
    """Evidence by event id: the keys alone are read."""
    wanted = frozenset(ids)
    found: dict[str, list[str]] = {}
    done = 0
    async for uri in uris:
        own, item_id = named(uri)
        if own == entity and item_id in wanted:
            found.setdefault(item_id, []).append(uri)
        done += 1
        progress(done)
    return found


def chains_of(chains: Sequence[Chain], newest: int, partitions: int | None, key: str | None) -> list[Chain]:
    """Those that may hold the key: its partitions of the newest generation, by each number of them that the topic may
    have had before some were added; and all of older generations, which may have had more."""
    if key is None or not partitions:
        return list(chains)
    own = {partition_of_keys([key.encode()], count)[0] for count in range(1, partitions + 1)}
    return [chain for chain in chains if chain.generation < newest or chain.partition in own]


def parked_key(counted: Sequence[Counted]) -> str | None:
    return next((one.row.event.key for one in counted if one.row.event.key is not None and not one.row.key_cut), None)


def _ms(stamp: str | None) -> int | None:
    try:
        return None if stamp is None else parse_iso_us(stamp, None) // 1000
    except ValueError:
        return None
