"""What Spark does for the care of one table. Each call is one commit of Delta's, or none: killed anywhere, all is well.

Each commit carries the positions forward, so that they don't leave the log together with old commits. All calls block,
and belong to the one thread that works for this table. All but ``look`` may raise one of ``merge.CONFLICTS``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import Struct
from pyspark.sql import SparkSession

from services.delta_loader.care import PropertiesPlan
from services.delta_loader.log_files import LogFiles
from services.delta_loader.merge import noted
from services.delta_loader.session import table_session
from services.delta_loader.spark_types import from_json, quoted
from services.delta_loader.table import PROPERTIES, LakeTable, clustering
from shared.lake.layout import DELETED, PURGED
from shared.lake.positions import carried

FILE_BYTES_MAX = 256 * 1024 * 1024
"""A MERGE rewrites or marks whole files, so they are smaller than those of a table that is only read."""
COMMIT_BYTES_MAX = 4 * 1024 * 1024 * 1024
"""Of one commit of OPTIMIZE: what a rival's commit can undo of it."""

_SETTINGS: Mapping[str, str] = {
    "spark.databricks.delta.optimize.maxFileSize": str(FILE_BYTES_MAX),
    "spark.databricks.delta.optimize.minFileSize": str(FILE_BYTES_MAX),
    "spark.databricks.delta.optimize.batchSize": str(COMMIT_BYTES_MAX),
    "spark.databricks.delta.vacuum.parallelDelete.enabled": "true",
    # VACUUM lists a table in as many tasks as this says, however small it is; Spark's default is 10,000.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "32",
}


class Look(Struct, frozen=True):
    """A table as it is. ``version`` -1: there is none."""

    version: int = -1
    files: int = 0
    bytes: int = 0
    clustering: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    noted: bool = True
    """Does the newest commit say the positions, if there are any?"""


class Upkeep:
    """``keys``: by what it is clustered. Made in the thread that will use it."""

    def __init__(self, spark: SparkSession, path: str, keys: Sequence[str]) -> None:
        self._spark = table_session(spark)
        for name, value in _SETTINGS.items():
            self._spark.conf.set(name, value)
        self._keys = keys
        self._table = LakeTable(self._spark, path)
        self._log = LogFiles(self._spark, path)

    def look(self) -> Look:
        version, positions = (at := self._table.at()).version, at.positions
        if version < 0:
            return Look()
        newest = self._log.read(version)
        found = self._spark.sql(f"DESCRIBE DETAIL {self._table.name}").collect()[0].asDict()
        return Look(
            version=version,
            files=int(found["numFiles"]),
            bytes=int(found["sizeInBytes"]),
            clustering=tuple(found.get("clusteringColumns") or ()),
            partitions=tuple(found["partitionColumns"] or ()),
            noted=not positions or (newest is not None and newest.note is not None),
        )

    def properties(self) -> dict[str, str]:
        return self._table.properties()

    def clusterable(self) -> tuple[str, ...]:
        """The key columns, if Delta can cluster by them."""
        return clustering(from_json(self._table.delta().toDF().schema.json()).members, self._keys)

    def change(self, plan: PropertiesPlan) -> None:
        with self._carrying():
            if plan.set_:
                self._table.set_properties(plan.set_)
            if plan.unset:
                names = ", ".join("'" + name.replace("'", "\\'") + "'" for name in plan.unset)
                self._spark.sql(f"ALTER TABLE {self._table.name} UNSET TBLPROPERTIES IF EXISTS ({names})")

    def say_positions(self) -> None:
        """A commit that changes nothing, for the note in it."""
        ours = {n: v for n, v in self.properties().items() if n in PROPERTIES or n.startswith("tidemark.")}
        if ours:
            with self._carrying():
                self._table.set_properties(dict([min(ours.items())]))

    def cluster(self, columns: Sequence[str]) -> None:
        with self._carrying():
            self._spark.sql(f"ALTER TABLE {self._table.name} CLUSTER BY ({', '.join(map(quoted, columns))})")

    def deleted_before(self, column: str, before_us: int) -> int:
        rows = self._spark.sql(f"SELECT count(*) FROM {self._table.name} WHERE {_purged(column, before_us)}")  # noqa: S608
        return int(rows.collect()[0][0])

    def purge(self, column: str, before_us: int) -> int:
        """Rows that are deleted, and were so before that. The table says so first, for who misses them in it."""
        said = int(self.properties().get(PURGED, -1))
        with self._carrying():
            if before_us > said:
                self._table.set_properties({PURGED: str(before_us)})
        with self._carrying():
            done = self._spark.sql(f"DELETE FROM {self._table.name} WHERE {_purged(column, before_us)}")  # noqa: S608
            return int(done.collect()[0][0])

    def optimize(self) -> tuple[int, int]:
        """Files removed, and files added in their place."""
        with self._carrying():
            metrics = self._spark.sql(f"OPTIMIZE {self._table.name}").collect()[0]["metrics"]
        return int(metrics["numFilesRemoved"]), int(metrics["numFilesAdded"])

    def unneeded(self) -> int:
        """Files that a VACUUM would delete; Delta tells of no more than a thousand."""
        return self._spark.sql(f"VACUUM {self._table.name} DRY RUN").count()

    def vacuum(self) -> None:
        """By the table's own retention, which the caller has seen: Delta ignores any other."""
        with self._carrying():
            self._spark.sql(f"VACUUM {self._table.name}").collect()

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        at = self._table.at()
        with noted(self._spark, carried(at.version, at.positions) if at.positions else None):
            yield


def _purged(column: str, before_us: int) -> str:
    return f"{DELETED} AND {quoted(column)} < {before_us}"


def rule_of(properties: Mapping[str, str], name: str) -> Any:
    """What a table was made by; ``None``: it doesn't say."""
    text = properties.get(name)
    return None if text is None else json.loads(text)
