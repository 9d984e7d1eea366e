"""The life of a service: start, stop on a signal, drain, leave with an exit code that says which it was.

| code | meaning |
|---|---|
| 0 | stopped and drained, or finished by itself |
| 1 | an unexpected exception (one ERROR log line, ``service_failed``) |
| 2 | the configuration was refused |
| 3 | not drained within ``drain_s``: what was in flight was cancelled |
| 4 | a second signal: cancelled at once |
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from shared import logs, metrics
from shared.config import ConfigError, LogSettings

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_NOT_DRAINED = 3
EXIT_SECOND_SIGNAL = 4

WATCH_INTERVAL_S = 0.25
STALL_WARNING_S = 1.0
CANCEL_S = 5.0
"""How long cancelled work may take to clean up before the process leaves without it."""

log = logs.get_logger(__name__)


class Pulse:
    """Says whether something turned lately. Its owner calls ``beat``; liveness asks ``is_late``."""

    def __init__(self, late_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.late_after_s = late_after_s
        self._clock = clock
        self._beaten_s = clock()

    def beat(self) -> None:
        self._beaten_s = self._clock()

    @property
    def is_late(self) -> bool:
        return self._clock() - self._beaten_s > self.late_after_s


class Stop:
    """Set once, with a reason; every wait of a service wakes on it."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.pulse = Pulse(late_after_s=30.0)
        """The event loop's own; ``run`` beats it."""
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str) -> None:
        """Ask everything to finish. The first reason stands."""
        if self.reason is None:
            self.reason = reason
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True as soon as the stop is set, false after ``timeout_s`` seconds (``None``: wait for the stop)."""
        if timeout_s is not None and timeout_s <= 0:
            await asyncio.sleep(0)
            return self.is_set
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        return self.is_set


def run(
    service: str,
    main: Callable[[Stop], Awaitable[None]],
    *,
    drain_s: float = 20.0,
    log_settings: LogSettings | None = None,
) -> int:
    """Run ``main(stop)`` until it returns; give the exit code (see the module).

    SIGTERM and SIGINT set ``stop``: ``main`` then takes nothing new, finishes what it holds and returns. After
    ``drain_s`` seconds, or on a second signal, it is cancelled. Resources belong into ``main``'s own exit stack.
    """
    settings = log_settings or LogSettings()
    logs.configure(service, level=settings.level, format=settings.format)
    metrics.started(service)
    hard_stop = _HardStop()
    try:
        with asyncio.Runner() as runner:
            return runner.run(_supervise(service, main, drain_s, hard_stop))
    finally:
        hard_stop.disarm()


def refused(service: str, error: ConfigError) -> int:
    """Say on stderr what is wrong with the configuration, all of it; give the exit code."""
    count = len(error.problems)
    print(f"{service}: not started, {count} problem{'s' if count > 1 else ''} in the configuration", file=sys.stderr)  # noqa: T201 (before logs exist)
    for problem in error.problems:
        print(f"  {problem}", file=sys.stderr)  # noqa: T201
    return EXIT_CONFIG


class _HardStop:
    """Leaves the process when even cancelled work does not end: a thread, since the loop may be what hangs."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def arm(self, after_s: float, exit_code: int) -> None:
        self.disarm()
        self._timer = threading.Timer(after_s, os._exit, (exit_code,))
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def _supervise(
    service: str, main: Callable[[Stop], Awaitable[None]], drain_s: float, hard_stop: _HardStop
) -> int:
    stop = Stop()
    second_signal = asyncio.Event()
    _listen(stop, second_signal, drain_s)
    watch = asyncio.create_task(_watch_loop(stop.pulse), name="loop-watchdog")
    work = asyncio.create_task(_awaited(main, stop), name=service)
    log.info("service_started", pid=os.getpid())
    try:
        exit_code = await _until_drained(work, stop, second_signal, drain_s, hard_stop)
        if exit_code == EXIT_OK:
            exit_code = _outcome(work)
        log.info("service_stopped", reason=stop.reason or "finished", exit_code=exit_code)
        return exit_code
    finally:
        watch.cancel()
        # Closing the loop waits for its threads, without a bound on Python 3.11.
        hard_stop.arm(2 * CANCEL_S, EXIT_NOT_DRAINED)


async def _awaited(main: Callable[[Stop], Awaitable[None]], stop: Stop) -> None:
    await main(stop)


async def _until_drained(
    work: asyncio.Task[None], stop: Stop, second_signal: asyncio.Event, drain_s: float, hard_stop: _HardStop
) -> int:
    """0: the work ended by itself. Else it was cancelled, and the code says why."""
    stopped = asyncio.create_task(stop.wait(), name="stop-wait")
    again = asyncio.create_task(second_signal.wait(), name="second-signal-wait")
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            hard_stop.arm(drain_s + 2 * CANCEL_S, EXIT_NOT_DRAINED)
            await asyncio.wait({work, again}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return EXIT_OK
        exit_code = EXIT_SECOND_SIGNAL if second_signal.is_set() else EXIT_NOT_DRAINED
        log.error("drain_cut_short", reason="second signal" if second_signal.is_set() else "drain_s is over")
        hard_stop.arm(2 * CANCEL_S, exit_code)
        work.cancel()
        await asyncio.wait({work}, timeout=CANCEL_S)
        return exit_code
    finally:
        stopped.cancel()
        again.cancel()


def _outcome(work: asyncio.Task[None]) -> int:
    if work.cancelled():
        log.error("service_failed", error="CancelledError")
        return EXIT_FAILED
    error = work.exception()
    if error is None:
        return EXIT_OK
    if isinstance(error, ConfigError):
        log.error("configuration_refused", problems=error.problems)
        return EXIT_CONFIG
    log.error("service_failed", error=type(error).__name__, exc_info=error)
    return EXIT_FAILED


def _listen(stop: Stop, second_signal: asyncio.Event, drain_s: float) -> None:
    def heard(name: str) -> None:
        if stop.is_set:
            second_signal.set()
        stop.set(name)
        log.info("service_stopping", signal=name, drain_s=drain_s)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number.name)


async def _watch_loop(pulse: Pulse) -> None:
    """Measure how late the loop wakes a timer: whatever blocks it delays every lease, deadline and probe."""
    while True:
        due_s = time.monotonic() + WATCH_INTERVAL_S
        await asyncio.sleep(WATCH_INTERVAL_S)
        late_s = max(0.0, time.monotonic() - due_s)
        metrics.LOOP_STALL_S.observe(late_s)
        pulse.beat()
        if late_s > STALL_WARNING_S:
            log.warning("loop_stalled", seconds=round(late_s, 3))
