"""The bodies of one schema as an Avro container block, which polars reads, checks and writes as NDJSON by columns."""

import io
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from msgspec import Struct

from shared.events.columns import Column, columns
from shared.events.encoder import V
from shared.events.instants import DAY_US, MAX_DAY, MAX_US, MIN_DAY, MIN_US
from shared.events.lineage import Lineage
from shared.events.rows import binary_formatter
from shared.events.schema import Array, Leaf, Node, Record, Union, type_name

_ISO_LOCAL = "%Y-%m-%dT%H:%M:%S%.6f"
_ISO_UTC = _ISO_LOCAL + "Z"
_SYNC = b"tidemark in memory"[:16]
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
_INT64_RANGE = (-(2**63), 2**63 - 1)


class Doubtful(Exception):
    """Some body of the batch does not certainly fit: read them one by one."""


class _Plan(Struct, frozen=True):
    """How one column is made of what polars read: ``fits`` must hold for all rows; ``finish`` runs per value, in
    Python.
    """

    name: str
    value: pl.Expr
    fits: pl.Expr | None = None
    finish: Callable[[bytes], str] | None = None


class Columnar:
    """Compiled from a schema; ``reasons`` says why it can't serve it, if it can't."""

    def __init__(self, root: Record) -> None:
        found = columns(root)
        self._container = _Container()
        fields = self._container.fields(root, ())
        self.reasons = tuple(self._container.reasons)
        if self.reasons:
            return
        self._end = "_end"
        while self._end in {field["name"] for field in fields}:
            self._end += "_"
        fields.append({"name": self._end, "type": "long"})
        self._header = _container_header({"type": "record", "name": "row", "fields": fields})
        self._plans = [_plan(column) for column in found]

    def lines(self, bodies: Sequence[bytes], lineage: Lineage) -> list[bytes]:
        """One line per body, without newline. Raises ``Doubtful`` if any of them is."""
        frame = self._read(bodies)
        fits = [plan.fits.all().alias(plan.name) for plan in self._plans if plan.fits is not None]
        if fits and not all(frame.select(fits).row(0)):
            raise Doubtful
        table = frame.select([plan.value.alias(plan.name) for plan in self._plans])
        finished = [_finished(table[plan.name], plan.finish) for plan in self._plans if plan.finish is not None]
        out = io.BytesIO()
        table.with_columns(finished + _lineage_columns(lineage)).write_ndjson(out)
        return out.getvalue().split(b"\n")[:-1]

    def _read(self, bodies: Sequence[bytes]) -> pl.DataFrame:
        end = secrets.randbits(62)
        mark = V[end]
        block = mark.join([*bodies, b""])
        container = b"".join((self._header, V[len(bodies)], V[len(block)], block, _SYNC))
        try:
            frame = pl.read_avro(io.BytesIO(container))
        except _UNREADABLE:
            raise Doubtful from None
        if frame.height != len(bodies) or not (frame[self._end] == end).all():
            raise Doubtful
        return frame


class _Container:
    """Writes the container's schema: same bytes, in types that polars reads as they are. Names are its own."""

    def __init__(self) -> None:
        self.reasons: dict[str, None] = {}
        self._names = 0

    def fields(self, record: Record, inside: tuple[Record, ...]) -> list[dict[str, Any]]:
        if record in inside:
            self.reasons[f"record {record.name} contains itself"] = None
            return []
        if not record.fields:
            self.reasons[f"record {record.name} has no fields"] = None
        return [{"name": field.name, "type": self._type(field.type, (*inside, record))} for field in record.fields]

    def _type(self, node: Node, inside: tuple[Record, ...]) -> Any:
        match node:
            case Record():
                return {"type": "record", "name": self._name(), "fields": self.fields(node, inside)}
            case Array() if isinstance(_present(node.items), Leaf) and _plain_item(_present(node.items)):
                return {"type": "array", "items": self._type(node.items, inside)}
            case Union() if node.nullable() is not None:
                return [
                    "null" if isinstance(branch, Leaf) and branch.kind == "null" else self._type(branch, inside)
                    for branch in node.branches
                ]
            case Leaf(kind="fixed") if node.size:
                return {"type": "fixed", "name": self._name(), "size": node.size}
            case Leaf(kind="boolean" | "int" | "long" | "enum"):
                return "long"
            case Leaf(kind="float" | "double" | "string" | "bytes"):
                return node.kind
        what = f"a union of {len(node.branches)}" if isinstance(node, Union) else f"a value of type {type_name(node)}"
        self.reasons[f"{what} is beyond polars"] = None
        return "null"

    def _name(self) -> str:
        self._names += 1
        return f"type_{self._names}"


def _present(node: Node) -> Node:
    return (node.nullable() or node) if isinstance(node, Union) else node


def _lineage_columns(lineage: Lineage) -> list[pl.Series | pl.Expr]:
    timestamps = pl.Series("_kafka_timestamp", lineage.timestamps_ms, pl.Int64).cast(pl.Datetime("ms"))
    return [
        pl.lit(lineage.origin.topic).alias("_kafka_topic"),
        pl.lit(lineage.origin.generation).alias("_kafka_generation"),
        pl.lit(lineage.origin.partition).alias("_kafka_partition"),
        pl.Series("_kafka_offset", lineage.offsets, pl.Int64),
        timestamps.dt.strftime(_ISO_UTC),
        pl.Series("_event_id", lineage.event_ids, pl.String),
        pl.Series("_rank", lineage.ranks, pl.Int64),
        pl.Series("_tiebreak", lineage.tiebreaks, pl.Int64),
        pl.Series("_rev", lineage.revs, pl.Int64),
        pl.Series("_op", lineage.ops, pl.String),
        pl.lit(lineage.schema_id).alias("_schema_id"),
        pl.Series("_attempt", lineage.attempts, pl.Int64),
    ]


def _finished(column: pl.Series, finish: Callable[[bytes], str]) -> pl.Series | pl.Expr:
    return pl.Series(column.name, [None if value is None else finish(value) for value in column], pl.String)


def _plain_item(leaf: Node) -> bool:
    """Array items that need no conversion, only a check."""
    plain = ("string", "int", "long", "double")
    return isinstance(leaf, Leaf) and leaf.logical in (None, "uuid") and leaf.kind in plain


def _plan(column: Column) -> _Plan:
    value = pl.col(column.path[0])
    for name in column.path[1:]:
        value = value.struct.field(name)
    if isinstance(column.node, Array):
        items = _present(column.node.items)
        assert isinstance(items, Leaf)
        return _Plan(column.name, value, _leaf_plan(column.name, items, value.explode()).fits)
    assert isinstance(column.node, Leaf)
    return _leaf_plan(column.name, column.node, value)


def _leaf_plan(name: str, leaf: Leaf, value: pl.Expr) -> _Plan:
    match leaf:
        case Leaf(kind="boolean"):
            return _Plan(name, value == -1, value.is_between(-1, 0))
        case Leaf(kind="enum"):
            symbols = value.replace_strict(list(range(len(leaf.symbols))), list(leaf.symbols), return_dtype=pl.String)
            return _Plan(name, symbols, value.is_between(0, len(leaf.symbols) - 1))
        case Leaf(kind="float" | "double"):
            return _Plan(name, value.cast(pl.Float64), value.is_finite())
        case Leaf(kind="string"):
            return _Plan(name, value)
        case Leaf(kind="bytes", logical=None) | Leaf(kind="fixed", logical=None):
            return _Plan(name, value.bin.encode("base64"))
        case Leaf(kind="bytes" | "fixed"):
            return _Plan(name, value, finish=binary_formatter(leaf))
        case Leaf(logical=None):
            return _Plan(name, value, value.is_between(-(2**31), 2**31 - 1) if leaf.kind == "int" else None)
    return _when_plan(name, leaf.logical or "", value)


def _when_plan(name: str, logical: str, value: pl.Expr) -> _Plan:
    if logical == "date":
        days = value.cast(pl.Int32, strict=False).cast(pl.Date)
        return _Plan(name, days.dt.strftime("%Y-%m-%d"), value.is_between(MIN_DAY, MAX_DAY))
    unit_us = 1_000 if logical.endswith("millis") else 1
    moment = (value * unit_us).cast(pl.Datetime("us"))
    if logical.startswith("time-"):
        return _Plan(name, moment.dt.strftime("%H:%M:%S%.6f"), value.is_between(0, (DAY_US - 1) // unit_us))
    shown = _ISO_UTC if logical.startswith("timestamp") else _ISO_LOCAL
    within = value.is_between(-(-MIN_US // unit_us), MAX_US // unit_us)
    return _Plan(name, moment.dt.strftime(shown), within)


def _container_header(schema: dict[str, Any]) -> bytes:
    """Magic, metadata and sync marker of an Avro object container file without compression."""
    text = json.dumps(schema).encode()
    entries = ((b"avro.schema", text), (b"avro.codec", b"null"))
    metadata = b"".join(V[len(part)] + part for entry in entries for part in entry)
    return b"".join((b"Obj\x01", V[len(entries)], metadata, V[0], _SYNC))
