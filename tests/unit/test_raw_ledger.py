"""The ledger over a store in memory: finding the end of a chain, writing a link, following and reading a chain."""

import random
from hashlib import sha256

import pytest
import zstandard

from shared.raw.keys import OFFSET_MAX, Chain, Keys
from shared.raw.ledger import Damaged, Ledger
from shared.raw.objects import LastRecord, NotOurs, RawObject, Stored, StoreUnavailable
from tests.fakes.object_store import Fault, MemoryStore

CHAIN = Chain("cdc.accounts", 1, 0)
KEYS = Keys()


def link(start: int, end: int, rows: bytes = b"", writer: str = "me") -> tuple[RawObject, bytes]:
    body = zstandard.compress(rows)
    count = rows.count(b"\n")
    digest = sha256(body).hexdigest()
    return RawObject(chain=CHAIN, start=start, end=end, count=count, sha256=digest, writer=writer), body


async def chain_of(store: MemoryStore, ends: list[int]) -> Ledger:
    ledger = Ledger(store, KEYS)
    start = 0
    for end in ends:
        await ledger.write(*link(start, end))
        start = end + 1
    return ledger


async def test_an_empty_chain_begins_at_offset_0() -> None:
    tail = await Ledger(MemoryStore(), KEYS).tail(CHAIN)

    assert (tail.next_start, tail.newest, tail.last) == (0, None, None)


@pytest.mark.parametrize("hint", [None, 0, 5, 10, 2**40, OFFSET_MAX])
async def test_the_tail_is_found_whatever_the_hint(hint: int | None) -> None:
    ledger = await chain_of(MemoryStore(), [9, 10, 500, 2**40])

    tail = await ledger.tail(CHAIN, hint)

    assert tail.next_start == 2**40 + 1
    assert tail.newest is not None
    assert tail.newest.start == 501


async def test_the_tail_of_a_long_chain_takes_few_requests() -> None:
    store = MemoryStore()
    ledger = await chain_of(store, [])
    dice = random.Random(1)
    start = 0
    for _link in range(5_000):
        end = start + dice.randrange(1, 100_000)
        store.objects[KEYS.link(CHAIN, start)] = _stored(*link(start, end))
        start = end + 1

    before = len(store.requests)
    assert (await ledger.tail(CHAIN)).next_start == start
    assert len(store.requests) - before < 70
    before = len(store.requests)
    assert (await ledger.tail(CHAIN, start - 200_000)).next_start == start
    assert len(store.requests) - before <= 3  # floor, one page, the newest object's metadata


@pytest.mark.parametrize("links", [999, 1000, 1001, 2001])
async def test_the_tail_is_found_where_a_page_of_the_listing_ends(links: int) -> None:
    store = MemoryStore()
    for start in range(links):
        store.objects[KEYS.link(CHAIN, start)] = _stored(*link(start, start))

    assert (await Ledger(store, KEYS).tail(CHAIN)).next_start == links


async def test_objects_below_the_floor_are_no_part_of_the_ledger() -> None:
    store = MemoryStore()
    ledger = await chain_of(store, [9, 19, 29])
    await store.create(KEYS.floor(CHAIN), b'{"floor":20}', {})
    del store.objects[KEYS.link(CHAIN, 0)]

    report = await ledger.verify(CHAIN)
    assert (report.problems, report.floor, report.next_start) == ([], 20, 30)
    assert [found.start for found in report.objects] == [20]
    assert (await ledger.tail(CHAIN, 0)).next_start == 30

    del store.objects[KEYS.link(CHAIN, 20)]
    assert (await ledger.tail(CHAIN)).next_start == 20  # never lower, whatever a zombie left below


async def test_a_taken_slot_answers_with_what_stands_there() -> None:
    ledger = await chain_of(MemoryStore(), [9])
    first, first_body = link(10, 14, writer="other")
    assert await ledger.write(first, first_body) is first

    standing = await ledger.write(*link(10, 99))

    assert (standing.end, standing.writer) == (14, "other")


async def test_a_lost_answer_is_found_out_by_the_next_attempt() -> None:
    faults: list[Fault | None] = [Fault.LOST, None, None]
    store = MemoryStore(lambda _operation, _key: faults.pop(0))
    ledger = Ledger(store, KEYS)
    candidate, body = link(0, 4)

    with pytest.raises(StoreUnavailable):
        await ledger.write(candidate, body)
    standing = await ledger.write(candidate, body)

    assert standing == candidate
    assert standing is not candidate


async def test_a_gap_marker_is_a_link_that_reads_as_no_rows() -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    last = LastRecord(3, 5, "digest")

    marker = await ledger.write_gap(CHAIN, 0, 99, "retention", last, "me")

    report = await ledger.verify(CHAIN)
    assert report.problems == []
    assert report.gaps == [marker]
    assert await ledger.rows(marker) == b""
    assert (await ledger.tail(CHAIN)).last == last


async def test_verify_names_what_is_missing_and_what_is_twice() -> None:
    store = MemoryStore()
    ledger = await chain_of(store, [9, 19, 29, 39])
    del store.objects[KEYS.link(CHAIN, 10)]
    store.objects[KEYS.link(CHAIN, 25)] = _stored(*link(25, 45))

    report = await ledger.verify(CHAIN)

    assert report.problems == [
        "offsets 10 to 19 are in no object",
        "offsets 25 to 29 are in two objects",
        "offsets 30 to 39 are in two objects",
    ]


async def test_rows_are_given_only_if_they_are_what_was_written() -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    good, body = link(0, 1, b"1\n2\n")
    await ledger.write(good, body)
    assert await ledger.rows(good) == b"1\n2\n"

    store.objects[KEYS.link(CHAIN, 0)] = _stored(good, zstandard.compress(b"1\n3\n"))
    with pytest.raises(Damaged, match="sha256"):
        await ledger.rows(good)
    short, short_body = link(2, 3, b"1\n")
    store.objects[KEYS.link(CHAIN, 2)] = _stored(short, short_body)
    with pytest.raises(Damaged, match="has 1 rows, not 2"):
        await ledger.rows(RawObject(chain=CHAIN, start=2, end=3, count=2, sha256=short.sha256))
    with pytest.raises(Damaged, match="gone"):
        await ledger.rows(RawObject(chain=CHAIN, start=7, end=8, count=2, sha256=""))


async def test_a_chain_of_many_pages_is_followed_to_its_end() -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    for start in range(0, 2_100, 2):
        store.objects[KEYS.link(CHAIN, start)] = _stored(*link(start, start + 1))

    report = await ledger.verify(CHAIN)

    assert (len(report.objects), report.next_start, report.problems) == (1_050, 2_100, [])


async def test_the_chains_of_a_topic_are_found() -> None:
    store = MemoryStore()
    ledger = Ledger(store, KEYS)
    chains = [Chain("cdc.accounts", 1, partition) for partition in (0, 2, 11)]
    for chain in [*chains, Chain("cdc.accounts", 2, 5), Chain("cdc.accounts2", 1, 6)]:
        for start in (0, 10):
            body = zstandard.compress(b"")
            written = RawObject(chain=chain, start=start, end=start + 9, count=0, sha256=sha256(body).hexdigest())
            await ledger.write(written, body)

    assert await ledger.partitions("cdc.accounts", 1) == chains
    assert await ledger.partitions("cdc.nothing", 1) == []


async def test_a_foreign_object_in_a_slot_stops_the_chain() -> None:
    store = MemoryStore()
    ledger = await chain_of(store, [9])
    await store.create(KEYS.link(CHAIN, 10), b"whatever", {})

    with pytest.raises(NotOurs):
        await ledger.tail(CHAIN)


def _stored(written: RawObject, body: bytes) -> Stored:
    return Stored(body, written.metadata())
