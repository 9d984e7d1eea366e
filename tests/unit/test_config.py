"""Settings from the environment: nested by prefix, refused with every error at once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from shared.config import ConfigError, HttpSettings, LogSettings, load_config, read_secret


class Mode(StrEnum):
    FAST = "fast"
    SAFE = "safe"


class Broker(Struct, frozen=True, kw_only=True):
    bootstrap: str
    security: Literal["PLAINTEXT", "SSL"] = "PLAINTEXT"
    password_file: Path | None = None
    linger_ms: Annotated[int, Meta(ge=0)] = 5


class Extra(Struct, frozen=True, kw_only=True):
    level: int


class Settings(Struct, frozen=True, kw_only=True):
    kafka: Broker
    entities_dir: Path
    drain_s: Annotated[float, Meta(gt=0)] = 20.0
    mode: Mode = Mode.SAFE
    names: tuple[str, ...] = ()
    verbose: bool = False
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    extra: Extra | None = None


REQUIRED = {"TIDEMARK_KAFKA_BOOTSTRAP": "b:9092", "TIDEMARK_ENTITIES_DIR": "/e"}


def test_nested_settings_are_read_by_prefix() -> None:
    config = load_config(
        Settings,
        {
            **REQUIRED,
            "TIDEMARK_DRAIN_S": "2.5",
            "TIDEMARK_MODE": "fast",
            "TIDEMARK_NAMES": "a, b,",
            "TIDEMARK_VERBOSE": "true",
            "TIDEMARK_HTTP_PORT": "8080",
            "TIDEMARK_EXTRA_LEVEL": "3",
            "TIDEMARK_KAFKA_LINGER_MS": "0",
        },
    )

    assert config == Settings(
        kafka=Broker(bootstrap="b:9092", linger_ms=0),
        entities_dir=Path("/e"),
        drain_s=2.5,
        mode=Mode.FAST,
        names=("a", "b"),
        verbose=True,
        http=HttpSettings(port=8080),
        extra=Extra(level=3),
    )


def test_empty_variables_count_as_unset() -> None:
    config = load_config(Settings, {**REQUIRED, "TIDEMARK_DRAIN_S": "", "TIDEMARK_EXTRA_LEVEL": ""})

    assert (config.drain_s, config.extra) == (20.0, None)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            Settings,
            {
                "TIDEMARK_KAFKA_BOOTSTRP": "b",
                "TIDEMARK_DRAIN_S": "-1",
                "TIDEMARK_MODE": "wild",
                "TIDEMARK_KAFKA_SECURITY": "TLS",
                "TIDEMARK_KAFKA_PASSWORD_FILE": "/nowhere/x",
                "TIDEMARK_VERBOSE": "perhaps",
            },
        )

    assert caught.value.problems == [
        "TIDEMARK_DRAIN_S: expected a number, above 0, got '-1'",
        "TIDEMARK_ENTITIES_DIR: not set; expected a file's path",
        "TIDEMARK_KAFKA_BOOTSTRAP: not set; expected text; TIDEMARK_KAFKA_BOOTSTRP is set: a typing error?",
        "TIDEMARK_KAFKA_PASSWORD_FILE: can't read the file '/nowhere/x' (No such file or directory); "
        "mount or correct it",
        "TIDEMARK_KAFKA_SECURITY: expected one of PLAINTEXT, SSL, got 'TLS'",
        "TIDEMARK_MODE: expected one of fast, safe, got 'wild'",
        "TIDEMARK_VERBOSE: expected true or false, got 'perhaps'",
    ]


def test_a_structs_own_check_becomes_a_problem() -> None:
    class Picky(Struct):
        low: int = 0

        def __post_init__(self) -> None:
            if self.low > 3:
                raise ValueError("low is too high")

    with pytest.raises(ConfigError, match=r"TIDEMARK_\*: low is too high"):
        load_config(Picky, {"TIDEMARK_LOW": "4"})


def test_secrets_come_from_files_without_their_line_end(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"sesame open\r\n")

    assert read_secret(tmp_path / "s") == "sesame open"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 70_000])
def test_a_secret_that_is_none_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        read_secret(tmp_path / "s")

    assert "xxx" not in str(caught.value)
