"""A Prometheus beside the demo's services, and ``tidemark audit --watch``: what the dashboards would show of the run.

Where the machine has a Prometheus. Each panel of each board is asked at the end, and the home board is drawn, since a
run of minutes leaves nobody the time to open Grafana.
"""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deploy.grafana.panels import EMPTY_ALLOWED, Answer, ask_all, committed, failures
from deploy.grafana.scrape import installed, prometheus
from deploy.local.places import cache_home
from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from deploy.local.supervision import StackFailed

Ask = Literal["auto", "require", "skip"]
JOBS = {
    "poller": "poller-producer",
    "sink": "s3-sink",
    "retrier": "dynamo-retrier",
    "notifier": "stale-notifier",
    "stream": "delta-loader",
    "audit": "audit",
}
"""Service names, by the demo's own."""
AUDIT_PERIOD_S = 20
_SECOND_SCRAPE_S = 10.0
_POINTS = 200
"""Of a line, about as many as Grafana asks for a panel of this width."""


class Dashboards:
    """``start`` once the services' ports are known; ``ask`` while they still run."""

    processes = ("audit", "prometheus")

    def __init__(self, stack: Stack, say: Callable[[str], None], *, required: bool) -> None:
        self._stack, self._say, self._required = stack, say, required
        self._since_s = time.time()
        self.url = ""

    @classmethod
    def of(cls, stack: Stack, say: Callable[[str], None], asked: Ask) -> "Dashboards | None":
        """``None``: none is wanted, or there is no Prometheus. Raises ``StackFailed`` when there must be one."""
        if asked == "skip":
            return None
        if installed():
            return cls(stack, say, required=asked == "require")
        if asked == "require":
            raise StackFailed(
                "--dashboards require: there is no Prometheus; Debian and Ubuntu have it as package `prometheus`"
            )
        return None

    def start(self, python: str, env: Mapping[str, str], *, spark: bool) -> None:
        self._start_audit(python, env)
        port, program = self._stack.free_port("prometheus"), installed()
        assert program
        jobs = {name: job for name, job in JOBS.items() if spark or name != "stream"}
        targets = {job: f"127.0.0.1:{self._stack.port(name)}" for name, job in jobs.items()}
        self._stack.add(prometheus(program, self._stack.folder / "prometheus", port, targets))
        self._stack.start("prometheus")
        self.url, self._since_s = f"http://127.0.0.1:{port}", time.time()

    def _start_audit(self, python: str, env: Mapping[str, str]) -> None:
        port = self._stack.free_port("audit")
        command = (python, "-m", "services.cli", "audit", "--watch", "--period", f"{AUDIT_PERIOD_S}s")
        ready = http_answers(f"http://127.0.0.1:{port}/live")
        self._stack.add(Process("audit", command, ready=ready, env={**env, "TIDEMARK_HTTP_PORT": str(port)}))
        self._stack.start("audit")

    def ask(self) -> list[Answer]:
        """All panels of all boards, over the whole run."""
        window_s = time.time() - self._since_s
        return ask_all(self.url, window_s=window_s, step_s=max(1.0, window_s / _POINTS))

    def conclude(self, allowed: Mapping[str, str]) -> bool:
        """Ask, say and draw. False: a panel has no data, or its query is refused, and that was not to be."""
        known = {**EMPTY_ALLOWED, **allowed}
        answers = self.ask()
        until_s = time.monotonic() + _SECOND_SCRAPE_S
        while (failed := failures(answers, known)) and time.monotonic() < until_s:
            time.sleep(1)  # a counter that has just been born has no rate before its second scrape
            answers = self.ask()
        panels = len({(one.query.board, one.query.panel) for one in answers})
        self._say(f"dashboards: {len(answers)} queries of {panels} panels asked, {len(failed)} without data")
        for line in failed:
            self._say(f"    {line}")
        if find_spec("matplotlib"):
            self._say(f"the home dashboard: {self._drawn(answers)}")
        return not (failed and self._required)

    def _drawn(self, answers: list[Answer]) -> Path:
        from deploy.grafana.picture import draw  # takes a second to import, and isn't everywhere

        file = cache_home() / "reports" / self._stack.name / "home.png"
        [home] = [document for document in committed() if document["uid"] == "tidemark-home"]
        draw(home, answers, file)
        return file
