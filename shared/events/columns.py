"""The columns of a raw row: how a schema's fields are flattened to names, and which names collide.

``a__b`` for nested records; one column ``x__v_<type>`` for each branch of a union of several; arrays and maps are one
column, and so is a record that contains itself, at the point where it does (as JSON text: a column has no end of
levels).
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from shared.events.schema import Array, ContractError, Leaf, Map, Node, Record, Union, is_null, parse, type_name

LINEAGE = (
    "_kafka_topic",
    "_kafka_generation",
    "_kafka_partition",
    "_kafka_offset",
    "_kafka_timestamp",
    "_event_id",
    "_rank",
    "_tiebreak",
    "_rev",
    "_op",
    "_schema_id",
    "_attempt",
)
COLUMNS_MAX = 5_000


class Column(Struct, frozen=True):
    """``path``: the fields that lead to it, and ``v_<type>`` where a union's branch is chosen."""

    name: str
    path: tuple[str, ...]
    node: Node  # never a record, unless it contains itself; never a union, unless of null and one of the others


def columns(root: Record) -> tuple[Column, ...]:
    """The columns of one schema, in its order. Raises ``ContractError`` beyond ``COLUMNS_MAX``."""
    found = []
    for column in _columns(root, (), ()):
        found.append(column)
        if len(found) > COLUMNS_MAX:
            raise ContractError(f"the schema has more than {COLUMNS_MAX} columns when it is flattened")
    return tuple(found)


def check_columns(schemas: Sequence[str]) -> None:
    """Refuses names that collide, case-insensitively, among all versions of an entity's schema and the lineage columns.

    Raises ``ContractError``, which names both fields.
    """
    owners: dict[str, tuple[str, ...]] = {}
    for version, schema in enumerate(schemas, start=1):
        seen: set[str] = set()
        for column in columns(parse(schema)):
            folded = column.name.lower()
            if folded in LINEAGE:
                raise ContractError(
                    f"schema {version} of {len(schemas)}: field {_dotted(column.path)} becomes column {column.name!r}, "
                    "which is a lineage column's name. Rename it"
                )
            owner = owners.setdefault(folded, column.path)
            if owner != column.path or folded in seen:
                raise ContractError(
                    f"schema {version} of {len(schemas)}: field {_dotted(column.path)} becomes column {column.name!r}, "
                    f"which {_dotted(owner)} already has (names are compared without case). Rename one of them"
                )
            seen.add(folded)


def branch_names(union: Union) -> list[str]:
    """``v_<type>`` of each branch: named types by their last name, unless two would be alike."""
    full = [type_name(branch) for branch in union.branches]
    short = [name.rpartition(".")[2] for name in full]
    folded = [name.lower() for name in short]
    return [
        f"v_{name if folded.count(name.lower()) == 1 else whole.replace('.', '_')}"
        for name, whole in zip(short, full, strict=True)
    ]


def _columns(node: Node, path: tuple[str, ...], inside: tuple[Record, ...]) -> Iterator[Column]:
    match node:
        case Record() if node not in inside:
            for field in node.fields:
                yield from _columns(field.type, (*path, field.name), (*inside, node))
        case Union() if (nullable := node.nullable()) is not None:
            yield from _columns(nullable, path, inside)
        case Union():
            for branch, name in zip(node.branches, branch_names(node), strict=True):
                if not is_null(branch):
                    yield from _columns(branch, (*path, name), inside)
        case Leaf() | Array() | Map() | Record():
            yield Column("__".join(path), path, node)


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)
