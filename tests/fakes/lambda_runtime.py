"""A Lambda sandbox: AWS's own runtime client, run as AWS runs it, against a Runtime API of ours on loopback.

Each sandbox is one process and has an API of its own (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html).
Whenever the process asks for its next invocation and there is none, it is frozen by SIGSTOP, until there is one.
"""

import asyncio
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web
from msgspec import Struct

from deploy.local.leash import leashed

API = "/2018-06-01/runtime"
RUNTIME = ("awslambdaric", "simplejson", "snapshot-restore-py")
_ESTABLISHED = "01"
_NONE_MORE = ""


class Answer(Struct, frozen=True):
    """What an invocation came to; ``error`` as the runtime reports it."""

    result: Any
    error: dict[str, Any] | None
    left_s: float  # of the invocation's time


class _Invocation(Struct, frozen=True):
    event: Any
    deadline_ms: int
    answer: "asyncio.Future[Answer]"


class LambdaSandbox:
    def __init__(self, task_root: Path, handler: str, env: Mapping[str, str], log: Path) -> None:
        self._task_root, self._handler, self._env, self._log = task_root, handler, dict(env), log
        self._invocations: dict[str, _Invocation] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._frozen = asyncio.Event()
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.start_s = 0.0
        """From the process's start until it asked for its first invocation."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def invoke(self, event: Any = None, timeout_s: float = 60.0) -> Answer:
        """Thaw, hand over, wait for the answer, and until it is frozen again. As AWS: killed at its timeout."""
        invocation = _Invocation(
            event, int((time.time() + timeout_s) * 1_000), asyncio.get_running_loop().create_future()
        )
        request = str(uuid4())
        self._invocations[request] = invocation
        self._frozen.clear()
        self._waiting.put_nowait(request)
        os.kill(self.pid, signal.SIGCONT)
        async with asyncio.timeout(timeout_s):
            answer = await invocation.answer
            await self._frozen.wait()
        return answer

    def peers(self) -> list[str]:
        """``address:port`` of what the process is connected to, but for the Runtime API."""
        inodes = set()
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(found.group(1))
        lines = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        fields = [line.split() for line in lines]
        ports = [int(one[2].rpartition(":")[2], 16) for one in fields if one[9] in inodes and one[3] == _ESTABLISHED]
        return [f"127.0.0.1:{port}" for port in ports if port != self._port]

    def log_lines(self) -> list[dict[str, Any]]:
        """What the function logged, as JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    async def _start(self, runtime: Path) -> None:
        began_s = time.monotonic()
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(runtime),
            "PYTHONWARNINGS": "error::ResourceWarning",
            "PYTHONUNBUFFERED": "1",
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._port}",
            "AWS_LAMBDA_FUNCTION_NAME": "tidemark-retrier",
            "LAMBDA_TASK_ROOT": str(self._task_root),
            **self._env,
        }
        # Without site: what is installed for the tests must not stand in for what the zip lacks.
        command = [sys._base_executable, "-S", "-m", "awslambdaric", self._handler]  # type: ignore[attr-defined]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # forks at once
                leashed(*command), cwd=self._task_root, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        self._watch = asyncio.create_task(self._watch_process(), name="lambda-watch")
        async with asyncio.timeout(30):
            await self._frozen.wait()
        self.start_s = time.monotonic() - began_s

    async def _watch_process(self) -> None:
        """A sandbox that dies answers nothing any more: whoever waits has to learn it."""
        assert self._process is not None
        while self._process.poll() is None:  # noqa: ASYNC110  # a process can only be looked at
            await asyncio.sleep(0.05)
        died = RuntimeError(f"the sandbox died ({self._process.returncode}): {self._log.read_text()[-3_000:]}")
        for invocation in self._invocations.values():
            if not invocation.answer.done():
                invocation.answer.set_exception(died)

    async def _close(self) -> None:
        self._waiting.put_nowait(_NONE_MORE)
        if self._watch is not None:
            self._watch.cancel()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def _next(self, _request: web.Request) -> web.Response:
        if self._waiting.empty():
            os.kill(self.pid, signal.SIGSTOP)
            self._frozen.set()
        request = await self._waiting.get()
        if request == _NONE_MORE:
            return web.Response(status=410)
        invocation = self._invocations[request]
        headers = {
            "Content-Type": "application/json",  # as it is, or the runtime hands over bytes
            "Lambda-Runtime-Aws-Request-Id": request,
            "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:tidemark-retrier",
            "Lambda-Runtime-Trace-Id": "Root=1-0-0;Sampled=0",
        }
        return web.Response(body=json.dumps(invocation.event).encode(), headers=headers)

    async def _result(self, request: web.Request) -> web.Response:
        return self._answered(request, result=await request.json(), error=None)

    async def _error(self, request: web.Request) -> web.Response:
        return self._answered(request, result=None, error=await request.json())

    def _answered(self, request: web.Request, result: Any, error: dict[str, Any] | None) -> web.Response:
        invocation = self._invocations.pop(request.match_info["request"])
        invocation.answer.set_result(Answer(result, error, invocation.deadline_ms / 1_000 - time.time()))
        return web.json_response({"status": "OK"}, status=202)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get(f"{API}/invocation/next", self._next)
        app.router.add_post(f"{API}/invocation/{{request}}/response", self._result)
        app.router.add_post(f"{API}/invocation/{{request}}/error", self._error)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = int(runner.addresses[0][1])
        try:
            yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def lambda_sandbox(
    task_root: Path, handler: str, env: Mapping[str, str], folder: Path
) -> AsyncIterator[LambdaSandbox]:
    """A cold one, initialised and frozen."""
    runtime = _runtime_alone(folder / "runtime")
    sandbox = LambdaSandbox(task_root, handler, env, folder / f"lambda-{uuid4().hex[:6]}.log")
    async with sandbox._serving():
        try:
            await sandbox._start(runtime)
            yield sandbox
        finally:
            await sandbox._close()


def unpacked(package: Path, folder: Path) -> Path:
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    return folder


def _runtime_alone(folder: Path) -> Path:
    """AWS's runtime client and what it needs, without anything else that is installed here."""
    if not folder.exists():
        folder.mkdir()
        for distribution in RUNTIME:
            for file in importlib.metadata.files(distribution) or ():
                top = file.parts[0]
                if top != ".." and not (folder / top).exists():
                    (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder
