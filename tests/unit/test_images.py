"""The Dockerfile, without Docker: what the classic builder takes, what an image may hold, and its health check."""

import re
import runpy
import socket
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from msgspec import Struct

from tests.unit.test_compose import COMPOSE

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy" / "images"
TEXT = (IMAGES / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SERVICES = {"poller-producer", "s3-sink", "dynamo-retrier", "stale-notifier"}
TARGETS = SERVICES | {"delta-loader", "cli", "demo", "aws"}
DEAR = ("packages-delta-loader", "jars", "delta-loader")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.M)


class Stage(Struct):
    name: str
    parent: str
    lines: list[str]

    def last(self, instruction: str) -> str | None:
        found = [line.partition(" ")[2] for line in self.lines if line.startswith(f"{instruction} ")]
        return found[-1] if found else None


def stages(text: str) -> dict[str, Stage]:
    """By name, in the file's order; continued lines are one."""
    found: dict[str, Stage] = {}
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    for line in filter(None, joined.splitlines()):
        if match := re.match(r"FROM (\S+) AS (\S+)$", line):
            found[match[2]] = Stage(match[2], match[1], [])
        elif found:
            next(reversed(found.values())).lines.append(line)
    return found


def inherited(text: str, target: str, instruction: str) -> str | None:
    """As Docker does: from the stage itself, or from the one that it begins with."""
    every, name = stages(text), target
    while name in every:
        if (found := every[name].last(instruction)) is not None:
            return found
        name = every[name].parent
    return None


def problems(text: str) -> list[str]:
    return [*_newer_features(text), *_unpinned(text), *_images(text), *_order(text)]


def _newer_features(text: str) -> Iterator[str]:
    beyond = {
        r"^#\s*syntax=": "# syntax: is a download",
        r"RUN --": "RUN --mount or the like: BuildKit only",
        r"(?:COPY|ADD) .*--(?:chmod|link|checksum|parents|exclude)": "COPY --chmod or the like: BuildKit only",
        r"<<-?['\"]?[A-Z]+": "a heredoc: BuildKit only",
        r"\$\{?(?:TARGET|BUILD)(?:ARCH|PLATFORM|OS)": "a platform variable: BuildKit only",
        r"amd64|arm64|x86_64|aarch64": "an architecture by name",
    }
    yield from (why for pattern, why in beyond.items() if re.search(pattern, text, re.M))


def _unpinned(text: str) -> Iterator[str]:
    every = stages(text)
    for name, stage in every.items():
        if stage.parent not in every and stage.parent != "${PYTHON_IMAGE}":
            yield f"{name}: begins with {stage.parent}"
        for line in stage.lines:
            for command in re.split(r"&&|;", line):
                if re.search(r"pip\b.* install|pip wheel", command) and not re.search(
                    r"--require-hashes|--no-index|--no-deps --no-build-isolation --wheel-dir /wheel", command
                ):
                    yield f"{name}: installs without hashes: {command.strip()}"
                if re.search(r"\b(?:curl|wget)\b", command):
                    yield f"{name}: downloads by itself: {command.strip()}"
    if not re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+-slim-\w+$", text, re.M):
        yield "PYTHON_IMAGE has no pinned default"


def _images(text: str) -> Iterator[str]:
    every = stages(text)
    for target in sorted(TARGETS):
        if target not in every:
            yield f"{target}: no such target"
            continue
        if inherited(text, target, "USER") != "10001:10001":
            yield f"{target}: runs as {inherited(text, target, 'USER')}"
        if inherited(text, target, "STOPSIGNAL") != "SIGTERM":
            yield f"{target}: STOPSIGNAL is not SIGTERM"
        entry = inherited(text, target, "ENTRYPOINT") or ""
        if not entry.startswith("["):
            yield f"{target}: a shell stands between the process and its signals"
        if (
            target in SERVICES | {"delta-loader"}
            and entry != f'["python", "-m", "services.{target.replace("-", "_")}"]'
        ):
            yield f"{target}: starts {entry}"
        health = every[target].last("HEALTHCHECK")
        if health is None or (target in SERVICES | {"delta-loader", "aws"} and "healthy.py" not in health):
            yield f"{target}: HEALTHCHECK is {health}"
        if not re.search(r"^LABEL org\.opencontainers\.image\.title", "\n".join(every["base"].lines), re.M):
            yield "base: no labels"
        if re.search(r"\bpip\b", " ".join(every[target].lines)):
            yield f"{target}: an image that runs has pip"


def _order(text: str) -> Iterator[str]:
    """The classic builder builds every stage above the one that it is asked for."""
    if tuple(stages(text))[-len(DEAR) :] != DEAR:
        yield f"{', '.join(DEAR)} must stand last: whoever builds another target would build them too"


def test_the_dockerfile_keeps_every_rule() -> None:
    assert problems(TEXT) == []


FAULTS = {
    "syntax": ("ARG PYTHON_IMAGE", "# syntax=docker/dockerfile:1\nARG PYTHON_IMAGE", "# syntax"),
    "mount": ("RUN python -m venv", "RUN --mount=type=cache,target=/x python -m venv", "RUN --mount"),
    "chmod": ("COPY LICENSE", "COPY --chmod=755 LICENSE", "COPY --chmod"),
    "heredoc": ("RUN groupadd", "RUN <<EOF\ngroupadd", "a heredoc"),
    "architecture": ("openjdk-21-jre-headless", "openjdk-21-jre-headless:amd64", "an architecture"),
    "other base": ("FROM base AS s3-sink", "FROM python:3 AS s3-sink", "s3-sink: begins with python:3"),
    "floating base": ("=python:3.13-slim-trixie", "=python:latest", "PYTHON_IMAGE has no pinned default"),
    "no hashes": ("--require-hashes --only-binary", "--only-binary", "installs without hashes"),
    "download": ("RUN groupadd", "RUN curl -O https://x.example/y && groupadd", "base: downloads by itself"),
    "root": ("USER 10001:10001\nHEALTHCHECK NONE", "USER root\nHEALTHCHECK NONE", "cli: runs as root"),
    "no user": ("USER 10001:10001", "", "s3-sink: runs as None"),
    "signal": ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "STOPSIGNAL is not"),
    "shell": ('ENTRYPOINT ["ministack"]', "ENTRYPOINT ministack", "aws: a shell"),
    "another's module": ("services.s3_sink", "services.stale_notifier", "s3-sink: starts"),
    "no check": ('"/opt/tidemark/healthy.py"]', '"/opt/x.py"]', "s3-sink: HEALTHCHECK is"),
    "no labels": ("LABEL org.", "LABEL com.", "base: no labels"),
    "pip at run time": (
        "FROM base AS s3-sink",
        "FROM base AS s3-sink\nRUN pip list",
        "s3-sink: an image that runs has",
    ),
    "dear first": ("FROM base AS aws", "FROM build AS jars\nFROM base AS aws", "must stand last"),
    "target gone": ("AS stale-notifier", "AS notifier", "stale-notifier: no such target"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault: str) -> None:
    there, instead, complaint = FAULTS[fault]
    assert there in TEXT

    found = problems(TEXT.replace(there, instead))

    assert any(complaint in problem for problem in found), found


def test_compose_builds_targets_of_the_dockerfile_under_their_own_names() -> None:
    built = {name: one for name, one in COMPOSE["services"].items() if "build" in one}
    assert {one["build"]["target"] for one in built.values()} == TARGETS
    for one in built.values():
        assert one["image"] == f"tidemark/{one['build']['target']}:${{TIDEMARK_VERSION:-{version()}}}"
        assert ROOT / one["build"]["dockerfile"] == IMAGES / "Dockerfile"
    assert f"ARG VERSION={version()}\n" in TEXT


def version() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def test_every_extra_has_a_lock_at_the_versions_that_are_tested() -> None:
    tested = dict(PINNED.findall((ROOT / "requirements-spark.lock").read_text()))
    for extra in EXTRAS:
        text = (IMAGES / "locks" / f"{extra}.lock").read_text()
        locked = dict(PINNED.findall(text))
        assert locked
        assert {name: tested.get(name) for name in locked} == locked
        assert text.count("--hash=sha256:") >= len(locked)
        assert f"locks/{extra}.lock" in TEXT


def test_a_lock_holds_no_other_services_client_libraries() -> None:
    apart = {"polars", "asyncpg", "deltalake", "pyspark", "aiokafka"}
    for extra, wanted in EXTRAS.items():
        own = {re.split(r"[\[=<>]", one)[0] for one in wanted}
        locked = dict(PINNED.findall((IMAGES / "locks" / f"{extra}.lock").read_text()))
        assert apart & set(locked) == apart & own


def test_only_what_is_named_reaches_a_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    named = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in stages(TEXT).values()
        for line in stage.lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert [one for one in copied if not any(one == path or one.startswith(f"{path}/") for path in named)] == []


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (204, 1)])
def test_only_a_live_process_is_healthy(status: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = runpy.run_path(str(IMAGES / "healthy.py"))["main"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(status) as url:
        monkeypatch.setenv("TIDEMARK_HTTP_PORT", url.split(":")[2].partition("/")[0])
        assert healthy([url]) == code
        assert healthy([]) == code


def test_a_process_that_is_gone_is_not_healthy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/live"
        assert runpy.run_path(str(IMAGES / "healthy.py"))["main"]([url]) == 1
