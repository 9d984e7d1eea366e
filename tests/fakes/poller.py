"""A poller in memory: drives ``Reading`` against a simulated source, crashes on order, and keeps the books."""

import random
from collections import Counter
from typing import Literal

from msgspec import Struct

from shared.checkpoints.model import CursorState, PageCommit
from shared.events.identity import Identifier
from shared.events.model import Event, EventRules, Sighting
from shared.producer.marks import cap_is_due, tick
from shared.producer.reading import Answer, Page, Reading, ReadingLimits, Request, Wait
from shared.producer.seen import Seen
from tests.fakes.source import EPOCH_US, SECOND_US, Manner, SimulatedSource, Write

Death = Literal["before publishing", "before the commit", "after the commit", "clean"]


def rules_of(shows: Manner, granularity_us: int = SECOND_US) -> EventRules:
    return EventRules(
        entity="e", key=("k",), updated_at="t", updated_at_format="epoch_us", granularity_us=granularity_us, shows=shows
    )


class Books(Struct):
    """What the reader made of a history."""

    events: int
    lost: int  # shown no later than the lateness cap, and not published
    lost_for_good: int  # of these, below the floor: the others still wait, in front of the cursor or of a lookback
    doubled: int  # published more than once
    requests: int
    rows_read: int


class Poller:
    """One entity's reading, its store (state and seen pages) and its topic. Time is simulated."""

    def __init__(
        self,
        source: SimulatedSource,
        limits: ReadingLimits,
        *,
        granularity_us: int = SECOND_US,
        start_us: int = EPOCH_US - 3600 * SECOND_US,
        now_us: int = EPOCH_US,
        date_skew_us: int | None = 0,
    ) -> None:
        self.source = source
        self.limits = limits
        self.rules = rules_of(source.history.shows, granularity_us)
        self.now_us = now_us
        self.topic: list[Event] = []
        self.repeatable: set[str] = set()  # ids that an unclean stop entitles to repetition
        self.shown: dict[bytes, list[bytes]] = {}  # rows: the states that each key was seen in, one after the other
        self._start_us = start_us
        self.pages: list[PageCommit] = []
        self.pause: str | None = None
        self.judged: list[Page] = []
        self._date_skew_us = date_skew_us
        self._identify = Identifier(self.rules).identify
        self._sightings: dict[bytes, Sighting] = {}
        self._shown_us = now_us
        self._run_began_us = now_us
        self.committed = CursorState(cursor_us=start_us, swept_us=start_us, cap_swept_us=start_us)
        self.published: Counter[bytes] = Counter()
        self.reading = self._lease(None)

    def _lease(self, unclean_us: int | None) -> Reading:
        shows = self.rules.shows
        before_us = unclean_us if unclean_us is not None else self.committed.republish_before_us
        floor_us = self.pages[-1].seen_floor_us if self.pages else 0
        loaded = [page.entries for page in self.pages if page.entries and page.max_us >= floor_us]
        seen = Seen.load(shows, loaded, before_us)
        return Reading(self.rules, self.limits, self.committed, seen, unclean_us)

    def die(self, how: Death) -> None:
        """Next owner, from the store alone. An unclean stop may repeat its last page and, of rows, one lookback: the
        cap lookback where one may have been under way."""
        self._shown_us = max(self._shown_us, self.now_us)
        self.reading = self._lease(None if how == "clean" else self._shown_us)
        if how == "clean":
            return
        recorded_us = self.pages[-1].shown_us if self.pages else 0
        again_us = self.committed.swept_us - self.committed.window_us
        if cap_is_due(self.committed, self.limits):
            again_us = self.committed.cap_swept_us - self.limits.lateness_cap_us
        again_us -= 2 * self.rules.granularity_us
        for event in self.topic:
            in_reach = self.rules.shows == "rows" and event.sighting.updated_us >= again_us
            if event.shown_us > recorded_us or in_reach:
                self.repeatable.add(event.event_id)

    def turn(self, death: Death | None = None) -> bool:
        """One request, or a wait until the next is due. False: it was a wait."""
        request = self.reading.next_request(self.now_us / SECOND_US)
        if isinstance(request, Wait):
            if death is not None:
                self.die("clean")
            self.now_us = max(self.now_us + 1000, int(request.until_monotonic_s * SECOND_US) + 1)
            return False
        page = self._judge(request)
        if death != "before publishing":
            self._publish(page)
        if death not in ("before publishing", "before the commit"):
            self._commit(page)
        if death is not None:
            self.die(death)
            return True
        self.reading.apply(page)
        self.judged.append(page)
        self.pause = page.pause
        return True

    def run_until(self, until_us: int, chance: random.Random | None = None, deaths: float = 0.0) -> None:
        """Turn after turn until that time, or a pause."""
        while self.now_us < until_us and self.pause is None:
            dies = chance is not None and chance.random() < deaths
            self.turn(chance.choice(DEATHS) if dies and chance is not None else None)

    def drain(self) -> None:
        """Go on until every lookback has had its turn after the last commit."""
        last_us = max((write.commit_us for write in self.source.history.writes), default=self.now_us)
        reach_us = self.limits.lateness_cap_us + 2 * self.limits.cap_period_us + 4 * self.limits.window_us
        self.run_until(max(last_us, self.now_us) + reach_us)

    def sleep(self, seconds: float) -> None:
        """Nothing runs meanwhile."""
        self.now_us += int(seconds * SECOND_US)

    def books(self) -> Books:
        """Compare with the truth of the source."""
        repeats = Counter(event.event_id for event in self.topic)
        doubled = sum(n - 1 for event_id, n in repeats.items() if event_id not in self.repeatable)
        lost = self._lost_rows() if self.rules.shows == "rows" else self._lost_events()
        floor_us = self.reading.state.floor_us
        assert floor_us is not None
        return Books(
            events=len(self.source.history.writes),
            lost=len(lost),
            lost_for_good=sum(write.stamp_us < floor_us for write in lost),
            doubled=doubled,
            requests=self.source.requests,
            rows_read=self.source.rows,
        )

    def _lost_events(self) -> list[Write]:
        got = Counter({event.event_id: event.sighting.raw for event in self.topic}.values())
        assert not got - Counter(write.raw for write in self.source.history.writes), "published what was never shown"
        lost = []
        for write in self._owed():
            if got[write.raw] == 0:
                lost.append(write)
            got[write.raw] -= 1
        return lost

    def _lost_rows(self) -> list[Write]:
        newest: dict[str | None, Event] = {}
        for event in self.topic:
            best = newest.get(event.sighting.key)
            if best is None or (event.rank, event.tiebreak) > (best.rank, best.tiebreak):
                newest[event.sighting.key] = event
        final = {write.key: write for write in self.source.history.writes}
        owed = {write.number for write in self._owed()}
        return [
            write
            for key, write in final.items()
            if write.number in owed and (str(key) not in newest or newest[str(key)].sighting.raw != write.raw)
        ]

    def _owed(self) -> list[Write]:
        """What the promise covers: dated from the start on, and shown no later than the lateness cap."""
        start_us, cap_us = tick(self._start_us, self.rules.granularity_us), self.limits.lateness_cap_us
        writes = self.source.history.writes
        return [write for write in writes if write.stamp_us >= start_us and write.lateness_us <= cap_us]

    def _judge(self, request: Request) -> Page:
        if request.lane == "tail" and "tail" not in self.reading._runs:
            self._run_began_us = self.now_us
        requested_us = self.now_us
        raws = self.source.get(request.since_us, self.now_us, request.limit)
        self.now_us += 20_000
        date_us = None
        if self._date_skew_us is not None:
            date_us = (requested_us + self._date_skew_us) // SECOND_US * SECOND_US
        answer = Answer(sightings=self._see(raws), server_date_us=date_us, requested_us=requested_us)
        self._shown_us = max(self._shown_us + 1, requested_us)
        again = self.reading.judge(request, answer, self._shown_us)
        page = self.reading.judge(request, answer, self._shown_us)
        assert again == page, "judging changes nothing"
        self._shown_us += len(raws)
        for sighting in answer.sightings:
            states = self.shown.setdefault(sighting.key_hash, [])
            if not states or states[-1] != sighting.identity:
                states.append(sighting.identity)
        return page

    def _see(self, raws: list[bytes]) -> list[Sighting]:
        fresh = [raw for raw in raws if raw not in self._sightings]
        self._sightings.update(zip(fresh, self._identify(fresh), strict=True))
        return [self._sightings[raw] for raw in raws]

    def _publish(self, page: Page) -> None:
        for event in page.events:
            assert not self.topic or event.shown_us > self.topic[-1].shown_us, "shown stamps rise strictly"
            self.topic.append(event)
        self.published.update({event.sighting.raw for event in page.events})

    def _commit(self, page: Page) -> None:
        if page.commit is None:
            return
        if page.request.lane == "tail":
            self._check_cursor(self.committed.cursor_us, page.commit.state.cursor_us)
        assert not self.pages or page.commit.shown_us > self.pages[-1].shown_us
        self.committed = page.commit.state
        self.pages.append(page.commit)

    def _check_cursor(self, was_us: int, is_us: int) -> None:
        """The cursor is never ahead: what it passes, and could be seen when the run began, is published."""
        if self.rules.shows == "rows" or self.source.order != "ascending":
            return  # a row may have moved on; an unsorted answer may be proved whole by a later one
        for write in self.source.history.writes:
            if was_us <= write.stamp_us < is_us and write.commit_us <= self._run_began_us:
                assert self.published[write.raw], f"the cursor passed {write}"


DEATHS: tuple[Death, ...] = ("before publishing", "before the commit", "after the commit", "clean")
