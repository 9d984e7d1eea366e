"""All parked items that fit a filter, however many: page by page from the index ``grp``, in bounded memory.

A listing merges its shards to be in order, and so reads each page many times over; this reads every row once, shard
after shard. Rows are eventually consistent, a hint; events are read from the table itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from msgspec import structs

from shared.parked.bodies import Bodies, BodyMissing, unpacked
from shared.parked.calls import Budget, Calls, Trouble, pauses
from shared.parked.items import Item, ParkedRow, row_of
from shared.parked.leases import Row, read_row
from shared.parked.model import SHARDS, ParkedEvent, group_partition
from shared.parked.queries import READ_BUDGET_S, ParkedFilter, group_query

BATCH_KEYS = 100  # of BatchGetItem: the service's limit
CHUNK_RAW_BYTES_MAX = 8 * 1024 * 1024  # of the events in hand; a single larger one is a chunk of its own
READ_AHEAD = 4
"""Chunks under way while one is worked on, all of them together no larger than one may be."""

_Key = tuple[str, str]
_T = TypeVar("_T")


class ParkedRows(Protocol):
    """What reading all needs of ``ParkedStreams``."""

    def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]:
        """Every row once, in pages. Raises ``ParkedUnavailable``."""

    def events(self, rows: Sequence[ParkedRow]) -> AsyncIterator[list[ParkedEvent | None]]:
        """In order, in chunks; ``None``: gone, or its body is. Raises ``ParkedUnavailable``."""


class Readable(Protocol):
    """What loading one event needs of ``Transitions``. Both raise ``ParkedUnavailable``."""

    async def look(self, row: ParkedRow, /) -> Row | None:
        """META, read consistently; ``None``: gone."""

    async def body(self, row: Row, /) -> bytes:
        """The raw bytes of the newest rev. Raises ``BodyMissing``."""


class ParkedStreams:
    def __init__(self, table: Calls, table_name: str, bodies: Bodies) -> None:
        self._table = table
        self._table_name = table_name
        self._bodies = bodies

    async def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]:
        """Pages of at most 1 MB as the index has it, none empty. Raises ``ParkedUnavailable``."""
        for entity in wanted.entities:
            for reason in wanted.reasons:
                for number in range(SHARDS):
                    query = group_query(self._table_name, group_partition(entity, reason, number), wanted)
                    async for page in self._pages(query):
                        yield page

    async def events(self, rows: Sequence[ParkedRow]) -> AsyncGenerator[list[ParkedEvent | None], None]:
        """Complete with the newest rev's bytes, in order, a hundred rows or 8 MB at a time; ``None``: gone, or its body
        is. Read consistently, in batches, and ahead: close it where it isn't read to its end. Raises
        ``ParkedUnavailable``.
        """
        ahead = _Ahead[list[ParkedEvent | None]](CHUNK_RAW_BYTES_MAX)
        async with aclosing(self._metas(rows)) as metas, aclosing(ahead):
            async for chunk in metas:
                raw_bytes = _raw_bytes(chunk)
                while not ahead.has_room(raw_bytes):
                    yield await ahead.first()
                ahead.begin(self._complete(chunk), raw_bytes)
            while ahead:
                yield await ahead.first()

    async def _metas(self, rows: Sequence[ParkedRow]) -> AsyncGenerator[list[Item | None], None]:
        """Cut so that their events fit in memory together."""
        parts = [
            [(row.pk, row.sk) for row in rows[start : start + BATCH_KEYS]] for start in range(0, len(rows), BATCH_KEYS)
        ]
        left = iter(parts)
        async with aclosing(_Ahead[dict[_Key, Item]](0)) as ahead:
            for keys in parts:
                while ahead.has_room(0) and (following := next(left, None)) is not None:
                    ahead.begin(self._read(following), 0)
                found = await ahead.first()
                for chunk in _chunks(found.get(key) for key in keys):
                    yield chunk

    async def _complete(self, metas: list[Item | None]) -> list[ParkedEvent | None]:
        rows = [None if item is None else read_row(item) for item in metas]
        packed = await self._read(key for row in rows if row is not None and (key := _body_key(row)) is not None)
        events = await asyncio.to_thread(lambda: [None if row is None else _event(row, packed) for row in rows])
        for index, row in enumerate(rows):
            if row is not None and row.newest.object_key is not None:
                events[index] = await self._from_bucket(row)
        return events

    async def _from_bucket(self, row: Row) -> ParkedEvent | None:
        try:
            return structs.replace(row.event, raw=await self._bodies.read(row, row.newest))
        except BodyMissing:
            return None

    async def _pages(self, query: dict[str, Any]) -> AsyncIterator[list[ParkedRow]]:
        start: dict[str, Any] = {}
        while True:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            if answer["Items"]:
                yield [row_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def _read(self, keys: Iterable[_Key]) -> dict[_Key, Item]:
        """At most ``BATCH_KEYS``. What a batch leaves unread is asked for again."""
        pending = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in dict.fromkeys(keys)]
        found: dict[_Key, Item] = {}
        budget, waits = Budget(READ_BUDGET_S), pauses()
        while pending:
            request = {self._table_name: {"Keys": pending, "ConsistentRead": True}}
            answer = await self._table.call("batch_get_item", budget, RequestItems=request)
            items = answer["Responses"].get(self._table_name, [])
            found |= {(item["pk"]["S"], item["sk"]["S"]): item for item in items}
            pending = answer.get("UnprocessedKeys", {}).get(self._table_name, {}).get("Keys", [])
            if pending and not items:  # not the 16 MB that one answer holds, but throttling
                trouble = Trouble(f"table {self._table_name!r}: a batch was not read", self._table_name)
                await self._table.back_off(next(waits), trouble, budget)
        return found


async def load(row: ParkedRow, parked: Readable) -> ParkedEvent | None:
    """One event in full; ``None``: it is gone, or its body is. Raises ``ParkedUnavailable``."""
    found = await parked.look(row)
    if found is None:
        return None
    try:
        return structs.replace(found.event, raw=await parked.body(found))
    except BodyMissing:
        return None


class _Ahead(Generic[_T]):
    """Reads that have begun and are wanted later, in order: at most ``READ_AHEAD``, and ``bytes_max`` together."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._begun: deque[tuple[asyncio.Task[_T], int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._begun)

    def has_room(self, own_bytes: int) -> bool:
        """One alone always has."""
        return not self._begun or (len(self._begun) < READ_AHEAD and self._bytes + own_bytes <= self._bytes_max)

    def begin(self, read: Coroutine[Any, Any, _T], own_bytes: int) -> None:
        self._begun.append((asyncio.create_task(read, name="parked-read-ahead"), own_bytes))
        self._bytes += own_bytes

    async def first(self) -> _T:
        task, own_bytes = self._begun[0]
        found = await task
        self._begun.popleft()
        self._bytes -= own_bytes
        return found

    async def aclose(self) -> None:
        tasks = [task for task, _ in self._begun]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raw_bytes(chunk: Iterable[Item | None]) -> int:
    return sum(0 if item is None else int(item["raw_bytes"]["N"]) for item in chunk)


def _chunks(metas: Iterable[Item | None]) -> Iterator[list[Item | None]]:
    """Cut so that their raw bytes fit in memory together."""
    chunk: list[Item | None] = []
    raw_bytes = 0
    for item in metas:
        own_bytes = _raw_bytes([item])
        if chunk and raw_bytes + own_bytes > CHUNK_RAW_BYTES_MAX:
            yield chunk
            chunk, raw_bytes = [], 0
        chunk.append(item)
        raw_bytes += own_bytes
    if chunk:
        yield chunk


def _event(row: Row, packed: dict[_Key, Item]) -> ParkedEvent | None:
    body = packed.get((row.pk, row.newest.sk or ""))
    if body is None:
        return None
    try:
        return structs.replace(row.event, raw=unpacked(bytes(body["raw"]["B"]), row.newest))
    except BodyMissing:
        return None


def _body_key(row: Row) -> _Key | None:
    """``None``: the body lies in the bucket."""
    return None if row.newest.sk is None else (row.pk, row.newest.sk)
