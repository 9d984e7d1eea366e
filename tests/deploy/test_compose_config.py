"""Compose itself, and the linter of Dockerfiles, on the files that are shipped. No engine runs."""

import os
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

from deploy.local.install import install
from deploy.local.places import CHECKOUT

PROFILES = ("observability", "spark", "ui", "tools")
COMBINATIONS = [chosen for size in range(len(PROFILES) + 1) for chosen in combinations(PROFILES, size)]


@pytest.fixture(scope="module")
def tools() -> Path:
    found = install(tools=True).tools
    assert found is not None
    return found


def run(folder: Path, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """With nothing of this shell's environment: the file must do without."""
    clean = {"PATH": os.defpath, "HOME": "/nonexistent", **(env or {})}
    program = str(folder / command[0])
    return subprocess.run(
        [program, *command[1:]], cwd=CHECKOUT, env=clean, capture_output=True, text=True, check=False, timeout=60
    )


def test_compose_takes_the_file_in_every_combination_of_profiles(tools: Path) -> None:
    for chosen in COMBINATIONS:
        ended = run(tools, "docker-compose", *(part for one in chosen for part in ("--profile", one)), "config", "-q")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), chosen


def test_a_port_and_an_image_are_moved_by_a_variable(tools: Path) -> None:
    env = {"KAFKA_PORT": "31234", "KAFKA_IMAGE": "registry.example/kafka:4.3.1", "TIDEMARK_VERSION": "9.9.9"}
    ended = run(tools, "docker-compose", "config", env=env)
    assert ended.returncode == 0, ended.stderr
    assert 'published: "31234"' in ended.stdout
    assert "OUTSIDE://127.0.0.1:31234" in ended.stdout
    assert "image: registry.example/kafka:4.3.1" in ended.stdout
    assert "image: tidemark/s3-sink:9.9.9" in ended.stdout


def test_compose_refuses_a_key_that_it_does_not_know(tools: Path, tmp_path: Path) -> None:
    text = (CHECKOUT / "docker-compose.yml").read_text().replace("  read_only: true", "  readonly: true", 1)
    (tmp_path / "docker-compose.yml").write_text(text)
    ended = run(
        tools,
        "docker-compose",
        "--project-directory",
        str(CHECKOUT),
        "-f",
        str(tmp_path / "docker-compose.yml"),
        "config",
        "-q",
    )
    assert ended.returncode != 0
    assert "readonly" in ended.stderr


def test_the_linter_finds_nothing_in_the_dockerfile(tools: Path) -> None:
    ended = run(tools, "hadolint", "deploy/images/Dockerfile")
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_linter_would_find_something(tools: Path, tmp_path: Path) -> None:
    text = (CHECKOUT / "deploy" / "images" / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(text.replace("# hadolint ignore=DL3008\n", ""))
    ended = run(tools, "hadolint", str(tmp_path / "Dockerfile"))
    assert ended.returncode == 1
    assert "DL3008" in ended.stdout
