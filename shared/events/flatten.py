"""Kafka records of one partition → raw rows: flat JSON, one object a line (DESIGN 3.7). For the sink.

A batch's bodies of one schema id become one Avro container block in memory, which polars reads and writes out, column
by column. Between the bodies stands a number drawn for this batch: a body that is too long or too short shifts it, so
that corrupt bytes are noticed that would decode by chance. What polars reads more widely than Avro means it (an int
beyond 32 bits, a boolean of 2, a time beyond the year 9999) is read as a long and checked by column. Whatever is
doubtful, or beyond polars (maps, unions of several, records that contain themselves, NaN), takes the general path,
record by record: the same rows, at a tenth of the speed. One tolerance is left to polars: an index beyond a union of
null and T reads as T.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from shared.events.columnar import Columnar, Doubtful
from shared.events.lineage import HEARTBEAT, ConsumedRecord, Lineage, Origin
from shared.events.rows import BadBody, RowReader
from shared.events.schema import Leaf, key_leaf, parse

__all__ = [
    "ConsumedRecord",
    "Flattened",
    "Flattener",
    "KeyContract",
    "Origin",
    "Undecodable",
    "flatten_batch",
    "schema_id_of",
    "schema_ids",
]

_FRAMING_BYTES = 5
_FAST_RECORDS_MIN = 8  # fewer are read one by one: a frame of columns costs as much as a dozen rows
_BISECT_RECORDS_MIN = 128
_INTEGER = re.compile(r"-?[0-9]{1,19}")


class Undecodable(Struct, frozen=True):
    """A record whose bytes fail under their schema; ``index`` into the batch. ``detail`` quotes no value."""

    index: int
    detail: str


class Flattened(Struct, frozen=True):
    """``body``: NDJSON in the records' order, each line ended by a newline; an undecodable record has no line."""

    body: bytes
    rows: int
    undecodable: tuple[Undecodable, ...]
    schema_ids: tuple[int, ...]


class KeyContract:
    """Names and types of an entity's key fields: enough to make the row of a tombstone, under any schema version.

    Raises ``ContractError`` if the schema can't be parsed or a key field is not of one type that text can carry.
    """

    def __init__(self, key: Sequence[str], schema: str) -> None:
        root = parse(schema)
        self._fields = [(name, key_leaf(name, root)) for name in key]

    def row(self, key: bytes | None) -> dict[str, Any]:
        """The key fields with their types. Raises ``BadBody``."""
        if key is None:
            raise BadBody("a tombstone without a key")
        try:
            texts = self._texts(key)
            return {name: _typed(leaf, text) for (name, leaf), text in zip(self._fields, texts, strict=True)}
        except (UnicodeDecodeError, msgspec.DecodeError, ValueError):
            raise BadBody("the tombstone's key does not fit the key fields' types") from None

    def nothing(self) -> dict[str, Any]:
        """The row of a heartbeat."""
        return {name: None for name, _leaf in self._fields}

    def _texts(self, key: bytes) -> list[str]:
        if len(self._fields) == 1:
            return [key.decode()]
        values = msgspec.json.decode(key, type=list[str | int | bool])
        return [value if isinstance(value, str) else msgspec.json.encode(value).decode() for value in values]


class Flattener:
    """Flattens the bodies of one schema id. Compiled once per id, used from any thread. Raises ``ContractError``."""

    def __init__(self, schema: str, schema_id: int) -> None:
        root = parse(schema)
        self.schema_id = schema_id
        self._reader = RowReader(root)
        self.columns = self._reader.columns
        self._columnar = Columnar(root)
        self.reasons = self._columnar.reasons

    @property
    def general(self) -> bool:
        """True: the schema is beyond polars (``reasons``); records are flattened one by one, ten times slower."""
        return bool(self.reasons)

    def lines(self, bodies: Sequence[bytes], lineage: Lineage) -> list[bytes | BadBody]:
        """One line, without its newline, or one refusal per body."""
        if self.general or len(bodies) < _FAST_RECORDS_MIN:
            return self._one_by_one(bodies, lineage)
        try:
            return [*self._columnar.lines(bodies, lineage)]
        except Doubtful:
            if len(bodies) < _BISECT_RECORDS_MIN:
                return self._one_by_one(bodies, lineage)
        half = len(bodies) // 2
        head = self.lines(bodies[:half], lineage.part(0, half))
        return head + self.lines(bodies[half:], lineage.part(half, len(bodies)))

    def _one_by_one(self, bodies: Sequence[bytes], lineage: Lineage) -> list[bytes | BadBody]:
        lines: list[bytes | BadBody] = []
        for index, body in enumerate(bodies):
            try:
                lines.append(_line(self._reader.row(body), lineage, index))
            except BadBody as bad:
                lines.append(bad)
        return lines


def schema_id_of(value: bytes | None) -> int | None:
    """The schema id of a Confluent-framed value; ``None``: a tombstone, or bytes that are not framed (undecodable)."""
    if value is None or len(value) < _FRAMING_BYTES or value[0] != 0:
        return None
    return int.from_bytes(value[1:_FRAMING_BYTES], "big")


def schema_ids(records: Sequence[ConsumedRecord]) -> frozenset[int]:
    """The ids whose flatteners a batch needs. An id that can't be resolved waits: it makes no record undecodable."""
    heads = {value[:_FRAMING_BYTES] for record in records if (value := record.value) is not None}
    return frozenset(found for head in heads if (found := schema_id_of(head)) is not None)


def flatten_batch(
    origin: Origin,
    records: Sequence[ConsumedRecord],
    flatteners: Mapping[int, Flattener],
    keys: KeyContract,
) -> Flattened:
    """The rows of a batch of one topic-partition, in its order; schema ids and tombstones may alternate.

    Takes some 5 µs of CPU a record: large batches belong into a thread. Raises ``KeyError`` for an id of
    ``schema_ids(records)`` that ``flatteners`` lacks.
    """
    lines: list[bytes | BadBody] = [BadBody("the value has no Confluent framing")] * len(records)
    groups = _by_schema(records)
    for schema_id, indexes in groups.items():
        mine = records if len(indexes) == len(records) else [records[index] for index in indexes]
        lineage = Lineage.of(origin, schema_id, mine)
        if schema_id is None:
            found = _tombstones([record.key for record in mine], keys, lineage)
        else:
            bodies = [(record.value or b"")[_FRAMING_BYTES:] for record in mine]
            found = flatteners[schema_id].lines(bodies, lineage)
        for index, line in zip(indexes, found, strict=True):
            lines[index] = line
    good = [line for line in lines if isinstance(line, bytes)]
    bad = [Undecodable(index, str(line)) for index, line in enumerate(lines) if isinstance(line, BadBody)]
    ids = {
        schema_id for schema_id, indexes in groups.items() if any(isinstance(lines[index], bytes) for index in indexes)
    }
    body = b"\n".join([*good, b""])
    return Flattened(
        body, len(good), tuple(bad), tuple(sorted(schema_id for schema_id in ids if schema_id is not None))
    )


def _by_schema(records: Sequence[ConsumedRecord]) -> dict[int | None, list[int]]:
    """Indexes by schema id; ``None``: tombstones. Values without framing are in none."""
    heads = [None if (value := record.value) is None else value[:_FRAMING_BYTES] for record in records]
    by_head: dict[bytes | None, list[int]] = {head: [] for head in heads}
    for index, head in enumerate(heads):
        by_head[head].append(index)
    groups: dict[int | None, list[int]] = {}
    for head, indexes in by_head.items():
        schema_id = schema_id_of(head)
        if head is None or schema_id is not None:
            groups[schema_id] = indexes
    return groups


def _tombstones(keys: Sequence[bytes | None], contract: KeyContract, lineage: Lineage) -> list[bytes | BadBody]:
    lineage.ops = [op if op == HEARTBEAT and not key else "d" for op, key in zip(lineage.ops, keys, strict=True)]
    lines: list[bytes | BadBody] = []
    for index, key in enumerate(keys):
        try:
            row = contract.nothing() if lineage.ops[index] == HEARTBEAT else contract.row(key)
            lines.append(_line(row, lineage, index))
        except BadBody as bad:
            lines.append(bad)
    return lines


def _line(row: dict[str, Any], lineage: Lineage, index: int) -> bytes:
    row.update(lineage.cells(index))
    return msgspec.json.encode(row)


def _typed(leaf: Leaf, text: str) -> str | int | bool:
    """A key field's value from its text. Raises ``ValueError``."""
    if leaf.kind in ("int", "long"):
        bits = 31 if leaf.kind == "int" else 63
        if _INTEGER.fullmatch(text) and -(2**bits) <= (value := int(text)) < 2**bits:
            return value
        raise ValueError("no integer of that type")
    if leaf.kind == "boolean":
        if text not in ("true", "false"):
            raise ValueError("no boolean")
        return text == "true"
    if leaf.kind == "enum" and text not in leaf.symbols:
        raise ValueError("none of the symbols")
    return text
