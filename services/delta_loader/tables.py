"""What Spark does for one chunk of one entity's raw objects: read, judge, set aside, transform, merge, with one commit.

All of it blocks, and belongs to the one thread that works for this entity.
"""

import hashlib
import json
import time
from functools import partial
from typing import Any

from msgspec import Struct
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from services.delta_loader import care, history, quarantine, views
from services.delta_loader.links import Chunk
from services.delta_loader.merge import Bounds, forget, in_order, merge, projected, schema_of, winners, with_deleted
from services.delta_loader.schema import CORRUPT, READ_OPTIONS, LakeSchema
from services.delta_loader.session import planned_lightly, table_session
from services.delta_loader.spark_types import Member, Simple, StructOf, from_json, quoted, to_json
from services.delta_loader.table import PROPERTIES, At, LakeTable
from services.delta_loader.transform import Transform
from shared import logs
from shared.events.lineage import HEARTBEAT
from shared.lake.layout import CURRENT, END_AT, ORDER, START_AT
from shared.lake.positions import Note, Positions, Ranges, advanced

log = logs.get_logger(__name__)

BOUNDED = frozenset({"byte", "short", "integer", "long", "string"})
RULE, TRANSFORM = "tidemark.rule", "tidemark.transform"
LIGHT_ROWS_MAX = 5_000
REASON, ROWS, WINNER, BEAT = "__reason", "__rows", "__winner", "__beat"
now_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Goes on while the machine sleeps."""


class Target(Struct, frozen=True, kw_only=True):
    """One entity's tables, and how they are made."""

    entity: str
    keys: tuple[str, ...]
    table: str
    quarantine: str
    history: str | None = None
    order: str
    """What ``_rank`` is: ``shown``, ``updated_at`` or ``version``. Fixed for the life of a table."""
    transform: str | None = None
    properties: dict[str, str] = {}
    catalog: str = ""
    namespace: str = ""
    """Stands before the entity's name in the catalog."""

    @property
    def timed(self) -> bool:
        return self.order != "version"


class Standing(Struct, frozen=True):
    """The tables before a batch. ``positions``: what neither of them has yet begins there."""

    table: At
    history: At | None

    @property
    def positions(self) -> Positions:
        if self.history is None:
            return self.table.positions
        both = self.table.positions.keys() & self.history.positions.keys()
        return {chain: min(self.table.positions[chain], self.history.positions[chain]) for chain in both}


class Outcome(Struct, frozen=True):
    """What became of a chunk. ``uncovered``: nothing was done, for these ids are not in the schema."""

    rows: int = 0
    quarantined: dict[str, int] = {}
    uncovered: frozenset[int] = frozenset()
    heartbeats: int = 0
    beats_s: dict[int, float] = {}
    """When the newest heartbeat was sent, by partition."""


class RowsMissing(Exception):
    """Spark read more or fewer rows than the objects' metadata promise."""


class RuleChanged(Exception):
    """The table was made for another key or order: its rows can't be compared with new ones."""


class BatchTooOld(Exception):
    """The batch was begun so long ago that VACUUM may have taken what it wrote."""


class _Judged(Struct, frozen=True):
    kept: DataFrame
    """One line per key (with history: per event), with its winner."""
    rows: int
    reasons: dict[str, int]
    uncovered: int
    bounds: Bounds
    heartbeats: int
    beats_s: dict[int, float]


class EntityTables:
    """Made in the thread that will use it. ``raw_root``: what stands before a raw object's key in its address."""

    def __init__(self, spark: SparkSession, target: Target, raw_root: str, *, batch_age_s_max: float) -> None:
        self._spark = table_session(spark)
        self._target = target
        self._raw_root = raw_root
        self._batch_age_s_max = batch_age_s_max
        self.table = LakeTable(self._spark, target.table)
        self.history = None if target.history is None else LakeTable(self._spark, target.history)
        self._transform = Transform(self._spark, target.transform, target.keys)
        self._ruled: set[str] = set()
        self._shown = False
        self._wanted: tuple[LakeSchema, str] | None = None

    def standing(self) -> Standing:
        return Standing(self.table.at(), None if self.history is None else self.history.at())

    def commit(self, chunk: Chunk, schema: LakeSchema, standing: Standing, began_s: float) -> Outcome:
        """Merge the chunk's rows and move the positions, in one commit; the history's comes before.

        Killed anywhere, it is done again from the positions, to the same end. ``began_s`` by ``now_s``. Raises
        ``merge.CONFLICTS``, ``RowsMissing``, ``BatchTooOld``, ``Breaking``, ``TransformRefused``.
        """
        with planned_lightly(self._spark, chunk.rows <= LIGHT_ROWS_MAX):
            judged = self._judged(chunk, schema)
            try:
                return self._committed(chunk, schema, standing, began_s, judged)
            finally:
                forget(judged.kept)

    def _committed(
        self, chunk: Chunk, schema: LakeSchema, standing: Standing, began_s: float, judged: "_Judged"
    ) -> Outcome:
        if judged.uncovered:
            return Outcome(uncovered=self._uncovered(chunk, schema))
        if judged.rows != chunk.rows:
            raise RowsMissing(
                f"{judged.rows} rows were read where the metadata of {len(chunk.keys)} raw objects say {chunk.rows}: "
                f"{', '.join(chunk.keys[:3])}; `tidemark audit {self._target.entity}` verifies them"
            )
        if judged.reasons:
            self._set_aside(chunk, schema)
        good = judged.kept.where(F.col(REASON).isNull()).select(f"{WINNER}.*")
        self._fit(schema)
        if self.history is not None and standing.history is not None and _moves(standing.history, chunk.ranges):
            self._check_age(began_s)
            note = _note(standing.history, chunk.ranges)
            events = with_deleted(self._transform(good))
            history.add(self._spark, self.history, events, self._target.keys, note, timed=self._target.timed)
        if self.history is not None:
            good = winners(good, self._target.keys)
        rows = projected(with_deleted(self._transform(good)), self.table.delta().toDF().schema)
        self._check_age(began_s)
        note = _note(standing.table, chunk.ranges)
        merge(self._spark, self._target.table, rows, self._target.keys, note, judged.bounds)
        return Outcome(
            rows=judged.rows,
            quarantined=judged.reasons,
            heartbeats=judged.heartbeats,
            beats_s=judged.beats_s,
        )

    def _read(self, chunk: Chunk, schema: LakeSchema) -> DataFrame:
        kind = schema_of(schema.read_json)
        if not chunk.keys:
            return self._spark.createDataFrame([], kind)
        paths = [f"{self._raw_root}/{key}" for key in chunk.keys]
        return self._spark.read.schema(kind).options(**READ_OPTIONS).json(paths)

    def _judged(self, chunk: Chunk, schema: LakeSchema) -> _Judged:
        """One pass over the objects: each row is parsed once, and what is left of them stays in Spark."""
        keys = self._target.keys
        raw = self._read(chunk, schema).withColumn(REASON, quarantine.reason_of(keys))
        raw = raw.withColumn(BEAT, F.when(F.col(REASON) == HEARTBEAT, F.col("_kafka_partition")))
        group = [*keys, *ORDER] if self.history is not None else list(keys)
        whole = F.struct(*(F.col(quoted(name)) for name in raw.columns if name not in (CORRUPT, REASON, BEAT)))
        kept = (
            raw.groupBy(*map(quoted, group), REASON, BEAT)
            .agg(
                F.max_by(whole, in_order()).alias(WINNER),
                F.count(F.lit(1)).alias(ROWS),
                F.count(F.when(_is_uncovered(chunk, schema), 1)).alias("__uncovered"),
                F.max(F.col("_kafka_timestamp").cast("double")).alias("__at"),
            )
            .localCheckpoint()
        )
        bounded = [name for name in keys if _kind(schema, name) in BOUNDED]
        edges = [edge(quoted(name)) for name in bounded for edge in (F.min, F.max)]
        sums = (F.sum(ROWS), F.sum("__uncovered"), F.max("__at"))
        found = kept.groupBy(REASON, BEAT).agg(*sums, *edges).collect()
        good = next((row[5:] for row in found if row[0] is None), None)
        bounds: dict[str, tuple[Any, Any]] = {}
        if good is not None:
            bounds = {name: (good[2 * at], good[2 * at + 1]) for at, name in enumerate(bounded)}
        reasons = {str(row[0]): int(row[2]) for row in found if row[0] not in (None, HEARTBEAT)}
        beats = [row for row in found if row[0] == HEARTBEAT]
        return _Judged(
            kept,
            sum(row[2] for row in found),
            reasons,
            sum(row[3] for row in found),
            bounds,
            sum(row[2] for row in beats),
            {int(row[1]): float(row[4]) for row in beats if row[1] is not None and row[4] is not None},
        )

    def _uncovered(self, chunk: Chunk, schema: LakeSchema) -> frozenset[int]:
        rows = self._read(chunk, schema).where(_is_uncovered(chunk, schema)).select("_schema_id").distinct().limit(1000)
        return frozenset(int(row[0]) for row in rows.collect())

    def _set_aside(self, chunk: Chunk, schema: LakeSchema) -> None:
        raw = self._read(chunk, schema).withColumn("raw_file", F.col("_metadata.file_path"))
        bad = raw.withColumn("reason", quarantine.reason_of(self._target.keys))
        bad = bad.where(F.col("reason").isNotNull() & (F.col("reason") != HEARTBEAT))
        quarantine.keep(self._spark, self._target.quarantine, bad)

    def _fit(self, schema: LakeSchema) -> None:
        """Tables that take the rows of this schema: made, or grown. Raises ``Breaking``."""
        wanted = self.wanted(schema)
        made = self._fitted(self.table, wanted, schema)
        if self.history is not None:
            self._fitted(self.history, _with_intervals(wanted, timed=self._target.timed), schema)
        if made or not self._shown:
            self._shown = True
            views.show(
                self._spark, self._target.catalog, self._target.namespace, self._target.entity, self._target.table
            )

    def wanted(self, schema: LakeSchema) -> str:
        """The columns that the table should have, as Spark's schema JSON: the transform's, and the keys not null."""
        if self._target.transform is None:
            return schema.table_json
        if self._wanted is not None and self._wanted[0] is schema:
            return self._wanted[1]
        empty = self._spark.createDataFrame([], schema_of(schema.read_json))
        made = from_json(with_deleted(self._transform(empty.drop(CORRUPT))).schema.json()).members
        keys = [
            Member(one.name, one.type, nullable=False) for key in self._target.keys for one in made if one.name == key
        ]
        rest = [Member(one.name, one.type) for one in made if one.name not in self._target.keys]
        self._wanted = schema, to_json(StructOf((*keys, *rest)))
        return self._wanted[1]

    def _fitted(self, table: LakeTable, wanted: str, schema: LakeSchema) -> bool:
        """True: it was made or changed."""
        if table.at().version < 0:
            self.create_like(table, wanted, column_mapping=schema.column_mapping)
            return True
        self._check_rule(table)
        return table.fit(wanted)

    def create_like(self, table: LakeTable, wanted: str, *, column_mapping: bool = False) -> None:
        """``table`` by Spark's schema JSON, with this entity's key and properties."""
        chosen = {**PROPERTIES, **self._target.properties}
        properties = chosen | self.rule | care.record_of(chosen)
        if column_mapping:
            properties["delta.columnMapping.mode"] = "name"
        table.create(wanted, self._target.keys, properties)
        self._ruled.add(table.path)

    def _check_rule(self, table: LakeTable) -> None:
        """Once per table and process: a rule changes with the entity's settings."""
        if table.path in self._ruled:
            return
        properties = table.properties()
        known = properties.get(RULE)
        if known is not None and known != self.rule[RULE]:
            raise RuleChanged(
                f"{table.path} was made for {known}, and the entity now has {self.rule[RULE]}: its rows can't be "
                "compared with new ones. Build it anew: batch --full-refresh"
            )
        if properties.get(TRANSFORM) not in (None, self.rule[TRANSFORM]):
            log.warning(
                "transform_changed",
                entity=self._target.entity,
                table=table.path,
                advice="rows merged before keep what the old one made of them; --full-refresh builds all anew",
            )
        self._ruled.add(table.path)

    @property
    def rule(self) -> dict[str, str]:
        """What a table is made by, in its own properties."""
        words = {"key": list(self._target.keys), "order": self._target.order}
        sql = hashlib.sha256((self._target.transform or "").encode()).hexdigest()[:16]
        return {RULE: json.dumps(words), TRANSFORM: sql}

    def _check_age(self, began_s: float) -> None:
        if now_s() - began_s > self._batch_age_s_max:
            raise BatchTooOld(f"the batch was begun {now_s() - began_s:.0f} s ago; it is done again from the start")


def _is_uncovered(chunk: Chunk, schema: LakeSchema) -> Column:
    """The ids that objects name are covered: an unknown one in a corrupt row is a part of what is corrupt."""
    unknown = F.col("_schema_id").isNotNull() & ~F.col("_schema_id").isin(*sorted(schema.schema_ids))
    return unknown & F.col(CORRUPT).isNull() if chunk.names_all_ids else unknown


def _note(at: At, ranges: Ranges) -> Note:
    return Note(at.version, ranges, advanced(at.positions, ranges))


def _moves(at: At, ranges: Ranges) -> bool:
    return advanced(at.positions, ranges) != at.positions


def _kind(schema: LakeSchema, name: str) -> str:
    member = from_json(schema.read_json).find(name)
    return member.type.name if member is not None and isinstance(member.type, Simple) else ""


def _with_intervals(wanted: str, *, timed: bool) -> str:
    kind = Simple("timestamp" if timed else "long")
    members = from_json(wanted).members
    return to_json(
        StructOf((*members, Member(START_AT, kind), Member(END_AT, kind), Member(CURRENT, Simple("boolean"))))
    )
