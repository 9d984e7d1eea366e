"""``tidemark parked hold``: put events off. A stale one is taken out of the notifier's hands, with a new deadline.

Nothing is lost by a kill: each event is held or not, and the command may be typed again.
"""

from argparse import Namespace
from collections import Counter
from typing import Literal, Protocol

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.parked_audit import audited
from services.cli.parked_progress import Progress
from services.cli.parked_selection import demand_filter, nothing, selection_of
from shared.parked.bulk import LEASE_S, Pace, chunks, together
from shared.parked.leases import Claimed, Row
from shared.parked.model import State
from shared.parked.selection import Selection, document_of
from shared.parked.transitions import BodyLost, Hint, LeaseLost, Place

Fate = Literal["held", "busy", "gone"]
WAKE_SPREAD_S = 60.0
"""A stale event is woken first: time enough to hold it before a retrier comes."""
FOREVER_MS = 10**12


class Rows(Protocol):
    """What holding needs of ``Transitions``. All raise ``ParkedUnavailable``."""

    async def look(self, place: Place) -> Row | None: ...

    async def wake(self, place: Place, spread_s: float, by: str, *, operator: bool = False) -> bool: ...

    async def claim(self, hint: Hint, worker: str, lease_s: float, *, early: bool = False) -> Claimed | None:
        """Raises ``BodyLost``."""

    async def hold(self, claimed: Claimed, due_ms: int, why: str, *, free: bool = False) -> None:
        """Raises ``LeaseLost``."""


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    demand_filter(arguments)
    now_ms = clock_ms()
    selection = selection_of(edges, arguments, now_ms * 1000).before(now_ms * 1000)
    desk, rows = await edges.desk(), (await edges.parked()).transitions
    total = await desk.walk.count(selection)
    if not total:
        return nothing(selection)
    until_ms = now_ms + (FOREVER_MS if arguments.for_s is None else arguments.for_s * 1000)
    fates: Counter[Fate] = Counter()
    pace = Pace(arguments.per_second)
    what = document_of(selection) | ({} if arguments.for_s is None else {"for_s": arguments.for_s})
    async with audited(edges, "hold", arguments.why, what) as deed:
        deed.counts = fates
        with Progress("holding", total) as progress:
            async for page in desk.walk.pages(selection):
                for part in chunks(page.rows, pace.chunk):
                    await pace.turn(len(part))
                    fates.update(await together([hold_one(rows, row, selection, until_ms, deed.who) for row in part]))
                    progress.show(fates.total())
    return _outcome(fates, total)


async def hold_one(rows: Rows, place: Place, selection: Selection, until_ms: int, who: str) -> Fate:
    """``gone``: it has left the table, or is no longer what was selected."""
    row = await rows.look(place)
    if row is None or not selection.still_takes(row):
        return "gone"
    by = f"held by {who}"
    if row.state is State.STALE:
        await rows.wake(row, WAKE_SPREAD_S, by, operator=True)
        row = await rows.look(place)
        if row is None:
            return "gone"
    try:
        claimed = await rows.claim(row, who, LEASE_S, early=True)
    except BodyLost as lost:
        claimed = lost.claimed
    if claimed is None:
        return "busy"
    try:
        await rows.hold(claimed, until_ms, by, free=True)
    except LeaseLost:
        return "busy"
    return "held"


def _outcome(fates: Counter[Fate], total: int) -> Outcome:
    words: list[tuple[Fate, str]] = [("held", "held"), ("busy", "with a worker now"), ("gone", "gone meanwhile")]
    lines = [", ".join(f"{fates[fate]:,} {word}" for fate, word in words if fates[fate] or fate == "held")]
    lines.append("each until the time given, or its deadline if that is sooner; a new contract may wake it before")
    document = {"total": total, "counts": dict(fates)}
    return Outcome(exit_code=FINDING if fates["busy"] else OK, lines=lines, document=document)
