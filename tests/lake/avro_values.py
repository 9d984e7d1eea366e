"""Hypothesis strategies of Avro types: a schema, values as Avro writes them, and what Spark must show for each.

The bytes are written here, by the specification, not by the code under test nor by another library; what Spark must
show is stated as Arrow has it (a map is a list of pairs).
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, Literal
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

EPOCH = datetime(1970, 1, 1)
MIN_US, MAX_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999
GREGORIAN_US = -12_219_292_800_000_000  # 1582-10-15: where calendars differ
DAY_US = 86_400_000_000
NAMES = ("f", "select", "from", "Order", "group", "_", "grün", "x-y", "p.q", "a b", "it's", "back\\slash", '"')
_numbers = count()


@dataclass(frozen=True)
class Json:
    """A text that is this value's JSON."""

    value: Any


@dataclass(frozen=True)
class Sample:
    """``native``: shown inside an array or map. ``cells``: by column, relative to the field's name."""

    body: bytes
    native: Any
    cells: dict[str, Any]


@dataclass(frozen=True)
class AvroType:
    """``kind``: Avro's name for it in a union. ``roomy``: a value takes a byte at least."""

    schema: Any
    kind: str
    samples: SearchStrategy[Sample]
    roomy: bool = True


def long_bytes(value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes((*out, zigzag))


def sized(value: bytes) -> bytes:
    return long_bytes(len(value)) + value


def leaf(body: bytes, shown: Any) -> Sample:
    return Sample(body, shown, {"": shown})


def whole(least: int, most: int, *more: int) -> SearchStrategy[int]:
    """With the extremes, and what else is told, far more often than chance has it."""
    return st.sampled_from([least, most, *more]) | st.integers(least, most)


def leaf_type(schema: Any, kind: str, values: SearchStrategy[Any], sample: Callable[[Any], Sample]) -> AvroType:
    return AvroType(schema, kind, values.map(sample))


def named(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "name": f"N{next(_numbers)}", **more}


def named_type(schema: dict[str, Any], samples: SearchStrategy[Sample], *, roomy: bool = True) -> AvroType:
    return AvroType(schema, schema["name"], samples, roomy)


def texts(size: int = 12) -> SearchStrategy[str]:
    odd = st.sampled_from(["", "\x00", "\u2028\x85", "\r\n", '"\\', "𝄞", "null", "NaN", "{}", "\ufeff", " "])
    return odd | st.text(st.characters(exclude_categories=["Cs"]), max_size=size)


def floats(width: Literal[32, 64], *, finite: bool) -> SearchStrategy[float]:
    special = [0.0, -0.0, *([] if finite else [float("nan"), float("inf"), float("-inf")])]
    tiny, huge = (1e-45, 3.4028234663852886e38) if width == 32 else (5e-324, 1.7976931348623157e308)
    known = [struct.unpack("<f", struct.pack("<f", value))[0] if width == 32 else value for value in (tiny, huge, 0.1)]
    some = st.floats(width=width, allow_nan=not finite, allow_infinity=not finite)
    return st.sampled_from([*special, *known]) | some


def decimal_type(precision: int, scale: int, size: int = 0) -> AvroType:
    def sample(unscaled: int) -> Sample:
        length = size or (unscaled.bit_length() // 8 + 1)
        raw = unscaled.to_bytes(length, "big", signed=True)
        digits = f"{abs(unscaled):0{scale + 1}d}"
        text = (
            f"{'-' * (unscaled < 0)}{digits[: len(digits) - scale]}{'.' * bool(scale)}{digits[len(digits) - scale :]}"
        )
        return leaf(raw if size else sized(raw), Decimal(text) if precision <= 38 else text)

    logical = {"logicalType": "decimal", "precision": precision, "scale": scale}
    schema: dict[str, Any] = named("fixed", size=size, **logical) if size else {"type": "bytes", **logical}
    return leaf_type(
        schema, schema.get("name", "bytes"), whole(-(10**precision) + 1, 10**precision - 1, 0, 1, -1), sample
    )


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def moments(logical: str, unit_us: int) -> AvroType:
    local = logical.startswith("local")

    def sample(units: int) -> Sample:
        at = moment(units * unit_us)
        return leaf(long_bytes(units), at if local else at.replace(tzinfo=UTC))

    edges = (us // unit_us for us in (GREGORIAN_US, GREGORIAN_US - 1, -2_208_988_800_000_001, -1, 0, 1))
    values = whole(-(-MIN_US // unit_us), MAX_US // unit_us, *edges)
    return leaf_type({"type": "long", "logicalType": logical}, "long", values, sample)


def times(logical: str, unit_us: int) -> AvroType:
    def sample(units: int) -> Sample:
        return leaf(long_bytes(units), moment(units * unit_us).time().isoformat(timespec="microseconds"))

    base = "int" if logical == "time-millis" else "long"
    return leaf_type({"type": base, "logicalType": logical}, base, whole(0, DAY_US // unit_us - 1), sample)


def dates() -> AvroType:
    first, last = date.min.toordinal() - EPOCH.toordinal(), date.max.toordinal() - EPOCH.toordinal()

    def sample(day: int) -> Sample:
        return leaf(long_bytes(day), (EPOCH + timedelta(days=day)).date())

    days = whole(first, last, GREGORIAN_US // DAY_US, GREGORIAN_US // DAY_US - 1, -1, 0)
    return leaf_type({"type": "int", "logicalType": "date"}, "int", days, sample)


def enum_type() -> AvroType:
    symbols = ["red", "GREEN", "_blue"]
    schema = named("enum", symbols=symbols)
    return named_type(schema, st.integers(0, 2).map(lambda index: leaf(long_bytes(index), symbols[index])))


def fixed_type(size: int) -> AvroType:
    schema = named("fixed", size=size)
    return named_type(schema, st.binary(min_size=size, max_size=size).map(lambda raw: leaf(raw, raw)), roomy=size > 0)


def uuid_type(fixed: bool) -> AvroType:
    def sample(value: UUID) -> Sample:
        return leaf(value.bytes if fixed else sized(str(value).encode()), str(value))

    if fixed:
        return named_type(named("fixed", size=16, logicalType="uuid"), st.uuids().map(sample))
    return leaf_type({"type": "string", "logicalType": "uuid"}, "string", st.uuids(), sample)


def leaf_makers(*, plain: bool) -> list[Callable[[], AvroType]]:
    """``plain``: only what the sink reads by columns."""
    makers: list[Callable[[], AvroType]] = [
        lambda: leaf_type("boolean", "boolean", st.booleans(), lambda v: leaf(bytes((v,)), v)),
        lambda: leaf_type("int", "int", whole(-(2**31), 2**31 - 1), lambda v: leaf(long_bytes(v), v)),
        lambda: leaf_type("long", "long", whole(-(2**63), 2**63 - 1), lambda v: leaf(long_bytes(v), v)),
        lambda: leaf_type("float", "float", floats(32, finite=plain), lambda v: leaf(struct.pack("<f", v), v)),
        lambda: leaf_type("double", "double", floats(64, finite=plain), lambda v: leaf(struct.pack("<d", v), v)),
        lambda: leaf_type("string", "string", texts(), lambda v: leaf(sized(v.encode()), v)),
        lambda: leaf_type("bytes", "bytes", st.binary(max_size=9), lambda v: leaf(sized(v), v)),
        lambda: fixed_type(3),
        enum_type,
        lambda: decimal_type(9, 2),
        lambda: decimal_type(38, 0),
        lambda: decimal_type(38, 38),
        lambda: decimal_type(38, 10),
        lambda: decimal_type(40, 5),
        lambda: decimal_type(18, 6, 8),
        lambda: uuid_type(False),
        lambda: uuid_type(True),
        dates,
        lambda: times("time-millis", 1_000),
        lambda: times("time-micros", 1),
        lambda: moments("timestamp-millis", 1_000),
        lambda: moments("timestamp-micros", 1),
        lambda: moments("local-timestamp-millis", 1_000),
        lambda: moments("local-timestamp-micros", 1),
    ]
    return makers if plain else [*makers, null_type, tree, branching, lambda: fixed_type(0)]


def null_type() -> AvroType:
    return AvroType("null", "null", st.just(Sample(b"", None, {})), False)


def nullable(inner: AvroType, null_first: bool) -> AvroType:
    def chosen(sample: Sample) -> Sample:
        return Sample(long_bytes(int(null_first)) + sample.body, sample.native, sample.cells)

    null = Sample(long_bytes(int(not null_first)), None, {})
    branches = ["null", inner.schema] if null_first else [inner.schema, "null"]
    return AvroType(branches, "union", st.just(null) | inner.samples.map(chosen))


def union(branches: Sequence[AvroType]) -> AvroType:
    """Of several: a column, or a member, per branch."""
    shown = [branch.kind for branch in branches if branch.kind != "null"]

    def samples(index: int) -> SearchStrategy[Sample]:
        branch = branches[index]

        def sample(inner: Sample) -> Sample:
            cells = {f"v_{branch.kind}{'__' * bool(name)}{name}": cell for name, cell in inner.cells.items()}
            native = {f"v_{kind}": inner.native if kind == branch.kind else None for kind in shown}
            return Sample(long_bytes(index) + inner.body, native or {"_empty": None}, cells)

        return branch.samples.map(sample)

    return AvroType([b.schema for b in branches], "union", st.integers(0, len(branches) - 1).flatmap(samples))


def array(items: AvroType) -> AvroType:
    def sample(found: list[Sample]) -> Sample:
        blocks = long_bytes(len(found)) + b"".join(item.body for item in found) if found else b""
        return leaf(blocks + b"\x00", [item.native for item in found])

    return AvroType({"type": "array", "items": items.schema}, "array", st.lists(items.samples, max_size=3).map(sample))


def mapping(values: AvroType) -> AvroType:
    def sample(found: dict[str, Sample]) -> Sample:
        pairs = b"".join(sized(name.encode()) + value.body for name, value in found.items())
        blocks = long_bytes(len(found)) + pairs if found else b""
        return leaf(blocks + b"\x00", [(name, value.native) for name, value in found.items()])

    found = st.dictionaries(texts(4), values.samples, max_size=3)
    return AvroType({"type": "map", "values": values.schema}, "map", found.map(sample))


def record(fields: dict[str, AvroType]) -> AvroType:
    def sample(found: tuple[Sample, ...]) -> Sample:
        by_name = dict(zip(fields, found, strict=True))
        native = {name: value.native for name, value in by_name.items() if fields[name].kind != "null"}
        cells = {
            f"{name}{'__' * bool(column)}{column}": cell
            for name, value in by_name.items()
            for column, cell in value.cells.items()
        }
        return Sample(b"".join(part.body for part in found), native or {"_empty": None}, cells)

    schema = named("record", fields=[{"name": name, "type": inner.schema} for name, inner in fields.items()])
    samples = st.tuples(*(inner.samples for inner in fields.values())).map(sample)
    return named_type(schema, samples, roomy=any(inner.roomy for inner in fields.values()))


def tree() -> AvroType:
    """A record that contains itself."""

    def sample(values: list[tuple[int, datetime]]) -> Sample:
        body, inner = b"", None
        for depth, (value, at) in enumerate(reversed(values)):
            units = (at - EPOCH) // timedelta(microseconds=1)
            below = inner
            body = long_bytes(value) + long_bytes(units) + (b"\x02" + body if depth else b"\x00")
            inner = {"value": value, "at": at.isoformat(timespec="microseconds"), "next": below}
        shown = {"value": values[0][0], "at": values[0][1], "next": None if len(values) == 1 else Json(below)}
        return Sample(body, shown, dict(shown))

    name = f"N{next(_numbers)}"
    stamp = {"type": "long", "logicalType": "local-timestamp-micros"}
    fields = [
        {"name": "value", "type": "long"},
        {"name": "at", "type": stamp},
        {"name": "next", "type": ["null", name]},
    ]
    values = st.lists(st.tuples(whole(-(2**63), 2**63 - 1), st.datetimes()), min_size=1, max_size=4)
    return named_type({"type": "record", "name": name, "fields": fields}, values.map(sample))


def branching() -> AvroType:
    """A record with an array of its like."""

    def built(found: tuple[str, list[Any]], depth: int) -> tuple[bytes, Any, Any]:
        name, inner = found
        parts = [built(child, depth + 1) for child in inner]
        block = long_bytes(len(parts)) + b"".join(b"\x02" + body for body, _, _ in parts) if parts else b""
        plain = {"name": name, "children": [text for _, _, text in parts]}
        below = [native if depth == 0 else Json(text) for _, native, text in parts]
        return sized(name.encode()) + block + b"\x00", {"name": name, "children": below}, plain

    def sample(found: tuple[str, list[Any]]) -> Sample:
        body, cells, _ = built(found, 0)
        native = {"name": found[0], "children": [Json(built(child, 0)[2]) for child in found[1]]}
        return Sample(body, native, cells)

    name = f"N{next(_numbers)}"
    fields = [
        {"name": "name", "type": "string"},
        {"name": "children", "type": {"type": "array", "items": ["null", name]}},
    ]
    none: SearchStrategy[list[Any]] = st.just([])
    level = st.tuples(texts(3), none)
    for _ in range(3):
        level = st.tuples(texts(3), st.lists(level, max_size=2))
    return named_type({"type": "record", "name": name, "fields": fields}, level.map(sample))


def leaves(*, plain: bool) -> SearchStrategy[AvroType]:
    return st.sampled_from(leaf_makers(plain=plain)).map(lambda make: make())


def avro_types(*, plain: bool, depth: int = 3) -> SearchStrategy[AvroType]:
    if depth == 0:
        return leaves(plain=plain)
    inner = avro_types(plain=plain, depth=depth - 1)
    fields = st.lists(st.tuples(st.sampled_from(NAMES), inner), min_size=int(plain), max_size=3).map(
        lambda found: record({f"{name}{index}": of for index, (name, of) in enumerate(found)})
    )
    optional = inner.filter(lambda of: of.kind not in ("union", "null"))
    compounds = [st.builds(nullable, optional, st.booleans()), fields]
    if not plain:
        several = st.lists(inner.filter(lambda of: of.kind != "union"), max_size=4, unique_by=lambda of: of.kind)
        compounds += [
            inner.filter(lambda of: of.roomy).map(array),
            inner.map(mapping),
            several.filter(is_several).map(union),
        ]
    return st.one_of(*compounds, leaves(plain=plain))


def is_several(branches: Sequence[AvroType]) -> bool:
    kinds = {branch.kind for branch in branches}
    return bool(kinds) and not (len(kinds) == 2 and "null" in kinds)


def every_leaf(*, plain: bool) -> Iterator[AvroType]:
    """Each type that has no parts by itself and nullable; unless plain, in arrays, maps, unions and records as well."""
    for index, make in enumerate(leaf_makers(plain=plain)):
        yield make()
        if not plain:
            yield mapping(make())
            yield array(record({"select": make(), "a b": long_type()}))
        if make is null_type:
            continue
        yield nullable(make(), index % 2 == 0)
        if not plain:
            yield array(nullable(make(), True))
            yield union([make(), fixed_type(2) if index % 2 else null_type(), enum_type()])


def long_type() -> AvroType:
    return leaf_makers(plain=True)[2]()


def corners() -> list[AvroType]:
    """What generators find too seldom."""
    empty = record({})
    return [
        empty,
        nullable(record({}), True),
        mapping(record({})),
        mapping(nullable(record({}), False)),
        array(record({"empty": record({}), "n": long_type(), "nothing": null_type()})),
        array(nullable(record({"nothing": null_type()}), True)),
        union([long_type()]),
        union([null_type()]),
        union([record({}), null_type(), long_type()]),
        array(union([record({}), null_type(), long_type()])),
        record(
            {"deep": nullable(record({"deeper": nullable(record({"deepest": nullable(tree(), True)}), True)}), True)}
        ),
    ]


def generated(shapes: int, rows: int, *, plain: bool) -> list[tuple[AvroType, list[Sample]]]:
    """Every type, and so many shapes more, with so many values each; the same in every run of the same modules."""
    types = [*every_leaf(plain=plain), *([] if plain else corners()), *drawn(avro_types(plain=plain), shapes)]
    return [(made, drawn(made.samples, rows)) for made in types]


def drawn(values: SearchStrategy[Any], number: int) -> list[Any]:
    found: list[Any] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return [found[index % len(found)] for index in range(number)]  # two booleans are all there are


def same(shown: Any, expected: Any) -> bool:
    """Equal, floats bit by bit."""
    match expected:
        case Json():
            return isinstance(shown, str) and bool(json.loads(shown) == expected.value)
        case float() if math.isnan(expected):
            return isinstance(shown, float) and math.isnan(shown)  # NaNs of other bits are one in JSON
        case float():
            return isinstance(shown, float) and struct.pack("<d", shown) == struct.pack("<d", expected)
        case dict():
            return isinstance(shown, dict) and shown.keys() == expected.keys() and all(
                same(shown[name], value) for name, value in expected.items()
            )  # fmt: skip
        case list() | tuple():
            return isinstance(shown, type(expected)) and len(shown) == len(expected) and all(map(same, shown, expected))
        case datetime():
            return isinstance(shown, datetime) and shown.utcoffset() == expected.utcoffset() and shown == expected
        case _:
            return type(shown) is type(expected) and bool(shown == expected)
