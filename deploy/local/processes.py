"""The table of processes: what the local stack runs, how each is started, and how one knows that it is ready.

The product's own processes are rows of the same kind, added by the demo and the tests (``Stack.add``).
"""

import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploy.local import kafka, postgres
from deploy.local.places import HERE, Installed
from deploy.local.ready import Check, http_answers, kafka_answers, put_json, wake

REGISTRY_API = "/apis/ccompat/v7"


@dataclass(frozen=True)
class Process:
    """One row of the table."""

    name: str
    command: tuple[str, ...]
    ready: Check | None = None
    """Asked again and again until true; without one, a process is ready when it has started."""
    needs: tuple[str, ...] = ()
    """Names of those that must be ready before it starts."""
    log: str = ""
    """File name in the stack's folder of logs; by default the process's name."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    """Default: the checkout."""
    prepare: Callable[[], None] | None = None
    """Before each start; keeps what is there already."""
    settle: Callable[[], None] | None = None
    """Once ready, before anybody that needs it starts; repeatable."""
    user: str | None = None
    forgets: bool = False
    """Keeps its state in memory: it is never killed nor restarted, and its death ends the run as failed."""
    ends_itself: bool = False
    """Its end with exit code 0 is no death."""
    stop_signal: signal.Signals = signal.SIGTERM
    crash_signal: signal.Signals = signal.SIGKILL
    ready_s_max: float = 90.0
    stop_s_max: float = 30.0

    @property
    def log_file(self) -> str:
        return self.log or f"{self.name}.log"


SERVER_PORTS = ("postgres", "kafka", "kafka_controller", "localstack", "dynamodb", "registry", "registry_management")


def servers(
    folder: Path, at: Installed, port: Mapping[str, int], listeners: tuple[kafka.Listener, ...]
) -> list[Process]:
    """The five servers of a stack whose files are in ``folder``, in the order in which they are best started."""
    return [
        postgres_server("postgres", folder, at, port["postgres"], databases=("tidemark", "registry")),
        kafka_broker("kafka", folder, at, port["kafka"], port["kafka_controller"], listeners),
        localstack(folder, at, port["localstack"]),
        dynamodb_local(folder, at, port["dynamodb"]),
        registry(at, port["registry"], port["registry_management"], port["postgres"]),
    ]


def postgres_server(
    name: str, folder: Path, at: Installed, port: int, *, databases: tuple[str, ...], options: tuple[str, ...] = ()
) -> Process:
    files = folder / name

    def create_databases() -> None:
        for database in databases:
            postgres.ensure_database(at.postgres_bin, port, database)

    return Process(
        name=name,
        command=postgres.server_command(files, at.postgres_bin, port, options),
        ready=lambda: postgres.answers(at.postgres_bin, port),
        env={"LANG": "C.UTF-8"},
        cwd=Path("/"),
        prepare=partial(postgres.prepare, files, at.postgres_bin),
        settle=create_databases,
        user=postgres.run_as(),
        stop_signal=signal.SIGINT,
        # An immediate stop, the crash that Postgres knows; its children see a SIGKILL of their parent too late.
        crash_signal=signal.SIGQUIT,
    )


def kafka_broker(
    name: str, folder: Path, at: Installed, port: int, controller_port: int, listeners: tuple[kafka.Listener, ...] = ()
) -> Process:
    files = folder / name
    main = ("kafka.Kafka", str(files / "server.properties"))
    return Process(
        name=name,
        command=kafka.java_command(at.java, at.kafka_jars, *main),
        ready=kafka_answers(port),
        prepare=partial(kafka.prepare, files, at, port, controller_port, listeners),
    )


def localstack(folder: Path, at: Installed, port: int) -> Process:
    """S3, SNS and SQS."""
    files, address = folder / "localstack", f"127.0.0.1:{port}"
    index = files / "root/var/lib/localstack/cache"
    # Loads S3, which else happens within somebody's first call. LocalStack checks no signature.
    signed = "AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    return Process(
        name="localstack",
        command=(str(at.servers_python), str(HERE / "loopback_localstack.py")),
        ready=http_answers(f"http://{address}/_localstack/health"),
        env={
            "SERVICES": "s3,sns,sqs",
            "GATEWAY_LISTEN": address,
            "LOCALSTACK_HOST": address,
            # Else it ignores FILESYSTEM_ROOT and writes to /var/lib.
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(files / "root"),
            "LOCALSTACK_VOLUME_DIR": str(files / "volume"),
            "TIDEMARK_S3_FOLDER": str(files / "s3"),
            # Else queue addresses are names that don't resolve.
            "SQS_ENDPOINT_STRATEGY": "path",
            # No name server on port 53, no telemetry, no download of a certificate.
            "DNS_ADDRESS": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "LS_LOG": "warning",
        },
        prepare=partial(_copy, at.localstack_index, index),
        settle=lambda: wake(f"http://{address}/", {"Authorization": signed}),
        forgets=True,
    )


def dynamodb_local(folder: Path, at: Installed, port: int) -> Process:
    jars = at.dynamodb_jars
    # A whole test run leaves 250 MB in it; a full heap is a death that is seen, not a server that no longer answers.
    memory = ("-Xmx1g", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")
    options = (*memory, "-XX:TieredStopAtLevel=1", f"-Djava.library.path={jars}")
    main = ("LoopbackDynamoDB", "-inMemory", "-sharedDb", "-port", str(port))
    return Process(
        name="dynamodb",
        command=(str(at.java), *options, "-cp", f"{at.dynamodb_classes}:{jars}/*", *main),
        # An unsigned request is refused with 400: that it answers at all is the sign.
        ready=http_answers(f"http://127.0.0.1:{port}/", statuses=(200, 400)),
        env={"DDB_LOCAL_TELEMETRY": "0"},
        cwd=folder,
        forgets=True,
    )


def registry(at: Installed, port: int, management_port: int, postgres_port: int) -> Process:
    """Apicurio, which speaks Confluent's protocol; it keeps its schemas in the stack's Postgres."""
    settings = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": port,
        "quarkus.management.host": "127.0.0.1",
        "quarkus.management.port": management_port,
        "quarkus.log.level": "WARN",
        "apicurio.log.level": "WARN",
        "quarkus.http.access-log.enabled": "false",
        "apicurio.ccompat.use-canonical-hash": "true",
        "apicurio.storage.kind": "sql",
        "apicurio.storage.sql.kind": "postgresql",
        "apicurio.datasource.url": f"jdbc:postgresql://127.0.0.1:{postgres_port}/registry",
        "apicurio.datasource.username": postgres.SUPERUSER,
        "apicurio.datasource.password": postgres.SUPERUSER,
    }
    url = f"http://127.0.0.1:{port}{REGISTRY_API}"
    options = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    return Process(
        name="registry",
        command=(
            str(at.registry_java),
            *options,
            *(f"-D{k}={v}" for k, v in settings.items()),
            "-jar",
            "quarkus-run.jar",
        ),
        ready=http_answers(f"{url}/subjects"),
        needs=("postgres",),
        cwd=at.registry,
        # Its own default is NONE.
        settle=lambda: put_json(f"{url}/config", {"compatibility": "BACKWARD"}),
    )


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
