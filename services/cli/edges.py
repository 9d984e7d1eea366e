"""The systems that commands talk to, each opened when first used: a command needs only the settings of its own edges.

Client libraries are imported here, inside the functions, so that ``validate`` and ``--help`` need none of them.
"""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import Meta, Struct

from services.cli.outcome import DOWN, FINDING, USAGE
from shared.config import ConfigError, load_config
from shared.entities import Entities, Entity, Namespace, load_entities

if TYPE_CHECKING:
    from services.cli.buckets import Buckets
    from shared.checkpoints.postgres import Checkpoints
    from shared.kafka.admin import KafkaAdmin
    from shared.kafka.reread import Reread
    from shared.kafka.settings import KafkaSettings
    from shared.lake.layout import Lake
    from shared.lake.reader import LakeTable
    from shared.parked.audit import AuditTrail
    from shared.parked.census import Census
    from shared.parked.evidence import Archive
    from shared.parked.groups import GroupStore
    from shared.parked.jobs import JobStore
    from shared.parked.store import ParkedSettings, ParkedStore
    from shared.parked.walk import Walk
    from shared.producer.analysts import Analysts
    from shared.producer.feed import ChangeFeed
    from shared.raw.s3 import S3Store
    from shared.registry.cache import SchemaCache
    from shared.registry.client import Registry

_T = TypeVar("_T", bound=Struct)


class RawSettings(Struct, frozen=True, kw_only=True):
    raw_bucket: str = "tidemark-raw"


class KafkaTopics(Struct, frozen=True, kw_only=True):
    """``TIDEMARK_TOPIC_REPLICATION``: -1 takes the cluster's default."""

    replication: int = -1


class ArchiveSettings(Struct, frozen=True, kw_only=True):
    archive_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-archive"


class CacheSettings(Struct, frozen=True, kw_only=True):
    cache_dir: Path | None = None


class Desk(Struct, frozen=True):
    """What an operator's work on parked events is read from and written to, over one connection to the table."""

    walk: "Walk"
    jobs: "JobStore"
    audit: "AuditTrail"


class Edges:
    """Opened in ``stack``, which closes them. Raises ``ConfigError`` where a setting is missing or wrong."""

    def __init__(
        self, environ: Mapping[str, str], stack: AsyncExitStack, entities_dir: str | None, namespace: str
    ) -> None:
        self._environ = environ
        self._stack = stack
        self._entities_dir = entities_dir
        self.namespace = Namespace(namespace)
        self._opened: dict[str, object] = {}

    @cached_property
    def entities(self) -> Entities:
        """What the folder says. Raises ``ConfigError`` with every problem."""
        if self._entities_dir is None:
            raise ConfigError(["TIDEMARK_ENTITIES_DIR: not set; name the folder of *.yaml, or use --entities DIR"])
        return load_entities(self._entities_dir, self.namespace.name, self._environ)

    def entities_without_environment(self) -> Entities:
        """The same folder; variables that it names are not looked at. Raises ``ConfigError``."""
        if self._entities_dir is None:
            raise ConfigError(["TIDEMARK_ENTITIES_DIR: not set; name the folder of *.yaml, or use --entities DIR"])
        return load_entities(self._entities_dir, self.namespace.name)

    def patience(self, entity: str) -> float | None:
        """Its ``stale_after_s``; ``None``: it isn't in the folder any more. Raises ``ConfigError``."""
        found = self.entities.entities.get(entity)
        return None if found is None else found.stale_after_s

    def check_settings(self) -> None:
        """Raise one ``ConfigError`` with the problems of every edge and of the folder."""
        from shared.checkpoints.settings import PostgresSettings
        from shared.kafka.settings import KafkaSettings
        from shared.parked.store import ParkedSettings
        from shared.registry.settings import RegistrySettings

        problems: list[str] = []
        parts: dict[str, type[Struct]] = {"KAFKA": KafkaSettings, "REGISTRY": RegistrySettings}
        parts |= {"POSTGRES": PostgresSettings, "PARKED": ParkedSettings, "TOPIC": KafkaTopics}
        for name, cls in parts.items():
            try:
                self._settings(name, cls)
            except ConfigError as error:
                problems += error.problems
        try:
            _ = self.entities
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    @property
    def kafka_settings(self) -> "KafkaSettings":
        from shared.kafka.settings import KafkaSettings

        return self._settings("KAFKA", KafkaSettings)

    @property
    def replication(self) -> int:
        return self._settings("TOPIC", KafkaTopics).replication

    @property
    def raw_bucket(self) -> str:
        return load_config(RawSettings, self._environ).raw_bucket

    @property
    def archive_bucket(self) -> str:
        return load_config(ArchiveSettings, self._environ).archive_bucket

    @property
    def parked_settings(self) -> "ParkedSettings":
        """The table's name has the namespace before it, as everywhere."""
        from shared.parked.store import ParkedSettings

        return self._settings("PARKED", ParkedSettings).within(self.namespace)

    async def checkpoints(self) -> "Checkpoints":
        from shared.checkpoints.postgres import Checkpoints
        from shared.checkpoints.settings import PostgresSettings

        if "postgres" not in self._opened:
            settings = self._settings("POSTGRES", PostgresSettings)
            schema = self.namespace.postgres_schema()
            self._opened["postgres"] = await Checkpoints.open(settings, self._stack, schema=schema)
        opened = self._opened["postgres"]
        assert isinstance(opened, Checkpoints)
        return opened

    async def kafka(self) -> "KafkaAdmin":
        from shared.kafka.admin import KafkaAdmin
        from shared.kafka.settings import KafkaSettings

        if "kafka" not in self._opened:
            self._opened["kafka"] = await KafkaAdmin.open(self._settings("KAFKA", KafkaSettings), self._stack)
        opened = self._opened["kafka"]
        assert isinstance(opened, KafkaAdmin)
        return opened

    async def registry(self) -> "Registry":
        from shared.registry.client import Registry
        from shared.registry.settings import RegistrySettings

        if "registry" not in self._opened:
            self._opened["registry"] = await Registry.open(self._settings("REGISTRY", RegistrySettings), self._stack)
        opened = self._opened["registry"]
        assert isinstance(opened, Registry)
        return opened

    async def parked(self) -> "ParkedStore":
        from shared.parked.store import ParkedStore

        if "parked" not in self._opened:
            self._opened["parked"] = await ParkedStore.open(self.parked_settings, self._stack)
        opened = self._opened["parked"]
        assert isinstance(opened, ParkedStore)
        return opened

    async def desk(self) -> Desk:
        from shared.aws import open_client
        from shared.parked.audit import AuditTrail
        from shared.parked.calls import Calls, Lanes
        from shared.parked.jobs import JobStore
        from shared.parked.walk import Walk

        if "desk" not in self._opened:
            table = self.parked_settings.table
            client = await open_client("dynamodb", self._stack, connections_max=10, read_timeout_s=5)
            calls = Calls(client, table, Lanes(8))
            self._opened["desk"] = Desk(
                Walk(calls, table), JobStore(calls, table, clock_ms), AuditTrail(calls, table, clock_ms)
            )
        opened = self._opened["desk"]
        assert isinstance(opened, Desk)
        return opened

    async def census(self) -> "Census":
        from shared.aws import open_client
        from shared.parked.calls import Calls, Lanes
        from shared.parked.census import Census

        if "census" not in self._opened:
            table = self.parked_settings.table
            client = await open_client("dynamodb", self._stack, connections_max=10, read_timeout_s=5)
            self._opened["census"] = Census(Calls(client, table, Lanes(8)), table, await self.parked())
        opened = self._opened["census"]
        assert isinstance(opened, Census)
        return opened

    async def groups(self) -> "GroupStore":
        from shared.parked.groups import GroupStore

        if "groups" not in self._opened:
            self._opened["groups"] = await GroupStore.open(self.parked_settings, self._stack)
        opened = self._opened["groups"]
        assert isinstance(opened, GroupStore)
        return opened

    def reread(self) -> "Reread":
        from shared.kafka.reread import Reread
        from shared.kafka.settings import KafkaSettings

        return Reread(self._settings("KAFKA", KafkaSettings))

    async def feed(self, entity: Entity) -> "ChangeFeed":
        """Bound to the entity's source; one budget for each host. Raises ``ConfigError``."""
        from shared.producer.budget import HostBudgets
        from shared.producer.feed import ChangeFeed, FeedClient

        if "budgets" not in self._opened:
            self._opened["budgets"] = HostBudgets()
        budgets = self._opened["budgets"]
        assert isinstance(budgets, HostBudgets)
        name = f"source {entity.source.name}"
        if name not in self._opened:
            self._opened[name] = await FeedClient.open(entity.source, budgets, self._stack)
        client = self._opened[name]
        assert isinstance(client, FeedClient)
        return ChangeFeed(
            client,
            entity.source_entity,
            granularity_us=entity.rules.granularity_us,
            utc_offset_minutes=entity.rules.utc_offset_minutes,
        )

    @property
    def lake(self) -> "Lake":
        from shared.lake.layout import Lake, LakeSettings

        return Lake(self._settings("LAKE", LakeSettings).uri, self.namespace.prefix(""))

    @property
    def lake_bucket(self) -> tuple[str, ...]:
        """The one that the tables lie in; none if they aren't on S3."""
        from shared.lake.layout import on_s3

        uri = self.lake.uri
        return (uri.partition("://")[2].partition("/")[0],) if on_s3(uri) else ()

    def lake_table(self, uri: str) -> "LakeTable | None":
        """Blocks: use a thread. Raises ``LakeUnavailable``."""
        from shared.lake.reader import LakeTable

        return LakeTable.open(uri, self._environ)

    async def archive(self) -> "Archive":
        from shared.parked.evidence import Archive

        if "archive" not in self._opened:
            self._opened["archive"] = await Archive.open(self.archive_bucket, self.namespace.prefix(""), self._stack)
        opened = self._opened["archive"]
        assert isinstance(opened, Archive)
        return opened

    async def schemas(self) -> "SchemaCache":
        """TIDEMARK_CACHE_DIR's copy while the registry is down; without one, none."""
        from shared.registry.cache import SchemaCache
        from shared.registry.settings import RegistrySettings

        if "schemas" not in self._opened:
            folder = load_config(CacheSettings, self._environ).cache_dir
            if folder is None:
                folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="tidemark-")))
            scope = self._settings("REGISTRY", RegistrySettings).url
            self._opened["schemas"] = SchemaCache(await self.registry(), folder, scope=scope)
        opened = self._opened["schemas"]
        assert isinstance(opened, SchemaCache)
        return opened

    async def analysts(self) -> "Analysts":
        """By TIDEMARK_CACHE_DIR's copy of the schemas while the registry is down; without one, not at all."""
        from shared.producer.analysts import Analysts

        if "analysts" not in self._opened:
            self._opened["analysts"] = Analysts(self.entities.entities, await self.schemas())
        opened = self._opened["analysts"]
        assert isinstance(opened, Analysts)
        return opened

    async def buckets(self) -> "Buckets":
        from services.cli.buckets import Buckets
        from shared.aws import open_client

        if "s3" not in self._opened:
            self._opened["s3"] = Buckets(await open_client("s3", self._stack))
        opened = self._opened["s3"]
        assert isinstance(opened, Buckets)
        return opened

    async def dynamodb(self) -> Any:
        """A low-level client of the caller's own, for what no store has a call for."""
        from shared.aws import open_client

        return await open_client("dynamodb", self._stack, read_timeout_s=5)

    async def raw_store(self) -> "S3Store":
        return (await self.buckets()).store(self.raw_bucket)

    def _settings(self, name: str, cls: type[_T]) -> _T:
        return load_config(cls, self._environ, f"TIDEMARK_{name}_")


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Meaning(Struct, frozen=True):
    """An edge's exception in words: what an operator should do about it, as exit code and text."""

    exit_code: int
    text: str


def meaning(error: BaseException) -> Meaning | None:
    """``None``: not the world's fault but ours."""
    if isinstance(error, ConfigError):
        return Meaning(USAGE, str(error))
    if isinstance(error, ModuleNotFoundError):
        return Meaning(USAGE, f"the Python package {error.name!r} is not installed; pip install 'tidemark[cli]'")
    return _meaning_of_ours(error) or _meaning_of_parked(error) or _meaning_of_source(error) or _meaning_of_aws(error)


def _meaning_of_ours(error: BaseException) -> Meaning | None:
    from botocore.exceptions import NoCredentialsError, NoRegionError, PartialCredentialsError

    from shared.checkpoints.model import CheckpointsMisconfigured, CheckpointsUnavailable, UnknownEntity
    from shared.events.contract import ContractError
    from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused
    from shared.parked.calls import ParkedUnavailable
    from shared.parked.table import ParkedTableDiffers
    from shared.raw.objects import NotOurs, StoreUnavailable
    from shared.registry.client import RegistryError, RegistryUnavailable

    if type(error).__name__ == "LakeUnavailable":  # its module needs deltalake, which only some commands have use for
        return Meaning(DOWN, f"the lake can't be read ({error}); see TIDEMARK_LAKE_URI and AWS_ENDPOINT_URL")
    match error:
        case CheckpointsUnavailable():
            return Meaning(DOWN, f"Postgres does not answer ({error}); see TIDEMARK_POSTGRES_DSN")
        case KafkaUnreachable():
            return Meaning(DOWN, f"Kafka does not answer ({error}); see TIDEMARK_KAFKA_BOOTSTRAP")
        case RegistryUnavailable():
            return Meaning(DOWN, f"the schema registry does not answer ({error}); see TIDEMARK_REGISTRY_URL")
        case ParkedUnavailable() if error.is_missing:
            return Meaning(FINDING, str(error).removeprefix(f"{error.reason}: "))
        case ParkedUnavailable() if isinstance(
            error.__cause__, NoCredentialsError | PartialCredentialsError | NoRegionError
        ):
            return Meaning(USAGE, str(error).removeprefix(f"{error.reason}: "))
        case ParkedUnavailable():
            return Meaning(DOWN, f"DynamoDB does not answer ({error}); see AWS_ENDPOINT_URL_DYNAMODB and AWS_REGION")
        case StoreUnavailable() if "NoSuchBucket" in str(error):
            return Meaning(
                FINDING,
                f"the raw bucket does not exist; run `tidemark bootstrap`, or see TIDEMARK_RAW_BUCKET ({error})",
            )
        case StoreUnavailable():
            return Meaning(
                DOWN, f"the raw bucket does not answer ({error}); see TIDEMARK_RAW_BUCKET and AWS_ENDPOINT_URL"
            )
        case CheckpointsMisconfigured():
            return Meaning(USAGE, str(error))
        case UnknownEntity():
            return Meaning(USAGE, f"{error}; `tidemark entity list` names those that exist")
        case ContractError() | TopicMissing() | TopicRefused() | ParkedTableDiffers() | NotOurs() | RegistryError():
            return Meaning(FINDING, str(error))
    return None


def _meaning_of_parked(error: BaseException) -> Meaning | None:
    from shared.parked.evidence import ArchiveUnavailable, EvidenceDamaged, EvidenceMissing
    from shared.parked.jobs import JobTaken, UnknownJob
    from shared.parked.transitions import RowChanged
    from shared.parked.wake import NoAnalyst

    match error:
        case NoAnalyst():
            cause = None if error.__cause__ is None else _meaning_of_ours(error.__cause__)
            if cause is not None and cause.exit_code == DOWN:
                return cause
            return Meaning(FINDING if cause is None else cause.exit_code, str(error))
        case ArchiveUnavailable() if error.is_missing:
            return Meaning(FINDING, f"{error}; or see TIDEMARK_ARCHIVE_BUCKET")
        case ArchiveUnavailable():
            return Meaning(
                DOWN, f"the archive does not answer ({error}); see TIDEMARK_ARCHIVE_BUCKET and AWS_ENDPOINT_URL"
            )
        case UnknownJob():
            return Meaning(USAGE, str(error))
        case EvidenceDamaged() | EvidenceMissing() | JobTaken() | RowChanged():
            return Meaning(FINDING, str(error))
    return None


def _meaning_of_source(error: BaseException) -> Meaning | None:
    from shared.events.split import MalformedPage
    from shared.producer.feed import SourceAuth, SourceError, SourceMalformed

    match error:
        case SourceAuth() | SourceMalformed() | MalformedPage():
            return Meaning(FINDING, f"the source can't be read: {error}")
        case SourceError():
            return Meaning(DOWN, f"the source does not answer: {error}")
    return None


def _meaning_of_aws(error: BaseException) -> Meaning | None:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
    )

    match error:
        case NoCredentialsError() | PartialCredentialsError() | NoRegionError():
            return Meaning(USAGE, f"no AWS credentials or region ({error}); set AWS_REGION, AWS_ACCESS_KEY_ID, …")
        case ValueError() if str(error).startswith("Invalid endpoint"):
            return Meaning(USAGE, f"{error}; correct AWS_ENDPOINT_URL, _S3 or _DYNAMODB: http(s)://HOST:PORT")
        case ClientError():
            code = error.response.get("Error", {}).get("Code", "")
            return Meaning(USAGE, f"AWS refuses {error.operation_name} ({code}); check rights and names")
        case BotoCoreError():
            return Meaning(DOWN, f"AWS does not answer ({error}); see AWS_ENDPOINT_URL, AWS_REGION and credentials")
    return None
