"""What stands between two Avro schemas, in words. For people: whether it matters is the registry's decision. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

DIFFERENCES_MAX = 10
_DEPTH_MAX = 32


def describe_differences(old: str, new: str) -> list[str]:
    """At most ten, outermost first. Schemas that are no JSON have none."""
    try:
        found = _of_types("", msgspec.json.decode(old), msgspec.json.decode(new), 0)
    except msgspec.DecodeError:
        return []
    return [difference for difference, _ in zip(found, range(DIFFERENCES_MAX), strict=False)]


def _of_types(path: str, old: Any, new: Any, depth: int) -> Iterator[str]:
    if old == new or depth > _DEPTH_MAX:
        return
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        if old.get("type") == "record":
            yield from _of_records(path, old, new, depth)
        elif old.get("type") == "enum":
            yield from (f"{path or '/'}: symbol {gone!r} vanished" for gone in _gone(old, new))
        elif old.get("type") in ("array", "map"):
            inner = "items" if old["type"] == "array" else "values"
            yield from _of_types(f"{path}/{inner}", old.get(inner), new.get(inner), depth + 1)
        else:
            yield f"{path or '/'}: {_name(old)} became {_name(new)}"
    else:
        yield f"{path or '/'}: {_name(old)} became {_name(new)}"


def _of_records(path: str, old: dict[str, Any], new: dict[str, Any], depth: int) -> Iterator[str]:
    before = {field["name"]: field for field in old.get("fields", ())}
    after = {field["name"]: field for field in new.get("fields", ())}
    for name, field in after.items():
        if name not in before:
            yield f"{path}/{name}: new" + ("" if "default" in field else ", without a default")
        else:
            yield from _of_types(f"{path}/{name}", before[name]["type"], field["type"], depth + 1)
    yield from (f"{path}/{name}: vanished" for name in before if name not in after)


def _gone(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [symbol for symbol in old.get("symbols", ()) if symbol not in new.get("symbols", ())]


def _name(schema: Any) -> str:
    if isinstance(schema, list):
        return "[" + ", ".join(_name(branch) for branch in schema) + "]"
    if isinstance(schema, dict):
        return str(schema.get("logicalType") or schema.get("name") or schema.get("type"))
    return str(schema)
