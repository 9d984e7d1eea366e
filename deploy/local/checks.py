"""``./deploy/local/test``: everything that CI runs, step by step, with the time that each took.

unit            no servers: style, types, imports, unit tests; under a minute
(nothing)       what CI runs: also locks, integration and end-to-end tests on one stack, and the demo
full            the same with the large counts
ARGUMENTS       pytest's own, e.g. tests/integration/test_stack.py -k loopback
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local import preflight
from deploy.local.install import Uv, boot_binaries
from deploy.local.places import CHECKOUT, HERE, cache_home

_SERVER_TESTS = ("tests/contract", "tests/integration", "tests/e2e", "tests/faults", "tests/lake", "tests/deploy")
_EXTRAS_OF_SPARK = frozenset({"delta-loader"})
"""Left out of ``requirements.lock``: half a gigabyte that servers, bench and a demo without Spark don't need."""
IMAGE_LOCKS = CHECKOUT / "deploy" / "images" / "locks"
_SUMMARY = re.compile(
    r"^(=+ )?\d+ (passed|failed|skipped|error|deselected|xfailed).* in [\d.]+s.*$|^=* ?no tests ran.*$"
)
_COMPILE = ("pip", "compile", "-q", "--universal", "--generate-hashes", "--no-header", "--python-version", "3.11")


@dataclass(frozen=True)
class Outcome:
    step: str
    passed: bool
    seconds: float
    summary: str = ""


@dataclass(frozen=True)
class Step:
    name: str
    run: Callable[[], tuple[bool, str]]
    """Passed, and pytest's last line if it was pytest, with what it couldn't run on this machine."""


def main(arguments: Sequence[str]) -> int:
    mode = arguments[0] if arguments and arguments[0] in ("unit", "full") else ""
    if arguments and not mode:
        return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=CHECKOUT)
    if mode == "full":
        os.environ["TIDEMARK_TEST_FULL"] = "1"
    if mode != "unit" and (lacking := preflight.missing_for_tests()):
        print("some tests lack their programs:", ", ".join(one.what for one in lacking))
        print(f"install with (Debian, Ubuntu): {preflight.command(lacking)}", flush=True)
    outcomes = [_timed(step) for step in (_unit_steps() if mode == "unit" else _all_steps())]
    return _conclude(outcomes)


def _unit_steps() -> list[Step]:
    tools = {name: _tool(name) for name in ("ruff", "lint-imports", "mypy")}
    return [
        Step("ruff", lambda: _quiet(tools["ruff"], "check", "--quiet", ".")),
        Step("format", lambda: _quiet(tools["ruff"], "format", "--quiet", "--check", ".")),
        Step("imports", lambda: _quiet(tools["lint-imports"])),
        Step("types", lambda: _quiet(tools["mypy"])),
        Step("unit tests", lambda: _pytest("tests/unit")),
    ]


def _all_steps() -> list[Step]:
    folders = [folder for folder in _SERVER_TESTS if any((CHECKOUT / folder).rglob("test_*.py"))]
    judged = ["--dashboards", "require"] if shutil.which("prometheus") else []
    return [
        *_unit_steps(),
        Step("locks", _locks_are_in_step),
        Step("server tests", lambda: _pytest(*folders)),
        Step("demo", lambda: (_shown([str(HERE / "demo"), "--plain", "--seconds", "30", *judged])[0] == 0, "")),
    ]


def _tool(name: str) -> str:
    """A program of the environment that runs this."""
    return str(Path(sys.executable).parent / name)


def _timed(step: Step) -> Outcome:
    print(f"── {step.name}", flush=True)
    began = time.monotonic()
    passed, summary = step.run()
    return Outcome(step.name, passed, time.monotonic() - began, summary)


def _quiet(*command: str) -> tuple[bool, str]:
    """Output only when it fails."""
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if ended.returncode:
        print(ended.stdout + ended.stderr, flush=True)
    return ended.returncode == 0, ""


def _pytest(*folders: str) -> tuple[bool, str]:
    colour = "yes" if sys.stdout.isatty() else "no"
    command = [sys.executable, "-m", "pytest", f"--color={colour}", "--durations=5", "--durations-min=3", *folders]
    exit_code, last_output = _shown(command)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in last_output.splitlines()]
    summary = next((line for line in reversed(lines) if _SUMMARY.match(line)), "(pytest gave no summary)")
    return exit_code == 0, "\n".join([summary, *(line for line in lines if line.startswith("not run here: "))])


def _shown(command: list[str]) -> tuple[int, str]:
    """Run, pass its output on as it comes, and return its exit code and the end of that output."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    last = b""
    with subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        assert running.stdout
        while chunk := os.read(running.stdout.fileno(), 64 * 1024):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            last = (last + chunk)[-64 * 1024 :]
    return running.returncode, last.decode(errors="replace")


def _locks_are_in_step() -> tuple[bool, str]:
    """Compile the locks again, keeping the versions in them: newer releases change nothing, a changed input does."""
    uv = Uv(cache_home(), boot_binaries())
    results = [
        _lock_is_in_step(uv, CHECKOUT / "requirements.lock", "pyproject.toml", *_light_extras(), "--group", "dev"),
        _lock_is_in_step(uv, CHECKOUT / "requirements-spark.lock", "pyproject.toml", "--all-extras", "--group", "dev"),
        _lock_is_in_step(uv, HERE / "requirements.lock", "deploy/local/requirements.in"),
        _lock_is_in_step(uv, HERE / "tools.lock", "deploy/local/tools.in"),
        *_image_locks(uv),
    ]
    return all(results), ""


def _image_locks(uv: Uv) -> list[bool]:
    """One per extra, at the versions that the tests run with, and what else an image is built from."""
    constrained = ("pyproject.toml", "-c", "requirements-spark.lock")
    found = [_lock_is_in_step(uv, IMAGE_LOCKS / f"{one}.lock", *constrained, "--extra", one) for one in _extras()]
    alone = sorted(IMAGE_LOCKS.glob("*.in"))
    return [*found, *(_lock_is_in_step(uv, one.with_suffix(".lock"), str(one.relative_to(CHECKOUT))) for one in alone)]


def _light_extras() -> list[str]:
    """uv takes all extras, or named ones."""
    return [part for extra in _extras() if extra not in _EXTRAS_OF_SPARK for part in ("--extra", extra)]


def _extras() -> list[str]:
    return list(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def _lock_is_in_step(uv: Uv, lock: Path, *source: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        again, log = Path(folder) / lock.name, Path(folder) / "log"
        shutil.copy(lock, again)
        command = (*_COMPILE, "-o", str(again), *source)
        try:
            uv.run(log, *command, cwd=CHECKOUT)
        except subprocess.CalledProcessError:
            print(log.read_text())
            return False
        if again.read_text() == lock.read_text():
            return True
    name = lock.relative_to(CHECKOUT)
    print(f"{name} isn't what its input gives; renew it with: uv {' '.join((*_COMPILE, '-o', str(name), *source))}")
    return False


def _conclude(outcomes: Sequence[Outcome]) -> int:
    passed = all(one.passed for one in outcomes)
    print()
    for one in [*outcomes, Outcome("all", passed, sum(one.seconds for one in outcomes))]:
        print(f"  {one.step:<14} {'ok' if one.passed else 'FAILED':<7} {one.seconds:7.1f} s")
    print()
    for one in outcomes:
        if one.summary:
            print(one.summary)
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
