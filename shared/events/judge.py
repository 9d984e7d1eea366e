"""The general path: any Avro schema, one event at a time, at full strictness. The judge of every doubtful event.

JSON → datum by a typed walk (a bool is no int, ranges hold, decimals are exact, no lone surrogates, no unknown field
at any depth, exactly one branch of a union fits) → bytes by fastavro → read back and compared. Compiled code never
refuses an event by itself: what it does not accept comes here, so the two can't disagree about what is valid, and
refusals read alike.

A field's own rules, decided here:

- an absent field takes the schema's default; without one it is refused, also where null would do: absent is not null;
- an integer is no string and no bool; ``1.0`` is no integer; an integer is a float or double if that holds it
  exactly;
- a fraction is rounded to the nearest double or float, as everywhere; NaN and infinities are refused, written or
  overflowed;
- in a union an integer fits a float or double only if the union has no int or long; otherwise exactly one branch must
  fit;
- a name that stands twice in one object is refused as HOSTILE: parsers disagree about which value it has.
"""

import json
import struct
from collections.abc import Callable
from io import BytesIO
from math import inf, isfinite
from typing import Any

import fastavro
import fastavro.schema
from msgspec import UNSET

from shared.events.identity import pointer
from shared.events.leaves import (
    bytes_from_base64,
    decimal_bytes,
    unscaled_decimal,
    uuid_bytes,
    uuid_text,
    when_reader,
)
from shared.events.model import EventRules, Reason, RejectedEvent
from shared.events.nesting import deeper_than
from shared.events.schema import (
    Array,
    ContractError,
    Field,
    Leaf,
    Map,
    Node,
    Record,
    Union,
    is_null,
    plain_name,
    plain_schema,
    type_name,
)

Path = tuple[str | int, ...]
ANY_KEY = "*"


class _Key(str):
    """A step of a path: the key of a map, which is the source's data."""

    __slots__ = ()


class Refused(Exception):
    """The event does not fit: ``rejection`` says where and why."""

    def __init__(self, rejection: RejectedEvent) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class _Integer(str):
    """A JSON number without fraction or exponent, as written."""

    __slots__ = ()


class _Fraction(str):
    """Any other JSON number, as written."""

    __slots__ = ()


class _Repeated(ValueError):
    """A name stands twice in one object."""


class _Shape(Exception):
    """The value is of another JSON type than the leaf: which one it must be."""


class Judge:
    """Judges and encodes by one schema under one entity's rules."""

    def __init__(self, rules: EventRules, root: Record) -> None:
        self.unknown_is_refused = rules.on_unknown_field == "park"
        self._depth_max = rules.depth_max
        self._utc_offset_minutes = rules.utc_offset_minutes
        self._root = root
        self._plain = fastavro.schema.parse_schema(plain_schema(root))
        self._readers: dict[Leaf, Callable[[str | int], int]] = {}

    def encode(self, raw: bytes) -> bytes:
        """The Avro body. Raises ``Refused``."""
        return self.write(_Walk(self).record(self._root, self.parse(raw), ()))

    def parse(self, raw: bytes) -> Any:
        """JSON, numbers as written. Raises ``Refused``: HOSTILE for no JSON, a repeated name, or too deep nesting."""
        if deeper_than(raw, self._depth_max):
            raise _refused((), f"nested deeper than {self._depth_max} levels", Reason.HOSTILE)
        try:
            return _load(raw)
        except UnicodeDecodeError:
            raise _refused((), "no UTF-8", Reason.HOSTILE) from None
        except _Repeated:
            raise _refused((), "a name is repeated within one object", Reason.HOSTILE) from None
        except (ValueError, RecursionError):
            raise _refused((), "no JSON", Reason.HOSTILE) from None

    def value(self, node: Node, value: Any, path: Path) -> Any:
        """The Avro datum of one parsed value. Raises ``Refused``."""
        return _Walk(self).value(node, value, path)

    def leaf(self, leaf: Leaf, value: Any, path: Path) -> Any:
        """The Avro datum of one parsed leaf. Raises ``Refused``."""
        try:
            found = self._leaf(leaf, value)
        except _Shape as expected:
            raise _wrong_type(path, str(expected), value) from None
        except ValueError as error:
            raise _refused(path, str(error)) from None
        return _clean(found, path) if found.__class__ is str else found

    def _leaf(self, leaf: Leaf, value: Any) -> Any:
        match leaf:
            case Leaf(logical="decimal"):
                return self._decimal(leaf, value)
            case Leaf(logical="uuid"):
                return uuid_text(_string(value)) if leaf.kind == "string" else uuid_bytes(_string(value))
            case Leaf(logical=str()):
                reader = self._readers.setdefault(leaf, when_reader(leaf, self._utc_offset_minutes))
                return reader(value if value.__class__ is str else _integer(value, 64))
            case Leaf(kind="null"):
                if value is not None:
                    raise _Shape("null")
                return None
            case Leaf(kind="boolean"):
                if value.__class__ is not bool:
                    raise _Shape("a boolean")
                return value
            case Leaf(kind="int" | "long"):
                return _integer(value, 32 if leaf.kind == "int" else 64)
            case Leaf(kind="float" | "double"):
                return _float(value, 32 if leaf.kind == "float" else 64)
            case Leaf(kind="enum"):
                if _string(value) not in leaf.symbols:
                    raise ValueError("is none of the enum's symbols")
                return value
            case Leaf(kind="string"):
                return _string(value)
        found = bytes_from_base64(_string(value))
        if leaf.kind == "fixed" and len(found) != leaf.size:
            raise ValueError(f"must hold {leaf.size} bytes")
        return found

    def _decimal(self, leaf: Leaf, value: Any) -> bytes:
        if value.__class__ not in (str, _Integer, _Fraction):
            raise _Shape("a number, or a string holding one")
        return decimal_bytes(unscaled_decimal(value, leaf.precision, leaf.scale), leaf.size)

    def write(self, datum: Any) -> bytes:
        """fastavro's bytes, read back and compared. Raises ``Refused``."""
        out = BytesIO()
        try:
            fastavro.schemaless_writer(out, self._plain, datum)
            body = out.getvalue()
            again = BytesIO(body)
            found = fastavro.schemaless_reader(again, self._plain, None)
        except (ValueError, TypeError, OverflowError, EOFError, struct.error) as error:
            raise _refused((), f"can't be written as Avro ({type(error).__name__})") from None
        if again.tell() != len(body) or found != _without_hints(datum):
            raise _refused((), "what was written does not read back equal")
        return body


class _Walk:
    """One event's walk. It remembers what fitted which branch, so that nested unions cost one try per value, not
    2^depth.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._tried: dict[tuple[int, int], Any] = {}

    def value(self, node: Node, value: Any, path: Path) -> Any:
        match node:
            case Leaf():
                return self._judge.leaf(node, value, path)
            case Record():
                return self.record(node, value, path)
            case Union():
                return self._union(node, value, path)
            case Array():
                if value.__class__ is not list:
                    raise _wrong_type(path, "an array", value)
                return [self.value(node.items, item, (*path, index)) for index, item in enumerate(value)]
            case Map():
                if value.__class__ is not dict:
                    raise _wrong_type(path, "an object", value)
                return {
                    _clean(name, path): self.value(node.values, item, (*path, _Key(name)))
                    for name, item in value.items()
                }

    def record(self, node: Record, value: Any, path: Path) -> dict[str, Any]:
        if value.__class__ is not dict:
            raise _wrong_type(path, "an object", value)
        datum = {}
        for field in node.fields:
            found = value.get(field.name, UNSET)
            if found is not UNSET:
                datum[field.name] = self.value(field.type, found, (*path, field.name))
            elif field.default is not UNSET:
                datum[field.name] = default_datum(field, (*path, field.name))
            else:
                raise _refused((*path, field.name), "is missing, and the schema has no default for it")
        if self._judge.unknown_is_refused:
            for name in value:
                if name not in datum:
                    raise _refused((*path, name), "is not in the schema")
        return datum

    def _union(self, node: Union, value: Any, path: Path) -> Any:
        if value is None:
            if not any(map(is_null, node.branches)):
                raise _refused(path, "must not be null")
            return ("null", None)
        nullable = node.nullable()
        if nullable is not None:
            return (plain_name(nullable), self.value(nullable, value, path))
        branches = _candidates(node, value)
        tried = [(branch, self._try(branch, value, path)) for branch in branches]
        fitting = [(plain_name(branch), datum) for branch, datum in tried if not isinstance(datum, Refused)]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting and len(tried) == 1:
            raise tried[0][1]
        names = ", ".join(type_name(branch) for branch in node.branches)
        how_many = "more than one branch" if fitting else "no branch"
        raise _refused(path, f"fits {how_many} of the union ({names})")

    def _try(self, branch: Node, value: Any, path: Path) -> Any:
        at = (id(branch), id(value))
        if at not in self._tried:
            try:
                self._tried[at] = self.value(branch, value, path)
            except Refused as refused:
                self._tried[at] = refused
        return self._tried[at]


def default_datum(field: Field, path: Path) -> Any:
    """The datum of a field's default, as the Avro specification spells defaults. Raises ``ContractError``."""
    try:
        return _default(field.type, field.default)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise ContractError(f"{pointer(*path)}: the default does not fit the type ({error})") from None


def default_body(field: Field, path: Path) -> bytes:
    """The Avro bytes of a field's default. Raises ``ContractError``."""
    out = BytesIO()
    fastavro.schemaless_writer(out, fastavro.schema.parse_schema(plain_schema(field.type)), default_datum(field, path))
    return out.getvalue()


def _load(raw: bytes) -> Any:
    return json.loads(
        raw.decode(),
        object_pairs_hook=_no_repeats,
        parse_int=_Integer,
        parse_float=_Fraction,
        parse_constant=_no_constant,
    )


def repeats_a_name(raw: bytes) -> bool:
    """True if one object of this text, which is known to be JSON, holds a name twice. The caller bounds the depth."""
    try:
        _load(raw)
    except _Repeated:
        return True
    return False


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Repeated
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _candidates(node: Union, value: Any) -> list[Node]:
    """The branches whose JSON type is the value's; an integer goes to floats only where there is no int or long."""
    kinds = {type_name(branch) for branch in node.branches}
    found = []
    for branch in node.branches:
        match branch:
            case Leaf(kind="float" | "double") if value.__class__ is _Integer and kinds & {"int", "long"}:
                fits = False
            case Leaf(kind="null"):
                fits = False
            case Leaf():
                fits = value.__class__ not in (dict, list)
            case Array():
                fits = value.__class__ is list
            case _:
                fits = value.__class__ is dict
        if fits:
            found.append(branch)
    return found


def _integer(value: Any, bits: int) -> int:
    if value.__class__ is not _Integer:
        raise _Shape("an integer")
    found = int(value) if len(value) <= 20 else 2**64
    if not -(2 ** (bits - 1)) <= found < 2 ** (bits - 1):
        raise ValueError(f"must fit {bits} bits")
    return found


def _float(value: Any, bits: int) -> float:
    """A double; for ``bits`` 32 rounded to the nearest float, as what is read back will be."""
    if value.__class__ is not _Integer and value.__class__ is not _Fraction:
        raise _Shape("a number")
    found = float(value)
    if bits == 32 and isfinite(found):
        try:
            found = struct.unpack("<f", struct.pack("<f", found))[0]
        except OverflowError:
            found = inf
    if not isfinite(found):
        raise ValueError(f"must be finite in {bits} bits")
    if value.__class__ is _Integer and (len(value) > 400 or int(found) != int(value)):
        raise ValueError(f"an integer that a float of {bits} bits can't hold exactly")
    return found


def _string(value: Any) -> str:
    if value.__class__ is not str:
        raise _Shape("a string")
    return value


def _default(node: Node, value: Any) -> Any:
    match node:
        case Union():
            return _default_of_union(node, value)
        case Record():
            if not isinstance(value, dict):
                raise ValueError("must be an object")
            return {field.name: _default(field.type, value.get(field.name, field.default)) for field in node.fields}
        case Array():
            return [_default(node.items, item) for item in value]
        case Map():
            return {name: _default(node.values, item) for name, item in value.items()}
        case Leaf():
            return _default_leaf(node, value)


def _default_of_union(node: Union, value: Any) -> Any:
    """The first branch that the default fits: the specification's first branch, or, since 1.12, any."""
    for branch in node.branches:
        try:
            return (plain_name(branch), _default(branch, value))
        except (ValueError, TypeError, AttributeError, struct.error, OverflowError):
            continue
    raise ValueError("fits no branch of the union")


def _default_leaf(leaf: Leaf, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match leaf.kind:
        case "null":
            fits = value is None
        case "boolean":
            fits = isinstance(value, bool)
        case "int" | "long":
            bits = 31 if leaf.kind == "int" else 63
            fits = number and isinstance(value, int) and -(2**bits) <= value < 2**bits
        case "float":
            return struct.unpack("<f", struct.pack("<f", value))[0]
        case "double":
            fits, value = number and isfinite(value), float(value)
        case "bytes":
            return value.encode("latin-1")
        case "fixed":
            value = value.encode("latin-1")
            fits = len(value) == leaf.size
        case "enum":
            fits = value in leaf.symbols
        case "string":
            fits = isinstance(value, str)
    if not fits:
        raise ValueError(f"must be {leaf.kind}")
    return value


def _without_hints(datum: Any) -> Any:
    """The datum as it reads back: without the names of the branches that were chosen."""
    if datum.__class__ is tuple:
        return _without_hints(datum[1])
    if datum.__class__ is dict:
        return {name: _without_hints(value) for name, value in datum.items()}
    if datum.__class__ is list:
        return [_without_hints(item) for item in datum]
    return datum


def _clean(text: str, path: Path) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(path, "holds a lone surrogate", Reason.HOSTILE) from None
    return text


def _refused(path: Path, detail: str, reason: Reason = Reason.INVALID) -> Refused:
    if not any(step.__class__ is _Key for step in path):
        return Refused(RejectedEvent(reason, pointer(*path), detail))
    masked = pointer(*(ANY_KEY if step.__class__ is _Key else step for step in path))
    return Refused(RejectedEvent(reason, masked, detail, pointer(*path)))


def _wrong_type(path: Path, expected: str, value: Any) -> Refused:
    return _refused(path, f"must be {expected}, is {_JSON_TYPES[value.__class__]}")


_JSON_TYPES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    _Integer: "an integer",
    _Fraction: "a fraction",
    type(None): "null",
}
