"""A Delta table as the loader needs it: where it stands, made when missing, grown when needed."""

from collections.abc import Mapping, Sequence

from delta.tables import DeltaTable
from msgspec import Struct
from pyspark.sql import SparkSession

from services.delta_loader import evolution
from services.delta_loader.log_files import LogFiles
from services.delta_loader.session import version
from services.delta_loader.spark_types import Member, Simple, ddl, from_json, quoted
from shared.lake.positions import Known, Positions, positions_at

CLUSTERED = frozenset(
    {"byte", "short", "integer", "long", "float", "double", "date", "timestamp", "timestamp_ntz", "string"}
)
CLUSTERING_COLUMNS_MAX = 4
PROPERTIES: Mapping[str, str] = {
    "delta.enableDeletionVectors": "true",
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.logRetentionDuration": "interval 30 days",
}


class At(Struct, frozen=True):
    """What was read of a table before a batch: its version, and the positions in it. -1: there is no table."""

    version: int
    positions: Positions


class LakeTable:
    """One table at one address. All calls block, and belong to the one thread that works for this table."""

    def __init__(self, spark: SparkSession, path: str) -> None:
        self.path = path
        self.spark = spark
        self._log = LogFiles(spark, path)
        self._known: Known | None = None
        self._life = -1

    @property
    def name(self) -> str:
        """For SQL."""
        return f"delta.`{self.path}`"

    def at(self) -> At:
        """Its version now, and the positions in it."""
        version = self._log.newest()
        if version < 0:
            return At(-1, {})
        known = self._known if self._life == self._log.lives else None
        positions = positions_at(version, self._log.read, known)
        self._known, self._life = Known(version, positions), self._log.lives
        return At(version, positions)

    def delta(self) -> DeltaTable:
        return DeltaTable.forPath(self.spark, self.path)

    def create(self, schema_json: str, keys: Sequence[str], properties: Mapping[str, str]) -> None:
        """Make it unless it is there. Two that make it at once make one."""
        columns = from_json(schema_json).members
        parts = [f"{quoted(one.name)} {ddl(one.type)}{'' if one.nullable else ' NOT NULL'}" for one in columns]
        chosen = clustering(columns, keys)
        clause = f" CLUSTER BY ({', '.join(map(quoted, chosen))})" if chosen else ""
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.name} ({', '.join(parts)}) USING delta{clause} "
            f"TBLPROPERTIES ({', '.join(f'{_text(n)} = {_text(v)}' for n, v in {**PROPERTIES, **properties}.items())})"
        )

    def fit(self, wanted_json: str) -> bool:
        """Grow it to the wanted columns, by rule. True: it has changed. Raises ``evolution.Breaking``."""
        # On Spark 3.5, Delta widens nothing that a table of ours has: byte and short alone, of which Avro knows none.
        widens = version(self.spark) >= (4, 0)
        steps = evolution.plan(self.delta().toDF().schema.json(), wanted_json, widens=widens)
        for statement in evolution.statements(steps, self.name):
            self.spark.sql(statement)
        return bool(steps)

    def properties(self) -> dict[str, str]:
        rows = self.spark.sql(f"SHOW TBLPROPERTIES {self.name}").collect()
        return {row["key"]: row["value"] for row in rows}

    def set_properties(self, properties: Mapping[str, str]) -> None:
        words = ", ".join(f"{_text(name)} = {_text(value)}" for name, value in properties.items())
        self.spark.sql(f"ALTER TABLE {self.name} SET TBLPROPERTIES ({words})")


def clustering(columns: Sequence[Member], keys: Sequence[str]) -> tuple[str, ...]:
    """The key columns, if Delta can cluster by them; else none."""
    kinds = {one.name: one.type for one in columns}
    chosen = tuple(keys[:CLUSTERING_COLUMNS_MAX])
    possible = all(isinstance(kind := kinds.get(key), Simple) and kind.name in CLUSTERED for key in chosen)
    return chosen if possible else ()


def _text(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
