"""The parked table's transitions against a model that knows nothing of tokens, conditions or DynamoDB.

Two workers, an operator and the poller act on the same rows, with stale hints, leases that ran out and lost answers.
After each step the table shows what the model says. ``TIDEMARK_TEST_FULL=1`` runs many more histories.
"""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from shared.events.model import Reason, RejectedEvent
from shared.parked.calls import ParkedUnavailable
from shared.parked.leases import RECEIPTS_MAX, Claimed, Receipt, Row, read_row
from shared.parked.model import ParkedEvent, State, due_partition, group_partition, shard
from shared.parked.policy import POLICIES, limits
from shared.parked.transitions import LeaseLost, NotAllowed, RowChanged, Transitions
from tests.fakes.parked_bench import Loss, ParkedBench, event_of, parked_bench

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
LEASE_S = 60
WEEK_MS = 7 * 86_400_000
REASONS = (Reason.INVALID, Reason.KAFKA_UNKNOWN, Reason.INVALID, Reason.KAFKA_TOPIC, Reason.BUG)
WORKERS = ("worker-1", "worker-2")
ACTS = ("published", "finish", "again", "hold", "stale", "notified")
LOSSES = st.sampled_from(["", "request", "answer", "twice"])
RUNS = count(1)
STEPS: Counter[str] = Counter()


@dataclass
class ModelRow:
    """What a parked row is, as people would tell it."""

    state: State
    reason: Reason
    due_ms: int
    deadline_ms: int
    first_at_ms: int
    raw: bytes
    ver: int = 1
    att: int = 0
    tries: int = 0
    tries_free: int = 0
    tries_before: int = 0
    round: int = 0
    rev: int = 0
    path: str = "/amount"
    fingerprint: str = "ab" * 8
    maybe_sent: bool = False
    evidence: str | None = None
    receipts: int = 0
    grace_until_ms: int | None = None
    holder: int | None = None  # of the lease: leases are numbered
    reserved_until_ms: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    bodies: int = 1

    def renewed_deadline_ms(self, now_ms: int, stale_after_s: int | None) -> int:
        """By the operator: an entity's own patience is with events that are to blame, not with outages."""
        own = stale_after_s is not None and POLICIES[self.reason].state is State.HELD
        return now_ms + (stale_after_s * 1000 if own and stale_after_s is not None else WEEK_MS)

    def add_error(self, kind: str, code: str) -> None:
        self.errors = [*self.errors, (kind, code)][-5:]

    @property
    def queue(self) -> str:
        return "n" if self.state is State.STALE else "r"

    def new_round(self, now_ms: int) -> None:
        self.state = State.PARKED
        self.att = 0
        self.tries_free = self.tries_before = self.tries
        self.round += 1
        self.due_ms = max(now_ms, self.reserved_until_ms)
        self.evidence, self.receipts, self.grace_until_ms = None, 0, None
        self.ver += 1

    def end_lease(self) -> None:
        self.holder = None
        self.reserved_until_ms = 0
        self.ver += 1


@dataclass
class Handle:
    """A lease as its worker remembers it."""

    number: int
    lease: int
    seen: ModelRow  # when it was claimed, renewed or archived
    claimed: Claimed
    until_ms: int  # the worker's own idea, with its margin


@dataclass
class Hint:
    number: int
    ver: int
    row: Row


class ParkedMachine(RuleBasedStateMachine):
    bench: ClassVar[ParkedBench]

    handles = Bundle("handles")
    hints = Bundle("hints")

    def __init__(self) -> None:
        super().__init__()
        self.run = next(RUNS) * 100
        self.rows: dict[int, ModelRow] = {}
        self.events: dict[int, ParkedEvent] = {}
        self.leases = count(1)
        self.left_by: dict[int, int] = {}  # lease that last took the row off the table
        self.given_back: set[int] = set()  # leases that their holder has ended
        self.orphans = 0

    @property
    def now_ms(self) -> int:
        return self.bench.clock.now_ms

    # The poller

    @initialize(reasons=st.lists(st.sampled_from(REASONS), min_size=2, max_size=2))
    def park_some(self, reasons: list[Reason]) -> None:
        for number, reason in enumerate(reasons):
            self._park(number, reason)

    @rule(number=st.integers(0, 1), reason=st.sampled_from(REASONS), later=st.booleans())
    def park(self, number: int, reason: Reason, *, later: bool) -> None:
        """Shown again: counted when it is parked still, parked anew when it has left."""
        if number not in self.rows:
            self._park(number, reason)
            return
        event = self.events[number]
        if later:
            event = self.events[number] = event_of(self.run + number, reason=event.reason, rank=event.rank + 1)
            self.rows[number].ver += 1  # the greater seq stands, and hints are void
        self.bench.run(self.bench.store.park([event]))

    def _park(self, number: int, reason: Reason) -> None:
        event = event_of(self.run + number, reason=reason, at_us=self.now_ms * 1000)
        self.events[number] = event
        self.bench.run(self.bench.store.park([event]))
        row = self._row(number)
        self.rows[number] = ModelRow(
            state=POLICIES[reason].state,
            reason=reason,
            due_ms=row.due_ms,  # jittered
            deadline_ms=self.now_ms + WEEK_MS,
            first_at_ms=self.now_ms,
            raw=event.raw,
        )
        assert self.now_ms <= row.due_ms <= self.now_ms + 3_600_000

    @rule(seconds=st.sampled_from([1, 20, 61, 61, 4_000, 3 * 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.bench.clock.advance(seconds)

    # Workers

    @rule(target=hints, number=st.integers(0, 1))
    def see(self, number: int) -> Any:
        if number not in self.rows:
            return multiple()
        return Hint(number, self.rows[number].ver, self._row(number))

    @rule(target=hints, number=st.integers(0, 1), queue=st.sampled_from("rn"))
    def list_due(self, number: int, queue: Any) -> Any:
        """What the index shows is what the model calls due."""
        part = shard(self.events[number].item_id)
        found = self.bench.run(self.bench.transitions.due(queue, part, self.now_ms, 1_000))
        mine = [hint for hint in found if hint.item_id == self.events[number].item_id]
        row = self.rows.get(number)
        assert bool(mine) == (row is not None and row.queue == queue and row.due_ms <= self.now_ms)
        if not mine or row is None:
            return multiple()
        assert (mine[0].state, mine[0].ver, mine[0].reason) == (row.state, row.ver, row.reason)
        return Hint(number, row.ver, self._row(number))

    @rule(
        target=handles,
        number=st.integers(0, 1),
        worker=st.sampled_from(WORKERS),
        waits=st.sampled_from([True, True, False]),
        loss=st.sampled_from(["", "", "", "request", "answer"]),
    )
    def take(self, number: int, worker: str, loss: Loss, *, waits: bool) -> Any:
        """A claim by a fresh hint, after whatever lease there is, or perhaps within it."""
        row = self.rows.get(number)
        if row is None:
            return multiple()
        if waits:
            self.bench.clock.now_ms = max(self.now_ms, row.reserved_until_ms)
        return self.claim(Hint(number, row.ver, self._row(number)), worker, loss, early=True)

    @rule(target=handles, number=st.integers(0, 1))
    def give_up_and_tell(self, number: int) -> Any:
        """All the way to a lease under which the row may be deleted."""
        handle = self.take(number, WORKERS[0], "", waits=True)
        if not isinstance(handle, Handle):
            return multiple()
        if handle.seen.state is not State.STALE:
            self.stale(handle, "", permanent=True, counts=False)
            handle = self.take(number, WORKERS[0], "", waits=True)
        self.notified(self.archived(handle, ""), 0, "")
        return self.take(number, WORKERS[0], "", waits=True)

    @rule(number=st.integers(0, 1), told=st.booleans(), act=st.sampled_from(ACTS), loss=LOSSES)
    def in_time(self, number: int, act: str, loss: str, *, told: bool) -> None:
        self._story(number, act, loss, lambda: None, told=told)

    @rule(number=st.integers(0, 1), told=st.booleans(), act=st.sampled_from(ACTS), loss=LOSSES)
    def late(self, number: int, act: str, loss: str, *, told: bool) -> None:
        """Frozen past its lease, but nobody has claimed the row since."""
        self._story(number, act, loss, lambda: self.bench.clock.advance(LEASE_S + 10), told=told)

    @rule(number=st.integers(0, 1), told=st.booleans(), act=st.sampled_from(ACTS), loss=LOSSES)
    def overtaken(self, number: int, act: str, loss: str, *, told: bool) -> None:
        self._story(number, act, loss, lambda: self.take(number, WORKERS[0], "", waits=True), told=told)

    @rule(number=st.integers(0, 1), told=st.booleans(), act=st.sampled_from(ACTS), loss=LOSSES)
    def woken_under_its_lease(self, number: int, act: str, loss: str, *, told: bool) -> None:
        self._story(number, act, loss, lambda: self.wake(number, "", operator=True), told=told)

    def _story(self, number: int, act: str, loss: str, meanwhile: Callable[[], object], *, told: bool) -> None:
        """A lease, what happens under it, and its holder's next step: chance alone finds them too seldom."""
        handle = self.give_up_and_tell(number) if told else self.take(number, WORKERS[1], "", waits=True)
        if not isinstance(handle, Handle):
            return
        meanwhile()
        STEPS["story"] += 1
        match act:
            case "published":
                self.published(handle, loss)
            case "finish":
                self.finish(handle, loss)
            case "again":
                self.again(handle, 90, None, (True, False, False), loss)
            case "hold":
                self.hold(handle, None, None, loss, counts=False)
            case "stale":
                self.stale(handle, loss, permanent=True, counts=False)
            case _:
                self.notified(handle, 0, loss)

    @rule(number=st.integers(0, 1), behind=st.integers(1, 2))
    def take_by_a_hint_that_is_behind(self, number: int, behind: int) -> None:
        row = self.rows.get(number)
        if row is not None and row.ver > behind:
            hint = Hint(number, row.ver - behind, replace(self._row(number), ver=row.ver - behind))
            self.bench.clock.now_ms = max(self.now_ms, row.reserved_until_ms, row.due_ms)
            self.claim(hint, WORKERS[0], "", early=False)

    @rule(
        target=handles,
        hint=hints,
        worker=st.sampled_from(WORKERS),
        early=st.booleans(),
        loss=st.sampled_from(["", "", "", "request", "answer"]),
    )
    def claim(self, hint: Hint, worker: str, loss: Loss, *, early: bool) -> Any:
        row = self.rows.get(hint.number)
        free = row is not None and row.ver == hint.ver
        if row is not None:
            free = free and (row.reserved_until_ms <= self.now_ms if early else row.due_ms <= self.now_ms)
        self.bench.lossy.lose = loss
        taken = self.bench.run(self.bench.transitions.claim(hint.row, worker, LEASE_S, early=early))
        assert (taken is not None) == free
        STEPS[f"claim {'won' if free else 'refused'}"] += 1
        if row is None or taken is None:
            return multiple()
        self._claimed(row)
        assert taken.event.raw == row.raw
        return self._handle(hint.number, taken)

    @rule(hint=hints)
    def claim_and_die(self, hint: Hint) -> None:
        """The claim is done, its answer lost, and nobody knows: the row comes due again."""
        row = self.rows.get(hint.number)
        self.bench.lossy.lose = "answer"
        with pytest.raises(ParkedUnavailable):
            self.bench.run(self.bench.hasty.claim(hint.row, "worker-3", LEASE_S))
        if row is not None and row.ver == hint.ver and row.due_ms <= self.now_ms:
            self._claimed(row)

    def _claimed(self, row: ModelRow) -> None:
        row.holder = next(self.leases)
        row.due_ms = row.reserved_until_ms = self.now_ms + LEASE_S * 1000
        row.ver += 1
        row.tries += 1

    @rule(target=handles, handle=handles, loss=st.sampled_from(["", "", "request", "answer"]))
    def renew(self, handle: Handle, loss: Loss) -> Any:
        row = self.rows.get(handle.number)
        ours = row is not None and row.holder == handle.lease
        self.bench.lossy.lose = loss
        renewed = self._done(ours, lambda t: t.renew(handle.claimed, LEASE_S))
        if row is None or renewed is None:
            return multiple()
        row.due_ms = row.reserved_until_ms = self.now_ms + LEASE_S * 1000
        return self._handle(handle.number, renewed)

    @rule(handle=handles, loss=st.sampled_from(["", "", "request", "answer", "twice"]))
    def published(self, handle: Handle, loss: str) -> None:
        row = self.rows.get(handle.number)
        allowed = row is not None and row.holder == handle.lease and row.state is not State.STALE
        self._leave(handle, loss, lambda t: t.published(handle.claimed), allowed=allowed)

    @rule(handle=handles, loss=st.sampled_from(["", "", "request", "answer", "twice"]))
    def finish(self, handle: Handle, loss: str) -> None:
        row = self.rows.get(handle.number)
        allowed = (
            row is not None
            and row.holder == handle.lease
            and row.state is State.STALE
            and row.evidence is not None
            and row.receipts > 0
            and row.grace_until_ms is not None
            and row.grace_until_ms <= self.now_ms
        )
        self._leave(handle, loss, lambda t: t.finish(handle.claimed), allowed=allowed)

    @rule(
        handle=handles,
        delay_s=st.sampled_from([0, 5, 90]),
        new_reason=st.sampled_from([None, *REASONS]),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        loss=st.sampled_from(["", "", "request", "answer", "twice"]),
    )
    def again(
        self, handle: Handle, delay_s: int, new_reason: Reason | None, flags: tuple[bool, bool, bool], loss: str
    ) -> None:
        counts, free, maybe_sent = flags
        reason = None if handle.seen.state is State.STALE else new_reason
        due_ms = self.now_ms + delay_s * 1000
        row = self._end(
            handle,
            loss,
            lambda t: t.again(
                handle.claimed, due_ms, "code", counts=counts, reason=reason, maybe_sent=maybe_sent, free=free
            ),
        )
        if row is not None:
            self._failed(row, handle, "code", reason, counts=counts, free=free)
            row.state = row.state if reason is None else POLICIES[reason].state
            row.due_ms = due_ms
            row.maybe_sent |= maybe_sent

    @rule(
        handle=handles,
        new_reason=st.sampled_from([None, *REASONS]),
        fingerprint=st.sampled_from([None, "cd" * 8]),
        counts=st.booleans(),
        loss=st.sampled_from(["", "", "request", "answer", "twice"]),
    )
    def hold(
        self, handle: Handle, new_reason: Reason | None, fingerprint: str | None, loss: str, *, counts: bool
    ) -> None:
        due_ms = self.now_ms + 3_600_000
        why = RejectedEvent(Reason.INVALID, "/id", "rule")
        row = self._end(
            handle,
            loss,
            lambda t: t.hold(handle.claimed, due_ms, why, counts=counts, reason=new_reason, fingerprint=fingerprint),
            allowed=lambda row: row.state is not State.STALE,
        )
        if row is not None:
            self._failed(row, handle, "/id", new_reason, counts=counts, free=False, kind="invalid")
            row.state = State.HELD
            row.due_ms = min(due_ms, row.deadline_ms)
            row.path = "/id"
            row.fingerprint = fingerprint or row.fingerprint

    @rule(
        handle=handles,
        permanent=st.booleans(),
        counts=st.booleans(),
        loss=st.sampled_from(["", "", "request", "answer", "twice"]),
    )
    def stale(self, handle: Handle, loss: str, *, permanent: bool, counts: bool) -> None:
        attempts_max, tries_max = limits(handle.seen.reason)

        def allowed(row: ModelRow) -> bool:
            by_attempts = attempts_max is not None and row.att + counts >= attempts_max
            by_tries = tries_max is not None and row.tries - row.tries_free >= tries_max
            spent = by_attempts or by_tries or row.deadline_ms <= self.now_ms
            return row.state is not State.STALE and (permanent or spent)

        row = self._end(
            handle, loss, lambda t: t.stale(handle.claimed, "why", counts=counts, permanent=permanent), allowed=allowed
        )
        if row is not None:
            self._failed(row, handle, "why", None, counts=counts, free=False)
            row.state = State.STALE
            row.due_ms = self.now_ms

    @rule(target=handles, handle=handles, loss=st.sampled_from(["", "", "request", "answer"]))
    def archived(self, handle: Handle, loss: Loss) -> Any:
        row = self.rows.get(handle.number)
        allowed = row is not None and row.holder == handle.lease and row.state is State.STALE
        self.bench.lossy.lose = loss
        sha = f"{handle.lease:064d}"
        after = self._done(allowed, lambda t: t.archived(handle.claimed, "s3://archive", sha))
        if row is None or after is None:
            return multiple()
        row.evidence = sha
        return self._handle(handle.number, after, until_ms=handle.until_ms)

    @rule(
        handle=handles, grace_s=st.sampled_from([0, 50]), loss=st.sampled_from(["", "", "request", "answer", "twice"])
    )
    def notified(self, handle: Handle, grace_s: int, loss: str) -> None:
        receipt = Receipt("slack", "group", "id", self.now_ms)
        row = self._end(
            handle,
            loss,
            lambda t: t.notified(handle.claimed, receipt, grace_s),
            allowed=lambda row: row.state is State.STALE and row.evidence is not None,
            fenced_by_round=False,
        )
        if row is not None:
            row.receipts = min(handle.seen.receipts + 1, RECEIPTS_MAX)
            row.due_ms = row.grace_until_ms = self.now_ms + grace_s * 1000

    # The operator, and a contract that changed

    @rule(
        number=st.integers(0, 1),
        operator=st.booleans(),
        stale_after_s=st.sampled_from([None, 3_600]),
        loss=st.sampled_from(["", "", "request", "answer"]),
    )
    def wake(self, number: int, loss: Loss, *, operator: bool, stale_after_s: int | None = None) -> None:
        row = self.rows.get(number)
        wakes = row is not None and (row.state is State.HELD or (operator and row.state is State.STALE))
        place = self._place(number)
        self.bench.lossy.lose = loss
        call = self.bench.transitions.wake(place, 0, "me", operator=operator, stale_after_s=stale_after_s)
        assert self.bench.run(call) == wakes
        self.bench.lossy.lose = ""
        if row is not None and wakes:
            row.new_round(self.now_ms)
            row.add_error("woken", "me")
            if operator:
                row.deadline_ms = row.renewed_deadline_ms(self.now_ms, stale_after_s)

    @rule(
        hint=hints,
        stale_after_s=st.sampled_from([None, 3_600]),
        loss=st.sampled_from(["", "", "request", "answer"]),
    )
    def edit(self, hint: Hint, loss: Loss, stale_after_s: int | None = None) -> None:
        row = self.rows.get(hint.number)
        allowed = row is not None and row.ver == hint.ver
        if len(hint.row.edits) >= 10:
            return
        raw = b'{"edit": %d}' % next(RUNS)
        call = self.bench.transitions.edit(hint.row, raw, "ada", "because", stale_after_s=stale_after_s)
        self.bench.lossy.lose = loss
        try:
            self.bench.run(call)
            assert allowed
        except RowChanged:
            assert not allowed
            self.orphans += 1
        if row is not None and allowed:
            row.new_round(self.now_ms)
            row.add_error("edited", "ada")
            row.deadline_ms = row.renewed_deadline_ms(self.now_ms, stale_after_s)
            row.holder = None
            row.raw = raw
            row.rev += 1
            row.bodies += 1

    # What is compared

    @invariant()
    def the_table_shows_what_the_model_says(self) -> None:
        items = self.bench.run(self.bench.items(list(self.events.values())))
        for (number, event), item in zip(self.events.items(), items, strict=True):
            model = self.rows.get(number)
            assert (item is None) == (model is None), number
            if item is None or model is None:
                continue
            row = read_row(item)
            assert _seen(row) == _told(model)
            part = shard(row.item_id)
            assert item["dq"]["S"] == due_partition(model.queue, part)
            assert item["gk"]["S"] == group_partition("payments", model.reason, part)
            assert row.event.rank == event.rank

    def teardown(self) -> None:
        for number, event in self.events.items():
            model = self.rows.get(number)
            self.bench.run(self._check_bodies(event, model))

    async def _check_bodies(self, event: ParkedEvent, model: ModelRow | None) -> None:
        """Each body that a row names is there; no other but those of refused edits."""
        row = await self.bench.row(event)
        place = row if row is not None else self._place_of(event)
        there = {item["sk"]["S"] for item in await self.bench.items_of(place, "B#")}
        named: set[str | None] = set()
        if row is not None and model is not None:
            named = {row.original.sk, *(edit.body.sk for edit in row.edits)}
            assert len(named) == model.bodies
            assert await self.bench.transitions.body(row) == model.raw
            assert await self.bench.transitions.original(row) == event.raw
        assert named <= there
        assert len(there - named) <= self.orphans
        for sk in [*there, *([row.sk] if row is not None else [])]:
            await self.bench.client.delete_item(
                TableName=self.bench.table, Key={"pk": {"S": place.pk}, "sk": {"S": sk}}
            )

    def _leave(
        self, handle: Handle, loss: str, call: Callable[[Transitions], Awaitable[None]], *, allowed: bool
    ) -> None:
        """Leaving is counted by the lease that did it, and by no other.

        The one gap: the answer is lost, and by the time of the repetition the lease is over.
        """
        row = self.rows.get(handle.number)
        if row is None and handle.lease in self.given_back:
            return  # no worker says that it published what it has given back
        within = self.now_ms < handle.until_ms
        counted = (allowed and (within or loss not in ("answer", "twice"))) or (row is None and within)
        if row is None and within:
            assert self.left_by[handle.number] == handle.lease, "somebody else had it within our lease"
        self._lose(loss, call)
        try:
            self.bench.run(_none(call(self.bench.transitions)))
            assert counted
        except LeaseLost:
            STEPS["lease lost"] += 1
            assert not counted
        except NotAllowed:
            STEPS["not allowed"] += 1
            assert not counted
            assert row is not None
            assert row.holder == handle.lease
        if allowed:
            STEPS[f"left as {row.state if row is not None else ''}"] += 1
            del self.rows[handle.number]
            self.left_by[handle.number] = handle.lease

    def _end(
        self,
        handle: Handle,
        loss: str,
        call: Callable[[Transitions], Awaitable[None]],
        *,
        allowed: Callable[[ModelRow], bool] = lambda _row: True,
        fenced_by_round: bool = True,
    ) -> ModelRow | None:
        """A transition that ends the lease. Returns the row that it is to change."""
        row = self.rows.get(handle.number)
        ours = row is not None and row.holder == handle.lease
        if row is not None and fenced_by_round:
            ours = ours and row.round == handle.seen.round
        may = ours and row is not None and allowed(row)
        self._lose(loss, call)
        try:
            self.bench.run(_none(call(self.bench.transitions)))
            # A lease that has ended so before is told the same again: nothing was written twice, see the invariant.
            assert may or handle.claimed.token == self._done_token(handle.number)
        except LeaseLost:
            STEPS["lease lost"] += 1
            assert not may
        except NotAllowed:
            STEPS["not allowed"] += 1
            assert not may
            assert row is not None
            assert row.holder == handle.lease
        if row is None or not may:
            return None
        STEPS["lease ended"] += 1
        self.given_back.add(handle.lease)
        row.end_lease()
        return row

    def _lose(self, loss: str, call: Callable[[Transitions], Awaitable[None]]) -> None:
        """``twice``: the answer is lost, the caller's budget spent; the caller makes the same call again."""
        if loss != "twice":
            self.bench.lossy.lose = loss  # type: ignore[assignment]  # the other values are losses
            return
        self.bench.lossy.lose = "answer"
        try:
            self.bench.run(_none(call(self.bench.hasty)))
        except (ParkedUnavailable, LeaseLost, NotAllowed):
            STEPS["made again"] += 1
        self.bench.lossy.lose = ""

    def _done(self, allowed: bool, call: Callable[[Transitions], Awaitable[Claimed]]) -> Claimed | None:
        try:
            done = self.bench.run(_claimed(call(self.bench.transitions)))
        except (LeaseLost, NotAllowed):
            assert not allowed
            return None
        assert allowed
        return done

    def _failed(
        self,
        row: ModelRow,
        handle: Handle,
        code: str,
        reason: Reason | None,
        *,
        counts: bool,
        free: bool,
        kind: str | None = None,
    ) -> None:
        row.add_error(kind or reason or handle.seen.reason, code)
        row.att += counts
        row.tries_free += free
        row.reason = reason or row.reason

    def _handle(self, number: int, claimed: Claimed, until_ms: int | None = None) -> Handle:
        row = self.rows[number]
        assert row.holder is not None
        margin_ms = 5_000
        return Handle(number, row.holder, deepcopy(row), claimed, until_ms or row.due_ms - margin_ms)

    def _row(self, number: int) -> Row:
        row = self.bench.run(self.bench.row(self.events[number]))
        assert row is not None
        return row

    def _done_token(self, number: int) -> str | None:
        row = self.bench.run(self.bench.row(self.events[number]))
        return None if row is None else row.done_token

    def _place(self, number: int) -> Any:
        return self._place_of(self.events[number])

    def _place_of(self, event: ParkedEvent) -> Any:
        return self.bench.place(event)


async def _none(call: Awaitable[None]) -> None:
    await call


async def _claimed(call: Awaitable[Claimed]) -> Claimed:
    return await call


def _seen(row: Row) -> dict[str, object]:
    return {
        "state": row.state,
        "reason": row.event.reason,
        "due_ms": row.due_ms,
        "deadline_ms": row.deadline_ms,
        "first_at_ms": row.first_at_ms,
        "ver": row.ver,
        "att": row.att,
        "tries": (row.tries, row.tries_free, row.tries_before),
        "round": row.round,
        "rev": row.event.rev,
        "path": row.event.path,
        "fingerprint": row.event.fingerprint,
        "maybe_sent": row.event.maybe_sent,
        "evidence": row.arch_sha,
        "receipts": len(row.ntf),
        "grace_until_ms": row.grace_until_ms,
        "is_leased": row.lease_token is not None,
        "reserved_until_ms": row.lease_until_ms,
        "errors": [(error.kind, error.code) for error in row.errs],
        "bodies": 1 + len(row.edits),
    }


def _told(model: ModelRow) -> dict[str, object]:
    return {
        "state": model.state,
        "reason": model.reason,
        "due_ms": model.due_ms,
        "deadline_ms": model.deadline_ms,
        "first_at_ms": model.first_at_ms,
        "ver": model.ver,
        "att": model.att,
        "tries": (model.tries, model.tries_free, model.tries_before),
        "round": model.round,
        "rev": model.rev,
        "path": model.path,
        "fingerprint": model.fingerprint,
        "maybe_sent": model.maybe_sent,
        "evidence": model.evidence,
        "receipts": model.receipts,
        "grace_until_ms": model.grace_until_ms,
        "is_leased": model.holder is not None,
        "reserved_until_ms": model.reserved_until_ms,
        "errors": model.errors,
        "bodies": model.bodies,
    }


@pytest.fixture(scope="module")
def bench(stack: Any) -> Iterator[ParkedBench]:
    with parked_bench() as made:
        yield made


@pytest.mark.timeout(1_500 if FULL else 120)
def test_the_table_and_the_model_never_differ(bench: ParkedBench) -> None:
    ParkedMachine.bench = bench
    run_state_machine_as_test(
        ParkedMachine,
        settings=settings(
            max_examples=400 if FULL else 40,
            stateful_step_count=40 if FULL else 20,
            deadline=None,
            derandomize=not FULL,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=tuple(Phase) if FULL else (Phase.generate,),  # shrinking a failure takes minutes
        ),
    )
    print(dict(STEPS))
    for name in ("claim won", "claim refused", "lease ended", "lease lost", "not allowed", "made again"):
        assert STEPS[name] >= 5
    assert STEPS["left as STALE"] >= 3
    assert STEPS["left as PARKED"] + STEPS["left as HELD"] >= 3
