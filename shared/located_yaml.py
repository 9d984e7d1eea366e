"""YAML whose every value knows its line: read into structs with all problems at once, none hidden by the first.

Values are read as in YAML 1.2's core schema: ``no`` and ``12:30`` are text. No tags, no merge keys.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml
from msgspec import Struct, structs

from shared import config

FILE_BYTES_MAX = 256 * 1024
NODES_MAX = 50_000

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, bool | None] = {"true": True, "True": True, "false": False, "False": False}
_WORDS |= {"null": None, "~": None, "": None}

_T = TypeVar("_T", bound=Struct)

Value: TypeAlias = "dict[str, Located] | list[Located] | str | int | float | bool | None"


class Located(Struct, frozen=True):
    """A value and where it stands."""

    value: Value
    file: Path
    line: int
    key_lines: dict[str, int] = {}

    def find(self, *keys: str) -> "Located":
        """The value below these keys, or the nearest one above it that is written down."""
        node = self
        for key in keys:
            if not isinstance(node.value, dict) or key not in node.value:
                break
            node = node.value[key]
        return node

    def key(self, name: str) -> "Located":
        """The place of a key itself, which for a map is not that of its value."""
        return Located(name, self.file, self.key_lines.get(name, self.line))

    def plain(self) -> Any:
        """Without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value


class Problems:
    """What is wrong, and where."""

    def __init__(self) -> None:
        self._found: set[tuple[str, int, str]] = set()

    def add(self, where: Located, message: str) -> None:
        self.add_at(where.file, where.line, message)

    def add_at(self, file: Path, line: int, message: str) -> None:
        self._found.add((str(file), line, message))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        """``file:line: message``, in order; line 0 stands for the whole."""
        return (f"{file}{f':{line}' if line else ''}: {message}" for file, line, message in sorted(self._found))


def parse(file: Path, problems: Problems) -> Located | None:
    """The one document of ``file``; ``None`` when it is empty or, with a problem added, unreadable."""
    try:
        with open(file, "rb") as stream:
            text = stream.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            problems.add_at(file, 1, f"larger than {FILE_BYTES_MAX} bytes; split the file")
            return None
        root = yaml.compose(text.decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        problems.add_at(file, 1, f"can't be read ({config.reason(error)})")
    except UnicodeDecodeError as error:
        problems.add_at(file, text[: error.start].count(b"\n") + 1, "not UTF-8; save the file as UTF-8")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add_at(file, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, RecursionError) as error:
        problems.add_at(file, 1, f"not YAML: {type(error).__name__}")
    else:
        return _Reading(file, problems).located(root) if root is not None else None
    return None


def read_form(cls: type[_T], node: Located, problems: Problems) -> _T | None:
    """``node`` as ``cls``, each field by itself; ``None`` when a required one is missing.

    With problems added, fields that don't fit have their defaults, so that the caller can go on checking the rest.
    A class variable ``shorthand`` names the field that a bare value stands for: ``updated_at: changed`` means
    ``updated_at: {field: changed}``.
    """
    shorthand = getattr(cls, "shorthand", None)
    if shorthand is not None and isinstance(node.value, str | int | float):
        node = Located({shorthand: node}, node.file, node.line, {shorthand: node.line})
    if not isinstance(node.value, dict):
        problems.add(node, f"expected a map with {', '.join(_names(cls))}")
        return None
    _refuse_unknown(cls, node, problems)
    values: dict[str, Any] = {}
    for field in structs.fields(cls):
        item = node.value.get(field.encode_name)
        if item is not None:
            _read_field(field, item, values, problems)
        elif field.required:
            problems.add(node, f"{field.encode_name!r} is missing; expected {_wanted(field)}")
    return cls(**values) if all(field.name in values for field in structs.fields(cls) if field.required) else None


def _read_field(field: structs.FieldInfo, item: Located, values: dict[str, Any], problems: Problems) -> None:
    form = config.struct_in(field.type)
    if form is not None:
        nested = read_form(form, item, problems)
        if nested is not None:
            values[field.name] = nested
        return
    try:
        values[field.name] = config.convert(item.plain(), field.type)
    except ValueError as error:
        problems.add(item, f"{field.encode_name}: {error}")


def _wanted(field: structs.FieldInfo) -> str:
    form = config.struct_in(field.type)
    if form is None:
        return config.expected(field.type)
    shorthand = getattr(form, "shorthand", None)
    return f"a map with {', '.join(_names(form))}" + (f", or its {shorthand} alone" if shorthand else "")


def _refuse_unknown(cls: type[Struct], node: Located, problems: Problems) -> None:
    assert isinstance(node.value, dict)
    names = _names(cls)
    for key in node.value:
        if key not in names:
            hint = config.guess(key, names) or f"; known are {', '.join(names)}"
            problems.add_at(node.file, node.key_lines[key], f"unknown key {key!r}{hint}")


def _names(cls: type[Struct]) -> list[str]:
    return [field.encode_name for field in structs.fields(cls)]


class _Reading:
    """One file's nodes, counted: aliases could else make a small file a large one."""

    def __init__(self, file: Path, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._nodes = 0

    def located(self, node: yaml.Node) -> Located:
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > NODES_MAX:
            if self._nodes == NODES_MAX + 1:
                self._problems.add_at(self._file, line, f"more than {NODES_MAX} values; split the file")
            return Located(None, self._file, line)
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            self._problems.add_at(self._file, line, f"tag {node.tag!r} is not understood; write a plain value")
            return Located(None, self._file, line)
        if isinstance(node, yaml.MappingNode):
            return self._map(node, line)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.located(item) for item in node.value], self._file, line)
        assert isinstance(node, yaml.ScalarNode)
        return Located(_scalar(node), self._file, line)

    def _map(self, node: yaml.MappingNode, line: int) -> Located:
        items: dict[str, Located] = {}
        key_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, key_line = str(key_node.value), key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.add_at(self._file, key_line, "a key must be text")
            elif key in items:
                self._problems.add_at(self._file, key_line, f"{key!r} stands here twice; line {key_lines[key]} has it")
            else:
                items[key], key_lines[key] = self.located(value_node), key_line
        return Located(items, self._file, line, key_lines)


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block of text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
