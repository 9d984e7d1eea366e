"""What must change in a table before rows of a newer schema fit into it: columns are added, types grow. No Spark here.

Nothing is taken away: a column that the rows no longer have stays, and is null from then on.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from services.delta_loader.spark_types import (
    ArrayOf,
    MapOf,
    SparkType,
    StructOf,
    ddl,
    from_json,
    holds,
    name_needs_mapping,
    names_need_mapping,
    quoted,
)
from services.delta_loader.widening import Breaking, Clash, Path, spelled, united

_REMEDY = (
    "A full refresh (--full-refresh) builds the table anew from the raw objects; to keep this table as it is, give the "
    "entity a new name."
)


class AddColumn(Struct, frozen=True):
    """``path`` as Delta has it, through ``element`` and ``value``. ``after``: the column it follows; ``None``: last."""

    path: Path
    type: SparkType
    after: str | None


class Widen(Struct, frozen=True):
    path: Path
    was: SparkType
    becomes: SparkType


Step = AddColumn | Widen


def plan(table_json: str, wanted_json: str, keys: Sequence[str] = (), *, widens: bool = True) -> tuple[Step, ...]:
    """What makes the table take rows of the wanted schema; empty: it does already. Both are Spark's schema JSON.

    A wanted type narrower than the table's needs no step: the rows are cast. ``keys`` must be the table's own (its
    columns that are not null), else its rows are those of other things; empty: not asked. ``widens`` false: this Delta
    can't widen a column in place. Raises ``Breaking``.
    """
    table, wanted = from_json(table_json), from_json(wanted_json)
    differences: list[str] = []
    own_keys = {member.name for member in table.members if not member.nullable}
    if keys and own_keys != set(keys):
        differences.append(f"key: {', '.join(sorted(own_keys)) or 'none'} in the table, {', '.join(keys)} wanted")
    steps = tuple(_struct_steps(table, wanted, (), differences))
    if not widens:
        differences += [
            f"column {spelled(step.path)}: {ddl(step.was)} in the table, {ddl(step.becomes)} wanted: it takes Spark 4"
            for step in steps
            if isinstance(step, Widen)
        ]
    if differences:
        raise Breaking(differences, _REMEDY)
    return steps


def statements(steps: Sequence[Step], table: str) -> list[str]:
    """The SQL of the steps, in order; each statement is one commit. ``table`` is quoted: ``delta.`s3a://…` ``.

    Not to be repeated blindly: a statement that another writer was quicker with fails, and the plan is made anew.
    """
    found = [f"ALTER TABLE {table} SET TBLPROPERTIES ({properties})"] if (properties := _properties(steps)) else []
    adds = [step for step in steps if isinstance(step, AddColumn)]
    if adds:
        found.append(f"ALTER TABLE {table} ADD COLUMNS ({', '.join(_definition(add) for add in adds)})")
    widenings = [step for step in steps if isinstance(step, Widen)]
    return found + [f"ALTER TABLE {table} ALTER COLUMN {_sql(w.path)} TYPE {ddl(w.becomes)}" for w in widenings]


def _struct_steps(table: StructOf, wanted: StructOf, path: Path, differences: list[str]) -> Iterator[Step]:
    after: str | None = None
    for member in wanted.members:
        below = (*path, member.name)
        found = table.find(member.name)
        if found is None:
            yield AddColumn(below, member.type, after)
        elif found.name != member.name:
            differences.append(f"column {spelled((*path, found.name))} in the table, {spelled(below)} wanted")
        else:
            yield from _type_steps(found.type, member.type, below, differences)
        after = member.name


def _type_steps(table: SparkType, wanted: SparkType, path: Path, differences: list[str]) -> Iterator[Step]:
    match table, wanted:
        case StructOf(), StructOf():
            yield from _struct_steps(table, wanted, path, differences)
        case ArrayOf(), ArrayOf():
            yield from _type_steps(table.element, wanted.element, (*path, "element"), differences)
        case MapOf(), MapOf() if table.key == wanted.key:
            yield from _type_steps(table.value, wanted.value, (*path, "value"), differences)
        case _:
            try:
                becomes = united(table, wanted, path)
            except Clash:
                differences.append(f"column {spelled(path)}: {ddl(table)} in the table, {ddl(wanted)} wanted")
                return
            if becomes != table:
                yield Widen(path, table, becomes)


def _properties(steps: Sequence[Step]) -> str:
    """What the table must be able to do first. A table that never needs it stays readable by more readers."""
    types = [step.type if isinstance(step, AddColumn) else step.becomes for step in steps]
    names = [step.path[-1] for step in steps if isinstance(step, AddColumn)]
    wanted = {
        "delta.columnMapping.mode": "name"
        if any(map(name_needs_mapping, names)) or any(map(names_need_mapping, types))
        else "",
        "delta.enableTypeWidening": "true" if any(isinstance(step, Widen) for step in steps) else "",
        "delta.feature.timestampNtz": "supported" if any(holds(kind, "timestamp_ntz") for kind in types) else "",
    }
    return ", ".join(f"'{name}' = '{value}'" for name, value in wanted.items() if value)


def _definition(add: AddColumn) -> str:
    position = f" AFTER {quoted(add.after)}" if add.after is not None else ""
    return f"{_sql(add.path)} {ddl(add.type)}{position}"


def _sql(path: Path) -> str:
    return ".".join(map(quoted, path))


__all__ = ["AddColumn", "Breaking", "Step", "Widen", "plan", "statements"]
