"""All settings of the notifier, from the environment (``TIDEMARK_*``)."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from shared.config import HttpSettings, LogSettings
from shared.parked.store import ParkedSettings
from shared.registry.settings import RegistrySettings

Seconds = Annotated[float, Meta(gt=0)]


class NotifierSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    lease_s: Annotated[float, Meta(ge=1)] = 60.0
    """A dead notifier's rows and groups are taken over after this."""
    poll_s: Seconds = 5.0
    group_wait_s: Annotated[float, Meta(ge=0)] = 60.0
    """From a group's first event to its first notice."""
    repeat_s: Seconds = 14_400.0
    look_s: Seconds = 60.0
    """How often a group that was told is counted again: growth, emptiness."""
    settle_s: Seconds = 60.0
    """How long a group is empty before it is resolved: much longer than the table's indexes are behind."""
    growth: Annotated[int, Meta(ge=2)] = 10
    """Told again when a group has grown so many times."""
    refresh_s: Seconds = 30.0
    runbook_url: str = ""


class NotifierConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    entities_dir: Path
    namespace: str = ""
    archive_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-archive"
    grace_s: Annotated[float, Meta(ge=0)] = 7 * 86_400.0
    """From the notice to the deletion."""
    notifier: NotifierSettings = NotifierSettings()
    registry: RegistrySettings | None = None
    """With it, and with ``cache_dir``, notices name the schema versions that refuse the events."""
    cache_dir: Path | None = None
    parked: ParkedSettings = ParkedSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: Seconds = 40.0
    """Longer than a channel takes to fail."""
