"""Identity, key, time and order: the committed vectors, what can't be read, and what must not matter."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events.identity import Identifier, _canonical_slowly, canonical_payload, event_id, key_hash, seq
from shared.events.model import EventRules, Reason, Sighting

VECTORS = json.loads((Path(__file__).parent / "identity_vectors.json").read_text())
RULES = EventRules(entity="accounts", key=("id",), updated_at="at", op="op")
AT = '"at":"2026-11-03T12:34:56Z"'


def identify(raw: str | bytes, rules: EventRules = RULES, **changes: Any) -> Sighting:
    text = raw.encode() if isinstance(raw, str) else raw
    (sighting,) = Identifier(msgspec.structs.replace(rules, **changes)).identify([text])
    return sighting


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["claim"] for vector in VECTORS])
def test_identities_are_those_committed(vector: dict[str, Any]) -> None:
    rules = msgspec.convert(vector["rules"], EventRules)

    sighting = identify(bytes.fromhex(vector["raw_hex"]), rules)

    assert sighting.identity.hex() == vector["identity"]
    assert event_id(sighting.identity, vector["occurrence"]) == vector["event_id"]
    assert (sighting.key, sighting.updated_us) == (vector["key"], vector["updated_us"])
    assert sighting.key_hash.hex() == vector["key_hash"]


@pytest.mark.parametrize(
    ("members", "key", "text"),
    [
        ('"id":"a"', ("id",), "a"),
        ('"id":""', ("id",), ""),
        ('"id":"1"', ("id",), "1"),
        ('"id":1', ("id",), "1"),
        ('"id":-12345678901234567890123', ("id",), "-12345678901234567890123"),
        ('"id":true', ("id",), "true"),
        ('"id":"\\u00e9\\u0000"', ("id",), "é\x00"),
        ('"id":"a","b":1,"c":false', ("id", "b", "c"), '["a",1,false]'),
        ('"id":"1","b":1', ("b", "id"), '[1,"1"]'),
    ],
)
def test_the_key_as_text(members: str, key: tuple[str, ...], text: str) -> None:
    sighting = identify("{" + members + "," + AT + "}", key=key)

    assert sighting.key == text
    assert sighting.key_hash == key_hash(text)
    assert sighting.refusal is None


UNREADABLE = [
    ("null", Reason.INVALID, ""),
    ("[1]", Reason.INVALID, ""),
    ('"null"', Reason.INVALID, ""),
    ("{}", Reason.INVALID, "/id"),
    (f'{{"id":null,{AT}}}', Reason.INVALID, "/id"),
    (f'{{"id":1.0,{AT}}}', Reason.INVALID, "/id"),
    (f'{{"id":{{}},{AT}}}', Reason.INVALID, "/id"),
    (f'{{"id":["a"],{AT}}}', Reason.INVALID, "/id"),
    (f'{{"id":{"9" * 5000},{AT}}}', Reason.INVALID, "/id"),
    ('{"id":"a"}', Reason.INVALID, "/at"),
    ('{"id":"a","at":null}', Reason.INVALID, "/at"),
    ('{"id":"a","at":true}', Reason.INVALID, "/at"),
    ('{"id":"a","at":1793709296}', Reason.INVALID, "/at"),
    ('{"id":"a","at":"yesterday"}', Reason.INVALID, "/at"),
    ('{"id":"a","at":"2026-11-03T12:34:56"}', Reason.INVALID, "/at"),
    ("", Reason.HOSTILE, ""),
    ("nonsense", Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":NaN}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":-Infinity}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT}}} {{}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT}}}garbage', Reason.HOSTILE, ""),
    (f"{{'id':'a',{AT}}}", Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},/*no*/"x":1}}', Reason.HOSTILE, ""),
    (f'{{"id":"\\ud800",{AT}}}', Reason.HOSTILE, ""),
    (f'\ufeff{{"id":"a",{AT}}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":"\x01"}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":{"[" * 65}{"]" * 65}}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":{"[" * 1000}{"]" * 1000}}}', Reason.HOSTILE, ""),
    (f'{{"id":"a",{AT},"x":{"[" * 100_000}', Reason.HOSTILE, ""),
]


@pytest.mark.parametrize(("raw", "reason", "path"), UNREADABLE)
def test_an_event_that_can_t_be_read_is_known_by_its_bytes_alone(raw: str, reason: Reason, path: str) -> None:
    sighting = identify(raw)

    assert sighting.refusal is not None
    assert (sighting.refusal.reason, sighting.refusal.path) == (reason, path)
    assert (sighting.key, sighting.updated_us, sighting.is_delete) == (None, 0, False)
    assert sighting.identity == identify(raw, updated_at="other", key=("x", "y")).identity
    assert sighting.identity != identify(raw + " ").identity
    assert sighting.identity != identify(raw, entity="other").identity


@pytest.mark.parametrize(
    "raw", [b'{"id":"\xff"}', b'{"id":"\xc0\xaf"}', b'{"id":"\xed\xa0\x80"}', b'{"id":"a","\xff":1}']
)
def test_bytes_that_are_no_utf_8_are_hostile(raw: bytes) -> None:
    refusal = identify(raw[:-1] + b"," + AT.encode() + b"}").refusal

    assert refusal is not None
    assert refusal.reason is Reason.HOSTILE


def test_a_bad_event_spoils_only_itself() -> None:
    good = ('{"id":"a",' + AT + "}").encode()

    sightings = Identifier(RULES).identify([good, b"[", good, b"null", good])

    assert [sighting.key for sighting in sightings] == ["a", None, "a", None, "a"]


def test_sixty_four_levels_are_read() -> None:
    assert identify(f'{{"id":"a",{AT},"x":{"[" * 63}{"]" * 63}}}').refusal is None


def test_brackets_within_strings_are_no_depth() -> None:
    assert identify(f'{{"id":"a",{AT},"x":"{"[" * 200}","y":"\\"{"{" * 200}"}}').refusal is None


def test_a_wide_event_is_not_deep() -> None:
    assert identify(f'{{"id":"a",{AT},"x":[{",".join(["[{}]"] * 1000)}]}}').refusal is None


def test_size_is_judged_but_is_no_part_of_identity() -> None:
    raw = f'{{"id":"a",{AT},"x":"{"y" * 2_000_000}"}}'

    sighting = identify(raw)

    assert sighting.refusal is not None
    assert sighting.refusal.reason is Reason.TOO_LARGE
    assert (sighting.key, sighting.updated_us) == ("a", 1793709296000000)
    assert sighting.identity == identify(raw, event_bytes_max=3_000_000).identity


SAME = [
    '{"id":"a","at":"2026-11-03T12:34:56Z","n":{"x":1.50,"y":"é/\\n"}}',
    ' { "n" : {"y":"\\u00e9\\/\\u000a","x":1.50}, "at":"2026-11-03T12:34:56Z",\n "id":"\\u0061"}',
]
OTHER = [
    '{"id":"a","at":"2026-11-03T12:34:56Z","n":{"x":1.5,"y":"é/\\n"}}',
    '{"id":"a","at":"2026-11-03T12:34:56Z","n":{"x":15e-1,"y":"é/\\n"}}',
    '{"id":"a","at":"2026-11-03T12:34:56.0Z","n":{"x":1.50,"y":"é/\\n"}}',
    '{"id":"a","at":"2026-11-03T12:34:56Z","n":{"x":"1.50","y":"é/\\n"}}',
    '{"id":"a","at":"2026-11-03T12:34:56Z","n":{"x":1.50,"y":"é/\\n","z":null}}',
    '{"id":"b","at":"2026-11-03T12:34:56Z","n":{"x":1.50,"y":"é/\\n"}}',
]


def test_spelling_does_not_matter_and_everything_else_does() -> None:
    identities = [identify(raw).identity for raw in SAME + OTHER]

    assert identities[0] == identities[1]
    assert len(set(identities)) == 1 + len(OTHER)


def test_the_source_s_own_id_stands_for_the_payload_but_never_alone() -> None:
    def own(text: str) -> bytes:
        return identify(text, event_id="eid").identity

    first = own(f'{{"id":"a",{AT},"eid":"e1","x":1}}')

    assert first == own(f'{{"id":"a",{AT},"eid":"e1","x":2}}')
    assert first == own('{"id":"a","at":"2026-11-03T13:34:56+01:00","eid":"e1"}')
    assert first != own(f'{{"id":"b",{AT},"eid":"e1","x":1}}')
    assert first != own('{"id":"a","at":"2026-11-03T12:34:57Z","eid":"e1"}')
    assert own(f'{{"id":"a",{AT},"eid":1}}') != own(f'{{"id":"a",{AT},"eid":"1"}}')


@pytest.mark.parametrize("eid", ["null", "1.5", "true", "[]"])
def test_an_own_id_that_is_no_id_counts_as_absent(eid: str) -> None:
    raw = f'{{"id":"a",{AT},"eid":{eid}}}'

    assert identify(raw, event_id="eid").identity == identify(raw).identity


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


def json_texts() -> st.SearchStrategy[str]:
    text = st.builds(
        lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.booleans(),
    )
    return st.recursive(
        NUMBERS | text | st.sampled_from(["null", "true", "-0", "9" * 400]),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: "[ " + " ,".join(items) + "]")
            | st.lists(st.tuples(text, inner), max_size=3).map(
                lambda pairs: "{" + ", ".join(f"{name} :{value}" for name, value in pairs) + "}"
            )
        ),
        max_leaves=8,
    )


@settings(max_examples=80, deadline=None)
@given(json_texts())
def test_the_quick_and_the_slow_canonical_payload_are_one(text: str) -> None:
    payload = canonical_payload(text.encode())

    assert payload == _canonical_slowly(text.encode())
    assert canonical_payload(payload) == payload
    assert json.loads(payload, parse_float=str) == json.loads(text, parse_float=str)


@pytest.mark.parametrize(
    ("format", "written", "us"),
    [
        ("epoch_s", "1793709296", 1793709296000000),
        ("epoch_s", "1793709296.1234567", 1793709296123456),
        ("epoch_s", "-0.0000001", -1),
        ("epoch_s", "1.793709296e9", 1793709296000000),
        ("epoch_ms", "1793709296123", 1793709296123000),
        ("epoch_us", "-1", -1),
    ],
)
def test_epochs_are_whole_microseconds_cut_towards_the_past(format: Any, written: str, us: int) -> None:
    assert identify(f'{{"id":1,"at":{written}}}', updated_at_format=format).updated_us == us


@pytest.mark.parametrize(
    ("format", "written"),
    [
        ("epoch_s", "true"),
        ("epoch_s", '"1793709296"'),
        ("epoch_s", "1e400"),
        ("epoch_s", "1e999999999999"),
        ("epoch_s", "1793709296123"),  # milliseconds taken for seconds
        ("epoch_ms", "1.0"),
        ("epoch_ms", "true"),
        ("epoch_us", "1e3"),
        ("epoch_us", "253402300800000000"),
        ("epoch_us", '"2026-11-03T12:34:56Z"'),
    ],
)
def test_other_epochs_are_refused(format: Any, written: str) -> None:
    refusal = identify(f'{{"id":1,"at":{written}}}', updated_at_format=format).refusal

    assert refusal is not None
    assert (refusal.reason, refusal.path) == (Reason.INVALID, "/at")


def test_a_declared_offset_is_that_of_stamps_without_one() -> None:
    raw = '{"id":1,"at":"2026-11-03T12:34:56"}'

    assert identify(raw, utc_offset_minutes=60).updated_us == 1793709296000000 - 3_600_000_000


@pytest.mark.parametrize(
    ("op", "deletes"), [('"d"', True), ('"u"', False), ("null", False), ("true", False), ('["d"]', False), ("1", False)]
)
def test_what_deletes_is_what_the_rules_say(op: str, deletes: bool) -> None:
    assert identify(f'{{"id":1,{AT},"op":{op}}}').is_delete is deletes


def test_flags_and_numbers_may_mean_delete() -> None:
    assert identify(f'{{"id":1,{AT},"op":true}}', delete_ops=frozenset({"true"})).is_delete
    assert identify(f'{{"id":1,{AT},"op":3}}', delete_ops=frozenset({"3"})).is_delete


@pytest.mark.parametrize("version", ["", '"v":null,', '"v":"3",', '"v":3.0,', '"v":true,', '"v":9223372036854775808,'])
def test_a_version_that_can_t_be_compared_is_refused_and_ranks_lowest(version: str) -> None:
    sighting = identify(f'{{{version}"id":1,{AT}}}', version="v")

    assert sighting.refusal is not None
    assert sighting.refusal.path == "/v"
    assert sighting.key == "1"
    assert seq(EventRules(entity="e", key=("id",), updated_at="at", version="v"), sighting, 77) == (0, 77)


def test_seq_follows_the_rule_of_the_table() -> None:
    sighting = identify(f'{{"id":1,{AT},"v":42}}', version="v")
    rows = EventRules(entity="e", key=("id",), updated_at="at")

    assert seq(msgspec.structs.replace(rows, version="v"), sighting, 77) == (42, 77)
    assert seq(rows, sighting, 77) == (77, 0)
    assert seq(msgspec.structs.replace(rows, shows="events"), sighting, 77) == (1793709296000000, 77)


def test_one_member_may_play_several_roles() -> None:
    sighting = identify(
        '{"id":1793709296}', key=("id",), updated_at="id", updated_at_format="epoch_s", event_id="id", version="id"
    )

    assert (sighting.key, sighting.updated_us, sighting.version) == ("1793709296", 1793709296000000, 1793709296)


def test_names_that_differ_by_case_or_normal_form_are_different_names() -> None:
    assert identify(f'{{"ID":1,{AT}}}').refusal is not None
    assert identify(f'{{"id":1,"ID":2,{AT}}}').key == "1"
    assert identify(f'{{"id":1,"é":1,{AT}}}').identity != identify(f'{{"id":1,"e\u0301":1,{AT}}}').identity
