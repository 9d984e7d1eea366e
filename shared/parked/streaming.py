"""All parked items that fit a filter, however many: page by page from the index ``grp``, in bounded memory.

A listing merges its shards to be in order, and so reads each page many times over; this reads every row once, shard
after shard. Eventually consistent: what it shows is a hint, the table decides.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from msgspec import structs

from shared.parked.bodies import BodyMissing
from shared.parked.calls import Budget, Calls
from shared.parked.items import ParkedRow, row_of
from shared.parked.leases import Row
from shared.parked.model import SHARDS, ParkedEvent, group_partition
from shared.parked.queries import READ_BUDGET_S, ParkedFilter, group_query

LOADS_IN_FLIGHT = 8  # bodies held at once, at most


class Readable(Protocol):
    """What loading needs of ``Transitions``. Both raise ``ParkedUnavailable``."""

    async def look(self, row: ParkedRow, /) -> Row | None:
        """META, read consistently; ``None``: gone."""

    async def body(self, row: Row, /) -> bytes:
        """The raw bytes of the newest rev. Raises ``BodyMissing``."""


class ParkedStreams:
    def __init__(self, table: Calls, table_name: str) -> None:
        self._table = table
        self._table_name = table_name

    async def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]:
        """Pages of at most 1 MB as the index has it, none empty. Raises ``ParkedUnavailable``."""
        for entity in wanted.entities:
            for reason in wanted.reasons:
                for number in range(SHARDS):
                    query = group_query(self._table_name, group_partition(entity, reason, number), wanted)
                    async for page in self._pages(query):
                        yield page

    async def _pages(self, query: dict[str, Any]) -> AsyncIterator[list[ParkedRow]]:
        start: dict[str, Any] = {}
        while True:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            if answer["Items"]:
                yield [row_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


async def load(row: ParkedRow, parked: Readable) -> ParkedEvent | None:
    """The event in full; ``None``: it is gone, or its body is. Raises ``ParkedUnavailable``."""
    found = await parked.look(row)
    if found is None:
        return None
    try:
        return structs.replace(found.event, raw=await parked.body(found))
    except BodyMissing:
        return None


async def loaded(
    pages: AsyncIterator[Sequence[ParkedRow]], parked: Readable
) -> AsyncIterator[list[ParkedEvent | None]]:
    """The events of these rows, ``LOADS_IN_FLIGHT`` at a time."""
    async for page in pages:
        for start in range(0, len(page), LOADS_IN_FLIGHT):
            rows = page[start : start + LOADS_IN_FLIGHT]
            yield list(await asyncio.gather(*(load(row, parked) for row in rows)))
