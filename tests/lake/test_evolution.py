"""A table grows with the schema while drivers of the old one go on: at every level, by name, with nothing kept."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from services.delta_loader.merge import merge_rows, schema_of, with_deleted
from services.delta_loader.schema import READ_OPTIONS, LakeSchema, lake_schema
from services.delta_loader.session import table_session
from services.delta_loader.table import LakeTable

DECIMAL = {"type": "bytes", "logicalType": "decimal"}
OLD = {
    "id": "long",
    "count": "int",
    "share": "int",
    "ratio": "float",
    "price": DECIMAL | {"precision": 9, "scale": 2},
    "day": {"type": "int", "logicalType": "date"},
    "items": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [{"name": "n", "type": "int"}]}},
    "by name": {
        "type": "map",
        "values": {"type": "record", "name": "V", "fields": [{"name": "x", "type": ["null", "float"]}]},
    },
    "empty": {"type": "map", "values": {"type": "record", "name": "E", "fields": []}},
    "gone": ["null", "string"],
}
NEW = {
    "id": "long",
    "count": "long",
    "share": "double",
    "ratio": "double",
    "price": DECIMAL | {"precision": 12, "scale": 4},
    "day": {"type": "long", "logicalType": "local-timestamp-micros"},
    "items": {
        "type": "array",
        "items": {
            "type": "record",
            "name": "Item",
            "fields": [
                {"name": "unit price", "type": DECIMAL | {"precision": 5, "scale": 2}},
                {"name": "n", "type": "long"},
                {"name": "tags", "type": {"type": "map", "values": "string"}},
            ],
        },
    },
    "by name": {
        "type": "map",
        "values": {
            "type": "record",
            "name": "V",
            "fields": [{"name": "x", "type": ["null", "double"]}, {"name": "y", "type": "string"}],
        },
    },
    "empty": {
        "type": "map",
        "values": {"type": "record", "name": "E", "fields": [{"name": "select", "type": "long"}]},
    },
    "at": {"type": "long", "logicalType": "local-timestamp-millis"},
    "it's": {"type": "array", "items": {"type": "record", "name": "N", "fields": [{"name": "a", "type": "int"}]}},
}


def avro(fields: dict[str, Any]) -> str:
    named = [{"name": name, "type": kind} for name, kind in fields.items()]
    return json.dumps({"type": "record", "name": "Thing", "fields": named})


def row(key: int, rank: int, schema_id: int, **fields: Any) -> dict[str, Any]:
    order = {"_rank": rank, "_tiebreak": 0, "_rev": 0, "_event_id": "e", "_op": "u", "_schema_id": schema_id}
    return {"id": key, **fields, **order}


def old_row(key: int, rank: int) -> dict[str, Any]:
    return row(
        key,
        rank,
        1,
        count=7,
        share=2**31 - 1,
        ratio=0.10000000149011612,
        price="-1.25",
        day="0001-01-01",
        items=[{"n": 1}, {"n": -(2**31)}],
        **{"by name": {"k": {"x": "NaN"}, "l": None}, "empty": {"e": {}, "f": None}},
        gone="old",
    )


NEW_FIELDS: dict[str, Any] = {
    "count": 2**63 - 1,
    "share": 0.5,
    "ratio": 0.1,
    "price": "12345678.1234",
    "day": "2026-11-03T12:34:56.123456",
    "items": [{"unit price": "1.25", "n": 2**40, "tags": {"": "x"}}],
    "by name": {"k": {"x": 1.5, "y": "why"}},
    "empty": {"e": {"select": 1}},
    "at": "1969-12-31T23:59:59.999000",
    "it's": [{"a": 1}],
}
SHOWN_OLD = {
    "count": 7,
    "share": 2.0**31 - 1,
    "ratio": 0.10000000149011612,
    "price": Decimal("-1.2500"),
    "day": datetime(1, 1, 1),
    "items": [{"n": 1, "unit price": None, "tags": None}, {"n": -(2**31), "unit price": None, "tags": None}],
    "empty": [("e", {"_empty": None, "select": None}), ("f", None)],
    "gone": "old",
    "at": None,
    "it's": None,
}
SHOWN_NEW = NEW_FIELDS | {
    "price": Decimal("12345678.1234"),
    "day": datetime(2026, 11, 3, 12, 34, 56, 123456),
    "items": [{"unit price": Decimal("1.25"), "n": 2**40, "tags": [("", "x")]}],
    "by name": [("k", {"x": 1.5, "y": "why"})],
    "empty": [("e", {"_empty": None, "select": 1})],
    "gone": None,
    "at": datetime(1969, 12, 31, 23, 59, 59, 999000),
}


class Driver:
    def __init__(self, session: SparkSession, folder: Path, lake: LakeSchema) -> None:
        self.session, self.folder, self.lake = session, folder, lake
        self.table = LakeTable(session, str(folder / "table"))

    def load(self, *rows: dict[str, Any]) -> None:
        file = self.folder / f"{id(rows)}.ndjson"
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        raw = self.session.read.schema(schema_of(self.lake.read_json)).options(**READ_OPTIONS).json(str(file))
        merge_rows(self.session, self.table.path, with_deleted(raw), ["id"], None)

    def shown(self) -> dict[int, dict[str, Any]]:
        return {one["id"]: one for one in self.table.delta().toDF().toArrow().to_pylist()}


@pytest.mark.timeout(900)
def test_a_table_grows_and_old_drivers_go_on(spark: SparkSession, tmp_path: Path) -> None:
    session = table_session(spark)
    old = Driver(session, tmp_path, lake_schema({1: avro(OLD)}, ["id"]))
    new = Driver(session, tmp_path, lake_schema({1: avro(OLD), 2: avro(NEW)}, ["id"]))

    old.table.create(old.lake.table_json, ["id"], {"delta.columnMapping.mode": "name"})
    old.load(old_row(1, 1), old_row(2, 1))
    before = old.shown()
    assert new.table.fit(new.lake.table_json)
    assert not new.table.fit(new.lake.table_json)
    assert not old.table.fit(old.lake.table_json)
    new.load(row(2, 2, 2, **NEW_FIELDS), row(3, 2, 2, **NEW_FIELDS), old_row(4, 1), row(6, 1, 2, **NEW_FIELDS))
    old.load(old_row(5, 1), old_row(3, 3), old_row(6, 0))
    after = new.shown()

    assert before[1]["day"] == date(1, 1, 1)
    for key in (1, 3, 4, 5):
        assert after[key] | SHOWN_OLD == after[key], key
        (_, first), second = after[key]["by name"]
        assert (str(first), second) == ("{'x': nan, 'y': None}", ("l", None))
    for key in (2, 6):
        assert after[key] | SHOWN_NEW == after[key], key
    fields = [name for name in after[1] if not name.startswith("_")]
    assert fields == [*OLD, "at", "it's"], "a new column stands behind the others of the data, as in a new table"
