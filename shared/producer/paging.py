"""What to ask next: a chain of requests, paged by last timestamp, that never steps over a row. DESIGN 4, 1, 5 and 6.

All that a source offers is "everything since T", cut wherever it likes, without a word. One *tick* (the finest step of
its stamps) is the smallest thing that can be asked for; a tick larger than a page is where readers lose rows, or loop
for ever. So: go on to the last tick shown, ask for it again from its beginning, and count a tick as whole only on
proof. Without proof ask another way; and if nothing proves it, say so and stand still.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from shared.events.model import Sighting

OPEN_ROWS_MAX = 100
"""An unproved tick of no more rows is borne: young and quiet entities have nothing to compare with, and to read so few
again at each poll costs nothing. A source that cuts answers that short is found out as soon as a later row is known."""

PATIENCE_RUNS = 12
"""Runs that may end in the same unproved tick before the entity is paused: mostly the next change proves it."""


class Survey(Struct, frozen=True, kw_only=True):
    """What an answer's stamps tell, in ticks. Rows without a readable stamp count only towards ``rows``."""

    rows: int
    ticks: list[int]  # in the order shown
    first_us: int | None  # least and greatest tick
    last_us: int | None
    least_us: int | None  # least stamp, to the microsecond
    within_us: int | None  # greatest stamp that is not beyond the source's clock
    ascending: bool

    @property
    def several(self) -> bool:
        """Does it hold several ticks?"""
        return self.first_us != self.last_us


def survey(sightings: Sequence[Sighting], granularity_us: int, clock_us: int) -> Survey:
    """Look over the stamps of an answer. Disorder within one tick is none."""
    stamps = [sighting.updated_us for sighting in sightings if sighting.key is not None]
    ticks = stamps if granularity_us == 1 else [stamp_us - stamp_us % granularity_us for stamp_us in stamps]
    ordered = sorted(ticks)
    return Survey(
        rows=len(sightings),
        ticks=ticks,
        first_us=ordered[0] if ordered else None,
        last_us=ordered[-1] if ordered else None,
        least_us=min(stamps, default=None),
        within_us=max((stamp_us for stamp_us in stamps if stamp_us <= clock_us), default=None),
        ascending=ordered == ticks,
    )


class Unproved(Struct, frozen=True, kw_only=True):
    """The tick that ended a run without proof that it was whole: carried to the lane's next run."""

    at_us: int | None = None  # None: there is none
    runs: int = 0  # how many in a row ended so
    rows: int = 0  # the length of the last answer
    within_us: int | None = None  # and its greatest stamp not beyond the source's clock


NOTHING_UNPROVED = Unproved()


class Run(Struct, frozen=True, kw_only=True):
    """A chain of requests in one lane. Kept in memory only: after a kill the lane begins anew from the cursor."""

    at_us: int  # the tick that is being read: all below is read
    since_us: int  # what is asked
    limit: int | None
    unproved: Unproved = NOTHING_UNPROVED
    reached_us: int | None = None  # the greatest tick that was shown
    within_us: int | None = None  # the greatest stamp shown that is not beyond the source's clock
    rows_max: int = 0  # the longest answer so far
    ascending: bool = True
    lone: bool = False  # nothing but one tick was ever shown: the source's order is not known yet
    exclusive: bool | None = None  # does the source leave out the tick ``since`` itself? None: not known yet
    looked_below: bool = False
    probe: Literal["none", "earlier", "later"] = "none"
    probed: bool = False
    open_rows: int = 0  # the answer that a probe is to prove whole
    cut_alike: bool = False  # asked from earlier on, the answer ended in this tick at the same length
    looked_later: bool = False
    later_us: int | None = None  # a row that comes after this tick, shown a moment ago

    @property
    def in_order(self) -> bool:
        """Is what lies below the greatest tick shown known to have been shown?"""
        return self.ascending and not self.lone


class Known(Struct, frozen=True, kw_only=True):
    """What earlier answers have taught."""

    granularity_us: int
    limit_max: int
    longest_rows: int  # longest answer that held several ticks, this one included
    ascending: bool | None  # did the last answer that held several ticks show them in order?
    latest_us: int | None  # last tick of the last whole tail run
    stamp_before: Callable[[int], int | None]  # a recorded stamp below a tick
    more_than: Callable[[int, int], bool]  # are more rows than so many recorded since that time?


class Step(Struct, frozen=True, kw_only=True):
    """Where one answer leaves the run."""

    run: Run
    kind: Literal["again", "on", "end"]  # another question at the same tick, the next page, or the run's end
    unproved: bool = False  # at the end: not proved whole, so that nothing may move beyond ``run.at_us``
    pause: str | None = None


def step(run: Run, answer: Survey, known: Known) -> Step:
    """Judge one answer to ``run``."""
    if run.probe != "none":
        return _after_probe(run, answer, known)
    if run.exclusive is None and run.since_us == run.at_us and run.at_us not in answer.ticks:
        # An exclusive source keeps the rest of that tick to itself; asked from one granule below, it can't.
        return _again(run, since_us=run.at_us - known.granularity_us, looked_below=True)
    run = replace(
        run,
        ascending=run.ascending and (answer.ascending if answer.several else known.ascending is not False),
        lone=not answer.several and _is_orderless(run, answer, known),
        exclusive=_is_exclusive(run, answer),
        reached_us=_greatest(run.reached_us, answer.last_us),
        within_us=_greatest(run.within_us, answer.within_us),
        rows_max=max(run.rows_max, answer.rows),
    )
    short = answer.rows == 0 or _is_short(run, answer.rows, known)
    if not run.in_order:
        return _whole(run) if short else _not_whole(run, answer.rows, known, cut=False)
    last_us = run.at_us if answer.last_us is None else answer.last_us
    latest_us = _greatest(known.latest_us, run.later_us)
    cut = latest_us is not None and last_us < latest_us
    if last_us > run.at_us and (cut or not short):
        return _on(run, last_us, known)
    if short:
        return _whole(run)
    if _is_crowded_out(run, answer):
        return _again(run, since_us=run.at_us)
    return _not_whole(run, answer.rows, known, cut=cut)


def _on(run: Run, last_us: int, known: Known) -> Step:
    """The next page begins at the last tick itself, which this page may have cut."""
    following = replace(
        run,
        at_us=last_us,
        since_us=last_us - known.granularity_us if run.exclusive else last_us,
        looked_below=False,
        probed=False,
        cut_alike=False,
        looked_later=False,
        later_us=None,
    )
    return Step(run=following, kind="on")


def _not_whole(run: Run, rows: int, known: Known, *, cut: bool) -> Step:
    """The answer did not get beyond the tick, and nothing proves that this was all of it.

    ``cut``: rows were shown later than this, and it doesn't show them: more of this tick is to come, or they are gone.
    """
    if run.limit is not None and rows >= run.limit and run.limit < known.limit_max:
        return _again(run, limit=min(2 * run.limit, known.limit_max))
    if not cut and run.unproved.at_us == run.at_us and run.unproved.rows < rows:
        # Longer than last time, so that the last one was not cut at its length: it was whole.
        return _whole(replace(run, within_us=run.unproved.within_us))
    stamp_us = None if run.probed else known.stamp_before(run.at_us)
    if stamp_us is not None:
        # Rows are known to lie there: if the answer is longer for them, then it wasn't cut at this length.
        since_us = stamp_us - stamp_us % known.granularity_us - known.granularity_us
        return _again(run, since_us=since_us, probe="earlier", probed=True, open_rows=rows)
    return _give_up(run, rows, known, cut=cut)


def _after_probe(run: Run, answer: Survey, known: Known) -> Step:
    """The rows of a probe are rows like any others; about the run it tells only whether the tick was whole."""
    calm = replace(run, probe="none", since_us=run.at_us - known.granularity_us, looked_below=True)
    if run.probe == "later":
        if answer.last_us is None or answer.last_us <= run.at_us:
            return _give_up(calm, run.open_rows, known, cut=False)
        # If the tick still hides these, then it is cut for certain. A source that shows the newest first would have
        # shown them in its place.
        at_us = run.at_us if run.in_order or run.reached_us is None else run.reached_us
        return _again(calm, at_us=at_us, since_us=at_us - known.granularity_us, lone=False, later_us=answer.last_us)
    if answer.rows > run.open_rows:
        return _whole(calm)
    same = answer.several and answer.rows == run.open_rows
    return _give_up(replace(calm, cut_alike=same), run.open_rows, known, cut=same)


def _give_up(run: Run, rows: int, known: Known, *, cut: bool) -> Step:
    """Nothing proves the tick whole. What is certainly cut pauses; else the next change will mostly tell."""
    runs = 1 + (run.unproved.runs if run.unproved.at_us == run.at_us else 0)
    if run.ascending and not run.looked_later and (cut or runs % PATIENCE_RUNS == 0):
        # Every so often even without a doubt: a first tick that fills tiny pages would hide all that follows for ever.
        last_us = run.at_us if run.reached_us is None else max(run.at_us, run.reached_us)
        since_us = last_us + known.granularity_us
        return _again(run, since_us=since_us, probe="later", looked_later=True, open_rows=rows)
    run = replace(run, unproved=Unproved(at_us=run.at_us, runs=runs, rows=rows, within_us=run.within_us))
    certain = run.later_us is not None
    full = run.limit is not None and rows >= run.limit
    small = rows <= OPEN_ROWS_MAX and not (full or run.cut_alike or certain)
    hopeless = runs >= PATIENCE_RUNS and (not small or (not run.in_order and known.more_than(rows, run.since_us)))
    return Step(run=run, kind="end", unproved=True, pause=_stuck(run, rows) if certain or hopeless else None)


def _again(run: Run, **changes: object) -> Step:
    return Step(run=replace(run, **changes), kind="again")


def _whole(run: Run) -> Step:
    return Step(run=replace(run, unproved=NOTHING_UNPROVED), kind="end")


def _is_short(run: Run, rows: int, known: Known) -> bool:
    """Shorter than the limit asked for *and* than an answer that is known to have fitted: surely not cut."""
    return rows < known.longest_rows and (run.limit is None or rows < run.limit)


def _is_orderless(run: Run, answer: Survey, known: Known) -> bool:
    """One tick alone has no order: a source that shows the newest rows first may have cut off all that lies before."""
    return known.ascending is None and run.later_us is None and answer.last_us not in (None, run.at_us)


def _is_exclusive(run: Run, answer: Survey) -> bool | None:
    if answer.least_us == run.since_us:
        return False
    if run.looked_below and run.at_us in answer.ticks:
        return True
    return run.exclusive


def _is_crowded_out(run: Run, answer: Survey) -> bool:
    """Did rows from below the tick, asked for only lest the source be exclusive, take the room of the tick's own?"""
    may_ask = run.exclusive is False or not run.looked_below
    return may_ask and run.since_us < run.at_us and answer.first_us is not None and answer.first_us < run.at_us


def _greatest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _stuck(run: Run, rows: int) -> str:
    if run.ascending:
        tick_us = run.at_us if run.reached_us is None else run.reached_us
        what = f"{rows} rows or more stand under the time stamp {iso(tick_us)}, and nothing proves that these are all"
    else:
        what = f"answers since {iso(run.at_us)} are not sorted by time and may be cut at {rows} rows"
    if run.limit is None:
        return f"{what}; declare limit_param and page_rows if the source has a page size, or let it sort by time"
    return f"{what}, asked for {run.limit}; raise page_rows_max, and the source's own maximum"


def iso(us: int) -> str:
    """ISO 8601, for people; the number itself outside the years 1 to 9999."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    except OverflowError:
        return str(us)
    return moment.isoformat().replace("+00:00", "Z")
