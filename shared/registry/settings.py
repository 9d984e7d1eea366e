"""How to reach the schema registry. As a field ``registry`` these are the ``TIDEMARK_REGISTRY_*`` variables."""

import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from shared.config import ConfigError


class RegistrySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Refused when made, with ``ValueError``, where the address can't be used."""

    url: Annotated[str, Meta(min_length=1)]
    """With the path of the Confluent-compatible API, e.g. ``http://127.0.0.1:8080/apis/ccompat/v7``."""
    ca_file: Path | None = None
    """PEM. Without it the system's own certificate authorities are trusted."""
    user: str | None = None
    password_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    attempts: Annotated[int, Meta(ge=1, le=10)] = 2

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url is to begin with http:// or https:// and a host")
        if parts.username or parts.password:
            raise ValueError("url must not hold credentials: they would be logged; use user and password_file")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if self.ca_file is not None and parts.scheme != "https":
            raise ValueError("ca_file is not used with an http:// url")

    def ssl_context(self) -> ssl.SSLContext:
        """Reads ``ca_file``. Raises ``ConfigError``."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError([f"{self.ca_file}: can't be used for TLS to the registry ({error})"]) from None
