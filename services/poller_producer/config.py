"""Settings of the poller: those of the producer SDK, and the process's own."""

from typing import Annotated

from msgspec import Meta

from shared.config import HttpSettings, LogSettings
from shared.producer.sdk import ProducerSettings


class PollerConfig(ProducerSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Read from ``TIDEMARK_*``; refused before start with every error at once."""

    entities: tuple[str, ...] = ()
    """Capture only these; empty: all of the folder."""
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: Annotated[float, Meta(gt=0)] = 20.0
