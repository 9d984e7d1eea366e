"""Every metric of Tidemark: a closed set, each typed and described. Labels come from configuration or closed enums.

Timestamps are exported, never ages: the reader subtracts. Rates see zeros because ``expect_*`` makes the label sets
at start. One process per registry; prometheus-client's multiprocess mode is never used.
"""

import asyncio
import gc
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

import prometheus_client
from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared.events.model import Reason

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # would double the number of series

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

Kind = Literal["counter", "gauge", "histogram"]
POLLER, SINK, RETRIER, NOTIFIER = ("poller-producer",), ("s3-sink",), ("dynamo-retrier",), ("stale-notifier",)
LOADER, AUDIT = ("delta-loader",), ("audit",)
PUBLISHERS = POLLER + RETRIER
TABLE_USERS = POLLER + SINK + RETRIER + NOTIFIER
SERVICES = POLLER + SINK + RETRIER + NOTIFIER + LOADER + AUDIT
"""Which of them export a metric stands with it."""


class Metric(Struct, frozen=True):
    """What is registered. ``name``: the family's; a counter's one series is ``<name>_total``."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...]
    services: tuple[str, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its samples, as PromQL asks for them."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)

    @property
    def unit(self) -> str:
        """As its name says; what has none is counted."""
        return next((unit for suffix, unit in _UNITS.items() if self.name.endswith(suffix)), "count")


_UNITS = {
    "_timestamp_seconds": "seconds since 1970",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_per_second": "records a second",
    "_info": "1",
}
METRICS: dict[str, Metric] = {}
"""By family name, in order of definition."""

LANES = ("tail", "lookback", "cap")
PAGE_OUTCOMES = ("committed", "empty", "refetched", "failed")
SOURCE_ERRORS = ("source_unavailable", "source_rate_limited", "source_auth", "source_malformed", "source_cursor")
CUTS = ("bytes", "records", "clock", "revoked", "stop")
REBUILD_CAUSES = ("deadline", "fatal")
RETRY_OUTCOMES = ("published", "again", "hold", "stale", "given_back", "lease_lost", "failed")
LAKE_REASONS = ("corrupt", "no_key", "no_order")
LAKE_WAIT_CAUSES = ("raw", "schema", "breaking", "transform", "store", "spark")
CHANNEL_OUTCOMES = ("accepted", "unavailable", "refused")
NOTICE_OUTCOMES = (*CHANNEL_OUTCOMES, "no_channel")
HEARTBEAT_OUTCOMES = ("sent", "failed")
EVIDENCE_OUTCOMES = ("written", "unavailable", "refused")

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATENESS_S = (0.01, 0.1, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


def _note(kind: Kind, services: tuple[str, ...], name: str, text: str, labels: tuple[str, ...]) -> str:
    full = f"tidemark_{name}"
    METRICS[full] = Metric(full, kind, text, labels, services)
    return full


def _counter(services: tuple[str, ...], name: str, text: str, *labels: str) -> Counter:
    return Counter(_note("counter", services, name, text, labels), text, labels, registry=REGISTRY)


def _gauge(services: tuple[str, ...], name: str, text: str, *labels: str) -> Gauge:
    return Gauge(_note("gauge", services, name, text, labels), text, labels, registry=REGISTRY)


def _histogram(services: tuple[str, ...], name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(_note("histogram", services, name, text, labels), text, labels, buckets=buckets, registry=REGISTRY)


class _Collections(Collector):
    """Python's garbage collections, counted by Python itself: nothing is done until somebody asks."""

    def describe(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(_GC, _GC_TEXT, labels=["generation"])

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(_GC, _GC_TEXT, labels=["generation"])
        for generation, stats in enumerate(gc.get_stats()):
            family.add_metric([str(generation)], stats["collections"])
        yield family


def _tasks() -> float:
    with suppress(RuntimeError):  # asked from outside the event loop
        return len(asyncio.all_tasks())
    return 0.0


_GC_TEXT = "Python's garbage collections, by the generation that was looked through."
_GC = _note("counter", SERVICES, "gc_collections", _GC_TEXT, ("generation",))

# Any process
BUILD = _gauge(SERVICES, "build_info", "1, labelled with the running version.", "service", "version")
LOOP_STALL_S = _histogram(SERVICES, "loop_stall_seconds", "How late the event loop woke a timer.", _SECONDS)
PROCESS = ProcessCollector(namespace="tidemark", registry=REGISTRY)
GC = _Collections()
REGISTRY.register(GC)
TASKS = _gauge(SERVICES, "tasks", "Tasks of the event loop, at this moment.")
TASKS.set_function(_tasks)
THREADS = _gauge(SERVICES, "threads", "Threads of the process, at this moment.")
THREADS.set_function(threading.active_count)

# Along the pipe. Each stage speaks of what it found when it last looked: see the text of deploy/prometheus/METRICS.md
FRESH = _gauge(
    POLLER + SINK + LOADER,
    "fresh_timestamp_seconds",
    "Up to when everything is known to be through this stage; absent: not known, or another process's now.",
    *("entity", "stage", "partition"),
)
FRESHNESS_OBJECTIVE_S = _gauge(
    POLLER + SINK + LOADER + AUDIT,
    "freshness_objective_seconds",
    "How old the lake may be: freshness_s of the entity's file.",
    "entity",
)
HEARTBEAT = _gauge(
    POLLER + SINK + LOADER,
    "heartbeat_timestamp_seconds",
    "When the newest heartbeat that this stage saw was sent; absent: none was seen yet, or heartbeats are off.",
    *("entity", "stage", "partition"),
)
TOPIC = _gauge(POLLER + SINK, "topic_info", "1, for each entity and its topic.", "entity", "topic")

# Whoever wakes parked events after a change of their contract
WOKEN = _counter(RETRIER, "parked_woken", "Held events that a new contract accepts, made due.", "entity", "reason")

# The poller: shown = published + parked + repetitions + below_floor
SHOWN = _counter(POLLER, "shown", "Rows that the source showed, repetitions included.", "entity")
PUBLISHED = _counter(POLLER, "published", "Changes that Kafka acknowledged.", "entity")
PARKED = _counter(POLLER + SINK, "park", "Changes parked durably, by the reason.", "entity", "reason")
REPETITIONS = _counter(POLLER, "repetitions", "Rows dropped because they were seen before.", "entity")
BELOW_FLOOR = _counter(
    POLLER, "below_floor", "Rows dated below the floor of the seen entries, not published.", "entity"
)
PAGES = _counter(POLLER, "pages", "Pages asked for.", "entity", "lane", "outcome")
SOURCE_ERRORS_TOTAL = _counter(POLLER, "source_errors", "Failed answers of the source.", "entity", "class")
LATENESS_S = _histogram(
    POLLER, "lateness_seconds", "How far behind the cursor a new change was dated.", _LATENESS_S, "entity"
)
CURSOR = _gauge(POLLER, "cursor_timestamp_seconds", "The cursor: the source's time up to which all is read.", "entity")
SWEPT = _gauge(
    POLLER, "swept_timestamp_seconds", "The cursor at which the last completed lookback began.", "entity", "lane"
)
NEWEST_COMMIT = _gauge(
    POLLER, "last_commit_timestamp_seconds", "When a page of the entity was last committed.", "entity"
)
CLOCK_SKEW_S = _gauge(POLLER, "source_clock_skew_seconds", "The source's Date minus our clock.", "source")
SOURCE_S = _histogram(POLLER, "source_request_seconds", "Time to a whole answer of the source.", _SECONDS, "source")
LEASE_HELD = _gauge(POLLER, "lease_held", "1 while this process owns the entity.", "entity")
LEASE_LOST = _counter(POLLER, "lease_lost", "Leases that another process took over (fenced).", "entity")
ENTITY_WAITS = _gauge(POLLER, "entity_waits", "1 while schema or cursor can't be had; the log says why.", "entity")
PAUSED = _gauge(
    POLLER, "paused", "1 while the entity is paused; an operator or a new schema version resumes it.", "entity"
)
POLLER_IN_PROGRESS = _gauge(
    POLLER, "poller_in_progress_events", "Events of the page in hand that are not durable yet.", "entity"
)
HEARTBEATS = _counter(POLLER, "heartbeats", "Heartbeats, by what became of them.", "entity", "outcome")
CHECKPOINT_S = _histogram(
    POLLER, "checkpoint_commit_seconds", "Time of one page's transaction in Postgres, failed ones included.", _SECONDS
)

# Kafka's publisher
BREAKER_OPEN = _gauge(PUBLISHERS, "breaker_state", "1 while the topic's breaker is open, else 0.", "target")
PRODUCER_REBUILDS = _counter(PUBLISHERS, "producer_rebuild", "Producers destroyed and made anew.", "why")
PUBLISH_UNKNOWN = _counter(
    PUBLISHERS, "publish_unknown", "Records without an acknowledgement at the deadline.", "topic"
)
PUBLISH_S = _histogram(
    PUBLISHERS, "publish_seconds", "Time until the last acknowledgement of a page.", _SECONDS, "topic"
)

# DynamoDB
DYNAMO_THROTTLES = _counter(TABLE_USERS, "dynamo_throttle", "Requests that DynamoDB throttled.", "index", "reason")
DYNAMO_S = _histogram(
    TABLE_USERS, "dynamo_request_seconds", "Time of one request to DynamoDB, from its lane to its answer.", _SECONDS
)

# The retrier
PARKED_ITEMS = _gauge(RETRIER, "parked_items", "Items in the parked table (exact count).", "entity", "reason", "state")
PARKED_OLDEST = _gauge(
    RETRIER,
    "parked_oldest_timestamp_seconds",
    "When the oldest of them was first parked; absent: none.",
    "entity",
    "reason",
)
PARKED_COUNTED = _gauge(RETRIER, "parked_counted_timestamp_seconds", "When the parked items were last counted.")
RETRIES = _counter(RETRIER, "retries", "Parked events taken up again, by what became of them.", "entity", "outcome")
REPAIRED = _counter(RETRIER, "repaired", "Parked events changed by a repair rule, the original kept.", "entity")
RETRIES_CLAIMED = _counter(RETRIER, "retries_claimed", "Parked events taken up again.", "entity")
RETRIES_IN_PROGRESS = _gauge(
    RETRIER, "retrier_in_progress_items", "Parked events handed to a re-drive that has not ended.", "entity"
)
RETRIER_LAST = _gauge(
    RETRIER, "retrier_last_timestamp_seconds", "When a parked event of the entity was last published.", "entity"
)
REDRIVE_LIMIT = _gauge(RETRIER, "redrive_limit_per_second", "Records that the re-drive may publish in a second, now.")
PACED = _counter(RETRIER, "redrive_paced", "Waits of the re-drive for its share of the publishing.")

# The sink
CONSUMED = _counter(SINK, "sink_consumed", "Records taken from Kafka.", "topic")
RAW_OBJECTS = _counter(SINK, "raw_objects", "Objects written, by what cut them.", "topic", "cut")
RAW_RECORDS = _counter(SINK, "raw_records", "Records in the objects written.", "topic")
RAW_BYTES = _counter(SINK, "raw_bytes", "Compressed bytes of the objects written.", "topic")
RAW_PUT_S = _histogram(SINK, "raw_put_seconds", "Time of one conditional PUT, retries included.", _SECONDS, "topic")
RAW_ADOPTED = _counter(SINK, "raw_adopted", "Objects found written already (412) and adopted.", "topic")
RAW_GAPS = _counter(SINK, "raw_gap_records", "Offsets lost to Kafka's retention before they were read.", "topic")
BUFFERED_BYTES = _gauge(SINK, "sink_buffered_bytes", "Bytes held for objects that are not yet written.")
SINK_IN_PROGRESS = _gauge(
    SINK, "sink_in_progress_records", "Records read that are in no object known to be written.", "topic"
)
NEXT_OFFSET = _gauge(SINK, "sink_next_offset", "The ledger's next offset.", "topic", "partition")
LOG_END = _gauge(SINK, "sink_log_end_offset", "Kafka's log end, as last seen.", "topic", "partition")
LAST_OBJECT = _gauge(SINK, "raw_last_object_timestamp_seconds", "When the last object of a topic was written.", "topic")
REFUSED_TOPICS = _gauge(SINK, "sink_refused_topic", "1 while the sink refuses the topic; its log says why.", "topic")
PARTITION_WAITS = _gauge(
    SINK, "sink_partition_waits", "1 while the sink does not read on: schema, stopped.", "topic", "partition", "why"
)

# The notifier
STALE_GROUPS = _gauge(
    NOTIFIER, "stale_groups", "Groups of stale events that are not resolved.", "owner", "entity", "reason"
)
OLDEST_UNNOTIFIED = _gauge(
    NOTIFIER,
    "oldest_unnotified_timestamp_seconds",
    "Since when the oldest stale event waits for its notice; now: none does.",
)
NOTICES = _counter(
    NOTIFIER, "notices", "Notices given to a channel, by what it made of them.", "owner", "channel", "outcome"
)
CHANNEL_DISABLED = _gauge(NOTIFIER, "channel_disabled", "1 since the channel said that it is gone.", "owner", "channel")
STALE_NOTIFIED = _counter(
    NOTIFIER, "stale_notified", "Stale events of whose group the owner was told.", "entity", "reason"
)
EVIDENCE = _counter(NOTIFIER, "evidence", "Evidence objects, by what became of the attempt.", "entity", "outcome")
NOTIFIER_CLAIMED = _counter(NOTIFIER, "notifier_claimed", "Stale events taken up for their next step.")
NOTIFIER_IN_PROGRESS = _gauge(NOTIFIER, "notifier_in_progress_items", "Stale events of the batch in hand.")
NOTIFIER_LAST = _gauge(
    NOTIFIER, "notifier_last_timestamp_seconds", "When a batch of stale events was last worked to its end."
)
STALE_DELETED = _counter(
    NOTIFIER, "stale_deleted", "Stale events that left the table for the archive.", "entity", "reason"
)
NOTIFIER_LEASE_LOST = _counter(
    NOTIFIER, "notifier_lease_lost", "Stale events that were taken from us, or woken, meanwhile."
)
NOTIFIER_WAITS = _counter(
    NOTIFIER, "notifier_waits", "Turns that an edge refused, and after which a lane waited.", "why"
)

# The loader
LAKE_ROWS = _counter(LOADER, "lake_rows", "Raw rows that a commit took in, superseded ones included.", "entity")
LAKE_QUARANTINED = _counter(
    LOADER, "lake_quarantined", "Raw rows that can't be merged, by the reason.", "entity", "reason"
)
LAKE_COMMITS = _counter(LOADER, "lake_commits", "Commits that merged raw rows.", "entity")
LAKE_IN_PROGRESS = _gauge(LOADER, "lake_in_progress_rows", "Raw rows of the batch in hand.", "entity")
LAKE_HEARTBEATS = _counter(LOADER, "lake_heartbeats", "Heartbeats among the raw rows, left out of the table.", "entity")
LAKE_CONFLICTS = _counter(LOADER, "lake_conflicts", "Attempts that another writer's commit came before.", "entity")
LAKE_BATCH_S = _histogram(
    LOADER,
    "lake_batch_seconds",
    "Time from looking for raw objects to their commit.",
    (*_SECONDS, 60, 120, 300),
    "entity",
)
LAKE_LAST_COMMIT = _gauge(LOADER, "lake_last_commit_timestamp_seconds", "When raw rows were last merged.", "entity")
LAKE_POSITION = _gauge(
    LOADER, "lake_position", "The first offset that is not merged.", "entity", "topic", "generation", "partition"
)
LAKE_WAITS = _gauge(LOADER, "lake_waits", "1 while the entity is not merged on; the log says why.", "entity", "why")

# The audit (`tidemark audit --watch`)
AUDIT_COMPLETE = _gauge(
    AUDIT, "audit_complete", "1 when the entity's last audit found nothing missing, else 0.", "entity"
)
CONSERVATION_GAP = _gauge(
    AUDIT,
    "conservation_gap_events",
    "Distinct events that the entity's last audit found in no place; 0: nothing is lost.",
    "entity",
)
AUDIT_ENDED = _gauge(AUDIT, "audit_ended_timestamp_seconds", "When the entity's last audit ended.", "entity")
AUDIT_FINDINGS = _gauge(AUDIT, "audit_findings", "What the entity's last audit found, by kind.", "entity", "why")
AUDIT_EVENTS = _gauge(AUDIT, "audit_events", "Distinct events of the last audit, by where they are.", "entity", "state")
AUDIT_FAILED = _counter(AUDIT, "audit_failed", "Audits that a server's failure ended before their verdict.", "entity")
AUDIT_S = _gauge(AUDIT, "audit_seconds", "How long the last audit of the entity took.", "entity")


for _name, _kind, _text in (
    ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ("resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("start_time_seconds", "gauge", "Start time of the process, since 1970."),
    ("cpu_seconds", "counter", "User and system CPU time spent."),
    ("open_fds", "gauge", "Open file descriptors."),
    ("max_fds", "gauge", "The most file descriptors that may be open."),
):
    _note(_kind, SERVICES, f"process_{_name}", _text, ())  # type: ignore[arg-type]  # as ``PROCESS`` collects them


def names() -> dict[str, Metric]:
    """Every series that may be exported, by its full name (``…_total``, ``…_bucket``): what a query may ask for."""
    return {series: metric for metric in METRICS.values() for series in metric.series}


def started(service: str) -> None:
    """Set the build info: ``tidemark_build_info{service,version} 1``."""
    try:
        running = version("tidemark")
    except PackageNotFoundError:  # run from a checkout that is not installed
        running = "unknown"
    BUILD.labels(service, running).set(1)


class Promising(Protocol):
    """What is said of an entity: ``entities.Entity``."""

    @property
    def name(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def freshness_s(self) -> float: ...
    @property
    def heartbeat_s(self) -> float | None: ...


def expect_freshness(entities: Iterable[Promising]) -> None:
    """What the entities promise, and their topics. Where they stand comes when it is known."""
    for entity in entities:
        FRESHNESS_OBJECTIVE_S.labels(entity.name).set(entity.freshness_s)
        TOPIC.labels(entity.name, entity.topic).set(1)
        if entity.heartbeat_s is not None:
            for outcome in HEARTBEAT_OUTCOMES:
                HEARTBEATS.labels(entity.name, outcome)


def expect_entities(names: Iterable[str]) -> None:
    """Make the poller's series of these entities, at zero. The reasons are all that a poller may park for."""
    for entity in names:
        for metric in (SHOWN, PUBLISHED, REPETITIONS, BELOW_FLOOR, LEASE_LOST):
            metric.labels(entity)
        LATENESS_S.labels(entity)
        for gauge in (LEASE_HELD, PAUSED, ENTITY_WAITS, POLLER_IN_PROGRESS):
            gauge.labels(entity).set(0)
        for reason in Reason:
            PARKED.labels(entity, reason.value)
        for error in SOURCE_ERRORS:
            SOURCE_ERRORS_TOTAL.labels(entity, error)
        for lane in LANES:
            for outcome in PAGE_OUTCOMES:
                PAGES.labels(entity, lane, outcome)


def expect_topics(topics: Iterable[str]) -> None:
    """Make the series of these topics, at zero: the publisher's and the sink's."""
    for why in REBUILD_CAUSES:
        PRODUCER_REBUILDS.labels(why)
    for topic in topics:
        BREAKER_OPEN.labels(topic).set(0)
        REFUSED_TOPICS.labels(topic).set(0)
        SINK_IN_PROGRESS.labels(topic).set(0)
        PUBLISH_S.labels(topic)
        RAW_PUT_S.labels(topic)
        for metric in (PUBLISH_UNKNOWN, CONSUMED, RAW_RECORDS, RAW_BYTES, RAW_ADOPTED, RAW_GAPS):
            metric.labels(topic)
        for cut in CUTS:
            RAW_OBJECTS.labels(topic, cut)


def expect_retries(entities: Iterable[str]) -> None:
    """Make the retrier's series of these entities, at zero; ``unknown`` stands for all that are not configured."""
    for entity in (*entities, "unknown"):
        REPAIRED.labels(entity)
        RETRIES_CLAIMED.labels(entity)
        RETRIES_IN_PROGRESS.labels(entity).set(0)
        for outcome in RETRY_OUTCOMES:
            RETRIES.labels(entity, outcome)


def expect_lake(entities: Iterable[str]) -> None:
    """Make the loader's series of these entities, at zero."""
    for entity in entities:
        for metric in (LAKE_ROWS, LAKE_COMMITS, LAKE_CONFLICTS, LAKE_HEARTBEATS):
            metric.labels(entity)
        LAKE_IN_PROGRESS.labels(entity).set(0)
        LAKE_BATCH_S.labels(entity)
        for reason in LAKE_REASONS:
            LAKE_QUARANTINED.labels(entity, reason)
        for why in LAKE_WAIT_CAUSES:
            LAKE_WAITS.labels(entity, why).set(0)


def show_groups(counts: Mapping[tuple[str, str, str], int]) -> None:
    """Open groups by owner, entity and reason; those that are not there are none."""
    STALE_GROUPS.clear()
    for labels, count in counts.items():
        STALE_GROUPS.labels(*labels).set(count)


def expect_notices(entities: Iterable[str], channels: Iterable[tuple[str, str]]) -> None:
    """Make the notifier's series of these entities, and of these owners' channels, at zero."""
    for entity in entities:
        for outcome in EVIDENCE_OUTCOMES:
            EVIDENCE.labels(entity, outcome)
    for owner, channel in channels:
        CHANNEL_DISABLED.labels(owner, channel).set(0)
        for outcome in CHANNEL_OUTCOMES:
            NOTICES.labels(owner, channel, outcome)


def expect_audits(entities: Iterable[str], kinds: Iterable[str]) -> None:
    """Make the counters of these entities, at zero. The gauges come with the first verdict."""
    for entity in entities:
        AUDIT_FAILED.labels(entity)
        for kind in kinds:
            AUDIT_FINDINGS.labels(entity, kind).set(0)


def unset(gauge: Gauge, *labels: str) -> None:
    """Take one series away, whether it was there or not."""
    with suppress(KeyError):
        gauge.remove(*labels)


def exposition() -> bytes:
    """All series in Prometheus's text format."""
    return generate_latest(REGISTRY)
