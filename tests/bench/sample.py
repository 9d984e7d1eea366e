"""The event that the benchmarks use: 24 leaves on three levels, about 480 bytes of JSON, with an id of its own."""

import json
from typing import Any

ENTITY = "bench_orders"
FIRST_US = 1_750_000_000_000_000
STEP_US = 1_000
"""One event a millisecond: no ties, so that a page is only work."""

_ADDRESS = {
    "type": "record",
    "name": "Address",
    "fields": [
        {"name": "street", "type": "string"},
        {"name": "zip", "type": "string"},
        {"name": "city", "type": "string"},
        {"name": "country", "type": {"type": "enum", "name": "Country", "symbols": ["DE", "FR", "US"]}},
        {
            "name": "geo",
            "type": {
                "type": "record",
                "name": "Geo",
                "fields": [{"name": "lat", "type": "double"}, {"name": "lon", "type": "double"}],
            },
        },
    ],
}

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "id", "type": "long"},
        {"name": "updated_at", "type": "long"},
        {"name": "op", "type": "string"},
        {"name": "status", "type": "string"},
        {"name": "amount_cents", "type": "long"},
        {"name": "currency", "type": "string"},
        {"name": "quantity", "type": "int"},
        {"name": "discount", "type": ["null", "double"]},
        {"name": "gift", "type": "boolean"},
        {"name": "note", "type": ["null", "string"]},
        {
            "name": "customer",
            "type": {
                "type": "record",
                "name": "Customer",
                "fields": [
                    {"name": "id", "type": "long"},
                    {"name": "name", "type": "string"},
                    {"name": "email", "type": "string"},
                    {"name": "vip", "type": "boolean"},
                    {"name": "score", "type": "double"},
                    {"name": "address", "type": _ADDRESS},
                ],
            },
        },
        {"name": "channel", "type": "string"},
        {"name": "attempt", "type": "int"},
    ],
}


def event(number: int) -> dict[str, Any]:
    """The ``number``-th event; its stamp is ``FIRST_US + number * STEP_US``."""
    ms = (FIRST_US + number * STEP_US) // 1_000
    return {
        "event_id": f"{number:032x}",
        "id": number % 100_000,
        "updated_at": ms,
        "op": "u",
        "status": "authorised",
        "amount_cents": 129_900 + number % 977,
        "currency": "EUR",
        "quantity": 1 + number % 7,
        "discount": None if number % 3 else 0.125,
        "gift": number % 5 == 0,
        "note": "leave at the door" if number % 4 == 0 else None,
        "customer": {
            "id": number % 9_973,
            "name": "Ada Lovelace",
            "email": "ada.lovelace@example.org",
            "vip": number % 11 == 0,
            "score": 0.7325,
            "address": {
                "street": "Invalidenstrasse 117",
                "zip": "10115",
                "city": "Berlin",
                "country": "DE",
                "geo": {"lat": 52.5309, "lon": 13.3847},
            },
        },
        "channel": "web",
        "attempt": 0,
    }


def raw(number: int) -> bytes:
    """The event as the source sends it."""
    return json.dumps(event(number), separators=(",", ":")).encode()
