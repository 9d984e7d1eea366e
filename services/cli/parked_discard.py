"""``tidemark parked discard``: into the archive, then out of the table; never the second without the first.

Each event is claimed, its evidence written and chained, and only then is it given up, marked as told by the operator,
and deleted: the store itself refuses a deletion without evidence and receipt. Death between any two steps leaves an
event that is still parked, or one that the notifier finishes; typing the command again takes up where it stands.
"""

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.parked_audit import audited
from services.cli.parked_progress import Progress
from services.cli.parked_selection import demand_filter, nothing, selection_of
from shared.config import ConfigError
from shared.parked.bodies import BodyMissing
from shared.parked.bulk import Pace, chunks, together
from shared.parked.evidence import Archive, ArchiveUnavailable, EvidenceDamaged, Written
from shared.parked.evidence_chain import Chain
from shared.parked.items import ParkedRow
from shared.parked.leases import Claimed, Receipt, Row
from shared.parked.model import State
from shared.parked.selection import Selection, document_of
from shared.parked.transitions import BodyLost, LeaseLost, NotAllowed, Transitions

Fate = Literal["discarded", "busy", "gone", "not archived"]
CHANNEL = "operator"
LEASE_S = 60.0
"""Longer than the archive takes to fail."""
ROUNDS = 3
"""How often those are tried again that a worker had."""
ROUND_S = 1.0


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    demand_filter(arguments)
    now_ms = clock_ms()
    selection = selection_of(edges, arguments, now_ms * 1000).before(now_ms * 1000)
    archive, desk = await edges.archive(), await edges.desk()
    total = await desk.walk.count(selection)
    if not total:
        return nothing(selection)
    if not arguments.yes:
        await _confirm(total)
    await archive.demand()
    pace = Pace(arguments.per_second)
    async with audited(edges, "discard", arguments.why, document_of(selection)) as deed:
        by = By(deed.id, deed.who, arguments.why)
        discarding = Discarding((await edges.parked()).transitions, archive, Chain(archive), selection, by)
        deed.counts = discarding.fates
        with Progress("discarding", total) as progress:
            async for page in desk.walk.pages(selection):
                await discarding.work(page.rows, pace, progress.show)
            for _ in range(ROUNDS):
                if busy := discarding.take_busy():
                    await asyncio.sleep(ROUND_S)
                    await discarding.work(busy, pace, progress.show)
    return _outcome(discarding.fates, total)


class By(Struct, frozen=True):
    """Whose decision it is: goes into evidence and receipt."""

    deed: str
    who: str
    why: str

    @property
    def stale_why(self) -> str:
        return f"discarded by {self.who}: {self.why}"


class _Case(Struct):
    """One row on its way out."""

    hint: ParkedRow
    row: Claimed | None = None
    due_ms: int = 0  # before we claimed it
    written: Written | None = None
    fate: Fate | None = None  # None: go on


class Discarding:
    """Raises ``ArchiveUnavailable`` (what it holds is as it was, then), ``ParkedUnavailable``, ``EvidenceDamaged``
    when the chain can't be continued."""

    def __init__(
        self,
        rows: Transitions,
        archive: Archive,
        chain: Chain,
        selection: Selection,
        by: By,
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self._rows = rows
        self._archive = archive
        self._chain = chain
        self._selection = selection
        self._by = by
        self._lease_s = lease_s
        self.fates: Counter[Fate] = Counter()
        self._busy: list[ParkedRow] = []

    def take_busy(self) -> list[ParkedRow]:
        """Those that a worker had, to be tried again: no longer counted."""
        busy, self._busy = self._busy, []
        self.fates["busy"] -= len(busy)
        return busy

    async def work(self, rows: Sequence[ParkedRow], pace: Pace, progress: Callable[[int], None]) -> None:
        for part in chunks(rows, pace.chunk):
            await pace.turn(len(part))
            await self._discard([_Case(row) for row in part])
            progress(self.fates.total())

    async def _discard(self, cases: Sequence[_Case]) -> None:
        """Evidence of all, one entry of the chain, and then one after the other out."""
        await together([self._claim(case) for case in cases])
        try:
            await together([self._keep(case) for case in cases if case.fate is None])
            await self._chain.append([case.written for case in cases if case.fate is None and case.written is not None])
        except (ArchiveUnavailable, EvidenceDamaged):
            await together([self._give_back(case, "archive_unavailable") for case in cases if case.fate is None])
            raise
        await together([self._take_out(case) for case in cases if case.fate is None])
        for case in cases:
            assert case.fate is not None, "each case has its end"
            self.fates[case.fate] += 1
            if case.fate == "busy":
                self._busy.append(case.hint)

    async def _claim(self, case: _Case) -> None:
        row = await self._rows.look(case.hint)
        if row is None or not self._selection.still_takes(row):
            case.fate = "gone"
            return
        case.due_ms = row.due_ms
        await self._lease(case, row)

    async def _lease(self, case: _Case, row: Row) -> None:
        try:
            case.row = await self._rows.claim(row, self._by.who, self._lease_s, early=True)
            case.fate = None if case.row is not None else "busy"
        except BodyLost as lost:
            case.row = lost.claimed
            await self._give_back(case, "body_lost")
            case.fate = "not archived"

    async def _keep(self, case: _Case) -> None:
        """What the notifier has archived in this round is looked for, not written again."""
        row = case.row
        assert row is not None, "only what is claimed is kept"
        try:
            if row.arch_uri is not None and row.arch_sha is not None:
                if not await self._archive.holds(row.arch_uri, row.arch_sha):
                    raise EvidenceDamaged(f"{row.arch_uri} is not there any more")
                return
            original = await self._rows.original(row) if row.edits else None
            case.written = await self._archive.keep(replace(row, stale_why=self._by.stale_why), original)
        except (EvidenceDamaged, BodyMissing, ValueError):  # ValueError: it lies in another bucket
            await self._give_back(case, "evidence_refused")
            case.fate = "not archived"

    async def _take_out(self, case: _Case) -> None:
        """Given up, archived, told, deleted: each its own transition, under a new lease where the last has ended."""
        row = case.row
        assert row is not None, "only what is claimed is taken out"
        try:
            if row.state is not State.STALE:
                await self._rows.stale(row, self._by.stale_why, permanent=True, free=True)
                row = await self._again(case)
            if row is not None and row.arch_sha is None and case.written is not None:
                row = await self._rows.archived(row, self._archive.uri(case.written.key), case.written.sha256)
            if row is not None:
                receipt = Receipt(CHANNEL, f"discard:{self._by.deed}", self._by.who, clock_ms())
                await self._rows.notified(row, receipt, 0.0)
                row = await self._again(case)
                case.fate = "discarded"  # if a worker has it now, then the notifier, whose next step is to delete it
                if row is not None:
                    await self._rows.finish(row)
        except (LeaseLost, NotAllowed):
            case.fate = "busy"

    async def _again(self, case: _Case) -> Claimed | None:
        """``None``: a worker has it, or it is gone; ``case.fate`` says which."""
        row = await self._rows.look(case.hint)
        if row is None:
            case.row, case.fate = None, "gone"
        else:
            await self._lease(case, row)
        return case.row if case.fate is None else None

    async def _give_back(self, case: _Case, code: str) -> None:
        if case.row is not None:
            with suppress(LeaseLost):  # then it is nobody's, or another's
                await self._rows.again(case.row, case.due_ms, code, counts=False, free=True)


async def _confirm(total: int) -> None:
    """Who knows the number knows what goes. Raises ``ConfigError``."""
    if not sys.stdin.isatty():
        raise ConfigError([f"discard: {total} events would go; nobody is there to confirm it: look first, then --yes"])
    print(f"{total:,} events will be archived and deleted. Type the number to go on: ", end="", file=sys.stderr)
    sys.stderr.flush()
    answer = await asyncio.to_thread(sys.stdin.readline)
    if answer.strip().replace(",", "") != str(total):
        raise ConfigError(["discard: not confirmed; nothing was done"])


def _outcome(fates: Counter[Fate], total: int) -> Outcome:
    words: list[tuple[Fate, str]] = [
        ("discarded", "archived and deleted"),
        ("busy", "with a worker now: type it again"),
        ("not archived", "can't be archived, and so are kept"),
        ("gone", "gone meanwhile"),
    ]
    lines = [", ".join(f"{fates[fate]:,} {word}" for fate, word in words if fates[fate] or fate == "discarded")]
    if fates["discarded"]:
        lines.append("back again with: tidemark parked redrive --from-archive --day DAY --entity ENTITY")
    counts = {fate: count for fate, count in fates.items() if count}
    exit_code = FINDING if fates["busy"] or fates["not archived"] else OK
    return Outcome(exit_code=exit_code, lines=lines, document={"total": total, "counts": counts})
