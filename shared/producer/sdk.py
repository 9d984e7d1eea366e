"""The producer SDK: open the edges once, capture any number of entities."""

import asyncio
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
from msgspec import Meta, Struct

from shared import aws, metrics
from shared.checkpoints.archive import ArchiveUnavailable, S3SeenArchive
from shared.checkpoints.model import Grant
from shared.checkpoints.postgres import Checkpoints
from shared.checkpoints.settings import PostgresSettings
from shared.config import ConfigError
from shared.entities import Entities, Entity, load_entities
from shared.events.contract import Contract, ContractError
from shared.kafka.publisher import Publisher
from shared.kafka.settings import KafkaSettings
from shared.lifecycle import Stop
from shared.parked.calls import ParkedUnavailable
from shared.parked.store import ParkedSettings, ParkedStore
from shared.producer import schemas
from shared.producer.brake import Brake
from shared.producer.budget import HostBudgets
from shared.producer.capture import CHECKPOINTS_AWAY, Capture, paused_under
from shared.producer.delivery import Delivery, Destination, Repairs
from shared.producer.feed import ChangeFeed, FeedClient
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry, RegistryError, RegistryRefused, RegistryUnavailable
from shared.registry.settings import RegistrySettings
from shared.retry import backoff

log = structlog.get_logger(__name__)


_MENDED_OUTSIDE = (*CHECKPOINTS_AWAY, RegistryError, ContractError)
"""What keeps an entity waiting until somebody, or time, has mended it; the others go on."""


class ProducerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a capturing process must know. Each field reads ``TIDEMARK_<NAME>``; see the README of each package."""

    entities_dir: Path
    cache_dir: Path
    """Schemas are kept here: with it a restart needs no registry."""
    kafka: KafkaSettings
    registry: RegistrySettings
    postgres: PostgresSettings
    parked: ParkedSettings = ParkedSettings()
    raw_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-raw"
    """Entries of rows seen long ago are moved here, under ``seen/``."""
    namespace: str = ""
    lease_s: Annotated[float, Meta(ge=1)] = 30.0


class Producer:
    """Captures entities: at any time one process per entity, anywhere; whoever holds its lease."""

    def __init__(
        self,
        settings: ProducerSettings,
        entities: Entities,
        publisher: Publisher,
        parked: ParkedStore,
        checkpoints: Checkpoints,
        registry: Registry,
        feeds: dict[str, FeedClient],
        archive: S3SeenArchive,
    ) -> None:
        self.entities = entities
        self.publisher = publisher
        self.parked = parked
        self.checkpoints = checkpoints
        self._settings = settings
        self._registry = registry
        self._schemas = SchemaCache(registry, settings.cache_dir, scope=settings.registry.url)
        self._feeds = feeds
        self._archive = archive
        self._owner = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._held = 0

    @classmethod
    async def open(cls, settings: ProducerSettings, stack: AsyncExitStack) -> "Producer":
        """Open every edge; none needs its server yet. Raises ``ConfigError``."""
        entities = load_entities(settings.entities_dir, settings.namespace, os.environ)
        metrics.expect_entities(entities.entities)
        metrics.expect_topics(entities.topics)
        metrics.expect_freshness(entities.entities.values())
        budgets = HostBudgets()
        s3 = await aws.open_client("s3", stack)
        space = entities.namespace
        return cls(
            settings,
            entities,
            await Publisher.open(settings.kafka, stack),
            await ParkedStore.open(settings.parked.within(space), stack),
            await Checkpoints.open(settings.postgres, stack, schema=space.postgres_schema()),
            await Registry.open(settings.registry, stack),
            {name: await FeedClient.open(source, budgets, stack) for name, source in entities.sources.items()},
            S3SeenArchive(s3, settings.raw_bucket, space.prefix("seen/")),
        )

    async def capture(self, name: str, stop: Stop) -> None:
        """Capture the entity whenever its lease can be had, until ``stop``. Raises only what waiting can't mend."""
        entity = self.entities.entities[name]
        waits = backoff(1, self._settings.lease_s)
        while not stop.is_set:
            try:
                captured = await self._capture_if_free(entity, stop)
            except _MENDED_OUTSIDE as error:
                metrics.ENTITY_WAITS.labels(name).set(1)
                log.warning("entity_waits", entity=name, reason=str(error))
                await stop.wait(next(waits))
                continue
            metrics.ENTITY_WAITS.labels(name).set(0)
            waits = backoff(1, self._settings.lease_s)
            if not captured:
                await stop.wait(self._settings.lease_s / 3)

    def edges(self) -> dict[str, Callable[[], Awaitable[str | None]]]:
        """For readiness: each edge's name and a call that says why it does not answer (``None``: it does)."""
        return {"kafka": self._kafka_edge, "parked": self._parked_edge, "postgres": self._postgres_edge}

    async def _kafka_edge(self) -> str | None:
        return None if await self.publisher.reachable() else "no broker answers"

    async def _parked_edge(self) -> str | None:
        try:
            await self.parked.answers()
        except ParkedUnavailable as error:
            return str(error)
        return None

    async def _postgres_edge(self) -> str | None:
        try:
            await self.checkpoints.ping()
        except CHECKPOINTS_AWAY as error:
            return str(error)
        return None

    async def _capture_if_free(self, entity: Entity, stop: Stop) -> bool:
        """False: it is another's, or paused. The lease comes first: who only stands by costs the registry nothing."""
        grant = await self._lease(entity, stop)
        if grant is None:
            return False
        try:
            contract = await self._contract(entity)
        except (RegistryError, ContractError):
            await self.checkpoints.release(grant)
            raise
        await self._capture_once(entity, contract, grant, stop)
        return True

    async def _contract(self, entity: Entity) -> Contract:
        """Registered at first; from the disk's copy while the registry is down."""
        try:
            await schemas.register(entity, self._registry)
        except (RegistryUnavailable, RegistryRefused) as error:
            log.warning("registry_unavailable", entity=entity.name, reason=str(error))
        contract = await schemas.newest_contract(entity, self._schemas)
        if contract.general:
            log.warning("contract_on_general_path", entity=entity.name, reasons=contract.reasons)
        return contract

    async def _lease(self, entity: Entity, stop: Stop) -> Grant | None:
        """One try. The more this process holds, the longer it lets others go first: so replicas share evenly."""
        if await stop.wait(min(self._held * 0.1, self._settings.lease_s / 3) + random.random() * 0.05):  # noqa: S311
            return None
        start_us = None if entity.start_at == "now" else entity.start_at_us(0)
        await self.checkpoints.ensure_entity(entity.name, start_us)
        grant = await self.checkpoints.acquire(entity.name, self._owner, self._settings.lease_s)
        if grant is None:
            await self._resume_if_cured(entity)
        else:
            metrics.PAUSED.labels(entity.name).set(0)
        return grant

    async def _resume_if_cured(self, entity: Entity) -> None:
        """An entity paused for invalid events goes on by itself under a newer schema than the one they failed."""
        reason = await self.checkpoints.paused_reason(entity.name)
        metrics.PAUSED.labels(entity.name).set(reason is not None)
        failed_under = paused_under(reason) if reason else None
        if failed_under is None:
            return
        ids = [version.schema_id for version in await self._schemas.versions(entity.schema_subject)]
        if failed_under in ids and ids[-1] != failed_under:  # an old copy of the cache does not know it: no cure
            await self.checkpoints.resume(entity.name, f"schema id {ids[-1]}")
            log.info("entity_resumed", entity=entity.name, schema_id=ids[-1])

    async def _capture_once(self, entity: Entity, contract: Contract, grant: Grant, stop: Stop) -> None:
        ended = Stop()
        destination = Destination(
            entity=entity.name,
            topic=entity.topic,
            owner=entity.owner.name,
            outage_parked_events_max=entity.outage_parked_events_max,
            stale_after_s=entity.stale_after_s,
        )
        rules = entity.rules
        repairs = Repairs(rules, entity.repairs)
        delivery = Delivery(destination, contract, Brake(entity.pause), self.publisher, self.parked, ended, repairs)
        feed = ChangeFeed(
            self._feeds[entity.source.name],
            entity.source_entity,
            granularity_us=rules.granularity_us,
            utc_offset_minutes=rules.utc_offset_minutes,
        )
        newest = partial(schemas.newest_contract, entity, self._schemas)
        capture = Capture(entity, grant, feed, delivery, self.checkpoints, newest, self._tidy, ended)
        self._held += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(_relay(stop, ended), name=f"stop-{entity.name}")
                await capture.run()
                relay.cancel()
        finally:
            self._held -= 1

    async def _tidy(self, grant: Grant) -> None:
        """Housekeeping of the seen entries; put off, never fatal, when its stores are away."""
        try:
            await self.checkpoints.tidy(grant, self._archive)
        except (ArchiveUnavailable, *CHECKPOINTS_AWAY) as error:
            log.warning("tidy_put_off", entity=grant.entity, reason=str(error))


def chosen(entities: Entities, names: Sequence[str]) -> list[str]:
    """The names to capture: those given, or all. Raises ``ConfigError`` for a name that the folder doesn't have."""
    if unknown := sorted(set(names) - set(entities.entities)):
        known = ", ".join(entities.entities) or "none"
        raise ConfigError([f"TIDEMARK_ENTITIES: the folder has no {name!r}, only {known}" for name in unknown])
    return list(names) or list(entities.entities)


async def _relay(stop: Stop, ended: Stop) -> None:
    await stop.wait()
    ended.set(stop.reason or "stop")
