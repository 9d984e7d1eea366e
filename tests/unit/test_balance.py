"""The balance sheet turns red for each kind of hole, and for nothing else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from deploy.demo.balance import ArchivedItem, Balance, Books, ParkedItem, RawRow, Truth, balance, render


def truth(number: int) -> Truth:
    return Truth(name=f"change {number}", event_ids=(f"id{number}",))


def raw(number: int, offset: int | None = None) -> RawRow:
    return RawRow(event_id=f"id{number}", place=(0, number if offset is None else offset))


def books(**changes: object) -> Books:
    """Four changes: two in the lake, two parked."""
    whole = Books(
        entity="payments",
        shows="events",
        truth=[truth(number) for number in range(4)],
        seen=frozenset(f"id{number}" for number in range(4)),
        raw=[raw(0), raw(1)],
        parked=[
            ParkedItem(event_id="id2", reason="invalid"),
            ParkedItem(event_id="id3", reason="kafka_unknown", maybe_sent=True),
        ],
        log={0: range(2)},
    )
    return replace(whole, **changes)


def said(sheet: Balance) -> str:
    return "\n".join(render([sheet]))


def test_whole_books_add_up() -> None:
    sheet = balance(books())

    assert sheet.adds_up
    assert (sheet.truth, sheet.seen, sheet.raw, sheet.parked) == (4, 4, 2, 2)
    assert sheet.parked_by_reason == {"invalid": 1, "kafka_unknown": 1}
    assert render([sheet])[-1] == "missing: 0"


def test_a_seen_event_that_is_nowhere_is_missing() -> None:
    sheet = balance(books(seen=frozenset(["id0", "lost"])))

    assert not sheet.adds_up
    assert sheet.missing == ["a state since changed, seen as lost"]
    assert render([sheet])[-1] == "missing: 1"


def test_a_change_that_was_never_seen_is_missing() -> None:
    sheet = balance(books(truth=[*books().truth, truth(7)]))

    assert not sheet.adds_up
    assert sheet.missing == ["change 7, never seen"]
    assert "change 7" in said(sheet)


def test_any_of_the_ids_of_a_state_will_do() -> None:
    row = Truth(name="row 1, version 2", event_ids=("other", "id0"))
    others = books().truth[1:]

    assert balance(books(truth=[row, *others])).adds_up
    assert not balance(books(truth=[replace(row, event_ids=("other",)), *others])).adds_up


def test_an_event_in_two_places_is_named_with_its_reason_and_is_no_fault() -> None:
    sheet = balance(books(raw=[raw(0), raw(1), raw(3, 2)], log={0: range(3)}))

    assert sheet.adds_up
    assert sheet.twice == {"kafka_unknown": 1}
    assert "parked as kafka_unknown" in said(sheet)


def test_an_archived_event_whose_owner_was_told_is_accounted_for() -> None:
    sheet = balance(books(parked=books().parked[1:], archived=[ArchivedItem(event_id="id2", told=True)]))

    assert sheet.adds_up
    assert (sheet.parked, sheet.archived) == (1, 1)
    assert "in the raw bucket, parked or archived" in said(sheet)


def test_the_offset_of_an_archived_record_that_nothing_could_decode_is_accounted_for() -> None:
    item = ArchivedItem(event_id="id2", told=True, place=(0, 2))

    assert balance(books(archived=[item], log={0: range(3)})).adds_up
    assert not balance(books(log={0: range(3)})).adds_up


def test_an_archived_record_may_be_foreign_and_have_no_event_id() -> None:
    parked = books().parked
    foreign = [ArchivedItem(event_id=name, told=True, place=(0, 2 + at)) for at, name in enumerate(("", "", "x"))]

    assert balance(books(archived=foreign, log={0: range(5)})).adds_up
    sheet = balance(books(archived=[*foreign[:2], replace(foreign[0], told=False, place=(0, 4))], log={0: range(5)}))
    assert sheet.untold == ["offset 0/4"]
    waits = ParkedItem(event_id="", reason="undecodable", place=(0, 2))
    archived = [replace(foreign[0], told=False)]
    assert balance(books(parked=[*parked, waits], archived=archived, log={0: range(3)})).adds_up


def test_an_archived_event_that_is_still_parked_counts_as_parked() -> None:
    sheet = balance(books(archived=[ArchivedItem(event_id="id2", told=False)]))

    assert sheet.adds_up
    assert (sheet.parked, sheet.archived) == (2, 0)


def test_an_event_that_left_without_a_word_to_anybody_is_a_fault() -> None:
    sheet = balance(books(parked=books().parked[1:], archived=[ArchivedItem(event_id="id2", told=False)]))

    assert not sheet.adds_up
    assert (list(sheet.untold), list(sheet.missing)) == (["id2"], [])
    assert "nobody was told: id2" in said(sheet)


def test_an_archived_event_that_was_published_after_all_is_named_and_is_no_fault() -> None:
    sheet = balance(books(archived=[ArchivedItem(event_id="id1", told=False)]))

    assert sheet.adds_up
    assert sheet.redriven == 1
    assert "archived, and published since" in said(sheet)


def test_an_offset_without_a_raw_row_is_a_fault() -> None:
    sheet = balance(books(log={0: range(2), 1: range(5, 6)}))

    assert not sheet.adds_up
    assert sheet.offsets_missing == ["1/5"]


def test_an_offset_in_two_raw_rows_is_a_fault() -> None:
    sheet = balance(books(raw=[raw(0), raw(1), raw(1)]))

    assert not sheet.adds_up
    assert sheet.offsets_twice == ["0/1"]


def test_a_raw_row_of_no_offset_is_a_fault() -> None:
    sheet = balance(books(raw=[raw(0), raw(1), raw(1, 9)]))

    assert not sheet.adds_up
    assert sheet.offsets_unknown == ["0/9"]


def test_an_event_published_twice_is_counted_and_is_no_fault() -> None:
    sheet = balance(books(raw=[raw(0), raw(1), raw(1, 2)], log={0: range(3)}))

    assert sheet.adds_up
    assert (sheet.raw, sheet.raw_rows, sheet.repeated) == (2, 3, 1)


def test_a_raw_row_without_an_event_id_is_a_fault() -> None:
    sheet = balance(books(raw=[raw(0), raw(1), RawRow(event_id=None, place=(0, 2))], log={0: range(3)}))

    assert not sheet.adds_up
    assert "without an event id" in said(sheet)


def test_an_undecodable_record_accounts_for_its_offset() -> None:
    parked = [*books().parked, ParkedItem(event_id="", reason="undecodable", place=(0, 2))]

    assert balance(books(parked=parked, log={0: range(3)})).adds_up
    assert not balance(books(log={0: range(3)})).adds_up


def test_an_event_that_was_published_and_never_recorded_is_a_fault() -> None:
    sheet = balance(books(seen=frozenset(["id0", "id1", "id2"])))

    assert not sheet.adds_up
    assert sheet.unrecorded == ["id3"]
    assert "never recorded as seen: id3" in said(sheet)


def test_a_foreign_record_need_not_be_recorded_nor_known_to_the_bank() -> None:
    foreign = [ParkedItem(event_id=name, reason="undecodable", place=(0, 2 + at)) for at, name in enumerate(("", "x"))]

    assert balance(books(parked=[*books().parked, *foreign], log={0: range(4)})).adds_up


def test_two_changes_under_one_event_id_are_a_fault() -> None:
    changes = [Truth(name=f"change {number}", event_ids=("id0",), number=str(number)) for number in (1, 2)]
    sheet = balance(books(truth=[*books().truth, *changes]))

    assert not sheet.adds_up
    assert sheet.confused == ["change 2 shares id0 with change 1"]


def test_a_raw_row_under_the_event_id_of_another_change_is_a_fault() -> None:
    changes = [Truth(name="change 1", event_ids=("id0",), number="1")]
    rows = [RawRow(event_id="id0", place=(0, 0), number="2"), raw(1)]
    sheet = balance(books(truth=[*changes, *books().truth[1:]], raw=rows))

    assert not sheet.adds_up
    assert sheet.confused == ["the raw row 0/0 of change 2 is named id0"]


def test_one_change_under_two_event_ids_is_a_fault_though_the_bank_has_both() -> None:
    rows = [replace(raw(0), number="1"), replace(raw(1), number="1")]
    sheet = balance(books(raw=rows))

    assert not sheet.adds_up
    assert sheet.confused == ["change 1 stands in raw rows under 2 event ids: id0; id1"]


def test_a_raw_row_of_no_change_of_the_bank_is_a_fault() -> None:
    phantom = RawRow(event_id="phantom", place=(0, 2))
    sheet = balance(books(raw=[*books().raw, phantom], seen=books().seen | {"phantom"}, log={0: range(3)}))

    assert not sheet.adds_up
    assert sheet.confused == ["the raw row 0/2 is named phantom, which is no change of the bank"]


def test_a_parked_event_of_no_change_of_the_bank_is_a_fault() -> None:
    phantom = ParkedItem(event_id="phantom", reason="invalid")
    sheet = balance(books(parked=[*books().parked, phantom], seen=books().seen | {"phantom"}))

    assert not sheet.adds_up
    assert sheet.confused == ["parked as invalid: phantom, which is no change of the bank"]


def test_a_broken_chain_of_objects_is_a_fault() -> None:
    sheet = balance(books(chain_problems=["offsets 3 to 4 are in no object"]))

    assert not sheet.adds_up
    assert "offsets 3 to 4" in said(sheet)


def state(key: str, version: int, offset: int, rank: int) -> RawRow:
    event_id = f"{key}v{version}"
    return RawRow(event_id=event_id, place=(0, offset), key=key, version=version, order=(rank, 0, 0, event_id))


def row_books(**changes: object) -> Books:
    whole = Books(
        entity="accounts",
        shows="rows",
        truth=[Truth(name="row a, version 3", event_ids=("av3",)), Truth(name="row b, version 1", event_ids=("bv1",))],
        seen=frozenset(["av2", "av3", "bv1"]),
        raw=[state("a", 2, 0, 10), state("a", 3, 1, 20), state("b", 1, 2, 15)],
        parked=[],
        log={0: range(3)},
        final_versions={"a": 3, "b": 1},
    )
    return replace(whole, **changes)


def test_the_last_raw_row_of_each_key_is_the_banks_row() -> None:
    assert balance(row_books()).adds_up


def test_a_state_that_an_older_one_overtakes_is_a_fault() -> None:
    sheet = balance(row_books(raw=[state("a", 2, 0, 30), state("a", 3, 1, 20), state("b", 1, 2, 15)]))

    assert not sheet.adds_up
    assert sheet.outdated == ["row a, version 3"]


def test_a_key_whose_last_state_is_parked_is_not_outdated() -> None:
    parked = [ParkedItem(event_id="av3", reason="invalid")]
    raws = [state("a", 2, 0, 10), state("b", 1, 1, 15)]

    assert balance(row_books(raw=raws, parked=parked, log={0: range(2)})).adds_up
    assert not balance(row_books(raw=raws, log={0: range(2)})).adds_up


def test_a_state_since_changed_may_be_published_and_never_recorded() -> None:
    sheet = balance(row_books(seen=frozenset(["av3", "bv1"])))

    assert sheet.adds_up
    assert sheet.unrecorded == ["av2"]
    assert re.search(r"not recorded as seen +1\n", said(sheet))


def test_a_version_under_two_event_ids_is_a_fault() -> None:
    again = replace(state("a", 2, 3, 17), event_id="av2 come back")
    sheet = balance(row_books(raw=[*row_books().raw, again], log={0: range(4)}))

    assert not sheet.adds_up
    assert sheet.confused == ["row a, version 2 stands in raw rows under 2 event ids: av2; av2 come back"]


def test_two_versions_under_one_event_id_are_a_fault() -> None:
    alike = replace(state("a", 1, 3, 5), event_id="av2")
    sheet = balance(row_books(raw=[*row_books().raw, alike], log={0: range(4)}))

    assert not sheet.adds_up
    assert sheet.confused == ["row a, version 1 shares av2 with row a, version 2"]


def test_a_last_state_under_the_name_of_another_state_is_a_fault() -> None:
    rows = [*row_books().raw[:2], replace(state("b", 1, 2, 15), event_id="other")]
    parked = [ParkedItem(event_id="bv1", reason="kafka_unknown")]
    sheet = balance(row_books(raw=rows, parked=parked))

    assert not sheet.adds_up
    assert sheet.confused == ["the raw row 0/2 of row b, version 1 is named other, which is not its id"]


def test_faults_of_one_entity_are_not_hidden_by_another() -> None:
    lines = render([balance(books()), balance(books(truth=[truth(9)], entity="accounts"))])

    assert lines[-1] == "missing: 1"
    assert any("DO NOT ADD UP" in line for line in lines)
    assert [line for line in lines if "missing" in line] == ["missing: 1"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_taking_anything_out_of_whole_books_is_noticed(data: st.DataObject) -> None:
    """Changes lie in the lake, parked, or both; every single removal of a last place must turn the sheet red."""
    places = data.draw(st.lists(st.sampled_from(["raw", "parked", "both"]), min_size=1, max_size=12))
    lake = [number for number, place in enumerate(places) if place != "parked"]
    whole = Books(
        entity="e",
        shows="events",
        truth=[truth(number) for number in range(len(places))],
        seen=frozenset(f"id{number}" for number in range(len(places))),
        raw=[raw(number, offset) for offset, number in enumerate(lake)],
        parked=[
            ParkedItem(event_id=f"id{number}", reason="kafka_unknown")
            for number, place in enumerate(places)
            if place != "raw"
        ],
        log={0: range(len(lake))},
    )
    assert balance(whole).adds_up

    victim = data.draw(st.integers(0, len(places) - 1))
    without = [row for row in whole.raw if row.event_id != f"id{victim}"]
    if places[victim] != "parked":
        assert not balance(replace(whole, raw=without)).adds_up
    if places[victim] == "parked":
        parked = [item for item in whole.parked if item.event_id != f"id{victim}"]
        assert balance(replace(whole, parked=parked)).missing == [f"change {victim}, seen as id{victim}"]


@pytest.mark.parametrize("count", [0, 25])
def test_long_lists_are_cut_but_counted(count: int) -> None:
    sheet = balance(books(truth=[truth(100 + number) for number in range(count)]))

    assert render([sheet])[-1] == f"missing: {count}"
    assert ("and 15 more" in said(sheet)) is (count == 25)
