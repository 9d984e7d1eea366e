"""The retry policy of each class of parked event, as data, and the two times that parking takes from it. Pure."""

import random
from typing import Literal

from msgspec import Struct

from shared.events.model import Reason
from shared.parked.model import State

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S


class Policy(Struct, frozen=True, kw_only=True):
    """How a class is tried again. Back-off: full jitter, ``rand(0, min(cap_s, base_s * 2^n))``."""

    state: State  # at parking: HELD when no retry helps before the cause is gone
    base_s: float = 0.0
    cap_s: float = 0.0
    rechecks_s: tuple[float, ...] = ()  # HELD: pauses between re-checks, the last one for ever; (): never by itself
    counts: Literal["never", "always", "after_first_hour", "against_new_fingerprint"] = "never"
    attempts_max: int | None = None
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


def deadline_ms(reason: Reason, at_ms: int) -> int:
    return at_ms + int(POLICIES[reason].age_s_max * 1000)


def first_due_ms(reason: Reason, at_ms: int) -> int:
    """When a newly parked event is looked at first. Never without a due time, so that no lost wake-up strands it."""
    policy = POLICIES[reason]
    if policy.state is State.PARKED:
        return at_ms + int(random.uniform(0, policy.base_s) * 1000)  # noqa: S311 - jitter, no secret
    if policy.rechecks_s:
        return min(at_ms + int(policy.rechecks_s[0] * 1000), deadline_ms(reason, at_ms))
    return deadline_ms(reason, at_ms)
