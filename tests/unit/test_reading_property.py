"""Nothing is lost up to the lateness cap and nothing is doubled, whatever the source does and wherever the reader dies.

``TIDEMARK_TEST_FULL=1`` runs many more histories; ``-s`` shows the counts of the comparison.
"""

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.events.identity import Identifier
from shared.producer.reading import ReadingLimits
from tests.fakes.poller import Poller, rules_of
from tests.fakes.source import EPOCH_US, SECOND_US, History, Lateness, Manner, Order, SimulatedSource, make_history

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
CAP_S = 120
SECONDS = 120


def limits(**changes: object) -> ReadingLimits:
    """Shorter than the defaults, so that a history of minutes sees every lane."""
    chosen: dict[str, object] = {
        "lateness_cap_us": CAP_S * SECOND_US,
        "cap_period_us": 60 * SECOND_US,
        "window_us": 60 * SECOND_US,
    }
    return ReadingLimits(**(chosen | changes))  # type: ignore[arg-type]  # names are checked by the struct


@st.composite
def histories(draw: st.DrawFn) -> tuple[History, int]:
    """(history of two minutes, its granularity)"""
    chance = random.Random(draw(st.integers(0, 2**32)))
    granularity_us = draw(st.sampled_from([1, 1000, SECOND_US, 10 * SECOND_US]))
    bursts = draw(st.lists(st.tuples(st.integers(0, SECONDS - 1), st.sampled_from([5, 90])), max_size=2))
    history = make_history(
        chance,
        draw(st.sampled_from(["rows", "events"])),
        seconds=SECONDS,
        per_second=draw(st.sampled_from([0.05, 0.5, 4])),
        granularity_us=granularity_us,
        keys=draw(st.sampled_from([1, 3, 50])),
        values=draw(st.sampled_from([1, 2, 1000])),
        lateness=Lateness(share=draw(st.sampled_from([0, 0.05, 0.5])), cap_s=CAP_S - 5, mean_s=15),
        bursts=bursts,
    )
    return history, granularity_us


@st.composite
def pollers(draw: st.DrawFn) -> Poller:
    """One at the start of such a history, or when it is long over."""
    history, granularity_us = draw(histories())
    page_rows = draw(st.sampled_from([None, 3, 50]))
    source = SimulatedSource(
        history,
        exclusive=draw(st.booleans()),
        silent_cap=draw(st.sampled_from([None, 7, 30, 150])),
        takes_limit=page_rows is not None,
    )
    window_s, poll_interval_s = draw(st.sampled_from([5, 60])), draw(st.sampled_from([2.0, 20.0]))
    return Poller(
        source,
        limits(window_us=window_s * SECOND_US, page_rows=page_rows, poll_interval_s=poll_interval_s),
        granularity_us=granularity_us,
        start_us=EPOCH_US + draw(st.sampled_from([-3600, 0, 30])) * SECOND_US,
        date_skew_us=draw(st.sampled_from([0, None, -3 * SECOND_US, 3600 * SECOND_US])),
        now_us=EPOCH_US + draw(st.sampled_from([30, 600])) * SECOND_US,
    )


@settings(
    max_examples=1500 if FULL else 40,
    deadline=None,
    derandomize=not FULL,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(pollers(), st.integers(0, 2**32), st.sampled_from([0, 0.05, 0.3]), st.sampled_from([0, 30, 1000]))
def test_any_sorted_source_is_read_without_loss_or_repetition_through_cuts_stops_and_crashes(
    poller: Poller, seed: int, deaths: float, stop_s: int
) -> None:
    chance = random.Random(seed)

    poller.run_until(EPOCH_US + SECONDS // 2 * SECOND_US, chance, deaths)
    poller.sleep(stop_s)
    poller.run_until(EPOCH_US + SECONDS * SECOND_US, chance, deaths)
    poller.drain()

    books = poller.books()
    assert (books.lost_for_good, books.doubled) == (0, 0)
    assert books.lost == 0 or _stands_at_a_tick_larger_than_an_answer(poller)


def _stands_at_a_tick_larger_than_an_answer(poller: Poller) -> bool:
    """The one reason to stand still before all is read: said with a pause, once a later row is known."""
    cap, writes = poller.source.silent_cap, poller.source.history.writes
    per_stamp = Counter(write.stamp_us for write in writes)
    if cap is None or max(per_stamp.values()) < cap:
        return False
    return poller.pause is not None or max(per_stamp) <= (poller.committed.newest_us or 0)


MANNERS: list[tuple[Manner, Order, bool, int | None]] = [
    ("events", "ascending", False, None),
    ("events", "ascending", True, None),
    ("events", "ascending", False, 200),
    ("events", "ascending", True, 200),
    ("events", "descending", False, None),
    ("events", "unordered", True, None),
    ("rows", "ascending", False, None),
    ("rows", "ascending", True, 200),
    ("rows", "descending", True, None),
]


@pytest.mark.parametrize(("shows", "order", "exclusive", "silent_cap"), MANNERS)
@pytest.mark.parametrize("deaths", [0, 0.04], ids=["alive", "dying"])
def test_minutes_of_ties_late_commits_a_jump_of_lateness_and_a_long_stop(
    shows: Manner, order: Order, exclusive: bool, silent_cap: int | None, deaths: float
) -> None:
    for seed in range(20 if FULL else 1):
        chance = random.Random(seed)
        history = make_history(
            chance, shows, seconds=400, per_second=6, keys=1000, lateness=Lateness(jump_s=200), bursts=[(150, 150)]
        )
        source = SimulatedSource(history, exclusive=exclusive, silent_cap=silent_cap, order=order, chance=chance)
        poller = Poller(source, limits(window_us=20 * SECOND_US))

        poller.run_until(EPOCH_US + 180 * SECOND_US, chance, deaths)
        poller.sleep(90)
        poller.run_until(EPOCH_US + 400 * SECOND_US, chance, deaths)
        poller.drain()

        books = poller.books()
        print(f"{shows:6} {order:10} exclusive={exclusive!s:5} cap={silent_cap} deaths={deaths}: {books}")
        assert (poller.pause, books.lost, books.doubled) == (None, 0, 0)


def test_states_of_rows_are_published_as_they_were_shown_one_after_the_other() -> None:
    chance = random.Random(5)
    history = make_history(chance, "rows", seconds=60, per_second=20, keys=4, values=2)
    poller = Poller(SimulatedSource(history), limits(poll_interval_s=0.05))

    poller.run_until(EPOCH_US + 60 * SECOND_US)

    published: dict[bytes, list[bytes]] = {}
    for event in poller.topic:
        published.setdefault(event.sighting.key_hash, []).append(event.sighting.identity)
    assert published == poller.shown
    came_back = sum(event.occurrence > 0 for event in poller.topic)
    assert came_back > 20, "A, B, A within one tick must occur, or this shows nothing"


def _naive(source: SimulatedSource, until_us: int, keep: Callable[[bytes], bool], step_us: int) -> Counter[bytes]:
    """Read from the last stamp on, every 5 s, as most do."""
    cursor_us, now_us = EPOCH_US - SECOND_US, EPOCH_US
    published: Counter[bytes] = Counter()
    identify = Identifier(rules_of("events")).identify
    while now_us < until_us:
        for sighting in identify(source.get(cursor_us + step_us, now_us)):
            if keep(sighting.identity):
                published[sighting.raw] += 1
            cursor_us = max(cursor_us, sighting.updated_us)
        now_us += 5_370_000
    return published


def test_readers_that_trust_the_cursor_lose_and_repeat_on_the_same_history() -> None:
    """The test can see loss: the usual two readers, and this one, side by side."""
    chance, seconds = random.Random(7), 3600 if FULL else 300
    history = make_history(chance, "events", seconds=seconds, per_second=20, values=10**9)
    end_us = EPOCH_US + (seconds + CAP_S) * SECOND_US
    truth = Counter(write.raw for write in history.writes)
    poller = Poller(SimulatedSource(history), limits())
    poller.run_until(EPOCH_US + seconds * SECOND_US)
    poller.drain()
    ours = Counter({event.event_id: event.sighting.raw for event in poller.topic}.values())
    seen: set[bytes] = set()

    def unseen(identity: bytes) -> bool:
        return not (identity in seen or seen.add(identity))  # type: ignore[func-returns-value]  # None is falsy

    counts = {
        "exclusive": _naive(SimulatedSource(history), end_us, lambda _: True, 1),
        "inclusive": _naive(SimulatedSource(history), end_us, lambda _: True, 0),
        "inclusive, with identity": _naive(SimulatedSource(history), end_us, unseen, 0),
        "this one": ours,
    }

    lost = {name: (truth - published).total() for name, published in counts.items()}
    doubled = {name: (published - truth).total() for name, published in counts.items()}
    for name in counts:
        print(f"{name:26} of {truth.total()}: lost {lost[name]:6}, doubled {doubled[name]:6}")
    assert (lost["this one"], doubled["this one"]) == (0, 0)
    assert lost["exclusive"] > 0.1 * truth.total()
    assert lost["inclusive"] > 0
    assert doubled["inclusive"] > 0.01 * truth.total()
    assert lost["inclusive, with identity"] > 0


def test_rows_later_than_the_cap_are_what_may_be_lost() -> None:
    chance = random.Random(3)
    history = make_history(chance, "events", seconds=300, lateness=Lateness(share=0.1, mean_s=400, cap_s=1000))
    source = SimulatedSource(History(history.shows, history.writes))
    poller = Poller(source, limits())

    poller.run_until(EPOCH_US + 1300 * SECOND_US)
    poller.drain()

    late = {write.raw for write in history.writes if write.lateness_us > 2 * CAP_S * SECOND_US}
    missed = late - {event.sighting.raw for event in poller.topic}
    assert poller.books().lost == 0
    assert len(missed) > 0.5 * len(late), "the cap is a real bound: beyond it the test must see loss"
