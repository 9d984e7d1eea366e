"""What would pass if all of it were re-driven now: counted, nothing written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from msgspec import Struct, field

from shared.events.model import Reason
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.causes import cause_path
from shared.parked.model import ParkedEvent
from shared.parked.queries import ParkedFilter
from shared.parked.streaming import ParkedRows

CAUSES_MAX = 1_000
"""Kinds of refusal told apart; what comes beyond is counted under the path ``…``."""
OTHER_PATHS = "…"


class Tally(Struct):
    """``parked`` = ``passing`` + those in ``refused``; ``gone`` were re-driven or discarded while we counted."""

    version: int | None
    parked: int = 0
    passing: int = 0
    repaired: int = 0  # of those passing
    gone: int = 0
    refused: dict[tuple[Reason, str], int] = field(default_factory=dict)  # by class and path, as of now

    def text(self) -> str:
        """``of 40,112 parked, 39,870 would pass with schema version 7 (1,204 of them repaired)``"""
        by = "this schema" if self.version is None else f"schema version {self.version}"
        repaired = f" ({self.repaired:,} of them repaired)" if self.repaired else ""
        return f"of {self.parked:,} parked, {self.passing:,} would pass with {by}{repaired}"

    def count(self, found: Retriable | NotYet) -> None:
        self.parked += 1
        if isinstance(found, Retriable):
            self.passing += 1
            self.repaired += found.repaired
            return
        cause = (found.reason, cause_path(found.path))
        if cause not in self.refused and len(self.refused) >= CAUSES_MAX:
            cause = (found.reason, OTHER_PATHS)
        self.refused[cause] = self.refused.get(cause, 0) + 1


async def dry_run(
    wanted: ParkedFilter,
    rows: ParkedRows,
    analyst: Analyst,
    now_us: int,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """``wanted`` names one entity, the analyst's. Memory holds a page of the index and a chunk of events.

    Raises ``ParkedUnavailable``.
    """

    async def chunks() -> AsyncIterator[Sequence[ParkedEvent | None]]:
        async for page in rows.rows(wanted):
            async for chunk in rows.events(page):
                yield chunk

    return await count_passing(chunks(), analyst, now_us, progress)


async def count_passing(
    chunks: AsyncIterator[Sequence[ParkedEvent | None]],
    analyst: Analyst,
    now_us: int,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """``progress`` gets the same tally after each chunk. Encoding runs in a thread, chunk by chunk."""
    tally = Tally(analyst.version)
    async for chunk in chunks:
        there = [event for event in chunk if event is not None]
        tally.gone += len(chunk) - len(there)
        for found in await asyncio.to_thread(_analysed, analyst, there, now_us):
            tally.count(found)
        progress(tally)
    return tally


def _analysed(analyst: Analyst, events: Sequence[ParkedEvent], now_us: int) -> list[Retriable | NotYet]:
    return [analyst.analyse(event, now_us) for event in events]
