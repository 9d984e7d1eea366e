"""What of an event may stand in a notice: the schema's names, and values of fields that it marks ``"public": true``.

Pure. A path into an event may itself hold a value, for the keys of an Avro map are the source's data: they are masked.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import fastavro.schema
from fastavro.schema import SchemaParseException, UnknownType

from services.stale_notifier.notice import SAMPLES_MAX, legible

MASK = "*"
_EVENT_BYTES_MAX = 1_000_000
_DEPTH_MAX = 16


class Disclosure:
    """By one schema. Without one, or with one that can't be read, nothing but the first name of a path is told."""

    def __init__(self, schema: str | None) -> None:
        self._named: dict[str, Any] = {}
        try:
            parsed = fastavro.schema.parse_schema(json.loads(schema), self._named) if schema is not None else None
        except (SchemaParseException, UnknownType, LookupError, TypeError, ValueError, AttributeError, RecursionError):
            parsed = None
        self._root = parsed

    def path(self, pointer: str) -> str:
        """The JSON pointer with ``*`` for each part that isn't a name of the schema's, an index, or unknown to it
        (the name that is refused is what the owner must see)."""
        if not pointer.startswith("/"):
            return ""
        shown: list[str] = []
        nodes = self._records_and_more(self._root)
        for segment in pointer[1:].split("/"):
            if len(shown) == _DEPTH_MAX:
                break
            told, nodes = self._step(nodes, segment.replace("~1", "/").replace("~0", "~"), not shown)
            shown.append(segment if told else MASK)
        return legible("".join(f"/{segment}" for segment in shown))

    def samples(self, raw: bytes) -> dict[str, str]:
        """Path → text of public values in this event; nothing of an event that is no JSON object."""
        if len(raw) > _EVENT_BYTES_MAX:
            return {}
        try:
            event = json.loads(raw, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return {}
        found: dict[str, str] = {}
        for path, text in self._public(self._root, event, "", 0):
            if len(found) == SAMPLES_MAX:
                break
            found[path] = legible(text)
        return found

    def _step(
        self, nodes: list[Mapping[str, Any]], segment: str, is_first: bool
    ) -> tuple[bool, list[Mapping[str, Any]]]:
        """May the segment be told, and what lies below it?"""
        below: list[Mapping[str, Any]] = []
        is_named, in_record, in_array = False, is_first and not nodes, False
        for node in nodes:
            match node.get("type"):
                case "record" | "error":
                    in_record = True
                    for field in node["fields"]:
                        if field["name"] == segment:
                            is_named = True
                            below += self._records_and_more(field["type"])
                case "array":
                    in_array = True
                    below += self._records_and_more(node["items"])
                case "map":
                    below += self._records_and_more(node["values"])
        only_records = in_record and all(node.get("type") in ("record", "error") for node in nodes)
        return is_named or only_records or (in_array and segment.isdigit()), below

    def _public(self, schema: Any, value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
        if depth == _DEPTH_MAX or not isinstance(value, dict):
            return
        for node in self._records_and_more(schema):
            for field in node.get("fields", ()):
                name = field["name"]
                if name not in value:
                    continue
                below = f"{path}/{name}"
                if field.get("public") is True and isinstance(value[name], str | bool):
                    yield below, value[name] if isinstance(value[name], str) else json.dumps(value[name])
                yield from self._public(field["type"], value[name], below, depth + 1)

    def _records_and_more(self, schema: Any) -> list[Mapping[str, Any]]:
        """The records, arrays and maps that a type stands for, unions and names followed."""
        if isinstance(schema, str):
            named = self._named.get(schema)
            return [named] if isinstance(named, dict) else []
        if isinstance(schema, list):
            return [node for branch in schema for node in self._records_and_more(branch)]
        if isinstance(schema, dict):
            kind = schema.get("type")
            return [schema] if kind in ("record", "error", "array", "map") else self._records_and_more(kind)
        return []
