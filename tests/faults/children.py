"""Services as children of a nursery: started in milliseconds, killed and frozen by their own process ids alone."""

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from tests.faults.failpoints import ENV, Plan

Service = Literal["retrier", "notifier"]


class Child:
    """One process. ``journal`` says which failpoints it has come to."""

    def __init__(self, pid: int, journal: Path, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._journal = journal

    def send(self, number: signal.Signals) -> None:
        if not self.code.done():
            os.kill(self.pid, number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Its exit code."""
        self.send(number)
        return await asyncio.shield(self.code)

    def said(self, word: Literal["reached", "fired", "went on"]) -> list[str]:
        """Points, in order."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]


class Nursery:
    """Starts children of ``services`` with failpoints. Ends them all when it closes."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._asked: deque[asyncio.Future[int]] = deque()
        self._children: dict[int, Child] = {}
        self._count = 0

    async def start(self, service: Service, env: Mapping[str, str], plan: Plan | None = None) -> Child:
        self._count += 1
        name = self._folder / f"{service}-{self._count}"
        journal, log = name.with_suffix(".journal"), name.with_suffix(".log")
        more = {ENV: msgspec.json.encode(plan or Plan()).decode(), f"{ENV}_JOURNAL": str(journal)}
        assert self._process.stdin is not None
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append(pid)
        order = {"service": service, "env": {**env, **more}, "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        child = Child(await pid, journal, log)
        self._children[child.pid] = child
        return child

    async def listen(self) -> None:
        assert self._process.stdout is not None
        early: dict[int, int] = {}
        while line := await self._process.stdout.readline():
            news = json.loads(line)
            if "started" in news:
                self._asked.popleft().set_result(news["started"])
            else:
                early[news["ended"]] = news["code"]
            await asyncio.sleep(0)  # whoever asked puts its child into the table
            for pid in [pid for pid in early if pid in self._children]:
                self._children.pop(pid).code.set_result(early.pop(pid))


@asynccontextmanager
async def nursery(folder: Path) -> AsyncIterator[Nursery]:
    """``folder``: for the children's logs and journals."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.nursery", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    made = Nursery(process, folder)
    listening = asyncio.create_task(made.listen(), name="nursery")
    try:
        yield made
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it ends its children, and itself
        await process.wait()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
