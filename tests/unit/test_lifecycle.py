"""A service drains on the first signal, is cancelled when it can't, and its exit code says which it was."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared import lifecycle
from shared.config import ConfigError, LogSettings
from shared.lifecycle import Pulse, Stop

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a service in this process; give its exit code and its log lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run_service(main: Callable[[Stop], Awaitable[None]], drain_s: float = 20.0) -> tuple[int, list[dict[str, Any]]]:
        code = lifecycle.run("test", main, drain_s=drain_s, log_settings=LogSettings(format="json"))
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield run_service
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def events(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_a_drained_service_exits_0(run: Run, number: signal.Signals) -> None:
    reasons: list[str | None] = []

    async def main(stop: Stop) -> None:
        signal.raise_signal(number)
        await stop.wait()
        reasons.append(stop.reason)

    code, lines = run(main)

    assert code == 0
    assert reasons == [number.name]
    assert events(lines) == ["service_started", "service_stopping", "service_stopped"]


def test_what_is_not_drained_in_time_is_cancelled_cleaned_up_and_exits_3(run: Run) -> None:
    cleaned: list[str] = []

    async def main(stop: Stop) -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    code, lines = run(main, drain_s=0.01)

    assert (code, cleaned) == (3, ["up"])
    assert "drain_cut_short" in events(lines)


def test_a_second_signal_cancels_at_once_and_exits_4(run: Run) -> None:
    async def main(stop: Stop) -> None:
        signal.raise_signal(signal.SIGTERM)
        await stop.wait()
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    assert run(main, drain_s=3600)[0] == 4


def test_an_unexpected_exception_is_one_error_line_and_exits_1(run: Run) -> None:
    async def main(stop: Stop) -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    code, lines = run(main)
    errors = [line for line in lines if line["level"] == "error"]

    assert code == 1
    assert events(errors) == ["service_failed"]
    assert errors[0]["error"] == "KeyError"
    assert errors[0]["exception"]


def test_an_exception_while_draining_is_not_taken_for_drained(run: Run) -> None:
    async def main(stop: Stop) -> None:
        signal.raise_signal(signal.SIGTERM)
        await stop.wait()
        raise OSError("flush failed")

    assert run(main)[0] == 1


def test_a_refused_configuration_exits_2(run: Run) -> None:
    async def main(stop: Stop) -> None:
        raise ConfigError(["a.yaml:3: wrong"])

    code, lines = run(main)

    assert code == 2
    assert lines[1]["problems"] == ["a.yaml:3: wrong"]


def test_a_service_that_finishes_by_itself_exits_0(run: Run) -> None:
    async def main(stop: Stop) -> None:
        await asyncio.sleep(0)

    assert run(main)[0] == 0


def test_a_service_may_stop_itself(run: Run) -> None:
    async def main(stop: Stop) -> None:
        stop.set("nothing left to do")
        await stop.wait()

    code, lines = run(main)

    assert (code, lines[-1]["reason"]) == (0, "nothing left to do")


def test_a_blocked_loop_is_measured_and_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "STALL_WARNING_S", 0.01)
    monkeypatch.setattr(lifecycle, "WATCH_INTERVAL_S", 0.0)

    async def main(stop: Stop) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251 (blocking the loop is what this test is about)
        for _ in range(3):
            await asyncio.sleep(0)

    assert "loop_stalled" in events(run(main)[1])


STUCK = {
    "work that ignores its cancellation": """
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
    """,
    "a thread that never ends": """
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        await stop.wait()
    """,
}


@pytest.mark.parametrize("body", STUCK.values(), ids=STUCK.keys())
def test_nothing_can_hold_the_process(body: str) -> None:
    code = "import asyncio, signal, sys, threading\nfrom shared import lifecycle\nlifecycle.CANCEL_S = 0.05\n"
    code += "async def main(stop):\n    signal.raise_signal(signal.SIGTERM)\n"
    code += textwrap.indent(textwrap.dedent(body), "    ")
    code += "\nsys.exit(lifecycle.run('test', main, drain_s=0.01))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=20, check=False)

    assert finished.returncode == 3


def test_all_configuration_problems_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert lifecycle.refused("s3-sink", ConfigError(["A: x", "B: y"])) == 2
    assert capsys.readouterr().err == "s3-sink: not started, 2 problems in the configuration\n  A: x\n  B: y\n"


async def test_a_wait_wakes_on_stop_and_times_out_without() -> None:
    stop = Stop()
    assert not await stop.wait(0.001)
    assert not await stop.wait(0)

    waiting = asyncio.create_task(stop.wait(3600))
    await asyncio.sleep(0)
    stop.set("first")
    stop.set("second")

    assert await waiting
    assert await stop.wait(0)
    assert (stop.is_set, stop.reason) == (True, "first")


async def test_a_cancelled_wait_stays_cancelled() -> None:
    waiting = asyncio.create_task(Stop().wait(3600))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_pulse_is_late_only_after_its_time() -> None:
    now = [0.0]
    pulse = Pulse(late_after_s=30, clock=lambda: now[0])
    now[0] = 30.0
    assert not pulse.is_late

    now[0] = 30.1
    assert pulse.is_late

    pulse.beat()
    assert not pulse.is_late
