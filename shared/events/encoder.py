"""Code compiled from an Avro schema: JSON events → msgspec structs → Avro bytes, a page at a time.

The generated function accepts or doubts; it never refuses. An event that msgspec can't decode into the contract's
structs, or that a check of the generated code stops at, comes out as ``None`` and is judged on the general path. So
this code may be stricter than the contract (then the judge accepts, more slowly) but never more lenient; tests hold
it to that.

What msgspec does not check by itself, the generated code does: an integer beyond 2^53 (2^24) written into a double
(float) may have been rounded; a name that stands twice in an object. The latter by counting quotes: the decoded event
says how many quotes its text must have at least, and a repeated name, or anything else unseen, makes it more.
"""

import builtins
import keyword
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct

from shared.events.judge import default_body, repeats_a_name
from shared.events.leaves import (
    bytes_from_base64,
    decimal_bytes,
    unscaled_decimal,
    uuid_bytes,
    uuid_text,
    when_reader,
)
from shared.events.model import EventRules
from shared.events.schema import Array, Field, Leaf, Map, Node, Record, Union, is_null

PageEncoder = Callable[[Sequence[bytes]], list[bytes | None]]

DOUBTS = (msgspec.DecodeError, ValueError, LookupError, ArithmeticError, RecursionError, struct.error)
_INT32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_INT64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_RESERVED = ("raws", "raw", "bodies", "event", "decode", "quotes")


class CompiledEncoder(Struct, frozen=True):
    encode_page: PageEncoder  # None: doubtful, to be judged
    source: str


class Doubtful(ValueError):
    """Not certainly valid: the judge decides."""


class _Varints(dict[int, bytes]):
    """Avro's zigzag varints by subscription: small ones kept, others made."""

    def __missing__(self, number: int) -> bytes:
        rest = (number << 1) ^ (number >> 63)
        out = b""
        while rest >= 0x4000:
            out += _PAIRS[rest & 0x3FFF]
            rest >>= 14
        return out + _LAST[rest]


_PAIRS = [bytes((low & 0x7F | 0x80, low >> 7 | 0x80)) for low in range(0x4000)]
_LAST = [bytes((low,)) if low < 0x80 else bytes((low & 0x7F | 0x80, low >> 7)) for low in range(0x4000)]
V = _Varints()
V.update({number: V[number] for number in range(-1024, 4096)})


def compile_encoder(rules: EventRules, root: Record, header: bytes) -> CompiledEncoder:
    """The page encoder of a schema for which ``schema.beyond_compiling`` has no reason."""
    return _Generator(rules, header).compile(root)


class _Generator:
    """Writes the page function line by line. ``_quotes`` counts, per open block, the quotes that its fields must
    have.
    """

    def __init__(self, rules: EventRules, header: bytes) -> None:
        self._utc_offset_minutes = rules.utc_offset_minutes
        self._forbid_unknown = rules.on_unknown_field == "park"
        self._lines: list[str] = []
        self._indent = 3
        self._quotes = 0
        self._structs: dict[int, type[Struct]] = {}
        self._attributes: dict[int, dict[str, str]] = {}
        self._globals: dict[str, Any] = {
            "V": V,
            "UNSET": UNSET,
            "HEADER": header,
            "TRUE": b"\x01",
            "FALSE": b"\x00",
            "END": b"\x00",
            "Doubtful": Doubtful,
            "DOUBTS": DOUBTS,
            "join": b"".join,
            "double": struct.Struct("<d").pack,
            "float_": struct.Struct("<f").pack,
            "base64": bytes_from_base64,
            "uuid_text": uuid_text,
            "uuid_bytes": uuid_bytes,
            "repeats_a_name": repeats_a_name,
        }
        self._names = {*_RESERVED, *self._globals, *dir(builtins)}

    def compile(self, root: Record) -> CompiledEncoder:
        decode = msgspec.json.Decoder(self._struct(root)).decode
        parts = ["HEADER", *self._record(root, "event", "")]
        source = "\n".join(
            [
                "def encode_page(raws):",
                "    bodies = []",
                "    for raw in raws:",
                "        try:",
                "            event = decode(raw)",
                f"            quotes = {self._quotes}",
                *self._lines,
                "            if raw.count(b'\"') != quotes and repeats_a_name(raw):",
                "                raise Doubtful",
                f"            bodies.append(join(({_tuple(parts)})))",
                "        except DOUBTS:",
                "            bodies.append(None)",
                "    return bodies",
                "",
            ]
        )
        scope = {**self._globals, "decode": decode}
        exec(compile(source, f"<contract {root.name}>", "exec"), scope)  # noqa: S102 - our own text, names sanitised
        return CompiledEncoder(scope["encode_page"], source)

    def _record(self, record: Record, value: str, path: str) -> list[str]:
        parts: list[str] = []
        for field in record.fields:
            attribute = self._attributes[id(record)][field.name]
            parts += self._field(field, f"{value}.{attribute}", self._local(f"{path}{attribute}"))
        return parts

    def _field(self, field: Field, value: str, name: str) -> list[str]:
        if field.default is UNSET:
            self._quotes += 2  # those of its name
            return self._node(field.type, value, name)
        default = self._constant(name, default_body(field, (field.name,)))
        self._line(f"{name} = {value}")
        self._line(f"if {name} is UNSET:")
        self._line(f"    {name} = {default}")
        self._line("else:")
        with self._block():
            self._quotes += 2
            self._line(f"{name} = {_joined(self._node(field.type, name, name))}")
        return [name]

    def _node(self, node: Node, value: str, name: str) -> list[str]:
        """Writes statements, returns the expressions of the bytes. ``name`` is a local variable to be used for the
        value.
        """
        match node:
            case Leaf():
                return self._leaf(node, value, name)
            case Record():
                self._alias(name, value)
                return self._record(node, name, f"{name}__")
            case Union():
                return self._nullable(node, value, name)
            case Array():
                return self._array(node, value, name)
            case Map():
                return self._map(node, value, name)

    def _leaf(self, leaf: Leaf, value: str, name: str) -> list[str]:
        match leaf:
            case Leaf(logical="decimal"):
                return self._decimal(leaf, value, name)
            case Leaf(logical="uuid"):
                self._quotes += 2
                self._line(f"{name} = {'uuid_text' if leaf.kind == 'string' else 'uuid_bytes'}({value})")
                if leaf.kind == "fixed":
                    return [name]
                self._line(f"{name} = {name}.encode()")
                return [f"V[len({name})]", name]
            case Leaf(logical=str(logical)):
                reader = self._global(logical.replace("-", "_"), when_reader(leaf, self._utc_offset_minutes))
                self._alias(name, value)
                self._line(f"if {name}.__class__ is str:")
                self._line("    quotes += 2")
                return [f"V[{reader}({name})]"]
            case Leaf(kind="null"):
                return []
            case Leaf(kind="boolean"):
                return [f"TRUE if {value} else FALSE"]
            case Leaf(kind="int" | "long"):
                return [f"V[{value}]"]
            case Leaf(kind="float" | "double"):
                exact = 2**24 if leaf.kind == "float" else 2**53
                self._alias(name, value)
                self._line(f"if not -{exact} < {name} < {exact}:")
                self._line("    raise Doubtful")
                return [f"{'float_' if leaf.kind == 'float' else 'double'}({name})"]
        self._quotes += 2
        if leaf.kind == "enum":
            symbols = {symbol: V[index] for index, symbol in enumerate(leaf.symbols)}
            return [f"{self._global(f'SYMBOLS_{name}', symbols)}[{value}]"]
        self._line(f"{name} = {value}.encode()" if leaf.kind == "string" else f"{name} = base64({value})")
        if leaf.kind != "fixed":
            return [f"V[len({name})]", name]
        self._line(f"if len({name}) != {leaf.size}:")
        self._line("    raise Doubtful")
        return [name]

    def _decimal(self, leaf: Leaf, value: str, name: str) -> list[str]:
        """Decimals come as their JSON text, a number or a string."""
        reader = self._global(f"decimal_{leaf.precision}_{leaf.scale}_{leaf.size}", _decimal_reader(leaf))
        self._line(f"{name} = bytes({value})")
        self._line(f"if {name}[0] == {ord(chr(34))}:")
        self._line(f"    {name} = {name}[1:-1]")
        self._line("    quotes += 2")
        self._line(f"{name} = {reader}({name})")
        return [name] if leaf.size else [f"V[len({name})]", name]

    def _nullable(self, union: Union, value: str, name: str) -> list[str]:
        some = next(index for index, branch in enumerate(union.branches) if not is_null(branch))
        branch = union.branches[some]
        decimal = isinstance(branch, Leaf) and branch.logical == "decimal"
        self._line(f"{name} = bytes({value})" if decimal else f"{name} = {value}")
        self._line(f"if {name} == b'null':" if decimal else f"if {name} is None:")
        self._line(f"    {name} = {V[1 - some]!r}")
        self._line("else:")
        with self._block():
            parts = self._node(branch, name, name)
            self._line(f"{name} = {_joined([repr(V[some]), *parts])}")
        return [name]

    def _array(self, array: Array, value: str, name: str) -> list[str]:
        parts, item = self._local(f"{name}_parts"), self._local(f"{name}_item")
        self._alias(name, value)
        self._line(f"{parts} = [V[len({name})]] if {name} else []")
        self._line(f"for {item} in {name}:")
        with self._block():
            self._line(f"{parts} += ({_tuple(self._node(array.items, item, item))})")
        return [f"join({parts})", "END"]

    def _map(self, node: Map, value: str, name: str) -> list[str]:
        parts, key, item = (self._local(f"{name}_{part}") for part in ("parts", "key", "value"))
        self._alias(name, value)
        self._line(f"{parts} = [V[len({name})]] if {name} else []")
        self._line(f"for {key}, {item} in {name}.items():")
        with self._block():
            self._quotes += 2
            self._line(f"{key} = {key}.encode()")
            found = [f"V[len({key})]", key, *self._node(node.values, item, item)]
            self._line(f"{parts} += ({_tuple(found)})")
        return [f"join({parts})", "END"]

    def _struct(self, record: Record) -> type[Struct]:
        if id(record) in self._structs:
            return self._structs[id(record)]
        attributes = {field.name: _attribute(field.name, index) for index, field in enumerate(record.fields)}
        self._attributes[id(record)] = attributes
        fields: list[Any] = []
        for field in record.fields:
            definition = (attributes[field.name], self._type(field.type))
            fields.append(definition if field.default is UNSET else (*definition, UNSET))
        made = msgspec.defstruct(
            f"Record{len(self._structs)}",
            fields,
            rename={attribute: name for name, attribute in attributes.items()},
            forbid_unknown_fields=self._forbid_unknown,
            kw_only=True,
            gc=False,
        )
        self._structs[id(record)] = made
        return made

    def _type(self, node: Node) -> Any:
        match node:
            case Record():
                return self._struct(node)
            case Array():
                return list[self._type(node.items)]  # type: ignore[misc]
            case Map():
                return dict[str, self._type(node.values)]  # type: ignore[misc]
            case Union():
                some = next(branch for branch in node.branches if not is_null(branch))
                found = self._type(some)
                return Raw if found is Raw else found | None
            case Leaf():
                return _leaf_type(node)

    def _line(self, text: str) -> None:
        self._lines.append("    " * self._indent + text)

    @contextmanager
    def _block(self) -> Iterator[None]:
        """What is written inside runs only sometimes, or many times: it counts its own quotes."""
        outer, self._quotes = self._quotes, 0
        self._indent += 1
        yield
        if self._quotes:
            self._line(f"quotes += {self._quotes}")
        self._indent -= 1
        self._quotes = outer

    def _alias(self, name: str, value: str) -> None:
        if name != value:
            self._line(f"{name} = {value}")

    def _local(self, wanted: str) -> str:
        return self._global(wanted, None)

    def _constant(self, name: str, value: bytes) -> str:
        return self._global(f"DEFAULT_{name}", value)

    def _global(self, wanted: str, value: Any) -> str:
        """A name of its own for a value that the generated code uses; ``None``: for a local variable."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        if value is not None:
            self._globals[name] = value
        return name


def _leaf_type(leaf: Leaf) -> Any:
    match leaf:
        case Leaf(logical="decimal"):
            return Raw
        case Leaf(logical=str(logical)) if logical != "uuid":
            return int | str
        case Leaf(kind="null"):
            return None
        case Leaf(kind="boolean"):
            return bool
        case Leaf(kind="int"):
            return _INT32
        case Leaf(kind="long"):
            return _INT64
        case Leaf(kind="float" | "double"):
            return float
        case _:
            return str


def _decimal_reader(leaf: Leaf) -> Callable[[bytes], bytes]:
    def read(text: bytes) -> bytes:
        return decimal_bytes(unscaled_decimal(text.decode(), leaf.precision, leaf.scale), leaf.size)

    return read


def _attribute(name: str, index: int) -> str:
    """A field's name as an attribute: itself, unless Python or msgspec would mind."""
    return f"field_{index}" if keyword.iskeyword(name) or name.startswith(("_", "field_")) else name


def _tuple(parts: Iterable[str]) -> str:
    return "".join(f"{part}, " for part in parts).rstrip(" ")


def _joined(parts: list[str]) -> str:
    return " + ".join(f"({part})" if " if " in part else part for part in parts) if parts else "b''"
