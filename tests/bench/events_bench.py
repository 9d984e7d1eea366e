"""CPU of `shared/events` per event, step by step: ``python -m tests.bench.events_bench [events]``.

One process, one thread of ours, no I/O; process CPU time (all threads, so that polars hides nothing), the best of
several rounds over distinct events: some 480 bytes of JSON, 25 leaves, 3 levels. Beside a busy neighbour the figures
rise by half.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.events.contract import compile_contract
from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch
from shared.events.identity import Identifier, event_id
from shared.events.judge import Judge
from shared.events.model import EventRules
from shared.events.rows import RowReader
from shared.events.schema import parse
from shared.events.split import split_page

ROUNDS = 7
OWN_ID = EventRules(entity="accounts", key=("id",), updated_at="updated_at", event_id="event_id", op="op")
PAYLOAD = EventRules(entity="accounts", key=("id",), updated_at="updated_at", op="op")


def record(type_name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": type_name, "fields": [{"name": name, "type": of} for name, of in fields.items()]}


SCHEMA = json.dumps(
    record(
        "Account",
        event_id="string",
        op="string",
        id="string",
        updated_at={"type": "long", "logicalType": "timestamp-micros"},
        customer=record(
            "Customer",
            name="string",
            email="string",
            address=record("Address", street="string", city="string", zip="string", country="string"),
            tier={"type": "enum", "name": "Tier", "symbols": ["silver", "gold"]},
            since={"type": "int", "logicalType": "date"},
        ),
        balance=record("Balance", amount="double", currency="string", available="double", pending="int"),
        flags=record("Flags", frozen="boolean", vip="boolean", score="int"),
        branch="int",
        version="long",
        iban="string",
        note=["null", "string"],
        limit="long",
        kind="string",
    )
)


@dataclass
class Consumed:
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]


def events(count: int) -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"e-{number:09}",
            "op": "u",
            "id": f"acc-{number % 977:07}",
            "updated_at": f"2026-11-03T12:{number // 60 % 60:02}:{number % 60:02}.{number:06}Z",
            "customer": {
                "name": "Ada Lovelace",
                "email": f"ada{number}@example.org",
                "address": {"street": f"Main Street {number}", "city": "London", "zip": "N1 9GU", "country": "GB"},
                "tier": "gold",
                "since": f"20{number % 20:02}-04-01",
            },
            "balance": {"amount": number * 1.01, "currency": "EUR", "available": 12000.5, "pending": 3},
            "flags": {"frozen": False, "vip": True, "score": number % 1000},
            "branch": 17,
            "version": number,
            "iban": "GB29NWBK60161331926819",
            "note": None if number % 2 else "called twice",
            "limit": 5000,
            "kind": "current",
        }
        for number in range(count)
    ]


def cpu_us(work: Callable[[], object], count: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / count * 1e6


def main(count: int) -> None:
    page = json.dumps(events(count), separators=(",", ":")).encode()
    raws = split_page(page)
    contract = compile_contract(OWN_ID, SCHEMA, "accounts-value", 7)
    sightings = Identifier(OWN_ID).identify(raws)
    values = contract.encode(sightings)
    bodies = [value[5:] for value in values if isinstance(value, bytes)]
    assert len(bodies) == count
    headers = (("tm-event-id", b"0f" * 16), ("tm-seq", b"1793709296123456.0"), ("tm-op", b"u"))
    records = [
        Consumed(index, 1_793_709_296_123, b"acc", value, headers)
        for index, value in enumerate(values)
        if isinstance(value, bytes)
    ]
    origin, keys, flattener = Origin("cdc.accounts", 1, 0), KeyContract(("id",), SCHEMA), Flattener(SCHEMA, 7)
    judge, reader = Judge(OWN_ID, parse(SCHEMA)), RowReader(parse(SCHEMA))
    few = max(1, count // 10)
    steps: list[tuple[str, Callable[[], object], int]] = [
        ("split_page", lambda: split_page(page), count),
        ("identify, the source's own id", lambda: Identifier(OWN_ID).identify(raws), count),
        ("identify, canonical payload", lambda: Identifier(PAYLOAD).identify(raws), count),
        ("event_id", lambda: [event_id(sighting.identity, 0) for sighting in sightings], count),
        ("encode (decode, validate, write), compiled", lambda: contract.encode(sightings), count),
        ("encode, general path", lambda: [judge.encode(raw) for raw in raws[:few]], few),
        ("flatten_batch, columns", lambda: flatten_batch(origin, records, {7: flattener}, keys), count),
        ("flatten, row by row", lambda: [reader.row(body) for body in bodies[:few]], few),
    ]
    print(f"{count} events: {len(page) // count} B JSON, {sum(map(len, bodies)) // count} B Avro; CPU µs per event")
    for name, work, times in steps:
        print(f"{cpu_us(work, times):8.2f}  {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
