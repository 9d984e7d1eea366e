"""The care of the lake's tables: properties and clustering as code, OPTIMIZE, VACUUM, and a purge when asked for.

It runs beside stream and batch: each step is one commit of Delta's, tried again when another writer was first, and
whoever loses begins anew from the table as it is. Nothing is half done when the process dies.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct, field, to_builtins
from pyspark.sql import SparkSession

from services.delta_loader import care
from services.delta_loader.loader import Abandoned, Contended, SparkThread
from services.delta_loader.merge import CONFLICTS
from services.delta_loader.stopped import FORESEEN, in_words
from services.delta_loader.table import PROPERTIES
from services.delta_loader.tables import RULE, RuleChanged, Target
from services.delta_loader.upkeep import Look, Upkeep, rule_of
from shared import logs
from shared.entities import time_us
from shared.lake.layout import HISTORY
from shared.lifecycle import Stop
from shared.retry import backoff

CONFLICTS_MAX = 10
CONFLICT_BASE_S, CONFLICT_CAP_S = 0.5, 20.0
QUARANTINE_KEYS = ("place",)

log = logs.get_logger(__name__)

_T = TypeVar("_T")


class Work(Struct, frozen=True, kw_only=True):
    """What to do. ``purge_before_us``: deleted rows that were first seen before that go."""

    properties: bool = True
    optimize: bool = True
    vacuum: bool = True
    purge_before_us: int | None = None
    dry_run: bool = False


class Cared(Struct, frozen=True, kw_only=True):
    """One table, and what its care needs to know. ``order``: of an entity's own table alone; only that is purged."""

    name: str
    path: str
    keys: tuple[str, ...]
    properties: Mapping[str, str]
    order: str | None = None
    stay_s: float = 0.0


class Done(Struct, kw_only=True):
    """What became of one table; with ``dry_run``, what would. ``stopped``: why it did not come to its end."""

    table: str
    dry_run: bool = False
    before: Look = Look()
    after: Look = Look()
    properties: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    kept: tuple[care.Kept, ...] = ()
    clustered_by: tuple[str, ...] = ()
    compacted: tuple[int, int] | None = None
    """Files removed, files added."""
    vacuumed: int | None = None
    """Files; 1,000 stands for that or more."""
    purged: int | None = None
    conflicts: int = 0
    remarks: list[str] = field(default_factory=list)
    stopped: str | None = None


def add_parser(jobs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = jobs.add_parser("maintain", help="properties, clustering, OPTIMIZE, VACUUM; beside stream and batch")
    one.add_argument("entities", nargs="*", metavar="ENTITY", help="all, unless named")
    one.add_argument(
        "--properties", action="store_true", help="set what differs from entity file and defaults; cluster"
    )
    one.add_argument("--optimize", action="store_true", help="many small files become few")
    one.add_argument("--vacuum", action="store_true", help="delete files that no version of the last 7 days needs")
    one.add_argument(
        "--purge-deleted", action="store_true", help="remove rows that are deleted and were so --before TIME; for good"
    )
    one.add_argument("--before", type=_moment_us, metavar="TIME", help="by first sight: 2026-01-31T00:00:00Z")
    one.add_argument("--dry-run", action="store_true", help="only say what would be done")
    one.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    one.set_defaults(refuse=one.error)


def _moment_us(text: str) -> int:
    try:
        return time_us(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a time as 2026-01-31T00:00:00Z, got {text!r}") from None


def work_of(arguments: argparse.Namespace) -> Work:
    """Ends the process with usage (2) when the arguments contradict each other."""
    if arguments.purge_deleted != (arguments.before is not None):
        arguments.refuse("--purge-deleted and --before TIME go together")
    chosen = {name: bool(getattr(arguments, name)) for name in ("properties", "optimize", "vacuum")}
    if not any(chosen.values()) and not arguments.purge_deleted:
        chosen = dict.fromkeys(chosen, True)
    return Work(**chosen, purge_before_us=arguments.before, dry_run=arguments.dry_run)


def cared_for(target: Target, stay_s: float) -> list[Cared]:
    """The tables of one entity. ``stay_s``: how long after its first sight an event of it may still be merged."""
    own = {**PROPERTIES, **target.properties}
    tables = [
        Cared(
            name=target.entity,
            path=target.table,
            keys=target.keys,
            properties=own,
            order=target.order,
            stay_s=stay_s,
        )
    ]
    if target.history is not None:
        tables.append(Cared(name=f"{target.entity}{HISTORY}", path=target.history, keys=target.keys, properties=own))
    return [
        *tables,
        Cared(name=f"{target.entity} quarantine", path=target.quarantine, keys=QUARANTINE_KEYS, properties=PROPERTIES),
    ]


async def run(spark: SparkSession, tables: Sequence[Cared], work: Work, done: list[Done], stop: Stop) -> None:
    """One table after the other, into ``done``. What stops one stops no other; a stop leaves the rest undone."""
    async with _spark_thread(spark, stop) as thread:
        for table in tables:
            one = Done(table=table.name, dry_run=work.dry_run)
            done.append(one)
            try:
                await _Care(spark, thread, table, work, one, stop).take()
            except Exception as error:
                one.stopped = _why(error, stop)
                trace = None if stop.is_set or isinstance(error, (*FORESEEN, care.HorizonTooNear)) else error
                log.error("care_stopped", table=table.name, why=one.stopped, exc_info=trace)


def _why(error: Exception, stop: Stop) -> str:
    if stop.is_set or isinstance(error, Abandoned):
        return "the process was told to stop; the next run does the rest"
    return str(error) if isinstance(error, care.HorizonTooNear) else in_words(error)


@asynccontextmanager
async def _spark_thread(spark: SparkSession, stop: Stop) -> AsyncIterator[SparkThread]:
    """After a stop, what Spark does is cancelled at once: no commit is lost by that, and none is half made."""
    context, group = spark.sparkContext, "tidemark-maintain"
    begin = partial(context.setJobGroup, group, "care of the tables", interruptOnCancel=True)
    thread = SparkThread("maintain", begin, partial(context.cancelJobGroup, group))

    async def cancel() -> None:
        await stop.wait()
        await asyncio.to_thread(thread.cancel)

    cancelling = asyncio.create_task(cancel(), name="cancel")
    try:
        yield thread
    finally:
        cancelling.cancel()
        thread.close()


class _Care:
    """Of one table."""

    def __init__(
        self, spark: SparkSession, thread: SparkThread, table: Cared, work: Work, done: Done, stop: Stop
    ) -> None:
        self._make = partial(Upkeep, spark, table.path, table.keys)
        self._thread, self._table, self._work, self._done, self._stop = thread, table, work, done, stop
        self._on: Upkeep

    async def take(self) -> None:
        self._on = await self._thread(self._make)
        done, work = self._done, self._work
        done.before = done.after = await self._try(self._on.look)
        if done.before.version < 0:
            return
        properties = await self._try(self._on.properties)
        if work.purge_before_us is not None and self._table.order is not None:
            await self._purge(properties, self._table.order, work.purge_before_us)
        if work.properties:
            await self._properties(properties)
            await self._cluster()
        if work.optimize and not work.dry_run:
            done.compacted = await self._try(self._on.optimize)
        if work.vacuum:
            await self._vacuum()
        done.after = await self._try(self._on.look)
        if not done.after.noted and not work.dry_run:
            await self._say_positions()
        log.info("table_cared_for", table=self._table.name, version=done.after.version, files=done.after.files)

    async def _properties(self, found: Mapping[str, str]) -> None:
        wanted = dict(self._table.properties)
        if problems := care.problems_of(wanted):
            self._done.remarks += [f"{problem}; not set" for problem in problems]
            wanted.pop(care.RETENTION)
        plan = care.plan_properties(found, wanted, PROPERTIES)
        self._done.kept, self._done.unset = plan.kept, plan.unset
        self._done.properties = {name: value for name, value in plan.set_.items() if name != care.RECORD}
        if not plan.is_empty and not self._work.dry_run:
            await self._try(self._on.change, plan)

    async def _say_positions(self) -> None:
        """The newest commits are other people's: when ours leave the log, the positions must not leave with them."""
        await self._try(self._on.say_positions)
        self._done.after = await self._try(self._on.look)

    async def _cluster(self) -> None:
        look, wanted = self._done.before, await self._try(self._on.clusterable)
        if look.partitions:
            self._done.remarks.append(f"partitioned by {', '.join(look.partitions)}: such a table can't be clustered")
        elif look.clustering and look.clustering != wanted:
            self._done.remarks.append(f"clustered by {', '.join(look.clustering)}, by hand: kept")
        elif wanted and not look.clustering:
            self._done.clustered_by = wanted
            if not self._work.dry_run:
                await self._try(self._on.cluster, wanted)

    async def _purge(self, properties: Mapping[str, str], order: str, before_us: int) -> None:
        rule = rule_of(properties, RULE)
        if rule is None or rule.get("order") != order:
            raise RuleChanged(
                f"{self._table.path} was not made with {order!r} as its order, so nothing tells when its rows were "
                "first seen: nothing is purged. Build it anew: batch --full-refresh"
            )
        care.check_horizon(before_us, time.time_ns() // 1_000, self._table.stay_s)
        column = care.SHOWN_IN[order]
        step = self._on.deleted_before if self._work.dry_run else self._on.purge
        self._done.purged = await self._try(step, column, before_us)

    async def _vacuum(self) -> None:
        if problems := care.problems_of(await self._try(self._on.properties)):
            self._done.stopped = f"{'; '.join(problems)}; not vacuumed"
            return
        self._done.vacuumed = await self._try(self._on.unneeded)
        if self._done.vacuumed and not self._work.dry_run:
            await self._try(self._on.vacuum)

    async def _try(self, step: Callable[..., _T], *arguments: Any) -> _T:
        """One step, however often another writer is first. Raises ``Contended``, ``Abandoned``."""
        delays_s = backoff(CONFLICT_BASE_S, CONFLICT_CAP_S)
        for _attempt in range(CONFLICTS_MAX):
            if self._stop.is_set:
                raise Abandoned
            try:
                return await self._thread(step, *arguments)
            except CONFLICTS as conflict:
                self._done.conflicts += 1
                log.info("care_conflicted", table=self._table.name, kind=type(conflict).__name__)
            await self._stop.wait(next(delays_s))
        raise Contended(
            f"{self._table.name}: another writer's commit came first {CONFLICTS_MAX} times in a row; try again when "
            "fewer rows come"
        )


def in_json(done: Sequence[Done]) -> str:
    return json.dumps([to_builtins(one) for one in done], indent=2)


def lines(done: Sequence[Done]) -> list[str]:
    """Aligned, one line a table, with what needs a person's eye below it."""
    shown = [one for one in done if one.before.version >= 0 or one.stopped]
    if not shown:
        return ["no table yet"]
    width = max(len(one.table) for one in shown)
    found: list[str] = []
    for one in shown:
        found.append(f"{one.table:<{width}}  {'; '.join(_words(one))}")
        found += [f"{'':<{width}}  {remark}" for remark in _remarks(one)]
    return found


def _words(one: Done) -> Iterator[str]:
    would = "would be " if one.dry_run else ""
    if one.stopped:
        yield f"stopped: {one.stopped}"
    if one.before.version < 0:
        return
    now = one.after if one.after.version >= 0 else one.before
    moved = (
        f"version {now.version}" if now.version == one.before.version else f"version {one.before.version}→{now.version}"
    )
    yield moved
    changed = "" if now.files == one.before.files else f"{one.before.files:,}→"
    yield f"{changed}{now.files:,} files, {_size(now.bytes)}"
    if count := len(one.properties) + len(one.unset):
        names = ", ".join([*one.properties, *(f"no {name}" for name in one.unset)])
        yield f"{count} {'property' if count == 1 else 'properties'} {would}set ({names})"
    if one.clustered_by:
        yield f"{would}clustered by {', '.join(one.clustered_by)}"
    if one.compacted is not None and any(one.compacted):
        yield f"{one.compacted[0]:,} files compacted into {one.compacted[1]:,}"
    if one.vacuumed:
        yield f"{one.vacuumed:,}{' or more' if one.vacuumed >= 1_000 else ''} old files {would}deleted"
    if one.purged is not None:
        yield f"{one.purged:,} deleted rows {would}purged"


def _remarks(one: Done) -> Iterator[str]:
    yield from one.remarks
    for kept in one.kept:
        yield (
            f"{kept.name} is {kept.found!r} by hand, and would be {kept.wanted!r}: kept. "
            f"To have ours: ALTER TABLE … UNSET TBLPROPERTIES ('{kept.name}'), then maintain again"
        )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1_000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} TB"
