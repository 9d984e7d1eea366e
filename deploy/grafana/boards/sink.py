"""The sink: from Kafka to raw objects."""

from deploy.grafana.board import ANY_IS_BAD, YES_IS_BAD, Board, Panel, Query, Row
from deploy.grafana.expressions import LAG_RECORDS, T, age, quantile, rate, stage_age

_LAG = Row(
    "Does it keep up?",
    (
        Panel(
            title="Lag in records",
            question="How many records in Kafka are in no raw object yet?",
            bad="Growing: add sinks up to the number of partitions; or S3 is slow, or down (see below).",
            unit="short",
            width=12,
            queries=(Query(f"sum by (topic) ({LAG_RECORDS})", "{{topic}}"),),
        ),
        Panel(
            title="Lag in seconds",
            question="How long ago was all of a partition known to be in the bucket?",
            bad="Above `object_age_s_max` (30 s) and growing: the sink stands or is too slow. `tidemark status`.",
            unit="s",
            width=12,
            queries=(Query(stage_age("raw"), "{{entity}}"),),
        ),
        Panel(
            title="Records in and out",
            question="Does what is taken from Kafka leave for the bucket?",
            bad="`in` above `out` for longer than an object's age: PUTs fail.",
            unit="cps",
            queries=(
                Query(rate("tidemark_sink_consumed_total", "topic", T), "in, {{topic}}"),
                Query(rate("tidemark_raw_records_total", "topic", T), "out, {{topic}}"),
            ),
        ),
        Panel(
            title="Waits",
            question="Does any partition of the topic stand still?",
            bad="`schema`: its schema id isn't in the registry, or that is down. `stopped`: more than 50 undecodable "
            "records in a row; `tidemark parked list --reason undecodable`.",
            unit="bool",
            kind="states",
            queries=(Query(f"max by (topic, why) (tidemark_sink_partition_waits{{{T}}})", "{{topic}}: {{why}}"),),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
        Panel(
            title="Topics refused",
            question="Is there a topic that the sink won't read?",
            bad="Its offsets began anew or its end is below the ledger's: the log says which. `tidemark raw show "
            "account_events`; a topic made anew needs its next generation.",
            unit="bool",
            kind="states",
            queries=(Query(f"max by (topic) (tidemark_sink_refused_topic{{{T}}})", "{{topic}}"),),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
    ),
)

_OBJECTS = Row(
    "Objects",
    (
        Panel(
            title="Objects, by what cut them",
            question="How many objects are written, and why then?",
            bad="Mostly `revoked`: members come and go (restarts, stalls). Mostly `clock` with few records each: raise "
            "`object_age_s_max`, or live with small objects.",
            unit="cps",
            kind="stack",
            queries=(Query(rate("tidemark_raw_objects_total", "cut", T), "{{cut}}"),),
        ),
        Panel(
            title="Records in an object",
            question="How large are the objects?",
            bad="A handful each in a busy topic: the loader and S3 pay per object. Raise `object_age_s_max`.",
            unit="short",
            queries=(
                Query(
                    f"{rate('tidemark_raw_records_total', 'topic', T)}"
                    f" / ({rate('tidemark_raw_objects_total', 'topic', T)} > 0)",
                    "{{topic}}",
                ),
            ),
        ),
        Panel(
            title="Bytes written",
            question="How much goes to the bucket, compressed?",
            bad="A jump without more records: larger events, or a codec that no longer fits them.",
            unit="Bps",
            queries=(Query(rate("tidemark_raw_bytes_total", "topic", T), "{{topic}}"),),
        ),
        Panel(
            title="Time of a PUT, retries included",
            question="How fast does S3 take an object?",
            bad="p99 of seconds: S3 is slow or throttles; partitions pause meanwhile, and lag grows.",
            unit="s",
            queries=(
                Query(quantile(0.5, "tidemark_raw_put_seconds", "topic", T), "{{topic}}, p50"),
                Query(quantile(0.99, "tidemark_raw_put_seconds", "topic", T), "{{topic}}, p99"),
            ),
        ),
        Panel(
            title="Objects found written already",
            question="Does anybody else write the same offsets?",
            bad="A few at a restart or rebalance are meant to be (the object there is adopted). Steadily: two members "
            "believe that they own the partition.",
            unit="short",
            queries=(
                Query(f"sum by (topic) (increase(tidemark_raw_adopted_total{{{T}}}[$__rate_interval]))", "{{topic}}"),
            ),
        ),
        Panel(
            title="Age of the last object",
            question="When was the last object of each topic written?",
            bad="Old in a busy topic. In a quiet one it is old because nothing came: see `Lag in seconds`.",
            unit="s",
            queries=(Query(age("tidemark_raw_last_object_timestamp_seconds", "topic", T), "{{topic}}"),),
        ),
    ),
)

_LIMITS = Row(
    "Limits and losses",
    (
        Panel(
            title="Buffered, bytes",
            question="How much memory is held by objects that aren't written yet?",
            bad="At its limit: S3 doesn't keep up, partitions are paused. It is bounded, and nothing is lost.",
            unit="bytes",
            queries=(Query('sum by (instance) (tidemark_sink_buffered_bytes{job="s3-sink"})', "{{instance}}"),),
        ),
        Panel(
            title="Buffered, records",
            question="How many records were read that no object holds yet?",
            bad="Never back at 0 in a quiet topic: its PUT fails again and again.",
            unit="short",
            queries=(Query(f"sum by (topic) (tidemark_sink_in_progress_records{{{T}}})", "{{topic}}"),),
        ),
        Panel(
            title="Offsets lost to Kafka's retention",
            question="Did Kafka delete records before the sink read them?",
            bad="Any is a loss, marked in the ledger. `tidemark audit` names the events; re-read them from the source "
            "with "
            "`tidemark cursor set account_events --to 2026-01-31T00:00:00Z --reason gap`. Lengthen the retention.",
            unit="short",
            queries=(
                Query(f"sum by (topic) (increase(tidemark_raw_gap_records_total{{{T}}}[$__range]))", "{{topic}}"),
            ),
            steps=ANY_IS_BAD,
        ),
    ),
)

SINK = Board(
    uid="tidemark-sink",
    title="Sink: is what Kafka holds in the raw bucket?",
    question="Does the sink keep up, what does it write, and does anything keep it from writing?",
    rows=(_LAG, _OBJECTS, _LIMITS),
    variables=("entity", "topic"),
)
