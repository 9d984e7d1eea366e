"""A parked table for tests of its transitions: time by hand, lost answers, and one event loop for many tests."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from hashlib import sha256
from typing import Any, Literal, TypeVar

from botocore.exceptions import ReadTimeoutError
from msgspec import Struct
from msgspec.structs import replace

from shared.aws import open_client
from shared.events.model import Reason
from shared.parked.items import Item
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, meta_key, partition_key
from shared.parked.store import ParkedSettings, ParkedStore
from shared.parked.transitions import Clocks, Transitions
from tests.fakes.dynamodb_proxy import unique

AT_MS = 1_760_000_000_000
WRITES = frozenset({"update_item", "delete_item", "put_item"})
Loss = Literal["", "request", "answer"]

_T = TypeVar("_T")


class RowPlace(Struct, frozen=True):
    pk: str
    sk: str


class HandClock:
    """Wall and monotonic time that move only when told to."""

    def __init__(self) -> None:
        self.now_ms = AT_MS

    def advance(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)

    @property
    def clocks(self) -> Clocks:
        return Clocks(wall_ms=lambda: self.now_ms, monotonic_s=lambda: self.now_ms / 1000, bound_s=None)


class LossyDynamo:
    """A DynamoDB client whose next write is lost on its way there, or whose answer is lost on its way back."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.meta = client.meta
        self.lose: Loss = ""
        self.before_write: Callable[[], Awaitable[object]] | None = None  # once, as if another worker came between

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)
        return self._write(method) if operation in WRITES else method

    def _write(self, method: Any) -> Any:
        async def write(**parameters: Any) -> Any:
            between, self.before_write = self.before_write, None
            if between is not None:
                await between()
            lost, self.lose = self.lose, ""
            if lost == "request":
                raise ReadTimeoutError(endpoint_url="http://lost")
            try:
                return await method(**parameters)
            finally:
                if lost == "answer":  # a refusal too
                    raise ReadTimeoutError(endpoint_url="http://lost")

        return write


class ParkedBench:
    """``transitions`` meets the losses; ``hasty`` gives up at the first one, as a caller does whose budget is spent."""

    def __init__(self, store: ParkedStore, hasty: ParkedStore, client: Any, lossy: LossyDynamo, table: str) -> None:
        self.store = store
        self.client = client
        self.lossy = lossy
        self.table = table
        self.clock = HandClock()
        self.transitions: Transitions = store.transitions_by(self.clock.clocks)
        self.hasty: Transitions = hasty.transitions_by(self.clock.clocks)
        self.loop_runner: asyncio.Runner

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop_runner.run(call)

    async def parked(self, number: int, **changes: Any) -> Row:
        event = event_of(number, at_us=self.clock.now_ms * 1000, **changes)
        await self.store.park([event])
        row = await self.row(event)
        assert row is not None
        return row

    async def item(self, event: ParkedEvent) -> Item | None:
        key = {"pk": {"S": partition_key(event)}, "sk": {"S": meta_key(event, event.rev)}}
        answer = await self.client.get_item(TableName=self.table, Key=key, ConsistentRead=True)
        found: Item | None = answer.get("Item")
        return found

    async def items(self, events: list[ParkedEvent]) -> list[Item | None]:
        keys = [{"pk": {"S": partition_key(event)}, "sk": {"S": meta_key(event, event.rev)}} for event in events]
        request = {self.table: {"Keys": keys, "ConsistentRead": True}}
        answer = await self.client.batch_get_item(RequestItems=request)
        found = {item["sk"]["S"]: item for item in answer["Responses"][self.table]}
        return [found.get(key["sk"]["S"]) for key in keys]

    async def row(self, event: ParkedEvent) -> Row | None:
        return await self.transitions.look(self.place(event))

    def place(self, event: ParkedEvent) -> "RowPlace":
        return RowPlace(partition_key(event), meta_key(event, event.rev))

    async def tamper(self, row: Row, expression: str, **values: Any) -> None:
        """Change an item past all conditions."""
        names = {f"#{word.strip('#,')}": word.strip("#,") for word in expression.split() if word.startswith("#")}
        more = {"ExpressionAttributeValues": {f":{name}": value for name, value in values.items()}} if values else {}
        await self.client.update_item(
            TableName=self.table,
            Key={"pk": {"S": row.pk}, "sk": {"S": row.sk}},
            UpdateExpression=expression,
            ExpressionAttributeNames=names,
            **more,
        )

    async def items_of(self, row: "Row | RowPlace", prefix: str) -> list[Item]:
        """Of the row's partition: ``E#`` rows, ``B#`` bodies."""
        answer = await self.client.query(
            TableName=self.table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
            ExpressionAttributeValues={":pk": {"S": row.pk}, ":prefix": {"S": prefix}},
            ConsistentRead=True,
        )
        found: list[Item] = answer["Items"]
        return found


def event_of(number: int, **changes: Any) -> ParkedEvent:
    """Each number has a row key, and so a partition, of its own."""
    event = ParkedEvent(
        entity="payments",
        topic="cdc.payments",
        key=str(number),
        key_hash=sha256(b"key %d" % number).digest()[:16],
        updated_us=AT_MS * 1000 - number,
        event_id=sha256(b"event %d" % number).hexdigest()[:32],
        rank=AT_MS * 1000 + number,
        tiebreak=0,
        reason=Reason.INVALID,
        path="/amount",
        detail="expected a decimal",
        raw=b'{"id": %d, "amount": "ten"}' % number,
        subject="cdc.payments-value",
        fingerprint="ab" * 8,
        owner="payments-team",
        at_us=AT_MS * 1000,
    )
    return replace(event, **changes)


@contextmanager
def parked_bench(*, with_bucket: bool = False, body_bytes_max: int = 1_000) -> Iterator[ParkedBench]:
    """A table of its own on the stack that the environment names; removed at the end."""
    with asyncio.Runner() as runner:
        resources = AsyncExitStack()
        bench = runner.run(_open(resources, body_bytes_max))
        bench.loop_runner = runner
        try:
            assert runner.run(bench.store.ensure_table())
            if with_bucket:
                runner.run(bench.store.ensure_bucket())
            yield bench
        finally:
            runner.run(bench.client.delete_table(TableName=bench.table))
            runner.run(resources.aclose())


async def _open(resources: AsyncExitStack, body_bytes_max: int) -> ParkedBench:
    assert "AWS_ENDPOINT_URL_DYNAMODB" in os.environ, "ask for the fixture `stack`"
    table = unique("transitions_")
    settings = ParkedSettings(table=table, bucket=table.replace("_", "-"), budget_s=10.0, body_bytes_max=body_bytes_max)
    client = await open_client("dynamodb", resources)
    s3 = await open_client("s3", resources)
    lossy = LossyDynamo(client)
    store = ParkedStore(settings, lossy, s3)
    return ParkedBench(store, ParkedStore(replace(settings, budget_s=1e-9), lossy, s3), client, lossy, table)
