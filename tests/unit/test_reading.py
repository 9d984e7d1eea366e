"""DESIGN 4, "Reading", rule by rule: each test is the accident that its rule prevents."""

import json
from typing import Any

import msgspec
import pytest

from shared.checkpoints.model import CursorState, Lane, SweepProgress, moved
from shared.events.identity import Identifier, event_id
from shared.events.model import Event, Reason
from shared.producer.numbering import TimeBounds, number
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
    """One entity's reading over rows laid out by hand, one second to the tick; the clock stands at ``now_s``."""

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
        exclusive: bool = False,
        cut: int | None = None,
    ) -> None:
        self.rules = rules_of(shows)
        self.limits = limits
        self.now_s = now_s
        self.date_s: float | None = None  # None: as ours
        self.shown_us = us(now_s)
        self.pages = list(pages or [])
        self.log: list[Page] = []
        self._exclusive, self._cut = exclusive, cut
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

    def turn(self, rows: list[Row]) -> Page:
        """Answer one request from these rows, in their order, as the source would."""
        request = self.request()
        page = self.judge(request, [row for row in rows if self._answers(row, request)])
        self.shown_us += page.rows + 1
        if page.commit is not None:
            self.state = page.commit.state
            self.pages += [page.commit.entries] if page.commit.entries else []
        self.reading.apply(page)
        self.log.append(page)
        return page

    def read(self, rows: list[Row], lane: Lane = "tail") -> list[Page]:
        """Turn after turn until a run of that lane has ended: its pages, without those of other lanes."""
        pages = []
        for _ in range(100):
            page = self.turn(rows)
            if page.request.lane == lane:
                pages.append(page)
                if page.run_ended:
                    return pages
        raise AssertionError("a run without an end")

    def judge(self, request: Request, rows: list[Row]) -> Page:
        cuts = [cut for cut in (self._cut, request.limit) if cut is not None]
        raws = [
            row[0] if isinstance(row[0], bytes) else json.dumps({"k": row[0], "t": us(row[1]), "v": row[2]}).encode()
            for row in rows[: min(cuts, default=len(rows))]
        ]
        answer = Answer(
            sightings=Identifier(self.rules).identify(raws),
            server_date_us=us(self.now_s if self.date_s is None else self.date_s),
            requested_us=us(self.now_s),
        )
        return self.reading.judge(request, answer, self.shown_us)

    def _answers(self, row: Row, request: Request) -> bool:
        return isinstance(row[0], bytes) or us(row[1]) >= request.since_us + self._exclusive

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

    @property
    def swept_s(self) -> float:
        return (self.reading.state.swept_us - EPOCH_US) / SECOND_US


def events(pages: list[Page]) -> list[Event]:
    return [event for page in pages for event in page.events]


def values(pages: list[Page]) -> list[Any]:
    return [json.loads(event.sighting.raw).get("v") for event in events(pages)]


def ids(pages: list[Page]) -> list[str]:
    return [event.event_id for event in events(pages)]


def since_s(page: Page) -> float:
    return (page.request.since_us - EPOCH_US) / SECOND_US


def lookbacks(**changes: Any) -> ReadingLimits:
    return msgspec.structs.replace(QUIET, lookback_period_s=30.0, **changes)


def under_way(**changes: Any) -> CursorState:
    """Read up to second 540, swept up to 500; the source has shown five rows in one answer, in order."""
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
    return msgspec.structs.replace(state, **changes)


A, B, C = ("a", 101, 1), ("b", 102, 2), ("c", 103, 3)


# 1. The tail


def test_the_tail_starts_one_granule_below_the_cursor() -> None:
    desk = Desk(cursor_s=100.5)

    assert since_s(desk.turn([])) == 99


def test_a_next_page_asks_for_the_last_tick_itself() -> None:
    desk = Desk(cursor_s=100)

    assert [since_s(page) for page in desk.read([A, B, C])] == [99, 103]


def test_an_exclusive_source_is_asked_again_from_one_granule_below_so_that_the_last_tick_is_shown_whole() -> None:
    desk = Desk(cursor_s=100, exclusive=True, cut=2)
    rows: list[Row] = [A, B, ("b2", 102, 7), C]

    pages = desk.read(rows)

    assert values(pages[:3]) == [1, 2, 3, 7]
    assert [since_s(page) for page in pages[:3]] == [99, 102, 101]


def test_what_is_learned_of_an_exclusive_source_saves_the_second_question() -> None:
    desk = Desk(cursor_s=100, exclusive=True, cut=3)
    rows: list[Row] = [("k", second, n) for second in range(101, 130) for n in range(2)]

    pages = desk.read(rows)

    assert sorted(values(pages)) == sorted(row[2] for row in rows)
    assert len(pages) < 29 + 6


def test_a_crowded_tick_below_the_cursor_does_not_hide_what_follows() -> None:
    desk = Desk(state=under_way(), now_s=700, cut=5)
    crowd: list[Row] = [("k", 539, n) for n in range(5)]

    pages = desk.read([*crowd, ("a", 540, 8), ("b", 541, 9)])

    assert values(pages)[-2:] == [8, 9]
    assert [since_s(page) for page in pages[:2]] == [539, 540]


def test_a_poll_that_shows_nothing_new_records_nothing() -> None:
    desk = Desk(cursor_s=100)
    rows: list[Row] = [("y", 100, 0), A, B]
    desk.read(rows)
    desk.read(rows)

    (page,) = desk.read(rows)

    assert (page.repetitions, page.events, page.commit) == (2, [], None)


# 2. The lookback


def test_a_lookback_reads_from_the_window_behind_the_last_one_and_then_moves_its_mark() -> None:
    desk = Desk(state=under_way(), now_s=550, limits=lookbacks())

    pages = desk.read([("z", 470, 9), ("a", 510, 1), ("b", 540, 2)], "lookback")

    assert since_s(pages[0]) == 500 - 60 - 1
    assert 9 in values(pages)
    assert desk.swept_s == 540


def test_a_lookback_that_was_stopped_goes_on_where_it_was_and_moves_its_mark_only_at_its_end() -> None:
    desk = Desk(state=under_way(), now_s=550, limits=lookbacks(), cut=6)
    rows: list[Row] = [("k", second, n) for second in range(450, 541) for n in range(2)]
    while not any(page.request.lane == "lookback" for page in desk.log):
        desk.turn(rows)
    assert desk.swept_s == 500

    late = desk.successor(after_s=7200)
    pages = late.read(rows, "lookback")

    assert since_s(pages[0]) == 452 - 1
    assert late.swept_s == 540


def test_the_tail_is_polled_between_the_pages_of_a_lookback() -> None:
    desk = Desk(state=under_way(), now_s=550, limits=lookbacks(), cut=6)
    rows: list[Row] = [("k", second, n) for second in range(450, 541) for n in range(2)]
    lanes = []
    for _ in range(8):
        lanes.append(desk.turn(rows).request.lane)
        desk.now_s += 5

    assert lanes == ["tail", "lookback"] * 4


def test_a_stop_makes_the_next_lookback_reach_further_back_and_not_less() -> None:
    desk = Desk(state=under_way(), now_s=550 + 7200, limits=lookbacks())

    pages = desk.read([("y", 541, 0), ("y", 7000, 1)], "lookback")

    assert since_s(pages[0]) == 500 - 60 - 1
    assert desk.swept_s == 7000


# 3. The cap lookback


def test_the_cap_lookback_is_due_by_how_far_the_cursor_has_come_and_what_it_finds_raises_the_window() -> None:
    limits = lookbacks(cap_period_us=600 * SECOND_US, lateness_cap_us=3600 * SECOND_US)
    desk = Desk(state=under_way(), now_s=1210, limits=limits)
    rows: list[Row] = [("a", 540, 1), ("a", 1000, 2), ("a", 1200, 3)]
    desk.read(rows, "lookback")
    assert (desk.swept_s, desk.reading.state.window_us) == (1200, 60 * SECOND_US)

    pages = desk.read([("z", 900, 9), *rows], "cap")

    assert since_s(pages[0]) == -1, "the floor: reading began there"
    assert values(pages) == [9]
    assert events(pages)[0].sighting.updated_us == us(900)
    assert pages[0].lateness_us[0] >= 310 * SECOND_US
    assert desk.reading.state.window_us == 120 * SECOND_US
    assert desk.reading.state.cap_swept_us == us(1200)


def test_what_a_lookback_finds_leaves_the_window_as_it_is() -> None:
    desk = Desk(state=under_way(), now_s=550, limits=lookbacks())

    pages = desk.read([("z", 520, 9), ("a", 540, 1)], "lookback")

    assert 9 in values(pages)
    assert desk.reading.state.window_us == 60 * SECOND_US


# 4. What was seen


def test_rows_below_the_floor_are_counted_and_not_published() -> None:
    desk = Desk(state=under_way(floor_us=us(440)), now_s=550)

    pages = desk.read([("x", -5, 7), ("z", 439, 9), ("y", 440, 8), ("w", 540, 1)], "lookback")

    assert 8 in values(desk.log)
    assert 9 not in values(desk.log)
    assert sum(page.below_floor for page in pages) == 1


def test_only_new_rows_above_all_that_is_forgotten_are_late_beyond_the_cap_for_certain() -> None:
    rules = rules_of("rows")
    shown = [("forgotten", 350), ("recorded", 439), ("late", 439), ("not wanted", -5)]
    sightings = Identifier(rules).identify([json.dumps({"k": k, "t": us(t), "v": 1}).encode() for k, t in shown])
    bounds = TimeBounds(
        since_us=us(299), start_us=us(0), known_us=us(439), late_us=us(440), floor_us=us(440), clock_us=us(900),
        future_us=us(2000),
    )  # fmt: skip
    all_new = msgspec.structs.replace(bounds, floor_us=us(0))
    recorded = number(rules, Seen("rows"), sightings[1:2], us(800), all_new).entries

    numbered = number(rules, Seen.load("rows", [recorded], us(900)), sightings, us(1000), bounds)

    assert (numbered.events, numbered.below_floor) == ([], 1)


def test_what_a_probe_shows_from_behind_the_lookbacks_is_left_to_the_cap_lookback_which_measures_it() -> None:
    limits = lookbacks(cap_period_us=300 * SECOND_US, lateness_cap_us=3600 * SECOND_US)
    rows: list[Row] = [("a", 600, 1), ("c", 1000, 2)]
    desk = Desk(cursor_s=600, limits=limits)
    desk.read(rows, "cap")
    desk.read(rows)
    assert (desk.cursor_s, desk.swept_s) == (1000, 1000)
    big: list[Row] = [*rows, ("z", 700, 999), *(("k", 1000, n) for n in range(200))]

    desk.now_s = 1010
    tail = desk.read(big)
    desk.now_s = 1400
    cap = desk.read([*big, ("c", 1390, 3)], "cap")

    assert [since_s(page) for page in tail] == [999, 599], "a probe from far below"
    assert 999 not in values(tail)
    assert 999 in values(cap)
    assert desk.reading.state.window_us == 120 * SECOND_US


def test_equal_events_of_one_tick_are_numbered_and_counted_again_from_the_ticks_first_row_on_each_page() -> None:
    desk = Desk("events", cursor_s=100)
    desk.read([A, A])

    desk.read([A, A, A])

    assert [event.occurrence for event in events(desk.log)] == [0, 1, 2]
    assert ids(desk.log)[2] == event_id(events(desk.log)[0].sighting.identity, 2)


def test_a_row_that_comes_back_to_an_earlier_state_within_one_tick_has_changed_twice() -> None:
    desk = Desk("rows", cursor_s=100)
    for value in (1, 2, 1, 1):
        desk.read([("a", 101, value)])

    assert values(desk.log) == [1, 2, 1]
    assert [event.occurrence for event in events(desk.log)] == [0, 0, 1]
    assert len(set(ids(desk.log))) == 3


def test_stamps_of_first_sight_follow_the_rows_of_the_answer() -> None:
    desk = Desk(cursor_s=100)
    desk.read([A])
    shown_us = desk.shown_us

    page = desk.turn([A, B, C])

    assert [event.shown_us for event in page.events] == [shown_us + 1, shown_us + 2]
    assert page.commit is not None
    assert page.commit.shown_us == shown_us + 2


def test_after_an_unclean_stop_recorded_rows_are_published_once_more_under_the_same_id() -> None:
    rows: list[Row] = [A, B]
    desk = Desk("rows", cursor_s=100, limits=lookbacks())
    desk.read(rows)
    # Now value 9 of row a is published and not recorded, and the row is back at 1 before anyone looks again.

    heir = desk.successor(unclean=True)
    heir.read(rows, "lookback")
    heir.read(rows, "lookback")

    assert sorted(ids(heir.log)) == sorted(ids(desk.log))
    assert min(event.rank for event in events(heir.log)) > max(event.rank for event in events(desk.log)), "so they win"


CAPPED = lookbacks(cap_period_us=600 * SECOND_US, lateness_cap_us=3600 * SECOND_US)


def _with_an_old_row() -> tuple[Desk, list[Row]]:
    """Rows, of which z lies out of reach of all lookbacks but the cap's, read up to second 600."""
    rows: list[Row] = [("z", 110, 1), *((second, second, second) for second in range(200, 601, 100))]
    desk = Desk("rows", cursor_s=100, now_s=600, limits=CAPPED)
    desk.read(rows)
    desk.read(rows, "lookback")
    return desk, rows


def test_a_cap_lookback_that_an_unclean_stop_may_have_interrupted_publishes_its_hour_once_more() -> None:
    desk, rows = _with_an_old_row()
    rows.append((700, 700, 700))
    desk.now_s = 700
    desk.read(rows)
    # The cap lookback is due. It shows value 9 of row z, publishes it, dies; and the row is back at 1.
    heir = desk.successor(unclean=True)

    heir.read(rows, "lookback")
    assert 1 not in values(heir.log), "out of its reach"
    successor = heir.successor()  # the duty outlives its owner
    successor.read(rows, "cap")

    assert values(successor.log) == [1, 200, 300, 400, 500], "what the lookback left"
    assert set(ids(successor.log)) <= set(ids(desk.log))
    assert events(successor.log)[0].rank > max(event.rank for event in events(desk.log)), "so it wins"
    assert successor.reading.state.republish_before_us is None


def test_a_cap_lookback_that_was_under_way_begins_anew_after_an_unclean_stop() -> None:
    desk, rows = _with_an_old_row()
    under_way = SweepProgress(at_us=us(300), until_us=us(600))
    desk.state = msgspec.structs.replace(desk.state, cap_lookback=under_way)

    heir = desk.successor(unclean=True)
    pages = heir.read(rows, "cap")

    assert since_s(pages[0]) == 99
    assert 1 in values(heir.log)


def test_no_hour_is_published_again_where_no_cap_lookback_can_have_been_under_way() -> None:
    desk, rows = _with_an_old_row()
    heir = desk.successor(unclean=True)

    heir.read(rows, "lookback")
    assert heir.reading.state.republish_before_us is None
    heir.now_s = 800
    heir.read([*rows, (790, 790, 790)], "cap")

    assert 1 not in values(heir.log)


def test_the_duty_to_publish_once_more_outlives_a_clean_stop_of_the_one_who_had_it() -> None:
    rows: list[Row] = [("z", 95, 9), A, B]
    desk = Desk("rows", state=under_way(cursor_us=us(100), swept_us=us(100)), limits=lookbacks())
    desk.read(rows, "lookback")
    heir = desk.successor(unclean=True)
    heir.turn([*rows, C])

    second_heir = heir.successor()
    second_heir.read([*rows, C], "lookback")

    assert sorted(values(heir.log)) == [1, 2, 3]
    assert sorted(values(second_heir.log)) == [9], "not what was recorded by an owner who knew what was published"


def test_events_are_not_repeated_after_an_unclean_stop() -> None:
    desk = Desk("events", cursor_s=100, limits=lookbacks())
    desk.read([A, B])

    heir = desk.successor(unclean=True)
    heir.read([A, B], "lookback")

    assert events(heir.log) == []


def test_a_rewound_entity_publishes_again_under_the_same_ids() -> None:
    desk = Desk("rows", cursor_s=100)
    desk.read([A, B])

    rewound = Desk("rows", state=moved(desk.state, us(100)), now_s=desk.now_s + 10)  # its digests are not loaded
    rewound.read([A, B])

    assert ids(rewound.log) == ids(desk.log)


def test_a_cursor_set_forward_skips_what_lies_below_it() -> None:
    desk = Desk(cursor_s=100)
    desk.read([A, B])

    skipped = Desk(state=moved(desk.state, us(500)), now_s=desk.now_s + 10)
    pages = skipped.read([("x", 499, 7), ("y", 500, 8)])

    assert values(pages) == [8]
    assert sum(page.below_floor for page in pages) == 0


def test_the_state_survives_the_way_to_text_and_back() -> None:
    desk = Desk("rows", state=under_way(), limits=lookbacks(), now_s=550, cut=6)
    rows: list[Row] = [("k", second, n) for second in range(450, 541) for n in range(2)]
    for _ in range(5):
        desk.turn(rows)

    assert desk.reading.state.lookback is not None
    assert msgspec.json.decode(msgspec.json.encode(desk.state), type=CursorState) == desk.reading.state


# 5. Paging


def test_a_full_tick_doubles_the_limit_and_is_never_stepped_over() -> None:
    desk = Desk(state=under_way(), now_s=700, limits=msgspec.structs.replace(QUIET, page_rows=50, page_rows_max=150))
    rows: list[Row] = [("k", 540, 1), *(("k", 560, n) for n in range(400)), ("k", 600, 2)]

    while not any(page.pause for page in desk.log):
        desk.turn(rows)

    assert [page.request.limit for page in desk.log if page.request.lane == "tail"][:5] == [50, 50, 100, 150, 150]
    assert desk.cursor_s == 560
    assert "2023-11-14T22:22:40Z" in str(desk.log[-1].pause)
    assert "asked for 150" in str(desk.log[-1].pause)


def test_a_limit_that_fits_a_large_tick_gets_over_it() -> None:
    desk = Desk(state=under_way(), now_s=700, limits=msgspec.structs.replace(QUIET, page_rows=50, page_rows_max=1000))
    rows: list[Row] = [("k", 540, 1), *(("k", 560, n) for n in range(400)), ("k", 600, 2)]

    desk.read(rows)
    desk.read(rows)

    assert desk.cursor_s == 600
    assert len(events(desk.log)) == 402
    assert desk.turn(rows).request.limit == 50, "and goes back to small pages"


def test_a_lookback_cut_by_the_limit_is_not_completed_because_longer_answers_were_seen() -> None:
    limits = lookbacks(page_rows=20)
    desk = Desk(state=under_way(longest_answer_rows=400), now_s=700, limits=limits)
    rows: list[Row] = [("k", second, second) for second in range(441, 541)]

    desk.read(rows, "lookback")

    assert len(events(desk.log)) == len(rows)


def test_a_page_cut_by_the_limit_goes_on_at_once_though_longer_answers_were_seen() -> None:
    limits = msgspec.structs.replace(QUIET, page_rows=20)
    desk = Desk(state=under_way(longest_answer_rows=400), now_s=700, limits=limits)

    pages = desk.read([("k", second, second) for second in range(541, 641)])

    assert len(values(pages)) > 60
    assert desk.cursor_s == 640


def test_a_tick_larger_than_a_silent_cut_pauses_once_a_later_row_is_known() -> None:
    desk = Desk(state=under_way(), now_s=700, cut=120)
    rows: list[Row] = [("k", 540, 1), *(("k", 560, n) for n in range(120))]
    desk.read(rows)
    assert desk.cursor_s == 560

    for _ in range(4):
        desk.turn([*rows, ("k", 560, 120), ("k", 600, 2)])
    while not desk.log[-1].pause:
        desk.turn([*rows, ("k", 560, 120), ("k", 600, 2)])

    assert desk.cursor_s == 560


def test_a_longer_answer_from_earlier_on_proves_that_a_tick_was_not_cut() -> None:
    desk = Desk(cursor_s=100)
    desk.read([A, C])
    big: list[Row] = [A, C, *(("k", 103, n) for n in range(200))]

    pages = desk.read(big)
    after = desk.read(big)

    assert [since_s(page) for page in pages] == [102, 100]
    assert [page.pause for page in pages] == [None, None]
    assert len(after) == 1, "one request is enough from now on"


@pytest.mark.parametrize("shows", ["rows", "events"])
def test_one_row_alone_in_an_entity_is_no_reason_to_pause(shows: Manner) -> None:
    desk = Desk(shows, cursor_s=100)
    for _ in range(40):
        desk.read([A])

    assert values(desk.log) == [1]
    assert not any(page.pause for page in desk.log)


def test_a_large_first_tick_waits_for_the_next_change_before_anyone_is_called() -> None:
    desk = Desk(cursor_s=100)
    bulk: list[Row] = [("k", 101, n) for n in range(5000)]
    for _ in range(5):
        desk.read(bulk)
    desk.read([*bulk, ("k", 150, 1)])
    desk.read([*bulk, ("k", 150, 1)])

    assert not any(page.pause for page in desk.log)
    assert desk.cursor_s == 150


def test_a_large_first_tick_that_stays_alone_pauses_and_says_what_to_do() -> None:
    desk = Desk(cursor_s=100)
    bulk: list[Row] = [("k", 101, n) for n in range(5000)]
    for _ in range(20):
        desk.read(bulk)

    pause = next(page.pause for page in desk.log if page.pause)
    assert "5000 rows or more" in pause
    assert "page_rows" in pause


def test_a_source_that_ignores_since_is_a_fault_and_changes_nothing() -> None:
    desk = Desk(cursor_s=500)
    request = desk.request()

    with pytest.raises(ReadingFault, match="check since_param"):
        desk.judge(request, [("k", n // 50, n) for n in range(200)])

    assert desk.request() == request


# 6. Order


def test_the_cursor_moves_page_by_page_while_stamps_ascend() -> None:
    desk = Desk(cursor_s=100)

    page = desk.turn([A, B])

    assert not page.run_ended
    assert desk.cursor_s == 102


def test_unsorted_answers_move_the_cursor_only_when_nothing_can_have_been_cut_off() -> None:
    desk = Desk(cursor_s=100)
    newest_first: list[Row] = [("k", 300 - n, n) for n in range(150)]

    page = desk.turn(newest_first)
    stood_s = desk.cursor_s
    desk.read([("new", 301, 1), *newest_first])

    assert len(page.events) == 150
    assert stood_s == 100
    assert desk.cursor_s == 300, "a longer answer proves that the shorter one was whole"


def test_one_tick_from_a_source_of_unknown_order_may_hide_all_that_lies_before_it() -> None:
    desk = Desk(cursor_s=100, cut=5)
    rows: list[Row] = [*(("k", 110, n) for n in range(5)), ("a", 105, 7)]  # the newest first

    desk.read(rows)

    assert len(events(desk.log)) == 5
    assert desk.cursor_s == 100


# 7. Clocks


@pytest.mark.parametrize(("date_s", "expected_s"), [(150, 150), (1000, 155)], ids=["source behind", "ours behind"])
def test_the_cursor_never_passes_the_earlier_of_both_clocks(date_s: float, expected_s: float) -> None:
    desk = Desk(cursor_s=100, now_s=150)
    desk.date_s = date_s

    page = desk.turn([("k", second, second) for second in range(101, 200)])

    assert len(page.events) == 99
    assert desk.cursor_s == expected_s


def test_a_date_a_little_ahead_is_published_once_and_moves_no_cursor_until_its_time_has_come() -> None:
    desk = Desk(cursor_s=100, now_s=200)
    rows: list[Row] = [("a", 150, 1), ("b", 5000, 2)]
    for _ in range(6):
        desk.read(rows)
    assert (values(desk.log), desk.cursor_s) == ([1, 2], 150)

    desk.now_s = 6000
    desk.read([*rows, ("c", 5001, 3)])

    assert values(desk.log) == [1, 2, 3]
    assert desk.cursor_s == 5001


def test_a_date_far_ahead_is_refused_once_even_when_its_time_has_come() -> None:
    limits = lookbacks(lateness_cap_us=120 * SECOND_US, cap_period_us=60 * SECOND_US)
    desk = Desk(cursor_s=100, now_s=200, limits=limits)
    far: Row = ("b", 2 * 86_400, 0)
    rows: list[Row] = []
    for second in range(150, 3000, 50):
        rows.append(("x", second, second))
        desk.now_s = second + 50
        desk.read([*rows, far])
    refused = [event.sighting.refusal for event in events(desk.log) if event.sighting.refusal]
    assert [refusal.reason for refusal in refused] == [Reason.FUTURE]

    for second in range(172_700, 173_400, 50):
        rows.append(("x", second, second))
        desk.now_s = second + 50
        for _ in range(4):
            desk.turn(sorted([*rows, far], key=lambda row: row[1]))

    assert sorted(values(desk.log)) == sorted([row[2] for row in rows] + [0])
    assert desk.reading.state.floor_us is not None
    assert desk.reading.state.floor_us > us(far[1]), "nothing is left that could forget it"


def test_starting_now_by_a_clock_ahead_of_the_sources_skips_nothing() -> None:
    state = CursorState(cursor_us=us(1000), swept_us=us(1000), cap_swept_us=us(1000))
    desk = Desk(state=state, now_s=1000)

    desk.date_s = 990
    desk.read([])
    desk.date_s = 996

    desk.read([("a", 995, 1)])

    assert values(desk.log) == [1]


@pytest.mark.parametrize("date_s", [999, 994, 993.5])
def test_a_clock_that_steps_back_a_little_is_borne(date_s: float) -> None:
    desk = Desk(cursor_s=999)

    desk.date_s = date_s

    assert values(desk.read([("a", 999, 1)])) == [1]


@pytest.mark.parametrize("sends_date", [True, False])
def test_a_cursor_ahead_of_the_clock_is_a_fault_that_says_what_to_do(sends_date: bool) -> None:
    desk = Desk(cursor_s=5000, now_s=6000)
    desk.read([("a", 4990, 1), ("a", 5000, 2)])
    heir = desk.successor(after_s=-1900)
    request = heir.request()
    answer = Answer(sightings=[], server_date_us=us(4100) if sends_date else None, requested_us=us(4100))

    with pytest.raises(ReadingFault, match=r"900 s ahead of .* clock .*`tidemark cursor set`"):
        heir.reading.judge(request, answer, heir.shown_us)

    assert heir.request() == request


def test_our_own_clock_behind_stops_nothing_where_the_source_tells_the_time() -> None:
    desk = Desk(cursor_s=999)
    desk.now_s, desk.date_s = 500, 1000

    assert values(desk.read([("a", 1000, 1)])) == [1]


# 8. Idle entities


def test_the_cursor_of_a_quiet_entity_follows_the_sources_clock_past_a_large_tick() -> None:
    desk = Desk(cursor_s=900, now_s=1000, limits=lookbacks(poll_interval_s=10.0))
    rows: list[Row] = [("a", 980, 1), *(("k", 990, n) for n in range(500))]
    while desk.now_s < 1600:
        desk.turn(rows)
    histories = [page.commit.history for page in desk.log if page.commit and page.commit.history]

    assert 990 + 60 < desk.cursor_s <= desk.now_s - 60
    assert desk.read(rows)[0].rows == 0
    assert desk.read(rows, "lookback")[0].rows == 0
    assert len(set(histories)) == 1, "one text, so that equal moves are kept as one row of history"


# Events that can't be read

BROKEN: Row = (b'{"k": 1}', 0, 0)


def test_an_unreadable_event_is_shown_once_and_moves_no_mark() -> None:
    desk = Desk(cursor_s=100)
    first = desk.turn([BROKEN, A, B])
    assert first.commit is not None

    desk.read([BROKEN, A, B])

    assert [event.sighting.key for event in events(desk.log)] == [None, "a", "b"]
    assert desk.cursor_s == 102
    assert next(unpack(first.commit.entries)).updated_us == us(99), "recorded under the page's since"


def test_an_unreadable_event_that_is_shown_for_hours_is_renewed_and_not_parked_again() -> None:
    limits = lookbacks(lateness_cap_us=120 * SECOND_US, cap_period_us=60 * SECOND_US)
    desk = Desk(cursor_s=100, now_s=110, limits=limits)
    while desk.now_s < 2000:
        desk.turn([*(("k", second, second) for second in range(100, int(desk.now_s), 10)), BROKEN])
        desk.now_s += 3

    assert desk.reading.state.floor_us is not None
    assert desk.reading.state.floor_us > us(1000)
    assert sum(event.sighting.key is None for event in events(desk.log)) == 1


# Catching up, and the bounds of memory


def test_a_long_history_is_read_once_and_lookbacks_begin_where_rows_may_still_come_late() -> None:
    state = CursorState(cursor_us=us(0), swept_us=us(0), cap_swept_us=us(0))
    limits = lookbacks(lateness_cap_us=600 * SECOND_US, cap_period_us=60 * SECOND_US)
    desk = Desk(state=state, now_s=100_000, limits=limits, cut=100)
    rows: list[Row] = [("k", second, second) for second in range(0, 100_000, 10)]

    while desk.cursor_s < 99_000:
        assert desk.turn(rows).request.lane == "tail"
        assert desk.reading._seen.entries <= 300
    pages = desk.read(rows, "lookback")

    assert 98_000 < since_s(pages[0]) < 99_400
    assert len(events(desk.log)) == len(rows)


def test_when_memory_is_used_up_the_cap_shrinks_and_says_so() -> None:
    limits = msgspec.structs.replace(QUIET, seen_bytes_max=160 * 1000)
    desk = Desk(cursor_s=0, now_s=10_000, limits=limits, cut=50)
    rows: list[Row] = [("k", second, n) for second in range(1, 300) for n in range(10)]
    while desk.cursor_s < 299:
        assert desk.turn(rows).pause is None
        assert desk.reading._seen.memory_bytes <= limits.seen_bytes_max
    shrunk = [page for page in desk.log if page.cap_shrunk_us is not None]

    assert len(events(desk.log)) == len(rows)
    assert 0 < len(shrunk) < 60
    assert all(page.commit is not None and page.commit.history is not None for page in shrunk)
    assert min(page.cap_shrunk_us or 0 for page in shrunk) > 60 * SECOND_US


def test_more_than_memory_can_hold_in_one_tick_pauses() -> None:
    desk = Desk(cursor_s=0, now_s=10_000, limits=msgspec.structs.replace(QUIET, seen_bytes_max=160 * 50))

    page = desk.turn([*(("k", 5, n) for n in range(90)), ("k", 6, 1)])

    assert page.pause is not None
    assert "seen_bytes_max" in page.pause
    assert page.commit is not None, "what was shown is published and recorded all the same"
