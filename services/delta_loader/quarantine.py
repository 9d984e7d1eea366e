"""Raw rows that can't be merged: they have no order, no key, or values that their schema doesn't hold.

They are kept as they were read, with their place and the reason, in a table beside the lake. A row that is read again
is found there and not added twice.
"""

from collections.abc import Sequence
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from services.delta_loader.schema import CORRUPT
from services.delta_loader.spark_types import quoted
from shared.events.lineage import HEARTBEAT

REASONS = ("corrupt", "no_key", "no_order")
COLUMNS = """
  place STRING NOT NULL, reason STRING NOT NULL, _kafka_topic STRING, _kafka_generation BIGINT, _kafka_partition BIGINT,
  _kafka_offset BIGINT, _schema_id BIGINT, _event_id STRING, row_text STRING, quarantined_at TIMESTAMP
"""
"""``place``: topic/generation/partition/offset; where a row doesn't say, the object's key and a digest of the row."""


def reason_of(keys: Sequence[str]) -> Column:
    """Why a raw row is not merged: one of ``REASONS``, or ``HEARTBEAT``, which is no fault; null for all others."""
    no_key, no_order = F.lit(False), F.lit(False)
    for name in keys:
        no_key |= F.col(quoted(name)).isNull()
    for name in ("_rank", "_tiebreak", "_rev", "_event_id"):
        no_order |= F.col(name).isNull()
    corrupt = F.col(CORRUPT).isNotNull()
    # Whoever else writes to the topic may call a record that has a value what they like.
    beat = F.col("_op").eqNullSafe(HEARTBEAT) & F.col("_event_id").isNull() & F.col("_schema_id").isNull()
    found = F.when(corrupt, F.lit("corrupt")).when(beat, F.lit(HEARTBEAT))
    return found.when(no_key, F.lit("no_key")).when(no_order, F.lit("no_order"))


def keep(spark: SparkSession, path: str, bad: DataFrame) -> None:
    """Add the rows of ``bad`` that are not there yet. They have ``reason``, ``raw_file`` and the raw row's columns."""
    spark.sql(f"CREATE TABLE IF NOT EXISTS delta.`{path}` ({COLUMNS}) USING delta")
    hidden = {"reason", "raw_file", CORRUPT}
    fields = [F.col(quoted(name)) for name in bad.columns if name not in hidden]
    text = F.coalesce(F.col(CORRUPT), F.to_json(F.struct(*fields), {"ignoreNullFields": "false"}))
    numbers = [F.col(name) for name in ("_kafka_generation", "_kafka_partition", "_kafka_offset")]
    named = F.when(
        F.col("_kafka_topic").isNotNull() & numbers[2].isNotNull(),
        F.concat_ws("/", F.col("_kafka_topic"), *(number.cast("string") for number in numbers)),
    )
    rows = bad.select(
        F.coalesce(named, F.concat_ws("#", F.col("raw_file"), F.sha2(text, 256))).alias("place"),
        "reason",
        "_kafka_topic",
        *numbers,
        "_schema_id",
        "_event_id",
        text.alias("row_text"),
        F.current_timestamp().alias("quarantined_at"),
    ).dropDuplicates(["place"])
    table = DeltaTable.forPath(spark, path)
    table.alias("t").merge(rows.alias("s"), "t.place = s.place").whenNotMatchedInsertAll().execute()


def counted(reasons: Sequence[Any]) -> dict[str, int]:
    """From rows of (reason, count)."""
    return {str(reason): int(count) for reason, count in reasons if reason is not None}
