"""How much is parked, and since when: exact as far as the indexes have come, right within one refresh.

One COUNT over the 32 partitions of ``due`` says how much there is. Few items are then listed from that index, which
knows entity, reason and state; many are counted group by group over ``grp``, 48 queries a group that has any.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeVar

from services.dynamo_retrier.ports import Stopping
from shared import metrics
from shared.aws import open_client
from shared.events.model import Reason
from shared.logs import get_logger
from shared.parked.calls import Budget, Calls, Lanes, ParkedUnavailable
from shared.parked.model import SHARDS, State, due_partition, group_partition

log = get_logger(__name__)

CALLS_IN_FLIGHT = 4  # counting never takes the calls of those who re-drive
BUDGET_S = 10.0
LOAD_MAX = 0.1  # of the time, at most, is spent counting
LISTED_MAX = 10_000

Index = Literal["due", "grp"]
_T = TypeVar("_T")


Groups = dict[tuple[str, Reason], dict[State, int]]


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
        """Raises ``ParkedUnavailable``."""
        groups = await self.count()
        oldest_us = {group: await self._oldest_us(*group) for group in groups}
        for entity in self._entities:
            for reason in Reason:
                _show(entity, reason, groups.get((entity, reason), {}), oldest_us.get((entity, reason)))
        metrics.PARKED_COUNTED.set(time.time())

    async def count(self) -> Groups:
        """Of the configured entities, groups without items left out. Raises ``ParkedUnavailable``."""
        partitions = [due_partition(queue, number) for queue in ("r", "n") for number in range(SHARDS)]
        total = sum(await self._all([self._total("due", partition) for partition in partitions]))
        if total <= LISTED_MAX:
            return self._grouped(await self._all([self._listed(partition) for partition in partitions]))
        groups: Groups = {}
        for entity in self._entities:
            for reason in Reason:
                if any((states := await self._counted(entity, reason)).values()):
                    groups[entity, reason] = states
        return groups

    async def _listed(self, partition: str) -> list[dict[str, Any]]:
        query = self._query("due", partition, ProjectionExpression="entity, reason, #st")
        query["ExpressionAttributeNames"] = {"#st": "st"}
        return [item async for page in self._pages(query) for item in page["Items"]]

    def _grouped(self, listed: Sequence[list[dict[str, Any]]]) -> Groups:
        groups: Groups = {}
        for item in (item for part in listed for item in part):
            if item["entity"]["S"] in self._entities:
                group = item["entity"]["S"], Reason(item["reason"]["S"])
                states = groups.setdefault(group, dict.fromkeys(State, 0))
                states[State(item["st"]["S"])] += 1
        return groups

    async def _counted(self, entity: str, reason: Reason) -> dict[State, int]:
        partitions = [group_partition(entity, reason, number) for number in range(SHARDS)]
        total = sum(await self._all([self._total("grp", partition) for partition in partitions]))
        if total == 0:
            return {}
        held = sum(await self._all([self._total("grp", partition, State.HELD) for partition in partitions]))
        stale = sum(await self._all([self._total("grp", partition, State.STALE) for partition in partitions]))
        return {State.PARKED: max(0, total - held - stale), State.HELD: held, State.STALE: stale}

    async def _total(self, index: Index, partition: str, state: State | None = None) -> int:
        query = self._query(index, partition, Select="COUNT")
        if state is not None:
            query |= {"FilterExpression": "#st = :st", "ExpressionAttributeNames": {"#st": "st"}}
            query["ExpressionAttributeValues"] |= {":st": {"S": state.value}}
        return sum([int(page["Count"]) async for page in self._pages(query)])

    async def _oldest_us(self, entity: str, reason: Reason) -> int | None:
        partitions = [group_partition(entity, reason, number) for number in range(SHARDS)]
        firsts = await self._all([self._first_us(partition) for partition in partitions])
        return min((first for first in firsts if first is not None), default=None)

    async def _first_us(self, partition: str) -> int | None:
        answer = await self._table.call("query", Budget(BUDGET_S), **self._query("grp", partition, Limit=1))
        return next((int(item["gs"]["S"].partition("#")[0]) for item in answer["Items"]), None)

    async def _pages(self, query: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        while True:
            answer = await self._table.call("query", Budget(BUDGET_S), **query)
            yield answer
            if "LastEvaluatedKey" not in answer:
                return
            query = query | {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def _all(self, calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(call) for call in calls]
        return [task.result() for task in started]

    def _query(self, index: Index, partition: str, **more: Any) -> dict[str, Any]:
        return {
            "TableName": self._table_name,
            "IndexName": index,
            "KeyConditionExpression": "dq = :pk" if index == "due" else "gk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": partition}},
            **more,
        }


def _show(entity: str, reason: Reason, states: dict[State, int], oldest_us: int | None) -> None:
    for state in State:
        metrics.PARKED_ITEMS.labels(entity, reason.value, state.value).set(states.get(state, 0))
    if oldest_us is not None:
        metrics.PARKED_OLDEST.labels(entity, reason.value).set(oldest_us / 1_000_000)
    elif (entity, reason.value) in _series():
        metrics.PARKED_OLDEST.remove(entity, reason.value)


def _series() -> Sequence[tuple[str, ...]]:
    """The label sets that are shown now."""
    return [tuple(sample.labels.values()) for sample in next(iter(metrics.PARKED_OLDEST.collect())).samples]
