"""One entity's raw objects → its Delta table.

Promise: each raw row that the ledger holds from the table's positions on is merged or quarantined before the positions
pass it, and the positions are in the same commit. Batch and stream differ only in who says how far to go.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from msgspec import Struct, structs

from services.delta_loader.links import Chunk, LedgerBroken
from services.delta_loader.schema import LakeSchema
from shared import logs, metrics
from shared.lake.positions import Positions, advanced
from shared.raw.keys import Chain
from shared.retry import Wakes, backoff

CONFLICT_BASE_S, CONFLICT_CAP_S = 0.2, 10.0
RENEWALS_MAX = 5

log = logs.get_logger(__name__)

_T = TypeVar("_T")


class Standing(Protocol):
    """The table before a chunk."""

    @property
    def positions(self) -> Positions: ...


class Outcome(Protocol):
    """See ``tables.Outcome``."""

    @property
    def rows(self) -> int: ...
    @property
    def quarantined(self) -> Mapping[str, int]: ...
    @property
    def uncovered(self) -> frozenset[int]: ...
    @property
    def heartbeats(self) -> int: ...
    @property
    def beats_s(self) -> Mapping[int, float]: ...


class Tables(Protocol):
    """What Spark does. Both block, for seconds to minutes, and are called in one thread."""

    def standing(self) -> Any: ...

    def commit(self, chunk: Chunk, schema: LakeSchema, standing: Any, began_s: float) -> Outcome:
        """All of the chunk or nothing."""


class Raw(Protocol):
    """What comes next of the raw bucket. See ``links.Links``."""

    async def ends(self, positions: Mapping[Chain, int]) -> dict[Chain, int]: ...

    async def next_chunk(
        self, reading: Positions, through: Mapping[Chain, int], merged: Positions, *, past_floor: bool = False
    ) -> Chunk: ...


class Covering(Protocol):
    """See ``schemas.Schemas``."""

    async def covering(self, ids: frozenset[int]) -> LakeSchema: ...


class Span(Struct, frozen=True):
    """What to load. ``through``: the start of each chain's last object; ``None``: all that is there now.

    ``reading``: where to begin, whatever the table says; ``None``: at its positions.
    """

    through: Mapping[Chain, int] | None = None
    reading: Positions | None = None
    past_floor: bool = False


class Loaded(Struct):
    """What a load did."""

    objects: int = 0
    rows: int = 0
    commits: int = 0
    quarantined: int = 0
    conflicts: int = 0

    def with_(self, other: "Loaded") -> "Loaded":
        return Loaded(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Contended(Exception):
    """Other writers were first, again and again."""


class Abandoned(Exception):
    """The process is to stop: what was begun is left, and found again by the positions."""


class SparkThread:
    """The one thread that works for one entity. ``cancel`` ends what it does in Spark."""

    def __init__(self, name: str, begin: Callable[[], None], cancel: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"spark-{name}", initializer=begin)
        self.cancel = cancel

    async def __call__(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Waits for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Loader:
    """One entity. ``load`` is never entered twice at once."""

    def __init__(
        self,
        entity: str,
        tables: Tables,
        raw: Raw,
        schemas: Covering,
        spark: Callable[..., Awaitable[Any]],
        stop: Wakes,
        *,
        conflicts: tuple[type[Exception], ...],
        conflicts_max: int,
        clock: Callable[[], float],
    ) -> None:
        self.entity = entity
        self._tables, self._raw, self._schemas, self._spark, self._stop = tables, raw, schemas, spark, stop
        self._conflicts, self._conflicts_max, self._clock = conflicts, conflicts_max, clock
        self._turn = asyncio.Lock()
        self._generations: dict[tuple[str, int], int] = {}  # whose position is shown
        self._beats_s: dict[int, float] = {}

    async def load(self, span: Span = Span()) -> Loaded:  # noqa: B008 (frozen)
        """Chunk by chunk, each with a commit of its own. Raises what stops an entity, ``Contended``, ``Abandoned``."""
        async with self._turn:
            done = Loaded()
            listed_s = None
            if span.through is None:
                listed_s = time.time() if span.reading is None else None
                standing = await self._spark(self._tables.standing)
                beginning = standing.positions if span.reading is None else span.reading
                span = structs.replace(span, through=await self._raw.ends(beginning))
            try:
                while span.through and (following := await self._commit_next(span, done)) is not None:
                    span = following
            except Exception as error:
                if await self._stop.wait(0):
                    raise Abandoned from error  # its Spark jobs were cancelled under it
                raise
            if listed_s is not None:
                # All that the bucket had when it was listed is merged: by the time of the question.
                metrics.FRESH.labels(self.entity, "lake", "").set(listed_s)
            return done

    async def _commit_next(self, span: Span, done: Loaded) -> Span | None:
        """One chunk, however often another writer is first; what is left then. ``None``: nothing was left."""
        delays_s = backoff(CONFLICT_BASE_S, CONFLICT_CAP_S)
        for attempt in range(self._conflicts_max + 1):
            try:
                return await self._try_next(span, done)
            except self._conflicts as conflict:
                done.conflicts += 1
                metrics.LAKE_CONFLICTS.labels(self.entity).inc()
                log.info("commit_conflicted", entity=self.entity, attempt=attempt + 1, kind=type(conflict).__name__)
            if await self._stop.wait(next(delays_s)):
                raise Abandoned
        raise Contended(
            f"{self.entity}: another writer's commit came first {self._conflicts_max + 1} times in a row; are there "
            "more writers of this table than it bears?"
        )

    async def _try_next(self, span: Span, done: Loaded) -> Span | None:
        if await self._stop.wait(0):
            raise Abandoned
        began_s, started_s = self._clock(), time.monotonic()
        assert span.through is not None
        standing = await self._spark(self._tables.standing)
        merged: Positions = standing.positions
        reading = merged if span.reading is None else span.reading
        chunk = await self._raw.next_chunk(reading, span.through, merged, past_floor=span.past_floor)
        if not chunk.links:
            return None
        metrics.LAKE_IN_PROGRESS.labels(self.entity).set(chunk.rows)
        try:
            outcome = await self._commit(chunk, standing, began_s)
        finally:
            metrics.LAKE_IN_PROGRESS.labels(self.entity).set(0)
        self._tell(chunk, outcome, advanced(merged, chunk.ranges), time.monotonic() - started_s, done)
        behind = advanced(reading, chunk.ranges)
        left = {chain: start for chain, start in span.through.items() if behind.get(chain, 0) <= start}
        return structs.replace(span, through=left, reading=None if span.reading is None else behind)

    async def _commit(self, chunk: Chunk, standing: Any, began_s: float) -> Outcome:
        """The rows may have ids that the objects don't name: then nothing was done, and the schema is renewed."""
        ids = chunk.schema_ids
        for _renewal in range(RENEWALS_MAX):
            schema = await self._schemas.covering(ids)
            outcome: Outcome = await self._spark(self._tables.commit, chunk, schema, standing, began_s)
            if not outcome.uncovered:
                return outcome
            ids |= outcome.uncovered
        raise LedgerBroken(f"{self.entity}: rows name ever more schema ids: {sorted(ids)[-5:]}")

    def _show_position(self, chain: Chain, position: int) -> None:
        """Of the newest generation alone: a topic may be made anew any number of times."""
        place, partition = (chain.topic, chain.partition), str(chain.partition)
        shown = self._generations.get(place, 0)
        if chain.generation < shown:
            return
        if chain.generation > shown:
            metrics.unset(metrics.LAKE_POSITION, self.entity, chain.topic, str(shown), partition)
            self._generations[place] = chain.generation
        metrics.LAKE_POSITION.labels(self.entity, chain.topic, str(chain.generation), partition).set(position)

    def _tell(self, chunk: Chunk, outcome: Outcome, positions: Positions, took_s: float, done: Loaded) -> None:
        done.objects += len(chunk.links)
        done.rows += outcome.rows
        done.commits += 1
        done.quarantined += sum(outcome.quarantined.values())
        metrics.LAKE_ROWS.labels(self.entity).inc(outcome.rows)
        metrics.LAKE_COMMITS.labels(self.entity).inc()
        metrics.LAKE_BATCH_S.labels(self.entity).observe(took_s)
        metrics.LAKE_LAST_COMMIT.labels(self.entity).set_to_current_time()
        for reason, count in outcome.quarantined.items():
            metrics.LAKE_QUARANTINED.labels(self.entity, reason).inc(count)
        metrics.LAKE_HEARTBEATS.labels(self.entity).inc(outcome.heartbeats)
        for partition, at_s in outcome.beats_s.items():
            self._beats_s[partition] = max(at_s, self._beats_s.get(partition, 0.0))  # older ones may be read again
            metrics.HEARTBEAT.labels(self.entity, "lake", str(partition)).set(self._beats_s[partition])
        for chain in sorted(chunk.ranges):
            self._show_position(chain, positions.get(chain, 0))
        log.info(
            "rows_merged",
            entity=self.entity,
            objects=len(chunk.links),
            count=outcome.rows,
            quarantined=sum(outcome.quarantined.values()),
            seconds=round(took_s, 3),
        )
