"""The one rule of which types share a column, for schema versions among each other and for a table and its rows.

A column grows only to what Delta can change it to without rewriting it: int → bigint, int and float → double,
decimals that lose no digit on either side of the point, date → timestamp without time zone. A bigint has no double:
above 2^53 it would lose its last digits.
"""

from collections.abc import Sequence

from services.delta_loader.spark_types import (
    ArrayOf,
    MapOf,
    Member,
    Simple,
    SparkType,
    StructOf,
    ddl,
    decimal_of,
    quoted,
)

DECIMAL_PRECISION_MAX = 38
_WIDER = {
    "byte": ("short", "integer", "long", "double"),
    "short": ("integer", "long", "double"),
    "integer": ("long", "double"),
    "float": ("double",),
    "date": ("timestamp_ntz",),
}

Path = tuple[str, ...]


class Breaking(Exception):
    """Types that can't share a column. ``differences``: one line each; the text also says what to do."""

    def __init__(self, differences: Sequence[str], remedy: str) -> None:
        self.differences = tuple(differences)
        super().__init__("\n".join((*differences, remedy)))


class Clash(Exception):
    """Two types that no type holds both of; ``path`` as Delta spells it, below the column that was asked for."""

    def __init__(self, path: Path, one: SparkType, other: SparkType) -> None:
        self.path, self.one, self.other = path, one, other
        super().__init__(f"{spelled(path)}: {ddl(one)} and {ddl(other)}")


def united(one: SparkType, other: SparkType, path: Path) -> SparkType:
    """The narrowest type that holds every value of both, members in the order of ``one``. Raises ``Clash``."""
    if one == other or is_void(other):
        return one
    match one, other:
        case Simple(), _ if is_void(one):
            return other
        case Simple(), Simple():
            return _united_simple(one, other, path)
        case ArrayOf(), ArrayOf():
            return ArrayOf(united(one.element, other.element, (*path, "element")))
        case MapOf(), MapOf() if one.key == other.key:
            return MapOf(united(one.value, other.value, (*path, "value")), one.key)
        case StructOf(), StructOf():
            return _united_structs(one, other, path)
    raise Clash(path, one, other)


def spelled(path: Path) -> str:
    """``items.element.`unit price` ``: as Delta takes it, quoted only where it must be."""
    return ".".join(name if name.isidentifier() and name.isascii() else quoted(name) for name in path)


def is_void(spark_type: SparkType) -> bool:
    """The type of what was never anything but null."""
    return spark_type == Simple("void")


def _united_structs(one: StructOf, other: StructOf, path: Path) -> StructOf:
    members = []
    for member in one.members:
        match = next((m for m in other.members if m.name == member.name), None)
        kind = member.type if match is None else united(member.type, match.type, (*path, member.name))
        members.append(Member(member.name, kind, member.nullable))
    known = {member.name for member in one.members}
    return StructOf((*members, *(member for member in other.members if member.name not in known)))


def _united_simple(one: Simple, other: Simple, path: Path) -> SparkType:
    decimals = decimal_of(one), decimal_of(other)
    if decimals[0] and decimals[1]:
        scale = max(decimals[0][1], decimals[1][1])
        precision = scale + max(whole - fraction for whole, fraction in (decimals[0], decimals[1]))
        if precision <= DECIMAL_PRECISION_MAX:
            return Simple(f"decimal({precision},{scale})")
    for wider in (one.name, *_WIDER.get(one.name, ())):
        if wider in (other.name, *_WIDER.get(other.name, ())):
            return Simple(wider)
    raise Clash(path, one, other)
