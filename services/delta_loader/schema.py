"""An entity's Avro versions → the schema that its raw rows are read with, and the columns of its table. No Spark here.

Never inferred: what Spark would guess from the rows depends on the rows. How each Avro type is spelled in a raw row is
told by ``shared.events``; what Spark makes of that spelling, and what Delta can hold of it, is measured in
``tests/lake/test_types.py``:

- a decimal of more than 38 digits stays text, as do times of day (Delta has no such type), enums and UUIDs;
- a record inside itself stays JSON text, from where it repeats: a type has no end of levels;
- in arrays and maps, a union of several is a struct with a member per branch, all but the one that was chosen null;
- a field that can only be null has no column; a record without fields, which Parquet can't hold, is a struct with one
  member ``_empty`` that is always null: whether the record is there is kept, and fields can be added later.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from services.delta_loader.spark_types import (
    ArrayOf,
    MapOf,
    Member,
    Simple,
    SparkType,
    StructOf,
    ddl,
    names_need_mapping,
    to_json,
)
from services.delta_loader.widening import DECIMAL_PRECISION_MAX, Breaking, Clash, spelled, united
from shared.events.columns import LINEAGE, branch_names, check_columns, columns
from shared.events.schema import (
    DEPTH_MAX,
    Array,
    ContractError,
    Leaf,
    Map,
    Node,
    Record,
    Union,
    is_null,
    key_leaf,
    parse,
)

CORRUPT = "_corrupt_record"
DELETED = "_deleted"
DELETED_SQL = "coalesce(_op = 'd', false)"
RESERVED = frozenset({CORRUPT, DELETED, "__start_at", "__end_at", "__current", "_metadata"})
"""Besides the lineage: the lake's own columns, and Spark's name for the file that a row is from."""
EMPTY = "_empty"
NODES_MAX = 20_000  # members, elements and branches of one version, written out

READ_OPTIONS: Mapping[str, str] = {
    "mode": "PERMISSIVE",  # with the column below: a value of a wrong type is seen; without it, it is null silently
    "columnNameOfCorruptRecord": CORRUPT,
    "lineSep": "\n",
    "timeZone": "UTC",
    "allowNonNumericNumbers": "true",
    "ignoreCorruptFiles": "false",  # else the rest of a torn object is left out silently
    "ignoreMissingFiles": "false",
}
SESSION_SETTINGS: Mapping[str, str] = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.caseSensitive": "false",
    "spark.sql.ansi.enabled": "true",  # a cast that loses a value raises, instead of making it null
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    # Spark's default, INT96, is nanoseconds to other readers: what lies before 1677 or after 2262 is beyond them.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInWrite": "CORRECTED",
    # A pushed filter ends a line's parsing early: what is wrong further on would not be seen.
    "spark.sql.json.filterPushdown.enabled": "false",
    "spark.sql.json.enablePartialResults": "true",
    # JSON inside a text column stays as it was written; Spark 3.5, which doesn't know this, spells its numbers anew.
    "spark.sql.json.enableExactStringParsing": "true",
}

_TEXTS = ("_kafka_topic", "_event_id", "_op")
_LOGICAL = {
    "uuid": "string",
    "date": "date",
    "time-millis": "string",
    "time-micros": "string",
    "timestamp-millis": "timestamp",
    "timestamp-micros": "timestamp",
    "local-timestamp-millis": "timestamp_ntz",
    "local-timestamp-micros": "timestamp_ntz",
}
_KINDS = {
    "null": "void",
    "boolean": "boolean",
    "int": "integer",
    "long": "long",
    "float": "float",
    "double": "double",
    "bytes": "binary",
    "fixed": "binary",
    "string": "string",
    "enum": "string",
}


class LakeSchema(Struct, frozen=True):
    """``read_json`` and ``table_json`` are Spark's schema JSON.

    ``read_json``: a raw row: the data columns of all versions, lineage, ``_corrupt_record``, all nullable.
    ``table_json``: key columns (not null), data columns in the order in which the versions brought them, lineage,
    ``_deleted``; what the table of an entity without transform should have.
    ``column_mapping``: a name needs ``delta.columnMapping.mode`` = ``name``.
    """

    keys: tuple[str, ...]
    schema_ids: frozenset[int]
    read_json: str
    table_json: str
    column_mapping: bool


def lake_schema(schemas: Mapping[int, str], keys: Sequence[str]) -> LakeSchema:
    """``schemas``: Avro text by schema id, the oldest version first, as the mapping goes.

    Raises ``Breaking`` if versions can't share a column, ``ContractError`` for a schema, key or name that can't be
    served at all.
    """
    assert schemas, "an entity has at least one schema version"
    check_columns(list(schemas.values()))
    found = _merged(schemas)
    _check_names(found)
    for text in schemas.values():
        root = parse(text)
        for key in keys:
            key_leaf(key, root)
    data = [Member(name, kind, nullable=name not in keys) for name, kind in found.items()]
    data.sort(key=lambda member: keys.index(member.name) if member.name in keys else len(keys))
    lineage = tuple(_lineage())
    table = StructOf((*data, *lineage, Member(DELETED, Simple("boolean"))))
    nullable = [Member(member.name, member.type) for member in data]
    read = StructOf((*nullable, *lineage, Member(CORRUPT, Simple("string"))))
    return LakeSchema(tuple(keys), frozenset(schemas), to_json(read), to_json(table), names_need_mapping(table))


def _merged(schemas: Mapping[int, str]) -> dict[str, SparkType]:
    """The columns' types over all versions. Raises ``Breaking`` with all differences at once."""
    found: dict[str, SparkType] = {}
    last_seen: dict[str, int] = {}
    differences = []
    for schema_id, text in schemas.items():
        writer = _TypeWriter(schema_id)
        for column in columns(parse(text)):
            kind = writer.column(column.node)
            try:
                found[column.name] = united(found.get(column.name, Simple("void")), kind, (column.name,))
            except Clash as clash:
                differences.append(
                    f"column {spelled(clash.path)}: {ddl(clash.one)} up to schema {last_seen[column.name]}, "
                    f"{ddl(clash.other)} in schema {schema_id}"
                )
            last_seen[column.name] = schema_id
    if differences:
        raise Breaking(
            differences,
            "Raw rows of both versions exist, and no column holds both. Give the field a new name in a new schema "
            "version, or make the topic a new entity.",
        )
    return {name: _storable(kind) for name, kind in found.items() if kind != Simple("void")}


def _storable(kind: SparkType) -> SparkType:
    """Without what no table holds: fields that are always null, structs without members."""
    match kind:
        case Simple(name="void"):
            return Simple("string")
        case Simple():
            return kind
        case ArrayOf():
            return ArrayOf(_storable(kind.element))
        case MapOf():
            return MapOf(_storable(kind.value))
        case StructOf():
            members = [Member(m.name, _storable(m.type)) for m in kind.members if m.type != Simple("void")]
            return StructOf(tuple(members) or (Member(EMPTY, Simple("boolean")),))


def _check_names(found: Mapping[str, SparkType]) -> None:
    for name, kind in found.items():
        if name.lower() in RESERVED:
            raise ContractError(f"field {name!r} has a name that the lake needs for itself. Rename it")
        _check_spelling(name)
        _check_members(kind, (name,))


def _check_members(kind: SparkType, path: tuple[str, ...]) -> None:
    match kind:
        case ArrayOf():
            _check_members(kind.element, (*path, "element"))
        case MapOf():
            _check_members(kind.value, (*path, "value"))
        case StructOf():
            names: dict[str, str] = {}
            for member in kind.members:
                twin = names.setdefault(member.name.lower(), member.name)
                if twin != member.name:
                    raise ContractError(
                        f"{spelled(path)}: fields {twin!r} and {member.name!r} become one column (names are compared "
                        "without case). Rename one of them"
                    )
                _check_spelling(member.name)
                _check_members(member.type, (*path, member.name))


def _check_spelling(name: str) -> None:
    """Avro allows letters, digits and underscores; some libraries are laxer, and so is all that follows, nearly."""
    if "`" in name:
        raise ContractError(f"field {name!r}: Delta can't merge a column with a backtick in its name. Rename it")


def _lineage() -> Iterator[Member]:
    for name in LINEAGE:
        kind = "string" if name in _TEXTS else "timestamp" if name == "_kafka_timestamp" else "long"
        yield Member(name, Simple(kind))


class _TypeWriter:
    """The types of one version's columns. Bounded: a few records that name each other have very many ways through."""

    def __init__(self, schema_id: int) -> None:
        self._schema_id = schema_id
        self._nodes = 0

    def column(self, node: Node) -> SparkType:
        return Simple("string") if isinstance(node, Record) else self._type(node, (), 0)  # contains itself: JSON text

    def _type(self, node: Node, inside: tuple[Record, ...], depth: int) -> SparkType:
        self._nodes += 1
        if self._nodes > NODES_MAX or depth > DEPTH_MAX:
            raise ContractError(
                f"schema {self._schema_id} has more than {NODES_MAX} fields or {DEPTH_MAX} levels inside its arrays "
                "and maps when they are written out"
            )
        match node:
            case Leaf():
                return _leaf_type(node)
            case Array():
                return ArrayOf(self._type(node.items, inside, depth + 1))
            case Map():
                return MapOf(self._type(node.values, inside, depth + 1))
            case Union() if (nullable := node.nullable()) is not None:
                return self._type(nullable, inside, depth)
            case Union():
                named = zip(branch_names(node), node.branches, strict=True)
                return StructOf(
                    tuple(Member(name, self._type(b, inside, depth + 1)) for name, b in named if not is_null(b))
                )
            case Record() if node in inside:
                return Simple("string")
            case Record():
                within = (*inside, node)
                return StructOf(tuple(Member(f.name, self._type(f.type, within, depth + 1)) for f in node.fields))


def _leaf_type(leaf: Leaf) -> Simple:
    if leaf.logical == "decimal":
        fits = leaf.precision <= DECIMAL_PRECISION_MAX
        return Simple(f"decimal({leaf.precision},{leaf.scale})" if fits else "string")
    if leaf.logical is not None:
        return Simple(_LOGICAL[leaf.logical])
    return Simple(_KINDS[leaf.kind])


__all__ = [
    "CORRUPT",
    "DELETED",
    "DELETED_SQL",
    "READ_OPTIONS",
    "RESERVED",
    "SESSION_SETTINGS",
    "Breaking",
    "LakeSchema",
    "lake_schema",
]
