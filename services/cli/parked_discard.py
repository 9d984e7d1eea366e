"""``tidemark parked discard``: into the archive, then out of the table; never the second without the first.

Each event is claimed, its evidence written and chained, and only then is it given up, marked as told by the operator,
and deleted: the store itself refuses a deletion without evidence and receipt. Death between any two steps leaves an
event that is still parked, or one that the notifier finishes; typing the command again takes up where it stands.
"""

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.parked_audit import audited
from services.cli.parked_progress import Progress
from services.cli.parked_selection import demand_filter, selection_of
from shared.config import ConfigError
from shared.parked.bodies import BodyMissing
from shared.parked.bulk import LEASE_S, Pace, chunks, together
from shared.parked.evidence import Archive, ArchiveUnavailable, EvidenceDamaged, Written
from shared.parked.evidence_chain import Chain
from shared.parked.items import ParkedRow
from shared.parked.leases import Claimed, Receipt
from shared.parked.model import State
from shared.parked.selection import Selection, document_of
from shared.parked.transitions import BodyLost, LeaseLost, NotAllowed, Place, Transitions

Fate = Literal["discarded", "busy", "gone", "not archived"]
CHANNEL = "operator"
ROUNDS = 3
"""How often those are tried again that a worker had."""
ROUND_S = 1.0
LEFT_MAX = 10_000


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    demand_filter(arguments)
    now_ms = clock_ms()
    selection = selection_of(edges, arguments, now_ms * 1000).before(now_ms * 1000)
    archive, desk = await edges.archive(), await edges.desk()
    total = await desk.walk.count(selection)
    if not total:
        exit_code = FINDING if selection.ids else OK
        return Outcome(exit_code=exit_code, lines=["nothing that is parked fits"], document={"total": 0, "counts": {}})
    if not arguments.yes:
        await _confirm(total)
    if (trouble := await archive.answers()) is not None:
        raise ArchiveUnavailable(trouble)
    async with audited(edges, "discard", arguments.why, document_of(selection)) as deed:
        by = By(deed.id, deed.who, arguments.why)
        discarding = Discarding((await edges.parked()).transitions, archive, Chain(archive), selection, by)
        deed.counts = fates = discarding.fates
        await _all(edges, selection, discarding, Pace(arguments.per_second), Progress("discarding", total))
    return _outcome(fates, total, archive)


async def _all(
    edges: Edges, selection: Selection, discarding: "Discarding", pace: Pace, progress: Progress
) -> None:
    try:
        async for page in (await edges.desk()).walk.pages(selection):
            for part in chunks(page.rows, pace.chunk):
                await pace.turn(len(part))
                await discarding.work(part)
                progress.show(discarding.fates.total())
        for _ in range(ROUNDS):
            if left := discarding.take_busy():
                await asyncio.sleep(ROUND_S)
                for part in chunks(left, pace.chunk):
                    await pace.turn(len(part))
                    await discarding.work(part)
    finally:
        progress.end()


class By(Struct, frozen=True):
    """Whose decision it is: goes into evidence and receipt."""

    deed: str
    who: str
    why: str

    @property
    def stale_why(self) -> str:
        return f"discarded by {self.who}: {self.why}"


class _Kept(Struct, frozen=True):
    """A claimed row and its evidence, written now; ``None``: its row names it already."""

    row: Claimed
    written: Written | None


class Discarding:
    """Chunk by chunk. Raises ``ArchiveUnavailable``: then the chunk's rows are as they were; ``ParkedUnavailable``."""

    def __init__(self, rows: Transitions, archive: Archive, chain: Chain, selection: Selection, by: By) -> None:
        self._rows = rows
        self._archive = archive
        self._chain = chain
        self._selection = selection
        self._by = by
        self.fates: Counter[Fate] = Counter()
        self._busy: list[ParkedRow] = []

    def take_busy(self) -> list[ParkedRow]:
        """Those that a worker had, to be tried again; they are not counted until they are."""
        busy, self._busy = self._busy, []
        self.fates["busy"] -= len(busy)
        return busy

    async def work(self, part: Sequence[ParkedRow]) -> None:
        claims = await together([self._claim(row) for row in part])
        claimed = [claim for claim in claims if isinstance(claim, Claimed)]
        fates: list[Fate | _Kept] = [claim for claim in claims if not isinstance(claim, Claimed)]
        try:
            fates += await together([self._keep(row) for row in claimed])
            written = [one.written for one in fates if isinstance(one, _Kept) and one.written is not None]
            await self._chain.append(written)
        except ArchiveUnavailable:
            await together([self._give_back(row, "archive_unavailable") for row in claimed])
            raise
        kept = [fate for fate in fates if isinstance(fate, _Kept)]
        ends = await together([self._finish(one) for one in kept])
        self._count(part, [fate for fate in fates if not isinstance(fate, _Kept)], ends, kept)
        self._remember_busy(part, claims, kept, ends)

    async def _claim(self, place: Place) -> Claimed | Fate:
        row = await self._rows.look(place)
        if row is None or not self._selection.still_takes(row):
            return "gone"
        try:
            claimed = await self._rows.claim(row, self._by.who, LEASE_S, early=True)
        except BodyLost as lost:
            await self._give_back(replace(lost.claimed, due_ms=row.due_ms), "body_lost")
            return "not archived"
        return "busy" if claimed is None else replace(claimed, due_ms=row.due_ms)
