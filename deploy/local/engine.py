"""An engine for containers of our own: Debian's dockerd with its own folder, socket and processes, gone without trace.

It meets no other engine of the machine: it sets no firewall rules and makes no default bridge; its process, its
containers and mounts live in namespaces of their own, which the kernel takes down whole when it, or its owner, ends.
Containers reach each other and loopback's published ports, nothing outside; builds ask for the host's network.

    python -m deploy.local.engine NAME [BASE]     # until Ctrl-C; prints what a shell must export to use it
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.install import install
from deploy.local.leash import leashed
from deploy.local.places import cache_home, own_folder, run_home
from deploy.local.preflight import CONTAINER_PROGRAMS, SYSTEM_PATH, packages_without
from deploy.local.records import release, take
from deploy.local.supervision import tail

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_READY_S_MAX, _STOP_S_MAX = 60.0, 30.0
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class EngineFailed(Exception):
    """The message has the engine's last lines."""


@dataclass(frozen=True)
class Engine:
    folder: Path
    compose_program: Path

    @property
    def env(self) -> dict[str, str]:
        """For docker and docker-compose: this engine, its classic builder, nothing of the user's own settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        return kept | {
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "0",
            "ENGINE_BRIDGE": self.bridge,
        }

    @property
    def bridge(self) -> str:
        """Its network's device on this machine, 15 letters at most; tests/e2e/compose.ci.yaml names it so."""
        return f"tm-{self.folder.name}"[:15]

    @property
    def log(self) -> Path:
        return self.folder / "dockerd.log"

    def docker(self, *arguments: str, within_s: float = 60.0) -> str:
        """What the command printed. Raises ``CalledProcessError`` with its stderr, ``TimeoutExpired``."""
        command = ["docker", *arguments]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, env=self.env, timeout=within_s)
        return ended.stdout.strip()


def impossible() -> str:
    """Why nobody could have containers here, for a person; "" if it takes no more than packages."""
    if os.getuid() != 0:
        return "needs root"
    status = Path("/proc/self/status").read_text()
    held = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    if not (held >> _CAP_SYS_ADMIN & 1 and held >> _CAP_NET_ADMIN & 1):
        return "root here lacks the capabilities SYS_ADMIN and NET_ADMIN"
    return ""


def why_not() -> str:
    """Why containers can't be had now; "" if they can."""
    packages = packages_without(CONTAINER_PROGRAMS)
    return impossible() or (f"not installed: {' '.join(packages)}" if packages else "")


@contextmanager
def running(name: str, report: Callable[[str], None] = print) -> Iterator[Engine]:
    """An engine with nothing in it, gone at the end with all that was made in it. Raises ``EngineFailed``,
    ``StackTaken``."""
    if reason := why_not():
        raise EngineFailed(f"no containers here: {reason}")
    tools = install(report, tools=True).tools
    own_folder(run_home())
    stack = f"{name}-engine"
    with ExitStack() as undo:
        lock = take(stack)
        undo.callback(release, lock, stack)
        one = Engine(run_home() / stack, tools / "docker-compose")
        _clear(one)
        own_folder(one.folder)
        undo.callback(_clear, one)
        undo.enter_context(_bridge_passes(one.bridge))
        _start(one, undo)
        yield one


def _start(one: Engine, undo: ExitStack) -> None:
    """overlay2, else vfs, which any file system can do, five times the space."""
    said = ""
    for driver in ("overlay2", "vfs"):
        daemon = _spawn(one, driver)
        if _is_ready(one, daemon):
            undo.callback(_stop, daemon)
            return
        _stop(daemon)
        said = tail(one.log, 15)
    raise EngineFailed(f"dockerd didn't start:\n{said}")


def _spawn(one: Engine, driver: str) -> "subprocess.Popen[bytes]":
    # Its namespace's first process, so that its end is that of every container; it reaps what they leave.
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "docker-init", "--")
    daemon = (
        *("dockerd", f"--storage-driver={driver}", f"--host=unix://{one.folder / 'docker.sock'}"),
        *(f"--data-root={one.folder / 'data'}", f"--exec-root={one.folder / 'exec'}"),
        *(f"--pidfile={one.folder / 'pid'}", "--bridge=none", "--iptables=false", "--ip-masq=false"),
        *("--ip-forward=false", "--log-level=warn", "--shutdown-timeout=5", f"--cgroup-parent=/{one.folder.name}"),
        # Debian's own service may have a file that says where its data lie.
        f"--config-file={one.folder / 'daemon.json'}",
    )
    (one.folder / "daemon.json").write_text("{}")
    with one.log.open("ab") as log:
        return subprocess.Popen(
            leashed(*namespaces, *daemon),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "HOME": str(one.folder)},
            start_new_session=True,
        )


def _is_ready(one: Engine, daemon: "subprocess.Popen[bytes]") -> bool:
    """False when it ended, or is silent for too long."""
    deadline = time.monotonic() + _READY_S_MAX
    while daemon.poll() is None and time.monotonic() < deadline:
        try:
            one.docker("version", within_s=10)
            return True
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            time.sleep(0.1)
    return False


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to dockerd, which stops its containers; then the end of its namespace, whatever is left in it."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    if daemon.poll() is None:
        for first in children.read_text().split():
            os.kill(int(first), signal.SIGTERM)  # docker-init hands it on
    try:
        daemon.wait(_STOP_S_MAX)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


@contextmanager
def _bridge_passes(device: str) -> Iterator[None]:
    """Where bridged packets pass the firewall, another engine's policy drops them: one rule for our device."""
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not setting.exists() or setting.read_text().strip() != "1":
        yield
        return
    subprocess.run(["iptables", "-w", "-I", *_rule(device)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-w", "-D", *_rule(device)], check=True, capture_output=True)


def _rule(device: str) -> tuple[str, ...]:
    return ("FORWARD", "-i", device, "-o", device, "-j", "ACCEPT")


def _clear(one: Engine) -> None:
    """What an engine left: its folder, and after a kill its rule, its device and the empty groups of its containers."""
    if one.folder.exists():
        shutil.rmtree(one.folder)
    if Path(f"/sys/class/net/{one.bridge}").exists():
        subprocess.run(["ip", "link", "delete", one.bridge], check=True, capture_output=True)
    while subprocess.run(["iptables", "-w", "-D", *_rule(one.bridge)], capture_output=True).returncode == 0:
        pass  # one for each killed owner
    for group in Path("/sys/fs/cgroup").glob(f"**/{one.folder.name}"):
        for inner in sorted((inner for inner in group.rglob("*") if inner.is_dir()), reverse=True):
            inner.rmdir()
        group.rmdir()


def import_base(one: Engine, name: str) -> None:
    """Debian 13 with Python and this machine's certificates, under the name that a Dockerfile says in FROM. Its tar is
    kept in the cache for a week. Raises ``CalledProcessError``."""
    base = cache_home() / "container-base.tar"
    if not base.exists() or time.time() - base.stat().st_mtime > 7 * 24 * 3600:
        _make_base(base)
    settings = (f"ENV PATH={SYSTEM_PATH}", f"ENV PIP_CERT={_CERTIFICATES}", f"ENV SSL_CERT_FILE={_CERTIFICATES}")
    changes = [part for setting in settings for part in ("--change", setting)]
    one.docker("import", *changes, str(base), name, within_s=120)


def _make_base(target: Path) -> None:
    """With this machine's certificates: where HTTPS ends at a proxy of its owner's, pip in a build needs them."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"]
        command += [f"--customize-hook=copy-in {_CERTIFICATES} {_CERTIFICATES.parent}"]
        command += ['--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/python"', "trixie", str(unfinished)]
        subprocess.run(leashed(*command), check=True, capture_output=True, text=True, timeout=300)
        unfinished.rename(target)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    name, *bases = arguments
    with running(name) as one:
        for base in bases:
            import_base(one, base)
        for variable in ("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_BUILDKIT", "ENGINE_BRIDGE"):
            print(f"export {variable}={one.env[variable]}", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except EngineFailed as error:
        sys.exit(str(error))
