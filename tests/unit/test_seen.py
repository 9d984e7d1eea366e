"""The seen entries: what stands in Postgres, and what is held in memory."""

import os
import tracemalloc

import pytest

from shared.events.identity import event_id
from shared.producer.seen import ANCHORED, ENTRY, ENTRY_BYTES, NO_FLOOR, Seen, unpack
from tests.fakes.source import Manner


def entry(key: int, identity: int, occurrence: int = 0, updated_us: int = 10, shown_us: int = 1) -> bytes:
    return ENTRY.pack(key.to_bytes(8, "big"), identity.to_bytes(16, "big"), occurrence, updated_us, shown_us)


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def test_an_entry_is_44_bytes_and_pages_join_by_concatenation() -> None:
    joined = entry(1, 7, 0, 10, 100) + entry(2, 8, 3 | ANCHORED, 11, 101)

    entries = list(unpack(joined))

    assert len(joined) == 2 * ENTRY_BYTES == 88
    assert [(one.identity, one.occurrence, one.updated_us, one.shown_us) for one in entries] == [
        (identity(7), 0, 10, 100),
        (identity(8), 3, 11, 101),
    ]
    assert len(event_id(entries[1].identity, entries[1].occurrence)) == 32


def test_the_last_recorded_state_of_a_key_counts_and_its_earlier_ones_are_remembered() -> None:
    seen = Seen.load("rows", [entry(1, 7), entry(1, 8), entry(1, 7, 1)])

    assert seen.last == {key(1): identity(7)}
    assert seen.counts == {identity(7): 2, identity(8): 1}


def test_an_entry_that_stands_in_two_pages_counts_once() -> None:
    seen = Seen.load("events", [entry(1, 7, 0), entry(1, 7, 1), entry(1, 7, 0)])

    assert seen.counts == {identity(7): 2}


def test_pages_behind_the_floor_are_forgotten_whole_and_others_stay_whole() -> None:
    seen = Seen("rows")
    seen.add(entry(1, 7, 0, 10) + entry(2, 8, 0, 30))
    seen.add(entry(3, 9, 0, 10))

    seen.drop_below(20)

    assert set(seen.counts) == {identity(7), identity(8)}
    assert set(seen.last) == {key(1), key(2)}
    assert seen.entries == 2


def test_a_key_whose_last_state_is_newer_than_the_forgotten_page_keeps_it() -> None:
    seen = Seen("rows")
    seen.add(entry(1, 7, 0, 10))
    seen.add(entry(1, 8, 0, 30))

    seen.drop_below(20)

    assert seen.last == {key(1): identity(8)}
    assert set(seen.counts) == {identity(8)}


def test_an_undated_event_is_forgotten_only_by_its_latest_time() -> None:
    seen = Seen("rows")
    seen.add(entry(1, 7, ANCHORED, 10))
    seen.add(entry(1, 7, ANCHORED, 50))

    seen.drop_below(20)
    kept = (dict(seen.counts), dict(seen.last))
    seen.drop_below(60)

    assert kept == ({identity(7): 1}, {key(1): identity(7)})
    assert (seen.counts, seen.last, seen.anchors, seen.entries) == ({}, {}, {}, 0)


def test_much_is_forgotten_a_little_at_a_time() -> None:
    seen = Seen("events")
    for number in range(10):
        seen.add(b"".join(entry(1, number * 100 + n) for n in range(100)))

    seen.drop_below(20, 250)
    left = seen.entries
    seen.drop_below(20, 10_000)

    assert (left, seen.entries, seen.counts) == (700, 0, {})


def test_keys_recorded_before_an_unclean_takeover_are_not_trusted_until_they_are_recorded_anew() -> None:
    seen = Seen.load("rows", [entry(1, 7, 0, 10, 100), entry(2, 8, 0, 10, 200)], republish_before_us=200)
    before = set(seen.settled_keys or ())

    seen.trust_all()

    assert before == {key(2)}
    assert seen.settled_keys is None


def test_the_floor_for_a_limit_drops_the_oldest_pages_and_no_more() -> None:
    seen = Seen("events")
    for at_us in (30, 10, 20):
        seen.add(b"".join(entry(1, at_us * 100 + n, 0, at_us) for n in range(100)))
    hundred = seen.memory_bytes // 3

    assert seen.floor_for(3 * hundred, b"") is None
    assert seen.floor_for(3 * hundred, entry(1, 1)) == 11
    assert seen.floor_for(hundred, b"") == 21
    assert seen.floor_for(hundred // 2, entry(1, 1) * 100) == NO_FLOOR


def test_known_rows_are_counted_up_to_the_number_asked_for() -> None:
    seen = Seen.load("events", [entry(1, 1, 0, 10) + entry(1, 2, 0, 20), entry(1, 3, 0, 30), entry(1, 3, 0, 30)])

    assert seen.more_than(0, 25)
    assert not seen.more_than(1, 25)
    assert seen.stamp_before(30) == 20
    assert seen.stamp_before(10) is None


@pytest.mark.parametrize("shows", ["rows", "events"])
def test_memory_is_no_more_than_estimated(shows: Manner) -> None:
    pages = [
        b"".join(ENTRY.pack(os.urandom(8), os.urandom(16), 0, 10, 1) for _ in range(1000)) for _ in range(45)
    ]  # just beyond a growth of the hash tables: the worst place
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    seen = Seen.load(shows, pages)

    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.5 * seen.memory_bytes < held <= 1.05 * seen.memory_bytes
