"""What a running stack leaves on disk: who owns it, what runs, where. Whoever comes later can see it, or end it."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from deploy.local.places import own_folder, run_home
from deploy.local.supervision import StackFailed, kill_session, started_ticks

_END_S_MAX = 5.0


class StackTaken(StackFailed):
    """Another process owns a stack of that name."""


def output_file(name: str) -> Path:
    """What the background owner of a stack says."""
    return run_home() / f"{name}.out"


def lock_file(name: str) -> Path:
    return run_home() / f"{name}.lock"


def take(name: str) -> IO[str]:
    """The lock of one owner per name, as long as it lives or until it closes this. Raises ``StackTaken``."""
    own_folder(run_home())
    while True:
        lock = lock_file(name).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StackTaken(f"stack {name} is up already; end it with: ./deploy/local/stack down {name}") from None
        if _is_at(lock, name):
            return lock
        lock.close()  # its last owner removed it while we waited at its door


def _is_at(lock: IO[str], name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), lock_file(name).stat())
    except FileNotFoundError:
        return False


def release(lock: IO[str], name: str) -> None:
    """Remove, then unlock: whoever got hold of the removed file looks again."""
    lock_file(name).unlink(missing_ok=True)
    lock.close()


def is_owned(name: str) -> bool:
    """Does a living process own this stack?"""
    state = recorded_state(run_home() / name)
    if not state or state["phase"] == "failed":
        return False
    return bool(started_ticks(state["owner"]["pid"]) == state["owner"]["started"])


def recorded_state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state


def remove(name: str) -> None:
    """End and delete what an owner that is gone has left. Raises ``StackTaken``."""
    lock = take(name)
    end_recorded(run_home() / name)
    shutil.rmtree(run_home() / name, ignore_errors=True)
    output_file(name).unlink(missing_ok=True)
    release(lock, name)


def end_recorded(folder: Path) -> None:
    """Kill the processes that are recorded there, if they still are the ones that were recorded."""
    state = recorded_state(folder)
    children = list(state["processes"].values()) if state else []
    deadline = time.monotonic() + _END_S_MAX
    while left := [child for child in children if started_ticks(child["pid"]) == child["started"]]:
        for child in left:
            kill_session(child["pid"])
        if time.monotonic() > deadline:
            raise StackFailed(f"these of an earlier run don't end: {[child['pid'] for child in left]}")
        time.sleep(0.05)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    written = folder / "state.json.new"
    try:
        written.write_text(json.dumps(state, indent=1))
        os.replace(written, folder / "state.json")
    except FileNotFoundError:  # down has removed the folder while the end of a process is still being told
        return
