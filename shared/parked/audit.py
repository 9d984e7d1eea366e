"""Who did what to parked events, when and why: items ``A#<month>`` of the parked table, written before the deed.

An entry without an end is of a run that was killed, or is still at work; what it did stands in its job, if it has one.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Literal

import msgspec
from botocore.exceptions import ClientError
from msgspec import Struct
from msgspec.structs import replace

from shared.parked.calls import Budget, Calls
from shared.parked.items import Item, wire

BUDGET_S = 20.0

Action = Literal["redrive", "hold", "edit", "discard", "export"]
Outcome = Literal["begun", "done", "failed"]


class Entry(Struct, frozen=True, kw_only=True):
    """One run of one command. ``what`` is its filter; ``counts`` how many events met which fate."""

    id: str
    at_ms: int
    who: str
    action: Action
    why: str
    what: dict[str, Any]
    job: str = ""
    outcome: Outcome = "begun"
    ended_ms: int | None = None
    counts: dict[str, int] = {}
    error: str = ""


class AuditTrail:
    """Entries are created and ended once, never changed or deleted. Raises ``ParkedUnavailable``."""

    def __init__(self, table: Calls, table_name: str, clock_ms: Callable[[], int]) -> None:
        self._table = table
        self._table_name = table_name
        self._clock_ms = clock_ms

    async def begin(self, action: Action, who: str, why: str, what: dict[str, Any], job: str = "") -> Entry:
        """Durable when it returns: nothing is to be done before."""
        at_ms = self._clock_ms()
        entry = Entry(id=f"a{token_hex(5)}", at_ms=at_ms, who=who, action=action, why=why, what=what, job=job)
        await self._put(entry, "attribute_not_exists(pk)")
        return entry

    async def end(self, entry: Entry, outcome: Outcome, counts: dict[str, int], error: str = "") -> Entry:
        """Once."""
        ended = replace(entry, outcome=outcome, counts=counts, error=error, ended_ms=self._clock_ms())
        await self._put(ended, "attribute_not_exists(ended)")
        return ended

    async def entries(self, since_ms: int, limit: int) -> list[Entry]:
        """Newest first, at most ``limit``."""
        found: list[Entry] = []
        for month in _months(self._clock_ms(), since_ms):
            found += await self._month(month, since_ms, limit - len(found))
            if len(found) >= limit:
                break
        return found

    async def _month(self, month: str, since_ms: int, limit: int) -> list[Entry]:
        query: dict[str, Any] = {
            "TableName": self._table_name,
            "KeyConditionExpression": "pk = :pk AND sk >= :since",
            "ExpressionAttributeValues": {":pk": wire(f"A#{month}"), ":since": wire(f"{since_ms:013d}")},
            "ScanIndexForward": False,
            "ConsistentRead": True,
        }
        found: list[Entry] = []
        while len(found) < limit:
            answer = await self._table.call("query", Budget(BUDGET_S), Limit=limit - len(found), **query)
            found += [msgspec.json.decode(item["entry"]["S"], type=Entry) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                break
            query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return found

    async def _put(self, entry: Entry, condition: str) -> None:
        item = _item(entry)
        put: dict[str, Any] = {"TableName": self._table_name, "Item": item, "ConditionExpression": condition}
        put["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        try:
            await self._table.call("put_item", Budget(BUDGET_S), **put)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            if error.response.get("Item", {}).get("entry") != item["entry"]:  # else our own, whose answer was lost
                raise RuntimeError(f"the audit entry {entry.id} was written by somebody else") from error


def _item(entry: Entry) -> Item:
    month = datetime.fromtimestamp(entry.at_ms // 1000, UTC).strftime("%Y-%m")
    item = {
        "pk": wire(f"A#{month}"),
        "sk": wire(f"{entry.at_ms:013d}#{entry.id}"),
        "entry": wire(msgspec.json.encode(entry).decode()),
    }
    return item if entry.ended_ms is None else item | {"ended": wire(entry.ended_ms)}


def _months(from_ms: int, back_to_ms: int) -> Iterator[str]:
    """Newest first."""
    newest, oldest = (datetime.fromtimestamp(at_ms // 1000, UTC) for at_ms in (from_ms, max(0, back_to_ms)))
    year, month = newest.year, newest.month
    while (year, month) >= (oldest.year, oldest.month):
        yield f"{year:04d}-{month:02d}"
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
