"""A namespace of its own on a stack: an entity, its topic and parked table, and retriers as real processes."""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from aiokafka import ConsumerRecord
from msgspec.structs import replace

from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from shared.aws import open_client
from shared.entities import Entity, load_entities
from shared.events.contract import Contract, compile_contract
from shared.events.identity import Identifier
from shared.events.model import Event, Reason
from shared.kafka.admin import KafkaAdmin
from shared.kafka.records import parse_headers
from shared.kafka.settings import KafkaSettings
from shared.parked.leases import Row, read_row
from shared.parked.model import ParkedEvent
from shared.parked.store import ParkedSettings, ParkedStore
from shared.registry.client import Registry
from shared.registry.settings import RegistrySettings
from tests.fakes.kafka_log import read_topic

_T = TypeVar("_T")

ENTITY = "payments"
TOPICLESS = "refunds"
"""Configured like the other; its topic was never created."""
AT_US = 1_760_000_000_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "long"},
    {"name": "at", "type": "long"},
    {"name": "op", "type": "string"},
    {"name": "amount", "type": "long"},
]
DELIVERY_S = 1.0
LEASE_S = 10.0


def schema(*more: dict[str, Any]) -> str:
    return json.dumps({"type": "record", "name": "Payment", "fields": [*FIELDS, *more]})


def raw(number: int, **more: Any) -> bytes:
    return json.dumps({"id": number, "at": AT_US + number, "op": "u", "amount": number, **more}).encode()


class RetrierWorld:
    def __init__(self, stack: Stack, resources: AsyncExitStack, folder: Path, bootstrap: str) -> None:
        self.stack = stack
        self.resources = resources
        self.name = f"retry-{uuid4().hex[:8]}"
        self.bootstrap = bootstrap
        self.folder = folder
        self.env = stack.env | {
            "TIDEMARK_KAFKA_BOOTSTRAP": bootstrap,
            "TIDEMARK_KAFKA_DELIVERY_DEADLINE_S": str(DELIVERY_S),
            "TIDEMARK_KAFKA_PROBE_DEADLINE_S": str(DELIVERY_S),
            "TIDEMARK_KAFKA_TOPIC_WAIT_S": "0.1",
            "TIDEMARK_ENTITIES_DIR": str(folder),
            "TIDEMARK_CACHE_DIR": str(folder / "cache"),
            "TIDEMARK_NAMESPACE": self.name,
            "TIDEMARK_ARCHIVE_BUCKET": f"{self.name}-archive",
            "TIDEMARK_LEASE_S": str(LEASE_S),
            "TIDEMARK_POLL_S": "0.2",
        }
        self.entity: Entity
        self.contract: Contract
        self.store: ParkedStore
        self.registry: Registry
        self.dynamodb: Any
        self.table = ""
        self._started: list[str] = []

    async def open(self, repair: list[dict[str, Any]], topic_config: dict[str, str]) -> None:
        (self.folder / "payment.avsc").write_text(schema())
        entity = {
            "source": "bank",
            "key": "id",
            "updated_at": {"field": "at", "format": "epoch_us"},
            "op": "op",
            "shows": "events",
            "schema": "payment.avsc",
            "owner": "payments",
            "repair": repair,
        }
        sources = {"bank": {"url": "http://127.0.0.1:9/cdc", "since_format": "epoch_us"}}
        entries = {ENTITY: entity, TOPICLESS: entity}
        config = {"sources": sources, "owners": {"payments": {}}, "entities": entries}
        (self.folder / "entities.yaml").write_text(json.dumps(config))  # YAML holds JSON
        entities = load_entities(self.folder, self.name)
        self.entity = entities.entities[ENTITY]
        self.table = entities.namespace.table("tidemark_parked")
        self.registry = await Registry.open(RegistrySettings(url=self.env["TIDEMARK_REGISTRY_URL"]), self.resources)
        await self.register(schema())
        await self.registry.register(entities.entities[TOPICLESS].schema_subject, schema())
        settings = ParkedSettings(table=self.table, bucket=f"{self.name}-parked")
        self.store = await ParkedStore.open(settings, self.resources)
        await self.store.ensure_table()
        self.dynamodb = await open_client("dynamodb", self.resources)
        admin = await KafkaAdmin.open(KafkaSettings(bootstrap=self.bootstrap), self.resources)
        await admin.ensure_topic(self.entity.topic, partitions=3, replication=1, config=topic_config)

    async def register(self, text: str) -> None:
        schema_id = await self.registry.register(self.entity.schema_subject, text)
        self.contract = compile_contract(self.entity.rules, text, self.entity.schema_subject, schema_id)

    def events(self, numbers: Iterable[int], **more: Any) -> list[Event]:
        sightings = Identifier(self.entity.rules).identify([raw(number, **more) for number in numbers])
        return [
            Event(sighting, 0, sha256(sighting.raw).hexdigest()[:32], AT_US, sighting.updated_us, 7)
            for sighting in sightings
        ]

    def parked(
        self, numbers: Iterable[int], reason: Reason = Reason.KAFKA_UNAVAILABLE, **more: Any
    ) -> list[ParkedEvent]:
        at_us = time.time_ns() // 1_000
        return [
            ParkedEvent(
                entity=ENTITY,
                topic=self.entity.topic,
                key=event.sighting.key,
                key_hash=event.sighting.key_hash,
                updated_us=event.sighting.updated_us,
                event_id=event.event_id,
                rank=event.rank,
                tiebreak=event.tiebreak,
                reason=reason,
                raw=event.sighting.raw,
                subject=self.entity.schema_subject,
                fingerprint=self.contract.fingerprint,
                owner="payments",
                at_us=at_us,
            )
            for event in self.events(numbers, **more)
        ]

    async def start(self, number: int = 1, **settings: object) -> str:
        """A retrier process; the name by which the stack knows it."""
        name = f"{self.name}-{number}"
        port = self.stack.free_port(name)
        env = {f"TIDEMARK_{key.upper()}": str(value) for key, value in settings.items()}
        command = (sys.executable, "-m", "services.dynamo_retrier")
        ready = http_answers(f"http://127.0.0.1:{port}/live")
        self.stack.add(Process(name, command, ready=ready, env={**self.env, **env, "TIDEMARK_HTTP_PORT": str(port)}))
        await asyncio.to_thread(self.stack.start, name)
        self._started.append(name)
        return name

    async def rows(self) -> list[Row]:
        found: list[Row] = []
        start: dict[str, Any] = {}
        while True:
            answer = await self.dynamodb.scan(TableName=self.table, ConsistentRead=True, **start)
            found += [read_row(item) for item in answer["Items"] if item["sk"]["S"].startswith("E#")]
            if "LastEvaluatedKey" not in answer:
                return found
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def items(self) -> int:
        """Rows and bodies."""
        return await self._count(rows_only=False)

    async def _count(self, *, rows_only: bool) -> int:
        scan: dict[str, Any] = {"TableName": self.table, "ConsistentRead": True, "Select": "COUNT"}
        if rows_only:
            scan |= {"FilterExpression": "begins_with(sk, :e)", "ExpressionAttributeValues": {":e": {"S": "E#"}}}
        count = 0
        while True:
            answer = await self.dynamodb.scan(**scan)
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            scan["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def drained(self, within_s: float = 60.0, left: int = 0) -> None:
        async with asyncio.timeout(within_s):
            while await self._politely(self._count(rows_only=True)) > left:
                pass

    async def until(self, claim: Callable[[list[Row]], bool], within_s: float = 100.0) -> list[Row]:
        """The rows, once they are as claimed."""
        async with asyncio.timeout(within_s):
            while not claim(rows := await self._politely(self.rows())):
                pass
        return rows

    @staticmethod
    async def _politely(scan: Awaitable[_T]) -> _T:
        """The emulator answers one call at a time: whoever scans all the time measures himself."""
        began_s = time.monotonic()
        answer = await scan
        await asyncio.sleep(max(0.02, 5 * (time.monotonic() - began_s)))
        return answer

    async def metric(self, name: str, series: str) -> float | None:
        """Of a retrier: ``series`` as ``tidemark_x{label="value"}``; ``None``: not there."""
        url = f"http://127.0.0.1:{self.stack.port(name)}/metrics"
        text = await asyncio.to_thread(_read, url)
        found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{series} ")]
        return float(found[0]) if found else None

    async def records(self) -> list[ConsumerRecord]:
        return await read_topic(self.bootstrap, self.entity.topic)

    async def close(self) -> None:
        for name in set(self._started):
            if self.stack.is_running(name):
                await asyncio.to_thread(self.stack.thaw, name)
                await asyncio.to_thread(self.stack.kill, name)
        await self.dynamodb.delete_table(TableName=self.table)


@asynccontextmanager
async def retrier_world(
    stack: Stack,
    folder: Path,
    bootstrap: str = "",
    *,
    repair: Iterable[dict[str, Any]] = (),
    topic_config: dict[str, str] | None = None,
) -> AsyncIterator[RetrierWorld]:
    async with AsyncExitStack() as resources:
        world = RetrierWorld(stack, resources, folder, bootstrap or stack.env["TIDEMARK_KAFKA_BOOTSTRAP"])
        await world.open(list(repair), topic_config or {})
        try:
            yield world
        finally:
            await world.close()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read(), "utf-8")


def ids(records: Iterable[ConsumerRecord]) -> list[str]:
    return [parse_headers(record.headers).event_id or "" for record in records]


def busiest_second(stamps_ms: Iterable[int]) -> int:
    """The most stamps in any window of one second, wherever it begins."""
    stamps = sorted(stamps_ms)
    first = most = 0
    for last, stamp in enumerate(stamps):
        while stamps[first] <= stamp - 1_000:
            first += 1
        most = max(most, last - first + 1)
    return most


def due_now(event: ParkedEvent) -> ParkedEvent:
    """As if parked a minute ago: past its first back-off."""
    return replace(event, at_us=event.at_us - 60_000_000)
