"""How much is parked, and since when: exact counts by COUNT over the index ``grp``, right within one refresh."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from msgspec import Struct

from services.dynamo_retrier.ports import Stopping
from shared import metrics
from shared.aws import open_client
from shared.events.model import Reason
from shared.logs import get_logger
from shared.parked.calls import Budget, Calls, Lanes, ParkedUnavailable
from shared.parked.model import SHARDS, State, group_partition

log = get_logger(__name__)

CALLS_IN_FLIGHT = 4  # counting never takes the calls of those who re-drive
BUDGET_S = 10.0
LOAD_MAX = 0.1  # of the time, at most, is spent counting


class Group(Struct, frozen=True):
    """All items of one entity and reason."""

    states: dict[State, int]
    oldest_us: int | None


class Census:
    """Counts the parked items of the entities that are configured."""

    def __init__(self, table: Calls, table_name: str, entities: Iterable[str]) -> None:
        self._table = table
        self._table_name = table_name
        self._entities = tuple(entities)

    @classmethod
    async def open(cls, table_name: str, entities: Iterable[str], stack: AsyncExitStack) -> "Census":
        client = await open_client("dynamodb", stack, connections_max=CALLS_IN_FLIGHT, read_timeout_s=5)
        return cls(Calls(client, table_name, Lanes(CALLS_IN_FLIGHT)), table_name, entities)

    async def run(self, stop: Stopping, refresh_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Count and show, again and again until ``stop``. While the table is away the last figures stand."""
        while True:
            began_s = clock_s()
            try:
                await self.refresh()
            except ParkedUnavailable as error:
                log.warning("parked_not_counted", why=str(error))
            if await stop.wait(max(refresh_s, (clock_s() - began_s) / LOAD_MAX)):
                return

    async def refresh(self) -> None:
        """Raises ``ParkedUnavailable``; the figures of groups counted until then are new."""
        for entity in self._entities:
            for reason in Reason:
                _show(entity, reason, await self.count(entity, reason))
        metrics.PARKED_COUNTED.set(time.time())

    async def count(self, entity: str, reason: Reason) -> Group:
        """Raises ``ParkedUnavailable``."""
        async with asyncio.TaskGroup() as tasks:
            shards = [
                tasks.create_task(self._shard(group_partition(entity, reason, number))) for number in range(SHARDS)
            ]
        groups = [task.result() for task in shards]
        oldest = [group.oldest_us for group in groups if group.oldest_us is not None]
        states = {state: sum(group.states[state] for group in groups) for state in State}
        return Group(states, min(oldest, default=None))

    async def _shard(self, partition: str) -> Group:
        total = await self._total(partition)
        if total == 0:
            return Group(dict.fromkeys(State, 0), None)
        held, stale = await self._total(partition, State.HELD), await self._total(partition, State.STALE)
        states = {State.PARKED: max(0, total - held - stale), State.HELD: held, State.STALE: stale}
        return Group(states, await self._oldest_us(partition))

    async def _total(self, partition: str, state: State | None = None) -> int:
        query = self._query(partition, Select="COUNT")
        if state is not None:
            query |= {"FilterExpression": "#st = :st", "ExpressionAttributeNames": {"#st": "st"}}
            query["ExpressionAttributeValues"] |= {":st": {"S": state.value}}
        count = 0
        while True:
            answer = await self._table.call("query", Budget(BUDGET_S), **query)
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def _oldest_us(self, partition: str) -> int | None:
        answer = await self._table.call("query", Budget(BUDGET_S), **self._query(partition, Limit=1))
        return next((int(item["gs"]["S"].partition("#")[0]) for item in answer["Items"]), None)

    def _query(self, partition: str, **more: Any) -> dict[str, Any]:
        return {
            "TableName": self._table_name,
            "IndexName": "grp",
            "KeyConditionExpression": "gk = :gk",
            "ExpressionAttributeValues": {":gk": {"S": partition}},
            **more,
        }


def _show(entity: str, reason: Reason, group: Group) -> None:
    for state, count in group.states.items():
        metrics.PARKED_ITEMS.labels(entity, reason.value, state.value).set(count)
    if group.oldest_us is not None:
        metrics.PARKED_OLDEST.labels(entity, reason.value).set(group.oldest_us / 1_000_000)
    elif (entity, reason.value) in _series():
        metrics.PARKED_OLDEST.remove(entity, reason.value)


def _series() -> Sequence[tuple[str, ...]]:
    """The label sets that are shown now."""
    return [tuple(sample.labels.values()) for sample in next(iter(metrics.PARKED_OLDEST.collect())).samples]
