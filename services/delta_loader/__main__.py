"""``python -m services.delta_loader batch|stream|maintain``: settings, edges, Spark, then the job."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from services.delta_loader import batch, care, maintain, merge, refresh
from services.delta_loader.batch import Job, Report
from services.delta_loader.config import LoaderConfig
from services.delta_loader.links import ChunkLimits, LedgerBroken, Links, S3RawBucket
from services.delta_loader.loader import Loaded, Loader, SparkThread
from services.delta_loader.schemas import Schemas
from services.delta_loader.session import open_session, spark_conf
from services.delta_loader.tables import EntityTables, Target, now_s
from shared import health, lifecycle, logs, metrics
from shared.aws import open_client
from shared.config import ConfigError, guess, load_config
from shared.entities import Entities, Entity, load_entities
from shared.lake.layout import HISTORY, Lake
from shared.lake.positions import Positions
from shared.parked.policy import POLICIES
from shared.raw.keys import Keys
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry

log = logs.get_logger(__name__)

SERVICE = "delta-loader"
GRACE = 0.5
"""The share of ``drain_s`` after which a batch that still runs is abandoned: nothing of it is lost."""


def target(entity: Entity, lake: Lake, catalog: str = "", *, aside: bool = False) -> Target:
    """Where an entity's tables lie, and how they are made."""
    rules = entity.rules
    shown = "shown" if rules.shows == "rows" else "updated_at"
    table = lake.refresh(entity.name) if aside else lake.table(entity.name)
    return Target(
        entity=entity.name,
        keys=rules.key,
        table=table,
        history=f"{table}{HISTORY}" if entity.delta.history else None,
        quarantine=lake.quarantine(entity.name),
        order="version" if rules.version is not None else shown,
        transform=entity.delta.transform,
        properties=entity.delta.properties,
        catalog="" if aside else catalog,
        namespace=lake.prefix.removesuffix("/"),
    )


class Loading:
    """The edges that all entities share, and each entity's loader on them."""

    def __init__(
        self,
        config: LoaderConfig,
        entities: Entities,
        spark: SparkSession,
        client: Any,
        schemas: SchemaCache,
        stop: Any,
    ) -> None:
        self.config, self.entities, self.spark, self.stop = config, entities, spark, stop
        self._schemas = schemas
        self.keys = Keys(entities.namespace.prefix(""))
        self.lake = Lake(config.lake.uri, entities.namespace.prefix(""))
        self.bucket = S3RawBucket(S3Store(client, config.raw_bucket), client, config.raw_bucket)
        scheme = config.lake.uri.partition("://")[0]
        self.raw_root = f"{scheme if scheme in ('s3', 's3a') else 's3a'}://{config.raw_bucket}"
        self.threads: list[SparkThread] = []

    async def entity(self, entity: Entity) -> "Opened":
        thread = self._thread(entity.name)
        make = partial(EntityTables, self.spark, batch_age_s_max=self.config.load.batch_age_s_max)
        tables = await thread(make, target(entity, self.lake, self.config.lake.catalog), self.raw_root)
        return Opened(self, entity, thread, tables)

    def loader(self, entity: Entity, thread: SparkThread, tables: EntityTables, links: Links) -> Loader:
        return Loader(
            entity.name,
            tables,
            links,
            Schemas(self._schemas, entity.schema_subject, entity.rules.key),
            thread,
            self.stop,
            conflicts=merge.CONFLICTS,
            conflicts_max=self.config.load.conflicts_max,
            clock=now_s,
        )

    def links(self, entity: Entity) -> Links:
        load = self.config.load
        limits = ChunkLimits(objects=load.objects_max, bytes=load.bytes_max, rows=load.rows_max)
        return Links(self.bucket, self.keys, entity.topic, limits)

    def _thread(self, name: str) -> SparkThread:
        context = self.spark.sparkContext
        group = f"tidemark-{name}"
        begin = partial(context.setJobGroup, group, f"raw objects of {name}", interruptOnCancel=True)
        thread = SparkThread(name, begin, partial(context.cancelJobGroup, group))
        self.threads.append(thread)
        return thread


class Opened:
    """One entity, ready to be loaded."""

    def __init__(self, loading: Loading, entity: Entity, thread: SparkThread, tables: EntityTables) -> None:
        self._loading, self.entity, self._thread, self._tables = loading, entity, thread, tables
        self.links = loading.links(entity)
        self.loader = loading.loader(entity, thread, tables, self.links)

    async def positions(self) -> Positions:
        standing = await self._thread(self._tables.standing)
        return standing.positions

    async def refresh(self, skip_expired: bool = False) -> Loaded:
        """Build beside the table, swap, remove what was built. Raises ``LedgerBroken`` where that would lose rows."""
        loading, thread = self._loading, self._thread
        if not skip_expired and (expired := await self.links.expired()):
            standing = await thread(self._tables.standing)
            if standing.table.version >= 0:
                raise LedgerBroken(
                    f"raw objects of {', '.join(map(str, expired[:3]))} were expired: a full refresh can't build their "
                    "rows again, and would take them out of the table. Copy the table first, then do without them: "
                    "batch --full-refresh --skip-expired"
                )
        make = partial(EntityTables, loading.spark, batch_age_s_max=loading.config.load.batch_age_s_max)
        built = await thread(make, target(self.entity, loading.lake, aside=True), loading.raw_root)
        await thread(refresh.begin, built)
        building = loading.loader(self.entity, thread, built, self.links)

        async def swap() -> None:
            await thread(refresh.put_in_place, built, self._tables)

        done = await refresh.refresh(building.load, swap, loading.stop, merge.CONFLICTS)
        await thread(refresh.remove, built)
        return done


@asynccontextmanager
async def spark_session(config: LoaderConfig, stop: lifecycle.Stop) -> AsyncIterator[SparkSession]:
    """Spark, started and stopped in threads: both take seconds."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # each call of Spark's back to us, and each of its failures
    spark = await asyncio.to_thread(open_session, config.spark, config.lake.uri, os.environ)
    try:
        yield spark
    finally:
        await asyncio.to_thread(spark.stop)


@asynccontextmanager
async def loading(config: LoaderConfig, entities: Entities, stop: lifecycle.Stop) -> AsyncIterator[Loading]:
    """All edges open, in the order of dependence. After a stop, what still runs past its grace is abandoned."""
    async with AsyncExitStack() as stack:
        registry = await Registry.open(config.registry, stack)
        schemas = SchemaCache(registry, config.cache_dir, scope=config.registry.url)
        client = await open_client("s3", stack)
        spark = await stack.enter_async_context(spark_session(config, stop))
        opened = Loading(config, entities, spark, client, schemas, stop)
        abandoning = asyncio.create_task(_abandon(opened, stop, config.drain_s * GRACE), name="abandon")
        stack.callback(abandoning.cancel)
        try:
            yield opened
        finally:
            for thread in opened.threads:
                thread.close()


async def _abandon(opened: Loading, stop: lifecycle.Stop, grace_s: float) -> None:
    """Whoever waits for a commit gets an exception then; the positions know that it was not made."""
    await stop.wait()
    await asyncio.sleep(grace_s)
    for thread in opened.threads:
        await asyncio.to_thread(thread.cancel)


async def run_batch(
    config: LoaderConfig,
    entities: Entities,
    names: Sequence[str],
    job: Job,
    reports: list[Report],
    stop: lifecycle.Stop,
) -> None:
    """Fill ``reports``."""
    async with loading(config, entities, stop) as opened:
        chosen = [await opened.entity(entities.entities[name]) for name in names]
        reports += await batch.run(
            [batch.Entity(one.entity.topic, one.loader, one.links, one.refresh) for one in chosen],
            job,
            config.load.entities_at_once,
        )


async def run_stream(
    config: LoaderConfig,
    entities: Entities,
    names: Sequence[str],
    reports: list[Report],
    stop: lifecycle.Stop,
    *,
    available_now: bool,
) -> None:
    """Follow until ``stop``, or until all that there is is merged."""
    from services.delta_loader import stream  # Spark 4 alone has what its source is made of

    metrics.expect_lake(names)
    metrics.expect_freshness(entities.entities[name] for name in names)
    load = config.load
    async with AsyncExitStack() as stack:
        ready: list[Loading] = []

        async def raw_bucket() -> str | None:
            return await ready[0].bucket.answers() if ready else "Spark is not up yet"

        await health.serve(config.http, stack, edges={"raw_bucket": raw_bucket}, pulses={"loop": stop.pulse})
        opened = await stack.enter_async_context(loading(config, entities, stop))
        ready.append(opened)
        settings = stream.Settings(
            bucket=config.raw_bucket,
            root=opened.keys.root,
            objects_max=load.objects_max,
            bytes_max=load.bytes_max,
            interval_s=load.interval_s,
            recheck_s=load.recheck_s,
            available_now=available_now,
        )
        chosen = [await opened.entity(entities.entities[name]) for name in names]
        followers = [
            stream.Follower(opened.spark.newSession(), one.entity.topic, one.loader, one.positions, settings, stop)
            for one in chosen
        ]
        log.info("stream_started", entities=list(names), interval_s=load.interval_s)
        ends = await asyncio.gather(*(follower.run() for follower in followers))
        for name, finished in zip(names, ends, strict=True):
            reports.append(Report(name, Loaded(), None if finished else "see the log"))


async def run_maintain(
    config: LoaderConfig,
    entities: Entities,
    names: Sequence[str],
    work: maintain.Work,
    done: list[maintain.Done],
    stop: lifecycle.Stop,
) -> None:
    """Fill ``done``."""
    lake = Lake(config.lake.uri, entities.namespace.prefix(""))
    patience_s = max(policy.age_s_max for policy in POLICIES.values())
    tables: list[maintain.Cared] = []
    for entity in (entities.entities[name] for name in names):
        stay_s = care.longest_stay_s(max(patience_s, entity.stale_after_s), config.grace_s)
        tables += maintain.cared_for(target(entity, lake, config.lake.catalog), stay_s)
    async with spark_session(config, stop) as spark:
        await maintain.run(spark, tables, work, done, stop)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m services.delta_loader",
        description="Raw objects → Delta tables. Settings: see its README.",
    )
    jobs = top.add_subparsers(dest="job", required=True, metavar="JOB")
    one = jobs.add_parser("batch", help="merge what is new, or a range, or everything again; then end")
    one.add_argument("entities", nargs="*", metavar="ENTITY", help="all, unless named")
    what = one.add_mutually_exclusive_group()
    what.add_argument(
        "--range",
        action="append",
        default=[],
        type=_range,
        metavar="CHAIN:START-END",
        help="offsets of one chain, again",
    )
    what.add_argument("--all", action="store_true", help="all raw objects, again: harmless, and long")
    what.add_argument(
        "--full-refresh", action="store_true", help="build the table anew, and put it in the old one's place"
    )
    one.add_argument(
        "--skip-expired", action="store_true", help="give up raw objects that were expired before their merge"
    )
    two = jobs.add_parser("stream", help="merge what comes, until SIGTERM")
    two.add_argument("entities", nargs="*", metavar="ENTITY", help="all, unless named")
    two.add_argument("--available-now", action="store_true", help="end when all that there is now is merged")
    maintain.add_parser(jobs)
    return top


def _range(text: str) -> batch.Range:
    try:
        return batch.parse_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _chosen(arguments: argparse.Namespace, entities: Entities) -> list[str]:
    """Raises ``ConfigError``."""
    known = list(entities.entities)
    unknown = [name for name in arguments.entities if name not in known]
    if unknown:
        raise ConfigError([f"{name!r} is no entity{guess(name, known)}" for name in unknown])
    names = arguments.entities or known
    topics = {entities.entities[name].topic for name in names}
    strange = [str(one.chain) for one in getattr(arguments, "range", ()) if one.chain.topic not in topics]
    if strange:
        raise ConfigError([f"--range {chain}: no chosen entity has that topic" for chain in strange])
    return names


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        config = load_config(LoaderConfig, os.environ)
        entities = load_entities(config.entities_dir, config.namespace)
        names = _chosen(arguments, entities)
        spark_conf(config.spark, config.lake.uri, os.environ)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    if arguments.job == "maintain":
        return _maintained(config, entities, names, arguments)
    reports: list[Report] = []
    if arguments.job == "batch":
        job = Job(arguments.skip_expired, arguments.all, arguments.full_refresh, arguments.range)
        work = partial(run_batch, config, entities, names, job, reports)
    else:
        work = partial(run_stream, config, entities, names, reports, available_now=arguments.available_now)
    code = lifecycle.run(SERVICE, work, drain_s=config.drain_s, log_settings=config.log)
    return code or _told(reports, arguments.job)


def _maintained(config: LoaderConfig, entities: Entities, names: Sequence[str], arguments: argparse.Namespace) -> int:
    done: list[maintain.Done] = []
    work = partial(run_maintain, config, entities, names, maintain.work_of(arguments), done)
    code = lifecycle.run(SERVICE, work, drain_s=config.drain_s, log_settings=config.log)
    print(maintain.in_json(done) if arguments.json else "\n".join(maintain.lines(done)))  # noqa: T201
    return code or (lifecycle.EXIT_FAILED if any(one.stopped for one in done) else 0)


def _told(reports: Sequence[Report], job: str) -> int:
    """What became of each entity, for people; 1 if one stopped."""
    for report in reports:
        done = report.loaded
        if report.stopped is not None:
            print(f"{report.entity}: stopped: {report.stopped}", file=sys.stderr)  # noqa: T201
        elif job == "batch":
            aside = f", {done.quarantined:,} rows quarantined" if done.quarantined else ""
            print(  # noqa: T201
                f"{report.entity}: {done.rows:,} rows of {done.objects:,} raw objects merged, commits: {done.commits:,}"
                f"{aside}"
            )
    return lifecycle.EXIT_FAILED if any(report.stopped is not None for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
