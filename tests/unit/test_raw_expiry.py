"""An expiry dies at every request that it makes: readers are right at each moment, and the next run ends it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from shared.raw.expiry import expire, plan
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject, Stored, StoreUnavailable
from tests.fakes.object_store import Fault, MemoryStore

KEYS = Keys("ns/")
CHAIN = Chain("cdc.things", 1, 0)
LINKS = 8
STEP = 10


def link(number: int) -> RawObject:
    return RawObject(
        chain=CHAIN, start=number * STEP, end=number * STEP + STEP - 1, count=STEP, last_ms=1000 * number, sha256="x"
    )


async def filled(store: MemoryStore) -> Ledger:
    ledger = Ledger(store, KEYS)
    for number in range(LINKS):
        await ledger.write(link(number), b"rows")
    return ledger


def starts(store: MemoryStore) -> list[int]:
    return sorted(KEYS.parse(key)[1] for key in store.objects if "/raw/" in key)


async def expired(store: MemoryStore, before_ms: int, loaded: int | None = None) -> int:
    ledger = Ledger(store, KEYS)
    return await expire(ledger, store, await plan(ledger, store, CHAIN, before_ms, loaded), "me")


async def test_what_is_older_leaves_and_the_floor_stands_where_the_rest_begins() -> None:
    store = MemoryStore()
    ledger = await filled(store)

    assert await expired(store, before_ms=3000) == 3
    assert starts(store) == [30, 40, 50, 60, 70]
    floor = await ledger.floor_set(CHAIN)
    assert (floor.floor, floor.last_ms, floor.set_by) == (30, 2000, "me")
    assert (await ledger.verify(CHAIN)).problems == []
    assert (await ledger.tail(CHAIN)).next_start == 80


async def test_the_newest_object_stays_however_old_it_is() -> None:
    store = MemoryStore()
    ledger = await filled(store)

    await expired(store, before_ms=10**15)

    assert starts(store) == [70]
    assert (await ledger.tail(CHAIN)).next_start == 80


async def test_what_the_table_has_not_passed_stays() -> None:
    store = MemoryStore()
    ledger = await filled(store)

    found = await plan(ledger, store, CHAIN, 10**15, loaded=45)

    assert (found.floor, found.objects) == (40, 4)
    assert found.stays == "the table has not passed offset 45"
    assert (await plan(ledger, store, CHAIN, 10**15, loaded=0)).floor == 0


async def test_nothing_behind_a_hole_leaves() -> None:
    store = MemoryStore()
    ledger = await filled(store)
    del store.objects[KEYS.link(CHAIN, 30)]

    found = await plan(ledger, store, CHAIN, 10**15, None)

    assert found.floor == 20
    assert "offsets 30 to 39 are in no object" in found.stays


async def test_a_floor_is_never_lowered() -> None:
    store = MemoryStore()
    ledger = await filled(store)
    low = await plan(ledger, store, CHAIN, 2000, None)
    await expired(store, before_ms=5000)

    await expire(ledger, store, low, "somebody slower")

    assert (await ledger.floor_set(CHAIN)).floor == 50
    assert starts(store) == [50, 60, 70]


async def test_two_expiries_at_once_leave_the_higher_floor() -> None:
    store = MemoryStore(turns=lambda: 2)
    ledger = await filled(store)

    await asyncio.gather(expired(store, 2000), expired(store, 6000), expired(store, 4000))

    assert (await ledger.floor_set(CHAIN)).floor == 60
    assert starts(store) == [60, 70]
    assert (await ledger.verify(CHAIN)).problems == []


def failing_at(step: int, fault: Fault) -> Callable[[str, str], Fault | None]:
    """The expiry's own requests that change something, counted from 0."""
    left = step

    def choose(operation: str, key: str) -> Fault | None:
        nonlocal left
        if operation == "delete" or (operation in ("create", "replace") and "/floors/" in key):
            left -= 1
            return fault if left == -1 else None
        return None

    return choose


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST])
@pytest.mark.parametrize("floor_before", [None, 10])
async def test_whoever_dies_at_any_step_leaves_a_whole_chain_and_the_next_run_ends_it(
    fault: Fault, floor_before: int | None
) -> None:
    for step in range(6):
        store = MemoryStore(failing_at(step, fault))
        ledger = await filled(store)
        if floor_before is not None:
            store.objects[KEYS.floor(CHAIN)] = Stored(msgspec.json.encode({"floor": floor_before}), {})
        with pytest.raises(StoreUnavailable):
            await expired(store, before_ms=5000)

        report = await ledger.verify(CHAIN)
        assert (report.problems, report.next_start) == ([], 80)
        assert (await ledger.tail(CHAIN)).next_start == 80
        assert (await ledger.tail(CHAIN, hint=70)).next_start == 80
        assert starts(store) == list(range(starts(store)[0], 80, STEP)), "what is left below is a whole end"

        await expired(store, before_ms=5000)
        assert starts(store) == [50, 60, 70]
        assert (await ledger.floor_set(CHAIN)).floor == 50
        assert (await ledger.verify(CHAIN)).problems == []


class Overtaken(MemoryStore):
    """At one of the reader's requests a whole expiry, or half of one, comes between."""

    def __init__(self, at: int, deletes_max: int) -> None:
        super().__init__()
        self._at = at
        self._deletes_max = deletes_max
        self.armed = False

    async def _request(self, operation: str, key: str) -> Fault | None:
        if self.armed:
            self._at -= 1
            if self._at == -1:
                self.armed = False
                other = MemoryStore(failing_at(1 + self._deletes_max, Fault.REFUSED))
                other.objects = self.objects
                with suppress(StoreUnavailable):
                    await expired(other, before_ms=6000)
        return await super()._request(operation, key)


@pytest.mark.parametrize("deletes_max", [0, 2, 100])
@pytest.mark.parametrize("at", range(12))
async def test_a_reader_that_an_expiry_overtakes_finds_no_fault(at: int, deletes_max: int) -> None:
    store = Overtaken(at, deletes_max)
    ledger = await filled(store)
    store.armed = True

    report = await ledger.verify(CHAIN)
    assert (report.problems, report.next_start) == ([], 80)

    store = Overtaken(at, deletes_max)
    ledger = await filled(store)
    store.armed = True
    assert (await ledger.tail(CHAIN)).next_start == 80


async def test_the_object_that_covers_an_offset_is_found_from_anywhere() -> None:
    store = MemoryStore()
    ledger = await filled(store)

    for offset in (0, 9, 10, 35, 79):
        found = await ledger.covering(CHAIN, offset)
        assert found is not None
        assert found.start == offset - offset % STEP
    assert await ledger.covering(CHAIN, 80) is None
    del store.objects[KEYS.link(CHAIN, 30)]
    assert await ledger.covering(CHAIN, 35) is None
