"""Opens the edges and puts the retrier on them: the same for the service and for the Lambda functions."""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from msgspec import Struct

from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.due import DueQueue
from services.dynamo_retrier.gates import Gates
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Redrive
from services.dynamo_retrier.repairs import S3RepairArchive
from services.dynamo_retrier.retrier import Retrier
from shared.aws import open_client
from shared.entities import Entities
from shared.kafka.publisher import Publisher
from shared.parked.store import ParkedStore
from shared.parked.transitions import Clocks, Transitions
from shared.parked.wake import Waker
from shared.producer.analysts import Analysts
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

monotonic_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Goes on while the machine sleeps: a lease does too."""


class Clients(Struct, frozen=True):
    """The edges. None of them needs its server yet."""

    publisher: Publisher
    parked: ParkedStore
    rows: Transitions
    analysts: Analysts
    repairs: S3RepairArchive


class Opened(Struct, frozen=True):
    retrier: Retrier
    waker: Waker
    publisher: Publisher
    parked: ParkedStore
    table: str


async def open_clients(config: RetrierConfig, entities: Entities, stack: AsyncExitStack) -> Clients:
    """In the order of dependence. Closes with ``stack``."""
    space = entities.namespace
    registry = await Registry.open(config.registry, stack)
    schemas = SchemaCache(registry, config.cache_dir, scope=config.registry.url)
    publisher = await Publisher.open(config.kafka, stack)
    parked = await ParkedStore.open(config.parked.within(space), stack)
    archive = S3Store(await open_client("s3", stack), config.archive_bucket)
    return Clients(
        publisher=publisher,
        parked=parked,
        rows=parked.transitions_by(Clocks(monotonic_s=monotonic_s)),
        analysts=Analysts(entities.entities, schemas, refresh_s=config.wake_period_s),
        repairs=S3RepairArchive(archive, space.prefix("")),
    )


def retrier_over(
    clients: Clients,
    config: RetrierConfig,
    entities: Entities,
    share: Share,
    worker: str,
    *,
    gates: Gates | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Retrier:
    redrive = Redrive(
        clients.rows,
        clients.publisher,
        clients.analysts,
        clients.repairs,
        share,
        config.limits,
        worker,
        monotonic_s=monotonic_s,
    )
    topics = {name: entity.topic for name, entity in entities.entities.items()}
    queue = DueQueue(clients.rows)
    return Retrier(
        topics, queue, redrive, share, config.pace, gates=gates, beat=beat, monotonic_s=monotonic_s
    )  # fmt: skip


async def open_retrier(
    config: RetrierConfig, entities: Entities, stack: AsyncExitStack, *, beat: Callable[[], None] = lambda: None
) -> Opened:
    clients = await open_clients(config, entities, stack)
    worker = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    retrier = retrier_over(clients, config, entities, Share(config.per_s_max), worker, beat=beat)
    waker = Waker(clients.analysts, clients.parked.streams, clients.rows, wakes_per_s_max=config.per_s_max)
    table = config.parked.within(entities.namespace).table
    return Opened(retrier, waker, clients.publisher, clients.parked, table)
