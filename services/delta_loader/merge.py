"""The one MERGE, for batch and stream alike: one row per key, the greatest in order, deletes included.

Commutative, idempotent and duplicate-proof: any order, repetition and split of the raw rows gives the same table.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    DeltaConcurrentModificationException,
    MetadataChangedException,
    ProtocolChangedException,
)
from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from services.delta_loader.projection import projection
from services.delta_loader.schema import DELETED_SQL
from services.delta_loader.spark_types import quoted
from shared.lake.layout import DELETED, ORDER
from shared.lake.positions import Note, encode_note

NOTE = "spark.databricks.delta.commitInfo.userMetadata"
SKIP_EMPTY = "spark.databricks.delta.skipRecordingEmptyCommits"
"""Rows that all lose change nothing in the table, and yet they are merged: the positions must say so."""

CONFLICTS = (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    DeltaConcurrentModificationException,
    MetadataChangedException,
    ProtocolChangedException,
)
"""Another writer was first, and what it did may touch what we read: begin again from the table as it is now."""

Bounds = Mapping[str, tuple[Any, Any]]
"""Key column → its least and its greatest value among the rows."""


def in_order() -> Column:
    """What decides between two events of one key. Of one event that was published twice, the first record counts."""
    places = (-F.col(name) for name in ("_kafka_generation", "_kafka_partition", "_kafka_offset"))
    return F.struct(*map(F.col, ORDER), *places)


def winners(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    """One row for each key: the greatest in order."""
    whole = F.struct(*(F.col(quoted(name)) for name in rows.columns))
    chosen = rows.groupBy(*map(quoted, keys)).agg(F.max_by(whole, in_order()).alias("winner"))
    return chosen.select("winner.*")


def with_deleted(rows: DataFrame) -> DataFrame:
    """The rows with the lake's own column."""
    return rows.withColumn(DELETED, F.expr(DELETED_SQL))


def projected(rows: DataFrame, table: StructType) -> DataFrame:
    """All columns of the table, and no others: what a row doesn't have is null, lest an update keep an old value."""
    return rows.selectExpr(*projection(rows.schema.json(), table.json()))


def merge(
    spark: SparkSession,
    path: str,
    source: DataFrame,
    keys: Sequence[str],
    note: Note | None,
    bounds: Bounds | None = None,
) -> None:
    """Commit ``source``: one row per key, in the table's full schema. Raises one of ``CONFLICTS``."""
    condition = F.lit(True)
    for name in keys:
        condition &= F.col(f"t.{quoted(name)}") == F.col(f"s.{quoted(name)}")
    for name, (least, greatest) in (bounds or {}).items():
        # Says nothing new, but lets Delta leave out files whose statistics lie outside.
        condition &= F.col(f"t.{quoted(name)}").between(F.lit(least), F.lit(greatest))
    newer = _order("s") > _order("t")
    table = DeltaTable.forPath(spark, path)
    with noted(spark, note):
        (
            table.alias("t")
            .merge(source.alias("s"), condition)
            .whenMatchedUpdateAll(condition=newer)
            .whenNotMatchedInsertAll()
            .execute()
        )


def merge_rows(spark: SparkSession, path: str, rows: DataFrame, keys: Sequence[str], note: Note | None) -> None:
    """``rows`` of the lake's columns, any number per key, into a table whose columns include theirs."""
    schema = DeltaTable.forPath(spark, path).toDF().schema
    merge(spark, path, projected(winners(rows, keys), schema), keys, note)


def forget(checkpointed: DataFrame) -> None:
    """Free what ``localCheckpoint`` keeps: by itself it waits for the JVM's collector, through many batches."""
    plan: Any = checkpointed._jdf.queryExecution().analyzed()
    if plan.getClass().getSimpleName() == "LogicalRDD":
        plan.rdd().unpersist(False)


@contextmanager
def noted(spark: SparkSession, note: Note | None) -> Iterator[None]:
    """What is committed within carries the note, and nothing after it does: a session setting outlives its commit."""
    if note is None:
        yield
        return
    spark.conf.set(NOTE, encode_note(note))
    spark.conf.set(SKIP_EMPTY, "false")
    try:
        yield
    finally:
        spark.conf.unset(NOTE)
        spark.conf.unset(SKIP_EMPTY)


def _order(side: str) -> Column:
    return F.struct(*(F.col(f"{side}.{name}") for name in ORDER))


def schema_of(schema_json: str) -> StructType:
    return StructType.fromJson(json.loads(schema_json))
