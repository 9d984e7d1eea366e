"""What a repair rule changes, what it leaves alone, and which rules can't be."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events.model import EventRules, Reason, RejectedEvent
from shared.events.repair import (
    Applied,
    Default,
    EnumMap,
    Epoch,
    Number,
    Rename,
    Repaired,
    RepairRule,
    Trim,
    apply,
    check_repairs,
    fingerprint_with,
    repair,
)

RULES = EventRules(entity="things", key=("id", "shop"), updated_at="at", event_id="own_id", version="version", op="op")


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (Rename("/amt", "amount"), '{"amt":1.50,"b":2}', '{"amount":1.50,"b":2}'),
        (Rename("/lines/*/amt", "amount"), '{"lines":[{"amt":1},{"amt":2}]}', '{"lines":[{"amount":1},{"amount":2}]}'),
        (Default("/currency", b'"EUR"'), '{"a":1}', '{"a":1,"currency":"EUR"}'),
        (Default("/currency", b'"EUR"', nulls=True), '{"currency":null}', '{"currency":"EUR"}'),
        (Default("/at/zone", b"{}"), '{"at":{"x":1}}', '{"at":{"x":1,"zone":{}}}'),
        (Number("/a"), '{"a":"12.50"}', '{"a":12.50}'),
        (Number("/a"), '{"a":"-0"}', '{"a":-0}'),
        (Number("/a"), '{"a":"1E+400"}', '{"a":1E+400}'),
        (Number("/a/*"), '{"a":["1",2,"x","3"]}', '{"a":[1,2,"x",3]}'),
        (Epoch("/a", "epoch_s"), '{"a":1700000000}', '{"a":"2023-11-14T22:13:20.000000Z"}'),
        (Epoch("/a", "epoch_s"), '{"a":"1700000000.25"}', '{"a":"2023-11-14T22:13:20.250000Z"}'),
        (Epoch("/a", "epoch_ms"), '{"a":-1}', '{"a":"1969-12-31T23:59:59.999000Z"}'),
        (Trim("/a"), '{"a":"  Jo "}', '{"a":"Jo"}'),
        (Trim("/a~1b/~0"), '{"a/b":{"~":" x"}}', '{"a/b":{"~":"x"}}'),
        (EnumMap("/a", (("actv", "active"),)), '{"a":"actv"}', '{"a":"active"}'),
        (EnumMap("/a", (("1", "one"), ("true", "yes"))), '{"a":1}', '{"a":"one"}'),
        (EnumMap("/a", (("1", "one"), ("true", "yes"))), '{"a":true}', '{"a":"yes"}'),
    ],
)
def test_a_rule_changes_its_member_and_keeps_every_other_byte(rule: RepairRule, before: str, after: str) -> None:
    raw, times = apply(rule, before.encode())

    assert raw.decode() == after
    assert times >= 1


@pytest.mark.parametrize(
    ("rule", "raw"),
    [
        (Rename("/amt", "amount"), '{"amt":1,"amount":2}'),
        (Rename("/amt", "amount"), '{"b":1}'),
        (Rename("/a/amt", "amount"), '{"a":[{"amt":1}]}'),
        (Default("/a", b"1"), '{"a":2}'),
        (Default("/a", b"1"), '{"a":null}'),
        (Default("/a/b", b"1"), '{"c":1}'),
        (Number("/a"), '{"a":"1,5"}'),
        (Number("/a"), '{"a":" 1"}'),
        (Number("/a"), '{"a":"+1"}'),
        (Number("/a"), '{"a":"01"}'),
        (Number("/a"), '{"a":"NaN"}'),
        (Number("/a"), '{"a":"0x10"}'),
        (Number("/a"), '{"a":"' + "1" * 5000 + '"}'),
        (Number("/a"), '{"a":""}'),
        (Number("/a"), '{"a":"\\ud800"}'),
        (Epoch("/a", "epoch_us"), '{"a":1.5}'),
        (Epoch("/a", "epoch_s"), '{"a":1700000000.00000000000000000001}'),
        (Epoch("/a", "epoch_s"), '{"a":99999999999999}'),
        (Epoch("/a", "epoch_s"), '{"a":"2023-11-14T22:13:20Z"}'),
        (Epoch("/a", "epoch_s"), '{"a":true}'),
        (Epoch("/a", "epoch_s"), '{"a":1e9}'),
        (Trim("/a"), '{"a":"Jo"}'),
        (Trim("/a"), '{"a":1}'),
        (Trim("/a/*"), '{"a":" x "}'),
        (EnumMap("/a", (("actv", "active"),)), '{"a":"other"}'),
        (EnumMap("/a", (("1.5", "x"),)), '{"a":1.5}'),
        (Trim("/a"), '[" x "]'),
    ],
)
def test_a_rule_that_does_not_fit_changes_nothing(rule: RepairRule, raw: str) -> None:
    assert apply(rule, raw.encode()) == (raw.encode(), 0)


def refusals(*wanted: tuple[str, Callable[[Any], bool]]) -> Callable[[bytes], dict[str, Any] | RejectedEvent]:
    """A judge that refuses at the first pointer whose claim does not hold."""

    def judge(raw: bytes) -> dict[str, Any] | RejectedEvent:
        event: dict[str, Any] = json.loads(raw)
        for path, claim in wanted:
            if not claim(event):
                return RejectedEvent(Reason.INVALID, path, "does not fit")
        return event

    return judge


def repaired(raw: bytes, judge: Callable[[bytes], Any], *rules: RepairRule) -> Any:
    refusal = judge(raw)
    assert isinstance(refusal, RejectedEvent)
    return repair(raw, refusal, rules, judge)


def test_only_what_the_refusal_points_at_is_touched() -> None:
    judge = refusals(("/a", lambda event: isinstance(event["a"], int)))

    found, verdict = repaired(b'{"a":"1","name":" Jo "}', judge, Trim("/name"), Number("/a"))

    assert found == Repaired(b'{"a":1,"name":" Jo "}', (Applied("number", "/a", 1),))
    assert verdict == {"a": 1, "name": " Jo "}


def test_one_repair_may_call_for_the_next() -> None:
    judge = refusals(
        ("/amount", lambda event: "amount" in event),
        ("/amount", lambda event: isinstance(event["amount"], int)),
        ("/status", lambda event: event["status"] in ("active", "closed")),
    )
    rules = (EnumMap("/status", (("actv", "active"),)), Number("/amount"), Trim("/status"), Rename("/amt", "amount"))

    found, _ = repaired(b'{"amt":"5","status":"actv"}', judge, *rules)

    assert found.raw == b'{"amount":5,"status":"active"}'
    assert [applied.rule for applied in found.applied] == ["rename", "number", "enum"]


def test_a_rule_is_applied_wherever_its_pointer_leads_and_told_as_declared() -> None:
    judge = refusals(("/lines/1/price", lambda event: all(isinstance(x["price"], int) for x in event["lines"])))

    found, _ = repaired(b'{"lines":[{"price":"1"},{"price":"2"},{"price":3}]}', judge, Number("/lines/*/price"))

    assert found.applied == (Applied("number", "/lines/*/price", 2),)


def test_what_no_rule_helps_ends_with_the_last_refusal() -> None:
    judge = refusals(
        ("/a", lambda event: isinstance(event["a"], int)), ("/b", lambda event: isinstance(event["b"], int))
    )

    found = repaired(b'{"a":"1","b":"x"}', judge, Number("/a"), Number("/b"))

    assert found == RejectedEvent(Reason.INVALID, "/b", "does not fit")


def test_rules_that_undo_each_other_come_to_an_end() -> None:
    there_and_back = (EnumMap("/a", (("x", "y"),)), EnumMap("/a", (("y", "x"),)))

    found = repaired(b'{"a":"x"}', refusals(("/a", lambda event: False)), *there_and_back)

    assert found == RejectedEvent(Reason.INVALID, "/a", "does not fit")


def test_a_hostile_event_is_not_repaired() -> None:
    refusal = RejectedEvent(Reason.HOSTILE, "/a", "holds a lone surrogate")

    assert repair(b'{"a":" x "}', refusal, [Trim("/a")], lambda raw: 1) is refusal


@pytest.mark.parametrize(
    "rule",
    [
        Trim("/id"), Number("/shop"), Epoch("/at", "epoch_s"), Trim("/own_id"), Number("/version"),
        Rename("/at", "x"), Rename("/x", "at"), Rename("/x", "id"), Default("/version", b"1"), Trim("/id/x"),
        Trim(""), Trim("a"), Trim("/a/~2"), Trim("/*/a"), Trim("/a//b"), Rename("/a/*", "b"), Default("/a/*", b"1"),
        Rename("/a", "a"),
    ],
)  # fmt: skip
def test_a_rule_that_would_move_identity_or_order_or_makes_no_sense_is_refused(rule: RepairRule) -> None:
    ((index, wrong),) = check_repairs([Trim("/name"), rule], RULES)

    assert index == 1
    assert wrong.startswith(rule.rule)


def test_a_member_further_down_may_be_called_as_the_key_is() -> None:
    assert check_repairs([Trim("/owner/id"), Rename("/owner/x", "id"), Trim("/op")], RULES) == []


def test_the_fingerprint_changes_with_every_rule_and_its_order() -> None:
    lists: list[tuple[RepairRule, ...]] = [
        (), (Trim("/a"),), (Trim("/b"),), (Number("/a"),), (Trim("/a"), Number("/a")), (Number("/a"), Trim("/a")),
        (Default("/a", b"1"),), (Default("/a", b"1", nulls=True),), (Epoch("/a", "epoch_s"),),
        (Epoch("/a", "epoch_ms"),),
    ]  # fmt: skip
    found = [fingerprint_with("f", rules) for rules in lists]

    assert len(set(found)) == len(lists)
    assert found[0] == "f"
    assert fingerprint_with("g", lists[1]) != found[1]


MEMBERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "*", "0"]),
    st.recursive(
        st.sampled_from([1, "1", " x", "x", None, True, "1.50", "ä"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=8,
    ),
)
POINTERS = st.lists(st.sampled_from(["a", "b", "*"]), max_size=2).flatmap(
    lambda below: st.sampled_from("abc").map(lambda first: "/" + "/".join([first, *below]))
)


@given(MEMBERS, POINTERS)
def test_trim_agrees_with_a_walk_over_the_decoded_event(event: dict[str, Any], at: str) -> None:
    def walk(value: Any, steps: list[str]) -> Any:
        if not steps:
            return value.strip() if isinstance(value, str) else value
        if steps[0] == "*":
            return [walk(item, steps[1:]) for item in value] if isinstance(value, list) else value
        if isinstance(value, dict) and steps[0] in value:
            return value | {steps[0]: walk(value[steps[0]], steps[1:])}
        return value

    raw = json.dumps(event).encode()
    changed, times = apply(Trim(at), raw)

    assert json.loads(changed) == walk(event, at.split("/")[1:])
    assert (changed == raw) is (times == 0)


@given(st.binary(max_size=40), POINTERS)
def test_no_bytes_make_a_rule_raise(raw: bytes, at: str) -> None:
    for rule in (Trim(at), Number(at), Epoch(at, "epoch_s"), EnumMap(at, (("a", "b"),)), Rename("/a", "b")):
        apply(rule, raw)
        apply(rule, b'{"a":%b}' % raw)
