"""PostgreSQL from a wheel: its data folder, and the user it runs as."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from deploy.local.leash import leashed

SUPERUSER = "app"
_UNPRIVILEGED = "nobody"


def run_as() -> str | None:
    """PostgreSQL refuses to run as root; anybody else runs it as themselves."""
    return _UNPRIVILEGED if os.getuid() == 0 else None


def prepare(folder: Path, binaries: Path) -> None:
    """Make the data folder, the first time; what a killed server left there is kept. Raises ``CalledProcessError``."""
    if (folder / "PG_VERSION").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    if user := run_as():
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    command = [str(binaries / "initdb"), "-D", str(folder), "-U", SUPERUSER, "-A", "trust", "--no-sync"]
    command += ["-E", "UTF8", "--locale=C.UTF-8"]
    subprocess.run(
        leashed(*command, user=run_as()), check=True, capture_output=True, text=True, cwd="/", env={"LANG": "C.UTF-8"}
    )


def server_command(folder: Path, binaries: Path, port: int, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """In the foreground, as a child that its supervisor sees die; ``pg_ctl`` would hide it."""
    settings = (
        "listen_addresses=127.0.0.1",
        f"port={port}",
        "unix_socket_directories=",
        "wal_level=logical",
        "shared_buffers=32MB",
        "max_connections=200",
        # A killed process loses nothing without it (the kernel has the pages); only a machine's crash would.
        "fsync=off",
        *options,
    )
    return (str(binaries / "postgres"), "-D", str(folder), *(part for one in settings for part in ("-c", one)))


def query(binaries: Path, port: int, sql: str, database: str = "postgres") -> str:
    """Run one statement and return its unaligned answer. Raises ``CalledProcessError``, ``TimeoutExpired``."""
    command = [str(binaries / "psql"), "-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER]
    command += ["-d", database, "-v", "ON_ERROR_STOP=1", "-c", sql]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30, env={"PGCONNECT_TIMEOUT": "5"}
    )
    return ended.stdout.strip()


def answers(binaries: Path, port: int) -> bool:
    command = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "2"]
    return subprocess.run(command, capture_output=True, env={}).returncode == 0


def ensure_database(binaries: Path, port: int, name: str) -> None:
    """Create the database unless it is there. Raises ``CalledProcessError``."""
    if query(binaries, port, f"SELECT 1 FROM pg_database WHERE datname = '{name}'") != "1":
        query(binaries, port, f'CREATE DATABASE "{name}"')
