"""The rows of tables that ``deltalake`` does not scan, read from the log and its files. What Spark wrote is read in
tests/lake/test_widened.py."""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from pyroaring import BitMap64

from shared.lake.layout import commit_file
from shared.lake.reader import LakeTable, LakeUnavailable
from shared.lake.widened import _B85, _Z85, UnknownToReader, Vector, deleted

ROWS = 5
_TO_Z85 = str.maketrans(_B85, _Z85)


def z85(content: bytes) -> str:
    return base64.b85encode(content + b"\0" * (-len(content) % 4)).decode().translate(_TO_Z85)


def vector_bytes(numbers: list[int], magic: int = 1681511377) -> bytes:
    return struct.pack("<i", magic) + BitMap64(numbers).serialize()


def inline(numbers: list[int], **other: Any) -> dict[str, Any]:
    content = vector_bytes(numbers)
    return {
        "storageType": "i",
        "pathOrInlineDv": z85(content),
        "sizeInBytes": len(content),
        "cardinality": len(numbers),
    } | other


def on_disk(folder: Path, numbers: list[int]) -> dict[str, Any]:
    content, name = vector_bytes(numbers), uuid4()
    (folder / "ab").mkdir()
    file = folder / "ab" / f"deletion_vector_{name}.bin"
    file.write_bytes(b"\1" + struct.pack(">i", len(content)) + content + b"\0\0\0\0")
    words = {"storageType": "u", "pathOrInlineDv": "ab" + z85(name.bytes), "offset": 1}
    return words | {"sizeInBytes": len(content), "cardinality": len(numbers)}


def made(folder: Path) -> None:
    """Two commits with an int32 column; one file each."""
    for first in (0, ROWS):
        numbers = range(first, first + ROWS)
        frame = pl.DataFrame({"id": numbers, "limit": numbers}, schema={"id": pl.Int64, "limit": pl.Int32})
        write_deltalake(str(folder), frame, mode="append")


def widen(folder: Path, vectors: Mapping[int, dict[str, Any]] = {}) -> None:
    """One more commit, as Spark writes it: "limit" becomes a long; file ``n`` gets ``vectors[n]``."""
    log = [json.loads(line) for line in Path(commit_file(str(folder), 0)).read_text().splitlines()]
    metadata = next(line["metaData"] for line in log if "metaData" in line)
    schema = json.loads(metadata["schemaString"])
    schema["fields"][1] |= {
        "type": "long",
        "metadata": {"delta.typeChanges": [{"fromType": "integer", "toType": "long"}]},
    }
    features = ["typeWidening", "deletionVectors"]
    lines: list[dict[str, Any]] = [
        {"commitInfo": {"timestamp": 1, "operation": "CHANGE COLUMN"}},
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        },
        {"metaData": metadata | {"schemaString": json.dumps(schema)}},
    ]
    for number, vector in vectors.items():
        [add] = [
            json.loads(line)["add"]
            for line in Path(commit_file(str(folder), number)).read_text().splitlines()
            if '"add"' in line
        ]
        lines.append({"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}})
        lines.append({"add": add | {"deletionVector": vector}})
    version = DeltaTable(str(folder)).version() + 1
    Path(commit_file(str(folder), version)).write_text("\n".join(map(json.dumps, lines)))


def opened(folder: Path) -> LakeTable:
    found = LakeTable.open(f"file://{folder}", {})
    assert found is not None
    return found


def found(table: LakeTable, *columns: str, where: str = "") -> list[tuple[Any, ...]]:
    return sorted(row for rows in table.rows(columns or ("id", "limit"), where) for row in rows)


def test_without_deletions_a_widened_table_reads_as_it_did_before(tmp_path: Path) -> None:
    made(tmp_path)
    before = found(opened(tmp_path))
    widen(tmp_path)

    assert found(opened(tmp_path)) == before == [(number, number) for number in range(2 * ROWS)]
    assert found(opened(tmp_path), "limit", where="CAST(\"id\" AS VARCHAR) = '7'") == [(7,)]


def test_deleted_rows_are_left_out_wherever_their_vector_lies(tmp_path: Path) -> None:
    made(tmp_path)
    widen(tmp_path, {0: inline([0, 3]), 1: on_disk(tmp_path, [1])})

    assert [row[0] for row in found(opened(tmp_path))] == [1, 2, 4, 5, 7, 8, 9]


def test_below_a_checkpoint_the_log_is_not_needed(tmp_path: Path) -> None:
    made(tmp_path)
    DeltaTable(str(tmp_path)).create_checkpoint()
    widen(tmp_path, {0: inline([4])})
    table = opened(tmp_path)
    Path(commit_file(str(tmp_path), 0)).unlink()

    assert [row[0] for row in found(table)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_a_log_with_a_hole_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    widen(tmp_path)
    table = opened(tmp_path)
    Path(commit_file(str(tmp_path), 0)).unlink()

    with pytest.raises(LakeUnavailable, match="commit 0 is gone from the log"):
        found(table)


def test_a_column_of_rows_before_it_came_is_null_and_one_of_structs_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    more = pl.DataFrame({"id": [99], "limit": [99], "later": ["x"], "deep": [{"a": 1}]}).cast({"limit": pl.Int32})
    write_deltalake(str(tmp_path), more, mode="append", schema_mode="merge")
    file = Path(commit_file(str(tmp_path), 2))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    features = {"readerFeatures": ["typeWidening"], "writerFeatures": ["typeWidening"]}
    file.write_text("\n".join(map(json.dumps, [*lines, {"protocol": protocol | features}])))
    table = opened(tmp_path)

    assert found(table, "id", "later", where='"id" > 8') == [(9, None), (99, "x")]
    with pytest.raises(LakeUnavailable, match="column deep of type"):
        found(table, "deep")


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        (inline([1], cardinality=2), "1 rows that should name 2"),
        (inline([1], storageType="p", pathOrInlineDv="s3://else/where.bin"), "outside the table"),
        (inline([1], sizeInBytes=1 << 30), "bytes; 268435456 are read"),
        (inline([1], sizeInBytes=1_000), "is cut after"),
        (inline([1], pathOrInlineDv=z85(vector_bytes([1], magic=7))), "of format 7"),
    ],
)
def test_a_vector_that_is_not_understood_is_refused(vector: dict[str, Any], complaint: str) -> None:
    described = Vector(vector["storageType"], vector["pathOrInlineDv"], vector["sizeInBytes"], vector["cardinality"])

    with pytest.raises(UnknownToReader, match=complaint):
        deleted(NoFiles(), described)


class NoFiles:
    def open_input_file(self, path: str) -> Any:
        raise FileNotFoundError(path)
