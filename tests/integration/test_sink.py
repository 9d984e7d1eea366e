"""The sink on a real broker, registry, bucket and parked table: every offset exactly once, whatever is done to it."""
# ruff: noqa: ASYNC110, ASYNC230  # stores are asked until they show it, and the log file is the child's

import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.local.stack import Stack
from services.s3_sink.__main__ import run
from services.s3_sink.config import SinkConfig
from shared.aws import open_client
from shared.config import load_config
from shared.entities import Entities, load_entities
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import EVENT_ID, OP, SEQ, Outgoing
from shared.lifecycle import Stop
from shared.parked.store import ParkedStore
from shared.raw import generation
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import ChainReport, Ledger
from shared.raw.s3 import S3Store
from shared.registry.client import Registry
from tests.fakes.proxy import Mode, TcpProxy, free_port

KILLS = 10 if os.environ.get("TIDEMARK_TEST_FULL") else 5
PARTITIONS = 3
SCHEMA = {
    "type": "record",
    "name": "Account",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "updated_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "owner", "type": {"type": "record", "name": "Owner", "fields": [{"name": "name", "type": "string"}]}},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}
YAML = """
sources: {bank: {url: "http://127.0.0.1:9/cdc"}}
owners: {ledger: {}}
entities:
  accounts: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger}
  payments: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger}
"""


class World:
    """A namespace of its own on the stack: topics, bucket, subjects, parked table, and an empty cache."""

    def __init__(self, environ: dict[str, str], entities: Entities) -> None:
        self.environ = environ
        self.entities = entities
        self.topic = entities.entities["accounts"].topic
        self.sent = 0
        self.schema_id = 0
        self.publisher: Publisher
        self.admin: KafkaAdmin
        self.store: S3Store
        self.ledger: Ledger
        self.parked: ParkedStore

    @property
    def config(self) -> SinkConfig:
        return load_config(SinkConfig, self.environ)

    async def send(self, count: int, topic: str | None = None) -> None:
        """``count`` further accounts, published as the poller does."""
        entity = self.entities.entities["accounts"]
        contract = compile_contract(entity.rules, json.dumps(SCHEMA), entity.schema_subject, self.schema_id)
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        stamp = "2026-11-03T12:00:00.123456Z"
        raws = [
            json.dumps({"id": n, "updated_at": stamp, "owner": {"name": f"owner {n}"}, "note": None}).encode()
            for n in numbers
        ]
        values = contract.encode(Identifier(entity.rules).identify(raws))
        assert all(isinstance(value, bytes) for value in values)
        records = [record(n, value) for n, value in zip(numbers, values, strict=True)]  # type: ignore[arg-type]
        await self.publish(records, topic)

    async def publish(self, records: Sequence[Outgoing], topic: str | None = None) -> None:
        assert await self.publisher.publish(topic or self.topic, records) == [None] * len(records)

    async def chains(self, of: int = 1, topic: str | None = None) -> list[ChainReport]:
        chains = [Chain(topic or self.topic, of, partition) for partition in range(PARTITIONS)]
        return [await self.ledger.verify(chain) for chain in chains]

    async def written(self, topic: str | None = None) -> int:
        chains = [Chain(topic or self.topic, 1, partition) for partition in range(PARTITIONS)]
        return sum([(await self.ledger.tail(chain)).next_start for chain in chains])

    async def until_written(self, offsets: int, topic: str | None = None, within_s: float = 60) -> None:
        async with asyncio.timeout(within_s):
            while await self.written(topic) < offsets:
                await asyncio.sleep(0.1)

    async def faults(self, of: int = 1) -> list[str]:
        """The proof: chains without gap or overlap, up to Kafka's end, and in them each record once, in order."""
        problems: list[str] = []
        marks = await self.admin.watermarks(self.topic)
        ids: list[int] = []
        for chain in await self.chains(of):
            problems += chain.problems
            if chain.next_start != marks[chain.chain.partition].end:
                problems.append(f"{chain.chain} ends at {chain.next_start}, not {marks[chain.chain.partition].end}")
            rows = [json.loads(row) for link in chain.objects for row in (await self.ledger.rows(link)).splitlines()]
            offsets = [row["_kafka_offset"] for row in rows]
            if offsets != list(range(chain.next_start)):
                problems.append(f"{chain.chain}: offsets are not each there once, in order")
            ids += [row["id"] for row in rows]
        if sorted(ids) != list(range(self.sent)):
            problems.append(f"{self.sent} were sent, {len(ids)} are there, {len(set(ids))} of them different")
        return problems


def record(number: int, value: bytes | None) -> Outgoing:
    headers = ((EVENT_ID, b"%032x" % number), (SEQ, b"%d.0" % number), (OP, b"u" if value else b"d"))
    # Now: Kafka's retention goes by this stamp, and took the records of a slow run while they carried an old one.
    return Outgoing(b"%d" % number, value, headers, int(time.time() * 1000))


@pytest.fixture
async def world(stack: Stack, tmp_path: Path) -> AsyncIterator[World]:
    name = f"sink{uuid.uuid4().hex[:10]}"
    (tmp_path / "e.yaml").write_text(YAML)
    (tmp_path / "accounts.avsc").write_text(json.dumps(SCHEMA))
    environ = dict(os.environ) | {
        "TIDEMARK_NAMESPACE": name,
        "TIDEMARK_RAW_BUCKET": f"{name}-raw",
        "TIDEMARK_PARKED_TABLE": f"{name}_parked",
        "TIDEMARK_PARKED_BUCKET": f"{name}-parked",
        "TIDEMARK_ENTITIES_DIR": str(tmp_path),
        "TIDEMARK_CACHE_DIR": str(tmp_path / "cache"),
        "TIDEMARK_HTTP_PORT": "0",
        "TIDEMARK_SINK_OBJECT_AGE_S_MAX": "0.5",
        "TIDEMARK_SINK_OBJECT_RECORDS_MAX": "400",
        "TIDEMARK_SINK_RECHECK_S": "1",
    }
    entities = load_entities(tmp_path, name)
    made = World(environ, entities)
    config = made.config
    async with AsyncExitStack() as resources:
        client = await open_client("s3", resources)
        await client.create_bucket(Bucket=config.raw_bucket)
        made.store = S3Store(client, config.raw_bucket)
        made.ledger = Ledger(made.store, Keys(f"{name}/"))
        made.admin = await KafkaAdmin.open(config.kafka, resources)
        for entity in entities.entities.values():
            await made.admin.ensure_topic(entity.topic, partitions=PARTITIONS, replication=1)
        registry = await Registry.open(config.registry, resources)
        made.schema_id = await registry.register(entities.entities["accounts"].schema_subject, json.dumps(SCHEMA))
        made.parked = await ParkedStore.open(config.parked.within(entities.namespace), resources)
        await made.parked.ensure_bucket()
        await made.parked.ensure_table()
        made.publisher = await Publisher.open(config.kafka, resources)
        yield made


@asynccontextmanager
async def sink_in_process(world: World) -> AsyncIterator[Callable[[], None]]:
    """The service's own ``run``; stopped in good order at the end, or earlier by the call that it gives."""
    stop = Stop()
    task = asyncio.create_task(run(world.config, world.entities, stop))
    try:
        yield lambda: stop.set("test")
        stop.set("test")
        async with asyncio.timeout(30):
            await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def sink_process(world: World, log: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.s3_sink", env=world.environ, stdout=log, stderr=log
    )


async def test_what_is_published_is_in_the_bucket_once_and_in_order(world: World) -> None:
    async with sink_in_process(world):
        for _page in range(5):
            await world.send(500)
            await asyncio.sleep(0.2)
        await world.send(1)
        await world.until_written(world.sent)

    assert await world.faults() == []


async def test_what_is_buffered_when_the_stop_comes_is_written_and_committed(world: World, tmp_path: Path) -> None:
    world.environ["TIDEMARK_SINK_OBJECT_AGE_S_MAX"] = "600"
    world.environ["TIDEMARK_SINK_OBJECT_RECORDS_MAX"] = "1000000"
    await world.send(500)
    world.environ["TIDEMARK_HTTP_PORT"] = str(free_port())
    with open(tmp_path / "sink.log", "w") as log:
        process = await sink_process(world, log)
        await _until_consumed(world, 500)
        assert await world.written() == 0
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0

    assert await world.faults() == []


async def _until_consumed(world: World, records: int) -> None:
    url = f"http://127.0.0.1:{world.environ['TIDEMARK_HTTP_PORT']}/metrics"
    line = f'tidemark_sink_consumed_total{{topic="{world.topic}"}} {records:.1f}'
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
        while True:
            with suppress(httpx.TransportError):
                if line in (await client.get(url)).text:
                    return
            await asyncio.sleep(0.1)


async def test_kill_9_at_random_moments_under_load_loses_and_doubles_nothing(world: World, tmp_path: Path) -> None:
    world.environ["TIDEMARK_SINK_OBJECT_AGE_S_MAX"] = "0.1"
    world.environ["TIDEMARK_CONSUMER_INSTANCE_ID"] = "sink-0"
    dice = random.Random(20261103)
    lives: list[int] = []

    async def load() -> None:
        while len(lives) <= KILLS:
            await world.send(dice.choice((1, 30, 200)))
            await asyncio.sleep(0.05)

    with open(tmp_path / "sink.log", "w") as log:
        loading = asyncio.create_task(load())
        for _life in range(KILLS):
            before = await world.written()
            process = await sink_process(world, log)
            await world.until_written(before + 1)  # this life has done something
            await asyncio.sleep(dice.random() * 0.5)
            process.kill()
            await process.wait()
            lives.append(process.returncode or 0)
        lives.append(0)
        await loading
        process = await sink_process(world, log)
        await world.until_written(world.sent)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0

    assert await world.faults() == []
    assert lives[:KILLS] == [-signal.SIGKILL] * KILLS


async def test_partitions_that_change_hands_are_written_once(world: World) -> None:
    async def load() -> None:
        for _page in range(60):
            await world.send(50)
            await asyncio.sleep(0.05)

    loading = asyncio.create_task(load())
    async with sink_in_process(world):
        await world.until_written(200)
        async with sink_in_process(world):
            await world.until_written(1_500)
        await loading
        await world.until_written(world.sent)

    assert await world.faults() == []


async def test_a_lost_group_and_an_empty_cache_lose_nothing(world: World) -> None:
    await world.send(300)
    async with sink_in_process(world):
        await world.until_written(300)
    await world.send(300)
    world.environ["TIDEMARK_GROUP"] = "another-group"
    async with sink_in_process(world):
        await world.until_written(600)

    assert await world.faults() == []


async def test_while_s3_is_away_the_sink_waits_and_then_goes_on(world: World) -> None:
    host, port = world.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    async with TcpProxy(int(port), target_host=host) as proxy:
        endpoint, os.environ["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"], f"http://127.0.0.1:{proxy.port}"
        try:
            async with sink_in_process(world):
                await world.send(300)
                await world.until_written(300)
                modes: list[Mode] = ["refuse", "drop_answers"]
                for mode in modes:
                    await proxy.set_mode(mode)
                    before = world.sent
                    await world.send(300)
                    await asyncio.sleep(2)
                    assert await world.written() >= before
                    await proxy.set_mode("pass")
                    await world.until_written(world.sent, within_s=100)
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint

    assert await world.faults() == []


async def test_records_that_cannot_be_rows_are_parked_under_their_offset(world: World) -> None:
    await world.send(1)
    frame = b"\x00" + world.schema_id.to_bytes(4, "big")
    bad = [b"", b"{}", frame, frame + b"\x02", b"\x00\x00"]
    await world.publish([record(10**9, value) for value in bad])
    await world.publish([record(10**9 + 1, None)])
    async with sink_in_process(world):
        await world.until_written(1 + len(bad) + 1)

    parked = await world.parked.scan_ids()
    assert len(parked) == len(bad)
    assert {item.reason for item in parked} == {"undecodable"}
    rows = [
        json.loads(row)
        for chain in await world.chains()
        for link in chain.objects
        for row in (await world.ledger.rows(link)).splitlines()
    ]
    assert sorted(row["id"] for row in rows) == [0, 10**9 + 1]
    tombstone = next(row for row in rows if row["id"] == 10**9 + 1)
    assert (tombstone["_op"], tombstone["_schema_id"], tombstone.get("owner__name")) == ("d", None, None)


async def test_a_schema_id_that_nobody_registered_waits_and_other_partitions_go_on(world: World) -> None:
    await world.publish([record(7, b"\x00\x7f\xff\xff\xff\x02")])
    await world.send(300)
    async with sink_in_process(world):
        other = world.entities.entities["payments"].topic
        await world.send(50, topic=other)
        await world.until_written(50, topic=other)
        marks = await world.admin.watermarks(world.topic)
        async with asyncio.timeout(30):
            while len([c for c in await world.chains() if c.next_start < marks[c.chain.partition].end]) != 1:
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        assert len([c for c in await world.chains() if c.next_start < marks[c.chain.partition].end]) == 1
    assert await world.parked.scan_ids() == []


async def test_a_topic_made_anew_is_refused_until_its_next_generation_is_opened(world: World) -> None:
    await world.send(300)
    async with sink_in_process(world):
        await world.until_written(300)
    old = await world.chains()
    await _delete_topic(world)
    await world.admin.ensure_topic(world.topic, partitions=PARTITIONS, replication=1)
    world.sent = 0
    await world.send(400)
    async with sink_in_process(world):
        other = world.entities.entities["payments"].topic
        await world.publish([], other)
        await asyncio.sleep(8)
        assert await world.chains() == old
        identity = await world.admin.identity(world.topic)
        life = generation.TopicLife(identity.cluster_id, identity.topic_id)
        assert await generation.open_next(world.store, world.ledger.keys, world.topic, life, "test", "made anew") == 2
        async with asyncio.timeout(30):
            while sum(chain.next_start for chain in await world.chains(of=2)) < 400:
                await asyncio.sleep(0.2)

    assert await world.faults(of=2) == []
    assert await world.chains() == old


async def _delete_topic(world: World) -> None:
    admin = AIOKafkaAdminClient(**world.config.kafka.client_kwargs())
    await admin.start()
    try:
        await admin.delete_topics([world.topic])
        async with asyncio.timeout(20):
            while not await world.admin.missing([world.topic]):
                await asyncio.sleep(0.1)
    finally:
        await admin.close()
