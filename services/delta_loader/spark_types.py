"""Spark's data types as a small tree, without Spark: read from its schema JSON, written as JSON or as DDL."""

import json
import re
from typing import Any

from msgspec import Struct

_DDL_NAMES = {"long": "bigint", "integer": "int", "short": "smallint", "byte": "tinyint"}
_DECIMAL = re.compile(r"decimal\(([0-9]+),(-?[0-9]+)\)")
_NEEDS_MAPPING = frozenset(" ,;{}()\n\t=")  # what Delta refuses in a name unless its columns are mapped


class Simple(Struct, frozen=True):
    """A type without parts, by its name in Spark's JSON: ``long``, ``decimal(38,9)``."""

    name: str


class ArrayOf(Struct, frozen=True):
    element: "SparkType"


class MapOf(Struct, frozen=True):
    value: "SparkType"
    key: "SparkType" = Simple("string")


class Member(Struct, frozen=True):
    """``nullable`` counts at the top level only: below it, everything may be null."""

    name: str
    type: "SparkType"
    nullable: bool = True


class StructOf(Struct, frozen=True):
    members: tuple[Member, ...] = ()

    def find(self, name: str) -> Member | None:
        """By name without case, as Spark and Delta find it."""
        return next((member for member in self.members if member.name.lower() == name.lower()), None)


SparkType = Simple | ArrayOf | MapOf | StructOf


def from_json(text: str) -> StructOf:
    """The tree of ``df.schema.json()``. What the fields' metadata say is left out."""
    found = _read(json.loads(text))
    assert isinstance(found, StructOf), "a schema is a struct"
    return found


def to_json(struct: StructOf) -> str:
    """What ``StructType.fromJson(json.loads(…))`` takes."""
    return json.dumps(_written(struct))


def ddl(spark_type: SparkType) -> str:
    """As a person writes it, and as SQL takes it: ``array<struct<x: bigint>>``."""
    match spark_type:
        case Simple():
            return _DDL_NAMES.get(spark_type.name, spark_type.name)
        case ArrayOf():
            return f"array<{ddl(spark_type.element)}>"
        case MapOf():
            return f"map<{ddl(spark_type.key)}, {ddl(spark_type.value)}>"
        case StructOf():
            return f"struct<{', '.join(f'{quoted(m.name)}: {ddl(m.type)}' for m in spark_type.members)}>"


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return f"`{name.replace('`', '``')}`"


def decimal_of(spark_type: SparkType) -> tuple[int, int] | None:
    """Precision and scale."""
    match = _DECIMAL.fullmatch(spark_type.name) if isinstance(spark_type, Simple) else None
    return (int(match[1]), int(match[2])) if match else None


def names_need_mapping(spark_type: SparkType) -> bool:
    """Whether Delta takes some name in it only with ``delta.columnMapping.mode`` = ``name``."""
    match spark_type:
        case Simple():
            return False
        case ArrayOf():
            return names_need_mapping(spark_type.element)
        case MapOf():
            return names_need_mapping(spark_type.key) or names_need_mapping(spark_type.value)
        case StructOf():
            return any(name_needs_mapping(m.name) or names_need_mapping(m.type) for m in spark_type.members)


def name_needs_mapping(name: str) -> bool:
    return not name or not _NEEDS_MAPPING.isdisjoint(name)


def holds(spark_type: SparkType, name: str) -> bool:
    """Whether the simple type of this name is in it, at any level."""
    match spark_type:
        case Simple():
            return spark_type.name == name
        case ArrayOf():
            return holds(spark_type.element, name)
        case MapOf():
            return holds(spark_type.key, name) or holds(spark_type.value, name)
        case StructOf():
            return any(holds(member.type, name) for member in spark_type.members)


def _read(spelled: Any) -> SparkType:
    if isinstance(spelled, str):
        return Simple(spelled)
    match spelled["type"]:
        case "struct":
            return StructOf(tuple(Member(f["name"], _read(f["type"]), f["nullable"]) for f in spelled["fields"]))
        case "array":
            return ArrayOf(_read(spelled["elementType"]))
        case "map":
            return MapOf(_read(spelled["valueType"]), _read(spelled["keyType"]))
    raise ValueError(f"a type that no table can hold: {spelled['type']!r}")


def _written(spark_type: SparkType) -> Any:
    match spark_type:
        case Simple():
            return spark_type.name
        case ArrayOf():
            return {"type": "array", "elementType": _written(spark_type.element), "containsNull": True}
        case MapOf():
            parts = {"keyType": _written(spark_type.key), "valueType": _written(spark_type.value)}
            return {"type": "map", **parts, "valueContainsNull": True}
        case StructOf():
            fields = [
                {"name": m.name, "type": _written(m.type), "nullable": m.nullable, "metadata": {}}
                for m in spark_type.members
            ]
            return {"type": "struct", "fields": fields}
