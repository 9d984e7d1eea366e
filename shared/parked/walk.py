"""All rows of a selection, one partition of the index ``grp`` after the other, from any place on.

Within a partition rows come oldest first. A row that is woken or held keeps its place; one that gets another reason
moves to another partition, and may be met there again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

from msgspec import Struct

from shared.parked.calls import Budget, Calls
from shared.parked.items import ParkedRow, row_of
from shared.parked.model import group_sort
from shared.parked.queries import READ_BUDGET_S, group_query
from shared.parked.selection import Selection

READ_AHEAD = 16
"""Partitions whose first megabyte is in memory before its turn: most partitions are empty."""

_Query = dict[str, Any]
_Answer = dict[str, Any]


class Position(Struct, frozen=True, omit_defaults=True):
    """How far a walk has come: the shards before ``partition`` are complete, those after it untouched."""

    partition: int = 0
    after: str = ""
    """Place of the last row that is settled within it."""


START = Position()


class Page(Struct, frozen=True):
    """Rows of one partition that the selection takes, never none."""

    partition: int
    rows: list[ParkedRow]


class _Part(Struct, frozen=True):
    floor: str
    query: _Query


class Walk:
    """Reads the index only: what it shows is a hint."""

    def __init__(self, table: Calls, table_name: str) -> None:
        self._table = table
        self._table_name = table_name

    async def pages(self, selection: Selection, start: Position = START, above: str = "") -> AsyncIterator[Page]:
        """At most 1 MB of the index at a time. ``above``: only rows whose ``place_of`` is greater, in all partitions.

        Raises ``ParkedUnavailable``.
        """
        firsts: deque[tuple[int, _Part, asyncio.Task[_Answer]]] = deque()
        left = enumerate(selection.partitions[start.partition :], start.partition)
        try:
            while True:
                for number, partition in islice(left, READ_AHEAD - len(firsts)):
                    floor = max(above, start.after if number == start.partition else "")
                    part = _Part(floor, group_query(self._table_name, partition, selection.filter, floor or None))
                    firsts.append((number, part, asyncio.create_task(self._ask(part.query), name="parked-walk")))
                if not firsts:
                    return
                number, part, first = firsts.popleft()
                async for rows in self._rows(part.query, await first):
                    if wanted := [row for row in rows if place_of(row) > part.floor and selection.takes(row)]:
                        yield Page(number, wanted)
        finally:
            for _, _, first in firsts:
                first.cancel()
            await asyncio.gather(*(first for _, _, first in firsts), return_exceptions=True)

    async def count(self, selection: Selection) -> int:
        """How many it takes now, as the index has it."""
        return sum([len(page.rows) async for page in self.pages(selection)])

    async def _rows(self, query: _Query, answer: _Answer) -> AsyncIterator[list[ParkedRow]]:
        while True:
            yield [row_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            answer = await self._ask({**query, "ExclusiveStartKey": answer["LastEvaluatedKey"]})

    async def _ask(self, query: _Query) -> _Answer:
        return await self._table.call("query", Budget(READ_BUDGET_S), **query)


def place_of(row: ParkedRow) -> str:
    """Unique over all partitions; oldest first."""
    return group_sort(row.first_us, row.item_id, row.rev)
