"""The stream finds raw objects by itself and gives the table that the batch gives."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from services.delta_loader import stream
from services.delta_loader.__main__ import Loading, Opened
from services.delta_loader.loader import Span
from shared.lifecycle import Stop
from tests.lake.s3_world import S3World, s3_world, until
from tests.lake.worlds import V2, change, gone


@pytest.fixture
async def world(spark: SparkSession, tmp_path: Path) -> AsyncIterator[S3World]:
    async with s3_world(dict(os.environ), tmp_path) as made:
        yield made


def settings(world: S3World, *, available_now: bool = False, objects_max: int = 2) -> stream.Settings:
    return stream.Settings(
        bucket=world.bucket,
        root=world.prefix,
        objects_max=objects_max,
        bytes_max=1 << 30,
        interval_s=0.5,
        recheck_s=5.0,
        available_now=available_now,
    )


def follower(
    opened: Loading, one: Opened, world: S3World, stop: Stop, *, available_now: bool = False
) -> stream.Follower:
    chosen = settings(world, available_now=available_now)
    return stream.Follower(opened.spark, world.entity.topic, one.loader, one.positions, chosen, stop)


async def test_the_stream_follows_and_its_table_is_the_batchs(world: S3World, spark: SparkSession) -> None:
    stop = Stop()
    opened = world.loading(spark, stop)
    one = await opened.entity(world.entity)
    first = world.schema_id

    async def reached(offset: int, partition: int = 0) -> bool:
        return (await one.positions()).get(world.topic.chain(partition), 0) >= offset

    following = asyncio.create_task(follower(opened, one, world, stop).run(), name="follower")
    await world.topic.write([change(1, 10, schema_id=first), change(2, 10, schema_id=first)])
    await until(lambda: reached(2))
    restored = (await one._thread(one._tables.standing)).table.version
    second = await world.register(V2)
    await world.topic.write([change(1, 9, schema_id=first), gone(2, 12)], partition=1)
    await world.topic.write([change(3, 5, schema_id=second, fields={"limit": 7})])
    await until(lambda: reached(2, 1))
    await until(lambda: reached(3))
    table = DeltaTable.forPath(spark, world.lake().table("accounts"))
    await asyncio.to_thread(table.restoreToVersion, restored)
    await world.topic.write([change(1, 20, schema_id=second), change(3, 5, schema_id=second, fields={"limit": 7})])
    await until(lambda: reached(5))
    await until(lambda: reached(2, 1))
    stop.set("the test is over")

    assert await following
    batch = await world.loading(spark, Stop(), "second").entity(world.entity)
    await batch.loader.load()
    assert world.rows(spark) == world.rows(spark, "second")
    assert [(row["id"], row["limit"], row["_deleted"]) for row in table.toDF().orderBy("id").collect()] == [
        (1, None, False),
        (2, None, True),
        (3, 7, False),
    ]


async def test_an_available_now_run_merges_all_that_there_is_and_ends(world: S3World, spark: SparkSession) -> None:
    for rank in range(5):
        await world.topic.write([change(rank, rank, schema_id=world.schema_id)], partition=rank % 2)
    opened = world.loading(spark, Stop())
    one = await opened.entity(world.entity)

    runner = follower(opened, one, world, Stop(), available_now=True)
    plain, loads = one.loader.load, list[Span]()

    async def load(span: Span) -> object:
        loads.append(span)
        return await plain(span)

    one.loader.load = load  # type: ignore[method-assign, assignment]
    assert await asyncio.wait_for(runner.run(), 240)

    assert await one.positions() == {world.topic.chain(0): 3, world.topic.chain(1): 2}
    assert [len(span.through or {}) for span in loads] == [2, 2, 1]
