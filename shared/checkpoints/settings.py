"""How to reach Postgres, and how long to wait: as a field ``postgres``, the ``TIDEMARK_POSTGRES_*`` variables."""

import ssl
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from shared.config import ConfigError

Seconds = Annotated[float, Meta(gt=0, le=300)]


class PostgresSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the cursors are kept."""

    dsn: Annotated[str, Meta(min_length=1)]
    """``postgresql://user@host:port/database``; best without a password, see ``password_file``."""
    password_file: Path | None = None
    """Read anew for each connection, so that the password can be rotated."""
    ca_file: Path | None = None
    """PEM. With it only a server whose certificate and name it proves is talked to (``verify-full``)."""
    pgbouncer: bool = False
    """For a pooler in transaction mode: no prepared statements are kept and no session settings are sent."""
    connect_timeout_s: Seconds = 5.0
    command_timeout_s: Seconds = 5.0
    """One statement may take so long, by both sides' clocks."""
    budget_s: Seconds = 10.0
    """A call goes on trying for so long before it says that Postgres is unavailable."""
    connections_max: Annotated[int, Meta(ge=1, le=100)] = 8

    def __repr__(self) -> str:
        return "PostgresSettings(...)"  # the dsn may hold a password

    def ssl_context(self) -> ssl.SSLContext | None:
        """``None``: what the dsn says (``sslmode``). Raises ``ConfigError``."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError([f"{self.ca_file}: no CA certificates to trust Postgres by ({error.strerror})"]) from None
