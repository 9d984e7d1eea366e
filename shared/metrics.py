"""Every metric of Tidemark: a closed set, each typed and described. Labels come from configuration or closed enums.

Timestamps are exported, never ages: the reader subtracts. Rates see zeros because ``expect_*`` makes the label sets
at start. One process per registry; prometheus-client's multiprocess mode is never used.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from shared.events.model import Reason

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # would double the number of series

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

LANES = ("tail", "lookback", "cap")
PAGE_OUTCOMES = ("committed", "empty", "refetched", "failed")
SOURCE_ERRORS = ("source_unavailable", "source_rate_limited", "source_auth", "source_malformed", "source_cursor")
CUTS = ("bytes", "records", "clock", "revoked", "stop")
REBUILD_CAUSES = ("deadline", "fatal")
RETRY_OUTCOMES = ("published", "again", "hold", "stale", "given_back", "lease_lost", "failed")
LAKE_REASONS = ("corrupt", "no_key", "no_order")
LAKE_WAIT_CAUSES = ("raw", "schema", "breaking", "transform", "store", "spark")
NOTICE_OUTCOMES = ("accepted", "unavailable", "refused")
EVIDENCE_OUTCOMES = ("written", "unavailable", "refused")

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATENESS_S = (0.01, 0.1, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"tidemark_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"tidemark_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"tidemark_{name}", text, labels, buckets=buckets, registry=REGISTRY)


# Any process
BUILD = _gauge("build_info", "1, labelled with the running version.", "service", "version")
LOOP_STALL_S = _histogram("loop_stall_seconds", "How late the event loop woke a timer.", _SECONDS)
PROCESS = ProcessCollector(namespace="tidemark", registry=REGISTRY)

# Whoever wakes parked events after a change of their contract
WOKEN = _counter("parked_woken", "Held events that a new contract accepts, made due.", "entity", "reason")

# The poller: shown = published + parked + repetitions + below_floor
SHOWN = _counter("shown", "Rows that the source showed, repetitions included.", "entity")
PUBLISHED = _counter("published", "Changes that Kafka acknowledged.", "entity")
PARKED = _counter("park", "Changes parked durably, by the reason.", "entity", "reason")
REPETITIONS = _counter("repetitions", "Rows dropped because they were seen before.", "entity")
BELOW_FLOOR = _counter("below_floor", "Rows dated below the floor of the seen entries, not published.", "entity")
PAGES = _counter("pages", "Pages asked for.", "entity", "lane", "outcome")
SOURCE_ERRORS_TOTAL = _counter("source_errors", "Failed answers of the source.", "entity", "class")
LATENESS_S = _histogram("lateness_seconds", "How far behind the cursor a new change was dated.", _LATENESS_S, "entity")
CURSOR = _gauge("cursor_timestamp_seconds", "The cursor: the source's time up to which all is read.", "entity")
SWEPT = _gauge("swept_timestamp_seconds", "The cursor at which the last completed lookback began.", "entity", "lane")
NEWEST_COMMIT = _gauge("last_commit_timestamp_seconds", "When a page of the entity was last committed.", "entity")
CLOCK_SKEW_S = _gauge("source_clock_skew_seconds", "The source's Date minus our clock.", "source")
SOURCE_S = _histogram("source_request_seconds", "Time to a whole answer of the source.", _SECONDS, "source")
LEASE_HELD = _gauge("lease_held", "1 while this process owns the entity.", "entity")
LEASE_LOST = _counter("lease_lost", "Leases that another process took over (fenced).", "entity")
ENTITY_WAITS = _gauge("entity_waits", "1 while schema or cursor can't be had; the log says why.", "entity")
PAUSED = _gauge("paused", "1 while the entity is paused; an operator or a new schema version resumes it.", "entity")

# Kafka's publisher
BREAKER_OPEN = _gauge("breaker_state", "1 while the topic's breaker is open, else 0.", "target")
PRODUCER_REBUILDS = _counter("producer_rebuild", "Producers destroyed and made anew.", "why")
PUBLISH_UNKNOWN = _counter("publish_unknown", "Records without an acknowledgement at the deadline.", "topic")
PUBLISH_S = _histogram("publish_seconds", "Time until the last acknowledgement of a page.", _SECONDS, "topic")

# DynamoDB
DYNAMO_THROTTLES = _counter("dynamo_throttle", "Requests that DynamoDB throttled.", "index", "reason")

# The retrier
PARKED_ITEMS = _gauge("parked_items", "Items in the parked table (exact count).", "entity", "reason", "state")
PARKED_OLDEST = _gauge(
    "parked_oldest_timestamp_seconds", "When the oldest of them was first parked; absent: none.", "entity", "reason"
)
PARKED_COUNTED = _gauge("parked_counted_timestamp_seconds", "When the parked items were last counted.")
RETRIES = _counter("retries", "Parked events taken up again, by what became of them.", "entity", "outcome")
REPAIRED = _counter("repaired", "Parked events changed by a repair rule, the original kept.", "entity")
REDRIVE_LIMIT = _gauge("redrive_limit_per_second", "Records that the re-drive may publish in a second, now.")
PACED = _counter("redrive_paced", "Waits of the re-drive for its share of the publishing.")

# The sink
CONSUMED = _counter("sink_consumed", "Records taken from Kafka.", "topic")
RAW_OBJECTS = _counter("raw_objects", "Objects written, by what cut them.", "topic", "cut")
RAW_RECORDS = _counter("raw_records", "Records in the objects written.", "topic")
RAW_BYTES = _counter("raw_bytes", "Compressed bytes of the objects written.", "topic")
RAW_PUT_S = _histogram("raw_put_seconds", "Time of one conditional PUT, retries included.", _SECONDS, "topic")
RAW_ADOPTED = _counter("raw_adopted", "Objects found written already (412) and adopted.", "topic")
RAW_GAPS = _counter("raw_gap_records", "Offsets lost to Kafka's retention before they were read.", "topic")
BUFFERED_BYTES = _gauge("sink_buffered_bytes", "Bytes held for objects that are not yet written.")
NEXT_OFFSET = _gauge("sink_next_offset", "The ledger's next offset.", "topic", "partition")
LOG_END = _gauge("sink_log_end_offset", "Kafka's log end, as last seen.", "topic", "partition")
LAST_OBJECT = _gauge("raw_last_object_timestamp_seconds", "When the last object of a topic was written.", "topic")
REFUSED_TOPICS = _gauge("sink_refused_topic", "1 while the sink refuses the topic; its log says why.", "topic")
PARTITION_WAITS = _gauge(
    "sink_partition_waits", "1 while the sink does not read on: schema, stopped.", "topic", "partition", "why"
)

# The notifier
STALE_GROUPS = _gauge("stale_groups", "Groups of stale events that are not resolved.", "owner", "entity", "reason")
OLDEST_UNNOTIFIED = _gauge(
    "oldest_unnotified_timestamp_seconds", "Since when the oldest stale event waits for its notice; now: none does."
)
NOTICES = _counter("notices", "Notices given to a channel, by what it made of them.", "owner", "channel", "outcome")
CHANNEL_DISABLED = _gauge("channel_disabled", "1 since the channel said that it is gone.", "owner", "channel")
STALE_NOTIFIED = _counter("stale_notified", "Stale events of whose group the owner was told.", "entity", "reason")
EVIDENCE = _counter("evidence", "Evidence objects, by what became of the attempt.", "entity", "outcome")
STALE_DELETED = _counter("stale_deleted", "Stale events that left the table for the archive.", "entity", "reason")
NOTIFIER_LEASE_LOST = _counter("notifier_lease_lost", "Stale events that were taken from us, or woken, meanwhile.")
NOTIFIER_WAITS = _counter("notifier_waits", "Turns that an edge refused, and after which a lane waited.", "why")

# The loader
LAKE_ROWS = _counter("lake_rows", "Raw rows that a commit took in, superseded ones included.", "entity")
LAKE_QUARANTINED = _counter("lake_quarantined", "Raw rows that can't be merged, by the reason.", "entity", "reason")
LAKE_COMMITS = _counter("lake_commits", "Commits that merged raw rows.", "entity")
LAKE_CONFLICTS = _counter("lake_conflicts", "Attempts that another writer's commit came before.", "entity")
LAKE_BATCH_S = _histogram(
    "lake_batch_seconds", "Time from looking for raw objects to their commit.", (*_SECONDS, 60, 120, 300), "entity"
)
LAKE_LAST_COMMIT = _gauge("lake_last_commit_timestamp_seconds", "When raw rows were last merged.", "entity")
LAKE_POSITION = _gauge(
    "lake_position", "The first offset that is not merged.", "entity", "topic", "generation", "partition"
)
LAKE_WAITS = _gauge("lake_waits", "1 while the entity is not merged on; the log says why.", "entity", "why")

# The audit (`tidemark audit --watch`)
AUDIT_COMPLETE = _gauge("audit_complete", "1 when the entity's last audit found nothing missing, else 0.", "entity")
AUDIT_ENDED = _gauge("audit_ended_timestamp_seconds", "When the entity's last audit ended.", "entity")
AUDIT_FINDINGS = _gauge("audit_findings", "What the entity's last audit found, by kind.", "entity", "why")
AUDIT_EVENTS = _gauge("audit_events", "Distinct events of the last audit, by where they are.", "entity", "state")
AUDIT_FAILED = _counter("audit_failed", "Audits that a server's failure ended before their verdict.", "entity")
AUDIT_S = _gauge("audit_seconds", "How long the last audit of the entity took.", "entity")


def started(service: str) -> None:
    """Set the build info: ``tidemark_build_info{service,version} 1``."""
    try:
        running = version("tidemark")
    except PackageNotFoundError:  # run from a checkout that is not installed
        running = "unknown"
    BUILD.labels(service, running).set(1)


def expect_entities(names: Iterable[str]) -> None:
    """Make the poller's series of these entities, at zero. The reasons are all that a poller may park for."""
    for entity in names:
        for metric in (SHOWN, PUBLISHED, REPETITIONS, BELOW_FLOOR, LEASE_LOST):
            metric.labels(entity)
        LATENESS_S.labels(entity)
        for gauge in (LEASE_HELD, PAUSED, ENTITY_WAITS):
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
        for metric in (PUBLISH_UNKNOWN, CONSUMED, RAW_RECORDS, RAW_BYTES, RAW_ADOPTED, RAW_GAPS):
            metric.labels(topic)
        for cut in CUTS:
            RAW_OBJECTS.labels(topic, cut)


def expect_retries(entities: Iterable[str]) -> None:
    """Make the retrier's series of these entities, at zero; ``unknown`` stands for all that are not configured."""
    for entity in (*entities, "unknown"):
        REPAIRED.labels(entity)
        for outcome in RETRY_OUTCOMES:
            RETRIES.labels(entity, outcome)


def expect_lake(entities: Iterable[str]) -> None:
    """Make the loader's series of these entities, at zero."""
    for entity in entities:
        for metric in (LAKE_ROWS, LAKE_COMMITS, LAKE_CONFLICTS):
            metric.labels(entity)
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
        for outcome in NOTICE_OUTCOMES:
            NOTICES.labels(owner, channel, outcome)


def expect_audits(entities: Iterable[str], kinds: Iterable[str]) -> None:
    """Make the counters of these entities, at zero. The gauges come with the first verdict."""
    for entity in entities:
        AUDIT_FAILED.labels(entity)
        for kind in kinds:
            AUDIT_FINDINGS.labels(entity, kind).set(0)


def exposition() -> bytes:
    """All series in Prometheus's text format."""
    return generate_latest(REGISTRY)
