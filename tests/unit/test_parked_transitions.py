"""Rows as they are read, and the requests that change them: no server."""

import re
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from shared.events.model import Reason, RejectedEvent
from shared.parked.conditions import CLAUSES, Transition, delete_request, update_request
from shared.parked.items import Item, draft_of, meta_item, wire
from shared.parked.leases import (
    Body,
    Edit,
    Error,
    Receipt,
    claimed_row,
    due_of,
    edits_wire,
    error_of,
    errors_wire,
    own_bodies,
    read_row,
    receipts_wire,
    with_raw,
)
from shared.parked.model import KafkaPosition, ParkedEvent, State, undecodable
from tests.fakes.parked_bench import AT_MS, event_of

VALUES: dict[str, dict[str, Any]] = {
    name: wire(1) for name in ("ver", "due_bound", "token", "round", "att_max", "tries_max", "now")
}
KEY: Item = {"pk": wire("P#a#b"), "sk": wire("E#1#x"), "st": wire("HELD")}


def meta_of(event: ParkedEvent, **more: dict[str, Any]) -> Item:
    return meta_item(draft_of(event, 1, 1_000)) | more


def test_every_transition_has_a_condition_that_fences_it() -> None:
    assert set(CLAUSES) == set(get_args(Transition))
    assert all(set(clauses) & {"leased", "unchanged"} for clauses in CLAUSES.values())


@pytest.mark.parametrize("transition", CLAUSES)
def test_a_request_names_all_that_its_expressions_use_and_no_more(transition: Transition) -> None:
    request = update_request(
        transition, KEY, VALUES, sets={"due": wire("1#x")}, computes=("#ver = #ver + :one",), removes=("lease_tok",)
    )
    text = request["UpdateExpression"] + request["ConditionExpression"]

    assert set(request["ExpressionAttributeNames"]) == set(re.findall(r"#\w+", text))
    assert set(request["ExpressionAttributeValues"]) == set(re.findall(r":\w+", text))
    assert set(request["Key"]) == {"pk", "sk"}
    deletion = delete_request(transition, KEY, VALUES)
    assert deletion["ConditionExpression"] == request["ConditionExpression"]


@pytest.mark.parametrize(
    "event",
    [
        event_of(1, maybe_sent=True),
        event_of(2, key=None, key_hash=bytes.fromhex("00" * 16), subject=None, fingerprint=None),
        undecodable(
            entity="a#b", position=KafkaPosition("t", 1, 2, 3, 4, b"k", (("tm-op", b"d"),)), value=b"\x00",
            detail="d", subject=None, fingerprint=None, owner="", at_us=AT_MS * 1000, event_id="e", rank=1, tiebreak=2,
        ),
        undecodable(
            entity="a", position=KafkaPosition("t", 1, 2, 3, 4, None), value=b"\x01", detail="d", subject="s",
            fingerprint=None, owner="", at_us=AT_MS * 1000,
        ),
    ],
)  # fmt: skip
def test_an_event_comes_back_as_it_was_parked(event: ParkedEvent) -> None:
    row = read_row(meta_of(event))
    lease = with_raw(claimed_row(row, "t", 1.0), event.raw)

    expected = event
    if event.key is None and event.kafka is None:  # then its hash is that of its bytes, as the identifier makes it
        expected = replace(event, key_hash=bytes.fromhex(row.original.sha[:32]))
    assert lease.event == expected
    assert (row.state, row.ver, row.round, row.tries_counted, row.edits) == (
        State.HELD, 1, 0, 0, (),
    )  # fmt: skip


def test_a_cut_key_is_marked() -> None:
    assert read_row(meta_of(event_of(1, key="k" * 10_000))).key_cut
    assert not read_row(meta_of(event_of(1))).key_cut


def test_history_receipts_and_edits_are_read_as_written() -> None:
    errors = tuple(Error(number, "bug", f"code {number}") for number in range(9))
    receipts = tuple(Receipt("slack", "g", str(number), number) for number in range(12))
    edits = (Edit(1, "ada", "why", 5, Body("ab", sk="B#1")), Edit(2, "bob", "so", 6, Body("cd", object_key="bodies/x")))
    row = read_row(meta_of(event_of(1), errs=errors_wire(errors), ntf=receipts_wire(receipts), edits=edits_wire(edits)))

    assert row.errs == errors[-5:]
    assert row.ntf == receipts[-10:]
    assert row.edits == edits
    assert (row.event.rev, row.newest.object_key) == (2, "bodies/x")


def test_only_bodies_that_no_other_row_can_name_go_with_a_row() -> None:
    small = read_row(meta_of(event_of(1)))
    large = read_row(meta_item(draft_of(event_of(1), 1, 1)))
    shared = read_row(meta_item(draft_of(event_of(1), 1, 1)) | {"s3_uri": wire("bodies/payments/abc.zst")})

    assert own_bodies(small) == [small.original]
    assert own_bodies(large) == [large.original]
    assert large.original.object_key is not None
    assert own_bodies(shared) == []


def test_a_failure_is_told_in_a_class_and_a_short_code() -> None:
    refusal = RejectedEvent(Reason.INVALID, "/a/" + "b" * 500, "detail")

    assert error_of(refusal, "bug", 1) == Error(1, "invalid", ("/a/" + "b" * 500)[:64])
    assert error_of("timed out", "kafka_unknown", 2) == Error(2, "kafka_unknown", "timed out")


def test_a_hint_is_read_from_what_the_index_projects() -> None:
    item = meta_of(event_of(7))
    projected = {name: item[name] for name in ("pk", "sk", "dq", "due", "st", "ver", "entity", "reason")}

    hint = due_of(projected)
    assert (hint.item_id, hint.ver, hint.state) == (event_of(7).item_id, 1, State.HELD)
    assert hint.due_ms == read_row(item).due_ms


def test_a_row_with_a_full_history_stays_within_the_kilobytes_that_a_write_pays() -> None:
    errors = tuple(Error(AT_MS, "kafka_unavailable", "c" * 64) for _ in range(5))
    receipts = (Receipt("pagerduty", "d" * 64, "i" * 64, AT_MS),)
    lease = {"lease_tok": wire("a" * 16), "lease_own": wire("w" * 20), "lease_until": wire(AT_MS), "round": wire(0)}
    item = meta_of(event_of(1), errs=errors_wire(errors), ntf=receipts_wire(receipts), **lease)

    assert _bytes_of(meta_of(event_of(1), **lease)) <= 1_100
    assert _bytes_of(item) <= 2_048


def _bytes_of(item: Item) -> int:
    return sum(len(name) + len(str(next(iter(value.values())))) for name, value in item.items())
