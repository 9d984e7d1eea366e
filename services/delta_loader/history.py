"""SCD type 2: every event of a key with the interval in which it was the newest. Late events split intervals.

An interval begins at the event's rank (its time, or its version where the source numbers them) and ends where the next
event of the key begins; the last is open and current. Events of one rank have empty intervals but for the last, so that
a question as of a time or version finds one row. A delete is a row too, with ``_deleted``.

Events are only ever added, by key and order; what changes of an old one is where it ends. Ends are computed from one
version of the table: if the commit shows that another writer's came between, they are computed again. Only then do the
positions move.
"""

from collections.abc import Sequence

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from services.delta_loader.merge import forget, noted, projected, winners
from services.delta_loader.spark_types import quoted
from services.delta_loader.table import LakeTable
from shared.lake.layout import CURRENT, END_AT, ORDER, START_AT
from shared.lake.positions import Note, carried

ROUNDS_MAX = 20
_NEW = "__new"
_WAS = "__was"


class HistoryContended(Exception):
    """Other writers committed to the history in each of many rounds."""


def add(
    spark: SparkSession, table: LakeTable, events: DataFrame, keys: Sequence[str], note: Note, *, timed: bool
) -> None:
    """Commit ``events``, any number per key. Raises ``merge.CONFLICTS``, ``HistoryContended``."""
    named = [*keys, *ORDER]
    distinct = winners(events, named).localCheckpoint()
    try:
        _add(spark, table, distinct, keys, note, timed=timed)
    finally:
        forget(distinct)


def _add(
    spark: SparkSession, table: LakeTable, distinct: DataFrame, keys: Sequence[str], note: Note, *, timed: bool
) -> None:
    named = [*keys, *ORDER]
    for _round in range(ROUNDS_MAX):
        at = table.at()
        pinned = at.version
        intervals = _intervals(spark, table, pinned, distinct, keys, timed=timed)
        condition = F.lit(True)
        for name in named:
            condition &= F.col(f"t.{quoted(name)}") == F.col(f"s.{quoted(name)}")
        ends: dict[str, str | Column] = {name: F.col(f"s.{name}") for name in (END_AT, CURRENT)}
        # Events are only added, so an end only comes nearer: what was computed before another writer's can't undo it.
        nearer = F.expr(f"s.{END_AT} < t.{END_AT} OR (t.{END_AT} IS NULL AND s.{END_AT} IS NOT NULL)")
        merging = (
            DeltaTable.forPath(spark, table.path)
            .alias("t")
            .merge(intervals.alias("s"), condition)
            .whenMatchedUpdate(condition=nearer, set=ends)
            .whenNotMatchedInsertAll()
        )
        with noted(spark, carried(pinned, at.positions)):
            merging.execute()
        if table.at().version == pinned + 1:
            _claim(spark, table, note)
            return
    raise HistoryContended(f"{table.path}: other writers committed in each of {ROUNDS_MAX} rounds")


def _claim(spark: SparkSession, table: LakeTable, note: Note) -> None:
    """The positions move in a commit of their own, once the ends are known to be right: a writer that dies between two
    rounds leaves ends that nobody would compute again."""
    whole = DeltaTable.forPath(spark, table.path)
    nothing = whole.toDF().where(F.lit(False))
    with noted(spark, note):
        whole.alias("t").merge(nothing.alias("s"), F.lit(False)).whenNotMatchedInsertAll().execute()


def _intervals(
    spark: SparkSession, table: LakeTable, pinned: int, events: DataFrame, keys: Sequence[str], *, timed: bool
) -> DataFrame:
    """The rows that must be added or get another end: of the events' keys only."""
    stored = spark.read.format("delta").option("versionAsOf", pinned).load(table.path)
    names = list(map(quoted, keys))
    touched = stored.join(events.select(*names).distinct(), list(keys), "left_semi").select(
        *map(quoted, stored.columns)
    )
    fresh = projected(events, stored.schema).join(touched.select(*names, *ORDER), [*keys, *ORDER], "left_anti")
    known = touched.withColumn(_NEW, F.lit(False)).withColumn(_WAS, F.col(END_AT))
    added = fresh.withColumn(_NEW, F.lit(True)).withColumn(_WAS, F.col(END_AT))
    window = Window.partitionBy(*names).orderBy(*ORDER)
    begins = _begin(timed)
    whole = known.unionByName(added).withColumn(START_AT, begins)
    whole = whole.withColumn(END_AT, F.lead(START_AT).over(window)).withColumn(CURRENT, F.col(END_AT).isNull())
    changed = whole.where(F.col(_NEW) | ~F.col(END_AT).eqNullSafe(F.col(_WAS)))
    return changed.select(*map(quoted, stored.columns))


def _begin(timed: bool) -> Column:
    return F.expr("timestamp_micros(_rank)") if timed else F.col("_rank")
