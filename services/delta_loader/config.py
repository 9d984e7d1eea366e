"""All settings of the loader, from the environment (``TIDEMARK_*``)."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from shared.config import HttpSettings, LogSettings
from shared.lake.layout import LakeSettings
from shared.registry.settings import RegistrySettings

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class SparkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As a field ``spark`` it reads ``TIDEMARK_SPARK_*``. What spark-submit was told stands; these fill the gaps."""

    jars: Path | None = None
    """A folder whose ``*.jar`` go to Spark; unset: they are on its class path, as in an image."""
    master: str = "local[*]"
    driver_memory: Annotated[str, Meta(pattern=r"^[1-9][0-9]*[mg]$")] = "1g"


class LoadSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As a field ``load`` it reads ``TIDEMARK_LOAD_*``: what one commit takes, and what a writer bears."""

    objects_max: Annotated[int, Meta(ge=1, le=100_000)] = 500
    bytes_max: Annotated[int, Meta(ge=1)] = 256 * 1024 * 1024
    """Compressed, as stored. One object is always taken."""
    rows_max: Annotated[int, Meta(ge=1)] = 2_000_000
    conflicts_max: Annotated[int, Meta(ge=0, le=1000)] = 20
    """In a row: so often another writer may be first."""
    batch_age_s_max: Annotated[float, Meta(gt=0, le=86_400)] = 86_400.0
    """An older batch is not committed: VACUUM may have taken its files."""
    entities_at_once: Annotated[int, Meta(ge=1, le=64)] = 4
    """By the batch; the stream follows all."""
    interval_s: Seconds = 5.0
    """How often the stream looks for new objects."""
    recheck_s: Seconds = 60.0
    """How often a table that stopped is tried again, and one that is idle compared with the bucket."""


class LoaderConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    registry: RegistrySettings
    entities_dir: Path
    cache_dir: Path
    namespace: str = ""
    raw_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-raw"
    lake: LakeSettings = LakeSettings()
    spark: SparkSettings = SparkSettings()
    load: LoadSettings = LoadSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: Seconds = 30.0
    grace_s: Annotated[float, Meta(ge=0)] = 7 * 86_400.0
    """The notifier's: with it, how long after its first sight an event may still come. For the purge."""
