"""What the operating system must have before anything is downloaded, all of it in one go."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

JAVA_MIN, MAVEN_MIN = (17,), (3, 8)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where root's programs are, though a user's PATH may leave them out."""
CONTAINER_PROGRAMS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "docker-init": "docker.io",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "unshare": "util-linux",
    "ip": "iproute2",
}
_TEST_PROGRAMS = CONTAINER_PROGRAMS | {"prometheus": "prometheus", "promtool": "prometheus"}


@dataclass(frozen=True)
class Missing:
    what: str
    found: str
    package: str


class NotReady(Exception):
    """The machine lacks something that needs root to install; the message is for the person."""


def check() -> None:
    """Raises ``NotReady`` with the whole list and the one command."""
    if not sys.platform.startswith("linux"):
        raise NotReady(f"The local stack runs on Linux; this is {sys.platform}.")
    if lacking := missing():
        raise NotReady(_message(lacking))


def missing() -> list[Missing]:
    lacking: list[Missing] = []
    version = ".".join(map(str, sys.version_info[:2]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        lacking.append(Missing("Python 3.11, 3.12 or 3.13", version, "python3"))
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        lacking.append(Missing(f"the venv module of Python {version}", "none", f"python{version}-venv"))
    if (javac := _version([tool("javac"), "-version"])) < JAVA_MIN:
        lacking.append(Missing("a JDK, 17 or newer, with javac", _text(javac), "openjdk-17-jdk-headless"))
    if (maven := _version(["mvn", "--version"])) < MAVEN_MIN:
        lacking.append(Missing("Maven 3.8 or newer", _text(maven), "maven"))
    return lacking


def missing_for_tests() -> list[Missing]:
    """What only the tests of what is deployed need: containers, dashboards, alerts; the demo does without."""
    packages = packages_without(_TEST_PROGRAMS)
    return [Missing(f"{package}, for the tests of what is deployed", "none", package) for package in packages]


def packages_without(programs: Mapping[str, str]) -> list[str]:
    """Debian's names of the packages whose programs this machine lacks."""
    return sorted({package for program, package in programs.items() if not shutil.which(program, path=SYSTEM_PATH)})


def tool(name: str) -> str:
    """A program of the JDK: JAVA_HOME's, else the one on PATH."""
    at_home = Path(os.environ.get("JAVA_HOME") or "/nowhere") / "bin" / name
    return str(at_home) if at_home.exists() else name


def _version(command: list[str]) -> tuple[int, ...]:
    """The first version number that the command prints; () when there is none."""
    if not shutil.which(command[0]):
        return ()
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.sub(r"\x1b\[[\d;]*m", "", answer.stdout + answer.stderr)  # Maven colours even a pipe
    number = re.search(r"\d+(\.\d+)*", said)
    return tuple(map(int, number[0].split("."))) if number else ()


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "none"


def _message(lacking: list[Missing]) -> str:
    width = max(len(one.what) for one in lacking)
    lines = [f"  {one.what:<{width}}  found: {one.found}" for one in lacking]
    return "\n".join(["Missing on this machine:", *lines, "Install with (Debian, Ubuntu):", f"  {command(lacking)}"])


def command(lacking: list[Missing]) -> str:
    """What installs them, for a person to type."""
    sudo = "" if os.getuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {' '.join(one.package for one in lacking)}"


if __name__ == "__main__":
    # For .ci/run: what to install, one line.
    print(*(one.package for one in (*missing(), *missing_for_tests())))
