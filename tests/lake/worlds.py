"""An entity with raw objects and tables of its own, in a folder or on the stack's S3, and loaders for it."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession

from services.delta_loader import merge
from services.delta_loader.links import ChunkLimits, Links
from services.delta_loader.loader import Loaded, Loader, Span
from services.delta_loader.schemas import Schemas
from services.delta_loader.tables import EntityTables, Target, now_s
from shared.lake.layout import Lake
from shared.raw.keys import Keys
from shared.registry.client import RegisteredSchema, UnknownSchema
from tests.lake.raw_rows import Change, FolderStore, Topic

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
V1: dict[str, Any] = {
    "type": "record",
    "name": "Account",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "updated_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "owner", "type": {"type": "record", "name": "Owner", "fields": [{"name": "name", "type": "string"}]}},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}
V2 = V1 | {"fields": [*V1["fields"], {"name": "limit", "type": ["null", "int"], "default": None}]}
V3 = V1 | {"fields": [*V1["fields"], {"name": "limit", "type": ["null", "long"], "default": None}]}
BROKEN = V1 | {"fields": [*V1["fields"][:3], {"name": "note", "type": ["null", "boolean"]}]}


class FakeRegistry:
    """Versions by subject, in memory."""

    def __init__(self, subject: str, schemas: Mapping[int, Any]) -> None:
        self.subject = subject
        self.schemas = {number: json.dumps(schema) for number, schema in schemas.items()}
        self.asked = 0

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        self.asked += 1
        found = enumerate(sorted(self.schemas), start=1)
        return [RegisteredSchema(subject, version, number, self.schemas[number]) for version, number in found]

    async def by_id(self, schema_id: int) -> str:
        if schema_id not in self.schemas:
            raise UnknownSchema(schema_id)
        return self.schemas[schema_id]


class NoStop:
    async def wait(self, timeout_s: float | None = None) -> bool:
        await asyncio.sleep(min(timeout_s or 0, 0.05))
        return False


def change(number: int, rank: int, *, note: str | None = None, tiebreak: int = 0, **more: Any) -> Change:
    """An update of account ``number``. Its event id follows from what it says."""
    schema_id = more.pop("schema_id", 1)
    fields = {"id": number, "updated_at": EPOCH, "owner": {"name": f"owner {number}"}, "note": note or f"r{rank}"}
    fields |= more.pop("fields", {})
    more.setdefault("event_id", _event_id(number, rank, tiebreak, more.get("rev", 0)))
    return Change(str(number), fields, (rank, tiebreak), schema_id=schema_id, **more)


def _event_id(*words: object) -> str:
    return sha256(repr(words).encode()).hexdigest()[:32]


def gone(number: int, rank: int) -> Change:
    """A delete that knows only the key."""
    return Change(str(number), None, (rank, 0), _event_id(number, rank, "d"), op="d")


class World:
    """``root``: a folder for the raw objects and the lake."""

    def __init__(self, spark: SparkSession, root: Path, **target: Any) -> None:
        self.spark = spark
        self.root = root
        self.store = FolderStore(root / "raw")
        self.topic = Topic(self.store, Keys(""), "cdc.accounts", ["id"], {1: json.dumps(V1)})
        self.registry = FakeRegistry("cdc.accounts-value", {1: V1})
        self.target = target
        self.limits = ChunkLimits(objects=100, bytes=1 << 30, rows=1_000_000)

    def lake(self, name: str) -> Lake:
        return Lake((self.root / name).as_uri())

    def add_schema(self, schema_id: int, schema: Any) -> None:
        self.topic.add_schema(schema_id, json.dumps(schema))
        self.registry.schemas[schema_id] = json.dumps(schema)

    async def claim(self, generation: int = 1) -> None:
        for number in range(1, generation + 1):
            key = self.topic.keys.claim(self.topic.topic, number)
            if await self.store.head(key) is None:
                await self.store.create(key, b"{}", {})

    def tables(self, name: str = "lake", **more: Any) -> EntityTables:
        lake = self.lake(name)
        # Most tests are of a few rows: without deletion vectors a commit costs a third less.
        plain = {"order": "shown", "properties": {"delta.enableDeletionVectors": "false"}}
        settings: dict[str, Any] = plain | self.target | more
        history = lake.history("accounts") if settings.pop("history", False) else None
        target = Target(
            entity="accounts",
            keys=("id",),
            table=lake.table("accounts"),
            quarantine=lake.quarantine("accounts"),
            history=history,
            **settings,
        )
        return EntityTables(self.spark, target, self.store.folder.as_uri(), batch_age_s_max=86_400)

    def loader(self, name: str = "lake", tables: EntityTables | None = None, **more: Any) -> Loader:
        """One whose tables lie in the lake ``name``."""

        async def spark(work: Any, *arguments: Any) -> Any:
            return work(*arguments)

        return Loader(
            "accounts",
            tables or self.tables(name, **more),
            Links(self.store, Keys(""), self.topic.topic, self.limits),
            Schemas(self.registry, self.registry.subject, ["id"]),
            spark,
            NoStop(),
            conflicts=merge.CONFLICTS,
            conflicts_max=5,
            clock=now_s,
        )

    async def load(self, name: str = "lake", span: Span | None = None, **more: Any) -> Loaded:
        await self.claim()
        return await self.loader(name, **more).load(span or Span())

    def read(self, name: str = "lake", of: str = "table") -> DataFrame:
        lake = self.lake(name)
        path = getattr(lake, of)("accounts")
        return self.spark.read.format("delta").load(path)

    def rows(self, name: str = "lake", of: str = "table") -> list[dict[str, Any]]:
        """All of a table, ordered."""
        found = [row.asDict(recursive=True) for row in self.read(name, of).collect()]
        return sorted(found, key=lambda row: (row.get("id") or 0, row.get("_rank") or 0, row.get("_event_id") or ""))

    def short(self, name: str = "lake") -> list[tuple[Any, ...]]:
        """(id, note, deleted) of each row."""
        return [(row["id"], row["note"], row["_deleted"]) for row in self.rows(name)]


__all__ = ["BROKEN", "V1", "V2", "V3", "Row", "Sequence", "World", "change", "gone", "time"]
