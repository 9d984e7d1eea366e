"""What an audit concludes, without any server: every kind of fault is named, once, and nothing else is."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from msgspec.structs import replace

from services.cli import audit_raw
from services.cli.audit import render
from services.cli.audit_findings import Evidence, findings, verdicts
from services.cli.audit_judgement import _notes
from services.cli.audit_lake import purged_from
from services.cli.audit_law import attributed, tally
from services.cli.audit_raw import Taker, key_text, walk
from services.cli.audit_records import HAS_SEQ, KAFKA_ALONE, ChainOf, Counts, Law, RawEvent, Report, SeenPageOf, State
from services.cli.audit_seen import problem_of, read_seen
from services.cli.audit_spill import Spill, packed_id
from services.cli.audit_states import Ranges, States, compare, why_lesser
from shared.checkpoints.model import SeenPage
from shared.events.identity import event_id, key_hash
from shared.events.model import EventRules
from shared.producer.seen import ANCHORED, ENTRY
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject, Stored
from tests.fakes.object_store import MemoryStore
from tests.fakes.partition_log import MemoryRecord

RULES = EventRules(entity="things", key=("id",), updated_at="at", shows="events")
CHAIN = Chain("cdc.things", 1, 0)
KEYS = Keys("")
KEY8 = key_hash("k")[:8]


@pytest.fixture
def law(tmp_path: Path) -> Iterator[Law]:
    made = Law.of(RULES, tmp_path)
    made.limit_us = 1_000
    yield made
    made.close()


def id_of(number: int) -> bytes:
    return bytes.fromhex(event_id(number.to_bytes(16, "big"), 0))


def seen(law: Law, number: int, *, shown: int | None = None, dated: int | None = None, key: bytes = KEY8) -> None:
    """Event ``number``, dated and shown at ``number``, unless said otherwise."""
    fields = (id_of(number), key, number if dated is None else dated, number if shown is None else shown, 0, False)
    law.seen.add([law.seen.layout.pack(*fields)])


def raw(law: Law, number: int, *, shown: int | None = None, flags: int = HAS_SEQ) -> None:
    stamp = number if shown is None else shown
    law.raw.add([law.raw.layout.pack(id_of(number), KEY8, number, stamp, 0, number, flags)])


def parked(law: Law, number: int, *, undecodable: bool = False) -> None:
    law.parked.add([law.parked.layout.pack(id_of(number), KEY8, number, number, number, undecodable)])


def archived(law: Law, number: int) -> None:
    law.archived.add([law.archived.layout.pack(id_of(number), 0)])


def found_in(law: Law, **more: object) -> list[tuple[str, int]]:
    compared = tally(law)
    evidence = Evidence(entity="things", law=law, chains=[ChainOf(chain=CHAIN)], tally=compared)
    evidence.not_recorded = attributed(law.pages, compared.unrecorded)[1]
    for name, value in more.items():
        setattr(evidence, name, value)
    return [(finding.kind, finding.count) for finding in findings(evidence)]


def test_each_seen_event_in_any_of_the_places_is_conserved(law: Law) -> None:
    for number in range(1, 9):
        seen(law, number)
    raw(law, 1)
    raw(law, 2, flags=HAS_SEQ | KAFKA_ALONE)
    for number in (3, 4, 8):
        parked(law, number)
    for number in (4, 5, 6, 7):
        archived(law, number)
    raw(law, 7)
    raw(law, 8)

    assert found_in(law) == []
    counts = tally(law).counts
    assert (counts.seen, counts.raw, counts.in_kafka, counts.parked, counts.archived) == (8, 3, 1, 3, 3)
    assert (counts.twice, counts.redriven, counts.missing) == (1, 1, 0)
    assert {one.id for one in tally(law).archived_alone} == {id_of(5), id_of(6)}


def test_a_seen_event_that_is_nowhere_is_lost(law: Law) -> None:
    seen(law, 1)
    seen(law, 2)
    raw(law, 1)

    assert found_in(law) == [("lost", 1)]


def test_what_may_have_lain_in_an_expired_object_is_not_called_lost(law: Law) -> None:
    seen(law, 5)
    seen(law, 7)
    law.expired_us = 6

    assert found_in(law) == [("lost", 1)]
    assert tally(law).counts.expired == 1


def test_a_published_event_that_nobody_recorded_is_named_where_the_source_shows_events(law: Law) -> None:
    seen(law, 1)
    raw(law, 1)
    raw(law, 2)
    parked(law, 3)
    raw(law, 1_001)  # behind the fixed cursor
    parked(law, 1_002)
    parked(law, 4, undecodable=True)  # it may call itself what it likes

    assert found_in(law) == [("unrecorded", 2)]
    assert found_in(law, waits=True) == []


def test_of_rows_an_unrecorded_state_is_no_fault(tmp_path: Path) -> None:
    law = Law.of(replace(RULES, shows="rows"), tmp_path)
    law.limit_us = 1_000
    raw(law, 2)

    assert found_in(law) == []
    assert tally(law).counts.unrecorded == 1
    law.close()


def test_an_entry_that_names_another_event_under_a_published_ones_stamp_is_falsified(law: Law) -> None:
    law.pages += pages(1)
    seen(law, 99, shown=7)
    raw(law, 7)

    assert found_in(law) == [("seen_page", 1)]


@pytest.mark.parametrize("what", ["key", "time"])
def test_an_entry_that_contradicts_the_published_event_is_falsified(law: Law, what: str) -> None:
    law.pages += pages(1)
    seen(law, 7, key=b"otherkey" if what == "key" else KEY8, dated=8 if what == "time" else None)
    raw(law, 7)

    assert found_in(law) == [("seen_page", 1)]


def pages(count: int, problem: str | None = None) -> list[SeenPageOf]:
    return [SeenPageOf(f"seen_page {number} in Postgres", 0, 1_000, problem) for number in range(count)]


def test_what_a_falsified_page_must_have_recorded_is_counted_to_it(law: Law) -> None:
    law.pages += pages(1, problem="it is garbage")
    raw(law, 7)
    parked(law, 8)

    assert found_in(law) == [("seen_page", 1)]


def test_a_hole_an_overlap_damage_and_a_lag_each_have_their_name(law: Law) -> None:
    one = ChainOf(chain=CHAIN, next_start=50, kafka_begin=0, kafka_end=60)
    one.holes.append((10, 19))
    one.doubled.append((20, 21))
    one.damaged.append((30, 39, "the object of cdc.things/1/0 at 30 differs from its sha256"))

    assert found_in(law, chains=[one], ends={str(CHAIN): 60}) == [
        ("raw_hole", 10),
        ("raw_damaged", 10),
        ("raw_twice", 2),
        ("raw_behind", 10),
    ]
    evidence = Evidence(entity="things", law=law, chains=[one], tally=tally(law))
    assert [part.complete for part in verdicts(evidence)] == [False]


def test_a_table_behind_is_named_unless_a_hole_stands_in_its_way(law: Law) -> None:
    one = ChainOf(chain=CHAIN, next_start=50, position=20)
    assert found_in(law, chains=[one]) == [("table_behind", 30)]

    one.holes.append((20, 29))
    assert found_in(law, chains=[one]) == [("raw_hole", 10)]


def test_the_rest_of_what_can_be_wrong_has_a_name(law: Law) -> None:
    assert found_in(
        law,
        generation_problem="another topic",
        no_row=[(str(CHAIN), 7, "ab")],
        unreadable_count=2,
        unreadable=[("a", "invalid"), ("b", "future")],
        damaged_evidence=[("s3://a/b", "s3://a/b: there is no such object")],
        untold=["s3://a/c"],
        table_missing="s3a://lake/things",
        not_quarantined=[(0, 5)],
    ) == [
        ("generation", 1),
        ("no_row", 1),
        ("parked_unreadable", 2),
        ("evidence", 1),
        ("untold", 1),
        ("table_behind", 1),
        ("quarantine", 1),
    ]


def test_a_report_is_read_at_a_glance(law: Law) -> None:
    seen(law, 7)
    evidence = Evidence(entity="things", law=law, chains=[ChainOf(chain=CHAIN, next_start=5)], tally=tally(law))
    report = Report(
        entity="things",
        complete=False,
        counts=Counts(seen=1, missing=1),
        partitions=verdicts(evidence),
        findings=findings(evidence),
        notes=["a note"],
        fixed_us=0,
    )

    assert render([report]) == [
        "ENTITY  SEEN  RAW  PARKED  ARCHIVED  MISSING  RAW ROWS  TABLE  VERDICT",
        "things     1    0       0         0        1         0      -  INCOMPLETE",
        "",
        "PARTITION       FROM  TO  KAFKA END  IN TABLE  OBJECTS  VERDICT",
        "cdc.things/1/0     0   5          -         -        0  complete",
        "",
        "things: 1 event is seen, but not in raw, parked or archived",
        f"    {id_of(7).hex()} (dated 1970-01-01 00:00:00Z, shown 1970-01-01T00:00:00.000007Z)",
        "  repair: tidemark cursor set things --to 1970-01-01T00:00:00.000007Z --reason 'audit: read again'",
        "",
        "things: a note",
        "",
        "1 finding",
    ]


# --- the table


def state(
    spill: Spill, key: str, rank: int, number: int, *, tie: int = 0, rev: int = 0, chain: int = 0, is_delete: int = 0
) -> None:
    fields = (key_hash(key), rank, tie, rev, id_of(number), chain, number, is_delete)
    spill.add([spill.layout.pack(*fields)])


def judged(law: Law, one: ChainOf, quarantined: Sequence[tuple[int, int]] = ()) -> tuple[int, int, int, int, int]:
    found = compare(law.raw_states, law.table_states, [one], frozenset(quarantined))
    return (found.stale_count, found.lacking_count, found.foreign_count, found.twice_count, found.unprovable)


def test_the_table_must_hold_each_keys_greatest_that_its_positions_cover(law: Law) -> None:
    one = ChainOf(chain=CHAIN, position=100)
    for rank, number in ((1, 1), (3, 2), (2, 3)):
        state(law.raw_states, "a", rank, number)
    state(law.raw_states, "b", 9, 150)  # not merged yet
    state(law.table_states, "a", 3, 2)

    assert judged(law, one) == (0, 0, 0, 0, 0)
    one.position = 200
    assert judged(law, one) == (0, 1, 0, 0, 0)


def test_a_loser_a_repeated_key_and_a_row_from_nowhere_are_told_apart(law: Law) -> None:
    one = ChainOf(chain=CHAIN, position=100)
    for rank, number in ((1, 1), (3, 2)):
        state(law.raw_states, "a", rank, number)
    state(law.raw_states, "b", 1, 3)
    state(law.table_states, "a", 1, 1)
    state(law.table_states, "b", 1, 3)
    state(law.table_states, "b", 1, 3)
    state(law.table_states, "c", 5, 50)

    assert judged(law, one) == (1, 0, 1, 1, 0)


def test_a_row_merged_ahead_of_the_positions_and_rows_whose_raw_is_gone_are_no_fault(law: Law) -> None:
    one = ChainOf(chain=CHAIN, floor=10, position=50, holes=[(20, 29)])
    state(law.raw_states, "a", 1, 30)
    state(law.raw_states, "a", 2, 60)
    state(law.table_states, "a", 2, 60)  # a range load took it
    state(law.table_states, "b", 1, 5)  # expired
    state(law.table_states, "c", 1, 25)  # in the hole

    assert judged(law, one) == (0, 0, 0, 0, 2)


def test_a_quarantined_row_need_not_win(law: Law) -> None:
    one = ChainOf(chain=CHAIN, position=50)
    state(law.raw_states, "a", 1, 1)
    state(law.raw_states, "a", 2, 2)
    state(law.table_states, "a", 1, 1)

    assert judged(law, one) == (1, 0, 0, 0, 0)
    assert judged(law, one, [(0, 2)]) == (0, 0, 0, 0, 0)


def test_a_deleted_key_whose_row_was_purged_on_request_is_not_lacking(law: Law) -> None:
    """Only deletes, and only those that were shown before the horizon."""
    one = ChainOf(chain=CHAIN, position=50)
    state(law.raw_states, "purged", 1, 1, tie=1)
    state(law.raw_states, "purged", 2, 2, tie=2, is_delete=1)
    state(law.raw_states, "deleted later", 9, 3, tie=9, is_delete=1)
    state(law.raw_states, "lives", 3, 4, tie=3)
    state(law.raw_states, "back to life", 4, 5, tie=4, is_delete=1)
    state(law.raw_states, "back to life", 5, 6, tie=5)

    found = compare(law.raw_states, law.table_states, [one], frozenset(), purged_from(law.rules, 9))

    assert (found.purged, found.lacking_count) == (1, 3)
    assert judged(law, one) == (0, 4, 0, 0, 0)


def test_why_an_event_lost_is_said_by_the_first_part_of_its_order_that_differs(law: Law) -> None:
    base = State(key_hash("a"), 1, 0, 0, id_of(1), 0, 1, 0)
    assert why_lesser(base, base._replace(tiebreak=2)) == "lower seq: 1.0 < 1.2"
    assert why_lesser(base, base._replace(rev=1)) == "same seq, lower rev: 0 < 1"
    assert why_lesser(base, base._replace(id=id_of(2))).startswith("same seq and rev, lower event id: ")


def test_offsets_are_found_in_ranges() -> None:
    ranges = Ranges([(10, 19), (30, 30)])

    assert [offset for offset in range(40) if offset in ranges] == [*range(10, 20), 30]


# --- seen pages


def entry(number: int, *, dated: int | None = None, anchored: bool = False) -> bytes:
    identity = number.to_bytes(16, "big")
    return ENTRY.pack(KEY8, identity, ANCHORED if anchored else 0, number if dated is None else dated, number)


def page(seq: int, *numbers: int) -> SeenPage:
    return SeenPage(seq=seq, min_us=min(numbers), max_us=max(numbers), entries=b"".join(map(entry, numbers)))


class Pages:
    def __init__(self, *found: SeenPage) -> None:
        self._found = found

    async def all_seen(self, entity: str, after_seq: int = -1) -> AsyncIterator[SeenPage]:
        for one in self._found:
            if one.seq > after_seq:
                yield one


async def read(law: Law, store: MemoryStore, *found: SeenPage) -> None:
    await read_seen(law, Pages(*found), store, "seen/things/", lambda _done: None)


async def test_pages_are_read_up_to_the_fixed_cursor_from_postgres_and_then_from_the_bucket(law: Law) -> None:
    store = MemoryStore()
    entries = entry(1) + entry(2)
    digest = hashlib.blake2b(entries, digest_size=16).hexdigest()
    await store.create(f"seen/things/{1:020d}-{2:020d}-{digest}.zst", zstandard.compress(entries), {})
    await read(law, store, page(1, 3, 4), page(2, 999, 1_000), page(3, 1_001))

    assert {fields[0] for fields in law.seen.all()} == {id_of(number) for number in (1, 2, 3, 4, 999, 1_000)}
    assert [one.problem for one in law.pages] == [None, None, None]


async def test_a_page_that_was_altered_proves_nothing_and_is_bounded_by_its_neighbours(law: Law) -> None:
    garbage = replace(page(2, 5, 6), entries=entry(500) + entry(77))
    await read(law, MemoryStore(), page(1, 3, 4), garbage, page(3, 9, 10))

    assert {fields[0] for fields in law.seen.all()} == {id_of(number) for number in (3, 4, 9, 10)}
    bad = law.pages[1]
    assert bad.problem is not None
    assert (bad.shown_first_us, bad.shown_last_us) == (5, 8)


async def test_an_object_whose_content_is_not_what_its_name_says_is_named(law: Law) -> None:
    store = MemoryStore()
    await store.create(f"seen/things/{1:020d}-{2:020d}-{'0' * 32}.zst", zstandard.compress(entry(1)), {})
    await store.create(f"seen/things/{3:020d}-{4:020d}-{'1' * 32}.zst", b"no zstd", {})
    await read(law, store)

    assert [one.name.split("/")[-1][:20] for one in law.pages] == [f"{1:020d}", f"{3:020d}"]
    assert all(one.problem for one in law.pages)
    assert law.seen.count == 0


def test_what_a_page_says_of_itself_is_believed_only_if_it_fits() -> None:
    assert problem_of(page(1, 3, 9, 4)) is None
    assert problem_of(replace(page(1, 3, 9), max_us=10)) is not None
    assert problem_of(replace(page(1, 3, 9), entries=entry(3) + b"x")) is not None
    assert problem_of(replace(page(1, 3, 9), entries=b"")) == "it has no entries"


async def test_an_emptied_page_is_named_and_the_others_still_count(law: Law) -> None:
    await read(law, MemoryStore(), page(1, 3, 4), replace(page(2, 5, 6), entries=b""), page(3, 9, 10))

    assert {fields[0] for fields in law.seen.all()} == {id_of(number) for number in (3, 4, 9, 10)}
    assert found_in(law)[0] == ("seen_page", 1)


# --- raw


def line(offset: int, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "id": "k",
        "amount": 1,
        "_kafka_topic": CHAIN.topic,
        "_kafka_generation": 1,
        "_kafka_partition": 0,
        "_kafka_offset": offset,
        "_kafka_timestamp": "2026-01-01T00:00:00Z",
        "_event_id": id_of(offset).hex(),
        "_rank": offset,
        "_tiebreak": offset,
        "_rev": 0,
        "_op": "u",
        "_schema_id": 7,
        "_attempt": 0,
    }
    return json.dumps(fields | changes).encode() + b"\n"


async def put(ledger: Ledger, start: int, last: int, rows: Sequence[bytes] | None = None, **changes: object) -> None:
    lines = [line(offset) for offset in range(start, last + 1)] if rows is None else rows
    body = zstandard.compress(b"".join(lines))
    link = RawObject(
        chain=CHAIN, start=start, end=last, count=len(lines), sha256=sha256(body).hexdigest(), last_ms=last
    )
    await ledger.write(replace(link, **changes), body)


async def walked(law: Law, store: MemoryStore) -> ChainOf:
    one = ChainOf(chain=CHAIN)
    taker = Taker(law, [one], with_states=True)
    await walk(Ledger(store, KEYS), store, one, taker.take, lambda _offsets: None)
    return one


async def test_every_row_is_taken_and_the_chain_followed_to_its_end(law: Law) -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    await put(ledger, 0, 4)
    await put(ledger, 5, 9, [line(5), line(8)])
    one = await walked(law, store)

    assert (one.next_start, one.objects, one.rows, one.unproved) == (10, 2, 7, [])
    assert one.silent == [(6, 7), (9, 9)]
    assert law.raw.count == law.raw_states.count == 7


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"count": 4}, "has 5 rows, not 4"),
        ({"sha256": "0" * 64}, "differs from its sha256"),
        ({"end": 8}, "offset 9 where 9 to 8 are due"),
    ],
)
async def test_an_object_that_is_not_what_it_says_is_damaged_and_nothing_of_it_counts(
    law: Law, spoil: dict[str, object], why: str
) -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    await put(ledger, 0, 4)
    await put(ledger, 5, 9, None, **spoil)
    one = await walked(law, store)

    ((start, _end, text),) = one.damaged
    assert start == 5
    assert why in text
    assert law.raw.count == 5


async def test_rows_of_another_place_and_metadata_that_can_not_be_read_are_damage(law: Law) -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    await put(ledger, 0, 0, [line(0, _kafka_partition=1)])
    store.objects[KEYS.link(CHAIN, 1)] = Stored(b"", {"tm-kind": "nothing"})
    await put(ledger, 2, 3)
    one = await walked(law, store)

    assert [(start, end) for start, end, _ in one.damaged] == [(0, 0), (1, 1)]
    assert (one.next_start, one.holes) == (4, [])


async def test_an_expiry_that_overtakes_the_walk_leaves_no_hole(law: Law) -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    for start in range(0, 80, 10):
        await put(ledger, start, start + 9)

    class Overtaken(MemoryStore):
        """Between the listing and the first read, three objects expire."""

        async def read(self, key: str) -> Stored | None:
            if "/raw/" in f"/{key}" and KEYS.floor(CHAIN) not in self.objects:
                self.objects[KEYS.floor(CHAIN)] = Stored(b'{"floor":30,"last_ms":29}', {})
                for start in (0, 10, 20):
                    del self.objects[KEYS.link(CHAIN, start)]
            return await super().read(key)

    overtaken = Overtaken()
    overtaken.objects = store.objects
    one = await walked(law, overtaken)

    assert (one.floor, one.holes, one.damaged, one.next_start) == (30, [], [], 80)
    assert one.expired_ms == 29


def test_rows_that_no_merge_can_order_are_noted_by_their_places(law: Law) -> None:
    one = ChainOf(chain=CHAIN)
    taker = Taker(law, [one], with_states=True)
    rows = [line(0, _event_id=None), line(1, _rank=None), line(2, id=None), line(3, _rev=None), line(4)]
    link = RawObject(chain=CHAIN, start=0, end=4, count=5)
    taker.take(link, b"".join(rows))

    assert taker.misfits == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert (taker.nameless, law.raw.count, law.raw_states.count) == (1, 4, 1)


def test_a_record_whose_seq_is_beyond_64_bits_is_taken_without_it(law: Law) -> None:
    taker = Taker(law, [ChainOf(chain=CHAIN)], with_states=True)
    name = id_of(7).hex().encode()
    taker.take_records(CHAIN, [MemoryRecord(7, 0, b"k", b"v", (("tm-event-id", name), ("tm-seq", b"9" * 19 + b".0")))])

    (row,) = (RawEvent(*fields) for fields in law.raw.all())
    assert (row.id, row.rank, row.flags) == (id_of(7), 0, KAFKA_ALONE)


def test_rows_that_were_too_many_to_be_looked_up_in_quarantine_are_told_of(
    law: Law, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_raw, "RANGES_MAX", 2)
    taker = Taker(law, [ChainOf(chain=CHAIN)], with_states=True)
    taker.take(RawObject(chain=CHAIN, start=0, end=4, count=5), b"".join(line(at, _rank=None) for at in range(5)))
    work: Any = SimpleNamespace(chains=[], law=law, aside=SimpleNamespace(places_more=0), taker=taker)
    evidence = Evidence(entity="things", law=law, chains=[], tally=tally(law))
    without_table = list(_notes(work, evidence))
    evidence.states = States()

    assert without_table == []
    assert list(_notes(work, evidence)) == ["3 more raw rows that can't be merged were not looked up in quarantine"]


@pytest.mark.parametrize(
    ("values", "text"),
    [(["a"], "a"), ([17], "17"), ([True], "true"), (["a", 1, False], '["a",1,false]'), ([None], None), ([1.5], None)],
)
def test_a_keys_text_is_what_identity_makes_of_it(values: list[object], text: str | None) -> None:
    assert key_text(values) == text


# --- spills


def test_records_come_back_part_by_part_from_memory_and_from_disk(tmp_path: Path) -> None:
    for held_bytes_max in (10**9, 1_000):
        spill = Spill(tmp_path, f"s{held_bytes_max}", "<16sq", held_bytes_max)
        wanted = [(id_of(number), number) for number in range(5_000)]
        for start in range(0, 5_000, 100):
            spill.add(spill.layout.pack(*one) for one in wanted[start : start + 100])

        assert sorted(spill.all()) == sorted(wanted)
        assert spill.count == 5_000
        assert any(tmp_path.iterdir()) == (held_bytes_max == 1_000)
        spill.close()
    assert not any(tmp_path.iterdir())


def test_an_event_id_that_is_none_of_ours_has_16_bytes_too() -> None:
    assert packed_id("ab" * 16) == bytes.fromhex("ab" * 16)
    assert len({packed_id("x"), packed_id("y"), packed_id("z" * 32)}) == 3
