"""The streaming job: one query per entity, which only says how far the raw bucket goes; the loader does the rest.

Spark's own checkpoint is thrown away at each start: the table's commits hold the positions, and a checkpoint could only
be behind them or, after a RESTORE, ahead. So it lies in a temporary folder of this machine, which also spares S3 a few
hundred requests per batch.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from services.delta_loader import source
from services.delta_loader.loader import Abandoned, Loader, Span
from services.delta_loader.session import lives
from services.delta_loader.stopped import FORESEEN, cause_of, in_words
from shared import logs, metrics
from shared.lake.positions import Positions
from shared.lifecycle import Stop
from shared.raw.keys import Chain

LOOK_S = 1.0

log = logs.get_logger(__name__)


class Settings(Struct, frozen=True):
    """Of all queries."""

    bucket: str
    root: str
    """The namespace's prefix in the raw bucket."""
    objects_max: int
    bytes_max: int
    interval_s: float
    recheck_s: float
    available_now: bool = False


class Follower:
    """One entity's query, started again whenever it ends for a reason of this world."""

    def __init__(
        self,
        spark: SparkSession,
        topic: str,
        loader: Loader,
        positions: Callable[[], Awaitable[Positions]],
        settings: Settings,
        stop: Stop,
    ) -> None:
        self._spark, self._topic, self._loader, self._positions = spark, topic, loader, positions
        self._settings, self._stop = settings, stop
        self._failure: BaseException | None = None

    async def run(self) -> bool:
        """Until the stop, or with ``available_now`` until all is merged. False: it stopped before that."""
        entity = self._loader.entity
        while not self._stop.is_set:
            try:
                await self._follow()
            except Abandoned:
                break
            except Exception as error:
                if self._stop.is_set:
                    break  # Spark was stopped under it
                if not await asyncio.to_thread(lives, self._spark):
                    raise  # the process ends, and whoever started it starts another
                metrics.LAKE_WAITS.labels(entity, cause_of(error)).set(1)
                trace = None if isinstance(error, FORESEEN) else error
                log.error("entity_waits", entity=entity, why=in_words(error), exc_info=trace)
                if self._settings.available_now:
                    return False
                await self._stop.wait(self._settings.recheck_s)
                continue
            if self._settings.available_now:
                return True
        return True

    async def _follow(self) -> None:
        """One life of the query: from the table's positions until it ends. What ended it is raised."""
        self._failure = None
        positions = await self._positions()
        with tempfile.TemporaryDirectory(prefix="tidemark-stream-", ignore_cleanup_errors=True) as folder:
            query = await asyncio.to_thread(self._start, positions, Path(folder), asyncio.get_running_loop())
            try:
                await self._watch(query)
            finally:
                await asyncio.to_thread(_end, query)

    async def _watch(self, query: StreamingQuery) -> None:
        waited_s = 0.0
        while await asyncio.to_thread(lambda: query.isActive):
            if await self._stop.wait(LOOK_S):
                return
            waited_s += LOOK_S
            if waited_s >= self._settings.recheck_s and not self._settings.available_now:
                waited_s = 0.0
                await self._load(Span())  # what no query tells of: an idle topic's table that was restored
        if self._failure is not None:
            raise self._failure
        error = await asyncio.to_thread(query.exception)
        if error is not None:
            raise error

    async def _load(self, span: Span) -> None:
        await self._loader.load(span)
        for why in metrics.LAKE_WAIT_CAUSES:
            metrics.LAKE_WAITS.labels(self._loader.entity, why).set(0)

    def _start(self, positions: Positions, folder: Path, loop: asyncio.AbstractEventLoop) -> StreamingQuery:
        settings = self._settings
        self._spark.conf.set("spark.sql.adaptive.enabled", "false")  # a stream can't have it, and says so each time
        self._spark.dataSource.register(source.RawObjects)
        limits = (settings.objects_max, settings.bytes_max)
        reading = self._spark.readStream.format(source.FORMAT).options(
            **source.options(settings.bucket, settings.root, self._topic, positions, *limits)
        )
        writing = reading.load().writeStream.queryName(self._loader.entity).foreachBatch(self._taker(loop))
        writing = writing.option("checkpointLocation", (folder / "checkpoint").as_uri())
        if settings.available_now:
            return writing.trigger(availableNow=True).start()
        return writing.trigger(processingTime=f"{settings.interval_s * 1000:.0f} milliseconds").start()

    def _taker(self, loop: asyncio.AbstractEventLoop) -> Callable[[DataFrame, int], None]:
        """Called by Spark in a thread of its own, one batch at a time; returns when the rows are in the table."""

        def take(batch: DataFrame, _batch_id: int) -> None:
            through = {Chain(row[0], row[1], row[2]): int(row[3]) for row in batch.collect()}
            merging: Any = asyncio.run_coroutine_threadsafe(self._load(Span(through=through)), loop)
            try:
                merging.result()
            except BaseException as error:
                self._failure = error
                raise

        return take


def _end(query: StreamingQuery) -> None:
    if query.isActive:
        query.stop()
