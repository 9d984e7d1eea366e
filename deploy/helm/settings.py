"""What each component of the chart can be told: taken from the services' own structs, so that no name is made up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.cli.audit_watch import WatchConfig
from services.cli.edges import ArchiveSettings, CacheSettings, KafkaTopics, RawSettings
from services.delta_loader.config import LoaderConfig
from services.dynamo_retrier.config import RetrierConfig
from services.poller_producer.config import PollerConfig
from services.s3_sink.config import SinkConfig
from services.stale_notifier.config import NotifierConfig
from shared.checkpoints.settings import PostgresSettings
from shared.config import struct_in
from shared.kafka.settings import KafkaSettings
from shared.lake.layout import LakeSettings
from shared.parked.store import ParkedSettings
from shared.registry.settings import RegistrySettings


class CliConfig(Struct, frozen=True, kw_only=True):
    """What ``tidemark`` reads of every edge, command by command, seen as one."""

    kafka: KafkaSettings
    registry: RegistrySettings
    postgres: PostgresSettings
    entities_dir: Path
    parked: ParkedSettings = ParkedSettings()
    topic: KafkaTopics = KafkaTopics()
    lake: LakeSettings = LakeSettings()
    namespace: str = ""
    raw_bucket: str = msgspec.structs.fields(RawSettings)[0].default
    archive_bucket: str = msgspec.structs.fields(ArchiveSettings)[0].default
    cache_dir: Path | None = msgspec.structs.fields(CacheSettings)[0].default


COMPONENTS: dict[str, tuple[type[Struct], ...]] = {
    "pollerProducer": (PollerConfig,),
    "s3Sink": (SinkConfig,),
    "dynamoRetrier": (RetrierConfig,),
    "staleNotifier": (NotifierConfig,),
    "audit": (CliConfig, WatchConfig),
    "bootstrap": (CliConfig,),
    "loader": (LoaderConfig,),
}

_OF_THE_CHART = frozenset(
    {
        "entities_dir",
        "cache_dir",
        "http_host",
        "http_port",
        "replicas",  # the Deployment's
        "consumer_instance_id",  # its own for each replica: pods of a Deployment have no name that outlives them
        "spark_jars",
        "spark_master",
        "spark_driver_memory",
    }
)
"""Told by the chart itself, or by nobody."""


def settings(component: str) -> dict[str, msgspec.structs.FieldInfo]:
    """Every setting by its name in ``config:``; ``TIDEMARK_`` and the name in capitals is its variable."""
    return {name: field for cls in COMPONENTS[component] for name, field in _fields(cls)}


def _fields(cls: type[Struct], prefix: str = "") -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    for field in msgspec.structs.fields(cls):
        name = prefix + field.name
        nested = struct_in(field.type)
        if nested is None:
            yield name, field
        else:
            yield from _fields(nested, f"{name}_")


def is_chosen(name: str) -> bool:
    """May stand in ``config:``. Files are secrets and certificates: the chart mounts them and names their paths."""
    return name not in _OF_THE_CHART and not name.endswith("_file")


def schema_of(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    """The JSON schema of one value, with the struct's bounds."""
    schema = msgspec.json.schema(field.type, schema_hook=lambda _: {"type": "string"})
    if options := schema.get("anyOf"):
        (schema,) = (option for option in options if option != {"type": "null"})
    return {name: rule for name, rule in schema.items() if name != "default"}


def own(component: str) -> dict[str, dict[str, Any]]:
    """The schemas of a component's ``config:``."""
    return {name: schema_of(field) for name, field in settings(component).items() if is_chosen(name)}


def common() -> dict[str, dict[str, Any]]:
    """The schemas of the top level's ``config:``: what means the same in every component that has it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for component in COMPONENTS:
        for name, schema in own(component).items():
            found.setdefault(name, []).append(schema)
    return {name: max(schemas, key=len) for name, schemas in sorted(found.items()) if _is_one(name, schemas)}


def _is_one(name: str, schemas: list[dict[str, Any]]) -> bool:
    """``drain_s`` is each process's own; a bucket's name is one, though the command line checks less of it."""
    types = {str(schema.get("type")) for schema in schemas}
    return len(schemas) > 1 and len(types) == 1 and name not in ("drain_s", "refresh_s", "lease_s")


def table() -> dict[str, Any]:
    """What the templates look up: each component's settings, and how long it drains."""
    return {component: _row(settings(component)) for component in COMPONENTS}


def _row(known: dict[str, msgspec.structs.FieldInfo]) -> dict[str, Any]:
    drain = known.get("drain_s")
    return {"settings": sorted(known), "drain_s": 0 if drain is None else drain.default}
