"""Avro versions → the lake's schema; what can't share a column is said so that a person knows what to do."""

import json
from typing import Any

import pytest

from services.delta_loader.schema import CORRUPT, DELETED, Breaking, lake_schema
from services.delta_loader.spark_types import ddl, from_json, quoted, to_json
from shared.events.columns import LINEAGE
from shared.events.schema import ContractError

DECIMAL = {"type": "bytes", "logicalType": "decimal"}
DATE = {"type": "int", "logicalType": "date"}
LOCAL = {"type": "long", "logicalType": "local-timestamp-micros"}


def avro(**fields: Any) -> str:
    named = [{"name": name, "type": kind} for name, kind in {"id": "long", **fields}.items()]
    return json.dumps({"type": "record", "name": "Thing", "fields": named})


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": one, "type": kind} for one, kind in fields.items()]}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def mapping(values: Any) -> dict[str, Any]:
    return {"type": "map", "values": values}


def types(*versions: str, keys: tuple[str, ...] = ("id",)) -> dict[str, str]:
    """The data columns, by name, as DDL."""
    lake = lake_schema(dict(enumerate(versions, start=1)), keys)
    members = from_json(lake.table_json).members
    return {one.name: ddl(one.type) for one in members if one.name not in (*LINEAGE, DELETED)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("int", "int"),
        (["null", "long"], "bigint"),
        ("float", "float"),
        ("bytes", "binary"),
        ({"type": "fixed", "name": "F", "size": 4}, "binary"),
        ({"type": "enum", "name": "F", "symbols": ["a"]}, "string"),
        (DECIMAL | {"precision": 38, "scale": 10}, "decimal(38,10)"),
        (DECIMAL | {"precision": 39}, "string"),
        ({"type": "string", "logicalType": "uuid"}, "string"),
        (DATE, "date"),
        ({"type": "long", "logicalType": "time-micros"}, "string"),
        ({"type": "long", "logicalType": "timestamp-millis"}, "timestamp"),
        (LOCAL, "timestamp_ntz"),
        (array(["null", "int"]), "array<int>"),
        (mapping(array("string")), "map<string, array<string>>"),
        (array(["null", "int", "string"]), "array<struct<`v_int`: int, `v_string`: string>>"),
        (array(record("R", a="int", b="null")), "array<struct<`a`: int>>"),
        (mapping(record("R")), "map<string, struct<`_empty`: boolean>>"),
        (mapping("null"), "map<string, string>"),
        (array(record("R", v="int", next=["null", "R"])), "array<struct<`v`: int, `next`: string>>"),
        (mapping(record("R", more=mapping("R"))), "map<string, struct<`more`: map<string, string>>>"),
    ],
    ids=repr,
)
def test_each_avro_type_has_a_column_type(kind: Any, expected: str) -> None:
    assert types(avro(x=kind))["x"] == expected


def test_records_and_unions_become_columns_and_what_is_always_null_does_not() -> None:
    inner = record("Inner", a="int", b=["null", record("Deep", c="string")])

    found = types(avro(inner=["null", inner], either=["int", "string"], nothing="null", empty=record("Empty")))

    assert found == {
        "id": "bigint",
        "inner__a": "int",
        "inner__b__c": "string",
        "either__v_int": "int",
        "either__v_string": "string",
    }


def test_a_record_inside_itself_is_text_from_where_it_repeats() -> None:
    found = types(avro(tree=record("Tree", v="long", next=["null", "Tree"])))

    assert found == {"id": "bigint", "tree__v": "bigint", "tree__next": "string"}


def test_keys_come_first_and_alone_are_never_null() -> None:
    lake = lake_schema({7: avro(name="string", region="string")}, ("region", "id"))

    table, read = from_json(lake.table_json).members, from_json(lake.read_json).members
    assert [one.name for one in table] == ["region", "id", "name", *LINEAGE, DELETED]
    assert [one.name for one in table if not one.nullable] == ["region", "id"]
    assert [one.name for one in read] == ["region", "id", "name", *LINEAGE, CORRUPT]
    assert all(one.nullable for one in read)
    assert lake.schema_ids == {7}


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        ("int", "long", "bigint"),
        ("long", "int", "bigint"),
        ("int", "double", "double"),
        ("float", "int", "double"),
        ("float", "double", "double"),
        (DECIMAL | {"precision": 9, "scale": 2}, DECIMAL | {"precision": 9, "scale": 4}, "decimal(11,4)"),
        (DECIMAL | {"precision": 40, "scale": 2}, DECIMAL | {"precision": 50, "scale": 2}, "string"),
        (DATE, LOCAL, "timestamp_ntz"),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, "string", "string"),
        ("null", ["null", "long"], "bigint"),
        (array("int"), array(["null", "long"]), "array<bigint>"),
        (mapping(record("R")), mapping(record("R", a="int")), "map<string, struct<`a`: int>>"),
        (
            array(record("R", a="int", b="string")),
            array(record("R", b="string", c="int", a="long")),
            "array<struct<`a`: bigint, `b`: string, `c`: int>>",
        ),
    ],
    ids=repr,
)
def test_versions_share_the_narrowest_column_that_holds_both(older: Any, newer: Any, expected: str) -> None:
    assert types(avro(x=older), avro(x=newer))["x"] == expected


def test_columns_stand_in_the_order_in_which_versions_brought_them() -> None:
    assert list(types(avro(a="int", b="int"), avro(c="int", b="int"), avro(d="int", a="int"))) == [
        "id",
        "a",
        "b",
        "c",
        "d",
    ]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("long", "double"),
        ("int", "string"),
        ("string", "bytes"),
        ("long", {"type": "long", "logicalType": "timestamp-micros"}),
        (DATE, {"type": "long", "logicalType": "timestamp-micros"}),
        (DECIMAL | {"precision": 38, "scale": 2}, DECIMAL | {"precision": 38, "scale": 4}),
        (DECIMAL | {"precision": 38}, DECIMAL | {"precision": 39}),
        (array("int"), "int"),
        (array("int"), mapping("int")),
        (array("int"), array(["null", "int", "string"])),
    ],
    ids=repr,
)
def test_what_no_column_holds_both_of_is_refused(older: Any, newer: Any) -> None:
    with pytest.raises(Breaking):
        types(avro(x=older), avro(x=newer))


def test_a_difference_names_column_types_and_versions_and_all_are_told_at_once() -> None:
    versions = {
        3: avro(a="int", items=array(record("R", price="int"))),
        4: avro(a="long"),
        9: avro(a="string", items=array(record("R", price="string"))),
    }

    with pytest.raises(Breaking) as refused:
        lake_schema(versions, ["id"])

    assert refused.value.differences == (
        "column a: bigint up to schema 4, string in schema 9",
        "column items.element.price: int up to schema 3, string in schema 9",
    )
    assert "Give the field a new name in a new schema version" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"_Deleted": "int"}, "a name that the lake needs"),
        ({"_corrupt_record": "int"}, "a name that the lake needs"),
        ({"_rank": "int"}, "lineage"),
        ({"a__b": "int", "a": record("R", b="int")}, "already has"),
        ({"items": array(record("R", Id="int", id="int"))}, "items.element: fields 'Id' and 'id' become one column"),
        ({"tick`": "int"}, "backtick"),
        ({"m": mapping(record("R", **{"tick`": "int"}))}, "backtick"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_that_no_table_can_have_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        types(avro(**fields))


def test_names_that_differ_by_case_over_versions_are_refused_inside_arrays_too() -> None:
    with pytest.raises(ContractError, match=r"items\.element"):
        types(avro(items=array(record("R", Id="int"))), avro(items=array(record("R", id="int"))))


def test_records_that_name_each_other_have_an_end() -> None:
    names = [f"R{index}" for index in range(9)]
    others: dict[str, Any] = {f"to_{name}": ["null", name] for name in names}
    made: Any = "int"
    for name in reversed(names):  # the first to be read is outermost, and all know all
        made = record(name, down=["null", made], **others)

    with pytest.raises(ContractError, match="more than"):
        types(avro(all=array(made)))


@pytest.mark.parametrize(("name", "mapped"), [("grün", False), ("select", False), ("a b", True), ("a=b", True)])
def test_odd_names_ask_for_column_mapping(name: str, mapped: bool) -> None:
    assert lake_schema({1: avro(**{name: "int"})}, ["id"]).column_mapping == mapped
    assert lake_schema({1: avro(m=mapping(array(record("R", **{name: "int"}))))}, ["id"]).column_mapping == mapped


def test_a_key_must_be_a_key_in_every_version() -> None:
    with pytest.raises(ContractError, match="key field 'name'"):
        types(avro(name="string"), avro(name=["null", "string"]), keys=("name",))


def test_a_schema_survives_its_way_through_json() -> None:
    lake = lake_schema({1: avro(x=array(mapping(record("R", a=DECIMAL | {"precision": 9}))))}, ["id"])

    assert to_json(from_json(lake.table_json)) == lake.table_json
    assert quoted("a`b") == "`a``b`"
