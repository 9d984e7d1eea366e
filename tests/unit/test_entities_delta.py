"""The ``delta:`` block of an entity, and what the loader says before it starts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.delta_loader import views
from services.delta_loader.__main__ import main, target
from shared.config import ConfigError
from shared.entities import Entities, load_entities
from shared.lake.layout import Lake

SCHEMA = {
    "type": "record",
    "name": "A",
    "fields": [{"name": "id", "type": "long"}, {"name": "at", "type": "string"}, {"name": "rev", "type": "long"}],
}


def entities(folder: Path, more: str) -> Entities:
    (folder / "a.avsc").write_text(json.dumps(SCHEMA))
    (folder / "a.sql").write_text("SELECT *, 1 AS one FROM events\n")
    (folder / "e.yaml").write_text(
        "sources: {bank: {url: 'https://bank.example/cdc'}}\nowners: {ledger: {}}\nentities:\n"
        f"  accounts: {{source: bank, key: id, updated_at: at, schema: a.avsc, owner: ledger{more}}}\n"
    )
    return load_entities(folder, "ns")


def test_without_a_block_rows_become_a_table_as_they_are(tmp_path: Path) -> None:
    made = target(entities(tmp_path, "").entities["accounts"], Lake("s3a://lake", "ns/"))

    assert (made.table, made.history, made.transform) == ("s3a://lake/ns/lake/accounts", None, None)
    assert (made.keys, made.order, made.timed) == (("id",), "shown", True)


def test_transform_history_and_properties_come_from_the_block(tmp_path: Path) -> None:
    block = ", delta: {transform: a.sql, history: true, properties: {delta.checkpointInterval: '20'}}, version: rev"
    made = target(entities(tmp_path, block).entities["accounts"], Lake("s3a://lake", "ns/"))

    assert made.transform == "SELECT *, 1 AS one FROM events\n"
    assert made.history == "s3a://lake/ns/lake/accounts_history"
    assert made.properties == {"delta.checkpointInterval": "20"}
    assert (made.order, made.timed) == ("version", False)


@pytest.mark.parametrize(("prefix", "name"), [("", "accounts"), ("bank-a/", "bank_a__accounts")])
def test_two_namespaces_on_one_catalog_have_names_of_their_own(tmp_path: Path, prefix: str, name: str) -> None:
    made = target(entities(tmp_path, "").entities["accounts"], Lake("s3a://lake", prefix), "main.lake")
    said: list[str] = []
    spark: Any = SimpleNamespace(sql=said.append)
    views.show(spark, made.catalog, made.namespace, made.entity, made.table)

    assert [text.partition("`.`")[2].split(" ")[0] for text in said] == [
        "lake`",
        f"lake`.`{name}`",
        f"lake`.`{name}_live`",
    ]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("{transform: nothing.sql}", "e.yaml:4: transform: can't read"),
        ("{hisory: true}", "'hisory'; did you mean 'history'"),
        ("{properties: {'1x': a}}", "properties"),
        ("{history: sometimes}", "history: expected true or false"),
    ],
)
def test_what_is_wrong_with_a_block_is_told_with_its_place(tmp_path: Path, block: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        entities(tmp_path, f", delta: {block}")

    assert words in str(refused.value)


def test_the_loader_names_all_that_is_wrong_before_it_starts_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entities(tmp_path, "")
    for name in ("TIDEMARK_CACHE_DIR", "TIDEMARK_SPARK_JARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIDEMARK_REGISTRY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(tmp_path))
    monkeypatch.setenv("TIDEMARK_LAKE_URI", "no address")
    first = main(["batch"]), capsys.readouterr().err
    monkeypatch.setenv("TIDEMARK_LAKE_URI", "s3a://lake")
    monkeypatch.setenv("TIDEMARK_CACHE_DIR", str(tmp_path))
    second = main(["batch", "acounts"]), capsys.readouterr().err
    third = main(["batch", "--range", "cdc.other/1/0:1-2"]), capsys.readouterr().err

    assert first[0] == second[0] == third[0] == 2
    assert "TIDEMARK_LAKE_URI" in first[1]
    assert "TIDEMARK_CACHE_DIR" in first[1]
    assert "'acounts' is no entity; did you mean 'accounts'?" in second[1]
    assert "--range cdc.other/1/0: no chosen entity has that topic" in third[1]
