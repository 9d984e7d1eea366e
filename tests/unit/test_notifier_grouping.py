"""When a group's owner is told: every rule by itself, with time as a number."""

from typing import Any

import pytest
from msgspec.structs import replace

from services.stale_notifier.grouping import (
    Close,
    Count,
    Line,
    Repost,
    Resolve,
    Tell,
    Timing,
    Wait,
    accepted,
    candidates,
    closing,
    decide,
    given_up,
    joined,
    looked,
    opened,
    pending,
    postponed,
    resolved,
    row_wait_s,
)
from services.stale_notifier.notice import Kind
from shared.events.model import Reason
from shared.parked.groups import Cause, Group, Told, cause_of
from tests.fakes.stale_bench import stale_event

T0 = 1_760_000_000_000
HOUR = 3_600_000
TIMING = Timing()
CAUSE = Cause("accounts", Reason.INVALID, "/balance", "ab" * 8)
SLACK, PAGER = Line("slack"), Line("pager", escalate_after_s=4 * 3600)
ALERTS = Line("alerts", repost_s=120)


def fresh(**changes: Any) -> Group:
    return replace(opened("ledger", CAUSE, b"{}", T0, TIMING), **changes)


def told(count: int = 5, at_ms: int = T0 + 60_000, **changes: Any) -> Group:
    return replace(_accepted(fresh(), Tell(Kind.NEW), ["slack"], count, at_ms), **changes)


def _accepted(group: Group, tell: Tell, channels: list[str], count: int, at_ms: int) -> Group:
    made = pending(group, tell, b"notice", count, at_ms)
    receipts = [Told(name, "key", "id", "200", at_ms, made.number, tell.kind) for name in channels]
    return accepted(made, receipts, at_ms, TIMING)


def test_the_first_notice_waits_for_more_to_come() -> None:
    assert fresh().due_ms == T0 + 60_000
    assert decide(fresh(), Count(7, T0, T0), [SLACK], T0 + 60_000, TIMING) == Tell(Kind.NEW)


def test_a_group_is_told_again_only_when_it_has_grown_tenfold_or_four_hours_have_passed() -> None:
    now = T0 + HOUR

    assert isinstance(decide(told(5), Count(49, T0, T0), [SLACK], now, TIMING), Wait)
    assert decide(told(5), Count(50, T0, T0), [SLACK], now, TIMING) == Tell(Kind.GROWN)
    assert isinstance(decide(told(5), Count(5, T0, T0), [SLACK], T0 + 4 * HOUR, TIMING), Wait)
    assert decide(told(5), Count(5, T0, T0), [SLACK], T0 + 4 * HOUR + 60_000, TIMING) == Tell(Kind.REPEAT)


def test_it_is_looked_at_meanwhile_and_never_in_the_past() -> None:
    now = T0 + 4 * HOUR + 30_000
    decision = decide(told(5), Count(5, T0, T0), [SLACK], now, TIMING)

    assert decision == Wait(T0 + 4 * HOUR + 60_000)
    assert decide(told(5), Count(5, T0, T0), [SLACK], T0 + HOUR, TIMING) == Wait(T0 + HOUR + 60_000)


def test_after_some_hours_the_next_channel_is_told_once() -> None:
    group = told(5, last_told_ms=T0 + 3 * HOUR)
    now = T0 + 4 * HOUR + 60_000

    assert decide(group, Count(5, T0, T0), [SLACK, PAGER], now, TIMING) == Tell(Kind.ESCALATION, ("pager",))
    after = _accepted(group, Tell(Kind.ESCALATION, ("pager",)), ["pager"], 5, now)
    assert after.escalated == ("pager",)
    assert isinstance(decide(after, Count(5, T0, T0), [SLACK, PAGER], now + HOUR, TIMING), Wait)


def test_the_default_owner_is_a_last_resort_and_no_escalation() -> None:
    resort = Line("duty/slack", escalate_after_s=86_400, is_last_resort=True)
    group = told(5, last_told_ms=T0 + 30 * HOUR)

    assert isinstance(decide(group, Count(5, T0, T0), [SLACK, resort], T0 + 31 * HOUR, TIMING), Wait)


def test_an_empty_group_is_resolved_only_after_it_has_settled() -> None:
    group = told()
    assert decide(group, Count(), [SLACK], T0 + HOUR, TIMING) == Close()

    closed = closing(group, T0 + HOUR, TIMING)
    assert closed.receipt is None, "no row is marked as told by a group that is about to end"
    assert decide(closed, Count(), [SLACK], T0 + HOUR + 30_000, TIMING) == Wait(T0 + HOUR + 60_000)
    assert decide(closed, Count(), [SLACK], T0 + HOUR + 60_000, TIMING) == Tell(Kind.RESOLVED, ("slack",))


def test_a_row_that_comes_in_opens_a_closing_group_again_without_a_new_notice() -> None:
    closed = closing(told(), T0 + HOUR, TIMING)
    again = joined(closed, b"other", T0 + HOUR + 1, TIMING)

    assert (again.phase, again.closing_ms, again.episode, again.receipt) == ("told", None, 1, told().receipt)
    assert joined(told(), b"other", T0, TIMING) == told(), "nothing to write"


@pytest.mark.parametrize("ends", ["resolved", "resolving"])
def test_a_row_that_comes_in_after_the_end_begins_a_new_episode_under_a_higher_number(ends: str) -> None:
    group = closing(told(), T0 + HOUR, TIMING)
    over = (
        resolved(group, T0 + 2 * HOUR)
        if ends == "resolved"
        else pending(group, Tell(Kind.RESOLVED, ("slack",)), b"end", 0, T0 + 2 * HOUR)
    )
    assert over.receipt is None
    again = joined(over, b"facts", T0 + 3 * HOUR, TIMING)

    assert (again.phase, again.episode, again.told_ms, again.pending) == ("waiting", 2, None, None)
    assert again.receipt is None, "the owner must hear of it anew"
    assert again.number == over.number
    assert again.ver == over.ver


def test_a_group_of_which_nobody_was_told_ends_without_a_word() -> None:
    empty = closing(fresh(), T0 + 60_000, TIMING)

    assert empty.phase == "waiting"
    assert decide(empty, Count(), [SLACK], T0 + 120_000, TIMING) == Resolve()


def test_rows_that_the_index_shows_late_stop_the_closing() -> None:
    assert looked(closing(told(), T0, TIMING), T0 + 9).phase == "told"
    assert looked(closing(fresh(), T0, TIMING), T0 + 9).phase == "waiting"


def test_the_end_is_told_to_each_channel_that_was_told_of_the_group() -> None:
    group = told(5, last_told_ms=T0 + 3 * HOUR)
    group = _accepted(group, Tell(Kind.ESCALATION, ("pager",)), ["pager"], 5, T0 + 5 * HOUR)
    group = closing(group, T0 + 6 * HOUR, TIMING)
    end = decide(group, Count(), [SLACK, PAGER], T0 + 7 * HOUR, TIMING)
    assert end == Tell(Kind.RESOLVED, ("slack", "pager"))

    half = _accepted(group, end, ["slack"], 0, T0 + 7 * HOUR)
    assert half.pending is not None
    assert (half.phase, half.pending.to) == ("told", ("pager",))
    assert half.receipt is None
    receipt = Told("pager", "key", "id", "200", T0 + 7 * HOUR, half.number, "resolved")
    assert accepted(half, [receipt], T0 + 7 * HOUR, TIMING).phase == "resolved"


def test_what_nobody_will_take_is_given_up_only_where_others_were_told() -> None:
    escalation = pending(told(), Tell(Kind.ESCALATION, ("pager",)), b"n", 5, T0 + HOUR)
    assert given_up(escalation, T0 + HOUR, TIMING).escalated == ("pager",)
    end = pending(closing(told(), T0, TIMING), Tell(Kind.RESOLVED, ("slack",)), b"n", 0, T0 + HOUR)
    assert given_up(end, T0 + HOUR, TIMING).phase == "resolved"
    with pytest.raises(AssertionError, match="nobody was told"):
        given_up(pending(fresh(), Tell(Kind.NEW), b"n", 5, T0), T0, TIMING)


def test_a_receiver_that_forgets_is_told_again_in_time() -> None:
    group = _accepted(fresh(), Tell(Kind.NEW), ["alerts"], 5, T0)

    assert decide(group, Count(5, T0, T0), [ALERTS], T0 + 59_000, TIMING) == Wait(T0 + 60_000)
    assert decide(group, Count(5, T0, T0), [ALERTS], T0 + 60_000, TIMING) == Repost(("alerts",))
    assert isinstance(decide(told(), Count(5, T0, T0), [SLACK], T0 + 60_000, TIMING), Wait)


def test_a_channels_own_word_on_when_to_come_again_is_never_undercut() -> None:
    made = pending(fresh(), Tell(Kind.NEW), b"n", 5, T0)

    assert postponed(made, T0, 7_200.0, 0.0).due_ms == T0 + 7_200_000
    assert postponed(made, T0, None, 1.0).due_ms == T0 + 30_000
    late = made
    for _ in range(40):
        late = postponed(late, T0, None, 1.0)
    assert late.due_ms == T0 + 3_600_000
    assert late.pending is not None
    assert (late.pending.attempts, late.pending.notice) == (40, b"n")


def test_other_channels_take_over_when_the_first_line_is_gone_or_has_failed_for_long() -> None:
    made = pending(fresh(), Tell(Kind.NEW), b"n", 5, T0)
    assert made.pending is not None
    both = frozenset({"slack", "pager"})

    assert candidates(made, made.pending, [SLACK, PAGER], both, T0 + HOUR) == ["slack"]
    assert candidates(made, made.pending, [SLACK, PAGER], frozenset({"pager"}), T0) == ["pager"]
    assert candidates(made, made.pending, [SLACK, PAGER], both, T0 + 4 * HOUR) == ["slack", "pager"]
    assert candidates(made, made.pending, [SLACK], frozenset(), T0) == []


def test_rows_wait_past_their_groups_next_attempt_and_ever_longer_in_an_outage() -> None:
    group = fresh()
    assert row_wait_s(group, T0, 0.0) == 61.0
    assert row_wait_s(replace(group, due_ms=T0), T0, 0.0) == 2.0
    assert row_wait_s(replace(group, due_ms=T0), T0 + 2 * HOUR, 0.0) == 1800.0
    assert row_wait_s(replace(group, due_ms=T0), T0 + 90 * HOUR, 1.0) == 3600.0


def test_numbers_rise_over_all_kinds_of_notices() -> None:
    group = _accepted(told(), Tell(Kind.GROWN), ["slack"], 50, T0 + HOUR)
    assert group.number == 2
    assert group.told_count == 50
    assert group.told_ms == T0 + 60_000, "escalation counts from the first notice"


def test_a_cause_is_one_for_all_lines_of_an_order_and_has_a_stable_id() -> None:
    first, second = (stale_event(1, path=f"/lines/{place}/price") for place in (0, 17))

    assert cause_of(first) == cause_of(second)
    assert cause_of(first).id == "4619283b6678e98a"
    others = [stale_event(1, path="/x"), stale_event(1, entity="x"), stale_event(1, fingerprint=None)]
    assert len({cause_of(first).id, *(cause_of(other).id for other in others)}) == 4
