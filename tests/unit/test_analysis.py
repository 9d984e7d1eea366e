"""When a parked event is retriable, what is written then, and what it says when it is not."""

import json
from base64 import b64decode
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.events.contract import Contract
from shared.events.identity import Identifier
from shared.events.model import EventRules, Reason, RejectedEvent
from shared.events.repair import Applied, Default, EnumMap, Epoch, Number, Rename, RepairRule, Trim
from shared.kafka import records
from shared.parked import analysis
from shared.parked.analysis import NotYet, Retriable, contract_fingerprint, repair_line
from tests.unit.analysis_events import (
    AT,
    AT_US,
    HEADERS,
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

CANARY = "canary-5150"
DAY_US = 86_400_000_000
AMOUNT = ("amount", "long")
NAME = ("name", ["null", "string"], None)


def fresh(made: Contract, raw: bytes, rules: EventRules = RULES) -> bytes | RejectedEvent | None:
    """What the poller would send for an event with these bytes."""
    (value,) = made.encode(Identifier(rules).identify([raw]))
    return value


def retriable(found: Retriable | NotYet) -> Retriable:
    assert isinstance(found, Retriable), found
    return found


def not_yet(found: Retriable | NotYet) -> NotYet:
    assert isinstance(found, NotYet), found
    return found


def test_a_newer_schema_makes_an_event_retriable_as_a_fresh_one_would_be_written() -> None:
    event = parked(text(amount=5, name="Jo"))

    refused = not_yet(analyst(AMOUNT).analyse(event, NOW_US))
    found = retriable(analyst(AMOUNT, NAME).analyse(event, NOW_US))

    assert (refused.reason, refused.path) == (Reason.INVALID, "/name")
    assert found == Retriable("a", fresh(contract(AMOUNT, NAME), event.raw), "u", event.raw, 0)  # type: ignore[arg-type]


def test_a_repaired_event_is_written_as_a_fresh_one_with_the_repaired_bytes() -> None:
    repairs = (Rename("/amt", "amount"), Number("/amount"), Trim("/name"))
    event = parked(text(amt=" 5", name=" Jo "))
    found = not_yet(analyst(AMOUNT, NAME, repairs=repairs).analyse(event, NOW_US))
    assert found.path == "/amount"  # " 5" is no number

    event = parked(text(amt="5", name=" Jo "))
    found_now = retriable(analyst(AMOUNT, NAME, repairs=repairs).analyse(event, NOW_US))

    assert found_now.applied == (Applied("rename", "/amt", 1), Applied("number", "/amount", 1))
    assert json.loads(found_now.raw) == {"id": "a", "at": AT, "amount": 5, "name": " Jo "}
    assert found_now.value == fresh(contract(AMOUNT, NAME), found_now.raw)
    assert (found_now.rev, found_now.repaired, found_now.key) == (1, True, "a")


def test_an_edited_event_that_is_repaired_gets_the_next_rev() -> None:
    event = replace(parked(text(amount="5")), rev=3)

    assert retriable(analyst(AMOUNT, repairs=[Number("/amount")]).analyse(event, NOW_US)).rev == 4


def test_an_event_that_fits_as_it_is_is_not_repaired() -> None:
    found = retriable(analyst(AMOUNT, NAME, repairs=[Trim("/name")]).analyse(parked(text(amount=5, name=" x")), NOW_US))

    assert not found.repaired
    assert found.rev == 0


MESS: st.SearchStrategy[Any] = st.sampled_from(
    [5, "5", " 5", "x", None, True, "actv", 1700000000, "\ud800", [], {"a": "1"}]
)


@given(st.dictionaries(st.sampled_from(["amount", "amt", "name", "status", "op", "more"]), MESS))
def test_whatever_is_retriable_is_written_as_a_fresh_event_with_those_bytes(members: dict[str, Any]) -> None:
    fields = (AMOUNT, NAME, ("status", {"type": "enum", "name": "S", "symbols": ["active"]}, "active"))
    repairs: list[RepairRule] = [
        Trim("/amount"), Number("/amount"), Rename("/amt", "amount"), Default("/amount", b"7", nulls=True),
        EnumMap("/status", (("actv", "active"),)), Epoch("/name", "epoch_s"),
    ]  # fmt: skip
    event = parked(text(**members))
    found = analyst(*fields, repairs=repairs).analyse(event, NOW_US)

    if isinstance(found, Retriable):
        assert found.value == fresh(contract(*fields), found.raw)
        assert found.repaired == (found.raw != event.raw)
        assert (found.key, json.loads(found.raw)["at"]) == ("a", AT)
    else:
        assert isinstance(fresh(contract(*fields), event.raw), RejectedEvent)


def test_an_event_from_the_future_waits_for_the_clock() -> None:
    made = analyst(AMOUNT, future_us_max=60_000_000)
    event = parked(text(amount=5), Reason.FUTURE)

    early = not_yet(made.analyse(event, AT_US - 60_000_001))

    assert (early.reason, early.path, early.retry_at_us) == (Reason.FUTURE, "/at", AT_US - 60_000_000)
    assert retriable(made.analyse(event, AT_US - 60_000_000))


def test_an_event_from_the_future_is_judged_once_its_time_has_come() -> None:
    found = not_yet(analyst(AMOUNT).analyse(parked(text(amount="x"), Reason.FUTURE), NOW_US))

    assert (found.reason, found.retry_at_us) == (Reason.INVALID, None)


def test_a_raised_limit_frees_what_was_too_large_or_too_deep() -> None:
    small, deep = replace(RULES, event_bytes_max=60), replace(RULES, depth_max=1)
    large_event, deep_event = parked(text(amount=5, name="x" * 40), rules=small), parked(text(amount={}), rules=deep)
    assert (large_event.reason, deep_event.reason, deep_event.key) == (Reason.TOO_LARGE, Reason.HOSTILE, None)

    assert not_yet(analyst(AMOUNT, NAME, rules=small).analyse(large_event, NOW_US)).reason is Reason.TOO_LARGE
    assert retriable(analyst(AMOUNT, NAME).analyse(large_event, NOW_US))
    assert not_yet(analyst(AMOUNT, rules=deep).analyse(deep_event, NOW_US)).reason is Reason.HOSTILE
    assert not_yet(analyst(AMOUNT).analyse(deep_event, NOW_US)).path == "/amount"


def test_an_event_whose_key_could_not_be_read_gets_the_key_that_the_new_contract_reads() -> None:
    event = parked(text(at="2026-11-03T12:34:56", amount=5))
    assert event.key is None
    rules = replace(RULES, utc_offset_minutes=60)

    found = retriable(analyst(AMOUNT, rules=rules).analyse(event, NOW_US))

    assert found.key == "a"
    assert found.value == fresh(contract(AMOUNT, rules=rules), event.raw, rules)


def test_a_key_that_would_move_is_not_published() -> None:
    rules = replace(RULES, key=("other",))
    fields = (("other", "string"), AMOUNT)
    event = parked(text(other="b", amount=5))

    found = not_yet(analyst(*fields, rules=rules).analyse(event, NOW_US))

    assert (found.reason, found.path) == (Reason.INVALID, "/other")


def test_a_long_key_that_the_table_had_to_cut_is_published_whole() -> None:
    event = parked(text(id="k" * 9_000, amount=5))

    assert retriable(analyst(AMOUNT).analyse(replace(event, key="k" * 8_192), NOW_US)).key == "k" * 9_000


@pytest.mark.parametrize("reason", [Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_UNKNOWN, Reason.KAFKA_TOPIC, Reason.BUG])
def test_what_kafka_or_we_are_to_blame_for_is_always_tried(reason: Reason) -> None:
    event = parked(text(amount=5), reason)

    assert retriable(analyst(AMOUNT).analyse(event, AT_US - 10 * DAY_US))
    assert not_yet(analyst(("amount", "string")).analyse(event, NOW_US)).reason is Reason.INVALID


def test_a_delete_stays_a_delete() -> None:
    bare, last_row = parked(text(op="d")), parked(text(op="d", amount=5))

    assert retriable(analyst(AMOUNT).analyse(bare, NOW_US)).value is None
    assert retriable(analyst(AMOUNT).analyse(bare, NOW_US)).op == "d"
    found = retriable(analyst(AMOUNT).analyse(last_row, NOW_US))
    assert (found.op, found.value) == ("d", fresh(contract(AMOUNT), last_row.raw))


@pytest.mark.parametrize(
    "raw", [b'{"id":"a","at":"%b","amount":"5","amount":"6"}', b'{"id":"a","at":"%b","amount":"5"']
)
def test_hostile_bytes_are_never_repaired(raw: bytes) -> None:
    event = parked(raw % AT.encode())

    found = not_yet(analyst(AMOUNT, repairs=[Number("/amount")]).analyse(event, NOW_US))

    assert found.reason is Reason.HOSTILE


@given(st.binary(max_size=60))
def test_no_bytes_make_the_analysis_raise(raw: bytes) -> None:
    made = analyst(AMOUNT, repairs=[Number("/amount"), Trim("/a")], schemas={1: schema(AMOUNT)})

    made.analyse(parked(raw), NOW_US)
    made.analyse(undecodable_record(raw), NOW_US)


def test_no_value_is_told() -> None:
    repairs: list[RepairRule] = [Rename("/x", "amount"), Trim("/amount"), EnumMap("/name", ((CANARY, CANARY),))]
    event = parked(text(id=CANARY, x=f" {CANARY}", name=CANARY, more=CANARY))

    found = not_yet(analyst(AMOUNT, NAME, repairs=repairs).analyse(event, NOW_US))
    assert CANARY not in f"{found.path}{found.why}"

    applied = retriable(analyst(("amount", "string"), NAME, ("more", "string"), repairs=repairs).analyse(event, NOW_US))
    assert [rule.rule for rule in applied.applied] == ["rename", "trim"]
    assert CANARY not in str(applied.applied)


def test_the_fingerprint_covers_schema_rules_limits_and_repairs() -> None:
    made = contract(AMOUNT)
    found = {
        contract_fingerprint(made, ()),
        contract_fingerprint(contract(AMOUNT, NAME), ()),
        contract_fingerprint(contract(AMOUNT, rules=replace(RULES, depth_max=9)), ()),
        contract_fingerprint(contract(AMOUNT, rules=replace(RULES, event_bytes_max=9_999)), ()),
        contract_fingerprint(contract(AMOUNT, rules=replace(RULES, on_unknown_field="ignore")), ()),
        contract_fingerprint(made, [Trim("/name")]),
        contract_fingerprint(made, [Number("/name")]),
    }

    assert len(found) == 7
    assert contract_fingerprint(made, ()) == made.fingerprint  # what the poller stores needs no other try


def test_a_try_settles_its_own_contract_and_no_other() -> None:
    plain, mending, newer = analyst(AMOUNT), analyst(AMOUNT, repairs=[Trim("/name")]), analyst(AMOUNT, NAME)
    by_poller = plain.contract.fingerprint

    assert plain.settles(Reason.INVALID, by_poller)
    assert not mending.settles(Reason.INVALID, by_poller)  # it has not seen the repair rules
    assert mending.settles(Reason.HOSTILE, by_poller)  # which would not help here
    assert not newer.settles(Reason.HOSTILE, by_poller)
    assert not newer.settles(Reason.INVALID, None)
    for made in (plain, mending, newer):
        tried = not_yet(made.analyse(parked(text(amount="x")), NOW_US)).fingerprint
        assert all(made.settles(reason, tried) for reason in (Reason.INVALID, Reason.HOSTILE, Reason.TOO_LARGE))
        assert made.settles(Reason.UNDECODABLE, "id:1")
        assert not made.settles(Reason.UNDECODABLE, "id:2")
        assert made.settles(Reason.UNDECODABLE, not_yet(made.analyse(undecodable_record(b"x"), NOW_US)).fingerprint)


def framed(schema_id: int, made: Contract, raw: bytes) -> bytes:
    value = fresh(made, raw)
    assert isinstance(value, bytes)
    return b"\x00" + schema_id.to_bytes(4, "big") + value[5:]


OLD, NEW, NEWEST = (AMOUNT,), (AMOUNT, NAME), (AMOUNT, NAME, ("more", "long", 0))
VERSIONS = {4: schema(*OLD), 9: schema(*NEW), 7: schema(*NEWEST)}  # oldest first; ids need not rise


def test_a_record_framed_with_too_old_an_id_is_written_again_under_the_version_that_it_decodes_under() -> None:
    value = framed(4, contract(*NEW), text(amount=5, name="Jo"))

    found = retriable(analyst(*NEWEST, schemas=VERSIONS).analyse(undecodable_record(value), NOW_US))

    assert found == Retriable("a", b"\x00\x00\x00\x00\x09" + value[5:], "u", value, 0)


def test_a_record_that_decodes_under_its_own_id_after_all_is_written_as_it_was() -> None:
    value = framed(9, contract(*NEW), text(amount=5, name="Jo"))

    assert retriable(analyst(*NEWEST, schemas=VERSIONS).analyse(undecodable_record(value), NOW_US)).value == value


def test_a_record_that_newer_versions_read_differently_is_held() -> None:
    value = framed(4, contract(*NEW), text(amount=5, name="Jo"))
    renamed, documented = schema(AMOUNT, ("title", ["null", "string"], None)), schema(*NEW).replace("Thing", "Thing2")
    versions = {4: schema(*OLD), 9: schema(*NEW)}

    assert not_yet(analyst(*NEW, schemas=versions | {10: renamed}).analyse(undecodable_record(value), NOW_US))
    found = retriable(analyst(*NEW, schemas=versions | {10: documented}).analyse(undecodable_record(value), NOW_US))
    assert found.value is not None
    assert found.value[4] == 10


def test_a_delete_that_was_undecodable_stays_one() -> None:
    headers = (*HEADERS[:2], ("tm-op", b"d"))
    event = undecodable_record(framed(9, contract(*NEW), text(amount=5)), headers=headers)

    assert retriable(analyst(*NEW, schemas=VERSIONS).analyse(event, NOW_US)).op == "d"


@pytest.mark.parametrize(
    "event",
    [
        undecodable_record(framed(9, contract(*OLD), text(amount=5))),  # only an older version fits: no step back
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")), key=b"b"),
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")), key=None),
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")) + b"\xff"),
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")), headers=HEADERS[:2]),
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")), headers=HEADERS[1:]),
        undecodable_record(framed(4, contract(*NEW), text(amount=5, name="Jo")), headers=HEADERS[::2]),
        undecodable_record(b""),
        undecodable_record(b"\x01\x00\x00\x00\x09" + b"x" * 20),
    ],
)
def test_a_record_that_is_not_certainly_ours_and_whole_is_held(event: Any) -> None:
    found = not_yet(analyst(*NEWEST, schemas=VERSIONS).analyse(event, NOW_US))

    assert (found.reason, found.fingerprint) == (Reason.UNDECODABLE, "id:1")


def test_composite_keys_of_undecodable_records_are_compared_too() -> None:
    rules = replace(RULES, key=("id", "amount"))
    value = framed(4, contract(*NEW, rules=rules), text(amount=5, name="Jo"))
    made = analyst(*NEWEST, rules=rules, schemas=VERSIONS)

    assert retriable(made.analyse(undecodable_record(value, key=b'["a",5]'), NOW_US)).key == '["a",5]'
    assert not_yet(made.analyse(undecodable_record(value, key=b'["a",6]'), NOW_US))


def test_the_headers_are_those_that_the_publisher_writes() -> None:
    assert (analysis.HEADER_SEQ, analysis.HEADER_OP) == (records.SEQ, records.OP)


def test_a_repair_is_told_in_one_line_that_holds_the_original() -> None:
    event = parked(text(amount="5"))
    found = retriable(analyst(AMOUNT, repairs=[Number("/amount")]).analyse(event, NOW_US))

    line = repair_line(event, found, SHOWN_US)

    told = json.loads(line)
    assert line.endswith(b"\n")
    assert b64decode(told["original"]) == event.raw
    assert told["applied"] == [{"rule": "number", "pointer": "/amount", "times": 1}]
    assert told["repaired_sha256"] == sha256(found.raw).hexdigest()
    assert (told["item"], told["rev"]) == (event.event_id, 1)
