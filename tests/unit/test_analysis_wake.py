"""Which parked events a change of the contract wakes, what that reads, and when it looks at all."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from shared.events.identity import Identifier
from shared.events.model import Reason, RejectedEvent
from shared.events.repair import Number
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.calls import ParkedUnavailable
from shared.parked.causes import cause_path
from shared.parked.groups import cause_of
from shared.parked.model import ParkedEvent
from shared.parked.wake import FULL_EVERY_US, SAMPLE, SETTLE_US, NoAnalyst, Waker, WakeReport
from tests.fakes.parked_rows import ParkedRowsInMemory
from tests.unit.analysis_events import (
    NOW_US,
    RULES,
    SHOWN_US,
    analyst,
    contract,
    parked,
    schema,
    text,
    undecodable_record,
)

AMOUNT = ("amount", "long")
NAME = ("name", ["null", "string"], None)
OLD, NEW = analyst(AMOUNT), analyst(AMOUNT, NAME)
TRIED_BY_OLD = OLD.fingerprint


class Analysts:
    def __init__(self, **known: Analyst) -> None:
        self.known = known

    async def current(self, entity: str) -> Analyst:
        if entity not in self.known:
            raise NoAnalyst(f"{entity}: the registry is away")
        return self.known[entity]


class StopAfter:
    """A stop that is set once it was asked so many times."""

    def __init__(self, questions: int) -> None:
        self.left = questions
        self.waits: list[float | None] = []

    async def wait(self, timeout_s: float | None = None) -> bool:
        if timeout_s:
            self.waits.append(timeout_s)
        self.left -= 1
        return self.left < 0


def refused(number: int, reason: Reason = Reason.INVALID, **more: Any) -> ParkedEvent:
    """Refused by the old contract for its name; the new one takes it."""
    members = {"id": f"k{number}", "amount": number, "name": "Jo"} | more.pop("members", {})
    given = {"path": "/name", "fingerprint": TRIED_BY_OLD} | more
    return parked(text(**members), reason, **given)


def still_refused(number: int, **more: Any) -> ParkedEvent:
    return refused(number, members={"amount": "x"}, **more)


def ids(events: Iterable[ParkedEvent]) -> list[str]:
    return sorted(event.item_id for event in events)


async def wake(rows: ParkedRowsInMemory, made: Analyst = NEW) -> WakeReport:
    return await Waker(Analysts(), rows, rows, clock_us=lambda: NOW_US).wake("things", made)


async def test_a_new_contract_wakes_what_it_accepts() -> None:
    events = [refused(number) for number in range(30)]
    rows = ParkedRowsInMemory(events)

    report = await wake(rows)

    assert sorted(rows.woken) == ids(events)
    assert report == WakeReport("things", NEW.fingerprint, mismatched=30, tried=SAMPLE, woken=30, left=0, complete=True)


async def test_what_was_tried_against_this_contract_is_not_even_read() -> None:
    rows = ParkedRowsInMemory([refused(number, fingerprint=NEW.fingerprint) for number in range(30)])

    report = await wake(rows)

    assert (rows.looked, rows.woken, report.mismatched) == ([], [], 0)


async def test_of_a_cause_that_stays_only_a_sample_is_read_and_nothing_woken() -> None:
    rows = ParkedRowsInMemory([still_refused(number) for number in range(200)])

    report = await wake(rows)

    assert rows.woken == []
    assert len(rows.looked) == SAMPLE
    assert (report.left, report.complete) == (200, True)


async def test_of_a_mixed_cause_only_those_that_pass_are_woken() -> None:
    passing = [refused(number) for number in range(0, 90, 3)]
    staying = [still_refused(number) for number in range(90) if number % 3]
    rows = ParkedRowsInMemory(sorted([*passing, *staying], key=lambda event: event.item_id))

    report = await wake(rows)

    assert sorted(rows.woken) == ids(passing)
    assert (report.tried, report.left) == (90, 60)


async def test_one_cause_does_not_stand_in_for_another() -> None:
    passing = [refused(number) for number in range(40)]
    staying = [still_refused(number, path="/amount") for number in range(40)]
    rows = ParkedRowsInMemory([*staying, *passing])

    await wake(rows)

    assert sorted(rows.woken) == ids(passing)
    assert len(rows.looked) == 2 * SAMPLE


async def test_what_no_re_check_would_try_again_is_tried_one_by_one() -> None:
    tight = replace(RULES, event_bytes_max=60)
    one = parked(text(amount=1, name="x" * 99), rules=tight, fingerprint=TRIED_BY_OLD)
    others = [parked(text(id=f"k{n}", amount="x" * 99), rules=tight, fingerprint=TRIED_BY_OLD) for n in range(100)]
    assert {event.reason for event in [one, *others]} == {Reason.TOO_LARGE}
    rows = ParkedRowsInMemory([*others[:55], one, *others[55:]])  # where no sample looks

    await wake(rows)

    assert rows.woken == [one.item_id]
    assert len(rows.looked) == 101


async def test_undecodable_records_wake_when_a_newer_version_reads_them() -> None:
    (value,) = contract(AMOUNT, NAME).encode(Identifier(RULES).identify([text(amount=1, name="Jo")]))
    assert isinstance(value, bytes)
    event = undecodable_record(value)  # framed with id 1, whose schema lacks the name
    rows = ParkedRowsInMemory([event])
    old, new = schema(AMOUNT), schema(AMOUNT, NAME)

    before = await wake(rows, Analyst(contract(AMOUNT), RULES, schemas={1: old}))
    after = await wake(rows, Analyst(contract(AMOUNT, NAME, schema_id=2), RULES, schemas={1: old, 2: new}))

    assert (before.mismatched, after.woken, rows.woken) == (0, 1, [event.item_id])


async def test_other_states_and_classes_are_let_alone() -> None:
    rows = ParkedRowsInMemory([refused(1, Reason.KAFKA_UNAVAILABLE), refused(2, Reason.BUG)])

    assert (await wake(rows)).mismatched == 0


async def test_an_event_that_left_meanwhile_or_lost_its_body_is_not_woken() -> None:
    gone, bodiless, well = (refused(number) for number in range(3))
    rows = ParkedRowsInMemory([gone, bodiless, well])
    rows.gone, rows.bodiless = {gone.item_id}, {bodiless.item_id}

    report = await wake(rows)

    assert rows.woken == [well.item_id]
    assert (report.woken, report.left) == (1, 2)


async def test_the_more_are_woken_the_further_they_are_spread() -> None:
    rows = ParkedRowsInMemory([refused(number) for number in range(400)], page_rows=100)
    waker = Waker(Analysts(), rows, rows, wakes_per_s_max=20, clock_us=lambda: NOW_US)

    await waker.wake("things", NEW)

    assert max(rows.spreads_s) == 400 / 20  # the last ones are due within the time that all of them take
    assert rows.spreads_s == sorted(rows.spreads_s)


class Passes:
    """A waker whose clock is moved by hand."""

    def __init__(self, rows: ParkedRowsInMemory, made: Analyst) -> None:
        self.now_us = NOW_US
        self.analysts = Analysts(things=made)
        self.waker = Waker(self.analysts, rows, rows, clock_us=lambda: self.now_us)

    async def again(self, after_us: int = 0, stop: StopAfter | None = None) -> WakeReport | None:
        self.now_us += after_us
        return await self.waker.pass_over("things", stop)


async def test_at_start_and_at_each_change_of_the_contract_all_are_looked_at() -> None:
    rows = ParkedRowsInMemory([refused(number, at_us=SHOWN_US - 30 * 86_400_000_000) for number in range(3)])
    passes = Passes(rows, OLD)
    assert (first := await passes.again()) is not None
    assert first.mismatched == 0

    passes.analysts.known["things"] = NEW
    second = await passes.again(SETTLE_US * 2)

    assert second is not None
    assert second.woken == 3


async def test_a_contract_that_does_not_change_costs_nothing_after_a_while() -> None:
    rows = ParkedRowsInMemory([refused(1)])
    passes = Passes(rows, NEW)
    assert await passes.again() is not None
    assert await passes.again(SETTLE_US - 1) is not None  # a poller may be behind

    assert await passes.again(1) is None
    assert await passes.again(SETTLE_US * 5) is None
    assert await passes.again(FULL_EVERY_US) is not None


async def test_what_a_lagging_poller_parks_under_the_old_contract_is_woken_too() -> None:
    rows = ParkedRowsInMemory([])
    passes = Passes(rows, NEW)
    await passes.again()
    late = refused(1, at_us=NOW_US + 20_000_000)
    rows.add(late)

    await passes.again(30_000_000)

    assert rows.woken == [late.item_id]


async def test_with_repair_rules_newly_parked_events_are_woken_all_the_time_and_settled_ones_once() -> None:
    mending = analyst(AMOUNT, NAME, repairs=[Number("/amount")])
    by_poller = mending.contract.fingerprint
    rows = ParkedRowsInMemory([])
    passes = Passes(rows, mending)
    await passes.again()
    event = refused(1, members={"amount": "7"}, path="/amount", fingerprint=by_poller, at_us=NOW_US + SETTLE_US * 9)
    rows.add(event)
    report = await passes.again(SETTLE_US * 9 + 30_000_000)
    assert (rows.woken, report and report.woken) == ([event.item_id], 1)

    rows.remember(event.item_id, mending.fingerprint)
    settled = await passes.again(30_000_000)

    assert (settled and settled.mismatched, len(rows.woken)) == (0, 1)


async def test_a_pass_that_was_stopped_is_made_again_from_the_start() -> None:
    old_us = SHOWN_US - 30 * 86_400_000_000
    rows = ParkedRowsInMemory([refused(number, at_us=old_us) for number in range(40)], page_rows=10)
    passes = Passes(rows, NEW)

    stopped = await passes.again(stop=StopAfter(2))
    assert stopped is not None
    assert (stopped.complete, stopped.woken) == (False, 20)
    again = await passes.again()

    assert again is not None
    assert (again.complete, again.woken) == (True, 20)


async def test_a_table_that_is_away_leaves_the_pass_to_be_made_again() -> None:
    rows = ParkedRowsInMemory([refused(number) for number in range(40)], page_rows=10)
    passes = Passes(rows, NEW)
    rows.calls_left = 45
    with pytest.raises(ParkedUnavailable):
        await passes.again()
    rows.calls_left = None

    await passes.again()

    assert len(rows.woken) == len(set(rows.woken)) == 40


async def test_one_entitys_trouble_keeps_no_other_from_its_pass(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    rows = ParkedRowsInMemory([refused(1)])
    waker = Waker(Analysts(things=NEW), rows, rows, clock_us=lambda: NOW_US)
    stop = StopAfter(7)

    await waker.run(["unknown", "things"], stop, period_s=30)

    assert len(rows.woken) == 1
    assert 30 in stop.waits


async def test_two_wakers_wake_an_event_once() -> None:
    rows = ParkedRowsInMemory([refused(number) for number in range(30)])

    first, second = await wake(rows), await wake(rows)

    assert (first.woken, second.woken) == (30, 0)


ATTRIBUTES = ("attributes", {"type": "map", "values": {"type": "array", "items": "long"}})


def refused_for(attributes: object) -> RejectedEvent:
    (verdict,) = contract(ATTRIBUTES).encode(Identifier(RULES).identify([text(attributes=attributes)]))
    assert isinstance(verdict, RejectedEvent)
    return verdict


def test_the_keys_of_a_map_are_one_cause_and_stand_in_none() -> None:
    colour, size = refused_for({"colour": [1, "x"]}), refused_for({"w": [1], "size/~": [1, 2, "x"]})
    causes = {cause_of(parked(text(), path=refused.path)) for refused in (colour, size)}

    assert {cause.path for cause in causes} == {"/attributes/*/*"}
    assert len({cause.id for cause in causes}) == 1
    assert (colour.path, colour.place) == ("/attributes/*/1", "/attributes/colour/1")
    assert (size.path, size.place) == ("/attributes/*/2", "/attributes/size~1~0/2")
    assert refused_for(5).place == ""


def test_what_was_parked_under_the_key_of_a_map_keeps_its_cause() -> None:
    before = cause_of(parked(text(), path="/attributes/colour"))

    assert (before.path, before.id) == ("/attributes/colour", "c48fe3eeecafc5ec")


def test_a_repair_below_one_key_of_a_map_is_called_by_a_refusal_there_and_by_no_other() -> None:
    made = analyst(ATTRIBUTES, repairs=[Number("/attributes/colour/*")])

    cured = made.analyse(parked(text(attributes={"colour": ["5"]})), NOW_US)
    other = made.analyse(parked(text(attributes={"size": ["5"], "colour": ["6"]})), NOW_US)

    assert isinstance(cured, Retriable)
    assert isinstance(other, NotYet)
    assert (other.path, other.place) == ("/attributes/*/0", "/attributes/size/0")


def test_the_places_in_arrays_are_one_cause() -> None:
    assert cause_path("/lines/12/price") == "/lines/*/price"
    assert cause_path("/a/²") == "/a/²"
    assert cause_path("") == ""
