"""Settings of Kafka: refused when they don't fit, and given to aiokafka whole."""

import ssl
from pathlib import Path

import pytest
import trustme

from shared.config import ConfigError, load_config
from shared.kafka.settings import KafkaSettings


def settings(**values: object) -> KafkaSettings:
    """As a process reads them."""
    environ = {"KAFKA_BOOTSTRAP": "127.0.0.1:9092"} | {
        f"KAFKA_{name.upper()}": str(text) for name, text in values.items()
    }
    return load_config(KafkaSettings, environ, "KAFKA_")


def test_plain_settings_need_an_address_only() -> None:
    assert settings().client_kwargs() == {"bootstrap_servers": "127.0.0.1:9092", "security_protocol": "PLAINTEXT"}


@pytest.mark.parametrize(
    "values",
    [
        {"security": "SASL_SSL"},
        {"security": "SASL_SSL", "sasl_username": "u"},
        {"sasl_username": "u", "sasl_password_file": __file__},
        {"security": "SSL", "cert_file": __file__},
        {"ca_file": __file__},
        {"bootstrap": ""},
        {"delivery_deadline_s": 0},
        {"security": "TLS"},
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings(**values)


def test_tls_with_sasl_reads_its_files(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "password").write_text("s3cret-password\n")

    kwargs = settings(
        security="SASL_SSL",
        ca_file=str(tmp_path / "ca.pem"),
        sasl_username="tidemark",
        sasl_password_file=str(tmp_path / "password"),
    ).client_kwargs()

    assert kwargs["sasl_plain_password"] == "s3cret-password"
    assert kwargs["sasl_mechanism"] == "SCRAM-SHA-512"
    assert kwargs["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert kwargs["ssl_context"].check_hostname


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")

    with pytest.raises(ConfigError, match=r"ca\.pem"):
        settings(security="SSL", ca_file=str(tmp_path / "ca.pem")).client_kwargs()


def test_a_hanging_request_leaves_time_for_another_one_before_the_deadline() -> None:
    assert settings(delivery_deadline_s=2).request_timeout_ms == 1333
    assert settings().request_timeout_ms == 10_000
