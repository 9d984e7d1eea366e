"""The transitions of the parked table on a real DynamoDB: each condition, lost answers, zombies, bodies."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from shared.events.model import Reason, RejectedEvent
from shared.parked.bodies import BodyMissing
from shared.parked.calls import ParkedUnavailable
from shared.parked.conditions import CLAUSES, Transition
from shared.parked.leases import Claimed, Due, Receipt, Row
from shared.parked.model import KafkaPosition, State, group_partition, shard, undecodable
from shared.parked.policy import after_failure
from shared.parked.queries import ParkedFilter
from shared.parked.transitions import (
    BodyLost,
    Clocks,
    ClockSkewed,
    LeaseLost,
    NotAllowed,
    RowChanged,
    standing,
)
from tests.fakes.parked_bench import AT_MS, Loss, ParkedBench, event_of, parked_bench

LEASE_S = 60.0
DAY_S = 86_400.0
ANYTHING = "(attribute_exists(#pk) OR attribute_not_exists(#pk))"
AFTER = {"again": State.PARKED, "hold": State.HELD, "stale": State.STALE}
RECEIPT = Receipt("webhook", "group-7", "msg_1", AT_MS)
NUMBERS = count(1)
"""Each row of this module has a key of its own, so that one table serves all tests."""


@pytest.fixture(scope="module")
def bench(stack: Any) -> Iterator[ParkedBench]:
    with parked_bench(with_bucket=True) as made:
        yield made


async def a_row(bench: ParkedBench, reason: Reason = Reason.KAFKA_UNKNOWN, **changes: Any) -> Row:
    row = await bench.parked(next(NUMBERS), reason=reason, **changes)
    if row.state is State.PARKED:
        bench.clock.advance(10)  # past the first back-off
    return row


async def claimed(bench: ParkedBench, row: Row | Due, *, early: bool = True, worker: str = "a") -> Claimed:
    hint = await bench.transitions.look(row)
    assert hint is not None
    taken = await bench.transitions.claim(hint, worker, LEASE_S, early=early)
    assert taken is not None
    return taken


async def a_lease(bench: ParkedBench, reason: Reason = Reason.KAFKA_UNKNOWN) -> Claimed:
    return await claimed(bench, await a_row(bench, reason))


async def a_stale_lease(bench: ParkedBench) -> Claimed:
    taken = await a_lease(bench)
    await bench.transitions.stale(taken, "given up", permanent=True)
    return await claimed(bench, taken)


async def a_told_lease(bench: ParkedBench, *, grace_s: float = 0) -> Claimed:
    """Evidence and receipt are there, the grace is over."""
    taken = await bench.transitions.archived(await a_stale_lease(bench), "s3://archive/x", "ab" * 32)
    await bench.transitions.notified(taken, RECEIPT, grace_s)
    return await claimed(bench, taken)


async def refused(call: Awaitable[object], *errors: type[Exception]) -> None:
    try:
        await call
    except errors:
        return
    raise AssertionError("it was done")


async def none(call: Awaitable[object | None]) -> None:
    assert await call is None


# Each check finds a row where exactly one clause forbids the transition.


async def _changed(bench: ParkedBench, *, early: bool) -> None:
    row = await a_row(bench)
    taken = await claimed(bench, row)
    await bench.transitions.again(taken, bench.clock.now_ms, "x", counts=False)

    await none(bench.transitions.claim(row, "b", LEASE_S, early=early))


async def _no_row_of_ours(bench: ParkedBench, *, early: bool) -> None:
    row = await a_row(bench)
    await bench.tamper(row, "SET #st = :st", st={"S": "GONE"})
    try:
        await none(bench.transitions.claim(row, "b", LEASE_S, early=early))
    finally:
        await bench.tamper(row, "SET #st = :st", st={"S": State.PARKED})


async def _not_due(bench: ParkedBench) -> None:
    await none(bench.transitions.claim(await a_row(bench, Reason.INVALID), "b", LEASE_S))


async def _within_a_lease(bench: ParkedBench) -> None:
    taken = await a_lease(bench)

    await none(bench.transitions.claim(taken, "b", LEASE_S, early=True))


Act = Callable[[ParkedBench, Claimed], Awaitable[object]]

ACTS: dict[Transition, Act] = {
    "renew": lambda bench, lease: bench.transitions.renew(lease, LEASE_S),
    "published": lambda bench, lease: bench.transitions.published(lease),
    "again": lambda bench, lease: bench.transitions.again(lease, bench.clock.now_ms + 9, "x", counts=False),
    "stale": lambda bench, lease: bench.transitions.stale(lease, "age"),
    "stale_for_good": lambda bench, lease: bench.transitions.stale(lease, "discarded", permanent=True),
    "hold": lambda bench, lease: bench.transitions.hold(lease, bench.clock.now_ms + 9, "operator"),
    "archived": lambda bench, lease: bench.transitions.archived(lease, "s3://a", "cd" * 32),
    "notified": lambda bench, lease: bench.transitions.notified(lease, RECEIPT, 9),
    "finish": lambda bench, lease: bench.transitions.finish(lease),
}


async def _ripe(bench: ParkedBench, transition: Transition) -> Claimed:
    """A lease under which nothing forbids the transition."""
    if transition in ("notified", "finish"):
        return await a_told_lease(bench)
    if transition == "archived":
        return await a_stale_lease(bench)
    lease = await a_lease(bench)
    if transition == "stale":
        bench.clock.advance(8 * DAY_S)
        lease = await claimed(bench, lease)
    return lease


def _overtaken(transition: Transition) -> Callable[[ParkedBench], Awaitable[None]]:
    async def check(bench: ParkedBench) -> None:
        zombie = await _ripe(bench, transition)
        bench.clock.advance(LEASE_S)
        await claimed(bench, zombie, early=False, worker="b")
        before = await bench.transitions.look(zombie)

        await refused(ACTS[transition](bench, zombie), LeaseLost)
        assert await bench.transitions.look(zombie) == before

    return check


def _woken_meanwhile(transition: Transition) -> Callable[[ParkedBench], Awaitable[None]]:
    async def check(bench: ParkedBench) -> None:
        lease = await a_lease(bench, Reason.INVALID)
        if transition == "stale":
            bench.clock.advance(8 * DAY_S)
            lease = await claimed(bench, lease)
        assert await bench.transitions.wake(lease, 0, "schema 7")

        await refused(ACTS[transition](bench, lease), LeaseLost)
        row = await bench.transitions.look(lease)
        assert row is not None
        assert row.state is State.PARKED

    return check


def _given_up_already(transition: Transition) -> Callable[[ParkedBench], Awaitable[None]]:
    async def check(bench: ParkedBench) -> None:
        lease = await a_stale_lease(bench)
        bench.clock.advance(8 * DAY_S if transition == "stale" else 0)

        await refused(ACTS[transition](bench, lease), NotAllowed)

    return check


def _state_changed(transition: Transition) -> Callable[[ParkedBench], Awaitable[None]]:
    """Evidence and receipt stand there, but the row isn't stale. No transition makes this; it is refused even so."""

    async def check(bench: ParkedBench) -> None:
        lease = await _ripe(bench, transition)
        await bench.tamper(lease, "SET #st = :st", st={"S": "PARKED"})

        await refused(ACTS[transition](bench, lease), NotAllowed)

    return check


def _without(attribute: str, transition: Transition) -> Callable[[ParkedBench], Awaitable[None]]:
    async def check(bench: ParkedBench) -> None:
        lease = await _ripe(bench, transition)
        await bench.tamper(lease, f"REMOVE #{attribute}")

        await refused(ACTS[transition](bench, lease), NotAllowed)

    return check


async def _no_limit_reached(bench: ParkedBench) -> None:
    await refused(bench.transitions.stale(await a_lease(bench), "attempts"), NotAllowed)


async def _in_grace(bench: ParkedBench) -> None:
    await refused(bench.transitions.finish(await a_told_lease(bench, grace_s=DAY_S)), NotAllowed)


async def _claimed_while_waking(bench: ParkedBench, *, operator: bool) -> None:
    row = await a_row(bench, Reason.INVALID)
    bench.lossy.before_write = lambda: claimed(bench, row)
    assert await bench.transitions.wake(row, 0, "schema 7", operator=operator)

    after = await bench.transitions.look(row)
    assert after is not None
    assert after.due_ms >= bench.clock.now_ms + LEASE_S * 1000  # or a second worker had it within the lease


async def _moved_while_waking(bench: ParkedBench, state: State, *, operator: bool) -> None:
    row = await a_row(bench, Reason.INVALID)
    bench.lossy.before_write = lambda: bench.tamper(row, "SET #st = :st", st={"S": state})

    assert not await bench.transitions.wake(row, 0, "schema 7", operator=operator)


async def _edited_late(bench: ParkedBench) -> None:
    row = await a_row(bench)
    await claimed(bench, row)

    await refused(bench.transitions.edit(row, b"{}", "me", "because"), RowChanged)


async def _edited_no_row_of_ours(bench: ParkedBench) -> None:
    row = await a_row(bench)
    await bench.tamper(row, "SET #st = :st", st={"S": "GONE"})

    try:
        await refused(bench.transitions.edit(row, b"{}", "me", "because"), RowChanged)
    finally:
        await bench.tamper(row, "SET #st = :st", st={"S": State.PARKED})


CHECKS: dict[tuple[Transition, str], Callable[[ParkedBench], Awaitable[None]]] = {
    ("claim", "unchanged"): lambda bench: _changed(bench, early=False),
    ("claim", "waits"): lambda bench: _no_row_of_ours(bench, early=False),
    ("claim", "is_due"): _not_due,
    ("claim_early", "unchanged"): lambda bench: _changed(bench, early=True),
    ("claim_early", "waits"): lambda bench: _no_row_of_ours(bench, early=True),
    ("claim_early", "not_leased"): _within_a_lease,
    **{(transition, "leased"): _overtaken(transition) for transition in ACTS},
    ("published", "tried"): _given_up_already("published"),
    ("again", "same_round"): _woken_meanwhile("again"),
    ("stale", "same_round"): _woken_meanwhile("stale"),
    ("stale", "tried"): _given_up_already("stale"),
    ("stale", "spent"): _no_limit_reached,
    ("stale_for_good", "same_round"): _woken_meanwhile("stale_for_good"),
    ("stale_for_good", "tried"): _given_up_already("stale_for_good"),
    ("hold", "same_round"): _woken_meanwhile("hold"),
    ("hold", "tried"): _given_up_already("hold"),
    ("wake", "unchanged"): lambda bench: _claimed_while_waking(bench, operator=False),
    ("wake", "held"): lambda bench: _moved_while_waking(bench, State.STALE, operator=False),
    ("wake_operator", "unchanged"): lambda bench: _claimed_while_waking(bench, operator=True),
    ("wake_operator", "at_rest"): lambda bench: _moved_while_waking(bench, State.PARKED, operator=True),
    ("archived", "stale"): _state_changed("archived"),
    ("notified", "stale"): _state_changed("notified"),
    ("notified", "archived"): _without("arch_sha", "notified"),
    ("finish", "stale"): _state_changed("finish"),
    ("finish", "grace_over"): _in_grace,
    ("finish", "archived"): _without("arch_sha", "finish"),
    ("finish", "notified"): _without("ntf", "finish"),
    ("edit", "unchanged"): _edited_late,
    ("edit", "waits"): _edited_no_row_of_ours,
}


def test_every_clause_of_every_condition_has_its_check() -> None:
    assert set(CHECKS) == {(transition, clause) for transition, clauses in CLAUSES.items() for clause in clauses}


@pytest.mark.parametrize(("transition", "clause"), CHECKS, ids=str)
def test_each_clause_prevents_its_accident(
    bench: ParkedBench, monkeypatch: pytest.MonkeyPatch, transition: Transition, clause: str
) -> None:
    check = CHECKS[transition, clause]
    bench.run(_awaited(check(bench)))

    monkeypatch.setitem(CLAUSES[transition], clause, ANYTHING)
    with pytest.raises((AssertionError, ValueError)):  # without the clause the same check sees the accident
        bench.run(_awaited(check(bench)))


async def _awaited(call: Awaitable[None]) -> None:
    await call


# Lost answers


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("transition", ACTS)
def test_a_lost_answer_changes_nothing(bench: ParkedBench, transition: Transition, lost: Loss) -> None:
    async def check() -> None:
        plain, hit = await _ripe(bench, transition), await _ripe(bench, transition)
        await ACTS[transition](bench, plain)
        bench.lossy.lose = lost
        await ACTS[transition](bench, hit)

        assert bench.lossy.lose == ""
        assert _facts(await bench.transitions.look(hit)) == _facts(await bench.transitions.look(plain))

    bench.run(check())


@pytest.mark.parametrize("transition", ["published", "again", "hold", "stale", "notified", "finish"])
def test_a_call_that_failed_with_unknown_outcome_is_made_again(bench: ParkedBench, transition: Transition) -> None:
    async def check() -> None:
        lease = await _ripe(bench, transition)
        bench.lossy.lose = "answer"
        usual, bench.transitions = bench.transitions, bench.hasty
        try:
            await refused(ACTS[transition](bench, lease), ParkedUnavailable)
        finally:
            bench.transitions = usual
        once = await bench.transitions.look(lease)
        await ACTS[transition](bench, lease)

        assert await bench.transitions.look(lease) == once

    bench.run(check())


def _facts(row: Row | None) -> object:
    if row is None:
        return None
    return (row.state, row.ver, row.att, row.tries, row.round, len(row.errs), row.lease_token is None,
            row.arch_sha, row.ntf, row.stale_why, row.due_ms - (row.lease_until_ms or row.due_ms))  # fmt: skip


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_claim_whose_answer_is_lost_is_ours_once(bench: ParkedBench, lost: Loss) -> None:
    async def check() -> None:
        row = await a_row(bench)
        bench.lossy.lose = lost
        taken = await bench.transitions.claim(row, "a", LEASE_S)

        assert taken is not None
        assert (taken.tries, taken.lease_owner) == (1, "a")
        await bench.transitions.published(taken)

    bench.run(check())


def test_a_row_that_is_gone_after_the_lease_is_not_counted(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_lease(bench)
        await bench.transitions.published(lease)
        bench.clock.advance(LEASE_S)
        with pytest.raises(LeaseLost) as lost:
            await bench.transitions.published(lease)

        assert lost.value.gone

    bench.run(check())


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_wake_whose_answer_is_lost_counts_once(bench: ParkedBench, lost: Loss) -> None:
    async def check() -> None:
        row = await a_row(bench, Reason.INVALID)
        bench.lossy.lose = lost
        assert await bench.transitions.wake(row, 0, "schema 7")

        assert not await bench.transitions.wake(row, 0, "schema 7")
        after = await bench.transitions.look(row)
        assert after is not None
        assert (after.round, after.state) == (1, State.PARKED)

    bench.run(check())


# The life of a row


def test_a_claim_carries_everything_that_a_publish_needs(bench: ParkedBench) -> None:
    async def check() -> None:
        event = event_of(next(NUMBERS), reason=Reason.KAFKA_UNKNOWN, maybe_sent=True, at_us=bench.clock.now_ms * 1000)
        await bench.store.park([event])
        bench.clock.advance(10)
        [hint] = [
            found
            for found in await bench.transitions.due("r", shard(event.item_id), bench.clock.now_ms, 1_000)
            if found.item_id == event.item_id
        ]
        taken = await bench.transitions.claim(hint, "a", LEASE_S)

        assert taken is not None
        assert taken.event == event
        assert (hint.reason, hint.entity, hint.state, hint.ver) == (event.reason, "payments", State.PARKED, 1)
        assert bench.clock.now_ms / 1000 + 50 < taken.lease_until_s < bench.clock.now_ms / 1000 + LEASE_S

    bench.run(check())


def test_an_undecodable_record_keeps_its_place_key_and_headers(bench: ParkedBench) -> None:
    async def check() -> None:
        position = KafkaPosition("cdc.payments", 2, 0, next(NUMBERS), AT_MS, b"\xff", (("tm-op", b"u"),))
        event = undecodable(
            entity="payments", position=position, value=b"\x00\x00", detail="trailing bytes", subject="s",
            fingerprint=None, owner="o", at_us=AT_MS * 1000,
        )  # fmt: skip
        await bench.store.park([event])
        row = await bench.row(event)
        assert row is not None
        taken = await claimed(bench, row)

        assert taken.event == event

    bench.run(check())


def test_two_workers_share_one_due_list_without_sharing_a_row(bench: ParkedBench) -> None:
    async def check() -> None:
        rows = [await a_row(bench) for _ in range(12)]

        async def work(name: str) -> list[str]:
            taken = [await bench.transitions.claim(row, name, LEASE_S) for row in rows]
            return [lease.item_id for lease in taken if lease is not None]

        got = await asyncio.gather(*(work(name) for name in "abc"))

        assert sorted(item for part in got for item in part) == sorted(row.item_id for row in rows)

    bench.run(check())


def test_the_due_list_is_earliest_first_bounded_and_shows_expired_leases(bench: ParkedBench) -> None:
    async def check() -> None:
        row = await a_row(bench)
        number = shard(row.item_id)
        await claimed(bench, row)
        seen = {found.item_id for found in await bench.transitions.due("r", number, bench.clock.now_ms, 1_000)}
        assert row.item_id not in seen
        bench.clock.advance(LEASE_S)
        found = await bench.transitions.due("r", number, bench.clock.now_ms, 1_000)

        assert row.item_id in {hint.item_id for hint in found}
        assert [hint.due_ms for hint in found] == sorted(hint.due_ms for hint in found)
        assert await bench.transitions.due("r", number, bench.clock.now_ms, 1) == found[:1]

    bench.run(check())


def test_a_new_reason_moves_the_row_to_its_group_and_state(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_lease(bench, Reason.KAFKA_UNAVAILABLE)
        refusal = RejectedEvent(Reason.INVALID, "/currency", "unknown field")
        after = after_failure(standing(lease), Reason.INVALID, bench.clock.now_ms, new_fingerprint=True)
        await bench.transitions.failed(lease, after, refusal, fingerprint="cd" * 8)
        page = await bench.store.find(
            ParkedFilter(entities=("payments",), reasons=(Reason.INVALID,), path="/currency"), limit=10
        )

        [line] = [row for row in page.rows if row.item_id == lease.item_id]
        assert (line.state, line.fingerprint, line.attempts) == (State.HELD, "cd" * 8, 1)
        row = await bench.transitions.look(line)
        assert row is not None
        assert (row.event.reason, row.event.detail) == (Reason.INVALID, "unknown field")
        assert [(error.kind, error.code) for error in row.errs] == [("invalid", "/currency")]
        item = await bench.item(row.event)
        assert item is not None
        assert item["gk"]["S"] == group_partition("payments", Reason.INVALID, shard(row.item_id))

    bench.run(check())


def test_unknown_outcomes_end_after_twenty_tries_that_met_no_outage(bench: ParkedBench) -> None:
    async def check() -> None:
        row: Row | None = await a_row(bench)
        actions: list[str] = []
        for turn in range(40):
            assert row is not None
            lease = await claimed(bench, row)
            outcome = Reason.KAFKA_UNAVAILABLE if turn % 4 == 0 else Reason.KAFKA_UNKNOWN
            after = after_failure(standing(lease), outcome, bench.clock.now_ms)
            after = replace(after, reason=None)
            await bench.transitions.failed(lease, after, "timed out", maybe_sent=True)
            actions.append(after.action)
            row = await bench.transitions.look(row)
            if after.action == "stale":
                break

        assert (actions.count("again"), actions[-1], len(actions)) == (26, "stale", 27)
        assert row is not None
        assert (row.att, row.tries, row.stale_why, len(row.errs)) == (0, 27, "tries", 5)
        assert row.event.maybe_sent
        assert await bench.transitions.wake(row, 0, "operator", operator=True)
        lease = await claimed(bench, row)
        assert after_failure(standing(lease), Reason.KAFKA_UNKNOWN, bench.clock.now_ms).action == "again"

    bench.run(check())


def test_an_unknown_outcome_at_the_last_try_is_remembered(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_lease(bench)
        bench.clock.advance(8 * DAY_S)
        lease = await claimed(bench, lease)
        after = after_failure(standing(lease), Reason.KAFKA_UNKNOWN, bench.clock.now_ms)
        await bench.transitions.failed(lease, after, "timed out", maybe_sent=True, fingerprint="ef" * 8)

        row = await bench.transitions.look(lease)
        assert row is not None
        assert (row.state, row.event.maybe_sent, row.event.fingerprint) == (State.STALE, True, "ef" * 8)

    bench.run(check())


@pytest.mark.parametrize("action", ["again", "hold", "stale"])
def test_what_may_have_been_sent_is_marked_so_for_ever(
    bench: ParkedBench, action: Literal["again", "hold", "stale"]
) -> None:
    async def check() -> None:
        lease = await a_lease(bench)
        bench.clock.advance(8 * DAY_S)
        lease = await claimed(bench, lease)
        after = after_failure(standing(lease), Reason.KAFKA_UNKNOWN, bench.clock.now_ms)
        await bench.transitions.failed(lease, replace(after, action=action), "timed out", maybe_sent=True)
        row = await bench.transitions.look(lease)
        assert row is not None
        assert (row.state, row.event.maybe_sent) == (AFTER[action], True)

        lease = await claimed(bench, row)
        if action == "stale":
            await bench.transitions.again(lease, bench.clock.now_ms, "in_grace", counts=False)
        else:
            refused = replace(after, action="hold", reason=Reason.INVALID)
            await bench.transitions.failed(lease, refused, RejectedEvent(Reason.INVALID, "/amount", "no number"))
        row = await bench.transitions.look(lease)
        assert row is not None
        assert row.event.maybe_sent

    bench.run(check())


def test_a_woken_lease_may_still_say_that_it_was_published(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_lease(bench, Reason.INVALID)
        assert await bench.transitions.wake(lease, 0, "schema 7")
        await bench.transitions.published(lease)

        assert await bench.transitions.look(lease) is None

    bench.run(check())


def test_an_edit_under_a_lease_survives_the_publish_of_the_old_bytes(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_lease(bench)
        edited = await bench.transitions.edit(lease, b'{"id": 1, "amount": "10"}', "ada", "typing error")
        await refused(bench.transitions.published(lease), LeaseLost)
        assert await bench.transitions.claim(edited, "b", LEASE_S, early=True) is None  # the publish may still be on
        bench.clock.advance(LEASE_S)
        again = await claimed(bench, edited)

        assert (again.event.raw, again.event.rev, again.round) == (b'{"id": 1, "amount": "10"}', 1, 1)
        assert await bench.transitions.original(again) == lease.event.raw
        assert [(edit.who, edit.why) for edit in again.edits] == [("ada", "typing error")]
        outcome = await bench.store.park([replace(lease.event, at_us=bench.clock.now_ms * 1000)])
        assert (outcome.new, outcome.seen_again) == (0, 1)  # the source shows the original again: no second row

    bench.run(check())


def test_every_body_goes_after_its_row_and_no_other(bench: ParkedBench) -> None:
    async def check() -> None:
        number = next(NUMBERS)
        first = await bench.parked(number)
        other = await bench.parked(number, event_id="f" * 32)  # the same row key, the same bytes
        edited = await bench.transitions.edit(first, b"{}", "ada", "empty")
        await bench.transitions.edit(edited, b"[]", "ada", "emptier")
        assert len(await bench.items_of(first, "B#")) == 4
        await bench.transitions.published(await claimed(bench, first))

        [left] = await bench.items_of(first, "B#")
        assert left["sk"]["S"] == other.original.sk
        assert await bench.transitions.body(other) == event_of(number).raw

    bench.run(check())


def test_a_large_body_goes_with_its_row_though_another_row_has_the_same_bytes(bench: ParkedBench) -> None:
    async def check() -> None:
        number = next(NUMBERS)
        raw = b"".join(b"%d" % (part * part) for part in range(3_000))
        first = await bench.parked(number, raw=raw)
        second = await bench.parked(number, raw=raw, event_id="e" * 32)
        assert first.original.object_key is not None
        lease = await claimed(bench, first)
        assert lease.event.raw == raw
        edited = await bench.transitions.edit(second, raw + b" ", "ada", "longer")
        await bench.transitions.published(lease)

        with pytest.raises(BodyMissing):
            await bench.transitions.original(first)
        assert (await claimed(bench, edited)).event.raw == raw + b" "
        assert await bench.transitions.original(edited) == raw

    bench.run(check())


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_row_without_its_body_can_be_held_and_is_never_lost(bench: ParkedBench, damage: str) -> None:
    async def check() -> None:
        row = await a_row(bench)
        key = {"pk": {"S": row.pk}, "sk": {"S": row.original.sk}}
        if damage == "missing":
            await bench.client.delete_item(TableName=bench.table, Key=key)
        else:
            found = (await bench.client.get_item(TableName=bench.table, Key=key))["Item"]
            raw = found["raw"]["B"]
            elsewhere = (await bench.items_of(await a_row(bench), "B#"))[0]["raw"]["B"]
            found["raw"] = {"B": raw[:-3] if damage == "cut" else elsewhere}
            await bench.client.put_item(TableName=bench.table, Item=found)
        with pytest.raises(BodyLost) as lost:
            await bench.transitions.claim(row, "a", LEASE_S)
        await bench.transitions.hold(lost.value.claimed, AT_MS * 2, lost.value.detail, reason=Reason.BUG)

        after = await bench.transitions.look(row)
        assert after is not None
        assert (after.state, after.event.reason, after.due_ms) == (State.HELD, Reason.BUG, after.deadline_ms)

    bench.run(check())


def test_nothing_is_deleted_before_evidence_receipt_and_grace(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_stale_lease(bench)
        await refused(bench.transitions.finish(lease), NotAllowed)
        lease = await bench.transitions.archived(lease, "s3://archive/1", "ab" * 32)
        assert (lease.arch_uri, lease.event.raw != b"") == ("s3://archive/1", True)
        await refused(bench.transitions.finish(lease), NotAllowed)
        await bench.transitions.notified(lease, RECEIPT, 7 * DAY_S)
        queue = await bench.transitions.due(
            "n", shard(lease.item_id), bench.clock.now_ms + int(6 * DAY_S * 1000), 1_000
        )
        assert lease.item_id not in {found.item_id for found in queue}
        bench.clock.advance(7 * DAY_S)
        lease = await claimed(bench, lease, early=False)
        assert lease.ntf == (RECEIPT,)
        await bench.transitions.finish(lease)

        assert await bench.transitions.look(lease) is None
        assert await bench.items_of(lease, "B#") == []

    bench.run(check())


def test_a_re_driven_row_that_fails_again_needs_new_evidence_and_a_new_notice(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_told_lease(bench)
        assert not await bench.transitions.wake(lease, 0, "schema 7")
        assert await bench.transitions.wake(lease, 0, "ada", operator=True)
        bench.clock.advance(LEASE_S)
        lease = await claimed(bench, lease, early=False)
        assert (lease.round, lease.att, lease.arch_sha, lease.ntf) == (1, 0, None, ())
        assert lease.deadline_ms > bench.clock.now_ms + 6 * DAY_S * 1000
        await bench.transitions.stale(lease, "discarded", permanent=True)
        lease = await claimed(bench, lease)

        await refused(bench.transitions.finish(lease), NotAllowed)

    bench.run(check())


def test_a_stale_row_that_waits_for_its_channel_stays_stale(bench: ParkedBench) -> None:
    async def check() -> None:
        lease = await a_stale_lease(bench)
        await bench.transitions.again(lease, bench.clock.now_ms + 30_000, "channel_unavailable", counts=False)
        row = await bench.transitions.look(lease)

        assert row is not None
        assert (row.state, row.due_ms) == (State.STALE, bench.clock.now_ms + 30_000)
        bench.clock.advance(30)
        due = await bench.transitions.due("n", shard(row.item_id), bench.clock.now_ms, 1_000)
        assert row.item_id in {hint.item_id for hint in due}

    bench.run(check())


def test_woken_rows_come_due_spread_over_the_time_given(bench: ParkedBench) -> None:
    async def check() -> None:
        dues: list[int] = []
        for _ in range(20):
            row = await a_row(bench, Reason.INVALID)
            await bench.transitions.wake(row, 100, "schema 7")
            after = await bench.transitions.look(row)
            assert after is not None
            dues.append(after.due_ms - bench.clock.now_ms)

        assert all(0 <= due <= 100_000 for due in dues)
        assert max(dues) - min(dues) > 20_000

    bench.run(check())


@pytest.mark.parametrize("off_s", [-3_600, 3_600])
def test_a_host_whose_clock_is_off_is_shown_no_due_rows(bench: ParkedBench, off_s: int) -> None:
    import time

    right = bench.store.transitions
    wrong = bench.store.transitions_by(Clocks(wall_ms=lambda: int((time.time() + off_s) * 1000)))

    bench.run(right.due("r", 0, 1, 1))
    with pytest.raises(ClockSkewed, match="set the clock"):
        bench.run(wrong.due("r", 0, 1, 1))
