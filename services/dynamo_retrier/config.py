"""All settings of the retrier, from the environment (``TIDEMARK_*``)."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from services.dynamo_retrier.redrive import Limits
from services.dynamo_retrier.retrier import Pace
from shared.config import HttpSettings, LogSettings
from shared.kafka.settings import KafkaSettings
from shared.parked.store import ParkedSettings
from shared.registry.settings import RegistrySettings

PRODUCER_END_S = 4.0
"""What a publish call may take beyond its deadline, where a producer has to be destroyed."""

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class RetrierConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Refused when made, with ``ValueError``, where settings don't fit each other."""

    kafka: KafkaSettings
    registry: RegistrySettings
    entities_dir: Path
    cache_dir: Path
    namespace: str = ""
    parked: ParkedSettings = ParkedSettings()
    archive_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-archive"
    """Where the original of a repaired event is kept, under ``repaired/``."""
    redrive_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    publishes_per_s_max: Count = 5_000
    """What the cluster takes of all that Tidemark publishes; the re-drive stays below its share of it."""
    replicas: Count = 1
    """Retriers that run at once: each takes its part of the share."""
    lease_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    batch_rows_max: Annotated[int, Meta(ge=1, le=2_000)] = 200
    poll_s: Seconds = 1.0
    refresh_s: Seconds = 30.0
    wake_period_s: Seconds = 30.0
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: Seconds = 25.0

    def __post_init__(self) -> None:
        if self.per_s_max < 1:
            raise ValueError("redrive_share * publishes_per_s_max / replicas is below 1 a second; raise the share")
        if self.lease_s < 2 * self.publish_s_max:
            raise ValueError(
                f"lease_s {self.lease_s:g} is too short for kafka_delivery_deadline_s "
                f"{self.kafka.delivery_deadline_s:g}: at least {2 * self.publish_s_max:g}"
            )

        if self.drain_s < self.publish_s_max:
            raise ValueError(f"drain_s {self.drain_s:g} leaves no time to publish: at least {self.publish_s_max:g}")

    @property
    def per_s_max(self) -> int:
        return int(self.redrive_share * self.publishes_per_s_max / self.replicas)

    @property
    def publish_s_max(self) -> float:
        return self.kafka.delivery_deadline_s + PRODUCER_END_S

    @property
    def limits(self) -> Limits:
        return Limits(lease_s=self.lease_s, publish_s_max=self.publish_s_max)

    @property
    def pace(self) -> Pace:
        return Pace(batch_rows_max=self.batch_rows_max, poll_s=self.poll_s, drain_s=self.drain_s)
