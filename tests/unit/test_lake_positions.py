"""How far a table is, by the notes of its commits."""

from typing import Any

import pytest

from shared.lake.layout import Lake, commit_file, for_s3_clients
from shared.lake.positions import (
    Commit,
    Known,
    Note,
    Positions,
    Ranges,
    advanced,
    carried,
    chain_of,
    commit_of,
    encode_note,
    parse_note,
    positions_at,
)
from shared.raw.keys import Chain

A, B = Chain("cdc.a", 1, 0), Chain("cdc.a", 1, 1)


class Log:
    """A table's commits, and how often each was read."""

    def __init__(self) -> None:
        self.commits: dict[int, Commit] = {}
        self.read_versions: list[int] = []

    @property
    def newest(self) -> int:
        return max(self.commits, default=-1)

    def read(self, version: int) -> Commit | None:
        self.read_versions.append(version)
        return self.commits.get(version)

    def add(self, info: dict[str, Any]) -> int:
        version = self.newest + 1
        self.commits[version] = commit_of(version, info)
        return version

    def merge(self, ranges: Ranges, base: int | None = None) -> int:
        """A writer that read the positions of ``base`` (the newest, unless told)."""
        base = self.newest if base is None else base
        note = Note(base, ranges, advanced(positions_at(base, self.commits.get), ranges))
        return self.add({"operation": "MERGE", "userMetadata": encode_note(note)})

    def restore(self, version: int) -> int:
        return self.add({"operation": "RESTORE", "operationParameters": {"version": str(version), "timestamp": None}})

    def positions(self) -> Positions:
        return positions_at(self.newest, self.read)


def test_the_newest_note_holds_and_one_commit_is_read() -> None:
    log = Log()
    log.add({"operation": "CREATE TABLE"})
    for start in range(0, 100, 10):
        log.merge({A: (start, start + 10)})

    assert log.positions() == {A: 100}
    assert log.read_versions == [10]


def test_commits_without_a_note_change_nothing() -> None:
    log = Log()
    log.merge({A: (0, 10)})
    log.add({"operation": "OPTIMIZE"})
    log.add({"operation": "SET TBLPROPERTIES", "userMetadata": "somebody's own words"})

    assert log.positions() == {A: 10}


def test_after_a_restore_the_positions_are_those_of_the_restored_version() -> None:
    log = Log()
    log.merge({A: (0, 10)})
    then = log.merge({A: (10, 20), B: (0, 5)})
    log.merge({A: (20, 30)})
    log.restore(then)
    after = log.positions()
    log.merge({A: (20, 25)})

    assert after == {A: 20, B: 5}
    assert log.positions() == {A: 25, B: 5}


def test_a_merge_that_a_restore_overtook_does_not_jump_over_what_is_missing_now() -> None:
    log = Log()
    then = log.merge({A: (0, 10)})
    base = log.merge({A: (10, 20)})
    log.restore(then)
    log.merge({A: (20, 30)}, base)

    assert log.positions() == {A: 10}


def test_two_writers_of_one_base_both_count() -> None:
    log = Log()
    base = log.merge({A: (0, 10)})
    log.merge({A: (10, 20)}, base)
    log.merge({B: (0, 7)}, base)

    assert log.positions() == {A: 20, B: 7}


def test_a_range_in_the_middle_of_a_chain_does_not_move_it() -> None:
    assert advanced({A: 10}, {A: (12, 20), B: (5, 9)}) == {A: 10}
    assert advanced({A: 10}, {A: (3, 8)}) == {A: 10}
    assert advanced({A: 10}, {A: (3, 12), B: (0, 9)}) == {A: 12, B: 9}


def test_a_full_refresh_sets_the_positions_even_back() -> None:
    log = Log()
    base = log.merge({A: (0, 50)})
    note = Note(base, {}, {A: 40}, replaces=True)
    log.add({"operation": "WRITE", "operationParameters": {"mode": "Overwrite"}, "userMetadata": encode_note(note)})
    log.merge({A: (50, 60)}, base)

    assert log.positions() == {A: 40}


@pytest.mark.parametrize(
    "info",
    [
        {"operation": "CREATE OR REPLACE TABLE AS SELECT"},
        {"operation": "WRITE", "operationParameters": {"mode": "Overwrite"}},
        {"operation": "RESTORE", "operationParameters": {"version": None, "timestamp": "2026-01-01"}},
        {"operation": "RESTORE", "operationParameters": {"version": "99"}},
    ],
)
def test_after_a_foreign_overwrite_nothing_is_known_to_be_in_the_table(info: dict[str, Any]) -> None:
    log = Log()
    log.merge({A: (0, 10)})
    log.add(info)

    assert log.positions() == {}


def test_a_log_that_is_not_retained_says_nothing_unless_maintenance_carried_the_note_on() -> None:
    log = Log()
    log.merge({A: (0, 10)})
    log.merge({A: (10, 20)})
    log.add({"operation": "OPTIMIZE"})
    kept = Log()
    kept.commits = {2: log.commits[2]}
    carrying = Log()
    carrying.commits = {3: commit_of(3, {"operation": "OPTIMIZE", "userMetadata": encode_note(carried(2, {A: 20}))})}

    assert kept.positions() == {}
    assert carrying.positions() == {A: 20}


def test_what_is_known_of_a_version_spares_the_way_back() -> None:
    log = Log()
    base = log.merge({A: (0, 10)})
    log.merge({A: (10, 20)})
    log.merge({B: (0, 5)}, base)

    assert positions_at(log.newest, log.read, Known(1, {A: 20})) == {A: 20, B: 5}
    assert set(log.read_versions) <= {1, 2}


@pytest.mark.parametrize("text", [None, 7, "", "{}", '{"tidemark": 2}', '{"tidemark": 1, "base": "x"}', '"tidemark"'])
def test_what_is_no_note_of_ours_is_none(text: object) -> None:
    assert parse_note(text) is None


def test_a_note_comes_back_as_it_was_written() -> None:
    note = Note(7, {A: (0, 10)}, {A: 10, B: 2**60}, replaces=True)

    assert parse_note(encode_note(note)) == note
    assert chain_of("ns.cdc.a-b_c/12/3") == Chain("ns.cdc.a-b_c", 12, 3)
    with pytest.raises(ValueError, match="is no chain"):
        chain_of("cdc.a/x/0")


def test_addresses() -> None:
    lake = Lake("s3a://lake/x", "ns/")

    assert lake.table("accounts") == "s3a://lake/x/ns/lake/accounts"
    assert lake.history("accounts") == "s3a://lake/x/ns/lake/accounts_history"
    assert commit_file("f", 12) == "f/_delta_log/00000000000000000012.json"
    assert for_s3_clients("s3a://lake/x") == "s3://lake/x"
