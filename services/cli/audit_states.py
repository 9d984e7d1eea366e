"""Does the table hold, of each key, what the raw rows say that it must? Pure.

Of the raw rows of one key that the table's positions cover, the greatest by (rank, tiebreak, rev, event id) is what it
must hold, or a greater one that was merged early (a range load). A row whose raw row is expired, or lay in an object
that is gone or damaged, proves itself by nothing: it is counted, and not found fault with.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from services.cli.audit_records import ChainOf, State
from services.cli.audit_spill import PARTS, Spill

LISTED_MAX = 1_000
"""Culprits that are kept; all are counted."""
UNKNOWN_CHAIN = 2**16 - 1


class Stale(NamedTuple):
    """A key of which the table holds a lesser event than it must."""

    held: State
    due: State


class States(Struct):
    """What the comparison found."""

    keys: int = 0
    rows: int = 0
    unprovable: int = 0
    stale: list[Stale] = field(default_factory=list)
    stale_count: int = 0
    lacking: list[State] = field(default_factory=list)
    lacking_count: int = 0
    purged: int = 0
    foreign: list[State] = field(default_factory=list)
    foreign_count: int = 0
    twice: list[State] = field(default_factory=list)
    twice_count: int = 0


class Ranges:
    """Ranges of offsets, both ends included, none overlapping."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [start for start, _ in self._ranges]

    def __contains__(self, offset: int) -> bool:
        at = bisect_right(self._starts, offset) - 1
        return at >= 0 and offset <= self._ranges[at][1]


class _Ground(NamedTuple):
    """What is known of a chain's offsets."""

    floor: int
    position: int
    unproved: Ranges


def compare(
    raw: Spill,
    table: Spill,
    chains: Sequence[ChainOf],
    quarantined: frozenset[tuple[int, int]] | set[tuple[int, int]],
    purged: Callable[[State], bool] = lambda _due: False,
) -> States:
    """``raw``: every raw row with a key and an order. ``quarantined``: places of rows that were set aside, unmerged.

    ``purged``: was the row of a key whose last change this is removed on request?
    """
    found = States()
    compare_parts(found, raw, table, chains, quarantined, range(PARTS), purged)
    return found


def compare_parts(
    found: States,
    raw: Spill,
    table: Spill,
    chains: Sequence[ChainOf],
    quarantined: frozenset[tuple[int, int]] | set[tuple[int, int]],
    parts: Iterable[int],
    purged: Callable[[State], bool],
) -> None:
    """Some of the parts."""
    grounds = [
        _Ground(one.floor, one.floor if one.position is None else one.position, Ranges(one.unproved)) for one in chains
    ]
    for number in parts:
        _compare(
            found,
            [State(*fields) for fields in raw.part(number)],
            [State(*fields) for fields in table.part(number)],
            grounds,
            quarantined,
            purged,
        )


def _compare(
    found: States,
    raw: Iterable[State],
    table: Iterable[State],
    grounds: Sequence[_Ground],
    quarantined: frozenset[tuple[int, int]] | set[tuple[int, int]],
    purged: Callable[[State], bool],
) -> None:
    places: dict[tuple[int, int], State] = {}
    due: dict[bytes, State] = {}
    for row in raw:
        places[row.chain, row.offset] = row
        merged = row.offset < grounds[row.chain].position and (row.chain, row.offset) not in quarantined
        if merged and (row.key not in due or row.order > due[row.key].order):
            due[row.key] = row
    held: dict[bytes, State] = {}
    for row in table:
        found.rows += 1
        if row.key in held:
            found.twice_count += 1
            _keep(found.twice, row)
        held[row.key] = row
        _judge(found, row, places.get((row.chain, row.offset)), due.get(row.key), grounds)
    found.keys += len(due.keys() | held.keys())
    for key in due.keys() - held.keys():
        if purged(due[key]):
            found.purged += 1
            continue
        found.lacking_count += 1
        _keep(found.lacking, due[key])


def _judge(found: States, row: State, source: State | None, due: State | None, grounds: Sequence[_Ground]) -> None:
    if due is not None and row.order < due.order:
        found.stale_count += 1
        _keep(found.stale, Stale(row, due))
        return
    if source is not None and (source.key, source.order) == (row.key, row.order):
        return
    if row.chain < len(grounds) and (
        row.offset < grounds[row.chain].floor or row.offset in grounds[row.chain].unproved
    ):
        found.unprovable += 1
        return
    found.foreign_count += 1
    _keep(found.foreign, row)


def why_lesser(held: State, due: State) -> str:
    """Why ``held`` loses against ``due``."""
    if (held.rank, held.tiebreak) != (due.rank, due.tiebreak):
        return f"lower seq: {held.rank}.{held.tiebreak} < {due.rank}.{due.tiebreak}"
    if held.rev != due.rev:
        return f"same seq, lower rev: {held.rev} < {due.rev}"
    return f"same seq and rev, lower event id: {held.id.hex()} < {due.id.hex()}"


def _keep(kept: list, one: object) -> None:  # type: ignore[type-arg]  # of any record
    if len(kept) < LISTED_MAX:
        kept.append(one)
