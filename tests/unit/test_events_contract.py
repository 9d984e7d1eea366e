"""What a contract accepts, refuses and says; what it will not start with."""

import io
import json
from typing import Any

import fastavro
import msgspec
import pytest

from shared.events.contract import Contract, ContractError, compile_contract
from shared.events.identity import Identifier
from shared.events.model import EventRules, Reason, RejectedEvent

RULES = EventRules(entity="things", key=("id",), updated_at="at", op="op")
AT = "2026-11-03T12:34:56Z"
BASE = {"id": "a", "at": AT, "op": "u"}
STAMP = {"type": "long", "logicalType": "timestamp-micros"}
INVALID, HOSTILE = Reason.INVALID, Reason.HOSTILE


def schema(*fields: Any, at: Any = STAMP) -> str:
    """A record of key, time stamp, op and more: ``(name, type)`` or ``(name, type, default)``."""
    own = [("id", "string"), ("at", at), ("op", "string"), *fields]
    return json.dumps(
        {
            "type": "record",
            "name": "bank.Thing",
            "fields": [dict(zip(("name", "type", "default"), field, strict=False)) for field in own],
        }
    )


def contract(*fields: Any, rules: EventRules = RULES) -> Contract:
    return compile_contract(rules, schema(*fields), "things-value", 258)


def outcome(made: Contract, raw: str | bytes, rules: EventRules = RULES) -> bytes | RejectedEvent | None:
    text = raw.encode() if isinstance(raw, str) else raw
    (found,) = made.encode(Identifier(rules).identify([text]))
    return found


def event(**members: str) -> str:
    """An event as JSON text; each member's value is JSON text too."""
    own = {name: json.dumps(value) for name, value in BASE.items()} | members
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in own.items()) + "}"


def decoded(value: bytes | RejectedEvent | None, *fields: Any) -> Any:
    assert isinstance(value, bytes), value
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(json.loads(schema(*fields))), None)


def refused(value: bytes | RejectedEvent | None, reason: Reason, path: str) -> None:
    assert isinstance(value, RejectedEvent), value
    assert (value.reason, value.path) == (reason, path)


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


def logical(base: str, name: str) -> dict[str, str]:
    return {"type": base, "logicalType": name}


ENUM = {"type": "enum", "name": "Colour", "symbols": ["red", "green"], "default": "red"}
FIXED = {"type": "fixed", "name": "Two", "size": 2}
STRINGS, LONGS = {"type": "array", "items": "string"}, {"type": "map", "values": "long"}

REFUSED = [
    # 17, 18: numbers
    ("double", "1e400"), ("double", "-1e400"), ("double", "9007199254740993"), ("double", "9" * 5000),
    ("float", "1e39"), ("float", "16777217"), ("double", '"1.0"'), ("double", '"NaN"'), ("double", "true"),
    ("int", "2147483648"), ("int", "-2147483649"), ("int", "1.0"), ("int", "1e2"), ("int", "1.5"),
    ("long", "9223372036854775808"), ("long", "18446744073709551616"), ("long", "-9223372036854775809"),
    ("long", "9" * 5000), ("long", "1E-400"),
    # 28: one type for another
    ("int", "true"), ("int", '"1"'), ("long", "false"), ("string", "1"), ("string", "null"), ("boolean", "0"),
    ("boolean", '"true"'), ("null", "0"), (["null", "int"], '"x"'), (["int", "null"], "1.5"), ("string", "[]"),
    # 29: enums; their default is for readers, not for writers
    (ENUM, '"blue"'), (ENUM, '"Red"'), (ENUM, "0"), (ENUM, "null"),
    # 30: decimals
    (decimal(5, 2), "1234.56"), (decimal(5, 2), "1.234"), (decimal(5, 2), '"1.234"'), (decimal(5, 2), '"1_0"'),
    (decimal(5, 2), '" 1"'), (decimal(5, 2), '"NaN"'), (decimal(5, 2), "1e4"), (decimal(5, 2), "1e99999"),
    (decimal(5, 2), "1e-99999"), (decimal(5, 2), "true"), (decimal(5, 2), '""'), (decimal(5, 2), "null"),
    (decimal(5, 2), "9" * 5000), (decimal(5, 2), '"+1"'),
    # 31: times
    (STAMP, '"2026-11-03T12:34:56"'), (STAMP, '"2026-11-03"'), (STAMP, '"2026-11-03T12:34:56.1234567Z"'),
    (STAMP, "1.5"), (STAMP, "253402300800000000"), (STAMP, '"0001-01-01T00:00:00+14:00"'), (STAMP, "true"),
    (logical("long", "timestamp-millis"), '"2026-11-03T12:34:56.1234Z"'),
    (logical("long", "timestamp-millis"), "9000000000000000000"),
    (logical("long", "timestamp-millis"), "292278994000000"),
    (logical("long", "local-timestamp-micros"), '"2026-11-03T12:34:56Z"'),
    (logical("int", "date"), '"2026-02-30"'), (logical("int", "date"), '"2026-11-03T00:00:00Z"'),
    (logical("int", "date"), "2932897"), (logical("int", "time-millis"), '"24:00:00"'),
    (logical("int", "time-millis"), "86400000"), (logical("long", "time-micros"), "-1"),
    # 32: identifiers; bytes
    (logical("string", "uuid"), '"nope"'), (logical("string", "uuid"), '"{0e0e0e0e-0e0e-0e0e-0e0e-0e0e0e0e0e0e}"'),
    ("bytes", '"abc"'), ("bytes", '"QR=="'), ("bytes", '"QQ"'), ("bytes", '"Q Q="'), ("bytes", '"-_-_"'),
    ("bytes", "1"),
    (FIXED, '"QQ=="'), (FIXED, '"QUJD"'),
    # arrays and maps
    (STRINGS, '"abc"'), (STRINGS, "{}"), (STRINGS, "null"), (LONGS, "[]"), (LONGS, "1"),
]  # fmt: skip


@pytest.mark.parametrize(("of", "text"), REFUSED)
def test_a_value_that_does_not_fit_is_refused_at_its_place(of: Any, text: str) -> None:
    refused(outcome(contract(("x", of)), event(x=text)), INVALID, "/x")


def test_the_place_is_a_pointer_into_the_event() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "a", "type": STRINGS}, {"name": "m", "type": LONGS}]}
    made = contract(("x", ["null", inner]))

    refused(outcome(made, event(x='{"a":["b",1],"m":{}}')), INVALID, "/x/a/1")
    found = outcome(made, event(x='{"a":[],"m":{"k/~":true}}'))
    refused(found, INVALID, "/x/m/*")
    assert isinstance(found, RejectedEvent)
    assert (found.place, found.exact_path) == ("/x/m/k~1~0", "/x/m/k~1~0"), "the map's key is the source's data"
    refused(outcome(made, event(x='{"a":[],"m":{},"n":1}')), INVALID, "/x/n")
    refused(outcome(made, event(x='{"a":[]}')), INVALID, "/x/m")


ACCEPTED = [
    ("double", "1E-400", 0.0), ("double", "-0.0", 0.0), ("double", "5", 5.0), ("double", "1e308", 1e308),
    ("double", "9007199254740992", 2.0**53), ("float", "16777216", 2.0**24), ("float", "0.1", 0.10000000149011612),
    ("double", "100000000000000000000", 1e20), ("double", "0.1000000000000000055511151231257827", 0.1),
    ("int", "-0", 0), ("long", "9223372036854775807", 2**63 - 1), ("long", "-9223372036854775808", -(2**63)),
    ("string", '"\\ud83d\\ude00\\u0000\\ufffe"', "😀\x00\ufffe"), ("string", '"' + "x" * 900_000 + '"', "x" * 900_000),
    ("bytes", '"QQ=="', b"A"), ("bytes", '""', b""), (FIXED, '"QUI="', b"AB"), (ENUM, '"green"', "green"),
    (STRINGS, "[]", []),
    (LONGS, '{"__proto__":1,"-type":2,"a.b\\u0000":3}', {"__proto__": 1, "-type": 2, "a.b\x00": 3}),
    ("null", "null", None),
]  # fmt: skip


@pytest.mark.parametrize(("of", "text", "value"), ACCEPTED)
def test_a_value_that_fits_reads_back_equal(of: Any, text: str, value: Any) -> None:
    assert decoded(outcome(contract(("x", of)), event(x=text)), ("x", of))["x"] == value


@pytest.mark.parametrize(
    ("text", "unscaled"),
    [
        ("1", 100),
        ("1.5", 150),
        ('"1.50"', 150),
        ("1.500", 150),
        ("15e-1", 150),
        ("-0.01", -1),
        ('"-999.99"', -99999),
        ("1e2", 10000),
        ('"0"', 0),
        ("0.0000", 0),
        ("-0", 0),
        ("0e99999", 0),
        ('"\\u0031"', 100),
    ],
)
def test_decimals_are_exact_and_never_pass_through_a_float(text: str, unscaled: int) -> None:
    value = outcome(contract(("x", decimal(5, 2))), event(x=text))

    assert int(decoded(value, ("x", decimal(5, 2)))["x"].scaleb(2)) == unscaled


def test_a_decimal_of_forty_digits_keeps_them_all() -> None:
    digits = "1234567890123456789012345678901234567890"
    for text in (digits, f'"{digits}"'):
        value = outcome(contract(("x", decimal(40, 0))), event(x=text))
        assert isinstance(value, bytes)
        assert value.endswith(int(digits).to_bytes(17, "big"))


@pytest.mark.parametrize(
    "of", [decimal(5, 2), {"type": "fixed", "size": 8, "name": "F"} | {"logicalType": "decimal", "precision": 9}]
)
def test_a_nullable_decimal_may_be_null(of: Any) -> None:
    made = contract(("x", ["null", of]))

    assert not made.general
    assert decoded(outcome(made, event(x="null")), ("x", ["null", of]))["x"] is None


def test_missing_extra_and_renamed_fields_are_refused() -> None:
    made = contract(("x", "int"))

    refused(outcome(made, event()), INVALID, "/x")
    refused(outcome(made, event(x="1", y="2")), INVALID, "/y")
    refused(outcome(made, event(X="1")), INVALID, "/x")


def test_absent_is_not_null() -> None:
    refused(outcome(contract(("x", ["null", "int"])), event()), INVALID, "/x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("x", ["null", "int"], None), None),
        (("x", ["int", "null"], 7), 7),
        (("x", "string", "none"), "none"),
        (("x", "bytes", "\u00ff"), b"\xff"),
        (("x", "double", 1), 1.0),
        (("x", STRINGS, ["a"]), ["a"]),
        (("x", LONGS, {}), {}),
        (("x", ENUM, "green"), "green"),
        (("x", {"type": "record", "name": "D", "fields": [{"name": "a", "type": "int", "default": 3}]}, {}), {"a": 3}),
    ],
)
def test_an_absent_field_takes_the_schema_s_default(field: tuple[str, Any, Any], value: Any) -> None:
    assert decoded(outcome(contract(field), event()), field)["x"] == value


def test_a_field_with_a_default_may_still_be_sent() -> None:
    field = ("x", ["null", "string"], None)

    assert decoded(outcome(contract(field), event(x='"y"')), field)["x"] == "y"


INNER = {"type": "record", "name": "Inner", "fields": [{"name": "a", "type": "int"}]}


def test_unknown_fields_are_dropped_at_every_depth_where_the_rules_say_so() -> None:
    rules = msgspec.structs.replace(RULES, on_unknown_field="ignore")
    fields = (("x", INNER), ("many", {"type": "array", "items": "Inner"}))
    made = contract(*fields, rules=rules)

    raw = event(x='{"a":1,"b":[{"c":null}]}', many='[{"a":2,"z":"}"}]', y='{"deep":{"x":1}}')

    assert decoded(outcome(made, raw, rules), *fields) == decoded(
        outcome(made, event(x='{"a":1}', many='[{"a":2}]'), rules), *fields
    )


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        event(x='{"a":1}')[:-1] + ',"x":{"a":2}}',
        event(x='{"a":1,"a":1}'),
        event(x='{"a":1,"\\u0061":2}'),
        event(x='{"a" :1, "a"\t: 2 }'),
        event(x='{"a":1}')[:-1] + ',"x" :{"a":2}}',
        event(x='{"a":1}')[:-1] + ',"id":"b"}',
    ],
)
def test_a_name_that_stands_twice_is_hostile_since_parsers_disagree(raw: str, ignore: bool) -> None:
    rules = msgspec.structs.replace(RULES, on_unknown_field="ignore") if ignore else RULES

    refused(outcome(contract(("x", INNER), rules=rules), raw, rules), HOSTILE, "")


def test_a_name_that_stands_twice_in_a_map_is_hostile() -> None:
    refused(outcome(contract(("x", LONGS)), event(x='{"k":1,"k":1}')), HOSTILE, "")


def test_quotes_and_colons_within_strings_are_no_names() -> None:
    value = outcome(contract(("x", "string")), event(x='"\\"x\\":1,\\"x\\": \\\\"'))

    assert decoded(value, ("x", "string"))["x"] == '"x":1,"x": \\'


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (event(x='"\\ud800"'), ""),
        (event(x='"\\udc00\\ud800"'), ""),
        (event(x='"y"').encode().replace(b"y", b"\xff"), ""),
        (event(x='"y"').encode().replace(b"y", b"\xc0\xaf"), ""),
        (event(x='"\x01"'), ""),
        (event(x="NaN"), ""),
        (event(x="Infinity"), ""),
        (event(x="01"), ""),
        (event(x="+1"), ""),
        (event(x=".5"), ""),
        (event(x='"y"') + "{}", ""),
        (event(x="[" * 65 + "]" * 65), ""),
        (event(x="[" * 100_000), ""),
    ],
)
@pytest.mark.parametrize("own_id", [False, True])
def test_what_is_no_json_is_hostile(raw: str | bytes, path: str, own_id: bool) -> None:
    rules = msgspec.structs.replace(RULES, event_id="id") if own_id else RULES

    refused(outcome(contract(("x", "string"), rules=rules), raw, rules), HOSTILE, path)


def test_one_bad_event_among_a_thousand_is_one_refusal() -> None:
    made = contract(("x", "int"))
    raws = [event(id=f'"{index}"', x=str(index)).encode() for index in range(1000)]
    raws[617] = event(x="true").encode()

    outcomes = made.encode(Identifier(RULES).identify(raws))

    assert [index for index, found in enumerate(outcomes) if not isinstance(found, bytes)] == [617]


def test_a_refusal_never_quotes_the_event() -> None:
    for of in (
        "int",
        "string",
        ENUM,
        STAMP,
        decimal(5, 2),
        logical("string", "uuid"),
        "bytes",
        ["null", "int", "string"],
    ):
        for text in ('"secret"', '{"secret":"secret"}', '["secret"]'):
            found = outcome(contract(("x", of)), event(x=text))
            assert not isinstance(found, RejectedEvent) or "secret" not in found.detail


def test_the_value_is_framed_by_the_schema_s_id() -> None:
    value = outcome(contract(), event())

    assert isinstance(value, bytes)
    assert value[:5] == b"\x00\x00\x00\x01\x02"
    assert decoded(value)["id"] == "a"


def test_a_sighting_s_own_refusal_comes_back() -> None:
    (sighting,) = Identifier(RULES).identify([b"null"])

    assert contract().encode([sighting]) == [sighting.refusal]


def test_a_declared_offset_serves_stamps_without_one() -> None:
    rules = msgspec.structs.replace(RULES, utc_offset_minutes=60)
    value = outcome(contract(rules=rules), event(at='"2026-11-03T13:34:56"'), rules)

    assert decoded(value)["at"].isoformat() == "2026-11-03T12:34:56+00:00"


# Deletes


def test_a_delete_that_gives_only_the_key_is_a_tombstone() -> None:
    assert outcome(contract(("x", "int")), event(op='"d"')) is None


def test_a_tombstone_carries_no_invented_defaults() -> None:
    assert outcome(contract(("x", ["null", "int"], None)), event(op='"d"')) is None


def test_a_delete_with_its_row_travels_with_its_row() -> None:
    assert decoded(outcome(contract(("x", "int")), event(op='"d"', x="5")), ("x", "int"))["x"] == 5


def test_a_delete_whose_other_members_are_null_gives_only_the_key() -> None:
    assert outcome(contract(("x", "int")), event(op='"d"', x="null")) is None
    nullable = ("x", ["null", "int"])
    assert decoded(outcome(contract(nullable), event(op='"d"', x="null")), nullable)["x"] is None


def test_a_delete_with_a_row_that_does_not_fit_is_refused() -> None:
    refused(outcome(contract(("x", "int")), event(op='"d"', x='"y"')), INVALID, "/x")
    refused(outcome(contract(("x", "int")), event(op='"d"', y="1")), INVALID, "/x")


def test_a_tombstone_s_key_must_fit_the_schema() -> None:
    refused(outcome(contract(("x", "int")), event(op='"d"', id="7")), INVALID, "/id")


def test_a_delete_with_a_repeated_name_is_hostile() -> None:
    refused(outcome(contract(("x", "int")), event(op='"d"')[:-1] + ',"op":"d"}'), HOSTILE, "")


# Beyond what is compiled

PAIR = {"type": "record", "name": "Pair", "fields": [{"name": "a", "type": "int"}]}
OTHER = {
    "type": "record",
    "name": "Other",
    "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "int", "default": 0}],
}


@pytest.mark.parametrize(
    ("union", "text", "value"),
    [
        (["null", "string", "long"], "5", 5),
        (["null", "string", "long"], '"5"', "5"),
        (["long", "double"], "5", 5),
        (["long", "double"], "5.0", 5.0),
        (["string", "double"], "5", 5.0),
        ([PAIR, "string"], '{"a":1}', {"a": 1}),
        ([PAIR, OTHER], '{"a":1,"b":2}', {"a": 1, "b": 2}),
        (["int", STRINGS], '["x"]', ["x"]),
    ],
)
def test_exactly_one_branch_of_a_union_fits(union: Any, text: str, value: Any) -> None:
    made = contract(("x", union))

    assert made.general
    assert "/x" in made.reasons[0]
    assert decoded(outcome(made, event(x=text)), ("x", union))["x"] == value


@pytest.mark.parametrize(
    ("union", "text"),
    [
        (["null", "long", "double"], "9223372036854775808"),
        (["int", "long"], "5"),
        (["float", "double"], "1.5"),
        (["string", ENUM], '"red"'),
        ([PAIR, OTHER], '{"a":1}'),
        (["long", "string"], "true"),
        (["long", "string"], "null"),
        (["string", "bytes"], '"QQ=="'),
    ],
)
def test_a_value_that_fits_no_branch_or_two_is_refused(union: Any, text: str) -> None:
    refused(outcome(contract(("x", union)), event(x=text)), INVALID, "/x")


NODE = {
    "type": "record",
    "name": "Node",
    "fields": [{"name": "v", "type": "int"}, {"name": "next", "type": ["null", "Node"]}],
}


def test_a_record_may_contain_itself_down_to_the_bound() -> None:
    made = contract(("x", NODE))

    def nested(levels: int) -> str:
        return event(x='{"v":1,"next":' * levels + "null" + "}" * levels)

    assert made.general
    assert isinstance(outcome(made, nested(60)), bytes)
    refused(outcome(made, nested(64)), HOSTILE, "")
    refused(outcome(made, nested(20_000)), HOSTILE, "")


def test_nested_unions_are_tried_once_per_value_and_not_for_every_path_to_it() -> None:
    def side(name: str) -> dict[str, Any]:
        return {"type": "record", "name": name, "fields": [{"name": "v", "type": ["null", "Left", "Right"]}]}

    made = contract(("x", {**side("Left"), "fields": [{"name": "v", "type": ["null", "Left", side("Right")]}]}))

    refused(outcome(made, event(x='{"v":' * 60 + "null" + "}" * 60)), INVALID, "/x/v")


def test_a_name_without_namespace_beside_one_with() -> None:
    bare = {"type": "record", "name": "Bare", "namespace": "", "fields": [{"name": "a", "type": "int"}]}
    fields = (("x", ["null", bare, "string"]), ("y", ["null", "string", "long"]))

    assert isinstance(outcome(contract(*fields), event(x='{"a":1}', y="1")), bytes)


def test_a_schema_that_explodes_when_written_out_takes_the_general_path() -> None:
    def doubled(level: int) -> dict[str, Any]:
        left: Any = "int" if level == 0 else doubled(level - 1)
        right = "int" if level == 0 else f"R{level - 1}"
        fields = [{"name": "l", "type": left}, {"name": "r", "type": right}]
        return {"type": "record", "name": f"R{level}", "fields": fields}

    assert "when written out" in contract(("x", doubled(10))).reasons[0]
    with pytest.raises(ContractError, match="columns"):
        contract(("x", doubled(40)))


@pytest.mark.parametrize(("levels", "general"), [(15, False), (16, True), (60, True)])
def test_arrays_of_arrays_are_compiled_as_deep_as_python_can(levels: int, general: bool) -> None:
    of: Any = "int"
    for _ in range(levels):
        of = {"type": "array", "items": ["null", of] if levels > 16 and of != "int" else of}
    made = contract(("x", of))

    assert made.general is general
    assert isinstance(outcome(made, event(x="[" * levels + "7" + "]" * levels)), bytes)


# What a contract will not start with


@pytest.mark.parametrize(
    ("text", "rules", "match"),
    [
        ("{", {}, "no JSON"),
        ('"string"', {}, "record"),
        ('{"type":"record","name":"A","fields":[{"name":"id","type":"nope"}]}', {}, "Avro"),
        ("[" * 100_000, {}, "no JSON|Avro"),
        (schema(), {"key": ("nope",)}, "key field 'nope' is not in the schema"),
        (schema(("k", ["null", "string"])), {"key": ("k",)}, "may be null"),
        (schema(("k", "double")), {"key": ("k",)}, "several spellings"),
        (schema(("k", STAMP)), {"key": ("k",)}, "several spellings"),
        (schema(("k", decimal(5, 2))), {"key": ("k",)}, "several spellings"),
        (schema(), {"version": "v"}, "on_unknown_field: ignore"),
        (schema(at="long"), {}, "format iso8601"),
        (schema(at=STAMP), {"updated_at_format": "epoch_ms"}, "format epoch_ms"),
        (schema(at=STAMP), {"updated_at_format": "epoch_s"}, "format epoch_s"),
        (schema(("_rank", "long")), {}, "_rank"),
        (schema(("ID", "long")), {}, "ID"),
        (schema(("x", "int", "one")), {}, "Default value"),
        (schema(("x", decimal(0, 0))), {}, "precision"),
        (schema(("x", {"type": "array", "items": "null"})), {}, "bounded"),
        (schema(), {"depth_max": 10_000}, "depth"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_refused_at_start(text: str, rules: dict[str, Any], match: str) -> None:
    with pytest.raises(ContractError, match=match):
        compile_contract(msgspec.structs.replace(RULES, **rules), text, "things-value", 1)


@pytest.mark.parametrize(("format", "name"), [("epoch_ms", "timestamp-millis"), ("epoch_us", "timestamp-micros")])
def test_an_epoch_in_the_type_s_own_unit_is_fine(format: Any, name: str) -> None:
    rules = msgspec.structs.replace(RULES, updated_at_format=format)
    made = compile_contract(rules, schema(at=logical("long", name)), "things-value", 1)

    assert isinstance(outcome(made, event(at="1793709296000"), rules), bytes)


def test_the_fingerprint_changes_with_whatever_may_change_a_judgement() -> None:
    same = compile_contract(RULES, json.dumps(json.loads(schema()), indent=2), "other", 9).fingerprint
    others = [
        contract(("x", "int")).fingerprint,
        contract(("x", "int", 1)).fingerprint,
        contract(rules=msgspec.structs.replace(RULES, on_unknown_field="ignore")).fingerprint,
        contract(rules=msgspec.structs.replace(RULES, utc_offset_minutes=0)).fingerprint,
    ]

    assert contract().fingerprint == same
    assert len({same, *others}) == 5


def test_fields_named_like_python_s_own_words_are_only_names() -> None:
    names = [
        "class",
        "None",
        "self",
        "raw",
        "raws",
        "quotes",
        "decode",
        "event",
        "len",
        "V",
        "join",
        "_",
        "__init__",
        "x__y",
    ]
    fields = [(name, "string") for name in names] + [
        ("x", {"type": "record", "name": "X", "fields": [{"name": "z", "type": "string"}]})
    ]
    members = {name: json.dumps(f"value of {name}") for name in names} | {"x": '{"z":"in"}'}

    made = contract(*fields)
    (value,) = made.encode(Identifier(RULES).identify([event(**members).encode()]))

    assert not made.general
    assert {name: decoded(value, *fields)[name] for name in names} == {name: f"value of {name}" for name in names}
