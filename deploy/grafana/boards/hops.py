"""Where is a row now? One row of panels for each place, in the order of the way."""

from deploy.grafana.board import ANY_IS_BAD, YES_IS_BAD, Board, Panel, Query, Row
from deploy.grafana.expressions import (
    LAG_RECORDS,
    PARKED_OPEN,
    UNMERGED_RECORDS,
    E,
    age,
    by_entity,
    oldest,
    quantile,
    rate,
    stage_age,
)

_SOURCE = Row(
    "1  At the source: what was not read yet",
    (
        Panel(
            title="Age, source",
            question="How long ago was the source read to its end?",
            bad="Above some poll intervals: it isn't asked, or doesn't answer. Board `Poller`.",
            unit="s",
            queries=(Query(stage_age("source"), "{{entity}}"),),
        ),
        Panel(
            title="Read and neither published nor parked yet",
            question="How many rows does the poller hold?",
            bad="A page at most. Standing: Kafka and DynamoDB are both away, and the cursor stands.",
            unit="short",
            queries=(Query(f"sum by (entity) (tidemark_poller_in_progress_events{{{E}}})", "{{entity}}"),),
        ),
        Panel(
            title="Read, published, parked",
            question="How many rows leave this place?",
            bad="`published` at 0 with `parked` above: Kafka is away, or all events are refused.",
            unit="cps",
            queries=(
                Query(f"sum(rate(tidemark_shown_total{{{E}}}[$__rate_interval]))", "shown, repetitions too"),
                Query(f"sum(rate(tidemark_published_total{{{E}}}[$__rate_interval]))", "published"),
                Query(f"sum(rate(tidemark_park_total{{{E}}}[$__rate_interval]))", "parked"),
            ),
        ),
    ),
)

_KAFKA = Row(
    "2  In Kafka: not in a raw object yet",
    (
        Panel(
            title="Age, raw",
            question="How long ago was the topic written to its end into the bucket?",
            bad="Above an object's age (30 s) and climbing: the sink stands. Board `Sink`.",
            unit="s",
            queries=(Query(stage_age("raw"), "{{entity}}"),),
        ),
        Panel(
            title="Records in Kafka, not in raw",
            question="How many rows are here?",
            bad="Growing while the source is no busier: the sink is too slow, or stands.",
            unit="short",
            queries=(
                Query(by_entity(LAG_RECORDS), "{{entity}}"),
                Query(by_entity("tidemark_sink_in_progress_records"), "of them held by a sink, {{entity}}"),
            ),
        ),
        Panel(
            title="Taken from Kafka, written to raw",
            question="How many rows leave this place?",
            bad="`taken` without `written`: S3 doesn't take them.",
            unit="cps",
            queries=(
                Query(f"sum({by_entity('rate(tidemark_sink_consumed_total[$__rate_interval])')})", "taken"),
                Query(f"sum({by_entity('rate(tidemark_raw_records_total[$__rate_interval])')})", "written"),
            ),
        ),
    ),
)

_RAW = Row(
    "3  In the raw bucket: not in Delta yet",
    (
        Panel(
            title="Age, lake",
            question="How long ago was the bucket merged to its end?",
            bad="Above the batch's period: the loader doesn't run, waits (right), or is too slow.",
            unit="s",
            queries=(Query(stage_age("lake"), "{{entity}}"),),
        ),
        Panel(
            title="Records in raw, not in Delta",
            question="How many rows are here?",
            bad="Growing: the loader is too slow: run it more often, or give it more cores.",
            unit="short",
            queries=(
                Query(by_entity(UNMERGED_RECORDS), "{{entity}}"),
                Query(f"sum by (entity) (tidemark_lake_in_progress_rows{{{E}}})", "in the batch in hand, {{entity}}"),
            ),
        ),
        Panel(
            title="Loader waits",
            question="Is an entity kept from being merged?",
            bad="`raw`: a hole in the ledger: `tidemark raw mend account_events`. `schema`, `breaking`: the new "
            "version can't be "
            "merged; the log says what to do.",
            unit="bool",
            kind="states",
            queries=(
                Query(
                    f"(max by (entity, why) (tidemark_lake_waits{{{E}}}) > 0) or"
                    f" (0 * max by (entity) (tidemark_lake_waits{{{E}}}))",
                    "{{entity}} {{why}}",
                ),
            ),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
    ),
)

_DELTA = Row(
    "4  In Delta",
    (
        Panel(
            title="Age of the last commit with rows",
            question="When did the table last change?",
            bad="Climbs in a quiet table. If `Age, lake` climbs too, it stands.",
            unit="s",
            queries=(Query(age("tidemark_lake_last_commit_timestamp_seconds", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Rows merged",
            question="How many rows arrive?",
            bad="Below `written` of the bucket for long: rows pile up there.",
            unit="cps",
            queries=(Query(rate("tidemark_lake_rows_total", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Rows set aside",
            question="Which raw rows can't be merged?",
            bad="Any: they lie in the quarantine table. `corrupt` is an error of ours; `tidemark audit` counts them.",
            unit="short",
            queries=(
                Query(
                    f"sum by (entity, reason) (increase(tidemark_lake_quarantined_total{{{E}}}[$__range]))",
                    "{{entity}}: {{reason}}",
                ),
            ),
            steps=ANY_IS_BAD,
        ),
        Panel(
            title="Commits, and attempts that came second",
            question="Do writers get into each other's way?",
            bad="More conflicts than commits: fewer writers, or another time for care.",
            unit="short",
            queries=(
                Query(
                    f"sum by (entity) (increase(tidemark_lake_commits_total{{{E}}}[$__rate_interval]))",
                    "commits, {{entity}}",
                ),
                Query(
                    f"sum by (entity) (increase(tidemark_lake_conflicts_total{{{E}}}[$__rate_interval]))",
                    "conflicts, {{entity}}",
                ),
            ),
        ),
        Panel(
            title="Time of a batch",
            question="How long from looking for raw objects to their commit?",
            bad="Near the period: it won't keep up. `tidemark table maintain` compacts small files.",
            unit="s",
            queries=(
                Query(quantile(0.5, "tidemark_lake_batch_seconds", "entity", E), "{{entity}}, p50"),
                Query(quantile(0.99, "tidemark_lake_batch_seconds", "entity", E), "{{entity}}, p99"),
            ),
        ),
        Panel(
            title="First offset not merged",
            question="Up to where is each partition merged?",
            bad="Flat while the topic grows: see `Loader waits`. `tidemark trace account_events 1` follows one key.",
            unit="short",
            queries=(
                Query(
                    f"max by (topic, generation, partition) (tidemark_lake_position{{{E}}})",
                    "{{topic}}/{{generation}}/{{partition}}",
                ),
            ),
        ),
    ),
)

_ASIDE = Row(
    "Aside, and through the whole pipe",
    (
        Panel(
            title="Parked",
            question="How many rows left the way, and may come back?",
            bad="Board `Parked and notices`; `tidemark parked groups`.",
            unit="short",
            queries=(Query(f"sum by (entity) ({PARKED_OPEN})", "{{entity}}"),),
        ),
        Panel(
            title="Age of the oldest parked",
            question="For how long?",
            bad="Hours: `tidemark parked list --limit 5`. 0: none is parked.",
            unit="s",
            queries=(Query(oldest("entity"), "{{entity}}"),),
        ),
        Panel(
            title="Heartbeat",
            question="How old is the newest heartbeat event that each stage saw?",
            bad="A stage that climbs while those before it don't: it is the one that stands. Only entities with "
            "`heartbeat_s` have one.",
            unit="s",
            queries=(
                Query(
                    "time() - min by (entity, stage)"
                    f" (max by (entity, stage, partition) (tidemark_heartbeat_timestamp_seconds{{{E}}}))",
                    "{{entity}}, {{stage}}",
                ),
            ),
        ),
        Panel(
            title="Heartbeats sent, and set aside by the loader",
            question="Do heartbeats leave, and do they reach the end?",
            bad="`failed`: Kafka doesn't take them. Sent, but none reach the loader: see `Heartbeat` for the stage.",
            unit="short",
            width=24,
            queries=(
                Query(
                    f"sum by (outcome) (increase(tidemark_heartbeats_total{{{E}}}[$__rate_interval]))", "{{outcome}}"
                ),
                Query(f"sum(increase(tidemark_lake_heartbeats_total{{{E}}}[$__rate_interval]))", "reached the loader"),
            ),
        ),
    ),
)

HOPS = Board(
    uid="tidemark-hops",
    title="Where is a row now?",
    question="How many rows are in each place between the source and Delta, and for how long?",
    rows=(_SOURCE, _KAFKA, _RAW, _DELTA, _ASIDE),
)
