"""A full refresh: the table built anew beside itself from all raw objects, and put in its place by one commit.

Built in a table of its own, chunk by chunk as everything else, so it can be any size and is found again when killed.
Then one commit on the entity's table takes out all files and adds the new ones, with positions in its note that hold
absolutely: readers see the old table or the new one. A stream that goes on meanwhile conflicts with that commit, or it
with the stream's; the loser begins again from the positions that now hold. Nobody is told to stop.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from pyspark.sql import SparkSession

from services.delta_loader.loader import Abandoned, Contended, Loaded
from services.delta_loader.merge import noted
from services.delta_loader.table import LakeTable
from services.delta_loader.tables import EntityTables
from shared import logs
from shared.lake.positions import Note
from shared.retry import Wakes, backoff

SWAPS_MAX = 10

log = logs.get_logger(__name__)


async def refresh(
    load: Callable[[], Awaitable[Loaded]],
    swap: Callable[[], Awaitable[None]],
    stop: Wakes,
    conflicts: tuple[type[Exception], ...],
) -> Loaded:
    """Build to the ledger's end, swap; where another writer was first, catch up and swap again."""
    total = Loaded()
    delays_s = backoff(0.5, 10.0)
    for _swap in range(SWAPS_MAX):
        total = total.with_(await load())
        try:
            await swap()
        except conflicts as conflict:
            log.info("swap_conflicted", kind=type(conflict).__name__)
            if await stop.wait(next(delays_s)):
                raise Abandoned from conflict
            continue
        return total
    raise Contended(f"another writer committed before each of {SWAPS_MAX} swaps")


def begin(built: EntityTables) -> None:
    """Go on with what a killed refresh has built, unless it was for other rules."""
    for table in _tables(built):
        if table.at().version >= 0 and any(table.properties().get(n) != v for n, v in built.rule.items()):
            remove(built)
            return


def put_in_place(built: EntityTables, tables: EntityTables) -> None:
    """Replace the content of ``tables`` by ``built``'s: the history first, as always. Raises ``merge.CONFLICTS``."""
    if built.history is not None and tables.history is not None:
        _replace(built.history, tables.history, tables)
    _replace(built.table, tables.table, tables)


def _replace(built: LakeTable, table: LakeTable, tables: EntityTables) -> None:
    before, ready = table.at(), built.at()
    if ready.version < 0:
        return  # there is no raw object
    rows = table.spark.read.format("delta").option("versionAsOf", ready.version).load(built.path)
    if before.version < 0:
        tables.create_like(table, rows.schema.json())
    elif (mode := built.properties().get("delta.columnMapping.mode")) is not None:
        table.set_properties({"delta.columnMapping.mode": mode})
    note = Note(table.at().version, {}, ready.positions, replaces=True)
    with noted(table.spark, note):
        rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(table.path)
    known = table.properties()
    if changed := {name: value for name, value in tables.rule.items() if known.get(name) != value}:
        table.set_properties(changed)
    log.info("table_replaced", table=table.path, version=table.at().version)


def remove(built: EntityTables) -> None:
    """What was built; nobody reads it."""
    for table in _tables(built):
        _delete(table.spark, table.path)


def _tables(of: EntityTables) -> list[LakeTable]:
    return [of.table] if of.history is None else [of.history, of.table]


def _delete(spark: SparkSession, path: str) -> None:
    jvm: Any = spark._jvm
    place = jvm.org.apache.hadoop.fs.Path(path)
    place.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf()).delete(place, True)
