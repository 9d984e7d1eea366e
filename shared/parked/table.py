"""The table's definition, and what an existing one lacks. Pure."""

from typing import Any

_KEYS = {"pk": "HASH", "sk": "RANGE"}
_INDEXES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "due": ({"dq": "HASH", "due": "RANGE"}, ("st", "ver", "entity", "reason")),
    "grp": ({"gk": "HASH", "gs": "RANGE"}, ("st", "path", "sub", "sfp", "att", "owner", "key")),
}
INDEX_NAMES = tuple(_INDEXES)


class ParkedTableDiffers(Exception):
    """A table of this name exists, but not with these keys and indexes."""


def definition(table: str) -> dict[str, Any]:
    """Parameters of CreateTable. Every key and index key is text. No TTL: it must never stand for a lease or a due."""
    names = [*_KEYS, *(name for keys, _ in _INDEXES.values() for name in keys)]
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
        "KeySchema": _schema(_KEYS),
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index,
                "KeySchema": _schema(keys),
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(projected)},
            }
            for index, (keys, projected) in _INDEXES.items()
        ],
    }


def is_active(description: dict[str, Any]) -> bool:
    indexes = description.get("GlobalSecondaryIndexes", [])
    return all(part.get("TableStatus", part.get("IndexStatus")) == "ACTIVE" for part in (description, *indexes))


def differences(description: dict[str, Any]) -> list[str]:
    """What a described table has otherwise than ``definition``; further indexes and projected fields are no harm.

    An index that is being deleted is as good as gone, and its attributes may be gone before it.
    """
    types = {part["AttributeName"]: part["AttributeType"] for part in description["AttributeDefinitions"]}
    found = _key_differences("the table", _KEYS, description["KeySchema"], types)
    listed = description.get("GlobalSecondaryIndexes", [])
    indexes = {index["IndexName"]: index for index in listed if index.get("IndexStatus") != "DELETING"}
    for name, (keys, projected) in _INDEXES.items():
        if name not in indexes:
            found.append(f"index {name!r} is missing")
            continue
        found += _key_differences(f"index {name!r}", keys, indexes[name]["KeySchema"], types)
        projection = indexes[name]["Projection"]
        missing = set(projected) - set(projection.get("NonKeyAttributes", ()))
        if projection["ProjectionType"] != "ALL" and missing:
            found.append(f"index {name!r} does not project {', '.join(sorted(missing))}")
    return found


def _schema(keys: dict[str, str]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": kind} for name, kind in keys.items()]


def _key_differences(
    where: str, wanted: dict[str, str], schema: list[dict[str, str]], types: dict[str, str]
) -> list[str]:
    there = {part["AttributeName"]: part["KeyType"] for part in schema}
    if there != wanted:
        return [f"{where} has the keys {there}, must have {wanted}"]
    return [f"{where}: key {name!r} has type {types[name]}, must be S" for name in wanted if types[name] != "S"]
