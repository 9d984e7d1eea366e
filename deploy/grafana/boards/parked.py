"""What can't go on by itself, and who was told."""

from deploy.grafana.board import ANY_IS_BAD, YES_IS_BAD, Board, Panel, Query, Row, good_below
from deploy.grafana.expressions import OLDEST_UNTOLD_S, PARKED_OPEN, E, age, oldest, present, rate

_PARKED = Row(
    "What is parked",
    (
        Panel(
            title="Open, by state",
            question="How many wait for their time (PARKED), for their cause to go (HELD), for a person (STALE)?",
            bad="STALE: nothing cured them in time. `tidemark parked groups --state STALE`.",
            unit="short",
            kind="stack",
            queries=(Query(present("state", PARKED_OPEN), "{{state}}"),),
        ),
        Panel(
            title="Open, by entity",
            question="Whose events are they?",
            bad="One entity alone: its source or its schema. All: Kafka. `tidemark parked counts`.",
            unit="short",
            kind="stack",
            queries=(Query(f"sum by (entity) ({PARKED_OPEN})", "{{entity}}"),),
        ),
        Panel(
            title="Open, by reason",
            question="Why were they refused?",
            bad="`tidemark parked groups` shows the rule and the place in the event; `tidemark parked list` the "
            "events.",
            unit="short",
            kind="stack",
            queries=(Query(present("reason", PARKED_OPEN), "{{reason}}"),),
        ),
        Panel(
            title="Parked and re-driven",
            question="Does more come in than goes out?",
            bad="`parked` above the others for long: a cause that isn't cured.",
            unit="cps",
            queries=(
                Query(f"sum(rate(tidemark_park_total{{{E}}}[$__rate_interval]))", "parked"),
                Query(f'sum(rate(tidemark_retries_total{{{E}, outcome="published"}}[$__rate_interval]))', "published"),
                Query(f"sum(rate(tidemark_stale_deleted_total{{{E}}}[$__rate_interval]))", "archived"),
            ),
        ),
        Panel(
            title="Age of the oldest, by reason",
            question="For how long has the oldest waited?",
            bad="Beyond `stale_after_s` (7 days): the notifier doesn't archive. `tidemark parked list --limit 5`. "
            "0: none is parked.",
            unit="s",
            queries=(Query(oldest("reason"), "{{reason}}"),),
        ),
        Panel(
            title="Age of the count",
            question="How old are these numbers?",
            bad="More than minutes: no retrier counts; DynamoDB is down, or they are.",
            unit="s",
            queries=(Query("time() - max(tidemark_parked_counted_timestamp_seconds)", "counted"),),
        ),
    ),
)

_RETRIES = Row(
    "Second chances",
    (
        Panel(
            title="Taken up again, by what became of it",
            question="Do second chances succeed?",
            bad="Mostly `again` or `hold`: the cause isn't gone. `failed`: an error of ours, the log has it. "
            "`lease_lost`: "
            "a retrier was too slow.",
            unit="cps",
            kind="stack",
            queries=(
                Query(present("outcome", f"rate(tidemark_retries_total{{{E}}}[$__rate_interval])"), "{{outcome}}"),
            ),
        ),
        Panel(
            title="Share of the re-drive",
            question="How fast may parked events be published, and how often did that make them wait?",
            bad="Low while the poller is quiet: Kafka is slow. It shrinks to leave room for new changes.",
            unit="short",
            queries=(
                Query("sum(tidemark_redrive_limit_per_second)", "limit, records a second"),
                Query("sum(rate(tidemark_redrive_paced_total[$__rate_interval]))", "waits a second"),
            ),
        ),
        Panel(
            title="Changed by a repair, woken by a contract",
            question="What cured events?",
            bad="More repairs than expected: a repair rule fits more than it was meant to. The original is kept: "
            "`tidemark parked audit`.",
            unit="short",
            queries=(
                Query(
                    f"sum by (entity) (increase(tidemark_repaired_total{{{E}}}[$__rate_interval]))",
                    "repaired, {{entity}}",
                ),
                Query(
                    f"sum by (entity) (increase(tidemark_parked_woken_total{{{E}}}[$__rate_interval]))",
                    "woken, {{entity}}",
                ),
            ),
        ),
        Panel(
            title="In hand",
            question="How many parked events are being worked on?",
            bad="Standing while some are due: a retrier hangs; its lease ends by itself, and another takes over.",
            unit="short",
            queries=(Query(f"sum by (entity) (tidemark_retrier_in_progress_items{{{E}}})", "{{entity}}"),),
        ),
        Panel(
            title="Taken up",
            question="How many are taken up in a second?",
            bad="0 while some are due: no retrier runs, or Kafka's breaker is open.",
            unit="cps",
            queries=(Query(rate("tidemark_retries_claimed_total", "entity", E), "{{entity}}"),),
        ),
        Panel(
            title="Last one published",
            question="When was a parked event last published?",
            bad="Long ago while `Open, by state` shows PARKED ones: their cause isn't gone. Empty: none was yet.",
            unit="s",
            queries=(Query(age("tidemark_retrier_last_timestamp_seconds", "entity", E), "{{entity}}"),),
        ),
    ),
)

_NOTICES = Row(
    "Notices",
    (
        Panel(
            title="Open groups of stale events",
            question="Who has root causes to look at?",
            bad="Each is one notice and one decision of its owner: `tidemark parked groups --state STALE`.",
            unit="short",
            kind="stack",
            queries=(
                Query(
                    f"sum by (owner, reason) (max by (owner, entity, reason) (tidemark_stale_groups{{{E}}}))"
                    ' or label_replace(0 * sum by (owner) (tidemark_channel_disabled), "reason", "none", "", "")',
                    "{{owner}}: {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Waits for its notice",
            question="For how long has the oldest stale event waited for its owner to be told?",
            bad="Minutes: see `Notices, by outcome` and `Turns refused by an edge`.",
            unit="s",
            queries=(Query(OLDEST_UNTOLD_S, "oldest"),),
            steps=good_below(900, 3600),
        ),
        Panel(
            title="Notices, by outcome",
            question="Do channels take the notices?",
            bad="`unavailable`: tried again, then the next channel. `refused`: its settings are wrong; mend the "
            "owner's "
            "channel.",
            unit="short",
            queries=(
                Query(
                    "sum by (owner, channel, outcome) (increase(tidemark_notices_total[$__rate_interval]))",
                    "{{owner}}, {{channel}}: {{outcome}}",
                ),
            ),
        ),
        Panel(
            title="Channels that are gone",
            question="Did a channel say that it no longer exists?",
            bad="It isn't tried again: replace it in the owner's file, and restart the notifier.",
            unit="bool",
            kind="states",
            queries=(Query("max by (owner, channel) (tidemark_channel_disabled)", "{{owner}}, {{channel}}"),),
            steps=ANY_IS_BAD,
            names=YES_IS_BAD,
        ),
        Panel(
            title="Told, archived, deleted",
            question="How far does each stale event get?",
            bad="Evidence before a notice, a notice before a deletion: the later lines follow after the grace (7 "
            "days).",
            unit="short",
            queries=(
                Query(
                    f"sum by (outcome) (increase(tidemark_evidence_total{{{E}}}[$__rate_interval]))",
                    "evidence {{outcome}}",
                ),
                Query(f"sum(increase(tidemark_stale_notified_total{{{E}}}[$__rate_interval]))", "told"),
                Query(f"sum(increase(tidemark_stale_deleted_total{{{E}}}[$__rate_interval]))", "archived and deleted"),
            ),
        ),
        Panel(
            title="Turns refused by an edge",
            question="What keeps the notifier from its work?",
            bad="The name says which edge: DynamoDB, the archive bucket, a channel. Lost leases: two notifiers met, "
            "or an "
            "operator woke the event; harmless.",
            unit="short",
            queries=(
                Query("sum by (why) (increase(tidemark_notifier_waits_total[$__rate_interval]))", "{{why}}"),
                Query("sum(increase(tidemark_notifier_lease_lost_total[$__rate_interval]))", "leases lost"),
            ),
        ),
        Panel(
            title="Stale events in hand, and taken up",
            question="Is the notifier at work?",
            bad="In hand for long: an edge hangs. Taken up again and again without being told: see `Turns refused`.",
            unit="short",
            width=12,
            queries=(
                Query("sum(tidemark_notifier_in_progress_items)", "in hand"),
                Query("sum(increase(tidemark_notifier_claimed_total[$__rate_interval]))", "taken up"),
            ),
        ),
        Panel(
            title="Last batch of stale events",
            question="When did the notifier last work through a batch?",
            bad="Long ago while there are STALE ones: it hangs or is down. Empty: there was none yet.",
            unit="s",
            width=12,
            queries=(Query("time() - max(tidemark_notifier_last_timestamp_seconds > 0)", "last batch"),),
        ),
    ),
)

PARKED = Board(
    uid="tidemark-parked",
    title="Parked and notices: what can't go on by itself?",
    question="What is parked and why, is it cured, and does its owner know?",
    rows=(_PARKED, _RETRIES, _NOTICES),
)
