"""Raw rows: polars and the general path write the same, corrupt bytes are found, and nothing else is called corrupt."""

import contextlib
import io
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.events.columnar import Columnar, Doubtful
from shared.events.columns import LINEAGE, check_columns
from shared.events.flatten import (
    Flattened,
    Flattener,
    KeyContract,
    Origin,
    flatten_batch,
    schema_id_of,
    schema_ids,
)
from shared.events.lineage import Lineage
from shared.events.rows import BadBody, RowReader
from shared.events.schema import ContractError, parse
from tests.unit.events_schemas import AvroType, Sample, avro_types, event_type

FEW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
ORIGIN = Origin("cdc.things", 3, 5)
FLAT = json.dumps(
    {
        "type": "record",
        "name": "Thing",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "on", "type": "boolean"},
            {"name": "count", "type": "int"},
            {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["red", "green"]}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "note", "type": ["null", "string"]},
        ],
    }
)
GOOD = {"id": 7, "on": True, "count": -1, "colour": "green", "at": 0, "note": "x"}


@dataclass
class Record:
    offset: int = 0
    timestamp: int = 1_793_709_296_123
    key: bytes | None = b"7"
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = (
        ("tm-event-id", b"0f" * 16),
        ("tm-seq", b"1793709296123456.9"),
        ("tm-op", b"u"),
    )


def body_of(datum: Any, schema: str = FLAT) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(schema)), datum)
    return out.getvalue()


def framed(body: bytes, schema_id: int = 1) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big") + body


def flatten(records: list[Record], schema: str = FLAT, key: tuple[str, ...] = ("id",)) -> Flattened:
    flatteners = {schema_id: Flattener(schema, schema_id) for schema_id in schema_ids(records)}
    return flatten_batch(ORIGIN, records, flatteners, KeyContract(key, schema))


def rows(flattened: Flattened) -> list[dict[str, Any]]:
    return [json.loads(line) for line in flattened.body.splitlines()]


def lineage_of(count: int) -> Lineage:
    return Lineage.of(ORIGIN, 1, [Record()] * count)


@st.composite
def batches(draw: st.DrawFn, *, maps: bool) -> tuple[AvroType, list[Sample]]:
    made = event_type(draw(avro_types(maps=maps)))
    return made, draw(st.lists(made.samples, min_size=1, max_size=4))


@FEW
@given(batches(maps=True))
def test_a_row_shows_what_was_written(batch: tuple[AvroType, list[Sample]]) -> None:
    made, samples = batch
    reader = RowReader(parse(json.dumps(made.schema)))

    for sample in samples:
        assert reader.row(body_of(sample.datum, json.dumps(made.schema))) == sample.cells
    assert reader.columns == made.columns


@FEW
@given(batches(maps=False))
def test_polars_and_the_general_path_write_the_same_rows(batch: tuple[AvroType, list[Sample]]) -> None:
    made, samples = batch
    columnar = Columnar(parse(json.dumps(made.schema)))

    lines = columnar.lines([body_of(s.datum, json.dumps(made.schema)) for s in samples], lineage_of(len(samples)))

    assert columnar.reasons == ()
    for line, sample in zip(lines, samples, strict=True):
        row = json.loads(line)
        assert list(row) == [*made.columns, *LINEAGE]
        assert {name: row[name] for name in made.columns} == sample.cells


@FEW
@given(st.lists(st.sampled_from(["good", "tombstone", "bad", "other", "naked"]), min_size=1, max_size=40))
def test_rows_keep_the_records_order_whatever_alternates(kinds: list[str]) -> None:
    values = {
        "good": framed(body_of(GOOD)),
        "other": framed(body_of(GOOD), 2),
        "tombstone": None,
        "bad": framed(body_of(GOOD) + b"\x00"),
        "naked": b"{}",
    }
    records = [Record(offset=100 + index, value=values[kind]) for index, kind in enumerate(kinds)]

    flattened = flatten(records)

    bad = [index for index, kind in enumerate(kinds) if kind in ("bad", "naked")]
    assert [failed.index for failed in flattened.undecodable] == bad
    assert [row["_kafka_offset"] for row in rows(flattened)] == [
        record.offset for index, record in enumerate(records) if index not in bad
    ]
    assert flattened.rows == len(records) - len(bad)
    assert flattened.schema_ids == tuple(n for n, kind in ((1, "good"), (2, "other")) if kind in kinds)


@pytest.mark.parametrize("count", [1, 20])
def test_lineage_comes_last_and_in_the_designed_order(count: int) -> None:
    records = [Record(offset=index, value=framed(body_of(GOOD))) for index in range(count)]

    (row, *_) = rows(flatten(records))

    assert list(row) == ["id", "on", "count", "colour", "at", "note", *LINEAGE]
    assert row == {
        **GOOD,
        "at": "1970-01-01T00:00:00.000000Z",
        "_kafka_topic": "cdc.things",
        "_kafka_generation": 3,
        "_kafka_partition": 5,
        "_kafka_offset": 0,
        "_kafka_timestamp": "2026-11-03T12:34:56.123000Z",
        "_event_id": "0f" * 16,
        "_rank": 1793709296123456,
        "_tiebreak": 9,
        "_rev": 0,
        "_op": "u",
        "_schema_id": 1,
        "_attempt": 0,
    }


@pytest.mark.parametrize("count", [1, 20])
def test_a_record_without_our_headers_has_nulls(count: int) -> None:
    headers = (("tm-seq", b"x.1"), ("tm-event-id", b"\xff"), ("tm-rev", b"3"), ("tm-attempt", b"2"))
    records = [Record(value=framed(body_of(GOOD)), headers=headers) for _ in range(count)]

    (row, *_) = rows(flatten(records))

    assert [row[name] for name in ("_event_id", "_rank", "_tiebreak", "_op")] == [None] * 4
    assert (row["_rev"], row["_attempt"]) == (3, 2)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("string", b"a\xc3\xa9", "aé"),
        ("long", b"-9223372036854775808", -(2**63)),
        ("int", b"7", 7),
        ("boolean", b"true", True),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, b"a", "a"),
    ],
)
def test_a_tombstone_s_row_has_the_key_with_its_type(field: Any, text: bytes, value: Any) -> None:
    schema = json.dumps({"type": "record", "name": "T", "fields": [{"name": "k", "type": field}]})

    (row,) = rows(flatten([Record(key=text)], schema, ("k",)))

    assert list(row) == ["k", *LINEAGE]
    assert (row["k"], row["_op"], row["_schema_id"]) == (value, "d", None)


def test_a_composite_key_survives_the_way_to_text_and_back() -> None:
    (row,) = rows(flatten([Record(key=b'[7,true,"red"]')], key=("id", "on", "colour")))

    assert [row[name] for name in ("id", "on", "colour")] == [7, True, "red"]


@pytest.mark.parametrize("key", [None, b"", b"x", b"7.0", b"true", b"9223372036854775808", b"\xff", b"[7]", b" 7"])
def test_a_tombstone_whose_key_does_not_fit_is_undecodable(key: bytes | None) -> None:
    flattened = flatten([Record(key=key)])

    assert [failed.index for failed in flattened.undecodable] == [0]
    assert flattened.body == b""


LONG = 2**62


def varint(number: int) -> bytes:
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


BAD_BODIES = {
    "cut": body_of(GOOD)[:-1],
    "empty": b"",
    "left over": body_of(GOOD) + b"\x00",
    "boolean of 2": b"\x0e\x02\x01\x02\x00\x02\x02x",
    "int of 33 bits": b"\x0e\x01" + varint(2**32) + b"\x02\x00\x02\x02x",
    "enum beyond": b"\x0e\x01\x01\x04\x00\x02\x02x",
    "negative enum": b"\x0e\x01\x01\x01\x00\x02\x02x",
    "year 10000": b"\x0e\x01\x01\x02" + varint(253_402_300_800_000) + b"\x02\x02x",
    "no UTF-8": b"\x0e\x01\x01\x02\x00\x02\x02\xff",
    "endless varint": b"\xff" * 11,
    "huge string": b"\x0e\x01\x01\x02\x00\x02" + varint(2**40),
    "negative string": b"\x0e\x01\x01\x02\x00\x02\x01",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("batch", [1, 30])
def test_bytes_that_fail_under_their_schema_spoil_only_their_own_record(body: bytes, batch: int) -> None:
    records = [Record(offset=index, value=framed(body_of(GOOD))) for index in range(batch)]
    records.insert(batch // 2, Record(offset=1000, value=framed(body)))

    flattened = flatten(records)

    assert [failed.index for failed in flattened.undecodable] == [batch // 2]
    assert flattened.rows == batch


def test_a_byte_too_many_at_the_end_of_a_batch_is_noticed() -> None:
    records = [Record(offset=index, value=framed(body_of(GOOD))) for index in range(20)]
    records[-1].value = framed(body_of(GOOD) + b"\x00")  # nothing comes after it that it could shift

    assert [failed.index for failed in flatten(records).undecodable] == [19]


def test_one_bad_record_among_a_thousand_costs_one() -> None:
    records = [Record(offset=index, value=framed(body_of(GOOD))) for index in range(1000)]
    records[617].value = framed(BAD_BODIES["left over"])

    flattened = flatten(records)

    assert [failed.index for failed in flattened.undecodable] == [617]
    assert len(rows(flattened)) == 999


@pytest.mark.parametrize("value", [b"", b"\x00\x00\x00\x01", b"\x01\x00\x00\x00\x01", b'{"a":1}'])
def test_a_value_without_framing_is_undecodable_and_needs_no_schema(value: bytes) -> None:
    assert schema_id_of(value) is None
    assert schema_ids([Record(value=value)]) == frozenset()
    assert [failed.index for failed in flatten([Record(value=value)]).undecodable] == [0]


def test_an_unknown_schema_id_is_not_taken_for_corrupt_bytes() -> None:
    with pytest.raises(KeyError):
        flatten_batch(ORIGIN, [Record(value=framed(body_of(GOOD), 9))], {}, KeyContract(("id",), FLAT))


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
@pytest.mark.parametrize("count", [1, 20])
def test_what_json_can_t_say_of_a_double_is_a_string(value: float, shown: str, count: int) -> None:
    schema = json.dumps(
        {"type": "record", "name": "D", "fields": [{"name": "id", "type": "int"}, {"name": "x", "type": "double"}]}
    )
    records = [Record(value=framed(b"\x02" + struct.pack("<d", value))) for _ in range(count)]

    assert [row["x"] for row in rows(flatten(records, schema))] == [shown] * count


UNION = {
    "type": "record",
    "name": "ns.U",
    "fields": [
        {"name": "id", "type": "int"},
        {
            "name": "x",
            "type": [
                "null",
                "string",
                "long",
                {"type": "record", "name": "P", "fields": [{"name": "a", "type": "int"}]},
            ],
        },
        {"name": "many", "type": {"type": "array", "items": ["int", "string"]}},
    ],
}


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        (None, (None, None, None)),
        ("s", ("s", None, None)),
        (5, (None, 5, None)),
        ({"a": 1}, (None, None, 1)),
    ],
)
def test_a_union_of_several_has_one_column_per_branch(value: Any, cells: tuple[Any, ...]) -> None:
    schema = json.dumps(UNION)

    (row,) = rows(flatten([Record(value=framed(body_of({"id": 1, "x": value, "many": [1, "b"]}, schema)))], schema))

    assert list(row)[:5] == ["id", "x__v_string", "x__v_long", "x__v_P__a", "many"]
    assert tuple(row[name] for name in ("x__v_string", "x__v_long", "x__v_P__a")) == cells
    assert row["many"] == [{"v_int": 1, "v_string": None}, {"v_int": None, "v_string": "b"}]


TREE = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "id", "type": "int"}, {"name": "child", "type": ["null", "Tree"]}],
}


def test_a_record_that_contains_itself_is_json_text_where_it_does() -> None:
    tree = {"id": 1, "child": {"id": 2, "child": None}}

    (row,) = rows(flatten([Record(value=framed(body_of(tree, json.dumps(TREE))))], json.dumps(TREE)))

    assert json.loads(row["child"]) == tree["child"]


def test_whatever_depth_a_contract_accepts_is_read_again() -> None:
    levels = 99
    body = b"\x02\x02" * levels + b"\x02\x00"

    (row,) = rows(flatten([Record(value=framed(body))], json.dumps(TREE)))

    assert row["child"].count("{") == levels


def test_five_thousand_nested_records_are_refused_and_crash_nothing() -> None:
    body = b"\x02\x02" * 5_000 + b"\x02\x00"

    flattened = flatten([Record(value=framed(body))], json.dumps(TREE))

    assert "deeper" in flattened.undecodable[0].detail


@given(st.binary(max_size=60))
@FEW
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    reader = RowReader(parse(json.dumps(UNION)))
    with contextlib.suppress(BadBody):
        reader.row(body)


@given(st.integers(0, 40), st.binary(max_size=4), st.integers(0, 4))
@FEW
def test_polars_takes_no_body_of_another_length(at: int, put: bytes, cut: int) -> None:
    good = body_of({**GOOD, "note": None})
    changed = good[:at] + put + good[at + cut :]
    columnar, reader = Columnar(parse(FLAT)), RowReader(parse(FLAT))
    try:
        expected = reader.row(changed)
    except BadBody as bad:
        if "union" in str(bad):
            return  # polars reads an index beyond [null, T] as T
        with pytest.raises(Doubtful):
            columnar.lines([good, changed, good], lineage_of(3))
    else:
        row = json.loads(columnar.lines([good, changed, good], lineage_of(3))[1])
        assert {name: row[name] for name in expected} == expected


def versions(*fields: tuple[str, Any]) -> str:
    return json.dumps({"type": "record", "name": "V", "fields": [{"name": n, "type": t} for n, t in fields]})


NESTED = {"type": "record", "name": "N", "fields": [{"name": "b", "type": "int"}]}


@pytest.mark.parametrize(
    "schemas",
    [
        [versions(("a", NESTED), ("a__b", "int"))],
        [versions(("a", NESTED)), versions(("a__b", "int"))],
        [versions(("id", "int"), ("Id", "int"))],
        [versions(("id", "int")), versions(("ID", "int"))],
        [versions(("_op", "string"))],
        [versions(("_Rank", "string"))],
        [versions(("x", ["null", "string", "int"]), ("x__v_string", "int"))],
    ],
)
def test_columns_that_collide_are_refused(schemas: list[str]) -> None:
    with pytest.raises(ContractError, match="column"):
        check_columns(schemas)


def test_the_same_columns_in_many_versions_are_fine() -> None:
    check_columns([versions(("a", NESTED)), versions(("a", ["null", NESTED]), ("c", "int"))])


def test_an_array_of_nothing_is_refused_since_ten_bytes_could_claim_any_length() -> None:
    with pytest.raises(ContractError, match="bounded"):
        Flattener(versions(("a", {"type": "array", "items": "null"})), 1)
