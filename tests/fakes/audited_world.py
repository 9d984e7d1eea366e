"""A small lake on the stack: what pollers, the sink and the loader leave behind, made by their own edges, step by step.

One namespace holds many entities of one shape, so that each test has an untouched one, and all one ``bootstrap``.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import zstandard
from aiokafka import AIOKafkaProducer
from arro3.core import Array, DataType, Table
from deltalake import CommitProperties, write_deltalake

from services.cli.edges import Edges, clock_ms
from shared.checkpoints.model import CursorState, Grant, PageCommit
from shared.events.contract import Contract, compile_contract
from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch
from shared.events.identity import Identifier, event_id, seq
from shared.events.model import Event, Reason, RejectedEvent
from shared.kafka.records import Op, event_headers
from shared.lake.layout import for_s3_clients
from shared.lake.positions import Note, encode_note
from shared.lake.reader import LakeTable, storage_options
from shared.parked.model import ParkedEvent, parked_from_event
from shared.producer.seen import ENTRY
from shared.raw.generation import TopicLife, settle
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import LastRecord, RawObject, record_digest

PARTITIONS = 2
T0_US = 1_790_000_000_000_000
SCHEMA = json.dumps({
    "type": "record",
    "name": "thing",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "string"},
        {"name": "amount", "type": "long"},
    ],
})  # fmt: skip

_T = TypeVar("_T")


class Consumed(NamedTuple):
    """A record as the sink reads it."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class AuditedWorld:
    """Call its steps inside ``do``."""

    def __init__(self, folder: Path, entities: Sequence[str], rows: Sequence[str] = (), *, lake: str = "file") -> None:
        self.folder = folder
        self.namespace = f"au{uuid4().hex[:10]}"
        self.environ = {
            "TIDEMARK_ENTITIES_DIR": str(folder),
            "TIDEMARK_NAMESPACE": self.namespace,
            "TIDEMARK_RAW_BUCKET": f"{self.namespace}-raw",
            "TIDEMARK_ARCHIVE_BUCKET": f"{self.namespace}-archive",
            "TIDEMARK_PARKED_BUCKET": f"{self.namespace}-parked",
            "TIDEMARK_LAKE_URI": f"file://{folder}/lake" if lake == "file" else f"s3a://{self.namespace}-lake",
        }
        (folder / "things.avsc").write_text(SCHEMA)
        lines = [f"  {name}: {{{self._entity('events')}}}" for name in entities]
        lines += [f"  {name}: {{{self._entity('rows')}}}" for name in rows]
        self.url = "http://127.0.0.1:1/cdc"
        self.schema_id = 7
        self._lines = lines
        self.write_folder()

    def write_folder(self) -> None:
        text = "\n".join(
            ["entities:", *self._lines, f'sources: {{bank: {{url: "{self.url}"}}}}', "owners: {ledger: {}}"]
        )
        (self.folder / "bank.yaml").write_text(text + "\n")

    def _entity(self, shows: str) -> str:
        return (
            f"source: bank, key: id, updated_at: at, schema: things.avsc, owner: ledger, shows: {shows}, "
            f"partitions: {PARTITIONS}, lookback_period_s: 0.1"
        )

    def do(self, act: Callable[["Lake"], Awaitable[_T]]) -> _T:
        async def inside() -> _T:
            async with AsyncExitStack() as stack:
                return await act(await Lake.open(self, stack))

        return asyncio.run(inside())


class Lake:
    """The stores of one world, opened."""

    def __init__(self, world: AuditedWorld, edges: Edges, producer: AIOKafkaProducer) -> None:
        self.world = world
        self.edges = edges
        self.producer = producer
        self.keys = Keys(edges.namespace.prefix(""))
        self._grants: dict[str, Grant] = {}
        self._shown: dict[str, int] = {}

    @classmethod
    async def open(cls, world: AuditedWorld, stack: AsyncExitStack) -> "Lake":
        environ = {**os.environ, **world.environ}
        edges = Edges(environ, stack, str(world.folder), world.namespace)
        producer = AIOKafkaProducer(bootstrap_servers=environ["TIDEMARK_KAFKA_BOOTSTRAP"], linger_ms=0)
        await producer.start()
        stack.push_async_callback(producer.stop)
        return cls(world, edges, producer)

    def contract(self, entity: str) -> Contract:
        found = self.edges.entities.entities[entity]
        return compile_contract(found.rules, SCHEMA, found.schema_subject, self.world.schema_id)

    async def ledger(self) -> Ledger:
        return Ledger(await self.edges.raw_store(), self.keys)

    async def show(self, entity: str, changes: Sequence[tuple[str, int, object]]) -> list[Event]:
        """One page: (key, seconds after T0, amount) each. What the schema refuses is parked, the rest published."""
        events = await self.seen(entity, changes)
        good = self.contract(entity).encode([event.sighting for event in events])
        await self.publish(entity, [one for one, value in zip(events, good, strict=True) if isinstance(value, bytes)])
        for event, refusal in zip(events, good, strict=True):
            if isinstance(refusal, RejectedEvent):
                await self.park(entity, event, refusal)
        await self.record(entity, events)
        return events

    async def seen(self, entity: str, changes: Sequence[tuple[str, int, object]]) -> list[Event]:
        """Identified and numbered, and nothing more."""
        rules = self.edges.entities.entities[entity].rules
        raws = [
            json.dumps({"id": key, "at": stamp(T0_US + after_s * 1_000_000), "amount": amount}).encode()
            for key, after_s, amount in changes
        ]
        grant = await self.grant(entity)
        shown_us = max(self._shown.get(entity, 0) + 1, grant.shown_from_us)
        self._shown[entity] = shown_us + len(raws)
        return [
            Event(one, 0, event_id(one.identity, 0), shown_us + row, *seq(rules, one, shown_us + row))
            for row, one in enumerate(Identifier(rules).identify(raws))
        ]

    async def publish(self, entity: str, events: Sequence[Event], *, op: Op = "u", rev: int = 0) -> None:
        topic = self.edges.entities.entities[entity].topic
        values = self.contract(entity).encode([event.sighting for event in events])
        for event, value in zip(events, values, strict=True):
            assert isinstance(value, bytes)
            assert event.sighting.key is not None
            headers = list(event_headers(event, op, rev=rev))
            await self.producer.send(
                topic, value, key=event.sighting.key.encode(), headers=headers, timestamp_ms=clock_ms()
            )
        await self.producer.flush()

    async def park(self, entity: str, event: Event, refusal: RejectedEvent) -> ParkedEvent:
        found = self.edges.entities.entities[entity]
        one = parked_from_event(
            event,
            refusal,
            entity=entity,
            topic=found.topic,
            subject=found.schema_subject,
            fingerprint=self.contract(entity).fingerprint,
            owner="ledger",
            at_us=clock_ms() * 1000,
        )
        await (await self.edges.parked()).park([one])
        return one

    async def unpark(self, event: ParkedEvent) -> None:
        """What a retrier does once Kafka has acknowledged."""
        census = await self.edges.census()
        table = self.edges.parked_settings.table
        for counted in await census.of_key(event.entity, event.key_hash):
            if counted.row.item_id == event.item_id:
                key = {"pk": {"S": counted.row.pk}, "sk": {"S": counted.row.sk}}
                await census._table._client.delete_item(TableName=table, Key=key)

    async def grant(self, entity: str) -> Grant:
        if entity not in self._grants:
            checkpoints = await self.edges.checkpoints()
            await checkpoints.ensure_entity(entity, 0)
            grant = await checkpoints.acquire(entity, f"test-{uuid4().hex}", 60)
            assert grant is not None
            self._grants[entity] = grant
        return self._grants[entity]

    async def release(self, entity: str, *, clean: bool = True) -> None:
        """As a poller does that stops."""
        grant = self._grants.pop(entity, None)
        if grant is not None:
            await (await self.edges.checkpoints()).release(grant, clean=clean)

    async def record(self, entity: str, events: Sequence[Event]) -> None:
        """The page's transaction."""
        entries = b"".join(
            ENTRY.pack(one.sighting.key_hash[:8], one.sighting.identity, 0, one.sighting.updated_us, one.shown_us)
            for one in events
        )
        times = [one.sighting.updated_us for one in events]
        state = CursorState(cursor_us=max(times), swept_us=max(times), cap_swept_us=max(times))
        page = PageCommit(
            state=state,
            shown_us=events[-1].shown_us,
            seen_floor_us=0,
            entries=entries,
            min_us=min(times),
            max_us=max(times),
        )
        await (await self.edges.checkpoints()).commit(await self.grant(entity), page)

    async def sink(self, entity: str, rows_max: int = 4) -> list[RawObject]:
        """Everything that the topic has and the ledger has not, in objects of ``rows_max`` rows."""
        found = self.edges.entities.entities[entity]
        ledger, kafka = await self.ledger(), await self.edges.kafka()
        identity = await kafka.identity(found.topic)
        life = TopicLife(identity.cluster_id, identity.topic_id)
        generation = (await settle(await self.edges.raw_store(), self.keys, found.topic, life, "test")).number
        written = []
        for partition, marks in (await kafka.watermarks(found.topic)).items():
            chain = Chain(found.topic, generation, partition)
            start = (await ledger.tail(chain)).next_start
            async for page in self.edges.reread().records(found.topic, partition, start, marks.end):
                for first in range(0, len(page), rows_max):
                    records = [Consumed(partition, *_parts(record)) for record in page[first : first + rows_max]]
                    written.append(await self.write(ledger, chain, records, found.rules.key))
        return written

    async def write(
        self, ledger: Ledger, chain: Chain, records: Sequence[Consumed], key: Sequence[str] = ("id",)
    ) -> RawObject:
        origin = Origin(chain.topic, chain.generation, chain.partition)
        schema_id = self.world.schema_id
        flat = flatten_batch(origin, records, {schema_id: Flattener(SCHEMA, schema_id)}, KeyContract(key, SCHEMA))
        body = zstandard.compress(flat.body)
        last = records[-1]
        link = RawObject(
            chain=chain,
            start=records[0].offset,
            end=last.offset,
            count=flat.rows,
            first_ms=records[0].timestamp,
            last_ms=last.timestamp,
            schema_ids=flat.schema_ids,
            sha256=sha256(body).hexdigest(),
            writer="test",
            last=LastRecord(last.offset, last.timestamp, record_digest(last.key, last.value)),
        )
        return await ledger.write(link, body)

    async def load(self, entity: str, *, through: Mapping[Chain, int] | None = None) -> None:
        """What the loader does: one row a key, by the greatest order; the note in the commit. Without Spark."""
        await self.load_rows(entity, await self.rows(entity), through=through)

    async def load_rows(
        self,
        entity: str,
        rows: Sequence[dict[str, Any]],
        *,
        through: Mapping[Chain, int] | None = None,
        skip_keys: Sequence[str] = (),
    ) -> None:
        await asyncio.to_thread(load_table, self, entity, rows, through, frozenset(skip_keys))

    async def rows(self, entity: str) -> list[dict[str, Any]]:
        """All raw rows."""
        ledger, topic = await self.ledger(), self.edges.entities.entities[entity].topic
        return [
            json.loads(line)
            for chain in await ledger.partitions(topic, 1)
            async for link in ledger.objects(chain, await ledger.floor(chain))
            for line in (await ledger.rows(link)).splitlines()
        ]

    async def take_schema_id(self) -> None:
        """The registry's own, after a bootstrap: all subjects of the world hold one schema."""
        name = next(iter(self.edges.entities.entities))
        registry = await self.edges.registry()
        (version,) = await registry.versions(self.edges.entities.entities[name].schema_subject)
        self.world.schema_id = version.schema_id

    async def make_lake(self) -> None:
        """The bucket."""
        client = (await self.edges.raw_store())._client
        await client.create_bucket(Bucket=f"{self.world.namespace}-lake")

    async def delete_object(self, key: str) -> None:
        client = (await self.edges.raw_store())._client
        await client.delete_object(Bucket=self.world.environ["TIDEMARK_RAW_BUCKET"], Key=key)

    async def put_object(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        client = (await self.edges.raw_store())._client
        bucket = self.world.environ["TIDEMARK_RAW_BUCKET"]
        await client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=dict(metadata))

    async def sql(self, statement: str, *arguments: object) -> Any:
        """On the world's own tables: ``{schema}`` stands for their schema."""
        checkpoints = await self.edges.checkpoints()
        text = statement.format(schema=f'"{self.edges.namespace.postgres_schema()}"')
        return await checkpoints._database.run(lambda connection: connection.fetch(text, *arguments))


def load_table(
    lake: Lake,
    entity: str,
    rows: Sequence[dict[str, Any]],
    through: Mapping[Chain, int] | None,
    skip_keys: frozenset[str],
) -> None:
    """Blocks. Every load writes the table's whole content anew, from all rows up to the new positions."""
    uri = lake.edges.lake.table(entity)
    before = LakeTable.open(uri, os.environ)
    positions = {} if before is None else before.positions()
    ends: dict[Chain, int] = {}
    for row in rows:
        chain = Chain(row["_kafka_topic"], row["_kafka_generation"], row["_kafka_partition"])
        ends[chain] = max(ends.get(chain, 0), row["_kafka_offset"] + 1)
    if through is not None:
        ends = {chain: min(end, through.get(chain, 0)) for chain, end in ends.items()}
    ranges = {chain: (positions.get(chain, 0), end) for chain, end in ends.items() if end > positions.get(chain, 0)}
    won: dict[str, dict[str, Any]] = {}
    for row in rows:
        chain = Chain(row["_kafka_topic"], row["_kafka_generation"], row["_kafka_partition"])
        inside = row["_kafka_offset"] < ends[chain] and row["id"] not in skip_keys and row["_rank"] is not None
        if inside and (row["id"] not in won or order_of(row) > order_of(won[row["id"]])):
            won[row["id"]] = row
    version = -1 if before is None else before.version
    note = encode_note(Note(version, ranges, positions | ends, replaces=before is None))
    kept = [{**row, "_deleted": row["_op"] == "d"} for row in won.values()]
    table = Table.from_pydict({name: Array([row[name] for row in kept], kind) for name, kind in COLUMNS.items()})
    write_deltalake(
        for_s3_clients(uri),
        table,
        mode="overwrite",
        storage_options=storage_options(uri, os.environ),
        commit_properties=CommitProperties(custom_metadata={"userMetadata": note}),
    )


def order_of(row: Mapping[str, Any]) -> tuple[int, int, int, str]:
    return (row["_rank"], row["_tiebreak"], row["_rev"], row["_event_id"])


COLUMNS = {
    **dict.fromkeys(("id", "_event_id", "_kafka_topic"), DataType.string()),
    **dict.fromkeys(("amount", "_rank", "_tiebreak", "_rev"), DataType.int64()),
    **dict.fromkeys(("_kafka_generation", "_kafka_partition", "_kafka_offset"), DataType.int64()),
    "_deleted": DataType.bool(),
}


def stamp(us: int) -> str:
    from services.cli.outcome import iso

    return iso(us) or ""


def refused() -> RejectedEvent:
    return RejectedEvent(Reason.INVALID, "/amount", "expected a long")


def _parts(record: Any) -> tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]:
    return record.offset, record.timestamp, record.key, record.value, record.headers
