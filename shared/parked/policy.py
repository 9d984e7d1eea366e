"""The retry policy of each class of parked event, as data, and the decisions that follow from it. Pure."""

import random
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from shared.events.model import Reason
from shared.parked.model import State

Spent = Literal["", "attempts", "tries", "age"]

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S


class Next(Struct, frozen=True, kw_only=True):
    """What a failed attempt leads to: the arguments of the transition of the same name."""

    action: Literal["again", "hold", "stale"]
    outcome: Reason  # whose policy this is
    reason: Reason | None  # the row's new reason; None: it keeps its own, the root cause that people look for
    due_ms: int
    counts: bool  # adds to ``att``
    free: bool  # this try counts towards no limit on tries: how it ended is known
    why: Spent


class Standing(Struct, frozen=True, kw_only=True):
    """How far a row has come, its present try included."""

    reason: Reason
    att: int
    tries_counted: int
    tries_of_round: int
    first_at_ms: int
    deadline_ms: int


class Policy(Struct, frozen=True, kw_only=True):
    """How a class is tried again. Back-off: full jitter, ``rand(0, min(cap_s, base_s * 2^n))``."""

    state: State  # at parking: HELD when no retry helps before the cause is gone
    base_s: float = 0.0
    cap_s: float = 0.0
    rechecks_s: tuple[float, ...] = ()  # HELD: pauses between re-checks, the last one for ever; (): never by itself
    counts: Literal["never", "always", "after_first_hour", "against_new_fingerprint"] = "never"
    attempts_max: int | None = None  # of counted attempts; of tries for a class that never counts
    age_s_max: float = 7 * _DAY_S  # then STALE; for an outage it stands for the source's retention, less a margin


POLICIES: dict[Reason, Policy] = {
    Reason.INVALID: Policy(
        state=State.HELD,
        rechecks_s=(_HOUR_S, _HOUR_S, _HOUR_S, 6 * _HOUR_S, _DAY_S),
        counts="against_new_fingerprint",
    ),
    Reason.HOSTILE: Policy(state=State.HELD),
    Reason.FUTURE: Policy(
        state=State.HELD,
        rechecks_s=(_HOUR_S, _HOUR_S, _HOUR_S, 6 * _HOUR_S, _DAY_S),
        counts="against_new_fingerprint",
    ),
    Reason.UNDECODABLE: Policy(state=State.HELD, rechecks_s=(_DAY_S,)),
    Reason.TOO_LARGE: Policy(state=State.HELD),
    Reason.KAFKA_UNAVAILABLE: Policy(state=State.PARKED, base_s=1, cap_s=30),
    Reason.KAFKA_UNKNOWN: Policy(state=State.PARKED, base_s=5, cap_s=60, attempts_max=20),
    Reason.KAFKA_TOPIC: Policy(
        state=State.PARKED, base_s=60, cap_s=_HOUR_S, counts="after_first_hour", attempts_max=24
    ),
    Reason.BUG: Policy(state=State.PARKED, base_s=60, cap_s=6 * _HOUR_S, counts="always", attempts_max=5),
}


def deadline_ms(reason: Reason, at_ms: int, stale_after_s: float | None = None) -> int:
    """When the event is given up. ``stale_after_s``: the entity's own patience with events that are to blame."""
    policy = POLICIES[reason]
    age_s = policy.age_s_max if stale_after_s is None or policy.state is not State.HELD else stale_after_s
    return at_ms + int(age_s * 1000)


def first_due_ms(reason: Reason, at_ms: int, stale_after_s: float | None = None) -> int:
    """When a newly parked event is looked at first. Never without a due time, so that no lost wake-up strands it."""
    policy = POLICIES[reason]
    if policy.state is State.PARKED:
        return at_ms + int(random.uniform(0, policy.base_s) * 1000)  # noqa: S311 - jitter, no secret
    if policy.rechecks_s:
        return min(at_ms + int(policy.rechecks_s[0] * 1000), deadline_ms(reason, at_ms, stale_after_s))
    return deadline_ms(reason, at_ms, stale_after_s)


def next_due(
    outcome: Reason, tries: int, now_ms: int, deadline_ms: int, random_unit: Callable[[], float] = random.random
) -> int:
    """When to look again after the ``tries``-th try of this round has failed; never after the deadline.

    Full jitter for what is retried, the next re-check for what is held; without re-checks the deadline itself.
    """
    policy = POLICIES[outcome]
    if policy.state is State.PARKED:
        pause_s = random_unit() * min(policy.cap_s, policy.base_s * 2.0 ** min(tries, 32))
    elif policy.rechecks_s:
        pause_s = policy.rechecks_s[min(tries, len(policy.rechecks_s) - 1)]
    else:
        return deadline_ms
    return min(now_ms + int(pause_s * 1000), deadline_ms)


def counts(outcome: Reason, *, first_at_ms: int, now_ms: int, new_fingerprint: bool) -> bool:
    """Whether a failed attempt adds to ``att``. Outages never do: they must not use up an event's chances."""
    match POLICIES[outcome].counts:
        case "never":
            return False
        case "always":
            return True
        case "after_first_hour":
            return now_ms - first_at_ms >= _HOUR_S * 1000
        case "against_new_fingerprint":
            return new_fingerprint


def limits(outcome: Reason) -> tuple[int | None, int | None]:
    """``(counted attempts, tries)`` after which a class is given up; ``None``: no such limit."""
    policy = POLICIES[outcome]
    if policy.counts == "never":
        return None, policy.attempts_max
    return policy.attempts_max, None


def spent(outcome: Reason, *, att: int, tries_counted: int, deadline_ms: int, now_ms: int) -> Spent:
    """Which limit a row has reached, ``att`` and tries with the present attempt; ``""``: none."""
    attempts_max, tries_max = limits(outcome)
    if attempts_max is not None and att >= attempts_max:
        return "attempts"
    if tries_max is not None and tries_counted >= tries_max:
        return "tries"
    return "age" if deadline_ms <= now_ms else ""


def after_failure(
    row: Standing,
    outcome: Reason,
    now_ms: int,
    *,
    new_fingerprint: bool = False,
    random_unit: Callable[[], float] = random.random,
) -> Next:
    """What becomes of a row whose attempt ended with ``outcome``."""
    counted = counts(outcome, first_at_ms=row.first_at_ms, now_ms=now_ms, new_fingerprint=new_fingerprint)
    free = limits(outcome)[1] is None
    tries_counted = row.tries_counted - free
    att = row.att + counted
    why = spent(outcome, att=att, tries_counted=tries_counted, deadline_ms=row.deadline_ms, now_ms=now_ms)
    retried = POLICIES[outcome].state is State.PARKED
    return Next(
        action="stale" if why else "again" if retried else "hold",
        outcome=outcome,
        reason=_new_reason(row.reason, outcome),
        due_ms=next_due(outcome, row.tries_of_round, now_ms, row.deadline_ms, random_unit),
        counts=counted,
        free=free,
        why=why,
    )


_TRANSPORT = frozenset({Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_UNKNOWN, Reason.KAFKA_TOPIC})


def _new_reason(reason: Reason, outcome: Reason) -> Reason | None:
    """A refused event that meets an outage on its way out stays what it was: its cause is not the outage."""
    if outcome is reason or (outcome in _TRANSPORT and reason not in _TRANSPORT):
        return None
    return outcome
