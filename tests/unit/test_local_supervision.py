"""The owner of child processes, on children that cost nothing: shells."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.processes import Process
from deploy.local.records import end_recorded, write_state
from deploy.local.supervision import StackFailed, Supervision, started_ticks

_ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def owner(tmp_path: Path, said: list[str]) -> Iterator[Supervision]:
    owner = Supervision(tmp_path / "logs", said.append, lambda: None)
    yield owner
    owner.end_all(list(owner.children), lambda _: signal.SIGKILL)


def shell(name: str, script: str, **row: object) -> Process:
    return Process(name=name, command=("/bin/sh", "-c", script), **row)  # type: ignore[arg-type]


def eventually(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_dies_unasked_is_reported_with_its_last_lines(owner: Supervision, said: list[str]) -> None:
    owner.start(shell("sink", "echo first; echo out of memory; exit 7"), _ENV)

    eventually(lambda: said)

    assert "sink ended with exit code 7, unasked" in said[0]
    assert said[0].endswith("    first\n    out of memory")
    assert [death.name for death in owner.deaths] == ["sink"]


def test_an_end_that_was_asked_for_is_no_death(owner: Supervision, said: list[str]) -> None:
    owner.start(shell("sink", "exec sleep 60"), _ENV)

    exit_code = owner.end("sink", signal.SIGTERM, within_s=5)

    assert exit_code == -signal.SIGTERM
    assert owner.deaths == []
    assert said == []


def test_a_process_meant_to_end_by_itself_may_but_only_with_exit_code_0(owner: Supervision) -> None:
    owner.start(shell("writer", "exit 0", ends_itself=True), _ENV)
    owner.start(shell("broken-writer", "exit 1", ends_itself=True), _ENV)

    eventually(lambda: owner.deaths and not owner.is_running("writer"))

    assert [death.name for death in owner.deaths] == ["broken-writer"]


def test_a_process_deaf_to_the_stop_signal_is_killed_with_all_that_it_started(
    owner: Supervision, tmp_path: Path, said: list[str]
) -> None:
    grandchild = tmp_path / "pid"
    script = f"trap '' TERM; sleep 60 & echo $! >{grandchild}.new; mv {grandchild}.new {grandchild}; wait; wait"
    owner.start(shell("deaf", script, ready=grandchild.exists), _ENV)

    exit_code = owner.end("deaf", signal.SIGTERM, within_s=0.2)

    assert exit_code == -signal.SIGKILL
    assert "deaf didn't end" in said[0]
    eventually(lambda: started_ticks(int(grandchild.read_text())) is None)


def test_a_frozen_process_can_be_ended(owner: Supervision) -> None:
    owner.start(shell("frozen", "exec sleep 60"), _ENV)
    owner.children["frozen"].running.send_signal(signal.SIGSTOP)

    assert owner.end("frozen", signal.SIGTERM, within_s=5) == -signal.SIGTERM


def test_children_are_in_sessions_of_their_own_so_that_ctrl_c_reaches_the_owner_alone(owner: Supervision) -> None:
    owner.start(shell("sink", "exec sleep 60"), _ENV)
    pid = owner.children["sink"].running.pid

    assert os.getsid(pid) == pid != os.getsid(0)


def test_children_die_when_their_owner_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from deploy.local.processes import Process; from deploy.local.supervision import Supervision\n"
        "owner = Supervision(Path(sys.argv[1]), print, lambda: None)\n"
        "owner.start(Process('sink', ('/bin/sleep', '60')), {})\n"
        "print(owner.children['sink'].running.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        child = int(owner.stdout.readline())
        eventually(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes()[:12])

        owner.kill()

    eventually(lambda: started_ticks(child) is None)


def test_a_process_that_ends_before_it_is_ready_is_told_with_its_last_lines(owner: Supervision) -> None:
    with pytest.raises(StackFailed, match="ended before it was ready:\n    no such port"):
        owner.start(shell("kafka", "echo no such port; exit 1", ready=lambda: False), _ENV)


def test_a_process_that_never_gets_ready_is_given_up(owner: Supervision) -> None:
    with pytest.raises(StackFailed, match="not ready after"):
        owner.start(shell("kafka", "exec sleep 60", ready=lambda: False, ready_s_max=0.1), _ENV)


def test_a_process_starts_only_when_those_that_it_needs_are_ready(owner: Supervision, tmp_path: Path) -> None:
    database = tmp_path / "database"
    slow = shell("postgres", f"sleep 0.3; touch {database}; exec sleep 60", ready=database.exists)
    needy = shell("registry", f"test -e {database} && exec sleep 60", needs=("postgres",))

    owner.start_all([slow, needy], _ENV, at_once=2)

    assert owner.is_running("registry")
    assert owner.deaths == []


def test_one_that_fails_to_start_fails_the_start_of_all(owner: Supervision) -> None:
    broken = shell("postgres", "exit 1", ready=lambda: False)
    needy = shell("registry", "exec sleep 60", needs=("postgres",))

    with pytest.raises(StackFailed, match="postgres ended before it was ready"):
        owner.start_all([broken, needy], _ENV, at_once=1)

    assert not owner.is_running("registry")


def test_one_that_fails_calls_off_those_that_are_still_starting(owner: Supervision) -> None:
    slow = shell("kafka", "exec sleep 60", ready=lambda: False)
    broken = shell("postgres", "exit 1", ready=lambda: False)
    began = time.monotonic()

    with pytest.raises(StackFailed, match="postgres ended before it was ready"):
        owner.start_all([slow, broken], _ENV, at_once=2)

    assert time.monotonic() - began < 10


def test_a_second_start_of_a_running_process_is_refused(owner: Supervision) -> None:
    process = shell("sink", "exec sleep 60")
    owner.start(process, _ENV)

    with pytest.raises(StackFailed, match="running already"):
        owner.start(process, _ENV)


def test_leftovers_are_ended_but_never_a_stranger_with_the_same_pid(owner: Supervision, tmp_path: Path) -> None:
    for name in ("leftover", "stranger"):
        owner.start(shell(name, "exec sleep 60"), _ENV)
    pids = {name: owner.children[name].running.pid for name in ("leftover", "stranger")}
    recorded = {name: {"pid": pid, "started": started_ticks(pid)} for name, pid in pids.items()}
    recorded["stranger"]["started"] = 1
    write_state(tmp_path, {"processes": recorded})

    end_recorded(tmp_path)

    eventually(lambda: not owner.is_running("leftover"))
    assert owner.is_running("stranger")
