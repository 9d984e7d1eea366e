"""The Compose stack as it is shipped, in real containers: images built from the shipped Dockerfile, third-party images
swapped for packages (compose.ci.yaml, images/), brought up, walked through, queried, taken down.

Not covered: the third-party images themselves, Grafana (its queries are run, its panels not seen), profiles `spark` and
`ui` (read by tests/unit/test_compose.py and tests/deploy only).
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.grafana.panels import EMPTY_ALLOWED, LOADER, ask_all, failures
from deploy.local import engine
from deploy.local.install import install
from deploy.local.places import CHECKOUT, run_home
from deploy.local.ports import find_free
from tests.e2e.containers import build_servers

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

_PORTS = ("KAFKA", "POSTGRES", "REGISTRY", "AWS", "BANK", "RECEIVER", "POLLER", "SINK", "RETRIER", "NOTIFIER", "AUDIT")
_ONE_SHOTS = {"bootstrap", "urls"}
_UP_S_MAX, _FIRST_OBJECT_S_MAX = 180, 60
_NOT_IN_THIS_RUN = {"tidemark_parked_woken_total": "no contract changes in this run"}
_LAST_TARGET = "stale-notifier"
"""The classic builder builds all that stands above a target: through the cache, the others then cost nothing."""


@dataclass(frozen=True)
class Compose:
    one: engine.Engine
    ports: dict[str, int]
    log: Path

    def run(self, *arguments: str, within_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command on the project, with its output in the log and in the answer."""
        files = ("--file", "docker-compose.yml", "--file", "tests/e2e/compose.ci.yaml")
        command = [str(self.one.compose_program), *files, "--profile", "observability", *arguments]
        env = self.one.env | {f"{name}_PORT": str(port) for name, port in self.ports.items()}
        began = time.monotonic()
        ended = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=within_s)
        with self.log.open("a") as log:
            log.write(f"── {' '.join(arguments)}: {ended.returncode}, {time.monotonic() - began:.1f} s\n")
            log.write(ended.stdout + ended.stderr)
        return ended

    def ok(self, *arguments: str, within_s: float = 120.0) -> str:
        """What it printed; fails the test, with the last words of what is not well, when it fails."""
        ended = self.run(*arguments, within_s=within_s)
        if ended.returncode:
            said = f"docker-compose {' '.join(arguments)}: {ended.returncode}\n{_last(ended.stdout + ended.stderr, 25)}"
            pytest.fail(f"{said}\n{self.unwell()}", pytrace=False)
        return ended.stdout

    def states(self) -> dict[str, dict[str, str]]:
        """By service, as `ps` tells it, those that ended too."""
        lines = self.run("ps", "--all", "--format", "json").stdout.splitlines()
        return {state["Service"]: state for state in map(json.loads, lines)}

    def unwell(self) -> str:
        """The last lines of each service that isn't as it should be."""
        told = []
        for service, state in self.states().items():
            if _is_well(service, state):
                continue
            lines = self.run("logs", "--no-color", "--no-log-prefix", "--tail", "15", service).stdout
            told.append(f"{service}: {state['State']} {state['Health']} exit code {state['ExitCode']}\n{lines}")
        return "\n".join(told)


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """The stack, built and up; afterwards nothing of it is left."""
    began = time.monotonic()
    at = install(tools=True)
    with engine.running("compose") as one:
        names = (*_PORTS, "PROMETHEUS")
        ports = dict(zip(names, find_free(len(names), set()), strict=True))
        project = Compose(one, ports, one.folder / "compose.log")
        _told("engine", began)
        engine.import_base(one, "python:3.13-slim-trixie")
        _told("base image", began)
        with ThreadPoolExecutor(2) as pool:
            servers = pool.submit(build_servers, one, at, one.folder / "servers.log")
            project.ok("build", _LAST_TARGET, within_s=600)
            project.ok("build", within_s=600)
            _told("images of ours", began)
            servers.result()
        _told("images of the servers", began)
        try:
            yield project
        finally:
            project.run("--profile", "*", "down", "--volumes", "--timeout", "20")
    _told("engine gone", began)
    assert not one.folder.exists()
    assert not _mentioning(one.folder)


def _told(step: str, began: float) -> None:
    print(f"  {step:<24} {time.monotonic() - began:6.1f} s", flush=True)


def test_the_stack_comes_up_carries_a_change_through_shows_it_and_leaves_nothing(compose: Compose) -> None:
    began = time.monotonic()

    compose.ok("up", "--detach", "--wait", "--wait-timeout", str(_UP_S_MAX), within_s=_UP_S_MAX + 30)
    _told("up", began)

    states = compose.states()
    assert set(states) > _ONE_SHOTS
    assert not [state for service, state in states.items() if not _is_well(service, state)], compose.unwell()
    _wait_for_raw_object(compose, time.monotonic() + _FIRST_OBJECT_S_MAX)
    _told("first raw object", began)

    walk = compose.ok("run", "--rm", "--no-TTY", "tidemark", "demo", "--within", "90", within_s=400)
    _told("walk", began)
    assert "missing: 0" in walk

    compose.ok("run", "--rm", "--no-TTY", "--no-deps", "tidemark", "doctor", "--source")
    _told("doctor", began)

    _wait_until(lambda: not _without_data(compose, time.monotonic() - began), 30, lambda: _without_data(compose, 600))
    _told("panels", began)

    compose.ok("--profile", "*", "down", "--volumes", "--timeout", "20")
    _told("down", began)
    assert not compose.one.docker("ps", "--all", "--quiet")
    assert not compose.one.docker("volume", "ls", "--quiet")
    networks = compose.one.docker("network", "ls", "--format", "{{.Name}}").split()
    assert set(networks) <= {"host", "none"}


def _is_well(service: str, state: dict[str, str]) -> bool:
    if service in _ONE_SHOTS:
        return state["State"] == "exited" and int(state["ExitCode"]) == 0
    return state["State"] == "running" and state["Health"] == "healthy"


def _without_data(compose: Compose, window_s: float) -> list[str]:
    """Panels' queries that found nothing; a rate has its first value two scrapes after its counter."""
    url = f"http://127.0.0.1:{compose.ports['PROMETHEUS']}"
    return failures(ask_all(url, window_s=window_s, step_s=5), {**EMPTY_ALLOWED, **LOADER, **_NOT_IN_THIS_RUN})


def _wait_for_raw_object(compose: Compose, deadline: float) -> None:
    """Asked of the store itself, from outside: any object under raw/."""
    url = f"http://127.0.0.1:{compose.ports['AWS']}/tidemark-raw?list-type=2&prefix=raw/&max-keys=1"
    signed = "AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with opener.open(urllib.request.Request(url, headers={"Authorization": signed}), timeout=10) as answer:
            if b"<Key>raw/" in answer.read():
                return
        assert time.monotonic() < deadline, compose.unwell()
        time.sleep(0.5)


def _last(said: str, lines: int) -> str:
    return "\n".join(said.splitlines()[-lines:])


def test_an_engine_goes_with_its_killed_owner_and_the_next_one_leaves_nothing() -> None:
    name = "leaves-nothing"
    folder = run_home() / f"{name}-engine"
    command = [sys.executable, "-m", "deploy.local.engine", name]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        assert next(line for line in owner.stdout if "DOCKER_HOST" in line)
        assert len(_mentioning(folder)) > 1
        owner.kill()
    _wait_until(lambda: not _mentioning(folder))

    with engine.running(name) as one:
        assert _mentioning(one.folder)

    assert not folder.exists()
    assert not _mentioning(folder)
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    rules = subprocess.run(["iptables", "-w", "-S", "FORWARD"], check=True, capture_output=True, text=True).stdout
    assert one.bridge not in rules


def _wait_until(
    holds: Callable[[], bool], within_s: float = 20.0, said: Callable[[], object] = lambda: "not in time"
) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.5)


def _mentioning(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
        except OSError:  # it has just ended
            continue
    return found
