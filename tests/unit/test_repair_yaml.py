"""Repair rules as an entity's yaml names them."""

from pathlib import Path
from textwrap import indent

import pytest

from shared.config import ConfigError
from shared.entities import load_entities
from shared.events.repair import Default, EnumMap, Epoch, Number, Rename, RepairRule, Trim

SCHEMA = """{"type": "record", "name": "A", "fields": [
  {"name": "id", "type": "string"}, {"name": "updated_at", "type": "string"}]}"""
FOLDER = """
entities:
  accounts:
    source: bank
    key: id
    updated_at: updated_at
    schema: accounts.avsc
    owner: ledger
    repair:
{rules}
sources: {{bank: {{url: "https://bank.example/cdc"}}}}
owners: {{ledger: {{}}}}
"""
FIRST_LINE = FOLDER.splitlines().index("{rules}") + 1


def load(folder: Path, rules: str) -> tuple[RepairRule, ...]:
    (folder / "accounts.avsc").write_text(SCHEMA)
    (folder / "bank.yaml").write_text(FOLDER.format(rules=indent(rules, "      ")))
    return load_entities(folder).entities["accounts"].repairs


def test_each_rule_has_its_spelling(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """- {rename: /amt, to: amount}
- {default: /currency, value: EUR}
- {default: /tags, value: [a, 1], nulls: true}
- {default: /note, value: null}
- {number: /lines/*/price}
- {epoch: /opened_at, unit: epoch_ms}
- {trim: /name}
- {enum: /status, map: {actv: active, 1: one}}""",
    )

    assert found == (
        Rename("/amt", "amount"),
        Default("/currency", b'"EUR"'),
        Default("/tags", b'["a",1]', nulls=True),
        Default("/note", b"null"),
        Number("/lines/*/price"),
        Epoch("/opened_at", "epoch_ms"),
        Trim("/name"),
        EnumMap("/status", (("1", "one"), ("actv", "active"))),
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{trim: /updated_at}", "repair: trim: 'updated_at' is the entity's updated_at field"),
        ("{rename: /x, to: id}", "repair: rename: 'id' is the entity's key field"),
        ("{rename: /x}", "repair: rename needs 'to'"),
        ("{default: /x}", "repair: default needs 'value'"),
        ("{trim: }", "repair: trim needs a pointer"),
        ("{trim: name}", "repair: trim: expected a JSON pointer"),
        ("{number: /x, unit: epoch_s}", "repair: 'unit' is not for number"),
        ("{epoch: /x, unit: days}", "unit: expected one of epoch_ms, epoch_s, epoch_us"),
        ("{trim: /x, number: /y}", "repair: expected one of rename, default, number, epoch, trim, enum in each rule"),
        ("{nulls: true}", "repair: expected one of rename, default, number, epoch, trim, enum in each rule"),
        ("{enum: /x, map: {a: 1}}", "map: expected a map"),
        ("{trm: /x}", "unknown key 'trm'; did you mean 'trim'?"),
        ("trim", "expected a map with rename"),
    ],
)
def test_a_rule_that_can_not_be_is_refused_with_its_line(tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, f"- {{trim: /name}}\n- {rule}")

    (problem,) = refused.value.problems
    assert problem.startswith(f"{tmp_path}/bank.yaml:{FIRST_LINE + 1}: {message}")


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"repair: expected a list"):
        load(tmp_path, "{trim: /name}")
