"""The poller: from the source's answer to Kafka's acknowledgement."""

from deploy.grafana.board import ANY_IS_BAD, NONE_IS_BAD, YES_IS_BAD, Board, Panel, Query, Row
from deploy.grafana.expressions import E, age, present, quantile, rate


def _commit(share: float) -> str:
    histogram = "tidemark_checkpoint_commit_seconds_bucket"
    return f"histogram_quantile({share}, sum by (le) (rate({histogram}[$__rate_interval])))"


_STATE = Row(
    "Is it reading?",
    (
        Panel(
            title="Who reads",
            question="Is each entity owned by exactly one poller?",
            bad="0: no poller holds its lease, it isn't read: are the pollers up? 2 for more than a moment: report it.",
            unit="short",
            kind="states",
            queries=(Query(f"sum by (entity) (tidemark_lease_held{{{E}}})", "{{entity}}"),),
            steps=NONE_IS_BAD,
            names=(("0", "nobody"), ("1", "owned")),
        ),
        Panel(
            title="Paused",
            question="Is any entity paused?",
            bad="Paused by an operator, by too many invalid events, or by a tick of more rows than a page may hold. "
            "`tidemark entity list` shows why; `tidemark entity resume account_events` ends it.",
            unit="bool",
            kind="states",
            queries=(Query(f"max by (entity) (tidemark_paused{{{E}}})", "{{entity}}"),),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
        Panel(
            title="Waits for schema or cursor",
            question="Is any entity kept from starting?",
            bad="The registry or Postgres doesn't answer, or the schema is refused; the log says which. `tidemark "
            "status`.",
            unit="bool",
            kind="states",
            queries=(Query(f"max by (entity) (tidemark_entity_waits{{{E}}})", "{{entity}}"),),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
        Panel(
            title="Age of the cursor",
            question="Up to which time of the source is everything read?",
            bad="Climbs in a quiet table, whose last change is old. If `Last commit` climbs too, nothing is read.",
            unit="s",
            queries=(Query(age("tidemark_cursor_timestamp_seconds", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Last commit",
            question="When was a page of the entity last committed?",
            bad="Longer ago than some poll intervals: the source fails (see its errors), or Postgres. "
            "`tidemark cursor show account_events`.",
            unit="s",
            queries=(Query(age("tidemark_last_commit_timestamp_seconds", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Last completed lookback",
            question="Up to when were late commits looked for?",
            bad="Climbing: lookbacks don't end. The source is slow, or the window is long for its rate of changes.",
            unit="s",
            queries=(Query(age("tidemark_swept_timestamp_seconds", "entity, lane", E), "{{entity}}, {{lane}}"),),
        ),
    ),
)

_ROWS = Row(
    "What becomes of the rows",
    (
        Panel(
            title="Rows shown, by what became of them",
            question="Is each row published, parked, known already, or below the floor?",
            bad="`below the floor`: rows dated so far back that they can't be told from seen ones; raise the lateness "
            "cap "
            "(`tidemark audit --source` finds them). Many repetitions are normal: lookbacks read again.",
            unit="cps",
            kind="stack",
            width=12,
            queries=(
                Query(f"sum(rate(tidemark_published_total{{{E}}}[$__rate_interval]))", "published"),
                Query(f"sum(rate(tidemark_park_total{{{E}}}[$__rate_interval]))", "parked"),
                Query(f"sum(rate(tidemark_repetitions_total{{{E}}}[$__rate_interval]))", "known already"),
                Query(f"sum(rate(tidemark_below_floor_total{{{E}}}[$__rate_interval]))", "below the floor"),
            ),
        ),
        Panel(
            title="Rows shown by the source",
            question="How busy is each source?",
            bad="A fall to 0 in a busy table, without errors: the source shows nothing new. Ask its owner.",
            unit="cps",
            width=12,
            queries=(Query(rate("tidemark_shown_total", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Parked, by reason",
            question="What can't be published, and why?",
            bad="`tidemark parked groups` shows root causes; `tidemark parked list` the events.",
            unit="cps",
            kind="stack",
            queries=(Query(present("reason", f"rate(tidemark_park_total{{{E}}}[$__rate_interval])"), "{{reason}}"),),
        ),
        Panel(
            title="Lateness of new changes, p99",
            question="How far behind the cursor are changes dated that commit late?",
            bad="Near the lateness cap (1 h by default): what is later still is never seen. Raise the entity's cap.",
            unit="s",
            queries=(Query(quantile(0.99, "tidemark_lateness_seconds", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Pages, by outcome",
            question="What becomes of the pages asked for?",
            bad="`refetched`: the answer was cut or malformed; `failed`: see the source's errors.",
            unit="reqps",
            kind="stack",
            queries=(Query(rate("tidemark_pages_total", "lane, outcome", E) + " > 0", "{{lane}}: {{outcome}}"),),
        ),
    ),
)

_SOURCE = Row(
    "The source",
    (
        Panel(
            title="Errors of the source",
            question="Does the source answer well?",
            bad="`source_rate_limited`: lower its `rate`; `source_auth`: the secret expired; `source_malformed`: no "
            "array "
            "where `records` says. The cursor stands meanwhile.",
            unit="cps",
            kind="stack",
            queries=(
                Query(present("class", f"rate(tidemark_source_errors_total{{{E}}}[$__rate_interval])"), "{{class}}"),
            ),
        ),
        Panel(
            title="Time to a whole answer",
            question="How fast does the source answer?",
            bad="p99 near the timeout: a smaller page, or an index on the source's `updated_at`.",
            unit="s",
            queries=(
                Query(quantile(0.5, "tidemark_source_request_seconds", "source", ""), "{{source}}, p50"),
                Query(quantile(0.99, "tidemark_source_request_seconds", "source", ""), "{{source}}, p99"),
            ),
        ),
        Panel(
            title="Clock of the source",
            question="Do the source's clock and ours agree?",
            bad="More than seconds: the cursor follows the slower one, and rows come late. Mend the clock that is "
            "wrong.",
            unit="s",
            queries=(Query("max by (source) (abs(tidemark_source_clock_skew_seconds))", "{{source}}"),),
        ),
    ),
)

_KAFKA = Row(
    "Kafka and the leases",
    (
        Panel(
            title="Time to the last acknowledgement of a page",
            question="How fast does Kafka take a page?",
            bad="p99 near the delivery deadline (15 s): pages will be parked. Look at Kafka's brokers.",
            unit="s",
            queries=(
                Query(quantile(0.5, "tidemark_publish_seconds", "topic", ""), "{{topic}}, p50"),
                Query(quantile(0.99, "tidemark_publish_seconds", "topic", ""), "{{topic}}, p99"),
            ),
        ),
        Panel(
            title="Breaker",
            question="Is Kafka taken to be down?",
            bad="Open: changes are parked, up to the budget, and re-driven when a broker answers. `tidemark status` "
            "asks Kafka.",
            unit="bool",
            kind="states",
            queries=(Query("max by (target) (tidemark_breaker_state)", "{{target}}"),),
            steps=ANY_IS_BAD,
            names=(("0", "closed"), ("1", "open")),
        ),
        Panel(
            title="Unknown outcomes and rebuilt producers",
            question="Was anything sent whose acknowledgement never came?",
            bad="Each is parked as `kafka_unknown` and may be in Kafka twice, under one event id: the lake merges "
            "them.",
            unit="short",
            queries=(
                Query("sum by (topic) (increase(tidemark_publish_unknown_total[$__rate_interval]))", "{{topic}}"),
                Query("sum by (why) (increase(tidemark_producer_rebuild_total[$__rate_interval]))", "rebuilt: {{why}}"),
            ),
        ),
        Panel(
            title="Time of a page's transaction",
            question="How fast does Postgres commit?",
            bad="p99 of seconds: Postgres is slow, or far; pages wait for it, and leases run out.",
            unit="s",
            queries=(
                Query(_commit(0.5), "p50"),
                Query(_commit(0.99), "p99"),
            ),
        ),
        Panel(
            title="Leases taken over",
            question="Do pollers lose their entities to each other?",
            bad="More than at a deployment: a poller stalls longer than its lease (see `Runtime`), or Postgres is "
            "slow.",
            unit="short",
            queries=(
                Query(f"sum by (entity) (increase(tidemark_lease_lost_total{{{E}}}[$__rate_interval]))", "{{entity}}"),
            ),
        ),
        Panel(
            title="Parked events woken by a new contract",
            question="Does a new schema version cure what was refused?",
            bad="None after a version that should: `tidemark parked redrive --all --dry-run` tries it on all parked "
            "events.",
            unit="short",
            queries=(
                Query(
                    f"sum by (entity) (increase(tidemark_parked_woken_total{{{E}}}[$__rate_interval]))", "{{entity}}"
                ),
            ),
        ),
    ),
)

POLLER = Board(
    uid="tidemark-poller",
    title="Poller: is each source read to its end?",
    question="Is every entity read, by one poller, without errors, and what becomes of its rows?",
    rows=(_STATE, _ROWS, _SOURCE, _KAFKA),
)
