"""``python -m services.s3_sink``: wires the sink and runs it until SIGTERM. Exit codes: ``shared/lifecycle``."""

import gc
import os
import sys
import time
from contextlib import AsyncExitStack
from functools import partial

from services.s3_sink.config import SinkConfig
from services.s3_sink.decoding import AvroDecoder
from services.s3_sink.parking import UndecodableParking
from services.s3_sink.sink import Sink
from services.s3_sink.topics import KafkaTopics
from shared import health, lifecycle, metrics
from shared.aws import open_client
from shared.config import ConfigError, load_config
from shared.entities import Entities, load_entities
from shared.kafka.admin import KafkaAdmin
from shared.kafka.consumer import GroupConsumer
from shared.parked.store import ParkedStore
from shared.raw.keys import Keys
from shared.raw.ledger import Ledger
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

SERVICE = "s3-sink"


async def run(config: SinkConfig, entities: Entities, stop: lifecycle.Stop) -> None:
    """Open everything in the order of dependence, read until ``stop``, write what is buffered, close."""
    topics = entities.topics
    metrics.expect_topics(topics)
    metrics.expect_freshness(topics.values())
    async with AsyncExitStack() as stack:
        registry = await Registry.open(config.registry, stack)
        schemas = SchemaCache(registry, config.cache_dir, scope=config.registry.url)
        parked = await ParkedStore.open(config.parked.within(entities.namespace), stack)
        store = S3Store(await open_client("s3", stack), config.raw_bucket)
        admin = await KafkaAdmin.open(config.kafka, stack)
        group = entities.namespace.group(config.group)

        async def revoked() -> None:
            await sink.revoked()

        source = await GroupConsumer.open(config.kafka, group, topics, revoked, stack, consumer=config.consumer)
        turns = lifecycle.Pulse(late_after_s=60.0)
        sink = Sink(
            source,
            KafkaTopics(admin),
            AvroDecoder(schemas, topics),
            UndecodableParking(parked, topics),
            store,
            Ledger(store, Keys(entities.namespace.prefix(""))),
            config.sink,
            clock=partial(time.clock_gettime, time.CLOCK_BOOTTIME),  # goes on while the machine sleeps
            beat=turns.beat,
            entities={topic: entity.name for topic, entity in topics.items()},
        )

        async def kafka() -> str | None:
            return None if source.connected else "no broker has answered lately"

        async def raw_bucket() -> str | None:
            return await store.answers()

        edges = {"kafka": kafka, "raw_bucket": raw_bucket}
        await health.serve(config.http, stack, edges=edges, pulses={"loop": stop.pulse, "sink": turns})
        await sink.run(stop)


def calm_collector() -> None:
    """Records come by the hundred thousand and form no cycles: at the default pace the collector looks through all of
    them again and again, which costs as much CPU as flattening them."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def main() -> int:
    try:
        config = load_config(SinkConfig, os.environ)
        entities = load_entities(config.entities_dir, config.namespace)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    calm_collector()
    work = partial(run, config, entities)
    return lifecycle.run(SERVICE, work, drain_s=config.drain_s, log_settings=config.log)


if __name__ == "__main__":
    sys.exit(main())
