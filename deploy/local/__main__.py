"""``./deploy/local/stack``: bring a stack up, look at it, take it down."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.local import preflight
from deploy.local.install import InstallFailed, install
from deploy.local.places import CHECKOUT, own_folder, run_home
from deploy.local.records import is_owned, output_file, recorded_state, remove
from deploy.local.supervision import StackFailed, started_ticks, tail

_UP_S_MAX, _DOWN_S_MAX = 300.0, 90.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./deploy/local/stack", description="Bring a stack of servers up, look at it, take it down."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down|status|logs|env")
    for name, (run, help_text) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        command.set_defaults(run=run)
        command.add_argument("name", metavar="NAME", help="the stack's name; any number run side by side")
        if name == "logs":
            command.add_argument(
                "process",
                nargs="?",
                help="one process, or `stack` for the owner of all; without it, the last lines of each",
            )
            command.add_argument("-n", "--lines", type=int, default=20)
            command.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C (one process)")
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except (InstallFailed, preflight.NotReady) as error:
        print(error, file=sys.stderr)
        return 3
    except StackFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def up(arguments: argparse.Namespace) -> int:
    name = arguments.name
    if is_owned(name):
        print(f"stack {name} is up already")
        return status(arguments)
    install()
    own_folder(run_home())
    output = output_file(name)
    with output.open("wb") as said:
        owner = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.background", name],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _follow_up(name, owner, output)
    except KeyboardInterrupt:
        owner.terminate()
        raise


def _follow_up(name: str, owner: subprocess.Popen[bytes], output: Path) -> int:
    """Show what the background process says until the stack is up or has failed."""
    deadline = time.monotonic() + _UP_S_MAX
    with output.open() as said:
        while True:
            ended = owner.poll() is not None
            state = recorded_state(run_home() / name)
            is_up = bool(state and state["phase"] == "up" and state["owner"]["pid"] == owner.pid)
            print(said.read(), end="", flush=True)
            if is_up or ended:
                break
            if time.monotonic() > deadline:
                owner.terminate()
                print(f"stack {name} isn't up after {_UP_S_MAX:.0f} s; taken down", file=sys.stderr)
                return 1
            time.sleep(0.2)
    if is_up:
        print(f'look around with:  eval "$(./deploy/local/stack env {name})"')
    return 0 if is_up else 1


def down(arguments: argparse.Namespace) -> int:
    name = arguments.name
    state = recorded_state(run_home() / name)
    if not state:
        remove(name)
        print(f"no stack {name}")
        return 0
    owner = state["owner"]
    if started_ticks(owner["pid"]) == owner["started"]:
        os.kill(owner["pid"], signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_S_MAX
        while started_ticks(owner["pid"]) == owner["started"]:
            if time.monotonic() > deadline:
                os.kill(owner["pid"], signal.SIGKILL)
            time.sleep(0.1)
    remove(name)
    print(f"stack {name} is down, its state deleted")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """0 only when everything runs."""
    state = recorded_state(run_home() / arguments.name)
    if not state:
        print(f"no stack {arguments.name}")
        return 1
    owner_lives = started_ticks(state["owner"]["pid"]) == state["owner"]["started"]
    phase = state["phase"] if owner_lives or state["phase"] == "failed" else "its owner is gone"
    print(f"stack {arguments.name}: {phase}")
    rows = [_row(name, child, state["ports"]) for name, child in state["processes"].items()]
    for row in [("process", "state", "port", "pid", "MB", "log"), *rows]:
        print("  {:<12} {:<10} {:>5}  {:>7} {:>5}  {}".format(*row))
    for name, child in state["processes"].items():
        if child["died"]:
            print(f"the last lines of {name}:\n{tail(Path(child['log']), 15)}")
    return 0 if phase == "up" and all(row[1] == "running" for row in rows) else 1


def _row(name: str, child: dict[str, Any], ports: dict[str, int]) -> tuple[str, ...]:
    lives = started_ticks(child["pid"]) == child["started"]
    ended = f"died ({child['exit']})" if child["died"] else "ended"
    pid, memory = (str(child["pid"]), str(_resident_mb(child["pid"]))) if lives else ("", "")
    return name, "running" if lives else ended, str(ports.get(name, "")), pid, memory, child["log"]


def _resident_mb(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def logs(arguments: argparse.Namespace) -> int:
    state = recorded_state(run_home() / arguments.name)
    files = {name: Path(child["log"]) for name, child in state["processes"].items()} if state else {}
    if output_file(arguments.name).exists():
        files["stack"] = output_file(arguments.name)
    wanted = [arguments.process] if arguments.process else list(files)
    if not wanted or wanted[0] not in files:
        print(f"stack {arguments.name} has the logs of: {', '.join(files) or 'nothing'}", file=sys.stderr)
        return 1
    if arguments.follow and arguments.process:
        os.execvp("tail", ["tail", "-n", str(arguments.lines), "-F", str(files[arguments.process])])
    for name in wanted:
        print(f"{name}: {files[name]}")
        print(tail(files[name], arguments.lines))
    return 0


def env(arguments: argparse.Namespace) -> int:
    state = recorded_state(run_home() / arguments.name)
    if not state or state["phase"] != "up":
        print(
            f"no stack {arguments.name} is up; start it with: ./deploy/local/stack up {arguments.name}", file=sys.stderr
        )
        return 1
    for name, value in state["env"].items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


_COMMANDS = {
    "up": (up, "install what's missing and start the servers"),
    "down": (down, "end them and delete their state"),
    "status": (status, "what runs, where; exit code 0 when all does"),
    "logs": (logs, "the last lines of their logs"),
    "env": (env, "export lines with all addresses"),
}

if __name__ == "__main__":
    sys.exit(main())
