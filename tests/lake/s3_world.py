"""An entity whose raw objects and tables lie on the stack's S3, with its schema in the stack's registry."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from services.delta_loader.__main__ import Loading
from services.delta_loader.config import LoaderConfig
from shared.aws import open_client
from shared.config import load_config
from shared.entities import Entities, load_entities
from shared.lake.layout import Lake
from shared.lifecycle import Stop
from shared.raw.keys import Keys
from shared.raw.s3 import S3Store
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry
from tests.lake.raw_rows import Topic
from tests.lake.worlds import V1

YAML = """
sources: {bank: {url: "http://127.0.0.1:9/cdc"}}
owners: {ledger: {}}
entities:
  accounts:
    {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger, delta: {history: HISTORY}}
"""


class S3World:
    """``environ`` is what a loader's process is started with."""

    def __init__(self, environ: dict[str, str], entities: Entities, client: Any, registry: Registry) -> None:
        self.environ = environ
        self.entities = entities
        self.client = client
        self.bucket = environ["TIDEMARK_RAW_BUCKET"]
        self.prefix = entities.namespace.prefix("")
        self.entity = entities.entities["accounts"]
        self.registry = registry
        self.schema_id = 0
        self.topic: Topic

    @property
    def config(self) -> LoaderConfig:
        return load_config(LoaderConfig, self.environ)

    def lake(self, name: str = "") -> Lake:
        """The lake that the environment names, or another beside it."""
        uri = self.environ["TIDEMARK_LAKE_URI"]
        return Lake(f"{uri}/{name}" if name else uri, self.prefix)

    def loading(self, spark: SparkSession, stop: Stop, name: str = "") -> Loading:
        """The product's own wiring, on a session that is there."""
        environ = self.environ | {"TIDEMARK_LAKE_URI": self.lake(name).uri}
        config = load_config(LoaderConfig, environ)
        schemas = SchemaCache(self.registry, config.cache_dir, scope=config.registry.url)
        return Loading(config, self.entities, spark, self.client, schemas, stop)

    def rows(self, spark: SparkSession, name: str = "", *, history: bool = False) -> list[tuple[Any, ...]]:
        """All of the table, in one order."""
        lake = self.lake(name)
        path = lake.history("accounts") if history else lake.table("accounts")
        columns = sorted(spark.read.format("delta").load(path).columns)
        found = spark.read.format("delta").load(path).select(*columns).collect()
        return sorted((tuple(row) for row in found), key=repr)

    async def register(self, schema: Any) -> int:
        schema_id = await self.registry.register(self.entity.schema_subject, json.dumps(schema))
        self.topic.add_schema(schema_id, json.dumps(schema))
        return schema_id


@asynccontextmanager
async def s3_world(environ: dict[str, str], folder: Path, *, history: bool = False) -> AsyncIterator[S3World]:
    """A namespace of its own: bucket, subject, and an empty cache."""
    name = f"lake{uuid.uuid4().hex[:10]}"
    (folder / "entities").mkdir(exist_ok=True)
    (folder / "entities" / "e.yaml").write_text(YAML.replace("HISTORY", str(history).lower()))
    (folder / "entities" / "accounts.avsc").write_text(json.dumps(V1))
    own = environ | {
        "TIDEMARK_NAMESPACE": name,
        "TIDEMARK_RAW_BUCKET": name,
        "TIDEMARK_LAKE_URI": f"s3a://{name}/tables",
        "TIDEMARK_ENTITIES_DIR": str(folder / "entities"),
        "TIDEMARK_CACHE_DIR": str(folder / "cache"),
        "TIDEMARK_HTTP_PORT": "0",
        "TIDEMARK_SPARK_MASTER": "local[2]",
        "TIDEMARK_LOAD_INTERVAL_S": "0.5",
        "TIDEMARK_LOG_FORMAT": "json",
    }
    entities = load_entities(folder / "entities", name)
    async with AsyncExitStack() as stack:
        client = await open_client("s3", stack)
        await client.create_bucket(Bucket=name)
        config = load_config(LoaderConfig, own)
        registry = await Registry.open(config.registry, stack)
        world = S3World(own, entities, client, registry)
        keys = Keys(entities.namespace.prefix(""))
        schema_id = await registry.register(world.entity.schema_subject, json.dumps(V1))
        world.schema_id = schema_id
        world.topic = Topic(S3Store(client, name), keys, world.entity.topic, ["id"], {schema_id: json.dumps(V1)})
        await world.topic.store.create(keys.claim(world.entity.topic, 1), b"{}", {})
        yield world


async def until(true: Any, within_s: float = 120.0) -> None:
    """Wait for a coroutine function to say yes: it asks for what another process does."""
    async with asyncio.timeout(within_s):
        while not await true():  # noqa: ASYNC110 (another process does it)
            await asyncio.sleep(0.2)
