"""DESIGN 4, "Reading", rule by rule: each test is the accident that its rule prevents."""

import json
from typing import Any

import msgspec
import pytest

from shared.checkpoints.model import CursorState, moved
from shared.events.identity import Identifier, event_id
from shared.events.model import Reason
from shared.producer.reading import Answer, Page, Reading, ReadingFault, ReadingLimits, Request, Wait
from shared.producer.seen import Seen, unpack
from tests.fakes.poller import rules_of
from tests.fakes.source import EPOCH_US, SECOND_US, Manner

Row = tuple[Any, Any, Any]  # key, seconds after the epoch, value

QUIET = ReadingLimits(lookback_period_s=1e9, cap_period_us=10**18, window_us=60 * SECOND_US)
"""Only the first lookback, at the start."""


def us(seconds: float) -> int:
    return EPOCH_US + int(seconds * SECOND_US)


class Desk:
    """One entity's reading, fed by hand. Rows have a granularity of one second; the clock stands at ``now_s``."""

    def __init__(
        self,
        shows: Manner = "events",
        *,
        cursor_s: float = 0,
        now_s: float = 1000,
        limits: ReadingLimits = QUIET,
        state: CursorState | None = None,
        pages: list[bytes] | None = None,
        unclean: bool = False,
    ) -> None:
        self.rules = rules_of(shows)
        self.limits = limits
        self.now_s = now_s
        self.shown_us = us(now_s)
        self.pages = list(pages or [])
        cursor_us = us(cursor_s)
        # Not catching up: these tests are about a reading that is under way.
        started = CursorState(cursor_us=cursor_us, swept_us=cursor_us, cap_swept_us=cursor_us, catching_up=False)
        self.state = state or started
        unclean_us = self.shown_us if unclean else None
        before_us = unclean_us or self.state.republish_before_us
        self.reading = Reading(self.rules, limits, self.state, Seen.load(shows, self.pages, before_us), unclean_us)

    def request(self) -> Request:
        """The next one that is due, however long that takes."""
        while isinstance(request := self.reading.next_request(self.now_s), Wait):
            assert request.until_monotonic_s > self.now_s
            self.now_s = request.until_monotonic_s
        return request

    def judge(self, request: Request, rows: list[Row], date_s: float | None) -> Page:
        raws = [
            row[0] if isinstance(row[0], bytes) else json.dumps({"k": row[0], "t": us(row[1]), "v": row[2]}).encode()
            for row in rows
        ]
        answer = Answer(
            sightings=Identifier(self.rules).identify(raws),
            server_date_us=us(self.now_s if date_s is None else date_s),
            requested_us=us(self.now_s),
        )
        return self.reading.judge(request, answer, self.shown_us)

    def read(self, rows: list[Row], date_s: float | None = None, lane: str | None = None) -> Page:
        """Answer the next request, of that lane: others are answered with nothing."""
        request = self.request()
        while lane is not None and request.lane != lane:
            self.settle(self.judge(request, [], date_s))
            request = self.request()
        page = self.judge(request, rows, date_s)
        self.settle(page)
        return page

    def settle(self, page: Page) -> None:
        self.shown_us += page.rows + 1
        if page.commit is not None:
            self.state = page.commit.state
            self.pages += [page.commit.entries] if page.commit.entries else []
        self.reading.apply(page)

    def successor(self, *, unclean: bool = False, after_s: float = 1) -> "Desk":
        """The next owner, who knows what was committed."""
        return Desk(
            self.rules.shows,
            now_s=self.now_s + after_s,
            limits=self.limits,
            state=msgspec.json.decode(msgspec.json.encode(self.state), type=CursorState),
            pages=self.pages,
            unclean=unclean,
        )

    @property
    def cursor_s(self) -> float:
        return (self.reading.state.cursor_us - EPOCH_US) / SECOND_US


def values(page: Page) -> list[Any]:
    return [json.loads(event.sighting.raw)["v"] for event in page.events]


def ids(page: Page) -> list[str]:
    return [event.event_id for event in page.events]


def since_s(request: Request) -> float:
    return (request.since_us - EPOCH_US) / SECOND_US


# 1. The tail


def test_the_tail_starts_one_granule_below_the_cursor() -> None:
    desk = Desk(cursor_s=100.5)

    assert since_s(desk.request()) == 99


def test_a_next_page_asks_for_the_last_tick_itself() -> None:
    desk = Desk(cursor_s=100)

    desk.read([("a", 101, 1), ("b", 102, 2), ("c", 103, 3)])

    assert since_s(desk.request()) == 103 or since_s(_next_tail(desk)) == 103


def _next_tail(desk: Desk) -> Request:
    while (request := desk.request()).lane != "tail":
        desk.settle(desk.judge(request, [], None))
    return request


def test_an_exclusive_source_is_asked_again_from_one_granule_below_so_that_the_last_tick_is_shown_whole() -> None:
    desk = Desk(cursor_s=100)
    desk.read([("a", 101, 1), ("b", 102, 2)])

    page = desk.read([("d", 103, 4)], lane="tail")  # asked since 102: (c, 102) is kept back
    request = _next_tail(desk)
    rest = desk.judge(request, [("b", 102, 2), ("c", 102, 3), ("d", 103, 4)], None)

    assert values(page) == [4]
    assert since_s(request) == 101
    assert values(rest) == [3]


def test_a_poll_that_shows_nothing_new_records_nothing() -> None:
    desk = Desk(cursor_s=100)
    desk.read([("a", 101, 1), ("b", 102, 2)], lane="tail")
    desk.read([("b", 102, 2)], lane="tail")

    page = desk.read([("b", 102, 2)], lane="tail")

    assert (page.repetitions, page.events, page.commit) == (1, [], None)


# 2. The lookback


def lookbacks(**changes: Any) -> ReadingLimits:
    return msgspec.structs.replace(QUIET, lookback_period_s=30.0, **changes)


def test_a_lookback_reads_from_the_window_behind_the_last_one_and_then_moves_its_mark() -> None:
    desk = Desk(cursor_s=500, limits=lookbacks())
    desk.read([("a", 510, 1), ("b", 520, 2)], lane="tail")
    desk.read([("b", 520, 2)], lane="tail")

    request = desk.request()
    page = desk.judge(request, [("z", 470, 9), ("a", 510, 1), ("b", 520, 2)], None)
    desk.settle(page)

    assert (request.lane, since_s(request)) == ("lookback", 500 - 60 - 1)
    assert values(page) == [9] if (desk.reading.state.floor_us or 0) <= us(470) else page.below_floor == 0
    assert desk.reading.state.swept_us == us(520)


def test_a_lookback_that_was_stopped_goes_on_where_it_was_and_reaches_back_from_the_last_completed_one() -> None:
    desk = _with_history(lookbacks())
    page = desk.read([("a", 505, 1), ("b", 510, 2)] + [("c", 515, n) for n in range(9)], lane="lookback")
    assert not page.run_ended

    late = desk.successor(after_s=7200)
    late.read([("x", 600, 7)], lane="tail")
    request = _next_of(late, "lookback")

    assert since_s(request) == 515 - 1
    assert late.reading.state.swept_us == desk.reading.state.swept_us, "the mark stands until the end is reached"


def _next_of(desk: Desk, lane: str) -> Request:
    while (request := desk.request()).lane != lane:
        desk.settle(desk.judge(request, [], None))
    return request


def _with_history(limits: ReadingLimits) -> Desk:
    """A long answer of several ticks was seen: nothing of three rows counts as cut."""
    state = CursorState(
        cursor_us=us(540),
        swept_us=us(500),
        cap_swept_us=us(500),
        floor_us=us(0),
        start_us=us(0),
        catching_up=False,
        longest_answer_rows=5,
        ascending=True,
        latest_us=us(540),
    )
    return Desk(limits=limits, state=state, now_s=550)


def test_the_tail_is_polled_between_the_pages_of_a_lookback() -> None:
    desk = _with_history(lookbacks())
    lanes = []
    for step in range(6):
        request = desk.request()
        lanes.append(request.lane)
        rows: list[Row] = [("n", 500 + step, n) for n in range(3)] + [("m", 501 + step, n) for n in range(3)]
        desk.settle(desk.judge(request, rows if request.lane == "lookback" else [], None))
        desk.now_s += 5

    assert lanes == ["tail", "lookback", "tail", "lookback", "tail", "lookback"]


def test_a_stop_makes_the_next_lookback_reach_further_back_and_not_less() -> None:
    desk = _with_history(lookbacks())
    late = desk.successor(after_s=7200)
    late.read([("y", 7000, 1)], lane="tail")

    assert since_s(_next_of(late, "lookback")) == 500 - 60 - 1


# 3. The cap lookback


def test_the_cap_lookback_is_due_by_how_far_the_cursor_has_come_and_what_it_finds_raises_the_window() -> None:
    limits = lookbacks(cap_period_us=600 * SECOND_US, lateness_cap_us=3600 * SECOND_US)
    desk = _with_history(limits)
    desk.read([("a", 1200, 1)], lane="tail")
    desk.read([("a", 1200, 1)], lane="lookback")
    assert desk.reading.state.swept_us == us(1200)

    request = _next_of(desk, "cap")
    page = desk.judge(request, [("z", 900, 9), ("a", 1200, 1)], 1210)
    desk.settle(page)

    assert since_s(request) == max(500 - 3600, 0) - 1
    assert values(page) == [9]
    assert page.lateness_us == [310 * SECOND_US]
    assert desk.reading.state.window_us == 120 * SECOND_US
    assert desk.reading.state.cap_swept_us == us(1200)


def test_what_a_lookback_finds_leaves_the_window_as_it_is() -> None:
    desk = _with_history(lookbacks())

    page = desk.read([("z", 520, 9), ("a", 540, 1)], lane="lookback")

    assert 9 in values(page)
    assert desk.reading.state.window_us == 60 * SECOND_US


# 4. What was seen


def test_rows_below_the_floor_are_counted_and_not_published() -> None:
    state = msgspec.structs.replace(_with_history(QUIET).state, floor_us=us(400))
    desk = Desk(state=state, now_s=550)

    page = desk.read([("z", 399, 9), ("y", 400, 8), ("x", -5, 7)], lane="lookback")

    assert values(page) == [8]
    assert page.below_floor == 1, "what is dated before the start was never wanted"


def test_equal_events_of_one_tick_are_numbered_and_counted_again_from_the_ticks_first_row_on_each_page() -> None:
    desk = Desk("events", cursor_s=100)
    first = desk.read([("a", 101, 1), ("a", 101, 1)], lane="tail")

    second = desk.read([("a", 101, 1), ("a", 101, 1), ("a", 101, 1)], lane="tail")

    assert [event.occurrence for event in first.events] == [0, 1]
    assert [event.occurrence for event in second.events] == [2]
    assert second.events[0].event_id == event_id(second.events[0].sighting.identity, 2)


def test_a_row_that_comes_back_to_an_earlier_state_within_one_tick_has_changed_twice() -> None:
    desk = Desk("rows", cursor_s=100)
    pages = [desk.read([("a", 101, value)], lane="tail") for value in (1, 2, 1, 1)]

    assert [values(page) for page in pages] == [[1], [2], [1], []]
    assert [event.occurrence for page in pages for event in page.events] == [0, 0, 1]
    assert len({event.event_id for page in pages for event in page.events}) == 3


def test_stamps_of_first_sight_follow_the_rows_of_the_answer() -> None:
    desk = Desk(cursor_s=100)
    desk.read([("a", 101, 1)], lane="tail")
    shown_us = desk.shown_us

    page = desk.read([("a", 101, 1), ("b", 102, 2), ("c", 103, 3)], lane="tail")

    assert [event.shown_us for event in page.events] == [shown_us + 1, shown_us + 2]
    assert page.commit is not None
    assert page.commit.shown_us == shown_us + 2


def test_after_an_unclean_stop_the_first_lookback_publishes_recorded_rows_once_more_under_the_same_id() -> None:
    desk = Desk("rows", cursor_s=100, limits=lookbacks())
    first = desk.read([("a", 101, 1), ("b", 102, 5)], lane="tail")
    # Now value 2 is published and not recorded; the row comes back to 1 before anyone looks again.

    heir = desk.successor(unclean=True)
    tail = heir.read([("a", 101, 1), ("b", 102, 5)], lane="tail")
    lookback = heir.read([("a", 101, 1), ("b", 102, 5)], lane="lookback")
    again = heir.read([("a", 101, 1), ("b", 102, 5)], lane="lookback")

    assert (tail.events, lookback.repetitions) == ([], 0)
    assert ids(lookback) == ids(first)
    assert lookback.events[0].rank > first.events[0].rank, "so that it lies on top of what was not recorded"
    assert again.events == []


def test_the_duty_to_publish_once_more_outlives_a_clean_stop_of_the_one_who_had_it() -> None:
    desk = Desk("rows", cursor_s=100, limits=lookbacks())
    first = desk.read([("a", 101, 1), ("b", 102, 5)], lane="tail")
    heir = desk.successor(unclean=True)
    heir.read([("a", 101, 1), ("b", 102, 5), ("c", 103, 6)], lane="tail")

    second_heir = heir.successor()
    page = second_heir.read([("a", 101, 1), ("b", 102, 5), ("c", 103, 6)], lane="lookback")

    assert ids(page) == ids(first), "and (c) was recorded by an owner who knew what had been published"


def test_events_are_not_repeated_after_an_unclean_stop() -> None:
    desk = Desk("events", cursor_s=100, limits=lookbacks())
    desk.read([("a", 101, 1), ("b", 102, 5)], lane="tail")

    page = desk.successor(unclean=True).read([("a", 101, 1), ("b", 102, 5)], lane="lookback")

    assert page.events == []


def test_a_rewound_entity_publishes_again_under_the_same_ids() -> None:
    desk = Desk("rows", cursor_s=100)
    first = desk.read([("a", 101, 1), ("b", 102, 2)], lane="tail")

    rewound = Desk("rows", state=moved(desk.state, us(100)), now_s=desk.now_s + 10)  # its digests are not loaded
    page = rewound.read([("a", 101, 1), ("b", 102, 2)], lane="tail")

    assert ids(page) == ids(first)


def test_a_cursor_set_forward_skips_what_lies_below_it() -> None:
    desk = Desk(cursor_s=100)
    desk.read([("a", 101, 1), ("b", 102, 2)], lane="tail")

    skipped = Desk(state=moved(desk.state, us(500)), now_s=desk.now_s + 10)
    page = skipped.read([("x", 499, 7), ("y", 500, 8)], lane="tail")

    assert (values(page), page.below_floor) == ([8], 0)


# 5. Paging


def test_a_full_tick_doubles_the_limit_and_is_never_stepped_over() -> None:
    desk = Desk(cursor_s=100, limits=msgspec.structs.replace(QUIET, page_rows=50, page_rows_max=150))
    full = [("k", 101, n) for n in range(400)]
    before: list[Row] = [("k", 100, 1)]
    asked: list[int | None] = []
    pause = None

    for _ in range(60):
        request = _next_tail(desk)
        asked.append(request.limit)
        rows = (before if since_s(request) < 101 else []) + full
        page = desk.judge(request, rows[: request.limit], None)
        desk.settle(page)
        pause = pause or page.pause

    assert {50, 100, 150} <= set(asked)
    assert desk.cursor_s <= 101
    assert pause is not None
    assert "150" in pause


def test_a_tick_larger_than_a_silent_cut_pauses_when_later_rows_are_known() -> None:
    state = msgspec.structs.replace(_with_history(QUIET).state, latest_us=us(600), longest_answer_rows=120)
    desk = Desk(state=state, now_s=700)
    full: list[Row] = [("k", 560, n) for n in range(120)]
    later: list[Row] = [("k", 600, 1)]

    pages = [desk.read(full if since_s(request) <= 560 else later) for request in _requests(desk, 12)]

    assert any(page.pause is not None and "2023-11-14T22:22:40Z" in page.pause for page in pages)
    assert desk.cursor_s <= 560


def _requests(desk: Desk, turns: int) -> Any:
    for _ in range(turns):
        yield desk.request()


def test_a_longer_answer_from_earlier_on_proves_that_a_tick_was_not_cut() -> None:
    desk = Desk(cursor_s=100)
    desk.read([("a", 101, 1), ("b", 103, 2)], lane="tail")
    big: list[Row] = [("k", 103, n) for n in range(200)]

    unproved = desk.read(big, lane="tail")
    request = _next_tail(desk)
    probe = desk.judge(request, [("a", 101, 1), ("b", 103, 2), *big], None)
    desk.settle(probe)
    following = desk.read([("b", 103, 2), *big], lane="tail")

    assert not unproved.run_ended
    assert since_s(request) == 101 - 1
    assert (probe.run_ended, probe.pause) == (True, None)
    assert following.run_ended, "one request is enough from now on"


def test_one_row_alone_is_read_by_one_request_a_poll_and_pauses_nothing() -> None:
    desk = Desk("rows", cursor_s=100)
    pages = [desk.read([("a", 101, 1)], lane="tail") for _ in range(40)]

    assert all(page.pause is None for page in pages)
    assert sum(page.run_ended for page in pages) > 30


def test_a_source_that_ignores_since_is_a_fault_and_changes_nothing() -> None:
    desk = Desk(cursor_s=500)
    request = desk.request()

    with pytest.raises(ReadingFault, match="check since_param"):
        desk.judge(request, [("k", n // 50, n) for n in range(200)], None)

    assert desk.request() == request


# 6. Order


def test_the_cursor_moves_page_by_page_while_stamps_ascend() -> None:
    desk = Desk(cursor_s=100)

    page = desk.read([("a", 101, 1), ("b", 102, 2)], lane="tail")

    assert not page.run_ended
    assert desk.cursor_s == 102


def test_unsorted_answers_move_the_cursor_only_when_nothing_can_have_been_cut_off() -> None:
    desk = Desk(cursor_s=100)
    newest_first: list[Row] = [("k", 300 - n, n) for n in range(150)]

    page = desk.read(newest_first, lane="tail")
    stood_s = desk.cursor_s
    desk.read([("new", 301, 1), *newest_first], lane="tail")

    assert len(page.events) == 150
    assert stood_s == 100
    assert desk.cursor_s == 300, "a longer answer proves that the shorter one was whole"


# 7. Clocks


@pytest.mark.parametrize(("date_s", "expected_s"), [(150, 150), (1000, 155)], ids=["source behind", "ours behind"])
def test_the_cursor_never_passes_the_earlier_of_both_clocks(date_s: float, expected_s: float) -> None:
    desk = Desk(cursor_s=100, now_s=150)

    page = desk.read([("k", second, second) for second in range(101, 200)], date_s=date_s, lane="tail")

    assert len(page.events) == 99
    assert desk.cursor_s == expected_s


def test_a_date_a_little_ahead_is_published_once_and_moves_no_cursor() -> None:
    desk = Desk(cursor_s=100, now_s=200)
    first = desk.read([("a", 150, 1), ("b", 5000, 2)], lane="tail")
    pages = [desk.read([("a", 150, 1), ("b", 5000, 2)], lane="tail") for _ in range(5)]
    desk.now_s = 6000
    arrived = desk.read([("b", 5000, 2), ("c", 5001, 3)], lane="tail")

    assert values(first) == [1, 2]
    assert [event for page in pages for event in page.events] == []
    assert values(arrived) == [3]
    assert desk.cursor_s == 5001


def test_a_date_far_ahead_is_refused_once_even_when_its_time_has_come() -> None:
    desk = Desk(cursor_s=100, now_s=200, limits=msgspec.structs.replace(QUIET, lateness_cap_us=60 * SECOND_US))
    day_s = 86_400
    rows: list[Row] = [("a", 150, 1), ("b", 2 * day_s, 2)]
    first = desk.read(rows, lane="tail")
    assert (desk.cursor_s, first.pause) == (150, None)
    assert [event.sighting.refusal and event.sighting.refusal.reason for event in first.events] == [None, Reason.FUTURE]

    again = [desk.read([("x", at_s, at_s), rows[1]], lane="tail") for at_s in range(200, 2000, 50)]
    desk.now_s = 2.5 * day_s
    arrived = desk.read([rows[1], ("c", 2 * day_s + 1, 3)], lane="tail")

    assert all(values(page) == [page_s] for page, page_s in zip(again, range(200, 2000, 50), strict=True))
    assert values(arrived) == [3]


def test_starting_now_by_a_clock_ahead_of_the_sources_skips_nothing() -> None:
    now_us = us(1000)
    state = CursorState(cursor_us=now_us, swept_us=now_us, cap_swept_us=now_us)
    desk = Desk(state=state, now_s=1000)

    desk.read([], date_s=990, lane="tail")
    page = desk.read([("a", 995, 1)], date_s=996, lane="tail")

    assert values(page) == [1]


# 8. Idle entities


def test_the_cursor_of_a_quiet_entity_follows_the_sources_clock_past_a_large_tick() -> None:
    limits = lookbacks(poll_interval_s=10.0)
    desk = Desk(cursor_s=900, now_s=1000, limits=limits)
    tick: list[Row] = [("k", 990, n) for n in range(500)]
    desk.read([("a", 980, 1), *tick], lane="tail")
    desk.read(tick, lane="tail")
    histories = []
    for _ in range(40):
        request = desk.request()
        page = desk.judge(request, [row for row in tick if since_s(request) <= row[1]], None)
        histories += [page.commit.history] if page.commit and page.commit.history else []
        desk.settle(page)
    reads = desk.read([row for row in tick if since_s(desk.request()) <= row[1]])

    assert 990 < desk.cursor_s <= desk.now_s - 60
    assert reads.rows == 0
    assert len(set(histories)) == 1, "one text, so that equal moves are kept as one row of history"


# Events that can't be read


def test_an_unreadable_event_is_shown_once_and_moves_no_mark() -> None:
    desk = Desk(cursor_s=100)
    first = desk.read([(b'{"k": 1}', 0, 0), ("a", 101, 1), ("b", 102, 2)], lane="tail")
    second = desk.read([(b'{"k": 1}', 0, 0), ("b", 102, 2)], lane="tail")
    assert first.commit is not None

    assert [event.sighting.key for event in first.events] == [None, "a", "b"]
    assert second.events == []
    assert desk.cursor_s == 102
    assert [entry.updated_us for entry in unpack(first.commit.entries)][0] == us(99), "recorded under the page's since"


def test_an_unreadable_event_that_is_shown_for_hours_is_renewed_and_not_parked_again() -> None:
    limits = lookbacks(lateness_cap_us=120 * SECOND_US, cap_period_us=60 * SECOND_US)
    desk = Desk(cursor_s=100, now_s=110, limits=limits)
    broken: Row = (b'{"k": 1}', 0, 0)
    refused = 0
    for _ in range(400):
        request = desk.request()
        lately: list[Row] = [("k", second, second) for second in range(100, int(desk.now_s), 10)]
        page = desk.judge(request, [row for row in lately if row[1] >= since_s(request)] + [broken], None)
        refused += sum(event.sighting.key is None for event in page.events)
        desk.settle(page)
        desk.now_s += 5

    assert desk.reading.state.floor_us is not None
    assert desk.reading.state.floor_us > us(1000)
    assert refused == 1


# Catching up, and the bounds of memory


def test_a_long_history_is_read_once_and_lookbacks_begin_where_rows_may_still_come_late() -> None:
    state = CursorState(cursor_us=us(0), swept_us=us(0), cap_swept_us=us(0))
    limits = lookbacks(lateness_cap_us=600 * SECOND_US, cap_period_us=60 * SECOND_US)
    desk = Desk(state=state, now_s=100_000, limits=limits)
    lanes = []
    for second in range(0, 99_000, 1000):
        request = desk.request()
        lanes.append(request.lane)
        desk.settle(desk.judge(request, [("k", second + n * 100, n) for n in range(11)], None))

    assert set(lanes) == {"tail"}
    assert desk.reading.state.swept_us == desk.reading.state.cursor_us
    assert desk.reading._seen.entries < 100

    desk.read([("k", 99_000, 1), ("k", 99_990, 2)], lane="tail")

    assert since_s(_next_of(desk, "lookback")) < 99_400


def test_when_memory_is_used_up_the_cap_shrinks_and_says_so() -> None:
    limits = msgspec.structs.replace(QUIET, seen_bytes_max=160 * 1000)
    desk = Desk(cursor_s=0, now_s=10_000, limits=limits)
    shrunk = []
    for second in range(1, 300):
        page = desk.read([("k", second, n) for n in range(10)] + [("k", second + 1, 0)], lane="tail")
        assert page.pause is None
        if page.cap_shrunk_us is not None:
            assert page.commit is not None
            assert page.commit.history is not None
            shrunk.append(page.cap_shrunk_us)

    assert 0 < len(shrunk) < 60
    assert min(shrunk) > 60 * SECOND_US
    assert desk.reading._seen.memory_bytes <= limits.seen_bytes_max
    assert desk.reading.state.floor_us == us(desk.cursor_s) - shrunk[-1] or len(shrunk) > 0


def test_more_than_memory_can_hold_in_one_tick_pauses() -> None:
    desk = Desk(cursor_s=0, now_s=10_000, limits=msgspec.structs.replace(QUIET, seen_bytes_max=160 * 50))

    page = desk.read([("k", 5, n) for n in range(90)] + [("k", 6, 1)], lane="tail")

    assert page.pause is not None
    assert "seen_bytes_max" in page.pause
    assert page.commit is not None, "what was shown is published and recorded all the same"
