"""``python -m services.dynamo_retrier``: wires the retrier and runs it until SIGTERM (see ``shared/lifecycle``)."""

import asyncio
import os
import sys
import time
import uuid
from contextlib import AsyncExitStack
from functools import partial

from msgspec.structs import replace

from services.dynamo_retrier.census import Census
from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.due import DueQueue
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Deadline, Redrive
from services.dynamo_retrier.repairs import S3RepairArchive
from services.dynamo_retrier.retrier import Retrier
from shared import health, lifecycle, metrics
from shared.aws import open_client
from shared.config import ConfigError, load_config
from shared.entities import Entities, load_entities
from shared.kafka.publisher import Publisher
from shared.parked.calls import ParkedUnavailable
from shared.parked.store import ParkedStore
from shared.parked.transitions import Clocks
from shared.parked.wake import Waker
from shared.producer.analysts import Analysts
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

SERVICE = "dynamo-retrier"


async def start(config: RetrierConfig, entities: Entities, stop: lifecycle.Stop) -> None:
    """Open everything in the order of dependence; re-drive, wake and count until ``stop``."""
    names = list(entities.entities)
    metrics.expect_topics(entities.topics)
    metrics.expect_retries(names)
    monotonic_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)  # goes on while the machine sleeps
    settings = replace(config.parked, table=entities.namespace.table(config.parked.table))
    async with AsyncExitStack() as stack:
        registry = await Registry.open(config.registry, stack)
        analysts = Analysts(entities.entities, SchemaCache(registry, config.cache_dir, scope=config.registry.url))
        publisher = await Publisher.open(config.kafka, stack)
        parked = await ParkedStore.open(settings, stack)
        rows = parked.transitions_by(Clocks(monotonic_s=monotonic_s))
        archive = S3Store(await open_client("s3", stack), config.archive_bucket)
        census = await Census.open(settings.table, names, stack)
        share = Share(config.per_s_max)
        redrive = Redrive(
            rows,
            publisher,
            analysts,
            S3RepairArchive(archive, entities.namespace.prefix("")),
            share,
            config.limits,
            f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            monotonic_s=monotonic_s,
        )
        turns = lifecycle.Pulse(late_after_s=120.0)
        topics = {name: entity.topic for name, entity in entities.entities.items()}
        retrier = Retrier(topics, DueQueue(rows), redrive, share, config.pace, beat=turns.beat, monotonic_s=monotonic_s)
        waker = Waker(analysts, parked.streams, rows, wakes_per_s_max=config.per_s_max)

        async def kafka() -> str | None:
            return None if await publisher.reachable() else "no broker answers"

        async def table() -> str | None:
            try:
                await parked.answers()
            except ParkedUnavailable as error:
                return str(error)
            return None

        edges = {"kafka": kafka, "parked": table}
        await health.serve(config.http, stack, edges=edges, pulses={"loop": stop.pulse, "retrier": turns})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(retrier.run(stop, Deadline()), name="retrier")
            tasks.create_task(waker.run(names, stop, config.wake_period_s), name="waker")
            tasks.create_task(census.run(stop, config.refresh_s), name="census")


def main() -> int:
    try:
        config = load_config(RetrierConfig, os.environ)
        entities = load_entities(config.entities_dir, config.namespace)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    work = partial(start, config, entities)
    return lifecycle.run(SERVICE, work, drain_s=config.drain_s + 2, log_settings=config.log)


if __name__ == "__main__":
    sys.exit(main())
