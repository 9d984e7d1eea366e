"""What stands in Delta, held against the bank. Pure: ``lake.py`` reads, this compares.

Two tables of each entity: the stream's, which grew while the bank was busy, and the batch's, built from all raw objects
at once. They must be equal in every column; and the live rows, and the deleted ones, must be what the bank's own tables
say. A change that is parked or archived can't be in the lake: the key's newest change that is neither must stand there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal

from msgspec import Struct

DELETED = "_deleted"
NAMED_MAX = 10

Row = Mapping[str, Any]


class BankState(Struct, frozen=True, kw_only=True):
    """A row of the bank as it was after one change. Any one of ``event_ids`` will do."""

    key: str
    version: int
    event_ids: tuple[str, ...]
    columns: Row  # flat, values as in the bank's JSON
    deleted: bool


class LakeBooks(Struct, frozen=True, kw_only=True):
    """One entity. Tables are whole, deleted keys included; ``None``: there is no such table."""

    entity: str
    shows: Literal["events", "rows"]
    keys: tuple[str, ...]
    stream: Sequence[Row] | None
    batch: Sequence[Row] | None
    bank: Sequence[BankState]  # events: after each change; rows: the last states alone, for nobody knows the others
    last: Mapping[str, int]  # each key's version in the bank's own table
    set_aside: frozenset[str]  # event ids that are parked or archived, and in no raw object


class LakeBalance(Struct, frozen=True, kw_only=True):
    """Lists hold the culprits in words, sorted."""

    entity: str
    live: int
    deleted: int
    set_aside: int  # keys whose last change is parked or archived
    unlike_batch: Sequence[str]
    unlike_bank: Sequence[str]

    @property
    def adds_up(self) -> bool:
        return not (self.unlike_batch or self.unlike_bank)


def lake_balance(books: LakeBooks) -> LakeBalance:
    stream = {_key(row, books.keys): row for row in books.stream or ()}
    batch = {_key(row, books.keys): row for row in books.batch or ()}
    last = {state.key: state for state in books.bank if books.last.get(state.key) == state.version}
    deleted = sum(1 for row in stream.values() if row[DELETED])
    return LakeBalance(
        entity=books.entity,
        live=len(stream) - deleted,
        deleted=deleted,
        set_aside=sum(1 for state in last.values() if _is_set_aside(state, books)),
        unlike_batch=sorted([*_ill_formed(books), *_unlike_batch(stream, batch)]),
        unlike_bank=sorted(_unlike_bank(stream, books)),
    )


def _key(row: Row, keys: Sequence[str]) -> str:
    return ",".join(str(row[name]) for name in keys)


def _ill_formed(books: LakeBooks) -> Iterable[str]:
    for name, table in (("stream", books.stream), ("batch", books.batch)):
        if table is None:
            yield f"the {name} made no table"
        for key, count in Counter(_key(row, books.keys) for row in table or ()).items():
            if count > 1:
                yield f"key {key} stands {count} times in the {name}'s table"


def _unlike_batch(stream: Mapping[str, Row], batch: Mapping[str, Row]) -> Iterable[str]:
    """All columns count, those that say where the row came from too: one event wins, whoever merged, in what order."""
    for key in stream.keys() | batch.keys():
        if key not in batch or key not in stream:
            yield f"key {key} is in the {'stream' if key in stream else 'batch'}'s table alone"
            continue
        one, other = stream[key], batch[key]
        for column in sorted(one.keys() | other.keys()):
            if column not in one or column not in other or one[column] != other[column]:
                held, built = (_shown(row, column) for row in (one, other))
                yield f"key {key}: {column} is {held} in the stream's table, {built} in the batch's"


def _unlike_bank(stream: Mapping[str, Row], books: LakeBooks) -> Iterable[str]:
    due: dict[str, BankState] = {}
    for state in books.bank:
        newer = state.key not in due or state.version > due[state.key].version
        if newer and not _is_set_aside(state, books):
            due[state.key] = state
    for key, state in due.items():
        if key not in stream:
            yield f"key {key} is not in the table; the bank has version {state.version}"
        else:
            yield from (f"key {key}, {difference}" for difference in _differences(stream[key], state))
    for key in stream.keys() - due.keys():
        yield from _undue(key, stream[key], books)


def _undue(key: str, row: Row, books: LakeBooks) -> Iterable[str]:
    """A row of a key of which nothing is due: of rows, an older state may stand there."""
    version = books.last.get(key)
    if version is None:
        yield f"key {key} is in the table, and the bank never had it"
    elif books.shows == "events":
        yield f"key {key} is in the table, and all its changes are parked or archived"
    elif row["version"] >= version:
        yield f"key {key} stands at version {row['version']}, though version {version} is parked or archived"


def _is_set_aside(state: BankState, books: LakeBooks) -> bool:
    return not books.set_aside.isdisjoint(state.event_ids)


def _differences(row: Row, state: BankState) -> Iterable[str]:
    where = f"version {state.version}"
    if row[DELETED] is not state.deleted:
        yield f"{where}: {DELETED} is {row[DELETED]}, but the bank says {state.deleted}"
    for column in sorted({name for name in row if not name.startswith("_")} | state.columns.keys()):
        said = state.columns.get(column)
        if not _is(row.get(column), said):
            yield f"{where}: {column} is {_shown(row, column)}, but the bank says {said!r}"


def _is(held: Any, said: Any) -> bool:
    """Is the table's value what the bank's JSON says?"""
    match held:
        case datetime():
            return isinstance(said, str) and held == datetime.fromisoformat(said)
        case date():
            return bool(said == held.isoformat())
        case _:
            return bool(held == said)


def _shown(row: Row, column: str) -> str:
    return repr(row[column]) if column in row else "no column"


def table_rows(sheets: Sequence[LakeBalance]) -> list[tuple[str, Sequence[int | str]]]:
    """For the balance sheet, in its order of entities."""
    if not sheets:
        return []
    return [
        ("Delta: keys that live", [sheet.live for sheet in sheets]),
        ("Delta: keys that are deleted", [sheet.deleted for sheet in sheets]),
        ("    whose last change is set aside", [sheet.set_aside for sheet in sheets]),
        ("    differences from the batch's table", [len(sheet.unlike_batch) for sheet in sheets]),
        ("    differences from the bank's own", [len(sheet.unlike_bank) for sheet in sheets]),
    ]


def faults(sheet: LakeBalance) -> list[str]:
    found = [("stream and batch differ", sheet.unlike_batch), ("stream and bank differ", sheet.unlike_bank)]
    return [f"{text}: {_named(names)}" for text, names in found if names]


def _named(names: Sequence[str]) -> str:
    more = f"; and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return "; ".join(names[:NAMED_MAX]) + more
