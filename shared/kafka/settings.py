"""How to reach Kafka, and how long to wait for it. As a field ``kafka``: the ``TIDEMARK_KAFKA_*`` variables."""

import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from shared.config import ConfigError, read_secret

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]


class KafkaSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Refused when made, with ``ValueError``, where security settings don't fit each other."""

    bootstrap: Annotated[str, Meta(min_length=1)]
    """``host:port``, several separated by commas."""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    """PEM. Without it the system's own certificate authorities are trusted."""
    cert_file: Path | None = None
    key_file: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password_file: Path | None = None

    delivery_deadline_s: Annotated[float, Meta(ge=0.2, le=300)] = 15.0
    """What a page has no acknowledgement for after this long is unknown, and the producer is destroyed."""
    probe_deadline_s: Annotated[float, Meta(ge=0.2, le=60)] = 5.0
    """For the one record risked while the breaker is open, and for one attempt to connect; at most the above."""
    topic_wait_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    """How long a topic may be unknown to the brokers (it was just created) before its records are refused."""
    linger_ms: Annotated[int, Meta(ge=0, le=1000)] = 0
    """A page is sent as whole batches, so there is nothing to linger for."""
    batch_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 512 * 1024
    """A batch of one partition before compression; at most half of the brokers' ``message.max.bytes`` is safe."""
    record_bytes_max: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    """A record above this is never sent: the brokers' ``message.max.bytes``, or less."""
    compression: Compression = "zstd"
    """zstd costs this process about the CPU of none: fewer bytes to send (``tests/bench/publisher_bench.py``)."""

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)

    def _problem(self) -> str | None:
        tls = self.security in ("SSL", "SASL_SSL")
        sasl = self.security.startswith("SASL")
        if sasl and (self.sasl_username is None or self.sasl_password_file is None):
            return f"security {self.security} needs sasl_username and sasl_password_file"
        if not sasl and (self.sasl_username is not None or self.sasl_password_file is not None):
            return f"sasl_username and sasl_password_file are not used with security {self.security}; use SASL_SSL"
        if (self.cert_file is None) != (self.key_file is None):
            return "cert_file and key_file go together"
        if not tls and (self.ca_file or self.cert_file):
            return f"ca_file, cert_file and key_file are not used with security {self.security}; use SSL or SASL_SSL"
        return None

    @property
    def request_timeout_ms(self) -> int:
        """One request may hang for two thirds of the deadline: then the connection is dropped and there is one more."""
        return max(200, int(min(10.0, self.delivery_deadline_s * 2 / 3) * 1000))

    def client_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of any aiokafka client. Reads the certificate and password files, so call it at start.

        Raises ``ConfigError`` when one of them can't be used.
        """
        kwargs: dict[str, Any] = {"bootstrap_servers": self.bootstrap, "security_protocol": self.security}
        if self.security in ("SSL", "SASL_SSL"):
            kwargs["ssl_context"] = self._ssl_context()
        if self.security.startswith("SASL"):
            assert self.sasl_password_file is not None
            kwargs["sasl_mechanism"] = self.sasl_mechanism
            kwargs["sasl_plain_username"] = self.sasl_username
            kwargs["sasl_plain_password"] = read_secret(self.sasl_password_file)
        return kwargs

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise ConfigError([f"{files}: can't be used for TLS to Kafka ({error.strerror or error})"]) from None
        return context
