"""All settings of the sink, from the environment (``TIDEMARK_*``)."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from services.s3_sink.limits import Seconds, SinkSettings
from shared.config import HttpSettings, LogSettings
from shared.kafka.consumer import ConsumerSettings
from shared.kafka.settings import KafkaSettings
from shared.parked.store import ParkedSettings
from shared.registry.settings import RegistrySettings


class SinkConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kafka: KafkaSettings
    registry: RegistrySettings
    entities_dir: Path
    cache_dir: Path
    namespace: str = ""
    raw_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-raw"
    group: Annotated[str, Meta(min_length=1)] = "s3-sink"
    """The consumer group, before the namespace."""
    consumer: ConsumerSettings = ConsumerSettings()
    sink: SinkSettings = SinkSettings()
    parked: ParkedSettings = ParkedSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: Seconds = 20.0
