"""What stands in Delta is held against the batch's table and the bank: each kind of difference is named."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.demo.balance import Books, balance, render
from deploy.demo.lake import flat
from deploy.demo.lake_balance import BankState, LakeBalance, LakeBooks, lake_balance


def state(key: int, version: int, *, deleted: bool = False, **columns: Any) -> BankState:
    return BankState(
        key=str(key),
        version=version,
        event_ids=(f"e{key}.{version}",),
        columns={"id": key, "version": version, **columns},
        deleted=deleted,
    )


def row(key: int, version: int, *, deleted: bool = False, **columns: Any) -> dict[str, Any]:
    return {"id": key, "version": version, **columns, "_event_id": f"e{key}.{version}", "_deleted": deleted}


def books(shows: str = "events", **changes: Any) -> LakeBooks:
    """Three keys: changed, deleted, and one whose last change is set aside."""
    table = [row(1, 1), row(2, 1, deleted=True), row(3, 0)]
    bank = [state(1, 0), state(1, 1), state(2, 0), state(2, 1, deleted=True), state(3, 0), state(3, 1)]
    last = {"1": 1, "2": 1, "3": 1}
    if shows == "rows":
        bank = [one for one in bank if last[one.key] == one.version]
    whole = LakeBooks(
        entity="payments",
        shows="rows" if shows == "rows" else "events",
        keys=("id",),
        stream=table,
        batch=[dict(one) for one in reversed(table)],
        bank=bank,
        last=last,
        set_aside=frozenset(["e3.1"]),
    )
    return replace(whole, **changes)


def differences(books: LakeBooks) -> tuple[list[str], list[str]]:
    sheet = lake_balance(books)
    assert sheet.adds_up is not bool(sheet.unlike_bank or sheet.unlike_batch)
    return [*sheet.unlike_batch], [*sheet.unlike_bank]


@pytest.mark.parametrize("shows", ["events", "rows"])
def test_equal_tables_add_up_and_keys_are_counted(shows: str) -> None:
    sheet = lake_balance(books(shows))

    assert sheet.adds_up
    assert (sheet.live, sheet.deleted, sheet.set_aside) == (2, 1, 1)


def test_a_row_of_one_table_alone_is_named() -> None:
    whole = books()
    assert whole.stream is not None

    unlike_batch, unlike_bank = differences(replace(whole, stream=whole.stream[1:]))

    assert unlike_batch == ["key 1 is in the batch's table alone"]
    assert unlike_bank == ["key 1 is not in the table; the bank has version 1"]


def test_a_column_that_differs_is_named_lineage_included() -> None:
    whole = books()
    assert whole.batch is not None
    batch = [*whole.batch[:-1], {**whole.batch[-1], "_event_id": "other"}]

    unlike_batch, unlike_bank = differences(replace(whole, batch=batch))

    assert unlike_batch == ["key 1: _event_id is 'e1.1' in the stream's table, 'other' in the batch's"]
    assert unlike_bank == []


def test_a_column_that_one_table_lacks_is_named_though_its_value_is_null() -> None:
    whole = books()
    assert whole.stream is not None

    unlike_batch, _ = differences(replace(whole, stream=[{**one, "colour": None} for one in whole.stream]))

    assert "key 1: colour is None in the stream's table, no column in the batch's" in unlike_batch


def test_a_key_twice_and_a_table_that_is_not_there_are_named() -> None:
    whole = books()
    assert whole.stream is not None

    assert (
        "key 1 stands 2 times in the stream's table"
        in differences(replace(whole, stream=[*whole.stream, whole.stream[0]]))[0]
    )
    assert "the batch made no table" in differences(replace(whole, batch=None))[0]


@pytest.mark.parametrize("shows", ["events", "rows"])
def test_an_older_state_than_the_banks_is_a_fault(shows: str) -> None:
    table = [row(1, 0), row(2, 1, deleted=True), row(3, 0)]

    _, unlike_bank = differences(books(shows, stream=table, batch=table))

    assert unlike_bank == ["key 1, version 1: version is 0, but the bank says 1"]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_key_that_lives_on_one_side_alone_is_a_fault(deleted: bool) -> None:
    table = [row(1, 1, deleted=deleted), row(2, 1, deleted=deleted), row(3, 0)]

    _, unlike_bank = differences(books(stream=table, batch=table))

    assert len(unlike_bank) == 1
    assert f"_deleted is {deleted}, but the bank says {not deleted}" in unlike_bank[0]


def test_of_events_the_newest_change_that_is_not_set_aside_must_stand() -> None:
    older = [row(1, 1), row(2, 1, deleted=True)]

    assert differences(books(stream=older, batch=older))[1] == ["key 3 is not in the table; the bank has version 0"]
    assert differences(books(stream=older, batch=older, set_aside=frozenset(["e3.0", "e3.1"])))[1] == []


def test_what_is_set_aside_must_not_stand_there() -> None:
    table = [row(1, 1), row(2, 1, deleted=True), row(3, 1)]
    all_aside = frozenset(["e3.0", "e3.1"])

    assert differences(books(stream=table, batch=table, set_aside=all_aside))[1] == [
        "key 3 is in the table, and all its changes are parked or archived"
    ]
    assert differences(books("rows", stream=table, batch=table))[1] == [
        "key 3 stands at version 1, though version 1 is parked or archived"
    ]


def test_a_key_that_the_bank_never_had_is_a_fault() -> None:
    table = [row(1, 1), row(2, 1, deleted=True), row(3, 0), row(4, 0)]

    assert differences(books(stream=table, batch=table))[1] == ["key 4 is in the table, and the bank never had it"]


def one(held: Any, said: Any) -> list[str]:
    table = [{**row(1, 0), "value": held}]
    return differences(
        books(stream=table, batch=table, bank=[state(1, 0, value=said)], last={"1": 0}, set_aside=frozenset())
    )[1]


def test_values_are_compared_with_the_banks_json() -> None:
    said = flat('{"money": 12.50, "at": "2026-11-03T12:00:00.120Z", "on": "2026-11-03", "in": {"it": {"n": null}}}')
    assert said.keys() == {"money", "at", "on", "in__it__n"}

    assert one(Decimal("12.50"), said["money"]) == []
    assert one(datetime(2026, 11, 3, 12, 0, 0, 120_000, UTC), said["at"]) == []
    assert one(date(2026, 11, 3), said["on"]) == []
    assert one(None, said["in__it__n"]) == []
    assert one(Decimal("12.51"), said["money"]) != []
    assert one(datetime(2026, 11, 3, 12, 0, 0, 120_001, UTC), said["at"]) != []
    assert one(date(2026, 11, 4), said["on"]) != []
    assert one(datetime(2026, 11, 3, tzinfo=UTC), None) != []


def test_a_column_that_the_table_lacks_is_a_fault_unless_the_bank_says_null() -> None:
    table = [row(1, 0)]

    def lacking(value: object) -> list[str]:
        return differences(
            books(stream=table, batch=table, bank=[state(1, 0, note=value)], last={"1": 0}, set_aside=frozenset())
        )[1]

    assert lacking(None) == []
    assert lacking("rent") == ["key 1, version 0: note is no column, but the bank says 'rent'"]


def sheet_of(lake: LakeBalance) -> list[str]:
    empty = Books(entity="payments", shows="events", truth=[], seen=frozenset(), raw=[], parked=[], log={})
    return render([balance(empty)], [lake])


def test_the_sheet_tells_of_delta_and_still_ends_with_what_is_missing() -> None:
    whole = lake_balance(books())
    lines = sheet_of(whole)

    assert lines[-1] == "missing: 0"
    assert "The stream's tables, the batch's and the bank's own are equal, row for row." in lines
    assert any(line.split()[:2] == ["Delta:", "keys"] and line.split()[-1] == "2" for line in lines)

    lines = sheet_of(replace(whole, unlike_bank=["key 1 is not in the table; the bank has version 1"]))
    assert lines[-1] == "missing: 0"
    assert "THE BOOKS DO NOT ADD UP: see above." in lines
    assert any("key 1 is not in the table" in line for line in lines)
