"""All rows of a selection, one partition of the index ``grp`` after the other, from any place on.

Within a partition rows come oldest first. A row that is woken or held keeps its place; one that gets another reason
moves to another partition, and may be met there again.
"""

from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from shared.parked.calls import Budget, Calls
from shared.parked.items import ParkedRow, row_of
from shared.parked.model import group_sort
from shared.parked.queries import READ_BUDGET_S, group_query
from shared.parked.selection import Selection


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


class Walk:
    """Reads the index only: what it shows is a hint."""

    def __init__(self, table: Calls, table_name: str) -> None:
        self._table = table
        self._table_name = table_name

    async def pages(self, selection: Selection, start: Position = START, above: str = "") -> AsyncIterator[Page]:
        """At most 1 MB of the index at a time. ``above``: only rows whose ``place_of`` is greater, in all partitions.

        Raises ``ParkedUnavailable``.
        """
        for number, partition in enumerate(selection.partitions):
            if number < start.partition:
                continue
            floor = max(above, start.after if number == start.partition else "")
            query = group_query(self._table_name, partition, selection.filter, floor or None)
            async for rows in self._rows(query):
                if wanted := [row for row in rows if place_of(row) > floor and selection.takes(row)]:
                    yield Page(number, wanted)

    async def count(self, selection: Selection) -> int:
        """How many it takes now, as the index has it."""
        return sum([len(page.rows) async for page in self.pages(selection)])

    async def _rows(self, query: dict[str, Any]) -> AsyncIterator[list[ParkedRow]]:
        start: dict[str, Any] = {}
        while True:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            yield [row_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


def place_of(row: ParkedRow) -> str:
    """Unique over all partitions; oldest first."""
    return group_sort(row.first_us, row.item_id, row.rev)
