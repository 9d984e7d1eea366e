"""An Avro schema as a small tree, the same for everything that walks it: judging, compiling, flattening.

Logical types are folded into their leaves; a logical type that is not known, or does not fit its type, counts as
absent, as the Avro specification has it (a decimal without a usable precision is refused: its values would be read
wrongly).
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import fastavro.schema
from fastavro.schema import SchemaParseException, UnknownType
from msgspec import UNSET, Struct

Kind = Literal["null", "boolean", "int", "long", "float", "double", "bytes", "string", "enum", "fixed"]
_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_LOGICAL_TYPES = {
    "decimal": ("bytes", "fixed"),
    "uuid": ("string", "fixed"),
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    "timestamp-millis": ("long",),
    "timestamp-micros": ("long",),
    "local-timestamp-millis": ("long",),
    "local-timestamp-micros": ("long",),
}
_KEY_KINDS = ("string", "int", "long", "boolean", "enum")
_SCHEMA_CHARS_MAX = 1_000_000
_SCHEMA_DEPTH_MAX = 128  # a nullable record is two
DEPTH_MAX = 100  # levels of one event, in JSON as in Avro: what recursion can bear, whatever the limit that is set
COMPILED_NODES_MAX = 2_000
COMPILED_DEPTH_MAX = 16  # CPython takes at most 20 nested loops


class ContractError(Exception):
    """A schema, or an entity's rules over it, that can't be served. Says what, where, and what to do."""


class Leaf(Struct, frozen=True):
    """A value without parts. ``logical`` is ``None`` unless the logical type is known and fits."""

    kind: Kind
    logical: str | None = None
    name: str = ""  # enum, fixed
    symbols: tuple[str, ...] = ()
    size: int = 0  # fixed, bytes
    precision: int = 0
    scale: int = 0


class Array(Struct, frozen=True):
    items: "Node"


class Map(Struct, frozen=True):
    values: "Node"


class Union(Struct, frozen=True):
    branches: tuple["Node", ...]

    def nullable(self) -> "Node | None":
        """T, if this is ``[null, T]`` or ``[T, null]``; else ``None``."""
        if len(self.branches) != 2:
            return None
        others = [branch for branch in self.branches if not is_null(branch)]
        return others[0] if len(others) == 1 else None


class Field(Struct, frozen=True):
    """``default`` is JSON, as the schema spells it; ``UNSET`` if there is none."""

    name: str
    type: "Node"
    default: Any = UNSET


class Record(Struct, eq=False):
    """``fields`` is filled while parsing, so that a record may contain itself. Compared by identity."""

    name: str
    fields: tuple[Field, ...] = ()
    recursive: bool = False


Node = Leaf | Array | Map | Union | Record


def parse(schema: str) -> Record:
    """The schema's tree. Its top level must be a record. Raises ``ContractError``."""
    if len(schema) > _SCHEMA_CHARS_MAX:
        raise ContractError(f"the schema is longer than {_SCHEMA_CHARS_MAX} characters")
    try:
        spelled = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"the schema is no JSON: {error}") from None
    try:
        parsed = fastavro.schema.parse_schema(spelled)
    except (SchemaParseException, UnknownType, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"the schema is no valid Avro schema: {error!r}") from None
    node = _Parser().node(parsed, "", 0)
    if not isinstance(node, Record):
        raise ContractError("the schema's top level must be a record: each event is a JSON object")
    return node


def type_name(node: Node) -> str:
    """The name by which Avro tells the branches of a union apart: full for named types."""
    match node:
        case Leaf(kind="enum" | "fixed") | Record():
            return node.name
        case Leaf():
            return node.kind
        case Array():
            return "array"
        case Map():
            return "map"
        case Union():
            raise AssertionError("a union has no union among its branches")


def plain_name(node: Node) -> str:
    """``type_name`` in the plain schema, where every name has a namespace, so that none is inherited."""
    named = isinstance(node, Record) or (isinstance(node, Leaf) and node.name)
    return f"plain.{type_name(node)}" if named else type_name(node)


def key_leaf(name: str, root: Record) -> Leaf:
    """The type of a key field. Values of other types have several spellings: a key would not find its row again.

    Raises ``ContractError``.
    """
    found = [field.type for field in root.fields if field.name == name]
    if not found:
        raise ContractError(f"key field {name!r} is not in the schema: add it there, or correct `key`")
    (leaf,) = found
    if isinstance(leaf, Union):
        raise ContractError(f"key field {name!r} may be null or of several types: a key field has one type, never null")
    if not isinstance(leaf, Leaf) or leaf.kind not in _KEY_KINDS or leaf.logical not in (None, "uuid"):
        raise ContractError(
            f"key field {name!r} must be a string, uuid, int, long, boolean or enum: values of other types have "
            "several spellings as text"
        )
    return leaf


def is_null(node: Node) -> bool:
    return isinstance(node, Leaf) and node.kind == "null"


def beyond_compiling(root: Record) -> tuple[str, ...]:
    """Why a schema needs the general path, one line for each reason. None: it can be compiled."""
    reasons: dict[str, None] = {}
    for count, (path, depth, node) in enumerate(_walk(root, "", 0)):
        if count > COMPILED_NODES_MAX or depth > COMPILED_DEPTH_MAX:
            return (*reasons, f"more than {COMPILED_NODES_MAX} values or {COMPILED_DEPTH_MAX} levels when written out")
        if isinstance(node, Record) and node.recursive:
            reasons[f"{path}: record {node.name} contains itself"] = None
        if isinstance(node, Union) and node.nullable() is None:
            reasons[f"{path}: a union of {', '.join(type_name(branch) for branch in node.branches)}"] = None
    return tuple(reasons)


def plain_schema(node: Node) -> Any:
    """The same schema without logical types and defaults: what travels, value by value."""
    return _plain(node, set())


def _plain(node: Node, seen: set[str]) -> Any:
    match node:
        case Leaf(kind="enum"):
            return _named(node, {"symbols": list(node.symbols)}, seen)
        case Leaf(kind="fixed"):
            return _named(node, {"size": node.size}, seen)
        case Leaf():
            return node.kind
        case Array():
            return {"type": "array", "items": _plain(node.items, seen)}
        case Map():
            return {"type": "map", "values": _plain(node.values, seen)}
        case Union():
            return [_plain(branch, seen) for branch in node.branches]
        case Record():
            if node.name in seen:
                return plain_name(node)
            seen.add(node.name)
            fields = [{"name": field.name, "type": _plain(field.type, seen)} for field in node.fields]
            return {"type": "record", "name": plain_name(node), "fields": fields}


def _named(node: Leaf, rest: dict[str, Any], seen: set[str]) -> Any:
    if node.name in seen:
        return plain_name(node)
    seen.add(node.name)
    return {"type": node.kind, "name": plain_name(node), **rest}


def _walk(node: Node, path: str, depth: int) -> Iterator[tuple[str, int, Node]]:
    yield path or "/", depth, node
    match node:
        case Array():
            yield from _walk(node.items, f"{path}/[]", depth + 1)
        case Map():
            yield from _walk(node.values, f"{path}/{{}}", depth + 1)
        case Union():
            for branch in node.branches:
                yield from _walk(branch, path, depth + 1)
        case Record(recursive=False):
            for field in node.fields:
                yield from _walk(field.type, f"{path}/{field.name}", depth + 1)


class _Parser:
    """Turns what fastavro has checked and qualified into nodes. Recursion is bounded by ``_SCHEMA_DEPTH_MAX``."""

    def __init__(self) -> None:
        self._named: dict[str, Leaf | Record] = {}
        self._open: list[Record] = []

    def node(self, schema: Any, path: str, depth: int) -> Node:
        if depth > _SCHEMA_DEPTH_MAX:
            raise ContractError(f"the schema nests deeper than {_SCHEMA_DEPTH_MAX} levels, at {path}")
        if isinstance(schema, list):
            return self._union(schema, path, depth)
        if isinstance(schema, str):
            return Leaf(schema) if schema in _PRIMITIVES else self._reference(schema)  # type: ignore[arg-type]
        kind = schema["type"]
        if isinstance(kind, (dict, list)):
            return self.node(kind, path, depth + 1)
        if kind in ("record", "error"):
            return self._record(schema, path, depth)
        if kind == "array":
            return Array(self._counted(schema["items"], f"{path}/[]", depth))
        if kind == "map":
            return Map(self.node(schema["values"], f"{path}/{{}}", depth + 1))
        if kind in _PRIMITIVES or kind in ("enum", "fixed"):
            return self._leaf(schema, path)
        return self._reference(kind)

    def _counted(self, items: Any, path: str, depth: int) -> Node:
        node = self.node(items, path, depth + 1)
        if not _takes_room(node):
            raise ContractError(
                f"{path}: an array of items that take no bytes can't be bounded: ten bytes may claim "
                "2^62 items. Give the item a field"
            )
        return node

    def _union(self, schema: list[Any], path: str, depth: int) -> Node:
        branches = tuple(self.node(branch, path, depth + 1) for branch in schema)
        names = [type_name(branch) for branch in branches]
        if not branches or len(set(names)) != len(names):
            raise ContractError(f"{path}: a union must have branches of different types")
        return Union(branches)

    def _reference(self, name: str) -> Node:
        node = self._named[name]
        if isinstance(node, Record) and node in self._open:
            node.recursive = True
        return node

    def _record(self, schema: dict[str, Any], path: str, depth: int) -> Record:
        record = Record(schema["name"])
        self._named[record.name] = record
        self._open.append(record)
        record.fields = tuple(
            Field(
                field["name"],
                self.node(field["type"], f"{path}/{field['name']}", depth + 1),
                field.get("default", UNSET),
            )
            for field in schema["fields"]
        )
        self._open.pop()
        return record

    def _leaf(self, schema: dict[str, Any], path: str) -> Leaf:
        kind = schema["type"]
        logical = schema.get("logicalType")
        if kind not in _LOGICAL_TYPES.get(str(logical), ()) or (logical == "uuid" and schema.get("size", 16) != 16):
            logical = None
        precision, scale = schema.get("precision", 0), schema.get("scale", 0)
        if logical == "decimal":
            _check_decimal(precision, scale, schema.get("size"), path)
        leaf = Leaf(
            kind=kind,
            logical=logical,
            name=schema.get("name", ""),
            symbols=tuple(schema.get("symbols", ())),
            size=schema.get("size", 0),
            precision=precision if logical == "decimal" else 0,
            scale=scale if logical == "decimal" else 0,
        )
        if leaf.name:
            self._named[leaf.name] = leaf
        return leaf


def _check_decimal(precision: Any, scale: Any, size: int | None, path: str) -> None:
    whole = type(precision) is int and type(scale) is int
    if not whole or not 0 < precision <= 1000 or not 0 <= scale <= precision:
        raise ContractError(f"{path}: a decimal needs 0 < precision <= 1000 and 0 <= scale <= precision")
    if size is not None and 10**precision > 2 ** (8 * size - 1):
        raise ContractError(f"{path}: a fixed of {size} bytes can't hold a decimal of precision {precision}")


def _takes_room(node: Node, inside: tuple[Record, ...] = ()) -> bool:
    match node:
        case Leaf(kind="null"):
            return False
        case Leaf(kind="fixed"):
            return node.size > 0
        case Record():
            return node not in inside and any(_takes_room(field.type, (*inside, node)) for field in node.fields)
        case _:
            return True
