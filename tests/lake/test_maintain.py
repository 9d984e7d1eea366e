"""Care of the tables: it changes how they lie, never what they hold, and the positions stay with them."""

import asyncio
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from msgspec import structs
from pyspark.sql import SparkSession

from services.delta_loader import maintain
from services.delta_loader.links import ChunkLimits
from services.delta_loader.maintain import Done, Work
from services.delta_loader.table import LakeTable
from services.delta_loader.tables import EntityTables
from shared.lake.reader import LakeTable as ReadTable
from shared.lifecycle import Stop
from tests.lake.worlds import World, change, gone

MICRO_COMMITS = 50
MERGED = 2
FOREIGN = 1_000
DAY_US = 86_400_000_000
STAY_S = 15 * 86_400.0


@pytest.fixture(scope="module")
def used(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose table, with its history, has had some merges and many small commits of somebody else."""
    world = World(spark, tmp_path_factory.mktemp("used"))
    asyncio.run(_fill(world))
    return world


async def _fill(world: World) -> None:
    world.limits = ChunkLimits(objects=1, bytes=1 << 30, rows=1_000)
    for turn in range(MERGED):
        await world.topic.write([change(turn, 100 + turn), change(50 + turn, 100 + turn)])
    await world.load()
    _append(world, MICRO_COMMITS - MERGED)


def _append(world: World, commits: int) -> None:
    """As another writer does, one row and one file a commit; one job makes all files, which spares the minutes."""
    path, version = folder(world), at(world).version
    numbers = world.spark.range(FOREIGN, FOREIGN + commits, 1, commits)
    row = world.read().where("id = 50").drop("id")
    files = world.root / "files"
    numbers.crossJoin(row.hint("broadcast")).select(*world.read().columns).write.parquet(files.as_uri())
    for number, file in enumerate(sorted(files.glob("*.parquet")), start=1):
        size = file.rename(path / file.name).stat().st_size
        added = {"path": file.name, "partitionValues": {}, "size": size, "modificationTime": 1, "dataChange": True}
        actions = [
            {"commitInfo": {"timestamp": 1, "operation": "WRITE", "operationParameters": {"mode": "Append"}}},
            {"add": added | {"stats": '{"numRecords": 1}'}},
        ]
        commit = path / "_delta_log" / f"{version + number:020d}.json"
        commit.write_text("".join(json.dumps(action) + "\n" for action in actions))


def folder(world: World) -> Path:
    return Path(world.lake("lake").table("accounts").removeprefix("file://"))


@pytest.fixture
def world(used: World, spark: SparkSession, tmp_path: Path) -> World:
    """The same at another place."""
    shutil.copytree(used.root, tmp_path / "world")
    copied = World(spark, tmp_path / "world")
    copied.topic.next = dict(used.topic.next)
    return copied


def tables(world: World, **more: Any) -> EntityTables:
    return world.tables(**more)


async def cared(world: World, work: Work = Work(), stay_s: float = STAY_S, **more: Any) -> dict[str, Done]:  # noqa: B008
    done: list[Done] = []
    target = tables(world, **more)._target
    await maintain.run(world.spark, maintain.cared_for(target, stay_s), work, done, Stop())
    return {one.table: one for one in done}


def at(world: World, of: str = "table") -> Any:
    return LakeTable(world.spark, getattr(world.lake("lake"), of)("accounts")).at()


async def test_many_small_commits_become_few_files_and_nothing_else_changes(world: World) -> None:
    rows, before = world.rows(), at(world)

    done = (await cared(world))["accounts"]

    assert done.stopped is None
    assert done.before.files >= MICRO_COMMITS
    assert done.after.files <= 2
    assert done.after.clustering == ("id",)
    assert world.rows() == rows
    assert at(world).positions == before.positions == {world.topic.chain(): 2 * MERGED}
    assert LakeTable(world.spark, world.lake("lake").table("accounts"))._log.read(done.after.version).note is not None  # type: ignore[union-attr]
    again = (await cared(world))["accounts"]
    assert again.after.version == done.after.version, "what is in order is left alone"


async def test_positions_are_said_anew_when_the_newest_commits_are_others(world: World) -> None:
    before = at(world)
    done = (await cared(world, Work(properties=False, optimize=False, vacuum=False)))["accounts"]

    assert not done.before.noted
    assert (done.after.version, done.after.noted) == (before.version + 1, True)
    assert at(world).positions == before.positions


async def test_after_a_restore_to_before_the_care_the_positions_are_those_of_that_version(world: World) -> None:
    await world.load()
    older = at(world)
    await world.topic.write([change(1, 500)])
    await world.load()
    rows = world.rows()
    await cared(world)
    DeltaTable.forPath(world.spark, world.lake("lake").table("accounts")).restoreToVersion(older.version)
    restored = at(world).positions
    await cared(world, Work(vacuum=False))
    cared_again = at(world).positions
    await world.load()

    assert restored == cared_again == older.positions
    assert world.rows() == rows


async def test_care_and_stream_at_once_lose_nothing(world: World) -> None:
    """Care goes round and round as long as the stream merges; whichever is beaten by the other begins anew."""
    rounds, loads = 0, 3

    async def stream() -> None:
        for turn in range(loads):
            await world.topic.write([change(7, 700 + turn), change(800 + turn, 1), gone(turn, 900)])
            await world.load(history=True)

    streaming = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(stream())))
    while not streaming.done() or rounds == 0:
        rounds += 1
        found = await cared(world, Work(vacuum=False), history=True)
        assert [one.stopped for one in found.values()] == [None] * 3
    await streaming
    assert [one.stopped for one in (await cared(world, history=True)).values()] == [None] * 3
    alone = World(world.spark, world.root)
    await alone.load("alone", history=True)

    assert at(world).positions == at(world, "history").positions == {world.topic.chain(): 2 * MERGED + 3 * loads}
    assert (await world.load(history=True)).commits == 0
    assert [row for row in world.rows() if row["id"] < FOREIGN] == alone.rows("alone")
    assert world.rows(of="history") == alone.rows("alone", of="history")


async def test_a_reader_inside_the_retention_reads_on_and_what_nobody_needs_is_deleted(world: World) -> None:
    path = folder(world)
    old = at(world).version
    reader = world.spark.read.format("delta").option("versionAsOf", old).load(path.as_uri())
    orphan = path / "part-00000-of-a-writer-that-died.snappy.parquet"
    orphan.write_bytes(b"")
    long_ago_s = time.time() - 8 * 86_400
    os.utime(orphan, (long_ago_s, long_ago_s))
    young = path / "part-00001-of-a-writer-that-lives.snappy.parquet"
    young.write_bytes(b"")

    planned = (await cared(world, Work(dry_run=True)))["accounts"]
    assert orphan.exists()
    done = (await cared(world))["accounts"]

    assert planned.vacuumed == done.vacuumed == 1
    assert planned.before.version == planned.after.version == old
    assert not orphan.exists()
    assert young.exists()
    assert len(reader.collect()) == len(world.rows())


async def test_a_table_that_keeps_its_files_for_less_than_seven_days_is_not_vacuumed(world: World) -> None:
    table = LakeTable(world.spark, world.lake("lake").table("accounts"))
    table.set_properties({"delta.deletedFileRetentionDuration": "interval 1 hours"})
    orphan = folder(world) / "part-00000-of-nobody.snappy.parquet"
    orphan.write_bytes(b"")
    os.utime(orphan, (0, 0))

    done = (await cared(world, Work(properties=False, optimize=False)))["accounts"]

    assert orphan.exists()
    assert done.stopped is not None
    assert "less than 7 days" in done.stopped


async def test_properties_follow_the_entity_but_not_against_what_a_person_has_set(world: World) -> None:
    first = await cared(world, Work(optimize=False, vacuum=False), properties={"delta.checkpointInterval": "20"})
    table = LakeTable(world.spark, world.lake("lake").table("accounts"))
    set_first = table.properties()["delta.checkpointInterval"]
    table.set_properties({"delta.logRetentionDuration": "interval 90 days"})
    second = await cared(world, Work(optimize=False, vacuum=False), properties={"delta.checkpointInterval": "30"})
    properties = table.properties()

    assert first["accounts"].stopped is None
    assert set_first == "20"
    assert properties["delta.checkpointInterval"] == "30"
    assert properties["delta.logRetentionDuration"] == "interval 90 days"
    assert [one.name for one in second["accounts"].kept] == ["delta.logRetentionDuration"]
    assert "by hand" in "\n".join(maintain.lines([*second.values()]))


async def test_a_table_without_clustering_gets_it(world: World) -> None:
    table = LakeTable(world.spark, world.lake("lake").table("accounts"))
    world.spark.sql(f"ALTER TABLE {table.name} CLUSTER BY NONE")

    done = (await cared(world))["accounts"]

    assert (done.before.clustering, done.clustered_by, done.after.clustering) == ((), ("id",), ("id",))
    assert done.after.files <= 2


async def test_only_rows_deleted_before_the_horizon_are_purged(world: World) -> None:
    now_us = time.time_ns() // 1_000
    horizon_us = now_us - 20 * DAY_US
    await world.topic.write([gone(1, horizon_us - 1), gone(2, horizon_us), change(3, horizon_us - 1)])
    await world.load()
    ids = [row["id"] for row in world.rows()]
    only = Work(properties=False, optimize=False, vacuum=False, purge_before_us=horizon_us)

    near = (await cared(world, only, stay_s=21 * 86_400.0))["accounts"]
    planned = (await cared(world, structs.replace(only, dry_run=True)))["accounts"]
    assert [row["id"] for row in world.rows()] == ids
    done = (await cared(world, only))["accounts"]

    assert near.stopped is not None
    assert "come back to life" in near.stopped
    assert planned.purged == done.purged == 1
    read = ReadTable.open(world.lake("lake").table("accounts"), {})
    assert read is not None
    assert read.purged_before_us == horizon_us
    assert [row["id"] for row in world.rows()] == [one for one in ids if one != 1]
    assert at(world).positions == {world.topic.chain(): 2 * MERGED + 3}


async def test_a_purge_needs_the_order_that_the_table_was_made_with(world: World) -> None:
    work = Work(properties=False, optimize=False, vacuum=False, purge_before_us=DAY_US)

    done = (await cared(world, work, order="version"))["accounts"]

    assert done.stopped is not None
    assert "nothing is purged" in done.stopped


async def test_tables_that_are_not_there_are_no_trouble(spark: SparkSession, tmp_path: Path) -> None:
    done = await cared(World(spark, tmp_path), history=True)

    assert [one.stopped for one in done.values()] == [None, None, None]
    assert maintain.lines([*done.values()]) == ["no table yet"]
