"""Each extra alone, from the very lock that its image installs: the service starts, refuses an empty environment with
every problem at once, and has no other service's client library beside it."""

import os
import re
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.local.checks import IMAGE_LOCKS
from deploy.local.install import Uv, boot_binaries
from deploy.local.places import CHECKOUT, cache_home

EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
APART = {"aiokafka", "asyncpg", "deltalake", "polars", "pyarrow", "pyspark"}
"""What only some have; all have aioboto3, httpx and fastavro."""
FOUND = f"""
import importlib.util
print(*sorted(name for name in {sorted(APART)} if importlib.util.find_spec(name)))
"""
COMMANDS = {
    "poller-producer": ("services.poller_producer",),
    "s3-sink": ("services.s3_sink",),
    "dynamo-retrier": ("services.dynamo_retrier",),
    "stale-notifier": ("services.stale_notifier",),
    "delta-loader": ("services.delta_loader", "stream"),
    "cli": ("services.cli", "bootstrap"),
}
WANTED = {
    "poller-producer": {"ENTITIES_DIR", "CACHE_DIR", "KAFKA_BOOTSTRAP", "REGISTRY_URL", "POSTGRES_DSN"},
    "s3-sink": {"ENTITIES_DIR", "CACHE_DIR", "KAFKA_BOOTSTRAP", "REGISTRY_URL"},
    "dynamo-retrier": {"ENTITIES_DIR", "CACHE_DIR", "KAFKA_BOOTSTRAP", "REGISTRY_URL"},
    "stale-notifier": {"ENTITIES_DIR"},
    "delta-loader": {"ENTITIES_DIR", "CACHE_DIR", "REGISTRY_URL"},
    "cli": {"ENTITIES_DIR", "KAFKA_BOOTSTRAP", "REGISTRY_URL", "POSTGRES_DSN"},
}
EXIT_CONFIG = 2


def test_every_extra_is_tried() -> None:
    assert set(COMMANDS) == set(WANTED) == set(EXTRAS)


class Tried(NamedTuple):
    libraries: str
    empty: subprocess.CompletedProcess[str]
    wrong: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tried]:
    """Two at a time: each compiles all that it imports."""
    folders = {extra: tmp_path_factory.mktemp(extra) for extra in COMMANDS}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(folders, pool.map(attempt, folders, folders.values()), strict=True))


def attempt(extra: str, folder: Path) -> Tried:
    python, home = installed(extra, folder), str(folder)
    bare = {"PATH": os.defpath, "HOME": home, "PYTHONPATH": str(CHECKOUT), "PYTHONPYCACHEPREFIX": home}
    misread = bare | {"TIDEMARK_HTTP_PORT": "x", "TIDEMARK_LOG_LEVEL": "loud"}
    return Tried(
        run(python, bare, "-c", FOUND).stdout,
        run(python, bare, "-m", *COMMANDS[extra]),
        run(python, misread, "-m", *COMMANDS[extra]),
    )


@pytest.mark.parametrize("extra", COMMANDS)
def test_a_service_starts_with_its_own_extra_only(extra: str, tried: dict[str, Tried]) -> None:
    libraries, empty, wrong = tried[extra]
    own = {re.split(r"[\[=<>]", one)[0] for one in EXTRAS[extra]}

    assert set(libraries.split()) == APART & own
    assert empty.returncode == EXIT_CONFIG, empty.stderr
    assert set(re.findall(r"TIDEMARK_(\w+): not set", empty.stderr)) == WANTED[extra]
    assert wrong.returncode == EXIT_CONFIG
    if extra != "cli":  # its commands serve no HTTP
        assert set(re.findall(r"TIDEMARK_(\w+): ", wrong.stderr)) == WANTED[extra] | {"HTTP_PORT", "LOG_LEVEL"}


def installed(extra: str, folder: Path) -> Path:
    """The interpreter of an environment that holds what the image's does; files are links into uv's cache."""
    uv, log = Uv(cache_home(), boot_binaries()), folder / "log"
    uv.run(log, "venv", "-q", str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    lock = IMAGE_LOCKS / f"{extra}.lock"
    uv.run(log, "pip", "install", "-q", "--python", str(python), "--require-hashes", "--no-deps", "-r", str(lock))
    return python


def run(python: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
