"""The demo's entity files: every manner loads, its schemas take what the bank shows, and refuse each of its flaws."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.__main__ import options_of
from deploy.demo.demo import choose_entities
from shared.entities import Entity, load_entities
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.events.model import RejectedEvent

ACCOUNT: dict[str, Any] = {
    "op": "u", "id": 17, "version": 3, "updated_at": "2026-11-24T23:12:01.123Z", "holder": "Åse",
    "kind": "SAVINGS", "currency": "EUR", "balance": 12.50, "opened_at": "2026-11-24T23:12:01.123Z",
    "address": {"street": "1 Tidal Way", "city": "Łódź", "postcode": None, "country": "PL"},
}  # fmt: skip
PAYMENT: dict[str, Any] = {
    "op": "c", "id": 4, "version": 0, "updated_at": "2026-11-24T23:12:01.123Z", "account_id": 17, "amount": 0.01,
    "currency": "EUR", "status": "PENDING", "booked_on": "2026-11-24", "note": 'said "no"\n',
    "counterparty": {"name": "P", "iban": "BE1", "bank": {"name": None, "country": "BE"}},
}  # fmt: skip
SHOWN = {
    "accounts": ACCOUNT,
    "payments": PAYMENT,
    "account_events": {**ACCOUNT, "event_id": 1},
    "payment_events": {**PAYMENT, "event_id": 2},
}


def entities(tmp_path: Path, manner: str) -> dict[str, Entity]:
    folder = choose_entities(tmp_path / manner, manner)
    return load_entities(folder, "", {"BANK_URL": "http://127.0.0.1:1/cdc"}).entities


def encoded(entity: Entity, shown: dict[str, Any]) -> bytes | RejectedEvent | None:
    assert entity.schema_text is not None
    contract = compile_contract(entity.rules, entity.schema_text, entity.schema_subject, 1)
    assert not contract.general
    [found] = contract.encode(Identifier(entity.rules).identify([json.dumps(shown).encode()]))
    return found


@pytest.mark.parametrize(
    ("manner", "names"),
    [
        ("events", ["account_events", "payment_events"]),
        ("rows", ["accounts", "payments"]),
        ("both", ["account_events", "accounts", "payment_events", "payments"]),
    ],
)
def test_each_manner_has_its_entities_and_they_take_what_the_bank_shows(
    tmp_path: Path, manner: str, names: list[str]
) -> None:
    found = entities(tmp_path, manner)

    assert sorted(found) == names
    for name, entity in found.items():
        assert isinstance(encoded(entity, SHOWN[name]), bytes)
        assert entity.rules.shows == ("events" if name.endswith("_events") else "rows")


@pytest.mark.parametrize("flaw", ["amount_as_text", "no_currency", "unknown_field", "unknown_symbol", "no_time"])
def test_each_flaw_of_the_banks_json_is_refused(tmp_path: Path, flaw: str) -> None:
    for name, entity in entities(tmp_path, "both").items():
        shown = dict(SHOWN[name])
        amount, symbol = ("amount", "status") if "amount" in shown else ("balance", "kind")
        match flaw:
            case "amount_as_text":
                shown[amount] = "twelve fifty"
            case "no_currency":
                del shown["currency"]
            case "unknown_field":
                shown["colour"] = "red"
            case "unknown_symbol":
                shown[symbol] = "mislaid"
            case "no_time":
                del shown["updated_at"]

        assert isinstance(encoded(entity, shown), RejectedEvent), name


def test_a_delete_keeps_its_last_row(tmp_path: Path) -> None:
    entity = entities(tmp_path, "events")["payment_events"]
    shown = {**SHOWN["payment_events"], "op": "d"}
    [sighting] = Identifier(entity.rules).identify([json.dumps(shown).encode()])

    assert sighting.is_delete
    assert isinstance(encoded(entity, shown), bytes)


def test_the_folder_that_a_stack_names_loads_by_itself() -> None:
    folder = Path(__file__).parents[2] / "deploy" / "demo" / "entities"

    assert sorted(load_entities(folder, "", {"BANK_URL": "http://127.0.0.1:1/cdc"}).entities) == [
        "account_events",
        "payment_events",
    ]


def test_the_demo_needs_no_options() -> None:
    options = options_of([])

    assert (options.seconds, options.writers, options.manner, options.keep) == (60.0, 4, "events", False)


@pytest.mark.parametrize("arguments", [["--seconds", "1"], ["--writers", "0"], ["--manner", "tables"]])
def test_options_out_of_bounds_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        options_of(arguments)
