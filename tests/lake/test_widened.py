"""A table that Spark widened, changed in place and checkpointed, on S3: its rows are the same without Spark."""

import os
import uuid
from contextlib import AsyncExitStack

from pyspark.sql import SparkSession

from shared.aws import open_client
from shared.lake.reader import LakeTable

CREATE = """CREATE TABLE {table} (id INT NOT NULL, `unit price` DECIMAL(5,2), small INT, ratio FLOAT, day DATE,
    tags ARRAY<STRING>) USING delta TBLPROPERTIES ('delta.columnMapping.mode' = 'name',
    'delta.enableDeletionVectors' = 'true', 'delta.checkpointInterval' = '4')"""
FIRST = """INSERT INTO {table} SELECT CAST(id AS INT), CAST(id / 100 AS DECIMAL(5,2)), CAST(id AS INT),
    CAST(id / 8 AS FLOAT), date_add(DATE'1969-12-30', CAST(id AS INT)), ARRAY('x') FROM range(2000)"""
WIDENED = {
    "id": "BIGINT",
    "`unit price`": "DECIMAL(12,4)",
    "small": "DOUBLE",
    "ratio": "DOUBLE",
    "day": "TIMESTAMP_NTZ",
}
LAST = """INSERT INTO {table} VALUES (1099511627776, 12345678.1234, 0.5, 0.1, TIMESTAMP_NTZ'2026-01-02 03:04:05.000006',
    NULL, 'new')"""
STATEMENTS = (
    CREATE,
    FIRST,
    "DELETE FROM {table} WHERE id % 7 = 3",
    "ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableTypeWidening' = 'true')",
    "ALTER TABLE {table} SET TBLPROPERTIES ('delta.feature.timestampNtz' = 'supported')",
    *(f"ALTER TABLE {{table}} ALTER COLUMN {name} TYPE {kind}" for name, kind in WIDENED.items()),
    "ALTER TABLE {table} ADD COLUMNS (added STRING)",
    LAST,
    "UPDATE {table} SET added = 'changed' WHERE id % 5 = 2",
    "DELETE FROM {table} WHERE id = 5",
)


async def test_rows_of_a_table_that_spark_widened_are_those_that_spark_reads(spark: SparkSession) -> None:
    bucket = f"lake-{uuid.uuid4().hex[:8]}"
    path = f"s3a://{bucket}/lake/things"
    async with AsyncExitStack() as resources:
        client = await open_client("s3", resources)
        await client.create_bucket(Bucket=bucket)
        for statement in STATEMENTS:
            spark.sql(statement.format(table=f"delta.`{path}`"))
        listed = await client.list_objects_v2(Bucket=bucket)
    names = " ".join(one["Key"] for one in listed["Contents"])
    columns = ["id", "unit price", "small", "ratio", "day", "added"]
    stored = spark.read.format("delta").load(path).select(*(f"`{name}`" for name in columns)).collect()
    expected = sorted(tuple(row) for row in stored)

    table = LakeTable.open(path, os.environ)
    assert table is not None
    found = sorted(row for rows in table.rows(columns) for row in rows)
    one = [row for rows in table.rows(["added"], "CAST(\"id\" AS VARCHAR) = '1099511627776'") for row in rows]

    assert "deletion_vector" in names
    assert ".checkpoint.parquet" in names
    assert found == expected
    assert one == [("new",)]
