"""What becomes of a parked event whose attempt has failed: the table of PARKED.md, class by class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.events.model import Reason
from shared.parked.model import State
from shared.parked.policy import (
    POLICIES,
    Standing,
    after_failure,
    counts,
    deadline_ms,
    first_due_ms,
    limits,
    next_due,
    spent,
)

NOW_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
FAR_MS = NOW_MS + 1_000 * HOUR_MS


def a_row(reason: Reason, **changes: int) -> Standing:
    row = Standing(reason=reason, att=0, tries_counted=1, tries_of_round=1, first_at_ms=NOW_MS, deadline_ms=FAR_MS)
    return replace(row, **changes)


@pytest.mark.parametrize(
    ("outcome", "pauses_s"),
    [
        (Reason.KAFKA_UNAVAILABLE, [1, 2, 4, 8, 16, 30, 30]),
        (Reason.KAFKA_UNKNOWN, [5, 10, 20, 40, 60, 60]),
        (Reason.KAFKA_TOPIC, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (Reason.BUG, [60, 120, 240, 480, 960, 1920, 3840, 7680, 15360, 21600, 21600]),
        (Reason.INVALID, [3600, 3600, 3600, 21600, 86400, 86400]),
        (Reason.FUTURE, [3600, 3600, 3600, 21600, 86400, 86400]),
        (Reason.UNDECODABLE, [86400, 86400]),
    ],
)
def test_the_pauses_grow_to_their_cap(outcome: Reason, pauses_s: list[int]) -> None:
    dues = [next_due(outcome, tries, NOW_MS, FAR_MS, lambda: 1.0) for tries in range(len(pauses_s))]

    assert dues == [NOW_MS + pause_s * 1000 for pause_s in pauses_s]


@pytest.mark.parametrize("outcome", [Reason.HOSTILE, Reason.TOO_LARGE])
def test_what_no_retry_helps_waits_for_its_deadline(outcome: Reason) -> None:
    assert next_due(outcome, 3, NOW_MS, FAR_MS) == FAR_MS


@given(
    outcome=st.sampled_from(Reason), tries=st.integers(0, 10_000), left_ms=st.integers(1, 10**9), unit=st.floats(0, 1)
)
def test_nothing_is_due_before_now_or_after_its_deadline(
    outcome: Reason, tries: int, left_ms: int, unit: float
) -> None:
    assert NOW_MS <= next_due(outcome, tries, NOW_MS, NOW_MS + left_ms, lambda: unit) <= NOW_MS + left_ms


@given(outcome=st.sampled_from(Reason))
def test_parking_and_the_first_failure_follow_one_series(outcome: Reason) -> None:
    first = first_due_ms(outcome, NOW_MS)

    assert NOW_MS <= first <= next_due(outcome, 0, NOW_MS, deadline_ms(outcome, NOW_MS), lambda: 1.0)


@pytest.mark.parametrize("outcome", Reason)
def test_only_the_classes_that_count_use_up_attempts(outcome: Reason) -> None:
    early = counts(outcome, first_at_ms=NOW_MS, now_ms=NOW_MS + HOUR_MS - 1, new_fingerprint=False)
    late = counts(outcome, first_at_ms=NOW_MS, now_ms=NOW_MS + HOUR_MS, new_fingerprint=False)
    against_new = counts(outcome, first_at_ms=NOW_MS, now_ms=NOW_MS, new_fingerprint=True)

    expected = {
        Reason.BUG: (True, True, True),
        Reason.KAFKA_TOPIC: (False, True, False),
        Reason.INVALID: (False, False, True),
        Reason.FUTURE: (False, False, True),
    }
    assert (early, late, against_new) == expected.get(outcome, (False, False, False))


def test_the_limits_are_those_of_the_table() -> None:
    assert {reason: limits(reason) for reason in Reason if limits(reason) != (None, None)} == {
        Reason.KAFKA_UNKNOWN: (None, 20),
        Reason.KAFKA_TOPIC: (24, None),
        Reason.BUG: (5, None),
    }
    assert {policy.age_s_max for policy in POLICIES.values()} == {7 * 86_400}


@pytest.mark.parametrize(
    ("outcome", "att", "tries", "age", "why"),
    [
        (Reason.BUG, 4, 99, False, ""),
        (Reason.BUG, 5, 1, False, "attempts"),
        (Reason.KAFKA_UNKNOWN, 99, 19, False, ""),
        (Reason.KAFKA_UNKNOWN, 0, 20, False, "tries"),
        (Reason.KAFKA_UNAVAILABLE, 10**6, 10**6, False, ""),
        (Reason.KAFKA_UNAVAILABLE, 0, 0, True, "age"),
        (Reason.INVALID, 10**6, 10**6, False, ""),
        (Reason.HOSTILE, 0, 0, True, "age"),
    ],
)
def test_a_row_is_given_up_by_attempts_tries_or_age(
    outcome: Reason, att: int, tries: int, *, age: bool, why: str
) -> None:
    deadline = NOW_MS if age else NOW_MS + 1

    assert spent(outcome, att=att, tries_counted=tries, deadline_ms=deadline, now_ms=NOW_MS) == why


def test_an_outage_never_uses_up_an_events_chances() -> None:
    row = a_row(Reason.KAFKA_UNKNOWN, att=10**6, tries_counted=20, tries_of_round=10**6)
    after = after_failure(row, Reason.KAFKA_UNAVAILABLE, NOW_MS)

    assert (after.action, after.counts, after.free) == ("again", False, True)


def test_only_tries_whose_end_is_unknown_count_towards_the_limit_on_tries() -> None:
    free = {outcome for outcome in Reason if after_failure(a_row(outcome), outcome, NOW_MS).free}

    assert free == set(Reason) - {Reason.KAFKA_UNKNOWN}


def test_the_fifth_failure_of_ours_gives_the_event_up_as_a_bug() -> None:
    after = after_failure(a_row(Reason.INVALID, att=4), Reason.BUG, NOW_MS)

    assert (after.action, after.why, after.reason, after.counts) == ("stale", "attempts", Reason.BUG, True)


def test_the_first_hour_without_a_topic_is_free() -> None:
    row = a_row(Reason.KAFKA_TOPIC, att=23, tries_of_round=9)
    early = after_failure(row, Reason.KAFKA_TOPIC, NOW_MS + HOUR_MS - 1, random_unit=lambda: 1.0)
    late = after_failure(row, Reason.KAFKA_TOPIC, NOW_MS + HOUR_MS)

    assert (early.action, early.due_ms) == ("again", NOW_MS + 2 * HOUR_MS - 1)
    assert (late.action, late.why) == ("stale", "attempts")


@pytest.mark.parametrize(
    ("reason", "outcome", "action", "new_reason"),
    [
        (Reason.INVALID, Reason.INVALID, "hold", None),
        (Reason.INVALID, Reason.KAFKA_UNAVAILABLE, "again", None),  # its cause is the contract, not the outage
        (Reason.HOSTILE, Reason.KAFKA_UNKNOWN, "again", None),
        (Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_TOPIC, "again", Reason.KAFKA_TOPIC),
        (Reason.KAFKA_UNAVAILABLE, Reason.INVALID, "hold", Reason.INVALID),
        (Reason.BUG, Reason.TOO_LARGE, "hold", Reason.TOO_LARGE),
        (Reason.INVALID, Reason.HOSTILE, "hold", Reason.HOSTILE),
    ],
)
def test_a_row_is_filed_under_what_keeps_it_back(
    reason: Reason, outcome: Reason, action: str, new_reason: Reason | None
) -> None:
    after = after_failure(a_row(reason), outcome, NOW_MS)

    assert (after.action, after.reason) == (action, new_reason)


@pytest.mark.parametrize("outcome", Reason)
def test_every_class_has_an_end(outcome: Reason) -> None:
    after = after_failure(a_row(outcome, deadline_ms=NOW_MS), outcome, NOW_MS)

    assert (after.action, after.why) == ("stale", "age")


@pytest.mark.parametrize("outcome", Reason)
def test_what_is_held_is_held_and_what_is_retried_is_retried(outcome: Reason) -> None:
    after = after_failure(a_row(outcome), outcome, NOW_MS)

    assert after.action == ("hold" if POLICIES[outcome].state is State.HELD else "again")


def test_an_entitys_own_patience_holds_for_what_its_events_are_to_blame_for_and_for_nothing_else() -> None:
    assert deadline_ms(Reason.HOSTILE, 1_000, 20) == first_due_ms(Reason.HOSTILE, 1_000, 20) == 21_000
    assert first_due_ms(Reason.INVALID, 1_000, 20) == 21_000
    assert deadline_ms(Reason.KAFKA_UNAVAILABLE, 1_000, 20) == deadline_ms(Reason.KAFKA_UNAVAILABLE, 1_000)
