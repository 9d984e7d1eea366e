"""How far an entity is read: the floor, the two swept marks and the cursor, in this order, and what moves them. Pure.

Each mark is a promise about rows dated below it. Unseen rows below the *floor* are not published any more. What is
dated below ``cap_swept_us - lateness_cap`` or ``swept_us - window`` can't be found by the next lookback of its kind, so
that these move only when one is completed. The *cursor* moves over what the tail was shown whole. None of them passes
the source's clock: a row that is stamped and committed after that would be behind it at birth.
"""

from msgspec import Struct
from msgspec.structs import replace

from shared.checkpoints.model import CursorState, Lane, SweepProgress
from shared.producer.paging import Run, Step


class ReadingLimits(Struct, frozen=True, kw_only=True):
    """An entity's settings, as far as reading goes."""

    window_us: int = 60_000_000  # a lookback reaches at least so far behind the last one
    lookback_period_s: float = 30.0
    lateness_cap_us: int = 3_600_000_000  # rows that become visible later than so after their stamp may be missed
    cap_period_us: int = 600_000_000
    page_rows: int | None = None  # None: the source has no parameter that limits an answer
    page_rows_max: int = 10_000
    seen_bytes_max: int = 256 * 1024 * 1024
    future_us_max: int = 86_400_000_000
    clock_tolerance_us: int = 5_000_000
    poll_interval_s: float = 5.0


class Clocks(Struct, frozen=True):
    """What time it was at the source when it answered."""

    source_us: int  # its ``Date``, else our own clock
    bound_us: int  # no mark moves beyond: the source's clock, or ours where that runs ahead
    is_told: bool = True  # False: the source sends no ``Date``; our own clock alone never moves a cursor


def tick(stamp_us: int, granularity_us: int) -> int:
    """The tick that holds a stamp: all that a source can be asked for is whole ticks."""
    return stamp_us - stamp_us % granularity_us


def opened(state: CursorState, limits: ReadingLimits, granularity_us: int) -> CursorState:
    """A state that reading can go on from: for a fresh entity, or one whose cursor was set, reading begins here."""
    start_us = tick(state.cursor_us, granularity_us) if state.start_us is None else state.start_us
    return replace(
        state,
        start_us=start_us,
        floor_us=start_us if state.floor_us is None else state.floor_us,
        window_us=min(max(state.window_us, limits.window_us), limits.lateness_cap_us),
    )


def doubted(state: CursorState, limits: ReadingLimits, before_us: int) -> CursorState:
    """After an unclean stop of whoever read rows: what was recorded before that stamp is to be published once more.

    The lookbacks begin anew: their last page, or a probe's, may be what was published and not recorded. Only where a
    cap lookback may have been under way must the next one doubt as well, and publish its hour again.
    """
    return replace(
        state,
        republish_before_us=before_us,
        republish_cap=state.republish_cap or cap_is_due(state, limits),
        lookback=None,
        cap_lookback=None,
    )


def cap_is_due(state: CursorState, limits: ReadingLimits) -> bool:
    """By how far the cursor has come, or because one is under way."""
    if state.catching_up:
        return False
    under_way = state.cap_lookback is not None or state.republish_cap
    return under_way or state.cursor_us - state.cap_swept_us >= limits.cap_period_us


def ahead_us(state: CursorState, clocks: Clocks, limits: ReadingLimits, granularity_us: int) -> int | None:
    """How far the cursor is ahead of the source's clock, if by more than clocks differ: rows are born behind it.

    No mark was ever moved beyond a clock, so that either that clock was wrong, or this one is.
    """
    ahead = state.cursor_us - clocks.source_us
    return ahead if ahead > limits.clock_tolerance_us + granularity_us else None


def not_ahead(state: CursorState, clocks: Clocks, granularity_us: int) -> CursorState:
    """Of an entity that has shown nothing yet: "start now", said by a clock ahead of the source's, would skip rows."""
    if state.newest_us is not None or state.cursor_us <= clocks.bound_us or not state.catching_up:
        return state
    at_us = tick(clocks.bound_us, granularity_us)
    return replace(state, cursor_us=at_us, swept_us=at_us, cap_swept_us=at_us, start_us=at_us, floor_us=at_us)


def tail_moved(
    state: CursorState, step: Step, clocks: Clocks, limits: ReadingLimits, granularity_us: int
) -> tuple[CursorState, bool]:
    """After an answer to the tail; True when an idle entity's cursor was moved by the clock.

    While stamps ascend each page is the last word on what lies below its last tick, so that the cursor moves page by
    page; else only the whole run is. What is dated beyond the clock was shown, and does not count.
    """
    if step.kind == "again":
        return state, False
    run, idle = step.run, False
    within_us = state.cursor_us if run.within_us is None else run.within_us
    if step.unproved:
        within_us = min(within_us, run.at_us)
    state = replace(state, cursor_us=max(state.cursor_us, tick(within_us, granularity_us)))
    if run.within_us is not None and (state.newest_us is None or run.within_us > state.newest_us):
        state = replace(state, newest_us=run.within_us, newest_first_server_us=clocks.source_us)
    if step.kind == "end" and not step.unproved:
        state = replace(state, latest_us=_latest(state, run))
        state, idle = _idled(state, clocks, granularity_us)
    return _settled(state, clocks, limits, granularity_us), idle


def lookback_begun(state: CursorState, lane: Lane, limits: ReadingLimits, granularity_us: int) -> SweepProgress:
    """Where a lookback goes on, or begins: as far behind the last completed one as rows may have come late since."""
    progress = state.lookback if lane == "lookback" else state.cap_lookback
    if progress is None:
        reach_us = state.swept_us - state.window_us
        if lane == "cap":
            reach_us = state.cap_swept_us - limits.lateness_cap_us
        progress = SweepProgress(at_us=tick(reach_us, granularity_us), until_us=state.cursor_us)
    return replace(progress, at_us=max(progress.at_us, state.floor_us or 0))


def lookback_moved(
    state: CursorState, lane: Lane, step: Step, limits: ReadingLimits, granularity_us: int
) -> tuple[CursorState, bool]:
    """After an answer to a lookback; True when it has ended, completed or not.

    Its mark moves only when it is completed, to the cursor at which it began: whoever stops, or fails, on the way, will
    reach further back next time and not less. Reaching the tick of that cursor is enough: the next one, and each tail
    poll, read it again.
    """
    progress = lookback_begun(state, lane, limits, granularity_us)
    run = step.run
    reached_us = run.at_us if run.reached_us is None else max(run.at_us, run.reached_us)
    reached = step.kind != "again" and run.in_order and reached_us >= tick(progress.until_us, granularity_us)
    if reached or (step.kind == "end" and not step.unproved):
        return _completed(state, lane, progress.until_us, limits, granularity_us), True
    if step.kind == "on":
        progress = replace(progress, at_us=run.at_us)
    if lane == "lookback":
        return replace(state, lookback=progress), step.kind == "end"
    return replace(state, cap_lookback=progress), step.kind == "end"


def window_raised(state: CursorState, found_us: list[int], clocks: Clocks, limits: ReadingLimits) -> CursorState:
    """After a cap lookback found rows with these stamps that no lookback would have found.

    How late they were is only known to lie between the window and now. Doubled, the window gets there soon; set to the
    greatest possible, one row after a stop of an hour would make each lookback read an hour.
    """
    missed = [stamp_us for stamp_us in found_us if stamp_us < state.swept_us - state.window_us]
    if not missed:
        return state
    window_us = min(2 * state.window_us, clocks.source_us - min(missed), limits.lateness_cap_us)
    return replace(state, window_us=max(state.window_us, window_us))


def _completed(
    state: CursorState, lane: Lane, until_us: int, limits: ReadingLimits, granularity_us: int
) -> CursorState:
    if state.republish_cap == (lane == "cap"):
        state = replace(state, republish_before_us=None, republish_cap=False)
    if lane == "lookback":
        return replace(state, swept_us=max(state.swept_us, until_us), lookback=None)
    return _floor_follows(
        replace(
            state,
            cap_swept_us=max(state.cap_swept_us, until_us),
            swept_us=max(state.swept_us, until_us),  # it has read all that a lookback begun at that cursor would have
            cap_lookback=None,
        ),
        limits,
        granularity_us,
    )


def _settled(state: CursorState, clocks: Clocks, limits: ReadingLimits, granularity_us: int) -> CursorState:
    """History that was older than the lateness cap when it was first read needs no lookback: nothing is late there.

    Only from the start on and without a gap: what the cursor had passed before a stop was read when it was young.
    """
    if not state.catching_up:
        return state
    settled_us = min(state.cursor_us, tick(clocks.bound_us - limits.lateness_cap_us, granularity_us))
    return _floor_follows(
        replace(
            state,
            swept_us=max(state.swept_us, settled_us),
            cap_swept_us=max(state.cap_swept_us, settled_us),
            catching_up=settled_us == state.cursor_us,
        ),
        limits,
        granularity_us,
    )


def _idled(state: CursorState, clocks: Clocks, granularity_us: int) -> tuple[CursorState, bool]:
    """A quiet entity's cursor follows the source's clock, a window behind, or a large last tick is re-read for ever.

    Counted from the newest stamp and not from the clock itself, for the stamps may be those of another clock. It moves
    by a window at a time: each move is a row of history.
    """
    if not clocks.is_told or state.newest_us is None or state.newest_first_server_us is None:
        return state, False
    quiet_us = clocks.source_us - state.newest_first_server_us
    idle_us = tick(min(state.newest_us + quiet_us - state.window_us, clocks.bound_us), granularity_us)
    if idle_us < state.cursor_us + max(state.window_us, granularity_us):
        return state, False
    return replace(state, cursor_us=idle_us), True


def _latest(state: CursorState, run: Run) -> int | None:
    """The last tick that the source is known to show. Asked for and not shown, it is gone."""
    if run.reached_us is None and state.latest_us is not None and state.latest_us < run.at_us:
        return state.latest_us
    return run.reached_us


def _floor_follows(state: CursorState, limits: ReadingLimits, granularity_us: int) -> CursorState:
    floor_us = tick(state.cap_swept_us - limits.lateness_cap_us, granularity_us)
    return replace(state, floor_us=max(state.floor_us or 0, floor_us))
