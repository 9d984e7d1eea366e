"""The loader's loop, the batch job and the swap of a refresh, without Spark."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from services.delta_loader import batch, refresh, session
from services.delta_loader.config import SparkSettings
from services.delta_loader.links import Chunk, LedgerBroken
from services.delta_loader.loader import Abandoned, Contended, Loaded, Loader, Span
from services.delta_loader.schema import Breaking, LakeSchema
from services.delta_loader.stopped import cause_of, in_words
from services.delta_loader.tables import Outcome
from services.delta_loader.transform import TransformRefused
from shared import metrics
from shared.config import ConfigError
from shared.lake.positions import Positions, advanced
from shared.raw.keys import Chain
from shared.raw.objects import RawObject, StoreUnavailable
from shared.registry.client import RegistryUnavailable
from tests.fakes.spark_session import FakeSpark

A = Chain("cdc.a", 1, 0)


class Conflict(Exception):
    """Another writer was first."""


class Standing(Struct, frozen=True):
    positions: Positions


class Table:
    """Its positions; ``before`` is called before each commit and may raise."""

    def __init__(self, before: Callable[[int], None] = lambda _attempt: None) -> None:
        self.positions: Positions = {}
        self.committed: list[tuple[int, int]] = []
        self.schemas: list[frozenset[int]] = []
        self.attempts = 0
        self.uncovered: list[frozenset[int]] = []
        self._before = before

    def standing(self) -> Standing:
        return Standing(dict(self.positions))

    def commit(self, chunk: Chunk, schema: LakeSchema, standing: Standing, began_s: float) -> Outcome:
        self.attempts += 1
        self._before(self.attempts)
        self.schemas.append(schema.schema_ids)
        if self.uncovered:
            return Outcome(uncovered=self.uncovered.pop())
        self.committed.append(chunk.ranges[A])
        self.positions = advanced(self.positions, chunk.ranges)
        return Outcome(rows=chunk.rows)


class Raw:
    """One chain of objects of ten offsets each, of which a chunk takes two."""

    def __init__(self, objects: int) -> None:
        self.starts = range(0, objects * 10, 10)

    async def ends(self, positions: Mapping[Chain, int]) -> dict[Chain, int]:
        return {A: self.starts[-1]} if self.starts and positions.get(A, 0) <= self.starts[-1] else {}

    async def next_chunk(
        self, reading: Positions, through: Mapping[Chain, int], merged: Positions, *, past_floor: bool = False
    ) -> Chunk:
        due = [start for start in self.starts if reading.get(A, 0) <= start <= through.get(A, -1)][:2]
        links = [RawObject(chain=A, start=start, end=start + 9, count=10, schema_ids=(1,)) for start in due]
        ranges = {A: (due[0], due[-1] + 10)} if due else {}
        return Chunk(links=links, keys=[str(start) for start in due], ranges=ranges, bytes=0)


class Registered:
    async def covering(self, ids: frozenset[int]) -> LakeSchema:
        return LakeSchema(("id",), frozenset(ids), "{}", "{}", False)


class Stop:
    """Set after some waits."""

    def __init__(self, after: int = 1_000_000) -> None:
        self.left = after

    async def wait(self, timeout_s: float | None = None) -> bool:
        self.left -= 1
        return self.left < 0


def loader(table: Table, objects: int, stop: Stop | None = None, conflicts_max: int = 3) -> Loader:
    async def spark(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    return Loader(
        "accounts",
        table,
        Raw(objects),
        Registered(),
        spark,
        stop or Stop(),
        conflicts=(Conflict,),
        conflicts_max=conflicts_max,
        clock=lambda: 0.0,
    )


def raising(error: Exception, attempts: Sequence[int]) -> Callable[[int], None]:
    def before(attempt: int) -> None:
        if attempt in attempts:
            raise error

    return before


async def test_chunk_after_chunk_until_all_that_was_there_is_merged() -> None:
    table = Table()
    done = await loader(table, 5).load()

    assert table.committed == [(0, 20), (20, 40), (40, 50)]
    assert (done.objects, done.rows, done.commits) == (5, 50, 3)
    assert (await loader(table, 5).load()).commits == 0


async def test_a_conflict_begins_again_from_the_positions_that_now_hold() -> None:
    table = Table()

    def another_writer(attempt: int) -> None:
        if attempt == 1:
            table.positions = {A: 20}
            raise Conflict

    table._before = another_writer
    done = await loader(table, 4).load()

    assert table.committed == [(20, 40)]
    assert done.conflicts == 1


async def test_conflicts_without_end_are_told() -> None:
    table = Table(raising(Conflict(), range(1, 100)))

    with pytest.raises(Contended, match="4 times in a row"):
        await loader(table, 1, conflicts_max=3).load()
    assert table.attempts == 4


async def test_a_stop_is_heard_between_chunks_and_between_attempts() -> None:
    table = Table()
    with pytest.raises(Abandoned):
        await loader(table, 6, Stop(after=2)).load()
    assert table.committed == [(0, 20), (20, 40)]

    with pytest.raises(Abandoned):
        await loader(Table(raising(Conflict(), range(1, 100))), 1, Stop(after=1)).load()


async def test_ids_that_only_the_rows_name_renew_the_schema_before_anything_is_merged() -> None:
    table = Table()
    table.uncovered = [frozenset({7})]
    await loader(table, 1).load()

    assert table.schemas == [frozenset({1}), frozenset({1, 7})]
    assert table.committed == [(0, 10)]


async def test_everything_is_read_again_whatever_the_table_says_and_its_positions_stay() -> None:
    table = Table()
    table.positions = {A: 50}
    await loader(table, 5).load(Span(reading={}))

    assert table.committed == [(0, 20), (20, 40), (40, 50)]
    assert table.positions == {A: 50}


async def test_a_span_ends_at_the_object_it_names() -> None:
    table = Table()
    await loader(table, 9).load(Span(through={A: 20}))

    assert table.committed == [(0, 20), (20, 30)]


async def test_two_loads_of_one_entity_do_not_run_at_once() -> None:
    table = Table()
    one = loader(table, 6)
    await asyncio.gather(one.load(), one.load(), one.load(Span(through={A: 50})))

    assert table.committed == [(0, 20), (20, 40), (40, 60)]


class Places:
    async def holding(self, chain: Chain, offset: int) -> int:
        if offset >= 50:
            raise LedgerBroken(f"offset {offset} of {chain} is in no raw object")
        return offset // 10 * 10


def entity(table: Table) -> batch.Entity:
    async def refreshed(skip_expired: bool) -> Loaded:
        return Loaded(rows=8 if skip_expired else 7)

    return batch.Entity("cdc.a", loader(table, 5), Places(), refreshed)


async def test_what_stops_one_entity_stops_no_other() -> None:
    good = Table()
    reports = await batch.run([entity(Table(raising(LedgerBroken("a hole"), [1]))), entity(good)], batch.Job(), 1)

    assert [report.stopped for report in reports] == ["a hole", None]
    assert good.positions == {A: 50}


async def test_the_jobs_of_the_batch() -> None:
    ranged, whole = Table(), Table()
    whole.positions = {A: 50}
    job = batch.Job(ranges=[batch.parse_range("cdc.a/1/0:15-32")])
    reports = await batch.run([entity(ranged)], job, 1)
    beyond = await batch.run([entity(Table())], batch.Job(ranges=[batch.parse_range("cdc.a/1/0:15-50")]), 1)
    await batch.run([entity(whole)], batch.Job(everything=True), 1)
    fresh = await batch.run([entity(Table())], batch.Job(full_refresh=True), 1)

    assert ranged.committed == [(10, 30), (30, 40)]
    assert reports[0].loaded.rows == 30
    assert beyond[0].stopped == "offset 50 of cdc.a/1/0 is in no raw object"
    assert whole.committed == [(0, 20), (20, 40), (40, 50)]
    assert fresh[0].loaded.rows == 7


@pytest.mark.parametrize("text", ["", "cdc.a:1-2", "cdc.a/1/0", "cdc.a/1/0:5", "cdc.a/1/0:9-5", "cdc.a/x/0:1-2"])
def test_what_is_no_range_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is no range; expected"):
        batch.parse_range(text)


async def test_a_refresh_that_another_writer_overtakes_catches_up_and_swaps_again() -> None:
    loads: list[int] = []
    swaps = iter([Conflict(), Conflict(), None])

    async def load() -> Loaded:
        loads.append(1)
        return Loaded(rows=10)

    async def swap() -> None:
        if (error := next(swaps)) is not None:
            raise error

    assert (await refresh.refresh(load, swap, Stop(), (Conflict,))).rows == 30
    assert len(loads) == 3


def test_each_cause_of_a_wait_has_its_series() -> None:
    errors: list[BaseException] = [
        LedgerBroken("x"),
        RegistryUnavailable("x"),
        Breaking(["a"], "b"),
        TransformRefused("x"),
        StoreUnavailable("x"),
        ValueError("x"),
    ]

    assert [cause_of(error) for error in errors] == list(metrics.LAKE_WAIT_CAUSES)
    assert in_words(ValueError("first\nsecond")) == "ValueError: first"
    assert in_words(LedgerBroken("what to do")) == "what to do"


def test_spark_is_set_up_for_safe_commits_on_s3_and_for_the_endpoint_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.jar").touch()
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "AWS_REGION": "eu-north-1"}
    must, may = session.spark_conf(SparkSettings(jars=tmp_path, master="local[2]"), "s3a://lake", environ)
    on_files, _may = session.spark_conf(SparkSettings(), "file:///lake", {})

    assert must["spark.delta.logStore.s3a.impl"] == must["spark.delta.logStore.s3.impl"] == session.LOG_STORE
    assert "spark.delta.logStore.s3a.impl" not in on_files
    assert may["spark.jars"] == str(tmp_path / "a.jar")
    assert may["spark.sql.shuffle.partitions"] == "2"
    assert (may["spark.hadoop.fs.s3a.endpoint"], may["spark.hadoop.fs.s3a.connection.ssl.enabled"]) == (
        "http://127.0.0.1:4566",
        "false",
    )
    with pytest.raises(ConfigError, match=r"no \*\.jar"):
        session.spark_conf(SparkSettings(jars=tmp_path / "nothing"), "s3a://lake", {})


def test_a_lake_on_s3_is_refused_without_the_log_store() -> None:
    delta = "io.delta.sql.DeltaSparkSessionExtension"
    safe = {f"spark__delta__logStore__{scheme}__impl": session.LOG_STORE for scheme in ("s3", "s3a")}
    refuse: Callable[[Any, str], None] = session.refuse_unsafe
    refuse(FakeSpark(delta), "file:///lake")
    refuse(FakeSpark(delta, session.LOG_STORE, **safe), "s3a://lake")

    with pytest.raises(ConfigError, match="lose each other's commits"):
        refuse(FakeSpark(delta, **safe), "s3a://lake")
    with pytest.raises(ConfigError, match="this Spark was started before"):
        refuse(FakeSpark(delta, session.LOG_STORE), "s3://lake")
    with pytest.raises(ConfigError, match="Delta Lake is not on Spark's class path"):
        refuse(FakeSpark(), "file:///lake")
