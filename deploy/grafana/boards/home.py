"""Home: what a user of the tables asks first."""

from deploy.grafana.board import ANY_IS_BAD, NONE_IS_BAD, Board, Panel, Query, Row, good_above, good_below
from deploy.grafana.expressions import (
    FRESHNESS_BY_STAGE_S,
    FRESHNESS_S,
    IS_FRESH,
    LAG_RECORDS,
    OBJECTIVE_S,
    OLDEST_UNTOLD_S,
    PARKED_OPEN,
    UNMERGED_RECORDS,
    E,
    budget_left,
    by_entity,
    oldest,
    present,
)

_ANSWER = Row(
    "The answer",
    (
        Panel(
            title="Entities within their objective",
            question="How many of my tables are as fresh as promised, now?",
            bad="Below 100 %: the strip below says which, `Freshness by stage` where it is held up. `tidemark status`.",
            unit="percentunit",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(f"avg({IS_FRESH})", "fresh"),),
            steps=good_above(0.9, 1),
        ),
        Panel(
            title="Error budget left, 30 days",
            question="How much lateness may the worst entity still have within 30 days?",
            bad="The objective is 99 % of the time. At 0 % stop risky changes; below, the promise is broken. `no "
            "data`: the "
            "rules of deploy/prometheus aren't loaded.",
            unit="percentunit",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(budget_left(30), "worst entity"),),
            steps=good_above(0, 0.25),
        ),
        Panel(
            title="Error budget left, 7 days",
            question="Is this week's budget being used up?",
            bad="Lower than that of 30 days: it was worse lately than it used to be. Look which entity, and since "
            "when.",
            unit="percentunit",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(budget_left(7), "worst entity"),),
            steps=good_above(0, 0.25),
        ),
        Panel(
            title="Events in no place",
            question="Is anything missing: neither in the lake, nor parked, nor archived?",
            bad="Any is a loss. `tidemark audit` names the events and the command that repairs; `no data` means that "
            "`tidemark audit --watch` doesn't run.",
            unit="short",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(f"sum(max by (entity) (tidemark_conservation_gap_events{{{E}}}))", "missing"),),
            steps=ANY_IS_BAD,
        ),
        Panel(
            title="Parked, open",
            question="How many events wait for a second chance, or for a person?",
            bad="Growing: `tidemark parked groups` shows them by root cause. During an outage of Kafka it is meant to.",
            unit="short",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(f"sum({PARKED_OPEN})", "parked"),),
            steps=good_below(1, 1000),
        ),
        Panel(
            title="Waits for its notice",
            question="For how long has the oldest stale event waited for its owner to be told?",
            bad="More than minutes: a channel is down, or the notifier. `tidemark parked groups --state STALE`.",
            unit="s",
            kind="stat",
            width=4,
            height=5,
            queries=(Query(OLDEST_UNTOLD_S, "oldest"),),
            steps=good_below(900, 3600),
        ),
    ),
)

_FRESH = Row(
    "Is it fresh?",
    (
        Panel(
            title="Share of the objective used, by entity",
            question="Which entity was later than promised, and when?",
            bad="Orange: late. Red: later than twice the objective. A quiet table stays green: its source was asked.",
            unit="percentunit",
            kind="states",
            width=24,
            height=6,
            queries=(Query(f"{FRESHNESS_S} / on (entity) {OBJECTIVE_S}", "{{entity}}"),),
            steps=good_below(1, 2),
        ),
        Panel(
            title="Freshness by entity",
            question="Up to how many seconds ago is everything in the lake?",
            bad="Climbing by a second per second: it stands still. `tidemark entity list` shows what is paused.",
            unit="s",
            width=12,
            queries=(
                Query(FRESHNESS_S, "{{entity}}"),
                Query(OBJECTIVE_S, "objective of {{entity}}"),
            ),
        ),
        Panel(
            title="Freshness by stage",
            question="Where is it held up: at the source, before the raw bucket, before Delta?",
            bad="The first stage that climbs is the cause; those behind it follow. Go on to that stage's board.",
            unit="s",
            width=12,
            queries=(Query(f"max by (stage) ({FRESHNESS_BY_STAGE_S})", "{{stage}}"),),
        ),
    ),
)

_COMPLETE = Row(
    "Is it complete?",
    (
        Panel(
            title="Rows in = rows out, hop by hop",
            question="Does each hop hand on as much as it is given?",
            bad="A line that stays below the one before it: rows pile up there, see `On the way`. Parked rows leave "
            "before Kafka, and come back there when they are re-driven.",
            unit="cps",
            width=12,
            queries=(
                Query(
                    f"sum(rate(tidemark_published_total{{{E}}}[$__rate_interval]))"
                    f" + sum(rate(tidemark_park_total{{{E}}}[$__rate_interval]))",
                    "new at the source",
                ),
                Query(
                    f"sum(rate(tidemark_published_total{{{E}}}[$__rate_interval]))"
                    f' + sum(rate(tidemark_retries_total{{{E}, outcome="published"}}[$__rate_interval]))',
                    "published to Kafka, now or re-driven",
                ),
                Query(f"sum({by_entity('rate(tidemark_sink_consumed_total[$__rate_interval])')})", "taken from Kafka"),
                Query(f"sum({by_entity('rate(tidemark_raw_records_total[$__rate_interval])')})", "in raw objects"),
                Query(f"sum(rate(tidemark_lake_rows_total{{{E}}}[$__rate_interval]))", "merged into Delta"),
            ),
        ),
        Panel(
            title="Last audit, by entity",
            question="Did the last audit find every change in one of its places?",
            bad="`incomplete`: `tidemark audit` names what, where, and the command that repairs it.",
            unit="bool",
            kind="states",
            width=12,
            queries=(Query(f"min by (entity) (tidemark_audit_complete{{{E}}})", "{{entity}}"),),
            steps=NONE_IS_BAD,
            names=(("0", "incomplete"), ("1", "complete")),
        ),
        Panel(
            title="Where the audited events are",
            question="In which place is each event that was ever seen?",
            bad="`missing` must be 0. `seen` is the sum of the others, but for events in two places (after a crash).",
            unit="short",
            width=8,
            queries=(Query(f"sum by (state) (max by (entity, state) (tidemark_audit_events{{{E}}}))", "{{state}}"),),
        ),
        Panel(
            title="Findings of the last audit",
            question="What kinds of thing are wrong?",
            bad="Any: each kind stands in the log of `audit` with its repair; `tidemark audit` prints the same.",
            unit="short",
            width=8,
            queries=(
                Query(
                    f"(sum by (why) (max by (entity, why) (tidemark_audit_findings{{{E}}})) > 0) or"
                    f' label_replace(sum(max by (entity, why) (tidemark_audit_findings{{{E}}})), "why", "all", "", "")',
                    "{{why}}",
                ),
                Query(
                    f"sum(increase(tidemark_audit_failed_total{{{E}}}[$__rate_interval]))", "audits without a verdict"
                ),
            ),
            steps=ANY_IS_BAD,
        ),
        Panel(
            title="Age of the verdicts",
            question="Are audits still made, and do they end?",
            bad="Older than the period of `tidemark audit --watch`: it is down, too slow, or a server failed it "
            "(`failed`).",
            unit="s",
            width=8,
            queries=(
                Query(f"time() - max by (entity) (tidemark_audit_ended_timestamp_seconds{{{E}}})", "{{entity}}"),
                Query(f"max by (entity) (tidemark_audit_seconds{{{E}}})", "took, {{entity}}"),
            ),
        ),
    ),
)

_WAITS = Row(
    "What waits",
    (
        Panel(
            title="On the way",
            question="How many rows are between two places, now?",
            bad="Growing while the source is no busier: the hop behind it is too slow, or stands. Board `Where is a "
            "row "
            "now?` shows which, by entity.",
            unit="short",
            kind="stack",
            width=8,
            queries=(
                Query(f"sum(tidemark_poller_in_progress_events{{{E}}})", "read, not in Kafka"),
                Query(f"sum({by_entity(LAG_RECORDS)})", "in Kafka, not in raw"),
                Query(f"sum({by_entity(UNMERGED_RECORDS)})", "in raw, not in Delta"),
            ),
        ),
        Panel(
            title="Parked, by reason",
            question="Why are events parked?",
            bad="`invalid`: the source changed its shape: `tidemark parked groups`, then a new schema version or a "
            "repair. "
            "`kafka_…`: goes by itself when Kafka is back.",
            unit="short",
            kind="stack",
            width=8,
            queries=(Query(present("reason", PARKED_OPEN), "{{reason}}"),),
        ),
        Panel(
            title="Oldest re-drive",
            question="For how long has the oldest parked event waited?",
            bad="Hours: its cause isn't gone. `tidemark parked list --limit 5` shows the oldest; 0: nothing is parked.",
            unit="s",
            width=8,
            queries=(Query(oldest("entity"), "{{entity}}"),),
        ),
    ),
)

HOME = Board(
    uid="tidemark-home",
    title="Is my data fresh and complete?",
    question="Are all tables as fresh as promised, and is every change accounted for?",
    rows=(_ANSWER, _FRESH, _COMPLETE, _WAITS),
)
