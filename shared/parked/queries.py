"""What people and the books ask of the parked store. Listings and counts read the index ``grp``, 16 shards a group."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from shared.events.model import Reason
from shared.parked.calls import Budget, Calls
from shared.parked.items import Item, ParkedDetail, ParkedId, ParkedRow, decompress, detail_of, id_of, row_of
from shared.parked.model import SHARDS, State, due_partition, group_bound, group_partition, shard

READ_BUDGET_S = 30.0  # of one call, pauses included
SCAN_SEGMENTS = 4

_T = TypeVar("_T")


class ParkedFilter(Struct, frozen=True, kw_only=True):
    """Which parked items to list; ``since_us`` (inclusive) and ``until_us`` (exclusive) mean when first parked."""

    entities: tuple[str, ...]
    reasons: tuple[Reason, ...] = tuple(Reason)
    state: State | None = None
    owner: str | None = None
    path: str | None = None
    since_us: int | None = None
    until_us: int | None = None


class ParkedPage(Struct, frozen=True):
    rows: list[ParkedRow]
    after: str | None  # None: that was all


class Queries:
    def __init__(self, table: Calls, bucket: Calls, table_name: str, bucket_name: str) -> None:
        self._table = table
        self._bucket = bucket
        self._table_name = table_name
        self._bucket_name = bucket_name

    async def counts(self, entities: Sequence[str]) -> dict[tuple[str, Reason], int]:
        groups = [(entity, reason) for entity in entities for reason in Reason]
        found = await _all([self._count_group(entity, reason) for entity, reason in groups])
        return {group: count for group, count in zip(groups, found, strict=True) if count}

    async def find(self, wanted: ParkedFilter, limit: int, after: str | None) -> ParkedPage:
        """The sort keys of all shards share one order, so one key tells every shard where to go on."""
        assert limit >= 1, "a page holds at least one row"
        partitions = [
            group_partition(entity, reason, number)
            for entity in wanted.entities
            for reason in wanted.reasons
            for number in range(SHARDS)
        ]
        found = await _all([self._find_in(partition, wanted, limit, after) for partition in partitions])
        items = sorted((item for part in found for item in part), key=_place)
        rows = [row_of(item) for item in items[:limit]]
        return ParkedPage(rows=rows, after=_place(items[limit - 1]) if len(items) >= limit else None)

    async def show(self, item_id: str) -> list[ParkedDetail]:
        """No index is keyed by event id, but the shard is: reads a sixteenth of the index ``due``."""
        partitions = [due_partition(queue, shard(item_id)) for queue in ("r", "n")]
        keys = await _all([self._keys_of(partition, item_id) for partition in partitions])
        details = await _all([self._detail(key) for part in keys for key in part])
        return sorted((detail for detail in details if detail is not None), key=lambda detail: detail.rev)

    async def scan_ids(self) -> list[ParkedId]:
        parts = await _all([self._scan(segment) for segment in range(SCAN_SEGMENTS)])
        return [id_of(item) for part in parts for item in part]

    async def _count_group(self, entity: str, reason: Reason) -> int:
        counts = await _all([self._count(group_partition(entity, reason, number)) for number in range(SHARDS)])
        return sum(counts)

    async def _count(self, partition: str) -> int:
        count = 0
        query = self._query("grp", "gk = :gk", {":gk": {"S": partition}}, Select="COUNT")
        start: dict[str, Any] = {}
        while True:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def _find_in(self, partition: str, wanted: ParkedFilter, limit: int, after: str | None) -> list[Item]:
        query = group_query(self._table_name, partition, wanted, after)
        return await self._gather({**query, "Limit": limit + 1}, limit, skip=after)

    async def _gather(self, query: dict[str, Any], limit: int, skip: str | None) -> list[Item]:
        """At most ``limit`` items; pages may come empty because filters apply after the read."""
        found: list[Item] = []
        start: dict[str, Any] = {}
        while len(found) < limit:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            found += [item for item in answer["Items"] if _place(item) != skip]
            if "LastEvaluatedKey" not in answer:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return found[:limit]

    async def _keys_of(self, partition: str, item_id: str) -> list[Item]:
        values = {":dq": {"S": partition}, ":id": {"S": f"#{item_id}"}}
        filters = {"FilterExpression": "contains(sk, :id)", "ProjectionExpression": "pk, sk"}
        query = self._query("due", "dq = :dq", values, **filters)
        found: list[Item] = []
        start: dict[str, Any] = {}
        while True:
            answer = await self._table.call("query", Budget(READ_BUDGET_S), **query, **start)
            found += [item for item in answer["Items"] if item["sk"]["S"].split("#")[2] == item_id]
            if "LastEvaluatedKey" not in answer:
                return [{"pk": item["pk"], "sk": item["sk"]} for item in found]
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def _detail(self, key: Item) -> ParkedDetail | None:
        item = await self._get(key)
        if item is None:
            return None  # gone since the index was read
        if "body" in item:
            body = await self._get({"pk": item["pk"], "sk": item["body"]})
            return None if body is None else detail_of(item, decompress(body["raw"]["B"]))
        answer = await self._bucket.call(
            "get_object", Budget(READ_BUDGET_S), Bucket=self._bucket_name, Key=item["s3_uri"]["S"]
        )
        async with answer["Body"] as stream:
            return detail_of(item, decompress(await stream.read()))

    async def _get(self, key: Item) -> Item | None:
        reading: dict[str, Any] = {"TableName": self._table_name, "Key": key, "ConsistentRead": True}
        answer = await self._table.call("get_item", Budget(READ_BUDGET_S), **reading)
        found: Item | None = answer.get("Item")
        return found

    async def _scan(self, segment: int) -> list[Item]:
        names = {f"#{name}": name for name in ("entity", "item", "id", "reason", "st", "rev", "maybe_sent")}
        scan: dict[str, Any] = {
            "TableName": self._table_name,
            "ConsistentRead": True,
            "Segment": segment,
            "TotalSegments": SCAN_SEGMENTS,
            "FilterExpression": "begins_with(sk, :meta)",
            "ExpressionAttributeValues": {":meta": {"S": "E#"}},
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
        }
        found: list[Item] = []
        while True:
            answer = await self._table.call("scan", Budget(READ_BUDGET_S), **scan)
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return found
            scan["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _query(self, index: str, condition: str, values: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "TableName": self._table_name,
            "IndexName": index,
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": values,
            **more,
        }


def group_query(table: str, partition: str, wanted: ParkedFilter, after: str | None = None) -> dict[str, Any]:
    """One partition of the index ``grp``, in order of first parking, from ``after`` (inclusive) on."""
    low = max(after or "", group_bound(wanted.since_us or 0))
    high = group_bound(wanted.until_us) if wanted.until_us is not None else ":"  # ':' follows the digits; no item is it
    values: dict[str, Any] = {":gk": {"S": partition}, ":low": {"S": low}, ":high": {"S": high}}
    query: dict[str, Any] = {
        "TableName": table,
        "IndexName": "grp",
        "KeyConditionExpression": "gk = :gk AND gs BETWEEN :low AND :high",
        "ExpressionAttributeValues": values,
    }
    filters = {"st": wanted.state, "owner": wanted.owner, "path": wanted.path}
    given = {name: value for name, value in filters.items() if value is not None}
    if given:
        query["FilterExpression"] = " AND ".join(f"#{name} = :{name}" for name in given)
        query["ExpressionAttributeNames"] = {f"#{name}": name for name in given}
        values |= {f":{name}": {"S": str(value)} for name, value in given.items()}
    return query


def _place(item: Item) -> str:
    return str(item["gs"]["S"])


async def _all(calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers in order; the first failure ends the rest. How many run at once is the table's own limit."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call, name="parked-read") for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
