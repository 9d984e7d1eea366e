"""The one MERGE without a JVM: any permutation, repetition, split and interleaving gives the model's table.

``TIDEMARK_TEST_FULL=1`` runs many more worlds. The same worlds run through Spark in tests/lake/test_vectors.py.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, Field, QueryBuilder, Schema

from services.delta_loader.evolution import AddColumn, plan
from services.delta_loader.schema import DELETED
from services.delta_loader.spark_types import ArrayOf, Simple, SparkType, StructOf, decimal_of, from_json
from shared.lake.layout import ORDER
from tests.lake.vectors import KEYS, Batch, Row, differences, world

SEEDS = range(60) if os.environ.get("TIDEMARK_TEST_FULL") else range(3)
KEY_COUNT, CUTS = 200, 6
_POLARS: dict[str, Any] = {
    "string": pl.String,
    "boolean": pl.Boolean,
    "integer": pl.Int32,
    "long": pl.Int64,
    "timestamp": pl.Datetime("us", "UTC"),
}


class Lake:
    """One table, fed as the loader feeds it. What is given differs from that is a mistake, made on purpose."""

    def __init__(
        self, folder: Path, *, order: tuple[str, ...] = ORDER, guarded: bool = True, projected: bool = True
    ) -> None:
        self._folder, self._order, self._guarded, self._projected = folder, order, guarded, projected
        self._table: DeltaTable | None = None

    def take(self, batch: Batch) -> None:
        table = self._fitted(batch.lake.table_json)
        columns = from_json(table.schema().to_json() if self._projected else batch.lake.table_json)
        source = pl.DataFrame(
            [[row.get(member.name) for member in columns.members] for row in self._winners(batch.rows)],
            schema={member.name: _polars(member.type) for member in columns.members},
            orient="row",
        )
        same_key = " AND ".join(f"t.{name} = s.{name}" for name in KEYS)
        newer = " > ".join(f"struct({', '.join(f'{side}.{name}' for name in self._order)})" for side in "st")
        merge = table.merge(source, same_key, source_alias="s", target_alias="t")
        merge.when_matched_update_all(newer if self._guarded else None).when_not_matched_insert_all().execute()

    def rows(self) -> list[Row]:
        assert self._table is not None
        found = QueryBuilder().register("lake", self._table).execute("SELECT * FROM lake").read_all()
        return pl.DataFrame(found).to_dicts()

    def _fitted(self, wanted: str) -> DeltaTable:
        if self._table is None:
            self._table = DeltaTable.create(str(self._folder), Schema.from_json(wanted))
        steps = plan(self._table.schema().to_json(), wanted, KEYS)
        fields = {field["name"]: field for field in json.loads(wanted)["fields"]}
        adds = [step.path[0] for step in steps if isinstance(step, AddColumn)]
        assert len(adds) == len(steps)
        if adds:
            self._table.alter.add_columns([Field.from_json(json.dumps(fields[name])) for name in adds])
        return self._table

    def _winners(self, rows: list[Row]) -> list[Row]:
        found: dict[Any, Row] = {}
        for row in rows:
            key = tuple(row[name] for name in KEYS)
            order: Callable[[Row], Any] = lambda one: tuple(one[name] for name in self._order)  # noqa: E731
            if key not in found or order(row) > order(found[key]):
                found[key] = row
        return [row | {DELETED: row["_op"] == "d"} for row in found.values()]


def _polars(kind: SparkType) -> Any:
    match kind:
        case Simple() if (decimal := decimal_of(kind)) is not None:
            return pl.Decimal(*decimal)
        case Simple():
            return _POLARS[kind.name]
        case ArrayOf():
            return pl.List(_polars(kind.element))
        case StructOf():
            return pl.Struct({member.name: _polars(member.type) for member in kind.members})
    raise AssertionError(kind)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_repetition_split_and_interleaving_give_one_table(tmp_path: Path, seed: int) -> None:
    lake = Lake(tmp_path)
    batches = world(seed, KEY_COUNT, CUTS)

    for batch in batches:
        lake.take(batch)

    assert "\n".join(differences(lake.rows(), batches)) == ""


@pytest.mark.parametrize(
    "mistake",
    [
        {"guarded": False},
        {"projected": False},
        *({"order": tuple(name for name in ORDER if name != left_out)} for left_out in ORDER),
    ],
    ids=lambda mistake: "_".join(map(str, mistake.get("order", mistake))),
)
def test_each_part_of_the_rule_is_needed(tmp_path: Path, mistake: Any) -> None:
    lake = Lake(tmp_path, **mistake)
    batches = world(0, KEY_COUNT, CUTS)

    for batch in batches:
        lake.take(batch)

    assert any(differences(lake.rows(), batches))
