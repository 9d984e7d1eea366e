"""Random worlds for the one MERGE: raw rows of many keys, cut into batches, and the one table that must come out.

Keys are independent of each other, so that one world of some hundred keys is some hundred histories, each in an order
of its own: late and re-driven events, events published twice, repairs, deletes with and without their row, versions
that add columns. Two readers take all rows, in batches of their own, one between the other's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

from services.delta_loader.schema import LakeSchema, lake_schema

KEYS = ("region", "id")
ORDER = ("_rank", "_tiebreak", "_rev", "_event_id")
# Of an event that was published twice, either row may be the one that stays.
NOT_COMPARED = frozenset(
    {"_kafka_topic", "_kafka_generation", "_kafka_partition", "_kafka_offset", "_kafka_timestamp", "_attempt"}
)
_FIELDS: dict[str, Any] = {
    "region": "string",
    "id": "long",
    "name": ["null", "string"],
    "amount": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    "note": ["null", "string"],
    "at": ["null", {"type": "long", "logicalType": "timestamp-micros"}],
    "items": {
        "type": "array",
        "items": {
            "type": "record",
            "name": "Item",
            "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": ["null", "int"]}],
        },
    },
}
_COLUMNS = {11: list(_FIELDS)[:4], 12: list(_FIELDS)[:6], 17: list(_FIELDS)}
SCHEMAS = {
    schema_id: json.dumps(
        {"type": "record", "name": "Thing", "fields": [{"name": name, "type": _FIELDS[name]} for name in columns]}
    )
    for schema_id, columns in _COLUMNS.items()
}

Row = dict[str, Any]
Key = tuple[str, int]


@dataclass(frozen=True)
class Batch:
    """``schema_ids``: the versions that its reader knows; all those of its rows are among them."""

    schema_ids: tuple[int, ...]
    rows: list[Row]

    @property
    def lake(self) -> LakeSchema:
        return lake_schema({schema_id: SCHEMAS[schema_id] for schema_id in self.schema_ids}, KEYS)


def world(seed: int, keys: int, cuts: int) -> list[Batch]:
    """The batches of two readers, as they commit. One reads in no order, the other (even seeds) old versions first:

    it knows nothing of a version that the table has already.
    """
    random = Random(seed)
    names = [("s'üd", -number) if number % 3 else ("north", number) for number in range(keys)]
    rows = [row for name in names for row in _rows(random, name)]
    readers = []
    for disorder in (100.0, 100.0 if seed % 2 else 0.4):
        rows.sort(key=lambda row: random.gauss(row["_schema_id"] or 11, disorder))
        readers.append(_cut(random, rows, cuts, disorder))
    for offset, row in enumerate(rows):
        row["_kafka_offset"] = offset
    batches = []
    known = [11, 11]
    while any(readers):
        reader = random.choice([index for index, left in enumerate(readers) if left])
        batch = readers[reader].pop()
        known[reader] = max(known[reader], *(row["_schema_id"] or 11 for row in batch), 11)
        batches.append(Batch(tuple(one for one in SCHEMAS if one <= known[reader]), batch))
    return batches


def model(batches: Sequence[Batch]) -> dict[Key, Row]:
    """Each key's distinct events, one after the other in their order, each in the place of all before it."""
    events: dict[Key, dict[tuple[Any, ...], Row]] = {}
    for batch in batches:
        for row in batch.rows:
            events.setdefault(key_of(row), {})[order_of(row)] = row
    table = {}
    for key, found in events.items():
        state: Row = {}
        for order in sorted(found):
            state = dict.fromkeys(_FIELDS) | found[order] | {"_deleted": found[order]["_op"] == "d"}
        table[key] = compared(state)
    return table


def differences(shown: Sequence[Row], batches: Sequence[Batch]) -> Iterator[str]:
    """Where a table is not the model's, with all that happened to the key."""
    expected = model(batches)
    found = {key_of(row): compared(row) for row in shown}
    if len(found) != len(shown):
        yield f"{len(shown) - len(found)} keys are in the table more than once"
    for key in expected.keys() | found.keys():
        if found.get(key) != expected.get(key):
            history = [
                f"  batch {number}: {_short(row)}"
                for number, batch in enumerate(batches)
                for row in batch.rows
                if key_of(row) == key
            ]
            yield "\n".join([f"{key}: {found.get(key)}, not {expected.get(key)}", *history])


def key_of(row: Row) -> Key:
    return row["region"], row["id"]


def order_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ORDER)


def compared(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in NOT_COMPARED}


def spelled(row: Row) -> str:
    """A line of a raw object."""
    return json.dumps({name: _spelled(value) for name, value in row.items()}, ensure_ascii=False)


def _spelled(value: Any) -> Any:
    match value:
        case Decimal():
            return str(value)
        case datetime():
            return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        case _:
            return value


def _short(row: Row) -> str:
    values = {name: value for name, value in row.items() if name in _FIELDS and name not in KEYS}
    return f"{row['_op']} {order_of(row)} schema {row['_schema_id']} {values}"


def _cut(random: Random, rows: Sequence[Row], cuts: int, disorder: float) -> list[list[Row]]:
    """Into batches, the first one last, some of them read once more."""
    at = sorted([0, *(random.randint(0, len(rows)) for _ in range(cuts)), len(rows)])
    batches = [(start, list(rows[start:end])) for start, end in pairwise(at)]
    batches += random.sample(batches, len(batches) // 4)
    batches.sort(key=lambda batch: random.gauss(batch[0], disorder * len(rows) / 10), reverse=True)
    return [batch for _, batch in batches]


def _rows(random: Random, key: Key) -> list[Row]:
    """One key's rows, in the order of its events; each event is published once or more."""
    rows: list[Row] = []
    rank = random.choice([0, -5, 1_793_709_296_123_456, -(2**63)])
    tiebreak = random.choice([0, 2**63 - 10])
    for _ in range(random.randint(1, 6)):
        step = random.random()
        if step < 0.6:
            rank, tiebreak = rank + random.choice([1, 1000]), random.choice([0, 7])
        elif step < 0.9:
            tiebreak += 1
        event = _event(random, key, (rank, tiebreak, 0, f"{random.getrandbits(128):032x}"))
        published = [event]
        if random.random() < 0.2:
            repaired = _event(random, key, (rank, tiebreak, random.choice([1, 2]), event["_event_id"]))
            published = [repaired] if random.random() < 0.3 else [event, repaired]  # parked first, or published
        for one in published:
            rows += [one | {"_attempt": again} for again in range(random.choice([1, 1, 1, 2, 3]))]
    return rows


def _event(random: Random, key: Key, order: tuple[int, int, int, str]) -> Row:
    schema_id: int | None = random.choice([11, 11, 12, 12, 17])
    op = random.choice(["c", "u", "u", "u", "d", "d"])
    row: Row = dict(zip(KEYS, key, strict=True))
    if op == "d" and random.random() < 0.5:
        schema_id = None  # a tombstone
    else:
        values = _values(random)
        row |= {name: values[name] for name in _COLUMNS[schema_id or 0] if name not in KEYS}
    lineage = dict(zip(ORDER, order, strict=True)) | {"_op": op, "_schema_id": schema_id}
    place = {"_kafka_topic": "cdc.things", "_kafka_generation": 1, "_kafka_partition": 0, "_kafka_timestamp": None}
    return row | lineage | place


def _values(random: Random) -> Row:
    at = datetime(1969, 12, 31, tzinfo=UTC) + timedelta(microseconds=random.randint(-5 * 10**16, 5 * 10**16))
    items = [{"sku": random.choice("abc"), "n": random.choice([None, 1, -1])} for _ in range(random.randint(0, 2))]
    return {
        "name": random.choice([None, "", "Zoë", "x" * random.randint(1, 9)]),
        "amount": Decimal(random.randint(-(10**12) + 1, 10**12 - 1)).scaleb(-2),
        "note": random.choice([None, "note", "other"]),
        "at": random.choice([None, at]),
        "items": items,
    }
