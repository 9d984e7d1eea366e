"""Delta tables read without Spark: one version, its positions, its rows, its commits as far back as the log goes."""

from pathlib import Path

import pytest
from arro3.core import Array, DataType, Table
from deltalake import CommitProperties, DeltaTable, write_deltalake

from shared.lake.positions import Note, encode_note
from shared.lake.reader import HEAD_BYTES, LakeTable, LakeUnavailable, quoted, storage_options, text_literal
from shared.raw.keys import Chain

CHAIN = Chain("cdc.things", 1, 0)


def append(folder: Path, number: int, *, noted: bool = True) -> None:
    note = encode_note(Note(number - 1, {CHAIN: (number * 10, number * 10 + 10)}, {CHAIN: number * 10 + 10}))
    table = Table.from_pydict(
        {"odd name": Array([number], DataType.int64()), "_deleted": Array([False], DataType.bool())}
    )
    properties = CommitProperties(custom_metadata={"userMetadata": note}) if noted else None
    write_deltalake(str(folder), table, mode="append", commit_properties=properties)


def opened(folder: Path) -> LakeTable:
    found = LakeTable.open(f"file://{folder}", {})
    assert found is not None
    return found


def test_where_there_is_no_table_there_is_none(tmp_path: Path) -> None:
    assert LakeTable.open(f"file://{tmp_path}/nothing", {}) is None


def test_positions_and_rows_are_those_of_the_pinned_version(tmp_path: Path) -> None:
    for number in range(3):
        append(tmp_path, number)
    table = opened(tmp_path)
    append(tmp_path, 3)

    assert (table.version, table.positions()) == (2, {CHAIN: 30})
    assert sorted(row for rows in table.rows(["odd name"]) for row in rows) == [(0,), (1,), (2,)]
    assert [row for rows in table.rows(["odd name"], f"{quoted('odd name')} = 1") for row in rows] == [(1,)]
    assert (table.newest().version, table.newest().positions()) == (3, {CHAIN: 40})


def test_commits_are_read_newest_first_to_the_end_of_the_log(tmp_path: Path) -> None:
    count = 12
    for number in range(count):
        append(tmp_path, number, noted=number % 2 == 0)
    table = opened(tmp_path)

    assert [commit.version for commit in table.commits()] == list(range(count - 1, -1, -1))
    assert table.commit(count) is None
    assert table.committed_ms(0) is not None


def test_a_commit_whose_note_stands_far_behind_is_read_to_its_end(tmp_path: Path) -> None:
    append(tmp_path, 0)
    file = tmp_path / "_delta_log" / f"{0:020d}.json"
    info, *rest = file.read_text().splitlines()
    assert "commitInfo" in info
    padding = f'{{"txn":{{"appId":"{"x" * HEAD_BYTES}","version":1}}}}'
    file.write_text("\n".join([padding, *rest, info]))

    assert opened(tmp_path).positions() == {CHAIN: 10}
    file.write_text("\n".join(rest))
    assert opened(tmp_path).positions() == {}


def test_after_a_restore_the_positions_are_those_of_the_restored_version(tmp_path: Path) -> None:
    for number in range(3):
        append(tmp_path, number)
    DeltaTable(str(tmp_path)).restore(0)

    assert opened(tmp_path).positions() == {CHAIN: 10}


def test_a_file_that_is_gone_is_no_empty_table(tmp_path: Path) -> None:
    append(tmp_path, 0)
    table = opened(tmp_path)
    for file in tmp_path.glob("*.parquet"):
        file.unlink()

    with pytest.raises(LakeUnavailable):
        list(table.rows(["odd name"]))


def test_a_store_is_reached_as_the_environment_says() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "eu-west-1", "HOME": "/"}

    assert storage_options("file:///lake", environ) == {}
    assert storage_options("s3a://lake/x", environ) == {
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
    }
    assert (quoted('a"b'), text_literal("it's")) == ('"a""b"', "'it''s'")
