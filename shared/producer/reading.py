"""Reading one entity so that no change is lost and none is doubled. DESIGN 4, "Reading". Pure: no I/O and no clock.

Three lanes take turns, one request at a time. The *tail* follows the newest rows and moves the cursor. The *lookback*
re-reads the last minute again and again, since rows become visible after their stamps: a transaction is stamped when it
writes and shown when it commits. The *cap lookback* re-reads the last hour now and then, for what the lookback's window
is too short to find, and widens it.

    request = reading.next_request(monotonic_s)             # changes nothing
    page = reading.judge(request, answer, shown_from_us)    # neither does this: die, or fail to publish, and ask again
    ...                                                     # publish or park page.events, commit page.commit
    reading.apply(page)

What was seen is told by ``numbering``, what to ask next by ``paging``, what may be called read by ``marks``.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from shared.checkpoints.model import CursorState, Lane, PageCommit
from shared.events.model import Event, EventRules, Sighting
from shared.producer import marks
from shared.producer.marks import Clocks, ReadingLimits, tick
from shared.producer.numbering import Numbered, TimeBounds, number
from shared.producer.paging import NOTHING_UNPROVED, OPEN_ROWS_MAX, Known, Run, Survey, iso, step, survey
from shared.producer.seen import Seen

__all__ = ["Answer", "Page", "Reading", "ReadingFault", "ReadingLimits", "Request", "Wait"]

_IDLE = ("reading", "idle: the cursor follows the source's clock past the last tick")
_SHRUNK = ("reading", "seen entries reached seen_bytes_max: the lateness cap shrank")
_KEPT = 7 / 8
"""Of ``seen_bytes_max``, once it was reached: not at each page again."""
_DROPPED_AT_ONCE = 20_000
"""Seen entries forgotten with one page: some milliseconds, where a completed cap lookback frees ten minutes' worth."""


class Request(Struct, frozen=True, kw_only=True):
    """What to ask the source: rows dated at or after ``since_us`` (some sources: after it), in microseconds."""

    lane: Lane
    since_us: int
    limit: int | None
    asked_s: float  # monotonic
    run: Run  # ours alone


class Answer(Struct, frozen=True, kw_only=True):
    """One whole answer: a sighting for each row, in the order shown."""

    sightings: list[Sighting]
    server_date_us: int | None  # the ``Date`` header
    requested_us: int  # our own wall clock when the request was sent


class Wait(Struct, frozen=True):
    """Nothing is due before."""

    until_monotonic_s: float


class Page(Struct, frozen=True, kw_only=True):
    """One judged answer: make ``events`` durable, then ``commit``, then ``Reading.apply``, then mind ``pause``."""

    request: Request
    state: CursorState
    run: Run  # how the lane goes on, or what it has learned
    run_ended: bool  # False: the lane has more to read at once
    rows: int
    events: list[Event]  # unseen, in the order shown; one whose sighting has a refusal is to be parked
    repetitions: int
    below_floor: int  # late beyond the cap: neither published nor recorded
    lateness_us: list[int]  # of each event that the cursor had passed: from its stamp to now, an upper bound
    commit: PageCommit | None  # None: nothing changed
    pause: str | None  # why reading can't go on
    cap_shrunk_us: int | None  # how far back seen entries reach, now that ``seen_bytes_max`` was reached
    clock_skew_us: int | None  # the source's clock less ours


class ReadingFault(Exception):
    """An answer that reading can't go on from, since all of it is older than asked for, or its clock is behind the
    cursor: once more, then pause the entity."""

    reason: Literal["source_cursor"] = "source_cursor"


class Reading:
    """Where the reading of one entity stands. Made anew with each lease, from the committed state and seen pages.

    ``unclean_takeover_us``: the first stamp of the lease, if the previous owner did not release the entity. What it
    published last may then not be recorded.
    """

    def __init__(
        self,
        rules: EventRules,
        limits: ReadingLimits,
        state: CursorState,
        seen: Seen,
        unclean_takeover_us: int | None = None,
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._seen = seen
        self._granularity_us = rules.granularity_us
        self._recorded = state
        self.state = marks.opened(state, limits, rules.granularity_us)
        if unclean_takeover_us is not None and rules.shows == "rows":
            self.state = marks.doubted(self.state, limits, unclean_takeover_us)
        self._runs: dict[Lane, Run] = {}
        self._ended: dict[Lane, Run] = {}  # each lane's last run, for what it has learned
        self._due_s: dict[Lane, float] = {}
        self._last_lane: Lane | None = None
        self._exclusive: bool | None = None
        self._is_untold = False  # the source sends no ``Date``
        self._cap_ended_s: float | None = None  # monotonic: its last run's end, or our beginning

    def next_request(self, monotonic_s: float) -> Request | Wait:
        """What to ask now, or when to come again. Tail and lookbacks take turns, so that neither starves the other."""
        due = [
            lane
            for lane in self._lanes(monotonic_s)
            if lane in self._runs or self._due_s.get(lane, monotonic_s) <= monotonic_s
        ]
        if not due:
            return Wait(min(self._due_s[lane] for lane in self._lanes(monotonic_s)))
        lane = due[1] if len(due) > 1 and due[0] == self._last_lane == "tail" else due[0]
        run = self._runs.get(lane) or self._begun(lane)
        return Request(lane=lane, since_us=run.since_us, limit=run.limit, asked_s=monotonic_s, run=run)

    def judge(self, request: Request, answer: Answer, shown_from_us: int) -> Page:
        """Judge the answer to the last ``next_request``; row i was shown at ``shown_from_us + i``.

        Changes nothing. Raises ``ReadingFault``.
        """
        clocks = self._clocks(answer)
        state = marks.not_ahead(self.state, clocks, self._granularity_us)
        self._check_not_ahead(state, clocks)
        seen_here = survey(answer.sightings, self._granularity_us, clocks.bound_us)
        state = _learned(state, seen_here)
        _check_not_behind(request, seen_here, state.longest_answer_rows, self._granularity_us)
        bounds = self._bounds(request, state, clocks)
        # What an unclean stop left unrecorded is covered by the lookbacks' own pages: what a probe shows need not come
        # again, nor the cap's hour where no cap lookback was interrupted.
        doubting = request.run.probe != "earlier" and (request.lane != "cap" or state.republish_cap)
        numbered = number(self._rules, self._seen, answer.sightings, shown_from_us, bounds, doubting=doubting)
        late_us = self._late(numbered)
        taken = step(request.run, seen_here, self._known(state))
        history = None
        if request.lane == "tail":
            state, idle = marks.tail_moved(state, taken, clocks, self._limits, self._granularity_us)
            ended = taken.kind == "end"
            history = _IDLE if idle else None
        else:
            if request.lane == "cap":
                state = marks.window_raised(state, late_us, clocks, self._limits)
            state, ended = marks.lookback_moved(state, request.lane, taken, self._limits, self._granularity_us)
        shrunk_us = self._shrunk_floor(state, numbered)
        if shrunk_us is not None:
            state, history = replace(state, floor_us=shrunk_us), _SHRUNK
        return Page(
            request=request,
            state=state,
            run=taken.run,
            run_ended=ended,
            rows=seen_here.rows,
            events=numbered.events,
            repetitions=numbered.repetitions,
            below_floor=numbered.below_floor,
            lateness_us=[clocks.source_us - stamp_us for stamp_us in late_us],
            commit=self._commit(state, numbered, history, shown_from_us + max(seen_here.rows, 1) - 1),
            pause=taken.pause or self._overfull(state, numbered),
            cap_shrunk_us=None if shrunk_us is None else state.cursor_us - shrunk_us,
            clock_skew_us=None if answer.server_date_us is None else answer.server_date_us - answer.requested_us,
        )

    def apply(self, page: Page) -> None:
        """Go on from a page whose events are durable and whose commit, if it has one, is."""
        lane, was = page.request.lane, self.state
        self.state = page.state
        if page.commit is not None:
            self._recorded = page.commit.state
            self._seen.add(page.commit.entries)
            self._seen.drop_below(page.commit.seen_floor_us, None if page.cap_shrunk_us else _DROPPED_AT_ONCE)
        if was.republish_before_us is not None and page.state.republish_before_us is None:
            self._seen.trust_all()
        self._last_lane = lane
        self._exclusive = page.run.exclusive
        self._is_untold = page.clock_skew_us is None
        if self._cap_ended_s is None or (lane == "cap" and page.run_ended):
            self._cap_ended_s = page.request.asked_s
        if not page.run_ended:
            self._runs[lane] = page.run
            return
        self._runs.pop(lane, None)
        self._ended[lane] = page.run
        period_s = self._limits.poll_interval_s if lane == "tail" else self._limits.lookback_period_s
        self._due_s[lane] = page.request.asked_s + period_s

    def _lanes(self, monotonic_s: float) -> list[Lane]:
        """What there is to read, the most urgent first."""
        state = self.state
        lanes: list[Lane] = ["tail"]
        if not state.catching_up or state.republish_before_us is not None:
            lanes.append("lookback")
        if marks.cap_is_due(state, self._limits) or "cap" in self._runs or self._cap_is_due_by_time(monotonic_s):
            lanes.append("cap")
        return lanes

    def _cap_is_due_by_time(self, monotonic_s: float) -> bool:
        """Without the source's clock a quiet entity's cursor stands, and by it no cap lookback would ever be due."""
        if not self._is_untold or self._cap_ended_s is None or self.state.catching_up:
            return False
        return monotonic_s - self._cap_ended_s >= self._limits.cap_period_us / 1_000_000

    def _begun(self, lane: Lane) -> Run:
        """A new run, one granule below what is to be read: an exclusive source leaves out the tick it is asked for."""
        at_us = tick(self.state.cursor_us, self._granularity_us)
        if lane != "tail":
            at_us = marks.lookback_begun(self.state, lane, self._limits, self._granularity_us).at_us
        limit, last = self._limits.page_rows, self._ended.get(lane)
        if limit is not None and last is not None and last.limit is not None and last.rows_max > limit:
            limit = last.limit  # a large tick is still in reach: don't double up to it at each poll
        return Run(
            at_us=at_us,
            since_us=at_us - self._granularity_us,
            limit=limit,
            unproved=NOTHING_UNPROVED if last is None else last.unproved,
            exclusive=self._exclusive,
        )

    def _clocks(self, answer: Answer) -> Clocks:
        ours_us = answer.requested_us + self._limits.clock_tolerance_us
        if answer.server_date_us is None:
            return Clocks(answer.requested_us, ours_us, is_told=False)
        return Clocks(answer.server_date_us, min(answer.server_date_us, ours_us))

    def _bounds(self, request: Request, state: CursorState, clocks: Clocks) -> TimeBounds:
        assert state.start_us is not None
        assert state.floor_us is not None
        floor_us = state.floor_us
        if request.run.probe == "earlier" and request.lane != "cap":
            # It may reach further back than any lookback but the cap's, which is to find and measure what is new there.
            floor_us = max(floor_us, tick(state.swept_us - state.window_us, self._granularity_us))
        return TimeBounds(
            since_us=min(request.since_us, clocks.bound_us),
            start_us=state.start_us,
            known_us=state.floor_us - self._granularity_us,
            late_us=state.floor_us,
            floor_us=floor_us,
            clock_us=clocks.bound_us,
            future_us=clocks.bound_us + self._limits.future_us_max,
        )

    def _check_not_ahead(self, state: CursorState, clocks: Clocks) -> None:
        ahead_us = marks.ahead_us(state, clocks, self._limits, self._granularity_us)
        if ahead_us is None:
            return
        clock = "the source's clock (its Date)" if clocks.is_told else "our own clock (the source sends no Date)"
        raise ReadingFault(
            f"the cursor stands at {iso(state.cursor_us)}, {ahead_us / 1e6:.0f} s ahead of {clock}, which shows "
            f"{iso(clocks.source_us)}: what is stamped until then would be missed. If that clock is behind, set it "
            "right and resume; if it was ahead, set the cursor back with `tidemark cursor set`, then resume. They may "
            "differ by clock_tolerance_s"
        )

    def _known(self, state: CursorState) -> Known:
        return Known(
            granularity_us=self._granularity_us,
            limit_max=self._limits.page_rows_max,
            longest_rows=state.longest_answer_rows,
            ascending=state.ascending,
            latest_us=state.latest_us,
            stamp_before=self._seen.stamp_before,
            more_than=self._seen.more_than,
        )

    def _late(self, numbered: Numbered) -> list[int]:
        """Stamps of the new events that the cursor had passed; not of those that are published once more."""
        cursor_us, counts = tick(self.state.cursor_us, self._granularity_us), self._seen.counts
        return [
            event.sighting.updated_us
            for event in numbered.events
            if event.sighting.key is not None
            and event.sighting.updated_us < cursor_us
            and counts.get(event.sighting.identity, 0) <= event.occurrence
        ]

    def _shrunk_floor(self, state: CursorState, numbered: Numbered) -> int | None:
        """Where the floor must rise to lest the seen entries outgrow their limit; never into the tick of the cursor."""
        limit = self._limits.seen_bytes_max
        if self._seen.floor_for(limit, numbered.entries) is None:
            return None
        fitting_us = self._seen.floor_for(int(limit * _KEPT), numbered.entries)
        assert fitting_us is not None
        granule = self._granularity_us
        floor_us = min(tick(fitting_us - 1, granule) + 2 * granule, tick(state.cursor_us, granule) - granule)
        return floor_us if state.floor_us is None or floor_us > state.floor_us else None

    def _overfull(self, state: CursorState, numbered: Numbered) -> str | None:
        """Why memory can't be bounded: all that may be forgotten is, or is about to be, and the rest is too much."""
        limit = self._limits.seen_bytes_max
        fitting_us = self._seen.floor_for(limit, numbered.entries)
        if fitting_us is None or (state.floor_us is not None and fitting_us <= state.floor_us - self._granularity_us):
            return None
        return f"one tick, and rows dated beyond the clock, need more than seen_bytes_max ({limit}): raise it"

    def _commit(
        self, state: CursorState, numbered: Numbered, history: tuple[str, str] | None, shown_us: int
    ) -> PageCommit | None:
        if state == self._recorded and not numbered.entries:
            return None
        assert state.floor_us is not None
        return PageCommit(
            state=state,
            shown_us=shown_us,
            seen_floor_us=state.floor_us - self._granularity_us,  # requests begin one granule below the floor
            entries=numbered.entries,
            min_us=numbered.min_us,
            max_us=numbered.max_us,
            history=history,
        )


def _learned(state: CursorState, answer: Survey) -> CursorState:
    """Only an answer of several ticks says anything about lengths and order."""
    if not answer.several:
        return state
    longest = max(state.longest_answer_rows, answer.rows)
    return replace(state, longest_answer_rows=longest, ascending=answer.ascending)


def _check_not_behind(request: Request, answer: Survey, longest_rows: int, granularity_us: int) -> None:
    """A long answer that ends before what was asked for: the source ignores ``since``, or its order went backwards."""
    since_us = tick(request.since_us, granularity_us)
    if answer.last_us is None or answer.last_us >= since_us or answer.rows < max(longest_rows, OPEN_ROWS_MAX + 1):
        return
    raise ReadingFault(
        f"asked for rows since {iso(since_us)} the source shows {answer.rows} that end at {iso(answer.last_us)}; "
        "check since_param and since_format"
    )
