"""The driver dies at two named points and, by kill -9 with its JVM, at any; what remains is the same table."""

import asyncio
import os
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from pyspark.sql import SparkSession

from services.delta_loader.__main__ import Opened
from shared.lifecycle import Stop
from tests.lake.conftest import FAST_JVM
from tests.lake.s3_world import S3World, s3_world, until
from tests.lake.worlds import change, gone

KILLS = 30 if os.environ.get("TIDEMARK_TEST_FULL") else 3
OBJECTS, ROWS = 3 * (KILLS + 2), 10
Point = Literal["none", "before_commit", "after_commit"]


class Driver:
    """A loader in a process group of its own: Python and its JVM."""

    def __init__(self, world: S3World, folder: Path, objects_max: int = 2) -> None:
        self._environ = world.environ | {
            "TIDEMARK_LOAD_OBJECTS_MAX": str(objects_max),
            "SPARK_SUBMIT_OPTS": FAST_JVM,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._log = folder / "driver.log"

    async def start(self, point: Point, *arguments: str) -> asyncio.subprocess.Process:
        with self._log.open("a") as log:
            command = [sys.executable, "-m", "tests.lake.faulty_loader", point, *arguments]
            return await asyncio.create_subprocess_exec(
                *command, env=self._environ, stdout=log, stderr=log, start_new_session=True
            )

    async def run(self, point: Point, *arguments: str) -> int:
        process = await self.start(point, *arguments)
        try:
            return await asyncio.wait_for(process.wait(), 400)
        finally:
            kill(process)

    def said(self, event: str) -> int:
        return self._log.read_text().count(f'"event": "{event}"') if self._log.exists() else 0


def kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def write(world: S3World, chaos: random.Random) -> None:
    """Late, repeated, deleted: in any order over three partitions."""
    for number in range(OBJECTS):
        ranks = [chaos.randrange(1000) for _row in range(ROWS)]
        changes = [change(rank % 17, rank, schema_id=world.schema_id) for rank in ranks]
        changes += [gone(chaos.randrange(17), chaos.randrange(1000))]
        await world.topic.write(changes, partition=number % 3)


async def has_all(one: Opened, world: S3World) -> bool:
    return await one.positions() == world.topic.next


async def until_said(driver: Driver, process: asyncio.subprocess.Process, event: str, seen: int) -> None:
    async with asyncio.timeout(300):
        while driver.said(event) <= seen and process.returncode is None:  # noqa: ASYNC110 (a log file)
            await asyncio.sleep(0.2)


@pytest.mark.timeout(600 + 120 * KILLS)
async def test_a_driver_killed_anywhere_leaves_the_table_that_an_undisturbed_one_makes(
    spark: SparkSession, tmp_path: Path
) -> None:
    chaos = random.Random(2026)
    async with s3_world(dict(os.environ), tmp_path, history=True) as world:
        driver = Driver(world, tmp_path)
        mine = await world.loading(spark, Stop()).entity(world.entity)
        await write(world, chaos)
        assert await driver.run("before_commit", "batch") == 137
        assert await driver.run("after_commit", "stream") == 137
        for number in range(KILLS):
            # However slow the machine is: every other one has committed before it dies, and is about to again.
            event = "rows_merged" if number % 2 and not await has_all(mine, world) else "stream_started"
            seen = driver.said(event)
            process = await driver.start("none", "stream")
            await until_said(driver, process, event, seen)
            await asyncio.sleep(chaos.uniform(0, 12))
            assert process.returncode is None, "the stream ended by itself"
            kill(process)
            await process.wait()
        last = Driver(world, tmp_path, objects_max=OBJECTS)
        process = await last.start("none", "stream")
        try:
            await until(lambda: has_all(mine, world), 400)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 120) == 0
        finally:
            kill(process)

        undisturbed = await world.loading(spark, Stop(), "second").entity(world.entity)
        await undisturbed.loader.load()

        assert world.rows(spark) == world.rows(spark, "second")
        assert world.rows(spark, history=True) == world.rows(spark, "second", history=True)
