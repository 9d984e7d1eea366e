"""What one event costs the sink: the real process against real Kafka and registry, and an S3 that only answers PUT.

CPU is user + system seconds of the sink's process alone, between its first tenth and its last record: start-up is left
out, everything else is in. The events lie in Kafka before the sink starts. S3 is ``tests.bench.s3_endpoint``, another
process: an emulator would be measured instead.
"""

import asyncio
import json
import re
import tempfile
import time
import urllib.request
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from shared.config import load_config
from shared.entities import Entity, load_entities
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import EVENT_ID, OP, SEQ, Outgoing
from shared.kafka.settings import KafkaSettings
from shared.registry.client import Registry
from shared.registry.settings import RegistrySettings
from tests.bench.poller_bench import DEADLINE_S, configure, cpu_s, peak_mb
from tests.bench.sample import ENTITY, SCHEMA, raw

PAGE = 5_000


def run(stack: Stack, events: int) -> dict[str, float]:
    """Put ``events`` records into Kafka, let a sink write them; CPU seconds per million, peak MB, events a second."""
    with tempfile.TemporaryDirectory() as folder:
        store, health = stack.free_port("bench-s3"), stack.free_port("bench-sink")
        python = str(stack.product_python)
        endpoint = f"http://127.0.0.1:{store}"
        env = configure(Path(folder), 9, PAGE) | {
            "TIDEMARK_NAMESPACE": f"bench-{uuid.uuid4().hex[:8]}",
            "TIDEMARK_HTTP_PORT": str(health),
            "TIDEMARK_LOG_LEVEL": "warning",
            "AWS_ENDPOINT_URL_S3": endpoint,
            "TIDEMARK_SINK_OBJECT_AGE_S_MAX": "5",
        }
        asyncio.run(_fill(stack.env | env, events))
        s3 = (python, "-m", "tests.bench.s3_endpoint", str(store))
        stack.add(Process("bench-s3", s3, ready=http_answers(f"{endpoint}/tidemark-raw/")))
        sink = (python, "-m", "services.s3_sink")
        stack.add(Process("bench-sink", sink, ready=http_answers(f"http://127.0.0.1:{health}/live"), env=env))
        stack.start("bench-s3")
        stack.start("bench-sink")
        try:
            return _measure(stack.pid("bench-sink"), health, events)
        finally:
            stack.terminate("bench-sink")
            stack.kill("bench-s3")


async def _fill(environ: dict[str, str], events: int) -> None:
    entities = load_entities(environ["TIDEMARK_ENTITIES_DIR"], environ["TIDEMARK_NAMESPACE"])
    entity = entities.entities[ENTITY]
    kafka = load_config(KafkaSettings, environ, "TIDEMARK_KAFKA_")
    async with AsyncExitStack() as resources:
        admin = await KafkaAdmin.open(kafka, resources)
        await admin.ensure_topic(entity.topic, partitions=entity.partitions, replication=1)
        registry = await Registry.open(load_config(RegistrySettings, environ, "TIDEMARK_REGISTRY_"), resources)
        schema_id = await registry.register(entity.schema_subject, json.dumps(SCHEMA))
        publisher = await Publisher.open(kafka, resources)
        for first in range(0, events, PAGE):
            records = _records(entity, schema_id, range(first, min(first + PAGE, events)))
            assert not any(await publisher.publish(entity.topic, records))


def _records(entity: Entity, schema_id: int, numbers: range) -> list[Outgoing]:
    contract = compile_contract(entity.rules, json.dumps(SCHEMA), entity.schema_subject, schema_id)
    sightings = Identifier(entity.rules).identify([raw(number) for number in numbers])
    made = []
    for number, sighting, value in zip(numbers, sightings, contract.encode(sightings), strict=True):
        assert isinstance(value, bytes), value
        headers = ((EVENT_ID, b"%032x" % number), (SEQ, b"%d.0" % number), (OP, b"u"))
        made.append(Outgoing((sighting.key or "").encode(), value, headers, int(time.time() * 1000)))
    return made


def _measure(pid: int, health_port: int, events: int) -> dict[str, float]:
    deadline_s = time.monotonic() + DEADLINE_S
    first = None
    while True:
        read, written = _counted(health_port)
        spent_s, now_s = cpu_s(pid), time.monotonic()
        if first is None and read >= events / 10:
            first = (read, spent_s, now_s)
        if first is not None and written >= events:
            break
        assert now_s < deadline_s, f"only {read} of {events} records after {DEADLINE_S} s"
        time.sleep(0.3)  # a look costs the sink some ten milliseconds
    counted = events - first[0]
    return {
        "cpu_s_per_million": (spent_s - first[1]) / counted * 1e6,
        "peak_mb": peak_mb(pid),
        "events_per_s": counted / (now_s - first[2]),
        "events": float(counted),
    }


def _counted(port: int) -> tuple[int, int]:
    """Records read from Kafka, and records in objects."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()

    def total(name: str) -> int:
        return sum(int(float(number)) for number in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.M))

    return total("tidemark_sink_consumed_total"), total("tidemark_raw_records_total")
