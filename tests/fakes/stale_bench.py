"""A parked table, an archive and owners for tests of the notifier, on the stack that the environment names."""

import os
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from shared.aws import open_client
from shared.events.model import Reason
from shared.parked.evidence import Archive
from shared.parked.groups import Group, GroupStore, cause_of
from shared.parked.items import Item, body_item, draft_of, meta_item, wire
from shared.parked.leases import Row, read_row
from shared.parked.model import ParkedEvent, due_partition, due_sort, shard
from shared.parked.store import ParkedSettings, ParkedStore
from tests.fakes.dynamodb_proxy import unique
from tests.fakes.notices import HttpReceiver

CANARY = "canary-7d1f"
SECRET = "whsec_" + b64encode(b"tidemark" * 4).decode()
SCHEMA = """{"type": "record", "name": "Account", "fields": [
  {"name": "id", "type": "long"},
  {"name": "branch", "type": "string", "public": true},
  {"name": "balance", "type": "long"},
  {"name": "updated_at", "type": "string"}
]}"""


def stale_event(number: int, **changes: Any) -> ParkedEvent:
    event = ParkedEvent(
        entity="accounts",
        topic="cdc.accounts",
        key=str(number),
        key_hash=sha256(b"key %d" % number).digest()[:16],
        updated_us=1_760_000_000_000_000 + number,
        event_id=sha256(b"event %d" % number).hexdigest()[:32],
        rank=1_760_000_000_000_000 + number,
        tiebreak=0,
        reason=Reason.INVALID,
        path="/balance",
        detail="expected a long, got a string",
        raw=b'{"id": %d, "branch": "north", "balance": "%s"}' % (number, CANARY.encode()),
        subject="cdc.accounts-value",
        fingerprint="ab" * 8,
        owner="ledger",
        at_us=(time.time_ns() // 1_000) - 60_000_000,
    )
    return replace(event, **changes)


class StaleBench:
    def __init__(self, table: str, archive_bucket: str, store: ParkedStore, client: Any, s3: Any) -> None:
        self.table, self.archive_bucket = table, archive_bucket
        self.store, self.client, self.s3 = store, client, s3
        self.archive: Archive
        self.groups: GroupStore
        self.settings: ParkedSettings
        self.resources: AsyncExitStack

    async def park_stale(self, events: Iterable[ParkedEvent], *, due_ms: int | None = None) -> None:
        """As if each had been given up just now."""
        due_ms = time.time_ns() // 1_000_000 if due_ms is None else due_ms
        items: list[Item] = []
        for event in events:
            draft = draft_of(event, 1, 300_000)
            stale = {
                "st": wire("STALE"),
                "dq": wire(due_partition("n", shard(event.item_id))),
                "due": wire(due_sort(due_ms, event.item_id)),
                "stale_why": wire("age"),
            }
            items += [body_item(draft), meta_item(draft) | stale]
        for start in range(0, len(items), 25):
            requests = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
            while requests:
                answer = await self.client.batch_write_item(RequestItems={self.table: requests})
                requests = answer.get("UnprocessedItems", {}).get(self.table, [])

    async def rows(self) -> list[Row]:
        """Every META, consistently."""
        return [read_row(item) for item in await self._scan() if item["sk"]["S"].startswith("E#")]

    async def bodies(self) -> int:
        return await self._count("begins_with(sk, :prefix)", "B#")

    async def left(self) -> int:
        return await self._count("begins_with(sk, :prefix)", "E#")

    async def untold(self) -> int:
        return await self._count("begins_with(sk, :prefix) AND attribute_not_exists(ntf)", "E#")

    async def _count(self, condition: str, prefix: str) -> int:
        """Counted by the table itself: reading thousands of items again and again would slow what is tested."""
        scan: dict[str, Any] = {
            "TableName": self.table,
            "ConsistentRead": True,
            "Select": "COUNT",
            "FilterExpression": condition,
            "ExpressionAttributeValues": {":prefix": wire(prefix)},
        }
        found = 0
        while True:
            answer = await self.client.scan(**scan)
            found += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return found
            scan["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def group(self, event: ParkedEvent, owner: str = "ledger") -> Group | None:
        return await self.groups.get(owner, cause_of(event).id)

    async def archived_ids(self) -> set[str]:
        return {(await self.archive.read(uri)).event_id async for uri in self.archive.uris()}

    async def _scan(self) -> list[Item]:
        found: list[Item] = []
        start: dict[str, Any] = {}
        while True:
            answer = await self.client.scan(TableName=self.table, ConsistentRead=True, **start)
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return found
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


@asynccontextmanager
async def stale_bench() -> AsyncIterator[StaleBench]:
    assert "AWS_ENDPOINT_URL_DYNAMODB" in os.environ, "ask for the fixture `stack`"
    async with AsyncExitStack() as resources:
        table = unique("stale_")
        archive_bucket = table.replace("_", "-")
        settings = ParkedSettings(table=table, bucket=archive_bucket, budget_s=10.0)
        client = await open_client("dynamodb", resources)
        s3 = await open_client("s3", resources)
        bench = StaleBench(table, archive_bucket, ParkedStore(settings, client, s3), client, s3)
        bench.settings, bench.resources = settings, resources
        bench.archive = Archive(archive_bucket, "", s3)
        bench.groups = await GroupStore.open(settings, resources)
        assert await bench.store.ensure_table()
        assert await bench.archive.ensure_bucket()
        try:
            yield bench
        finally:
            await client.delete_table(TableName=table)


def write_entities(folder: Path, channels: Sequence[str], *, default: str = "", owner: str = "ledger") -> Path:
    """One entity, ``accounts``, whose owner has these channels (YAML flow mappings)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accounts.avsc").write_text(SCHEMA)
    lines = [f"    channels: [{', '.join(channels)}]"] if channels else ["    contact: nobody"]
    text = [
        "sources: {bank: {url: 'http://127.0.0.1:1/cdc'}}",
        "owners:",
        f"  {owner}:",
        *lines,
        *(["  duty:", f"    channels: [{default}]", "default_owner: duty"] if default else []),
        "entities:",
        f"  accounts: {{source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: {owner}}}",
    ]
    (folder / "all.yaml").write_text("\n".join(text) + "\n")
    return folder


def webhook(receiver: HttpReceiver, name: str = "webhook", more: str = "") -> str:
    url = f"http://127.0.0.1:{receiver.port}/{name}"
    return f"{{kind: webhook, name: {name}, url: '{url}', secret_env: NOTICE_SECRET, timeout_s: 2{more}}}"
