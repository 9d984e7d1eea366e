"""One local stack: five real servers on free loopback ports, and the product's own processes beside them.

with Stack("demo") as stack:                # up on entry, down on exit
    stack.add(Process("poller-1", command=(…), ready=http_answers(…), needs=("kafka",), env={…}))
    stack.start("poller-1")
    stack.kill("kafka"); stack.start("kafka")
    stack.check()                           # raises StackFailed when something died unasked
Stack.attach("dev")                         # a running one of somebody else: uses its servers, never stops them
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from deploy.local import kafka
from deploy.local.install import install
from deploy.local.places import CHECKOUT, Installed, own_folder, run_home
from deploy.local.ports import find_free
from deploy.local.processes import REGISTRY_API, SERVER_PORTS, Process, kafka_broker, postgres_server, servers
from deploy.local.records import end_recorded, recorded_state, release, take, write_state
from deploy.local.supervision import Child, Death, StackFailed, Supervision, started_ticks, tail

__all__ = ["Process", "Stack", "StackFailed"]

_STARTS_AT_ONCE = max(3, os.cpu_count() or 1)
"""Java servers slow each other down on few cores."""
_FOREIGN_PREFIXES = (
    *("AWS_", "TIDEMARK_", "KAFKA_", "QUARKUS_", "APICURIO_", "PG", "LOCALSTACK_"),
    *("SPARK_", "PYSPARK_", "HADOOP_"),
)
"""Settings of the user's own shell that must not reach the stack's processes."""


class Stack:
    """Owned by the process that called ``up``: ends with it, whatever happens to it."""

    def __init__(
        self,
        name: str,
        *,
        report: Callable[[str], None] = print,
        kafka_listeners: Callable[[Callable[[], int]], Sequence[kafka.Listener]] = lambda _: (),
    ) -> None:
        """``kafka_listeners`` is called at up with a function that gives free ports, and returns more ways into the
        broker: e.g. one whose advertised port is a fault proxy's."""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"a stack's name is letters, digits, - and _, not {name!r}")
        self.name = name
        self.folder = run_home() / name
        self._report, self._make_listeners = report, kafka_listeners
        self._listeners: tuple[kafka.Listener, ...] = ()
        self._table: dict[str, Process] = {}
        self._servers: set[str] = set()
        self._ports: dict[str, int] = {}
        self._phase, self._attached = "new", False
        self._lock: IO[str] | None = None
        self._writing = threading.Lock()
        self._at: Installed | None = None
        self._own = Supervision(self.folder / "logs", report, self._record)

    # Up and down

    def up(self) -> None:
        """Install what's missing, end what a killed owner left, start all servers. Raises ``StackFailed``."""
        self._at = install(self._report)
        self._lock = take(self.name)
        began = time.monotonic()
        self._own = Supervision(self.folder / "logs", self._report, self._record)
        try:
            end_recorded(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            own_folder(self.folder)
            self._choose_ports()
            table = servers(self.folder, self._at, self._ports, self._listeners)
            for process in table:
                self._add_server(process)
            self._enter("starting")
            self._own.start_all(table, _clean_environment(), _STARTS_AT_ONCE)
        except Exception:
            self.fail()  # its logs tell why
            raise
        except BaseException:
            self.down()
            raise
        self._enter("up")
        self._report(f"stack {self.name} is up after {time.monotonic() - began:.1f} s")

    def down(self) -> None:
        """Let the product's processes drain, end the servers, delete all state. A no-op when it isn't up."""
        if self._attached:
            self._stop()
            shutil.rmtree(self._own.logs.parent, ignore_errors=True)
        elif self._lock:
            self._stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._release()
            self._phase = "down"

    def _stop(self) -> None:
        self._own.end_all([name for name in self._table if name not in self._servers], lambda one: one.stop_signal)
        # Nothing of theirs is kept: no reason to wait for them.
        self._own.end_all(list(self._servers), lambda one: one.crash_signal)

    def __enter__(self) -> "Stack":
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @classmethod
    def attach(cls, name: str, *, report: Callable[[str], None] = print) -> "Stack":
        """A stack of another process: what is added here is ours, its servers aren't. Raises ``StackFailed``."""
        stack = cls(name, report=report)
        recorded = recorded_state(stack.folder)
        if not recorded or recorded["phase"] != "up":
            raise StackFailed(f"no stack {name!r} is up; start it with: ./deploy/local/stack up {name}")
        stack._at = install(report)
        stack._ports = dict(recorded["ports"])
        stack._attached, stack._phase = True, "up"
        guest = own_folder(own_folder(stack.folder / "guests") / str(os.getpid()))
        stack._own = Supervision(guest / "logs", report, lambda: None)
        return stack

    # What runs where

    @property
    def env(self) -> dict[str, str]:
        """Where everything is, as the product's settings; with a clean environment around it, all a process needs."""
        at = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
        return {
            "TIDEMARK_KAFKA_BOOTSTRAP": at["kafka"],
            "TIDEMARK_REGISTRY_URL": f"http://{at['registry']}{REGISTRY_API}",
            "TIDEMARK_POSTGRES_DSN": f"postgresql://app:app@{at['postgres']}/tidemark",
            "TIDEMARK_ENTITIES_DIR": str(CHECKOUT / "deploy" / "demo" / "entities"),
            "TIDEMARK_CACHE_DIR": str(self._own.logs.parent / "cache"),
            "TIDEMARK_NAMESPACE": "",
            "TIDEMARK_RAW_BUCKET": "tidemark-raw",
            "TIDEMARK_PARKED_BUCKET": "tidemark-parked",
            "TIDEMARK_PARKED_TABLE": "tidemark_parked",
            "TIDEMARK_HTTP_HOST": "127.0.0.1",
            # Places: what they name is there once Spark has been asked for.
            "TIDEMARK_SPARK_JARS": str(self._installed.spark_jars),
            "PYSPARK_PYTHON": str(self._installed.spark_python),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "AWS_ENDPOINT_URL": f"http://{at['localstack']}",
            "AWS_ENDPOINT_URL_DYNAMODB": f"http://{at['dynamodb']}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of the user's own AWS set-up, and no proxy, between us and loopback.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    @property
    def product_python(self) -> Path:
        """The interpreter with the product's locked dependencies."""
        return self._installed.product_python

    @property
    def spark_python(self) -> Path:
        """The interpreter that has Spark too; there after ``install(spark=True)``."""
        return self._installed.spark_python

    @property
    def _installed(self) -> Installed:
        if self._at is None:
            raise StackFailed(f"stack {self.name} was never up")
        return self._at

    def port(self, name: str) -> int:
        return self._ports[name]

    def free_port(self, name: str) -> int:
        """Choose a port for a process to be added, and remember it under ``name``."""
        self._ports[name] = self._find_ports(1)[0]
        self._record()
        return self._ports[name]

    def log(self, name: str) -> Path:
        return self._own.logs / self._row(name).log_file

    def log_tail(self, name: str, lines: int = 15) -> str:
        return tail(self.log(name), lines)

    def pid(self, name: str) -> int:
        return self._child(name).running.pid

    def is_running(self, name: str) -> bool:
        return self._own.is_running(name)

    def check(self) -> None:
        """Raises ``StackFailed`` when any process ended unasked since the last ``forgive``, or the stack is gone."""
        if self._own.deaths:
            raise StackFailed("\n".join(str(death) for death in self._own.deaths))
        if self._attached:
            recorded = recorded_state(self.folder)
            if not recorded or recorded["phase"] != "up" or recorded["ports"]["kafka"] != self._ports["kafka"]:
                raise StackFailed(f"stack {self.name} went down meanwhile")

    @property
    def deaths(self) -> list[Death]:
        """Ends that nobody asked for, oldest first."""
        return list(self._own.deaths)

    def fail(self) -> None:
        """End everything and keep the logs, for a run that can't go on."""
        self._stop()
        self._enter("failed")
        self._release()

    def forgive(self, name: str) -> None:
        """Forget that ``name`` died unasked: a test that made it die says so here. Never an emulator."""
        self._own.deaths = [death for death in self._own.deaths if death.name != name or death.forgets]

    # One process

    def add(self, process: Process) -> None:
        """Put a row into the table; it isn't started yet. A name that ran before is replaced."""
        if self._own.is_running(process.name):
            raise StackFailed(f"{process.name} is running; end it before it's replaced")
        self._table[process.name] = process

    def _add_server(self, process: Process) -> None:
        self.add(process)
        self._servers.add(process.name)

    def start(self, name: str) -> None:
        """Start one process of the table and wait until it's ready. Raises ``StackFailed``."""
        process = self._row(name)
        if process.forgets and self._phase == "up":
            raise StackFailed(f"{name} keeps its state in memory and would come back empty; freeze it instead")
        missing = [need for need in process.needs if need in self._table and not self.is_running(need)]
        if missing:
            raise StackFailed(f"{name} needs {', '.join(missing)}, not running")
        environment = _clean_environment()
        self._own.start(process, environment if name in self._servers else environment | self.env)

    def kill(self, name: str) -> int:
        """End it as a crash would (SIGKILL; Postgres: its immediate stop) and return its exit code."""
        process = self._row_to_end(name)
        return self._own.end(name, process.crash_signal, process.stop_s_max)

    def terminate(self, name: str, within_s: float | None = None) -> int:
        """Ask it to drain and end (SIGTERM), and return its exit code; killed when it takes longer than its limit."""
        process = self._row_to_end(name)
        return self._own.end(name, process.stop_signal, process.stop_s_max if within_s is None else within_s)

    def restart(self, name: str) -> None:
        """``terminate`` and ``start``."""
        self.terminate(name)
        self.start(name)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it keeps its connections and its state, and answers nobody. For an emulator that is to be down."""
        self._child(name).running.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._child(name).running.send_signal(signal.SIGCONT)

    def wait(self, name: str, within_s: float) -> int:
        """Wait for a process that ends by itself; its exit code. Raises ``TimeoutExpired``."""
        return self._child(name).running.wait(within_s)

    def add_broker(
        self, name: str, listeners: Callable[[Callable[[], int]], Sequence[kafka.Listener]] = lambda _: ()
    ) -> str:
        """A private Kafka broker for a test that needs an outage (not yet started); its bootstrap address."""
        port, controller_port = self.free_port(name), self.free_port(f"{name}_controller")
        extra = tuple(listeners(lambda: self._find_ports(1)[0]))
        self._ports |= {f"{name}_{one.name.lower()}": one.port for one in extra}
        self._add_server(kafka_broker(name, self._own.logs.parent, self._installed, port, controller_port, extra))
        return f"127.0.0.1:{port}"

    def add_postgres(self, name: str, database: str = "tidemark", options: tuple[str, ...] = ()) -> str:
        """A private PostgreSQL for a test that needs an outage (not yet started); its DSN."""
        port, folder = self.free_port(name), self._own.logs.parent
        self._add_server(postgres_server(name, folder, self._installed, port, databases=(database,), options=options))
        return f"postgresql://app:app@127.0.0.1:{port}/{database}"

    def _row(self, name: str) -> Process:
        if name not in self._table:
            whose = f"it is {self.name}'s owner's" if self._attached and name in self._ports else "it was never added"
            raise StackFailed(f"{name} isn't a process of ours: {whose}")
        return self._table[name]

    def _child(self, name: str) -> Child:
        self._row(name)
        if name not in self._own.children:
            raise StackFailed(f"{name} was never started")
        return self._own.children[name]

    def _row_to_end(self, name: str) -> Process:
        process = self._child(name).process
        if process.forgets:
            raise StackFailed(f"{name} keeps its state in memory; freeze it, or put a proxy in front")
        return process

    # Ports and records

    def _choose_ports(self) -> None:
        self._ports = dict(zip(SERVER_PORTS, self._find_ports(len(SERVER_PORTS)), strict=True))
        self._listeners = tuple(self._make_listeners(lambda: self._find_ports(1)[0]))
        self._ports |= {f"kafka_{one.name.lower()}": one.port for one in self._listeners}

    def _find_ports(self, count: int) -> list[int]:
        others = [recorded_state(folder) for folder in run_home().iterdir() if folder.is_dir()]
        taken = {port for other in others if other for port in other["ports"].values()}
        return find_free(count, taken | set(self._ports.values()))

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._record()

    def _record(self) -> None:
        """Write who runs here, so that whoever comes later can see it, or end it."""
        if self._attached or self._phase == "new":
            return
        with self._writing:
            children = {name: self._describe(child) for name, child in list(self._own.children.items())}
            owner = {"pid": os.getpid(), "started": started_ticks(os.getpid())}
            state = {"phase": self._phase, "owner": owner, "ports": self._ports, "env": self.env}
            write_state(self.folder, state | {"processes": children})

    def _describe(self, child: Child) -> dict[str, Any]:
        return {
            "pid": child.running.pid,
            "started": child.started_ticks,
            "exit": child.running.poll(),
            "died": any(death.name == child.process.name for death in self._own.deaths),
            "log": str(self._own.logs / child.process.log_file),
        }

    def _release(self) -> None:
        if self._lock:
            release(self._lock, self.name)
            self._lock = None


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)}
