"""One Avro body → one flat row: the general path of flattening, and the judge of undecodable bytes.

fastavro's reader is not used on bytes that come from a topic: 5 KB of nested records crash it. Our own bounds depth,
knows which branch of a union was written, and refuses what others misread: an int beyond 32 bits, a boolean other
than 0 and 1, an index beyond its union or enum, a length beyond the body, bytes that are left over.
"""

import math
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from shared.events.columns import branch_names, columns
from shared.events.instants import format_date, format_iso_us, format_local_us, format_time_us
from shared.events.schema import DEPTH_MAX, Array, Leaf, Map, Node, Record, Union, is_null

_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


class BadBody(Exception):
    """The bytes fail under their schema. Says where and why, never quotes a value."""


class Chosen(Struct, frozen=True):
    """A value of a union of several, and which branch it is."""

    index: int
    value: Any


class RowReader:
    """Reads and flattens the bodies of one schema."""

    def __init__(self, root: Record) -> None:
        self._root = root
        self.columns = tuple(column.name for column in columns(root))

    def row(self, body: bytes) -> dict[str, Any]:
        """All columns in order, each a JSON value. Raises ``BadBody``."""
        reader = _Reader(body)
        try:
            datum = reader.read(self._root, 0)
        except (IndexError, struct.error):
            raise BadBody("the body ends too early") from None
        except UnicodeDecodeError:
            raise BadBody("a string is no UTF-8") from None
        except (ValueError, OverflowError) as error:
            raise BadBody(str(error)) from None
        if reader.position != len(body):
            raise BadBody(f"{len(body) - reader.position} bytes are left over")
        row: dict[str, Any] = {}
        _flatten(self._root, datum, "", (), row)
        return row


class _Reader:
    """A cursor over one body. Values come out as JSON has them; unions of several as ``Chosen``."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.position = 0

    def read(self, node: Node, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise BadBody(f"nested deeper than {DEPTH_MAX} levels")
        match node:
            case Leaf():
                return self._leaf(node)
            case Record():
                return {field.name: self.read(field.type, depth + 1) for field in node.fields}
            case Union():
                index = self._index(len(node.branches))
                value = self.read(node.branches[index], depth)  # a union adds no level of its own
                return value if node.nullable() else Chosen(index, value)
            case Array():
                return [self.read(node.items, depth + 1) for _ in self._items()]
            case Map():
                return {self._bytes().decode(): self.read(node.values, depth + 1) for _ in self._items()}

    def _leaf(self, leaf: Leaf) -> Any:
        match leaf.kind:
            case "null":
                return None
            case "boolean":
                return self._boolean()
            case "int":
                value = self._long()
                if not -(2**31) <= value < 2**31:
                    raise BadBody("an int beyond 32 bits")
                return _formatter(leaf)(value)
            case "long":
                return _formatter(leaf)(self._long())
            case "float":
                return _finite(_FLOAT.unpack(self._take(4))[0])
            case "double":
                return _finite(_DOUBLE.unpack(self._take(8))[0])
            case "string":
                return self._bytes().decode()
            case "enum":
                return leaf.symbols[self._index(len(leaf.symbols))]
            case "bytes":
                return binary_formatter(leaf)(self._bytes())
            case "fixed":
                return binary_formatter(leaf)(self._take(leaf.size))

    def _items(self) -> Any:
        """Once per item of an array or map, over all its blocks. Each item takes at least a byte: this ends."""
        while count := self._long():
            if count < 0:
                count = -count
                self._long()  # the block's bytes, for those who skip
            if count > len(self.body) - self.position:
                raise BadBody("a block that claims more items than there are bytes")
            for _ in range(count):
                yield

    def _index(self, length: int) -> int:
        index = self._long()
        if not 0 <= index < length:
            raise BadBody("an index beyond its union or enum")
        return index

    def _boolean(self) -> bool:
        (byte,) = self._take(1)
        if byte > 1:
            raise BadBody("a boolean that is neither 0 nor 1")
        return byte == 1

    def _bytes(self) -> bytes:
        return self._take(self._long())

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if length < 0 or end > len(self.body):
            raise BadBody("a length beyond the body")
        taken = self.body[self.position : end]
        self.position = end
        return taken

    def _long(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.body[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64:
                    break
                return (value >> 1) ^ -(value & 1)
        raise BadBody("an integer beyond 64 bits")


def binary_formatter(leaf: Leaf) -> Callable[[bytes], str]:
    """How the bytes of this leaf are written in a row."""
    if leaf.logical == "decimal":
        return lambda value: decimal_text(value, leaf.scale)
    if leaf.logical == "uuid":
        return lambda value: str(UUID(bytes=value))
    return lambda value: b64encode(value).decode()


def decimal_text(value: bytes, scale: int) -> str:
    """``-1.20`` for the unscaled -120 at scale 2: as many digits after the point as the scale says, never an
    exponent.
    """
    unscaled = int.from_bytes(value, "big", signed=True)
    digits = str(abs(unscaled)).rjust(scale + 1, "0")
    sign = "-" if unscaled < 0 else ""
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else f"{sign}{digits}"


def _formatter(leaf: Leaf) -> Callable[[int], Any]:
    return _FORMATTERS[leaf.logical]


_FORMATTERS: dict[str | None, Callable[[int], Any]] = {
    None: lambda value: value,
    "date": format_date,
    "time-millis": lambda value: format_time_us(value * 1_000),
    "time-micros": format_time_us,
    "timestamp-millis": lambda value: format_iso_us(value * 1_000),
    "timestamp-micros": format_iso_us,
    "local-timestamp-millis": lambda value: format_local_us(value * 1_000),
    "local-timestamp-micros": format_local_us,
}


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _flatten(node: Node, datum: Any, prefix: str, inside: tuple[Record, ...], row: dict[str, Any]) -> None:
    """Writes the columns of a value into the row; of an absent one (``None``), null into each. Mirrors
    ``columns.columns``.
    """
    match node:
        case Record() if node not in inside:
            for field in node.fields:
                below = f"{prefix}__{field.name}" if prefix else field.name
                _flatten(field.type, None if datum is None else datum[field.name], below, (*inside, node), row)
        case Union() if (nullable := node.nullable()) is not None:
            _flatten(nullable, datum, prefix, inside, row)
        case Union():
            for index, (branch, name) in enumerate(zip(node.branches, branch_names(node), strict=True)):
                if not is_null(branch):
                    chosen = datum.value if datum is not None and datum.index == index else None
                    _flatten(branch, chosen, f"{prefix}__{name}", inside, row)
        case Record():
            row[prefix] = None if datum is None else msgspec.json.encode(_native(node, datum)).decode()
        case _:
            row[prefix] = _native(node, datum)


def _native(node: Node, datum: Any) -> Any:
    """A value that stays JSON: objects and arrays as they are; a union of several, an object of one member per
    branch.
    """
    if datum is None:
        return None
    match node:
        case Record():
            return {field.name: _native(field.type, datum[field.name]) for field in node.fields}
        case Array():
            return [_native(node.items, item) for item in datum]
        case Map():
            return {name: _native(node.values, item) for name, item in datum.items()}
        case Union() if (nullable := node.nullable()) is not None:
            return _native(nullable, datum)
        case Union():
            named = [(name, branch) for name, branch in zip(branch_names(node), node.branches, strict=True)]
            return {
                name: _native(branch, datum.value) if datum.index == index else None
                for index, (name, branch) in enumerate(named)
                if not is_null(branch)
            }
        case Leaf():
            return datum
