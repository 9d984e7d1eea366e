"""A notice says what is wrong, where and what to type; never a value of an event."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stale_notifier.disclosure import Disclosure
from services.stale_notifier.notice import (
    DEDUP_KEY_CHARS_MAX,
    SHORT_CHARS_MAX,
    Kind,
    commands,
    dedup_key,
    document,
    facts,
    legible,
    text,
    title,
)
from tests.fakes.notices import FINGERPRINT, NOTICE, notice

CANARY = "canary-7d1f"


def test_the_notice_ends_with_the_commands_that_act() -> None:
    ending = text(NOTICE).splitlines()[-4:]

    assert ending[0] == "To act:"
    assert f"tidemark parked redrive --group {FINGERPRINT} --dry-run" in ending[2]
    assert f"tidemark parked redrive --group {FINGERPRINT}  " in ending[3]


def test_a_resolved_group_needs_no_command() -> None:
    resolved = notice(kind=Kind.RESOLVED, count=0)

    assert commands(resolved) == []
    assert title(resolved) == "Resolved: accounts: no stale events left (invalid at /balance)"
    assert "tidemark parked" not in text(resolved)


@pytest.mark.parametrize(
    ("kind", "count", "says"),
    [
        (Kind.NEW, 2000, "accounts: 2,000 stale events (invalid at /balance)"),
        (Kind.NEW, 1, "accounts: 1 stale event (invalid at /balance)"),
        (Kind.GROWN, 20_000, "Growing: accounts: 20,000 stale events (invalid at /balance)"),
        (Kind.REPEAT, 2000, "Still open: accounts: 2,000 stale events (invalid at /balance)"),
        (Kind.ESCALATION, 2000, "Escalated: accounts: 2,000 stale events (invalid at /balance)"),
    ],
)
def test_the_title_says_what_happened(kind: Kind, count: int, says: str) -> None:
    assert title(notice(kind=kind, count=count)) == says


def test_everything_known_is_told_and_nothing_else() -> None:
    told = dict(facts(notice(told_count=200, kind=Kind.GROWN)))

    assert told == {
        "Entity": "accounts",
        "Events": "2,000 (200 when last told)",
        "Reason": "invalid",
        "Path": "/balance",
        "Rule": "must be a number, is a string",
        "Schema": "cdc.accounts-value, versions 3, 4",
        "First seen": "2026-01-01T00:00:00Z",
        "Last seen": "2026-01-01T01:00:00Z",
        "Kept until": "2026-01-08T01:00:00Z",
        "Owner": "ledger (#ledger)",
        "Evidence": NOTICE.evidence_uri,
        "Evidence sha256": "ab" * 32,
        "Group": FINGERPRINT,
    }
    bare = dict(facts(notice(subject=None, versions=(), evidence_uri="", evidence_sha256="", delete_after_ms=None)))
    assert not {"Schema", "Evidence", "Evidence sha256", "Kept until", "Runbook"} & set(bare)


def test_a_repeated_delivery_has_the_same_keys_and_the_next_notice_another_id() -> None:
    again = notice(count=2001)
    grown = notice(kind=Kind.GROWN, number=2)

    assert again.notice_id == NOTICE.notice_id
    assert grown.notice_id != NOTICE.notice_id
    assert grown.dedup_key == NOTICE.dedup_key == "cdc::accounts:invalid:5f2c9a1d0b7e4c33"
    assert len(NOTICE.notice_id) == 40


@given(st.text(), st.text(), st.text(max_size=400), st.text())
@settings(max_examples=50)
def test_a_dedup_key_is_never_longer_than_the_narrowest_receiver_takes(ns: str, entity: str, why: str, fp: str) -> None:
    assert len(dedup_key(ns, entity, why, fp)) <= DEDUP_KEY_CHARS_MAX


def test_other_causes_and_namespaces_have_other_dedup_keys() -> None:
    keys = {
        dedup_key("", "accounts", "invalid", "a" * 64),
        dedup_key("prod", "accounts", "invalid", "a" * 64),
        dedup_key("", "payments", "invalid", "a" * 64),
        dedup_key("", "accounts", "future", "a" * 64),
        dedup_key("", "accounts", "invalid", "b" * 64),
        dedup_key("", "accounts", "invalid", "a" * 64 + "x" * 400),
    }

    assert len(keys) == 5  # the last has the same first sixteen characters as the first


@given(st.text(max_size=600), st.text(max_size=600))
@settings(max_examples=50)
def test_names_that_the_source_chose_can_neither_break_lines_nor_swell_the_notice(path: str, rule: str) -> None:
    hostile = notice(path=path, rule=rule, entity=f"e{path}", subject=rule)

    lines = text(hostile).splitlines()

    assert len(lines) == len(text(NOTICE).splitlines()) - (0 if rule else 1)
    assert all(len(line) <= SHORT_CHARS_MAX + 60 for line in lines)
    assert "\n" not in title(hostile)
    json.dumps(document(hostile)).encode()


def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    assert legible("a\x00b\r\nc\u202e\ud800d") == "a\N{REPLACEMENT CHARACTER}b" + "\N{REPLACEMENT CHARACTER}" * 2 + (
        "c" + "\N{REPLACEMENT CHARACTER}" * 2 + "d"
    )


def test_a_command_quotes_what_it_is_given() -> None:
    (_, _), (_, _), (redrive, _) = commands(notice(fingerprint="x; rm -rf /"))

    assert redrive == "tidemark parked redrive --group 'x; rm -rf /'"


def test_times_are_utc_to_the_second() -> None:
    assert document(NOTICE)["first_seen"] == datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- what may be told of an event

SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "account",
        "namespace": "bank",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "country", "type": ["null", "string"], "public": True},
            {"name": "score", "type": "double", "public": True},
            {"name": "secret", "type": "string", "public": "yes"},
            {"name": "by_mail", "type": {"type": "map", "values": "string"}, "public": True},
            {
                "name": "house",
                "type": {
                    "type": "record",
                    "name": "place",
                    "fields": [
                        {"name": "city", "type": "string", "public": True},
                        {"name": "street", "type": "string"},
                        {"name": "lines", "type": {"type": "array", "items": "string"}},
                    ],
                },
            },
            {"name": "office", "type": ["null", "place"]},
        ],
    }
)
EVENT = {
    "id": CANARY,
    "country": "LU",
    "score": 1,
    "secret": CANARY,
    "by_mail": {CANARY: CANARY},
    "house": {"city": "Esch", "street": CANARY, "lines": [CANARY]},
    "office": {"city": "Metz", CANARY: 1},
    "unknown": CANARY,
}


def test_only_values_of_fields_marked_public_are_told() -> None:
    found = Disclosure(SCHEMA).samples(json.dumps(EVENT).encode())

    assert found == {"/country": "LU", "/score": "1", "/house/city": "Esch", "/office/city": "Metz"}


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"country": {"a": "b"}}', b" " * 1_000_001]
)
def test_an_event_that_is_no_object_gives_no_samples(raw: bytes) -> None:
    assert Disclosure(SCHEMA).samples(raw) == {}


@pytest.mark.parametrize("schema", [None, "", "{", '"string"', '{"type": "record"}', "[1]"])
def test_without_a_schema_nothing_is_public(schema: str | None) -> None:
    disclosure = Disclosure(schema)

    assert disclosure.samples(json.dumps(EVENT).encode()) == {}
    assert disclosure.path(f"/by_mail/{CANARY}") == "/by_mail/*"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("", ""),
        ("/id", "/id"),
        ("/idd", "/idd"),
        (f"/by_mail/{CANARY}", "/by_mail/*"),
        (f"/by_mail/{CANARY}/{CANARY}", "/by_mail/*/*"),
        ("/house/lines/3", "/house/lines/3"),
        (f"/house/lines/{CANARY}", "/house/lines/*"),
        ("/office/city", "/office/city"),
        ("/office/street2", "/office/street2"),
        (f"/id/{CANARY}", "/id/*"),
        ("no pointer", ""),
        ("/a~1b", "/a~1b"),
    ],
)
def test_a_path_tells_names_of_the_contract_and_masks_keys_of_maps(path: str, shown: str) -> None:
    assert Disclosure(SCHEMA).path(path) == shown
