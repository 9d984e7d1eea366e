"""What may happen to a parked row, each step one conditional write. No step needs another worker to be alive.

A lease is a due time moved into the future, and a token: a crashed worker's row comes due again by itself, and a worker
that wakes after its lease finds its token gone. Rows leave the table by ``published`` and ``finish`` alone, and their
bodies after them, so that a crash leaves a body without a row behind, never a row without a body.

Any method may raise ``ParkedUnavailable``: whether it was done is then unknown. Call it again with the same lease: it
knows its own write by the token. Nothing but the lease's end makes that unclear, and then ``LeaseLost`` says so.
"""

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from secrets import token_hex
from typing import Any, Literal, Protocol

from botocore.exceptions import ClientError
from msgspec import Struct

from shared.events.model import Reason, RejectedEvent
from shared.parked.bodies import Bodies, BodyMissing
from shared.parked.calls import Budget, Calls, ParkedUnavailable
from shared.parked.conditions import Transition, delete_request, update_request
from shared.parked.items import Item, wire
from shared.parked.leases import (
    Claimed,
    Due,
    Edit,
    Receipt,
    Row,
    claimed_row,
    due_of,
    edits_of,
    edits_wire,
    error_of,
    errors_wire,
    own_bodies,
    read_row,
    receipts_wire,
    with_position,
    with_raw,
)
from shared.parked.model import State, due_partition, due_sort, group_partition, legible, shard
from shared.parked.policy import POLICIES, Next, Standing, deadline_ms, limits

CLOCK_BOUND_S = 5.0
"""``due <= :now`` compares clocks: a worker whose clock is further off than this claims nothing."""
READS_MAX = 8  # of one wake that others keep overtaking
EDITS_MAX = 10  # META is meant to stay small
_NEVER = 10**9  # attempts or tries of a class without such a limit

_END_OF_LEASE = ("lease_tok", "lease_own", "lease_until")
_EVIDENCE = ("arch_uri", "arch_sha", "ntf", "grace_until", "stale_why")
_VER = "#ver = #ver + :one"

_Values = dict[str, dict[str, Any]]


class Place(Protocol):
    """Where a row lies: a hint, a line of a listing, a row that was read."""

    @property
    def pk(self) -> str: ...

    @property
    def sk(self) -> str: ...


class Hint(Place, Protocol):
    @property
    def ver(self) -> int: ...

    @property
    def item_id(self) -> str: ...


class LeaseLost(Exception):
    """Nothing was written: the lease is over, or the row was woken or edited meanwhile. Leave it and go on.

    ``gone``: the row has left the table, by another worker, or by a write of ours whose answer came after the lease.
    """

    def __init__(self, row: Row, transition: str, *, gone: bool = False) -> None:
        super().__init__(f"{transition} of {row.item_id!r}: the lease is lost{' and the row is gone' if gone else ''}")
        self.gone = gone


class NotAllowed(Exception):
    """The lease holds, but the row isn't ready for this: no limit reached, no evidence, no receipt, grace not over."""


class RowChanged(Exception):
    """Somebody changed the row since it was read: read it again, and decide again."""


class BodyLost(Exception):
    """A row is claimed whose body is missing or damaged: hold it or give it up with this text. Never publish it."""

    def __init__(self, claimed: Claimed, detail: str) -> None:
        super().__init__(f"{claimed.item_id!r}: {detail}")
        self.claimed = claimed
        self.detail = detail


class ClockSkewed(Exception):
    """The own clock and the store's differ by more than the bound: set the clock before anything is claimed."""


class Clocks(Struct, frozen=True):
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_s: Callable[[], float] = time.monotonic
    bound_s: float | None = CLOCK_BOUND_S  # None: the store's clock is not compared


class _Answer(Struct, frozen=True):
    applied: bool
    item: Item | None  # after the write; when refused, what stands there: None: nothing


class Transitions:
    """Safe for many tasks, processes and hosts at once: the conditions decide, not who calls."""

    def __init__(
        self,
        table: Calls,
        table_name: str,
        bodies: Bodies,
        *,
        budget_s: float,
        clocks: Clocks,
    ) -> None:
        self._table = table
        self._table_name = table_name
        self._bodies = bodies
        self._budget_s = budget_s
        self._clocks = clocks

    async def due(self, queue: Literal["r", "n"], shard_number: int, now_ms: int, limit: int) -> list[Due]:
        """Earliest first, at most ``limit``; expired leases among them. Raises ``ClockSkewed``."""
        query: dict[str, Any] = {
            "TableName": self._table_name,
            "IndexName": "due",
            "KeyConditionExpression": "dq = :dq AND due < :bound",
            "ExpressionAttributeValues": {
                ":dq": wire(due_partition(queue, shard_number)),
                ":bound": wire(_due_bound(now_ms)),
            },
        }
        found: list[Due] = []
        while True:
            before_ms = self._clocks.wall_ms()
            answer = await self._table.call("query", self._budget(), Limit=limit - len(found), **query)
            self._compare_clocks(answer, before_ms)
            found += [due_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer or len(found) >= limit:
                return found
            query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def look(self, place: Place) -> Row | None:
        """Strongly consistent. ``None``: the row has left the table."""
        key = {"pk": wire(place.pk), "sk": wire(place.sk)}
        reading: dict[str, Any] = {"TableName": self._table_name, "Key": key, "ConsistentRead": True}
        answer = await self._table.call("get_item", self._budget(), **reading)
        return read_row(answer["Item"]) if "Item" in answer else None

    async def claim(self, hint: Hint, worker: str, lease_s: float, *, early: bool = False) -> Claimed | None:
        """Take a row for ``lease_s``. ``None``: it is somebody else's, not due, changed or gone.

        ``early``: also before it is due (an operator's), but never within somebody's lease. Raises ``BodyLost``. When
        this call fails or is killed, the row comes due again after the lease.
        """
        started_s = self._clocks.monotonic_s()
        now_ms = self._clocks.wall_ms()
        token = token_hex(8)
        sets = {
            "lease_tok": wire(token),
            "lease_own": wire(legible(worker, 64)),
            **_lease_until(now_ms, lease_s, hint.item_id),
        }
        values = {"ver": wire(hint.ver), "due_bound": wire(_due_bound(now_ms)), "now": wire(now_ms)}
        computes = (_VER, "#tries = #tries + :one", "#round = if_not_exists(#round, :zero)")
        answer = await self._update("claim_early" if early else "claim", hint, values, sets, computes=computes)
        if answer.item is None or _text(answer.item, "lease_tok") != token:
            return None  # refused; a refusal that shows our token is our own write, whose answer was lost
        claimed = claimed_row(read_row(answer.item), token, started_s + _safe_s(lease_s))
        try:
            claimed = with_raw(claimed, await self.body(claimed))
            position = claimed.event.kafka
            if position is None or not position.cut:
                return claimed
            return with_position(claimed, await self._bodies.position(claimed, position))
        except BodyMissing as missing:
            raise BodyLost(claimed, str(missing)) from missing

    async def renew(self, claimed: Claimed, lease_s: float) -> Claimed:
        """Raises ``LeaseLost``."""
        started_s = self._clocks.monotonic_s()
        sets = _lease_until(self._clocks.wall_ms(), lease_s, claimed.item_id)
        answer = await self._update("renew", claimed, {"token": wire(claimed.token)}, sets)
        if not answer.applied or answer.item is None:
            raise LeaseLost(claimed, "renew", gone=answer.item is None)
        return _refreshed(claimed, answer.item, started_s + _safe_s(lease_s))

    async def published(self, claimed: Claimed) -> None:
        """Only after Kafka's ack: the row leaves the table, then its bodies. When it returns, count it, once.

        Raises ``LeaseLost`` (then count nothing).
        """
        await self._leave("published", claimed, {})

    async def again(
        self,
        claimed: Claimed,
        due_ms: int,
        error: RejectedEvent | str,
        *,
        counts: bool,
        reason: Reason | None = None,
        fingerprint: str | None = None,
        maybe_sent: bool = False,
        free: bool = False,
    ) -> None:
        """Ends the lease; the row is due at ``due_ms``. A STALE row stays STALE: that is the notifier's back-off.

        ``reason``: another class than before, whose state and group the row takes. ``error`` as text is a short code;
        a ``RejectedEvent`` gives its path and detail to the row. Raises ``LeaseLost``.
        """
        assert reason is None or claimed.state is not State.STALE, "a stale row keeps the reason it was given up for"
        state = claimed.state if reason is None else POLICIES[reason].state
        sets = self._failure(claimed, error, reason, fingerprint, counts=counts, maybe_sent=maybe_sent, free=free)
        sets |= {"st": wire(state), "due": wire(due_sort(due_ms, claimed.item_id))}
        await self._end("again", claimed, sets)

    async def hold(
        self,
        claimed: Claimed,
        due_ms: int,
        why: RejectedEvent | str,
        *,
        counts: bool = False,
        reason: Reason | None = None,
        fingerprint: str | None = None,
        maybe_sent: bool = False,
        free: bool = False,
    ) -> None:
        """Ends the lease; looked at again at ``due_ms`` or at the deadline, whichever is first.

        ``fingerprint``: of the contract that refused it now; what a newer one wakes. Raises ``LeaseLost``.
        """
        sets = self._failure(claimed, why, reason, fingerprint, counts=counts, maybe_sent=maybe_sent, free=free)
        sets |= {
            "st": wire(State.HELD),
            "due": wire(due_sort(min(due_ms, claimed.deadline_ms), claimed.item_id)),
        }
        await self._end("hold", claimed, sets)

    async def stale(
        self,
        claimed: Claimed,
        why: str,
        *,
        error: RejectedEvent | str | None = None,
        counts: bool = False,
        permanent: bool = False,
        reason: Reason | None = None,
        outcome: Reason | None = None,
        fingerprint: str | None = None,
        maybe_sent: bool = False,
        free: bool = False,
    ) -> None:
        """Ends the lease: given up, the owner is to be told; due now in the queue of notices.

        The store itself compares attempts, tries and age with the limits of ``outcome`` (else of the row's reason),
        unless ``permanent``. Raises ``LeaseLost``; ``NotAllowed`` when no limit is reached.
        """
        now_ms = self._clocks.wall_ms()
        attempts_max, tries_max = limits(outcome or reason or claimed.event.reason)
        error = why if error is None else error
        sets = self._failure(claimed, error, reason, fingerprint, counts=counts, maybe_sent=maybe_sent, free=free)
        sets |= {
            "st": wire(State.STALE),
            "dq": wire(due_partition("n", shard(claimed.item_id))),
            "due": wire(due_sort(now_ms, claimed.item_id)),
            "stale_why": wire(legible(why)),
        }
        values = {
            "att_max": wire(_NEVER if attempts_max is None else attempts_max - counts),
            "tries_max": wire(_NEVER if tries_max is None else tries_max + claimed.tries_free + free),
            "now": wire(now_ms),
        }
        await self._end("stale_for_good" if permanent else "stale", claimed, sets, values)

    async def failed(
        self,
        claimed: Claimed,
        after: Next,
        error: RejectedEvent | str,
        *,
        maybe_sent: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        """``again``, ``hold`` or ``stale``, as ``policy.after_failure`` decided. Raises ``LeaseLost``."""
        changes: dict[str, Any] = {"counts": after.counts, "reason": after.reason, "free": after.free}
        changes |= {"maybe_sent": maybe_sent, "fingerprint": fingerprint}
        if after.action == "again":
            await self.again(claimed, after.due_ms, error, **changes)
        elif after.action == "hold":
            await self.hold(claimed, after.due_ms, error, **changes)
        else:
            await self.stale(claimed, after.why, error=error, outcome=after.outcome, **changes)

    async def wake(
        self,
        place: Place,
        spread_s: float,
        by: str,
        *,
        operator: bool = False,
        stale_after_s: float | None = None,
    ) -> bool:
        """The cause is gone: back to PARKED with no attempts counted, due within ``spread_s``, in a new round.

        True: this call woke it. False: nothing to wake (gone, PARKED, or STALE without ``operator``). An operator's
        wake sets a new deadline, by ``stale_after_s``, the entity's own. A leased row comes due no sooner than its
        lease ends: its holder may still finish with ``published``, but can't put it back to sleep.
        """
        token = token_hex(8)
        states = (State.HELD, State.STALE) if operator else (State.HELD,)
        transition: Transition = "wake_operator" if operator else "wake"
        for _ in range(READS_MAX):
            row = await self.look(place)
            if row is None or row.state not in states:
                return False
            now_ms = self._clocks.wall_ms()
            sets = _new_round(row, now_ms, spread_s, by, "woken") | {"done_tok": wire(token)}
            if operator:
                sets["deadline_at"] = wire(deadline_ms(row.event.reason, now_ms, stale_after_s))
            values = {"ver": wire(row.ver)}
            answer = await self._update(transition, row, values, sets, computes=_NEW_ROUND, removes=_EVIDENCE)
            if answer.item is not None and _text(answer.item, "done_tok") == token:
                return True
        raise ParkedUnavailable("parked_unavailable", f"{place.sk!r} is changed by others all the time; wake it later")

    async def archived(self, claimed: Claimed, uri: str, sha: str) -> Claimed:
        """The evidence is written; the lease goes on. Raises ``LeaseLost``, ``NotAllowed``."""
        values = {"token": wire(claimed.token)}
        sets = {"arch_uri": wire(uri), "arch_sha": wire(sha)}
        answer = await self._update("archived", claimed, values, sets)
        if not answer.applied or answer.item is None:
            raise _refusal("archived", claimed, answer.item)
        return _refreshed(claimed, answer.item, claimed.lease_until_s)

    async def notified(self, claimed: Claimed, receipt: Receipt, grace_s: float) -> None:
        """Ends the lease; due again when the grace is over. Raises ``LeaseLost``, ``NotAllowed`` without evidence."""
        until_ms = self._clocks.wall_ms() + int(grace_s * 1000)
        sets = {
            "ntf": receipts_wire((*claimed.ntf, receipt)),
            "grace_until": wire(until_ms),
            "due": wire(due_sort(until_ms, claimed.item_id)),
        }
        await self._end("notified", claimed, sets)

    async def finish(self, claimed: Claimed) -> None:
        """The row leaves the table, then its bodies. When it returns, count it, once.

        Raises ``LeaseLost`` (then count nothing); ``NotAllowed``: the store deletes nothing without evidence, receipt
        and a grace that is over.
        """
        await self._leave("finish", claimed, {"now": wire(self._clocks.wall_ms())})

    async def edit(self, row: Row, raw: bytes, who: str, why: str, *, stale_after_s: float | None = None) -> Row:
        """Back to PARKED with other bytes, under the next rev; the original stays. Takes a lease away from its holder.

        The new deadline is by ``stale_after_s``, the entity's own.

        Raises ``RowChanged`` when the row is no longer as ``row`` shows it, ``ValueError`` after ``EDITS_MAX`` edits.
        """
        if len(row.edits) >= EDITS_MAX:
            raise ValueError(f"{row.item_id!r} was edited {EDITS_MAX} times: publish or discard it")
        now_ms = self._clocks.wall_ms()
        rev = row.event.rev + 1
        body = await self._bodies.write(row, rev, raw, now_ms * 1000)
        edit = Edit(rev, legible(who, 64), legible(why), now_ms, body)
        sets = _new_round(row, now_ms, 0.0, who, "edited") | {
            "rev": wire(rev),
            "edits": edits_wire((*row.edits, edit)),
            "deadline_at": wire(deadline_ms(row.event.reason, now_ms, stale_after_s)),
        }
        removes = (*_EVIDENCE, "lease_tok", "lease_own")
        answer = await self._update("edit", row, {"ver": wire(row.ver)}, sets, computes=_NEW_ROUND, removes=removes)
        if answer.item is None or all(there.body != body for there in edits_of(answer.item)):
            # The body stays, an orphan: a write that is still on its way would name it.
            raise RowChanged(f"{row.item_id!r} was changed since it was read: look at it again")
        return read_row(answer.item)

    async def body(self, row: Row) -> bytes:
        """The bytes of the newest rev. Raises ``BodyMissing``."""
        return await self._bodies.read(row, row.newest)

    async def original(self, row: Row) -> bytes:
        """The bytes as they were parked. Raises ``BodyMissing``."""
        return await self._bodies.read(row, row.original)

    def _failure(
        self,
        claimed: Claimed,
        error: RejectedEvent | str,
        reason: Reason | None,
        fingerprint: str | None,
        *,
        counts: bool,
        maybe_sent: bool,
        free: bool,
    ) -> _Values:
        """Absolute values, from what the lease has read: writing them twice is writing them once."""
        kind = reason or claimed.event.reason
        entry = error_of(error, kind, self._clocks.wall_ms())
        sets = {"errs": errors_wire((*claimed.errs, entry))}
        if counts:
            sets["att"] = wire(claimed.att + 1)
        if free:
            sets["tries_free"] = wire(claimed.tries_free + 1)
        if maybe_sent:
            sets["maybe_sent"] = wire(True)  # for ever
        if fingerprint is not None:
            sets["sfp"] = wire(fingerprint)
        if isinstance(error, RejectedEvent):
            sets |= {"path": wire(legible(error.path)), "detail": wire(legible(error.detail))}
        if reason is not None and reason is not claimed.event.reason:
            group = group_partition(claimed.event.entity, reason, shard(claimed.item_id))
            sets |= {"reason": wire(reason), "gk": wire(group)}
        return sets

    async def _end(
        self, transition: Transition, claimed: Claimed, sets: _Values, values: _Values | None = None
    ) -> None:
        """A write that ends the lease, and leaves the token as the mark by which a repetition knows its own work."""
        compared = {"token": wire(claimed.token), "round": wire(claimed.round), **(values or {})}
        sets = {**sets, "done_tok": wire(claimed.token)}
        answer = await self._update(transition, claimed, compared, sets, computes=(_VER,), removes=_END_OF_LEASE)
        if not answer.applied and (answer.item is None or _text(answer.item, "done_tok") != claimed.token):
            raise _refusal(transition, claimed, answer.item)

    async def _leave(self, transition: Transition, claimed: Claimed, values: _Values) -> None:
        request = delete_request(transition, _key(claimed), {"token": wire(claimed.token), **values})
        answer = await self._try("delete_item", request)
        if answer.item is not None and not answer.applied:
            raise _refusal(transition, claimed, answer.item)
        await self._bodies.remove(claimed, own_bodies(claimed))
        # Gone before we came: within our lease nobody else can have had it, so it was a deletion of ours, whose answer
        # was lost. After the lease it can't be told whose it was.
        if not answer.applied and self._clocks.monotonic_s() >= claimed.lease_until_s:
            raise LeaseLost(claimed, transition, gone=True)

    async def _update(
        self,
        transition: Transition,
        place: Place,
        values: _Values,
        sets: Mapping[str, dict[str, Any]],
        *,
        computes: tuple[str, ...] = (),
        removes: tuple[str, ...] = (),
    ) -> _Answer:
        request = update_request(transition, _key(place), values, sets=sets, computes=computes, removes=removes)
        return await self._try("update_item", request)

    async def _try(self, operation: str, request: dict[str, Any]) -> _Answer:
        try:
            answer = await self._table.call(operation, self._budget(), TableName=self._table_name, **request)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return _Answer(applied=False, item=error.response.get("Item"))
        return _Answer(applied=True, item=answer.get("Attributes"))

    def _compare_clocks(self, answer: dict[str, Any], before_ms: int) -> None:
        """``Date`` has whole seconds, and stands somewhere between the request and the answer."""
        shown = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if self._clocks.bound_s is None or shown is None:
            return
        store_ms = int(parsedate_to_datetime(shown).timestamp() * 1000)
        bound_ms = int(self._clocks.bound_s * 1000)
        if not before_ms - bound_ms - 1000 <= store_ms <= self._clocks.wall_ms() + bound_ms:
            raise ClockSkewed(
                f"this host's clock and the parked table's differ by {(before_ms - store_ms) / 1000:+.0f} s, more than "
                f"{self._clocks.bound_s:g} s: set the clock"
            )

    def _budget(self) -> Budget:
        return Budget(self._budget_s)


_NEW_ROUND = (_VER, "#round = if_not_exists(#round, :zero) + :one", "#tries_free = #tries", "#tries_0 = #tries")


def standing(row: Row) -> Standing:
    """What ``policy.after_failure`` asks of a row."""
    return Standing(
        reason=row.event.reason,
        att=row.att,
        tries_counted=row.tries_counted,
        tries_of_round=row.tries_of_round,
        first_at_ms=row.first_at_ms,
        deadline_ms=row.deadline_ms,
    )


def _new_round(row: Row, now_ms: int, spread_s: float, by: str, kind: str) -> _Values:
    """Nobody may claim it before a present lease is over, or two workers would publish it within one lease."""
    due_ms = max(now_ms + int(random.uniform(0, spread_s) * 1000), row.lease_until_ms)  # noqa: S311 - jitter, no secret
    return {
        "st": wire(State.PARKED),
        "att": wire(0),
        "dq": wire(due_partition("r", shard(row.item_id))),
        "due": wire(due_sort(due_ms, row.item_id)),
        "errs": errors_wire((*row.errs, error_of(by, kind, now_ms))),
    }


def _refusal(transition: str, claimed: Claimed, item: Item | None) -> Exception:
    if item is None:
        return LeaseLost(claimed, transition, gone=True)
    row = read_row(item)
    if row.lease_token != claimed.token or row.round != claimed.round:
        return LeaseLost(claimed, transition)
    return NotAllowed(f"{transition} of {claimed.item_id!r}: a {row.state} row with att {row.att}, tries {row.tries}, "
                      f"deadline {row.deadline_ms}, evidence {row.arch_sha}, {len(row.ntf)} receipts, "
                      f"grace until {row.grace_until_ms}")  # fmt: skip


def _refreshed(claimed: Claimed, item: Item, lease_until_s: float) -> Claimed:
    row = claimed_row(read_row(item), claimed.token, lease_until_s)
    return with_position(with_raw(row, claimed.event.raw), claimed.event.kafka)


def _lease_until(now_ms: int, lease_s: float, item_id: str) -> _Values:
    until_ms = now_ms + int(lease_s * 1000)
    return {"due": wire(due_sort(until_ms, item_id)), "lease_until": wire(until_ms)}


def _safe_s(lease_s: float) -> float:
    """How much of a lease its holder may use: others' clocks may run ahead."""
    return lease_s - min(CLOCK_BOUND_S, lease_s / 10)


def _due_bound(now_ms: int) -> str:
    """``due < bound`` means ``due <= now``."""
    return f"{now_ms + 1:013d}"


def _key(place: Place) -> Item:
    return {"pk": wire(place.pk), "sk": wire(place.sk)}


def _text(item: Item, name: str) -> str | None:
    return item[name]["S"] if name in item else None
