"""Everything that is parked, by a strongly consistent scan in bounded memory: for auditors, not for a dashboard.

What a consistent scan does not show has left the table before its page was read: it was published, archived, or lost.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import Struct

from shared.parked.calls import Budget, Calls
from shared.parked.items import Item, ParkedRow, row_of, wire
from shared.parked.leases import Row, read_row
from shared.parked.queries import READ_BUDGET_S
from shared.parked.store import ParkedStore

META = "E#"


class Counted(Struct, frozen=True):
    """One META, without the raw bytes."""

    row: Row
    listed: ParkedRow


class Census:
    """Over the parked table. Raises ``ParkedUnavailable``."""

    def __init__(self, table: Calls, table_name: str, parked: ParkedStore) -> None:
        self._table = table
        self._table_name = table_name
        self._parked = parked

    async def scan(self) -> AsyncIterator[list[Counted]]:
        """Every item of every entity, at most 1 MB at a time."""
        asking = {
            "FilterExpression": "begins_with(sk, :meta)",
            "ExpressionAttributeValues": {":meta": wire(META)},
        }
        async for page in self._pages("scan", asking):
            yield page

    async def of_key(self, entity: str, key_hash: bytes) -> list[Counted]:
        """All that is parked of one key, in the order of its time stamps."""
        asking = {
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :meta)",
            "ExpressionAttributeValues": {":pk": wire(f"P#{entity}#{key_hash.hex()}"), ":meta": wire(META)},
        }
        return [counted async for page in self._pages("query", asking) for counted in page]

    async def unreadable(self, page: Sequence[Counted]) -> list[Counted]:
        """Those whose raw bytes are gone or differ from their digest, and that are parked still."""
        lost: list[Counted] = []
        done = 0
        async for events in self._parked.streams.events([counted.listed for counted in page]):
            for counted, event in zip(page[done : done + len(events)], events, strict=True):
                if event is None and await self._parked.transitions.look(counted.listed) is not None:
                    lost.append(counted)
            done += len(events)
        return lost

    async def _pages(self, operation: str, asking: dict[str, Any]) -> AsyncIterator[list[Counted]]:
        request: dict[str, Any] = {"TableName": self._table_name, "ConsistentRead": True, **asking}
        while True:
            answer = await self._table.call(operation, Budget(READ_BUDGET_S), **request)
            if answer["Items"]:
                yield [_counted(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _counted(item: Item) -> Counted:
    return Counted(read_row(item), row_of(item))
