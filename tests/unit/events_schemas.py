"""Hypothesis strategies of Avro types: a schema, and events under it as JSON, as fastavro's datum and as flat cells."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from shared.events.model import EventRules

RULES = EventRules(entity="things", key=("id",), updated_at="at")
STAMP = {"type": "long", "logicalType": "timestamp-micros"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Sample:
    text: str  # JSON
    datum: Any  # what fastavro writes
    native: Any  # what a raw row shows for it inside an array or a map
    cells: dict[str, Any]  # what a raw row shows for it, by column; "" for a value that is one column


@dataclass(frozen=True)
class AvroType:
    schema: Any
    samples: SearchStrategy[Sample]
    columns: tuple[str, ...] = ("",)


def leaf(text: str, datum: Any, native: Any = ...) -> Sample:
    shown = datum if native is ... else native
    return Sample(text, datum, shown, {"": shown})


def quoted(text: str, *, escaped: bool = False) -> str:
    return json.dumps(text, ensure_ascii=escaped)


def integers(bits: int) -> SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) | st.integers(-300, 300)


def doubles() -> SearchStrategy[Sample]:
    fractions = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: leaf(repr(value), value))
    return fractions | st.integers(-(2**53), 2**53).map(lambda value: leaf(str(value), float(value)))


def floats() -> SearchStrategy[Sample]:
    fractions = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda value: leaf(repr(value), value))
    return fractions | st.integers(-(2**24), 2**24).map(lambda value: leaf(str(value), float(value)))


def strings() -> SearchStrategy[Sample]:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    return st.builds(lambda text, escaped: leaf(quoted(text, escaped=escaped), text), texts, st.booleans())


def decimals(precision: int, scale: int) -> SearchStrategy[Sample]:
    def sample(unscaled: int, as_string: bool) -> Sample:
        value = Decimal(f"{unscaled}e-{scale}")  # not scaleb, which rounds to 28 digits
        text = f"{value:f}"
        return leaf(quoted(text) if as_string else text, value, text)

    return st.builds(sample, st.integers(-(10**precision) + 1, 10**precision - 1), st.booleans())


def binary(minimum: int, maximum: int) -> SearchStrategy[Sample]:
    def sample(value: bytes) -> Sample:
        text = base64.b64encode(value).decode()
        return leaf(quoted(text), value, text)

    return st.binary(min_size=minimum, max_size=maximum).map(sample)


def moments(unit_us: int, *, local: bool) -> SearchStrategy[Sample]:
    def sample(value: datetime, as_number: bool) -> Sample:
        us = (value - EPOCH) // timedelta(microseconds=1) // unit_us * unit_us
        exact = EPOCH + timedelta(microseconds=us)
        text = exact.replace(tzinfo=None).isoformat(timespec="microseconds") + ("" if local else "Z")
        datum = exact.replace(tzinfo=None) if local else exact
        return leaf(str(us // unit_us) if as_number else quoted(text), datum, text)

    return st.builds(sample, st.datetimes(timezones=st.just(UTC)), st.booleans())


def times(unit_us: int) -> SearchStrategy[Sample]:
    def sample(units: int, as_number: bool) -> Sample:
        value = (EPOCH + timedelta(microseconds=units * unit_us)).time()
        text = value.isoformat(timespec="microseconds")
        return leaf(str(units) if as_number else quoted(text), value, text)

    return st.builds(sample, st.integers(0, 86_400_000_000 // unit_us - 1), st.booleans())


def dates() -> SearchStrategy[Sample]:
    def sample(value: date, as_number: bool) -> Sample:
        days = value.toordinal() - EPOCH.toordinal()
        return leaf(str(days) if as_number else quoted(value.isoformat()), value, value.isoformat())

    return st.builds(sample, st.dates(), st.booleans())


def logical(base: str, name: str, samples: SearchStrategy[Sample], **more: Any) -> AvroType:
    return AvroType({"type": base, "logicalType": name, **more}, samples)


def named(kind: str, **more: Any) -> dict[str, Any]:
    """A named type, whose name ``event_type`` will choose."""
    return {"type": kind, "name": "", **more}


def with_names(schema: Any, numbers: Iterator[int]) -> Any:
    if isinstance(schema, list):
        return [with_names(part, numbers) for part in schema]
    if not isinstance(schema, dict):
        return schema
    name = {"name": f"Named{next(numbers)}"} if schema.get("name") == "" else {}
    return {key: with_names(value, numbers) for key, value in schema.items()} | name


def make_type(make: Callable[[], AvroType]) -> AvroType:
    return make()


def leaves() -> SearchStrategy[AvroType]:
    symbols = ["red", "green", "blue"]
    return st.sampled_from(
        [
            lambda: AvroType("boolean", st.booleans().map(lambda value: leaf(json.dumps(value), value))),
            lambda: AvroType("int", integers(32).map(lambda value: leaf(str(value), value))),
            lambda: AvroType("long", integers(64).map(lambda value: leaf(str(value), value))),
            lambda: AvroType("float", floats()),
            lambda: AvroType("double", doubles()),
            lambda: AvroType("string", strings()),
            lambda: AvroType("bytes", binary(0, 9)),
            lambda: AvroType(named("fixed", size=3), binary(3, 3)),
            lambda: AvroType(
                named("enum", symbols=symbols), st.sampled_from(symbols).map(lambda s: leaf(quoted(s), s))
            ),
            lambda: logical("bytes", "decimal", decimals(9, 2), precision=9, scale=2),
            lambda: logical("bytes", "decimal", decimals(40, 0), precision=40),
            lambda: AvroType(named("fixed", size=8, logicalType="decimal", precision=18, scale=6), decimals(18, 6)),
            lambda: logical(
                "string", "uuid", st.uuids().map(lambda value: leaf(quoted(str(value)), value, str(value)))
            ),
            lambda: logical("int", "date", dates()),
            lambda: logical("int", "time-millis", times(1_000)),
            lambda: logical("long", "time-micros", times(1)),
            lambda: logical("long", "timestamp-millis", moments(1_000, local=False)),
            lambda: logical("long", "timestamp-micros", moments(1, local=False)),
            lambda: logical("long", "local-timestamp-millis", moments(1_000, local=True)),
            lambda: logical("long", "local-timestamp-micros", moments(1, local=True)),
        ]
    ).map(make_type)


def nullable(inner: AvroType, null_first: bool) -> AvroType:
    null = Sample("null", None, None, dict.fromkeys(inner.columns))
    branches = ["null", inner.schema] if null_first else [inner.schema, "null"]
    return AvroType(branches, st.just(null) | inner.samples, inner.columns)


def array(items: AvroType) -> AvroType:
    def sample(found: list[Sample]) -> Sample:
        text = "[" + ",".join(item.text for item in found) + "]"
        return leaf(text, [item.datum for item in found], [item.native for item in found])

    return AvroType({"type": "array", "items": items.schema}, st.lists(items.samples, max_size=3).map(sample))


def mapping(values: AvroType) -> AvroType:
    def sample(found: dict[str, Sample]) -> Sample:
        text = "{" + ",".join(f"{quoted(name)}: {value.text}" for name, value in found.items()) + "}"
        return leaf(
            text,
            {name: value.datum for name, value in found.items()},
            {name: value.native for name, value in found.items()},
        )

    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return AvroType(
        {"type": "map", "values": values.schema}, st.dictionaries(names, values.samples, max_size=3).map(sample)
    )


def record(fields: dict[str, AvroType]) -> AvroType:
    def sample(found: tuple[Sample, ...]) -> Sample:
        by_name = dict(zip(fields, found, strict=True))
        return Sample(
            "{" + ",".join(f"{quoted(name)}:{value.text}" for name, value in by_name.items()) + "}",
            {name: value.datum for name, value in by_name.items()},
            {name: value.native for name, value in by_name.items()},
            {
                (f"{name}__{column}" if column else name): cell
                for name, value in by_name.items()
                for column, cell in value.cells.items()
            },
        )

    columns = tuple(
        f"{name}__{column}" if column else name for name, inner in fields.items() for column in inner.columns
    )
    schema = named("record", fields=[{"name": name, "type": inner.schema} for name, inner in fields.items()])
    return AvroType(schema, st.tuples(*(inner.samples for inner in fields.values())).map(sample), columns)


def not_null_twice(inner: AvroType) -> bool:
    return not isinstance(inner.schema, list)


def avro_types(*, maps: bool = True, depth: int = 3) -> SearchStrategy[AvroType]:
    """Everything that is compiled; without maps and arrays: everything that polars reads."""
    if depth == 0:
        return leaves()
    inner = avro_types(maps=maps, depth=depth - 1)
    fields = st.lists(inner, min_size=1, max_size=3)
    compounds = [
        st.builds(nullable, inner.filter(not_null_twice), st.booleans()),
        fields.map(lambda types: record({f"f{index}": of for index, of in enumerate(types)})),
    ]
    if maps:
        compounds += [inner.map(array), inner.map(mapping)]
    return st.one_of(leaves(), *compounds)


def event_type(inner: AvroType) -> AvroType:
    """An event with key, time stamp and one field more."""
    key = AvroType("string", strings())
    made = record({"id": key, "at": AvroType(STAMP, moments(1, local=False)), "value": inner})
    return replace(made, schema=with_names(made.schema, count()))
