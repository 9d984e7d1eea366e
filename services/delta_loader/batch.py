"""The batch job: what is new, a range, everything again, or the table built anew; then it ends."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from services.delta_loader.loader import Abandoned, Loaded, Loader, Span
from services.delta_loader.stopped import cause_of, in_words
from shared import logs, metrics
from shared.lake.positions import chain_of
from shared.raw.keys import Chain

_RANGE = re.compile(r"(.+/\d+/\d+):(\d+)-(\d+)")

log = logs.get_logger(__name__)


class Range(Struct, frozen=True):
    """Offsets of one chain, both included."""

    chain: Chain
    start: int
    end: int


class Job(Struct, frozen=True):
    """What to do for each entity. Neither of the last three: what is new."""

    skip_expired: bool = False
    everything: bool = False
    full_refresh: bool = False
    ranges: Sequence[Range] = ()


class RawPlaces(Protocol):
    async def holding(self, chain: Chain, offset: int) -> int:
        """The start of the object that holds ``offset``. Raises ``LedgerBroken``."""


class Entity(Struct, frozen=True):
    """One entity's loader, and what else a job needs of it."""

    topic: str
    loader: Loader
    raw: RawPlaces
    refresh: Callable[[bool], Awaitable[Loaded]]
    """With what was expired given up?"""


class Report(Struct, frozen=True):
    """``stopped``: why it did not come to its end; ``None``: it did."""

    entity: str
    loaded: Loaded
    stopped: str | None = None


def parse_range(text: str) -> Range:
    """``<topic>/<generation>/<partition>:<start>-<end>``. Raises ``ValueError`` in words."""
    match = _RANGE.fullmatch(text)
    if match is None or int(match[2]) > int(match[3]):
        raise ValueError(f"{text!r} is no range; expected <topic>/<generation>/<partition>:<first>-<last offset>")
    return Range(chain_of(match[1]), int(match[2]), int(match[3]))


async def run(entities: Sequence[Entity], job: Job, at_once: int) -> list[Report]:
    """All entities, some at a time. What stops one is in its report, and stops no other."""
    room = asyncio.Semaphore(at_once)

    async def one(entity: Entity) -> Report:
        async with room:
            return await _load(entity, job)

    return [*await asyncio.gather(*map(one, entities))]


async def _load(entity: Entity, job: Job) -> Report:
    name = entity.loader.entity
    try:
        return Report(name, await _loaded(entity, job))
    except Abandoned:
        return Report(name, Loaded(), "the process was told to stop; the next run continues")
    except Exception as error:
        metrics.LAKE_WAITS.labels(name, cause_of(error)).set(1)
        log.error("entity_stopped", entity=name, why=in_words(error), exc_info=error)
        return Report(name, Loaded(), in_words(error))


async def _loaded(entity: Entity, job: Job) -> Loaded:
    if job.full_refresh:
        return await entity.refresh(job.skip_expired)
    if job.everything:
        return await entity.loader.load(Span(reading={}, past_floor=job.skip_expired))
    ranges = [one for one in job.ranges if one.chain.topic == entity.topic]
    if not job.ranges:
        return await entity.loader.load(Span(past_floor=job.skip_expired))
    total = Loaded()
    for one in ranges:
        await entity.raw.holding(one.chain, one.end)
        first = await entity.raw.holding(one.chain, one.start)
        found = await entity.loader.load(Span(through={one.chain: one.end}, reading={one.chain: first}))
        total = total.with_(found)
    return total
