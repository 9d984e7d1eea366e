"""Avro → raw rows → Spark → Delta: every value comes back equal, whatever its type. One wide table per path."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
import pytest
import zstandard
from deltalake import DeltaTable, QueryBuilder
from pyspark.sql import DataFrame, SparkSession

from services.delta_loader.merge import merge_rows, schema_of, with_deleted
from services.delta_loader.schema import CORRUPT, READ_OPTIONS, LakeSchema, lake_schema
from services.delta_loader.session import table_session
from services.delta_loader.table import LakeTable
from shared.events.columns import LINEAGE
from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch
from tests.lake.avro_values import NAMES, generated, long_bytes, same

ORIGIN = Origin("cdc.wide", 2, 7)
ROWS = 12  # enough for the sink to read them by columns
KEY = ("id",)


@dataclass(frozen=True)
class Record:
    offset: int
    value: bytes | None
    key: bytes
    op: bytes = b"u"
    timestamp: int = 1_793_709_296_123

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        return ("tm-event-id", b"0f" * 16), ("tm-seq", b"-9223372036854775808.9223372036854775807"), ("tm-op", self.op)


class Wide:
    """A schema of very many fields, rows under it, and what must be shown for them."""

    def __init__(self, fields: list[dict[str, Any]], bodies: list[bytes], cells: list[dict[str, Any]]) -> None:
        everything = [{"name": "id", "type": "long"}, *fields]
        self.schema = json.dumps({"type": "record", "name": "Wide", "fields": everything})
        self.expected = [{"id": index, **row} for index, row in enumerate(cells)] + [{"id": len(cells)}]
        values = [b"\x00\x00\x00\x00\x01" + long_bytes(index) + body for index, body in enumerate(bodies)]
        self.records = [Record(index, value, str(index).encode()) for index, value in enumerate(values)]
        self.records.append(Record(len(values), None, str(len(values)).encode(), b"d"))  # a tombstone

    @property
    def lake(self) -> LakeSchema:
        return lake_schema({1: self.schema}, KEY)

    def write(self, folder: Path, *, general: bool) -> str:
        flattener = Flattener(self.schema, 1)
        assert flattener.general == general, flattener.reasons
        flat = flatten_batch(ORIGIN, self.records, {1: flattener}, KeyContract(KEY, self.schema))
        assert not flat.undecodable
        file = folder / "00000000000000000000.ndjson.zst"
        file.write_bytes(zstandard.ZstdCompressor().compress(flat.body))
        return str(file)


def wide(shapes: int, *, plain: bool) -> Wide:
    found = generated(shapes, ROWS, plain=plain)
    names = [f"{NAMES[index % len(NAMES)]}{index}" for index in range(len(found))]
    fields = [{"name": name, "type": made.schema} for name, (made, _) in zip(names, found, strict=True)]
    rows = list(zip(*(samples for _, samples in found), strict=True))
    cells = [
        {
            f"{name}{'__' * bool(column)}{column}": cell
            for name, sample in zip(names, row, strict=True)
            for column, cell in sample.cells.items()
        }
        for row in rows
    ]
    return Wide(fields, [b"".join(sample.body for sample in row) for row in rows], cells)


def read(session: SparkSession, lake: LakeSchema, path: str) -> DataFrame:
    return session.read.schema(schema_of(lake.read_json)).options(**READ_OPTIONS).json(path)


def shown(frame: DataFrame) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = frame.toArrow().to_pylist()
    return sorted(found, key=lambda row: int(row["id"]))


def read_without_spark(path: str) -> list[dict[str, Any]]:
    """As the audit reads tables."""
    found = QueryBuilder().register("wide", DeltaTable(path)).execute("SELECT * FROM wide ORDER BY id").read_all()
    rows: list[dict[str, Any]] = pa.table(found).to_pylist()
    return rows


def differences(wide: Wide, rows: list[dict[str, Any]], types: dict[str, str]) -> Iterator[str]:
    """A column that a row has no cell for is null there."""
    for row, expected in zip(rows, wide.expected, strict=True):
        assert expected.keys() <= row.keys(), expected.keys() - row.keys()
        for name in row.keys() - set(LINEAGE) - {CORRUPT, "_deleted"}:
            if not same(row[name], expected.get(name)):
                yield f"row {row['id']}, {name} {types[name]}: {row[name]!r}, not {expected.get(name)!r}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shapes", "plain"), [(30, True), (60, False)], ids=["by_columns", "general"])
def test_every_value_comes_back_equal(spark: SparkSession, tmp_path: Path, shapes: int, plain: bool) -> None:
    session = table_session(spark)
    made = wide(shapes, plain=plain)
    path = made.write(tmp_path, general=not plain)

    raw = read(session, made.lake, path)
    types = dict(raw.dtypes)
    rows = shown(raw)
    table = LakeTable(session, str(tmp_path / "table"))
    table.create(made.lake.table_json, KEY, {"delta.columnMapping.mode": "name"} if made.lake.column_mapping else {})
    merge_rows(session, table.path, with_deleted(raw), KEY, None)
    stored = shown(table.delta().toDF())

    assert [row[CORRUPT] for row in rows] == [None] * len(made.records)
    assert "\n".join(differences(made, rows, types)) == ""
    assert "\n".join(differences(made, stored, types)) == ""
    assert "\n".join(differences(made, read_without_spark(table.path), types)) == ""
    assert [row["_deleted"] for row in stored] == [False] * ROWS + [True]
    assert stored[3] | LINEAGE_OF_3 == stored[3]
    assert stored[ROWS]["_schema_id"] is None


LINEAGE_OF_3 = {
    "_kafka_topic": "cdc.wide",
    "_kafka_generation": 2,
    "_kafka_partition": 7,
    "_kafka_offset": 3,
    "_kafka_timestamp": datetime(2026, 11, 3, 12, 34, 56, 123000, tzinfo=UTC),
    "_event_id": "0f" * 16,
    "_rank": -(2**63),
    "_tiebreak": 2**63 - 1,
    "_rev": 0,
    "_op": "u",
    "_schema_id": 1,
    "_attempt": 0,
}
