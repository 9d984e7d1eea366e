"""Tidemark as it runs: bank, receiver of notices and the four services, on the stack, in a namespace of their own."""

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from deploy.demo.demo import SERVICES, choose_entities
from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from shared.entities import Entities, load_entities

QUICK = {
    "TIDEMARK_KAFKA_DELIVERY_DEADLINE_S": "2",
    "TIDEMARK_SINK_OBJECT_AGE_S_MAX": "1",
    "TIDEMARK_WAKE_PERIOD_S": "2",
    "TIDEMARK_REFRESH_S": "2",
    "TIDEMARK_GRACE_S": "3",
    "TIDEMARK_NOTIFIER_POLL_S": "0.5",
    "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "0.5",
}


class Running:
    """Process names and settings of one Tidemark; nothing runs until it is started."""

    def __init__(self, stack: Stack, folder: Path, stale_after_s: float = 60, **places: str) -> None:
        """``places`` override the stack's own servers."""
        self.stack = stack
        self.name = f"r{uuid4().hex[:8]}"
        self.python = str(stack.product_python)
        bank_port, notices_port = stack.free_port(f"{self.name}-bank"), stack.free_port(f"{self.name}-receiver")
        server = stack.env["TIDEMARK_POSTGRES_DSN"].rpartition("/")[0]
        self.settings = {
            **stack.env,
            **QUICK,
            "TIDEMARK_NAMESPACE": self.name,
            "TIDEMARK_ENTITIES_DIR": str(choose_entities(folder / "entities", "events", stale_after_s)),
            "TIDEMARK_CACHE_DIR": str(folder / "cache"),
            "BANK_DSN": f"{server}/bank_{self.name}",
            "BANK_PORT": str(bank_port),
            "BANK_URL": f"http://127.0.0.1:{bank_port}/cdc",
            "BANK_NOTICES_URL": f"http://127.0.0.1:{notices_port}/notices",
            "BANK_NOTICES_SECRET": "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
            "RECEIVER_PORT": str(notices_port),
            **places,
        }
        self._rows = {
            "bank": ("deploy.demo.bank", f"http://127.0.0.1:{bank_port}/health"),
            "receiver": ("deploy.demo.receiver", f"http://127.0.0.1:{notices_port}/health"),
        }
        self.entities: Entities = load_entities(folder / "entities", self.name, self.settings)

    def start(self, *names: str) -> None:
        """``bank``, ``receiver``, ``sink``, ``poller``, ``retrier``, ``notifier``; ready when it returns.

        Those that run are left alone.
        """
        for name in names:
            own = f"{self.name}-{name}"
            if self.stack.is_running(own):
                continue
            module, ready = self._rows.get(name, ("", ""))
            more = {}
            if name == "poller":
                more["TIDEMARK_LEASE_S"] = "2"
            if not module:
                more["TIDEMARK_HTTP_PORT"] = str(self.stack.free_port(own))
                module, ready = SERVICES[name], f"http://127.0.0.1:{more['TIDEMARK_HTTP_PORT']}/ready"
            command = (self.python, "-m", module)
            self.stack.add(Process(own, command, ready=http_answers(ready), env={**self.settings, **more}))
            self.stack.start(own)

    def stop(self, *names: str) -> None:
        for name in names:
            if self.stack.is_running(f"{self.name}-{name}"):
                self.stack.terminate(f"{self.name}-{name}")

    def write(self, seconds: float, rate: float, *, seed: int = 1) -> None:
        """The bank's clients, until ``wait_for_writers`` or ``stop("writers")``."""
        options = ("--seconds", str(seconds), "--writers", "2", "--rate", str(rate), "--seed", str(seed))
        command = (self.python, "-m", "deploy.demo.writers", *options)
        self.stack.add(Process(f"{self.name}-writers", command, env=self.settings, ends_itself=True))
        self.stack.start(f"{self.name}-writers")

    def wait_for_writers(self, within_s: float) -> None:
        assert self.stack.wait(f"{self.name}-writers", within_s) == 0

    def tidemark(self, *arguments: str, within_s: float = 240) -> tuple[int, str, str]:
        """Exit code, output and errors of one command, ``demo`` among them."""
        done = subprocess.run(
            [self.python, "-m", "deploy.demo.tidemark", *arguments],
            env={"PATH": os.environ["PATH"], **self.settings},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def bootstrap(self) -> None:
        code, output, errors = self.tidemark("bootstrap")
        assert code == 0, output + errors

    def audit(self, *options: str) -> tuple[int, dict[str, Any]]:
        chosen = options if "--table" in options else ("--table", "skip", *options)
        code, output, errors = self.tidemark("audit", "--json", *chosen)
        assert output, errors
        return code, json.loads(output)

    async def drop_bank(self) -> None:
        server, _, name = self.settings["BANK_DSN"].rpartition("/")
        connection = await asyncpg.connect(f"{server}/postgres")
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()


@contextmanager
def running_on(
    stack: Stack, folder: Path, services: Sequence[str] = tuple(SERVICES), stale_after_s: float = 60, **places: str
) -> Iterator[Running]:
    """With bank, receiver and ``services`` up; all ended afterwards, the last first."""
    own = Running(stack, folder, stale_after_s, **places)
    try:
        own.start("bank", "receiver")
        own.bootstrap()
        own.start(*services)
        yield own
    finally:
        own.stop("writers", *reversed([*SERVICES]), "receiver", "bank")
