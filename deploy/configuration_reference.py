"""``python -m deploy.configuration_reference``: writes ``CONFIGURATION.md`` from the structs that read the environment.

Names, types, bounds and defaults are the code's. What a variable means is the text under its field; a field without one
has its line here. A field without any, or a line that nobody needs, is a failing test.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, structs

from deploy.entity_reference import default_in_words, value_in_words
from services.cli.audit_watch import WatchConfig
from services.cli.edges import ArchiveSettings, CacheSettings, KafkaTopics, RawSettings
from services.delta_loader.config import LoaderConfig, LoadSettings, SparkSettings
from services.dynamo_retrier.config import RetrierConfig
from services.poller_producer.config import PollerConfig
from services.s3_sink.config import SinkConfig
from services.s3_sink.limits import SinkSettings
from services.stale_notifier.config import NotifierConfig, NotifierSettings
from shared.checkpoints.settings import PostgresSettings
from shared.config import PREFIX, HttpSettings, LogSettings, struct_in
from shared.kafka.consumer import ConsumerSettings
from shared.kafka.settings import KafkaSettings
from shared.lake.layout import LakeSettings
from shared.parked.store import ParkedSettings
from shared.registry.settings import RegistrySettings

FILE = Path(__file__).parent / "CONFIGURATION.md"


class Process(Struct, frozen=True):
    """One that is configured by itself."""

    name: str
    readme: str
    forms: tuple[type[Struct], ...]
    more: tuple[str, ...] = ()
    """Groups that it reads besides those in its structs."""


class Group(Struct, frozen=True):
    """Variables with one prefix, which one field of a process's struct stands for."""

    title: str
    field: str
    form: type[Struct]


PROCESSES = (
    Process("poller-producer", "../services/poller_producer/README.md", (PollerConfig,)),
    Process("s3-sink", "../services/s3_sink/README.md", (SinkConfig,)),
    Process("dynamo-retrier", "../services/dynamo_retrier/README.md", (RetrierConfig,)),
    Process("stale-notifier", "../services/stale_notifier/README.md", (NotifierConfig,)),
    Process("delta-loader", "../services/delta_loader/README.md", (LoaderConfig,)),
    Process(
        "tidemark",
        "../services/cli/README.md",
        (WatchConfig, RawSettings, ArchiveSettings, CacheSettings),
        ("kafka", "registry", "postgres", "parked", "lake", "topic"),
    ),
)
GROUPS = (
    Group("Kafka", "kafka", KafkaSettings),
    Group("The sink's consumer", "consumer", ConsumerSettings),
    Group("New topics", "topic", KafkaTopics),
    Group("Schema registry", "registry", RegistrySettings),
    Group("Postgres", "postgres", PostgresSettings),
    Group("Parked events", "parked", ParkedSettings),
    Group("What the sink holds and cuts", "sink", SinkSettings),
    Group("What the notifier waits for", "notifier", NotifierSettings),
    Group("What a commit of the loader takes", "load", LoadSettings),
    Group("The lake", "lake", LakeSettings),
    Group("Spark", "spark", SparkSettings),
    Group("Health and metrics", "http", HttpSettings),
    Group("Logs", "log", LogSettings),
)
LINES = {
    "entities_dir": "the folder with `*.yaml`: sources, entities, owners ([reference](../shared/README.md))",
    "namespace": "prefix of topics, subjects, groups, tables, the schema in Postgres, and keys in buckets",
    "cache_dir": "a folder for schemas: with it a restart needs no registry",
    "raw_bucket": "where raw objects lie",
    "archive_bucket": "where evidence and the originals of repaired events lie",
    "drain_s": "after SIGTERM: what is in flight may end; then it is cancelled",
    "lease_s": "a dead process's work is taken over after this",
    "batch_rows_max": "rows of one entity under lease at once",
    "poll_s": "between two looks at an empty queue",
    "refresh_s": "between two counts for the metrics",
    "wake_period_s": "how often new schema versions are looked for",
    "redrive_share": "of what the cluster takes: how much the re-drive may publish",
    "kafka_cert_file": "PEM: the client's certificate",
    "kafka_key_file": "PEM: its key",
    "kafka_security": "TLS with `SSL` and `SASL_SSL`",
    "kafka_sasl_mechanism": "with `SASL_…`",
    "kafka_sasl_username": "with `SASL_…`",
    "kafka_sasl_password_file": "the file that holds the password; read at start",
    "consumer_rebalance_timeout_s": "how long members may take to give partitions up",
    "consumer_partition_fetch_bytes_max": "read ahead for each partition held",
    "consumer_fetch_wait_s": "see above",
    "consumer_chunk_records_max": "records handed over at once",
    "topic_replication": "replication factor of topics that `bootstrap` makes; -1: the cluster's default",
    "registry_user": "for basic authentication",
    "registry_password_file": "the file that holds the password",
    "registry_timeout_s": "of one request",
    "registry_attempts": "requests, before the registry counts as unavailable",
    "postgres_connect_timeout_s": "until there is a connection",
    "postgres_connections_max": "of the pool",
    "parked_table": "the table's name, before the namespace's prefix",
    "parked_bucket": "for bodies that are too large for the table",
    "parked_calls_in_flight_max": "calls to DynamoDB at once",
    "sink_object_records_max": "an object is cut at the next chunk beyond it",
    "sink_puts_at_once_max": "PUTs in flight; one per partition in any case",
    "notifier_poll_s": "between two looks at an empty queue",
    "notifier_repeat_s": "when a group that stands is told again",
    "notifier_refresh_s": "between two counts for the metrics",
    "notifier_runbook_url": "stands in every notice",
    "load_objects_max": "raw objects that one commit, or one trigger, takes",
    "load_rows_max": "rows that one commit takes",
    "spark_master": "where spark-submit says nothing",
    "spark_driver_memory": "where spark-submit says nothing",
    "http_host": "`0.0.0.0` in a container",
    "log_level": "what is less is not logged",
}
"""For fields without a text of their own: by name, or by group and name."""
OWN_WORDS = {"namespace": "none", "entities": "all", "notifier_runbook_url": "none", "lake_catalog": "none"}
"""What stands for a default that is empty."""
HEAD = """\
# Configuration reference

Written by `python -m deploy.configuration_reference` from the structs that read the environment; a test compares.

Every process reads `TIDEMARK_*` variables at its start, and refuses to start (exit code 2) with every error at once. An
empty variable counts as unset; lists are separated by commas; a variable whose name ends in `_FILE` must name a file
that can be read. Which sources, entities and owners there are stands in files: [their reference](../shared/README.md).

AWS is configured as everywhere: `AWS_REGION`, `AWS_ACCESS_KEY_ID` and the rest of the credential chain (roles of pods
and instances included), `AWS_ENDPOINT_URL` (or `AWS_ENDPOINT_URL_S3`, `_DYNAMODB`) for anything but AWS itself.
"""
OF_COMMANDS = """\
Of each command only what it needs. `TIDEMARK_ENTITIES_DIR` and `TIDEMARK_NAMESPACE` are also `--entities` and
`--namespace`; `TIDEMARK_HTTP_*`, `TIDEMARK_LOG_*` and `TIDEMARK_DRAIN_S` count for `audit --watch` alone.
"""


def written() -> str:
    """The whole document."""
    lines = [HEAD, *_matrix(), ""]
    for process in PROCESSES:
        lines += [f"## {process.name}", "", *_of_process(process), ""]
    for group in GROUPS:
        users = ", ".join(process.name for process in PROCESSES if group.field in groups_of(process))
        lines += [f"## {group.title}", "", f"Read by {users}.", ""]
        lines += [*_table(group.form, f"{group.field}_"), ""]
    return "\n".join(lines).rstrip() + "\n"


def groups_of(process: Process) -> set[str]:
    nested = {field.name for form in process.forms for field in structs.fields(form) if struct_in(field.type)}
    return nested | set(process.more)


def missing() -> list[str]:
    """Fields without a text and without a line, groups that are not listed, and lines that no field needs."""
    known = {group.field for group in GROUPS}
    found = [f"{process.name}: group {name}" for process in PROCESSES for name in sorted(groups_of(process) - known)]
    used = set[str]()
    for form, prefix in _forms():
        texts = under_fields(form)
        for field in structs.fields(form):
            if struct_in(field.type) is None and field.name not in texts:
                key = f"{prefix}{field.name}"
                used.add(key)
                found += [] if key in LINES else [f"{form.__name__}.{field.name}"]
    return [*found, *sorted(LINES.keys() - used)]


def under_fields(form: type[Struct]) -> dict[str, str]:
    """The texts that stand under the fields of a class and of those that it extends."""
    texts: dict[str, str] = {}
    for cls in reversed(form.__mro__):
        if not (issubclass(cls, Struct) and cls is not Struct):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, body.body[1:], strict=False):
            match node, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split()).replace("``", "`")
    return texts


def _matrix() -> Iterator[str]:
    yield "| process | its own | and of these groups |"
    yield "|---|---|---|"
    for process in PROCESSES:
        read = [group for group in GROUPS if group.field in groups_of(process)]
        links = ", ".join(f"[{group.title}](#{anchor(group.title)})" for group in read)
        yield f"| [{process.name}]({process.readme}) | [below](#{anchor(process.name)}) | {links} |"


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return "".join(sign for sign in heading.lower().replace(" ", "-") if sign.isalnum() or sign in "-_")


def _of_process(process: Process) -> Iterator[str]:
    if process.name == "tidemark":
        yield OF_COMMANDS
    yield from _head()
    for form in process.forms:
        yield from _rows(form, "")


def _table(form: type[Struct], prefix: str) -> Iterator[str]:
    yield from _head()
    yield from _rows(form, prefix)


def _head() -> Iterator[str]:
    yield "| variable | value | default | |"
    yield "|---|---|---|---|"


def _rows(form: type[Struct], prefix: str) -> Iterator[str]:
    texts = under_fields(form)
    for field in structs.fields(form):
        if struct_in(field.type) is not None:
            continue
        name = f"{prefix}{field.name}"
        default = OWN_WORDS.get(name) or default_in_words(field)
        text = texts.get(field.name) or LINES.get(name, "")
        yield f"| `{PREFIX}{name.upper()}` | {value_in_words(field)} | {default} | {text} |"


def _forms() -> Iterator[tuple[type[Struct], str]]:
    yield from ((form, "") for process in PROCESSES for form in process.forms)
    yield from ((group.form, f"{group.field}_") for group in GROUPS)


if __name__ == "__main__":
    FILE.write_text(written())
