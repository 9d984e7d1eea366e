"""``python -m services.stale_notifier``: settings, edges, health, then the loop."""

import os
import sys
import time
from contextlib import AsyncExitStack
from functools import cache, partial
from uuid import uuid4

from msgspec.structs import replace

from services.stale_notifier.census import Census, Gauges
from services.stale_notifier.channels.opening import open_channels
from services.stale_notifier.config import NotifierConfig
from services.stale_notifier.contracts import Contracts
from services.stale_notifier.delivery import Delivery, Owners
from services.stale_notifier.grouping import Timing
from services.stale_notifier.notifier import Notifier
from services.stale_notifier.rows import RowLimits, Rows
from services.stale_notifier.telling import Teller, TellingLimits
from shared import health, lifecycle, metrics
from shared.config import ConfigError, load_config
from shared.entities import Entities, load_entities
from shared.parked.calls import ParkedUnavailable
from shared.parked.evidence import Archive
from shared.parked.evidence_chain import Chain
from shared.parked.groups import GroupStore
from shared.parked.store import ParkedStore
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

SERVICE = "stale-notifier"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def schemas_of(config: NotifierConfig, stack: AsyncExitStack) -> SchemaCache | None:
    if config.registry is None or config.cache_dir is None:
        return None
    return SchemaCache(await Registry.open(config.registry, stack), config.cache_dir, scope=config.registry.url)


async def run(config: NotifierConfig, entities: Entities, stop: lifecycle.Stop) -> None:
    """Open everything in the order of dependence, notify until ``stop``, close."""
    settings, worker = config.notifier, f"{SERVICE}-{uuid4().hex[:12]}"
    timing = Timing(
        group_wait_s=settings.group_wait_s,
        repeat_s=settings.repeat_s,
        look_s=settings.look_s,
        settle_s=settings.settle_s,
        growth=settings.growth,
    )
    async with AsyncExitStack() as stack:
        table = replace(config.parked, table=entities.namespace.table(config.parked.table))
        parked = await ParkedStore.open(table, stack)
        groups = await GroupStore.open(table, stack)
        archive = await Archive.open(config.archive_bucket, entities.namespace.prefix(""), stack)
        ways = await open_channels(entities.owners.values(), stack)
        metrics.expect_notices(entities.entities, [(name, way.channel.name) for name in ways for way in ways[name]])
        owners = Owners(entities, ways)
        contracts = Contracts(entities, await schemas_of(config, stack))
        limits = RowLimits(settings.lease_s, config.grace_s)
        transitions = parked.transitions
        rows = Rows(
            transitions, archive, Chain(archive), groups, owners, cache(contracts.disclosure), limits, timing, worker
        )
        about = TellingLimits(
            lease_s=settings.lease_s,
            grace_s=config.grace_s,
            namespace=entities.namespace.name,
            runbook_url=settings.runbook_url,
        )
        census = Census(parked.streams, memo_s=min(10.0, settings.settle_s / 4))
        teller = Teller(groups, census, contracts, owners, Delivery(owners), about, timing, worker)
        turns = lifecycle.Pulse(late_after_s=120.0)
        notifier = Notifier(
            transitions,
            groups,
            rows,
            teller,
            Gauges(transitions, groups, owners),
            poll_s=settings.poll_s,
            refresh_s=settings.refresh_s,
            clock_ms=now_ms,
            beat=turns.beat,
        )

        async def dynamodb() -> str | None:
            try:
                await parked.answers()
            except ParkedUnavailable as error:
                return str(error)
            return None

        edges = {"dynamodb": dynamodb, "archive": archive.answers}
        await health.serve(config.http, stack, edges=edges, pulses={"loop": stop.pulse, "rows": turns})
        await notifier.run(stop)


def main() -> int:
    try:
        config = load_config(NotifierConfig, os.environ)
        entities = load_entities(config.entities_dir, config.namespace, os.environ)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    return lifecycle.run(SERVICE, partial(run, config, entities), drain_s=config.drain_s, log_settings=config.log)


if __name__ == "__main__":
    sys.exit(main())
