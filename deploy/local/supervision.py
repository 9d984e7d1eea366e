"""Child processes with an owner: started in order, watched, ended with their owner, and missed when they die.

Each child has a session of its own (a Ctrl-C in the terminal reaches the owner alone, which drains before it ends them)
and dies with the owner even when that is killed.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from deploy.local.leash import leashed
from deploy.local.places import CHECKOUT
from deploy.local.processes import Process

_POLL_S = 0.1
_TAIL_LINES = 15


class StackFailed(Exception):
    """A process didn't start, or died unasked; the message has its last lines."""


@dataclass
class Child:
    process: Process
    running: subprocess.Popen[bytes]
    started_ticks: int
    end_wanted: bool = False
    ended: threading.Event | None = None


@dataclass(frozen=True)
class Death:
    """An end that nobody asked for."""

    name: str
    exit_code: int
    last_lines: str
    forgets: bool

    def __str__(self) -> str:
        how = f"by {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else f"with exit code {self.exit_code}"
        lost = " Its state was in memory, so this run has failed." if self.forgets else ""
        return f"{self.name} ended {how}, unasked.{lost} Its last lines:\n{self.last_lines}"


class Supervision:
    """Owns the children whose logs lie in ``logs``. Thread-safe; every wait is bounded by the process's own limits."""

    def __init__(self, logs: Path, report: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.logs = logs
        self.deaths: list[Death] = []
        self.children: dict[str, Child] = {}
        self._report, self._changed = report, changed
        self._called_off = threading.Event()
        # The death signal comes when the *thread* that started the child ends: one thread, as old as the owner.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")

    def start(self, process: Process, env: Mapping[str, str]) -> float:
        """Start and wait until ready; seconds taken. Raises ``StackFailed``."""
        if self.is_running(process.name):
            raise StackFailed(f"{process.name} is running already")
        if self._called_off.is_set():
            raise StackFailed(f"the start of {process.name} was called off")
        began = time.monotonic()
        try:
            if process.prepare:
                process.prepare()
            child = self._starter.submit(self._spawn, process, env).result()
            self._await_ready(child, began + process.ready_s_max)
            if process.settle:
                process.settle()
        except (subprocess.SubprocessError, OSError) as error:
            said = str(getattr(error, "stderr", None) or error).strip()
            raise StackFailed(f"{process.name} didn't start: {said}\n{self.tail(process)}") from error
        return time.monotonic() - began

    def start_all(self, table: Sequence[Process], env: Mapping[str, str], at_once: int) -> None:
        """Start in parallel, each after those that it needs, ``at_once`` at most. The first ``StackFailed``, or a
        Ctrl-C, calls the others off and is raised."""
        places = threading.Semaphore(at_once)
        started: dict[str, Future[None]] = {}

        def one(process: Process) -> None:
            for need in process.needs:
                if need in started:
                    started[need].result()
            with places:
                seconds = self.start(process, env)
            self._report(f"  {process.name:<12} ready {seconds:5.1f} s")

        with ThreadPoolExecutor(max(1, len(table)), thread_name_prefix="up") as pool:
            try:
                for process in table:
                    started[process.name] = pool.submit(one, process)
                for future in as_completed(started.values()):
                    future.result()
            except BaseException:
                self._called_off.set()
                raise

    def _spawn(self, process: Process, env: Mapping[str, str]) -> Child:
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / process.log_file).open("ab") as log:
            running = subprocess.Popen(
                leashed(*process.command, death_signal=process.crash_signal, user=process.user),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=process.cwd or CHECKOUT,
                env={**env, **process.env},
                start_new_session=True,
            )
        child = Child(process, running, started_ticks(running.pid) or 0, ended=threading.Event())
        self.children[process.name] = child
        threading.Thread(target=self._watch, args=(child,), name=f"watch-{process.name}", daemon=True).start()
        self._changed()
        return child

    def _watch(self, child: Child) -> None:
        exit_code = child.running.wait()
        if not (child.end_wanted or (child.process.ends_itself and exit_code == 0)):
            death = Death(child.process.name, exit_code, self.tail(child.process), child.process.forgets)
            self.deaths.append(death)
            self._report(str(death))
        # Told before it's waited for: whoever removes the folder next must not meet a late record.
        self._changed()
        assert child.ended
        child.ended.set()

    def _await_ready(self, child: Child, deadline: float) -> None:
        process = child.process
        while not (process.ready is None or process.ready()):
            if self._called_off.is_set():
                raise StackFailed(f"the start of {process.name} was called off")
            if child.running.poll() is not None:
                raise StackFailed(f"{process.name} ended before it was ready:\n{self.tail(process)}")
            if time.monotonic() > deadline:
                raise StackFailed(f"{process.name} not ready after {process.ready_s_max:.0f} s:\n{self.tail(process)}")
            time.sleep(_POLL_S)
        self._changed()

    def tail(self, process: Process, lines: int = _TAIL_LINES) -> str:
        """The last lines of its log, indented."""
        return tail(self.logs / process.log_file, lines)

    def is_running(self, name: str) -> bool:
        child = self.children.get(name)
        return child is not None and child.running.poll() is None

    def end(self, name: str, how: signal.Signals, within_s: float) -> int:
        """Send ``how`` and wait; SIGKILL to its whole session when ``within_s`` is over. The exit code."""
        child = self.children[name]
        child.end_wanted = True
        if child.running.poll() is None:
            # A frozen process would take no signal but SIGKILL.
            for number in (how, signal.SIGCONT):
                child.running.send_signal(number)
        try:
            child.running.wait(within_s)
        except subprocess.TimeoutExpired:
            self._report(f"  {name} didn't end within {within_s:.0f} s of {how.name}: killed")
        kill_session(child.running.pid)
        exit_code = child.running.wait()
        assert child.ended
        child.ended.wait(5)
        return exit_code

    def end_all(self, names: Sequence[str], how: Callable[[Process], signal.Signals]) -> None:
        """End several at once, and wait for each."""
        alive = [name for name in names if self.is_running(name)]
        with ThreadPoolExecutor(max(1, len(alive)), thread_name_prefix="down") as pool:
            for name in alive:
                process = self.children[name].process
                pool.submit(self.end, name, how(process), process.stop_s_max)


def tail(log: Path, lines: int) -> str:
    try:
        with log.open("rb") as content:
            content.seek(max(0, log.stat().st_size - 64 * 1024))
            last = content.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        last = []
    return "\n".join(f"    {line}" for line in last) or "    (it said nothing)"


def started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid, one process for ever. None: no such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold blanks; state is the first field after it, start time the 20th.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def kill_session(leader: int) -> None:
    """SIGKILL the process group that ``leader`` began, as far as it still exists."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
