"""``tidemark parked hold``: put events off, with a new deadline where theirs would come before.

A stale one is taken out of the notifier's hands. The new deadline is the entity's own, or the end of the hold where
that is later: an operator's word may last longer than the entity's patience, but no longer than ``HOLD_S_MAX``.

Nothing is lost by a kill: each event is held or not, and the command may be typed again.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from msgspec import Struct

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome, iso, moment
from services.cli.parked_audit import audited
from services.cli.parked_progress import Progress
from services.cli.parked_selection import demand_filter, nothing, selection_of
from shared.parked.bulk import LEASE_S, Pace, Takes, chunks, together
from shared.parked.leases import Claimed, Row
from shared.parked.model import State
from shared.parked.policy import deadline_ms
from shared.parked.selection import Selection, document_of
from shared.parked.transitions import BodyLost, LeaseLost, Place

Fate = Literal["held", "busy", "gone"]
WAKE_SPREAD_S = 60.0
"""What is woken for a new deadline: time enough to hold it before a retrier comes."""
FOREVER_MS = 10**12
HOLD_S_MAX = 7 * 86_400.0


class Hold(Struct, frozen=True, kw_only=True):
    """Whose it is, and how long. ``patience``: an entity's ``stale_after_s``; ``None``: the policy's."""

    who: str
    now_ms: int
    for_s: float | None
    patience: Callable[[str], float | None]

    @property
    def code(self) -> str:
        return f"held by {self.who}"

    @property
    def until_ms(self) -> int:
        """The deadline of each event may end it before."""
        return self.now_ms + (FOREVER_MS if self.for_s is None else int(self.for_s * 1000))

    def latest_ms(self, entities: Iterable[str]) -> int:
        """When the last of their events is free again."""
        return min(self.until_ms, self.now_ms + int(max(map(self.stale_after_s, entities)) * 1000))

    def stale_after_s(self, entity: str) -> float:
        asked_s = HOLD_S_MAX if self.for_s is None else min(self.for_s, HOLD_S_MAX)
        own_s = self.patience(entity)
        return max(asked_s, HOLD_S_MAX if own_s is None else own_s)


class Rows(Takes, Protocol):
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
    fates: Counter[Fate] = Counter()
    pace = Pace(arguments.per_second)
    what = document_of(selection) | ({} if arguments.for_s is None else {"for_s": arguments.for_s})
    async with audited(edges, "hold", arguments.why, what) as deed:
        deed.counts = fates
        order = Hold(who=deed.who, now_ms=now_ms, for_s=arguments.for_s, patience=edges.patience)
        with Progress("holding", total) as progress:
            async for page in desk.walk.pages(selection):
                for part in chunks(page.rows, pace.chunk):
                    await pace.turn(len(part))
                    fates.update(await together([hold_one(rows, row, selection, order) for row in part]))
                    progress.show(fates.total())
    return _outcome(fates, total, order.latest_ms(selection.entities))


async def hold_one(rows: Rows, place: Place, selection: Selection, order: Hold) -> Fate:
    """``gone``: it has left the table, or is no longer what was selected."""
    row = await rows.look(place)
    if row is None or not selection.still_takes(row):
        return "gone"
    if row.state is State.PARKED and _ends_too_soon(row, order):
        fate = await _hold(rows, row, order)  # only what is at rest gets a new deadline
        row = await rows.look(place)
        if fate != "held" or row is None:
            return fate
    if row.state is State.STALE or _ends_too_soon(row, order):
        stale_after_s = order.stale_after_s(row.event.entity)
        await rows.wake(row, WAKE_SPREAD_S, order.code, operator=True, stale_after_s=stale_after_s)
        row = await rows.look(place)
    return "gone" if row is None else await _hold(rows, row, order)


def _ends_too_soon(row: Row, order: Hold) -> bool:
    """Its deadline would end the hold, and a new one lies later."""
    new_ms = deadline_ms(row.event.reason, order.now_ms, order.stale_after_s(row.event.entity))
    return row.deadline_ms < min(order.until_ms, new_ms)


async def _hold(rows: Rows, row: Row, order: Hold) -> Fate:
    try:
        claimed = await rows.claim(row, order.who, LEASE_S, early=True)
    except BodyLost as lost:
        claimed = lost.claimed
    if claimed is None:
        return "busy"
    try:
        await rows.hold(claimed, order.until_ms, order.code, free=True)
    except LeaseLost:
        return "busy"
    return "held"


def _outcome(fates: Counter[Fate], total: int, latest_ms: int) -> Outcome:
    words: list[tuple[Fate, str]] = [("held", "held"), ("busy", "with a worker now"), ("gone", "gone meanwhile")]
    lines = [", ".join(f"{fates[fate]:,} {word}" for fate, word in words if fates[fate] or fate == "held")]
    lines.append(f"until {moment(latest_ms * 1000)} at the latest; a new contract may wake refused ones before")
    document = {"total": total, "counts": dict(fates), "until": iso(latest_ms * 1000)}
    return Outcome(exit_code=FINDING if fates["busy"] else OK, lines=lines, document=document)
