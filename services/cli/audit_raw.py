"""The raw chains of one entity, object by object: contiguous, as their digests say, and every row in its place.

A chain is followed from its floor. An expiry that overtakes us raises the floor first: whatever is missing is held
against the floor as it is then. One request an object; ``READ_AHEAD`` of them are in memory at a time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from services.cli.audit_records import HAS_SEQ, KAFKA_ALONE, RANGES_MAX, REV_MAX, ChainOf, Law
from services.cli.audit_spill import packed_id
from shared.events.lineage import HEARTBEAT, ConsumedRecord, is_heartbeat
from shared.kafka.records import parse_headers
from shared.raw.keys import Chain
from shared.raw.ledger import Damaged, Ledger, proved
from shared.raw.objects import NotOurs, ObjectStore, RawObject, Stored, from_metadata

READ_AHEAD = 4

NO_KEY = bytes(8)


class Row(Struct, frozen=True):
    """The columns of a raw row that an audit needs."""

    topic: str
    generation: int
    partition: int
    offset: int
    event_id: str | None
    rank: int | None
    tiebreak: int | None
    rev: int | None
    key: str | None  # as text; ``None``: the row has no readable key
    is_heartbeat: bool = False
    is_delete: bool = False


class RowReader:
    """Reads lines of one entity. Any thread."""

    def __init__(self, key: Sequence[str]) -> None:
        fields: list[tuple[str, Any, Any]] = [
            ("topic", str, ""),
            ("generation", int, 0),
            ("partition", int, -1),
            ("offset", int, -1),
            ("event_id", str | None, None),
            ("rank", int | None, None),
            ("tiebreak", int | None, None),
            ("rev", int | None, None),
            ("op", Any, None),
            ("schema_id", Any, None),
            *((f"key_{number}", Any, None) for number in range(len(key))),
        ]
        rename = {f"key_{number}": name for number, name in enumerate(key)}
        rename |= {name: f"_kafka_{name}" for name in ("topic", "generation", "partition", "offset")}
        rename |= {name: f"_{name}" for name in ("event_id", "rank", "tiebreak", "rev", "op", "schema_id")}
        line = msgspec.defstruct("Line", fields, rename=rename)
        self._decode = msgspec.json.Decoder(line).decode
        self._keys = [f"key_{number}" for number in range(len(key))]

    def row(self, line: bytes) -> Row:
        """Raises ``msgspec.MsgspecError``."""
        found: Any = self._decode(line)
        key = key_text([getattr(found, name) for name in self._keys])
        return Row(
            found.topic,
            found.generation,
            found.partition,
            found.offset,
            found.event_id,
            found.rank,
            found.tiebreak,
            found.rev,
            key,
            found.op == HEARTBEAT and found.event_id is None and found.schema_id is None,
            found.op == "d",
        )


def key_text(values: Sequence[Any]) -> str | None:
    """The key's text from its columns, as ``shared.events.identity`` makes it of the source's JSON."""
    if any(value.__class__ not in (str, int, bool) for value in values):
        return None
    if len(values) > 1:
        return msgspec.json.encode(values).decode()
    (value,) = values
    if value.__class__ is bool:
        return "true" if value else "false"
    return str(value)


async def walk(
    ledger: Ledger,
    store: ObjectStore,
    chain: ChainOf,
    take: Callable[[RawObject, bytes], None],
    progress: Callable[[int], None],
) -> None:
    """Follow ``chain`` to its end, and hand each sound object's rows to ``take``, in a thread. Fills ``chain``.

    Raises ``StoreUnavailable``.
    """
    await _raise_floor(ledger, chain)
    async for start, stored in _stored(ledger, store, chain):
        if stored is None:
            continue  # it went since it was listed: a hole, if it is not expired
        try:
            link = from_metadata(chain.chain, start, stored.metadata)
        except NotOurs as error:
            await _unreadable(ledger, chain, start, error)
            continue
        await _follow(ledger, chain, link)
        await _taken(ledger, chain, link, stored.body, take)
        progress(link.end - link.start + 1)


async def _stored(ledger: Ledger, store: ObjectStore, chain: ChainOf) -> AsyncIterator[tuple[int, Stored | None]]:
    """Start and content of each object from the floor on, in order; some are read ahead."""
    ahead: deque[tuple[int, asyncio.Task[Stored | None]]] = deque()
    try:
        async for key in _keys(ledger, store, chain):
            reading = asyncio.create_task(store.read(key), name="audit-raw-object")
            ahead.append((ledger.keys.parse(key)[1], reading))
            if len(ahead) >= READ_AHEAD:
                start, first = ahead.popleft()
                yield start, await first
        while ahead:
            start, first = ahead.popleft()
            yield start, await first
    finally:
        for _, reading in ahead:
            reading.cancel()
        await asyncio.gather(*(reading for _, reading in ahead), return_exceptions=True)


async def _keys(ledger: Ledger, store: ObjectStore, chain: ChainOf) -> AsyncIterator[str]:
    prefix, more = ledger.keys.chain(chain.chain), True
    after = ledger.keys.before(chain.chain, chain.floor)
    while more:
        page = await store.keys_after(prefix, after)
        for key in page.keys:
            yield key
        more, after = page.more and bool(page.keys), page.keys[-1] if page.keys else after


async def _follow(ledger: Ledger, chain: ChainOf, link: RawObject) -> None:
    if link.start > chain.next_start:
        await _hole(ledger, chain, link.start)
    elif link.start < chain.next_start:
        chain.doubled.append((link.start, min(chain.next_start - 1, link.end)))
    chain.next_start = max(chain.next_start, link.next_start)


async def _unreadable(ledger: Ledger, chain: ChainOf, start: int, error: NotOurs) -> None:
    """Where it ends is not known: at the next one's beginning, if all is well there."""
    if start > chain.next_start:
        await _hole(ledger, chain, start)
    chain.damaged.append((start, start, str(error)))
    chain.next_start = max(chain.next_start, start + 1)


async def _hole(ledger: Ledger, chain: ChainOf, next_object: int) -> None:
    await _raise_floor(ledger, chain)
    if chain.next_start < next_object:
        chain.holes.append((chain.next_start, next_object - 1))


async def _raise_floor(ledger: Ledger, chain: ChainOf) -> None:
    """Below the floor nothing is part of the ledger, and nothing is missing."""
    standing = await ledger.floor_set(chain.chain)
    chain.expired_ms = standing.last_ms
    chain.floor = max(chain.floor, standing.floor)
    chain.next_start = max(chain.next_start, standing.floor)


async def _taken(
    ledger: Ledger, chain: ChainOf, link: RawObject, body: bytes, take: Callable[[RawObject, bytes], None]
) -> None:
    try:
        rows = await asyncio.to_thread(proved, link, body)
    except Damaged as damage:
        await _raise_floor(ledger, chain)
        if link.start >= chain.floor:
            chain.damaged.append((link.start, link.end, str(damage)))
        return
    chain.objects += 1
    if link.kind == "gap":
        if link.cause == "retention":
            chain.gaps.append((link.start, link.end))
        return
    try:
        await asyncio.to_thread(take, link, rows)
    except (msgspec.MsgspecError, NotOurs) as error:
        chain.damaged.append((link.start, link.end, f"the object of {link.chain} at {link.start}: {error}"))
        return
    chain.rows += link.count


class Taker:
    """Spills the rows of one entity's objects. One object at a time."""

    def __init__(self, law: Law, chains: Sequence[ChainOf], *, with_states: bool) -> None:
        self._law = law
        self._numbers = {one.chain: number for number, one in enumerate(chains)}
        self._chains = chains
        self._reader = RowReader(law.rules.key)
        self._with_states = with_states
        self.nameless = 0
        self.heartbeats = 0
        self.misfits: list[tuple[int, int]] = []
        """Places of rows that no MERGE can order: without seq, event id or key."""
        self.misfits_more = 0

    def take(self, link: RawObject, rows: bytes) -> None:
        """Raises ``NotOurs`` where a row is not in its place, and then nothing of the object counts."""
        number = self._numbers[link.chain]
        found = [self._reader.row(line) for line in rows.splitlines()]
        silent = _silent(link, found)
        own = self._chains[number]
        own.silent += silent[: max(0, RANGES_MAX - len(own.silent))]
        own.silent_more += max(0, len(silent) - max(0, RANGES_MAX - len(own.silent)))
        changes = [row for row in found if not row.is_heartbeat]
        self.heartbeats += len(found) - len(changes)
        self._spill(number, changes, 0)

    def take_records(self, chain: Chain, records: Sequence[ConsumedRecord]) -> None:
        """What Kafka still has of offsets that no sound object covers: on its topic an event is not lost."""
        number = self._numbers[chain]
        rows = []
        for record in records:
            if is_heartbeat(record):
                continue
            headers = parse_headers(record.headers)
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            rows.append(
                Row(
                    chain.topic,
                    chain.generation,
                    chain.partition,
                    record.offset,
                    headers.event_id,
                    headers.rank,
                    headers.tiebreak,
                    headers.rev,
                    key,
                )
            )
        self._spill(number, rows, KAFKA_ALONE)

    def _spill(self, number: int, rows: Sequence[Row], flags: int) -> None:
        pack = self._law.raw.layout.pack
        pack_state = self._law.raw_states.layout.pack
        packed: list[bytes] = []
        states: list[bytes] = []
        for row in rows:
            has_seq = row.rank is not None and row.tiebreak is not None
            key_hash = None if row.key is None else sha256(row.key.encode("utf-8", "surrogatepass")).digest()[:16]
            if row.event_id is None:
                self.nameless += not flags
            else:
                id_ = packed_id(row.event_id)
                rank, tiebreak = row.rank or 0, row.tiebreak or 0
                own = flags | (HAS_SEQ if has_seq else 0)
                packed.append(pack(id_, (key_hash or NO_KEY)[:8], rank, tiebreak, number, row.offset, own))
                if has_seq and row.rev is not None and key_hash is not None and not flags:
                    rev = min(row.rev, REV_MAX)
                    place = (number, row.offset)
                    states.append(pack_state(key_hash, rank, tiebreak, rev, id_, *place, row.is_delete))
            if not flags and (row.event_id is None or not has_seq or row.rev is None or key_hash is None):
                self._misfit(number, row.offset)
        self._law.raw.add(packed)
        if self._with_states:
            self._law.raw_states.add(states)

    def _misfit(self, number: int, offset: int) -> None:
        if len(self.misfits) < RANGES_MAX:
            self.misfits.append((number, offset))
        else:
            self.misfits_more += 1


def _silent(link: RawObject, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Offsets of an object that have no row. Raises ``NotOurs``."""
    due = link.start
    silent: list[tuple[int, int]] = []
    chain = link.chain
    for row in rows:
        if (row.topic, row.generation, row.partition) != (chain.topic, chain.generation, chain.partition):
            raise NotOurs(f"holds a row of {row.topic}/{row.generation}/{row.partition}")
        if row.offset < due or row.offset > link.end:
            raise NotOurs(f"holds a row of offset {row.offset} where {due} to {link.end} are due")
        if row.offset > due:
            silent.append((due, row.offset - 1))
        due = row.offset + 1
    if due <= link.end:
        silent.append((due, link.end))
    return silent
