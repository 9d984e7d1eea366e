"""What re-driving costs: the retrier's own wiring, in this process, over real Kafka, DynamoDB and registry.

Write and read units are those that DynamoDB says each call consumed (``ReturnConsumedCapacity``), by kind of call. They
hold the index ``due`` and ``grp``; at the service a transition costs the same, or less where the emulator rounds up.
"""

import asyncio
import json
import tempfile
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from deploy.local.environment import environment
from deploy.local.stack import Stack
from services.dynamo_retrier.__main__ import start
from services.dynamo_retrier.config import RetrierConfig
from shared import metrics
from shared.aws import open_client
from shared.config import load_config
from shared.entities import Entities, load_entities
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.events.model import Reason
from shared.kafka.admin import KafkaAdmin
from shared.lifecycle import Stop
from shared.parked.model import ParkedEvent
from shared.parked.store import ParkedSettings, ParkedStore
from shared.registry.client import Registry
from tests.bench.poller_bench import DEADLINE_S, configure
from tests.bench.sample import ENTITY, SCHEMA, raw
from tests.bench.units import READS, WRITES, meter


def run(stack: Stack, events: int) -> dict[str, float]:
    """Park ``events`` rows as an outage would, let one retrier drain them, and give its figures."""
    with tempfile.TemporaryDirectory() as folder:
        environ = stack.env | configure(Path(folder), 9, 1) | {"TIDEMARK_NAMESPACE": f"bench-{uuid.uuid4().hex[:8]}"}
        with environment(environ):
            return asyncio.run(_measure(environ, events))


def text(figures: dict[str, float]) -> str:
    """Two aligned lines; the second says which calls the units went into."""
    calls = [name for name in figures if name.startswith("units_")]
    parts = ", ".join(f"{name.removeprefix('units_')} {figures[name]:.1f}" for name in calls)
    return (
        f"retrier {figures['cpu_s_per_million']:7.1f} CPU s per million events"
        f"{figures['events_per_s']:10,.0f} events/s{figures['events']:12,.0f} events in {figures['drain_s']:.1f} s\n"
        f"        {figures['write_units']:.1f} write and {figures['read_units']:.1f} read units an event ({parts})"
    )


async def _measure(environ: dict[str, str], events: int) -> dict[str, float]:
    config = load_config(RetrierConfig, environ | {"TIDEMARK_PUBLISHES_PER_S_MAX": "50000"})
    entities = load_entities(config.entities_dir, config.namespace)
    stop, units = Stop(), Counter[str]()
    async with AsyncExitStack() as resources:
        table = await _fill(config, entities, events, resources)
        forget = meter(units)
        before = _redriven()
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        service = asyncio.create_task(start(config, entities, stop))
        try:
            async with asyncio.timeout(DEADLINE_S):
                while _redriven() - before < events and not service.done():  # noqa: ASYNC110  # metrics tell nobody
                    await asyncio.sleep(0.02)
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
            used = dict(units)
        finally:
            stop.set("bench")
            await service
            forget()
            client = await open_client("dynamodb", resources)
            await client.delete_table(TableName=table)
    return {
        "cpu_s_per_million": cpu_s / events * 1e6,
        "events_per_s": events / took_s,
        "events": float(events),
        "drain_s": took_s,
        "write_units": sum(used.get(name, 0.0) for name in WRITES) / events,
        "read_units": sum(used.get(name, 0.0) for name in READS) / events,
        **{f"units_{name}": used[name] / events for name in sorted(used)},
    }


def _redriven() -> float:
    return float(metrics.RETRIES.labels(ENTITY, "published")._value.get())


async def _fill(config: RetrierConfig, entities: Entities, events: int, resources: AsyncExitStack) -> str:
    entity = entities.entities[ENTITY]
    admin = await KafkaAdmin.open(config.kafka, resources)
    await admin.ensure_topic(entity.topic, partitions=entity.partitions, replication=1)
    registry = await Registry.open(config.registry, resources)
    schema_id = await registry.register(entity.schema_subject, json.dumps(SCHEMA))
    contract = compile_contract(entity.rules, json.dumps(SCHEMA), entity.schema_subject, schema_id)
    table = entities.namespace.table(config.parked.table)
    store = await ParkedStore.open(ParkedSettings(table=table), resources)
    await store.ensure_table()
    at_us = time.time_ns() // 1_000 - 60_000_000
    parked = [
        ParkedEvent(
            entity=ENTITY,
            topic=entity.topic,
            key=sighting.key,
            key_hash=sighting.key_hash,
            updated_us=sighting.updated_us,
            event_id=sighting.identity.hex(),
            rank=sighting.updated_us,
            tiebreak=0,
            reason=Reason.KAFKA_UNAVAILABLE,
            raw=sighting.raw,
            subject=contract.subject,
            fingerprint=contract.fingerprint,
            owner=entity.owner.name,
            at_us=at_us,
        )
        for sighting in Identifier(entity.rules).identify([raw(number) for number in range(events)])
    ]
    for first in range(0, events, 1_000):
        await store.park(parked[first : first + 1_000])
    return table
