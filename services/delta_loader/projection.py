"""Rows of any covered schema → all columns of the table: what is missing is null, what is narrower is cast.

``UPDATE SET *`` leaves a column alone that the source lacks: without this a row's new version would keep a value of
its old one.
"""

from services.delta_loader.schema import CORRUPT
from services.delta_loader.spark_types import (
    ArrayOf,
    MapOf,
    Simple,
    SparkType,
    StructOf,
    ddl,
    from_json,
    quoted,
)
from services.delta_loader.widening import Clash, united


def projection(source_json: str, table_json: str) -> tuple[str, ...]:
    """One SQL expression per column of the table, in its order and named as in the table, over the source's columns.

    Both are Spark's schema JSON. The table must have been evolved to take the source: what it has no room for is our
    own mistake, an ``AssertionError``; only ``_corrupt_record`` is left out.
    """
    source, table = from_json(source_json), from_json(table_json)
    surplus = [member.name for member in source.members if table.find(member.name) is None]
    assert surplus in ([], [CORRUPT]), f"the table has no column for {', '.join(surplus)}"
    expressions = []
    for member in table.members:
        found = source.find(member.name)
        value = _null(member.type) if found is None else _fitted(quoted(found.name), found.type, member.type, 0)
        expressions.append(f"{value} AS {quoted(member.name)}")
    return tuple(expressions)


def _fitted(value: str, source: SparkType, table: SparkType, depth: int) -> str:
    """The SQL of ``value``, of type ``source``, as ``table``. ``depth`` keeps the lambdas' variables apart."""
    if _same(source, table):
        return value
    match source, table:
        case StructOf(), StructOf():
            return _fitted_struct(value, source, table, depth)
        case ArrayOf(), ArrayOf():
            item = f"x{depth}"
            return f"transform({value}, {item} -> {_fitted(item, source.element, table.element, depth + 1)})"
        case MapOf(), MapOf() if source.key == table.key:
            name, item = f"k{depth}", f"x{depth}"
            fitted = _fitted(item, source.value, table.value, depth + 1)
            return f"transform_values({value}, ({name}, {item}) -> {fitted})"
        case Simple(), Simple() if _takes(table, source):
            return f"CAST({value} AS {ddl(table)})"
    raise AssertionError(f"{ddl(source)} has no room in a column of type {ddl(table)}")


def _fitted_struct(value: str, source: StructOf, table: StructOf, depth: int) -> str:
    surplus = [member.name for member in source.members if table.find(member.name) is None]
    assert not surplus, f"the table has no room for {', '.join(surplus)} in {ddl(table)}"
    parts = []
    for member in table.members:
        found = source.find(member.name)
        inner = f"{value}.{quoted(found.name)}" if found is not None else ""
        fitted = _null(member.type) if found is None else _fitted(inner, found.type, member.type, depth)
        literal = member.name.replace("\\", "\\\\").replace("'", "\\'")
        parts.append(f"'{literal}', {fitted}")
    return f"IF({value} IS NULL, NULL, named_struct({', '.join(parts)}))"


def _same(source: SparkType, table: SparkType) -> bool:
    """Equal, with members of the same names in the same order."""
    match source, table:
        case StructOf(), StructOf():
            return len(source.members) == len(table.members) and all(
                one.name == other.name and _same(one.type, other.type)
                for one, other in zip(source.members, table.members, strict=True)
            )
        case ArrayOf(), ArrayOf():
            return _same(source.element, table.element)
        case MapOf(), MapOf():
            return _same(source.key, table.key) and _same(source.value, table.value)
        case _:
            return source == table


def _takes(table: Simple, source: Simple) -> bool:
    try:
        return united(table, source, ()) == table
    except Clash:
        return False


def _null(kind: SparkType) -> str:
    return f"CAST(NULL AS {ddl(kind)})"
