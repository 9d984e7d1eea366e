"""Opens the edges and puts the retrier on them: the same for the service and for the Lambda functions."""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.due import DueQueue
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Redrive
from services.dynamo_retrier.repairs import S3RepairArchive
from services.dynamo_retrier.retrier import Retrier
from shared.aws import open_client
from shared.entities import Entities
from shared.kafka.publisher import Publisher
from shared.parked.store import ParkedStore
from shared.parked.transitions import Clocks
from shared.parked.wake import Waker
from shared.producer.analysts import Analysts
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

monotonic_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Goes on while the machine sleeps: a lease does too."""


class Opened(Struct, frozen=True):
    retrier: Retrier
    waker: Waker
    publisher: Publisher
    parked: ParkedStore
    table: str


async def open_retrier(
    config: RetrierConfig, entities: Entities, stack: AsyncExitStack, *, beat: Callable[[], None] = lambda: None
) -> Opened:
    """In the order of dependence; none of the edges needs its server yet. Closes with ``stack``."""
    settings = replace(config.parked, table=entities.namespace.table(config.parked.table))
    registry = await Registry.open(config.registry, stack)
    schemas = SchemaCache(registry, config.cache_dir, scope=config.registry.url)
    analysts = Analysts(entities.entities, schemas, refresh_s=config.wake_period_s)
    publisher = await Publisher.open(config.kafka, stack)
    parked = await ParkedStore.open(settings, stack)
    rows = parked.transitions_by(Clocks(monotonic_s=monotonic_s))
    archive = S3Store(await open_client("s3", stack), config.archive_bucket)
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
    topics = {name: entity.topic for name, entity in entities.entities.items()}
    retrier = Retrier(topics, DueQueue(rows), redrive, share, config.pace, beat=beat, monotonic_s=monotonic_s)
    waker = Waker(analysts, parked.streams, rows, wakes_per_s_max=config.per_s_max)
    return Opened(retrier, waker, publisher, parked, settings.table)
