"""The worlds of the test without a JVM, once through the loader's own MERGE in Spark: the same table."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from services.delta_loader.merge import merge_rows, schema_of, with_deleted
from services.delta_loader.schema import READ_OPTIONS
from services.delta_loader.session import table_session
from services.delta_loader.table import LakeTable
from tests.lake.vectors import KEYS, differences, spelled, world


@pytest.mark.timeout(900)
def test_spark_gives_the_table_of_the_model_as_the_test_without_a_jvm_does(spark: SparkSession, tmp_path: Path) -> None:
    session = table_session(spark)
    table = LakeTable(session, str(tmp_path / "table"))
    batches = world(4, keys=400, cuts=2)
    table.create(batches[0].lake.table_json, KEYS, {})

    for number, batch in enumerate(batches):
        file = tmp_path / f"{number}.ndjson"
        file.write_text("".join(spelled(row) + "\n" for row in batch.rows))
        table.fit(batch.lake.table_json)
        raw = session.read.schema(schema_of(batch.lake.read_json)).options(**READ_OPTIONS).json(str(file))
        merge_rows(session, table.path, with_deleted(raw), KEYS, None)

    shown = table.delta().toDF().toArrow().to_pylist()
    assert "\n".join(differences(shown, batches)) == ""
    newest = [batch.schema_ids[-1] for batch in batches]
    assert newest.index(17) > 0, "the table grows"
    assert 12 in newest[newest.index(17) :], "and a reader goes on that does not know"
