"""Parts of expressions that several boards ask, and what they hold true."""

BUDGET = 0.01
"""The share of the time that an entity may be older than its objective; deploy/prometheus burns the same."""

E, T, J = 'entity=~"$entity"', 'topic=~"$topic"', 'job=~"$job"'

# A process that is gone takes its series with it, and what it alone knew would no longer count: the entity would look
# fresher. So the last values of a day count, and of several instances the newest.
MARKS = f"max by (entity, stage, partition) (last_over_time(tidemark_fresh_timestamp_seconds{{{E}}}[1d]) > 0)"
FRESHNESS_S = f"(time() - min by (entity) ({MARKS}))"
FRESHNESS_BY_STAGE_S = f"(time() - min by (entity, stage) ({MARKS}))"
OBJECTIVE_S = f"max by (entity) (last_over_time(tidemark_freshness_objective_seconds{{{E}}}[1d]))"
IS_FRESH = f"({FRESHNESS_S} <= bool on (entity) {OBJECTIVE_S})"

# By entity: a topic may be named freely, so the sink's series find their entity by what poller and sink say of it.
_TOPICS = f"max by (entity, topic) (tidemark_topic_info{{{E}}})"
LAG_RECORDS = (
    f"clamp_min(max by (topic, partition) (tidemark_sink_log_end_offset{{{T}}})"
    f" - max by (topic, partition) (tidemark_sink_next_offset{{{T}}}), 0)"
)
# Only of partitions of which the loader has merged something since it started: of others it says nothing.
UNMERGED_RECORDS = (
    "clamp_min(max by (topic, partition) (tidemark_sink_next_offset)"
    f" - max by (topic, partition) (tidemark_lake_position{{{E}}}), 0)"
)
PARKED_OPEN = f"max by (entity, reason, state) (tidemark_parked_items{{{E}}})"


# Every process exports what has no labels, and 0 where it has nothing to say.
OLDEST_UNTOLD_S = "clamp_min(time() - min(tidemark_oldest_unnotified_timestamp_seconds > 0), 0)"


def present(by: str, expr: str) -> str:
    """Sums of ``expr`` by a label, without those that are 0; ``none``, always 0, tells that from no data."""
    return f'(sum by ({by}) ({expr}) > 0) or label_replace(0 * sum({expr}), "{by}", "none", "", "")'


def by_entity(of_topics: str) -> str:
    """Sums of what has a label ``topic``."""
    return (
        f"sum by (entity) (sum by (topic) ({of_topics.replace(f'{{{T}}}', '')}) * on (topic) group_right () {_TOPICS})"
    )


def oldest(by: str) -> str:
    """Age of the oldest parked event; ``none`` is always 0, so that an empty table is told apart from no data."""
    nothing = f'label_replace(0 * sum(tidemark_parked_items{{{E}}}), "{by}", "none", "", "")'
    return f"(time() - min by ({by}) (tidemark_parked_oldest_timestamp_seconds{{{E}}})) or {nothing}"


def budget_left(days: int) -> str:
    """1: all of it; 0: used up; below: overdrawn. Of the entity that has the least.

    Of the recorded samples: to work out a month's from the marks takes Prometheus many seconds, at each look.
    """
    return f"1 - max(avg_over_time(entity:tidemark_stale:bool{{{E}}}[{days}d])) / {BUDGET}"


def rate(metric: str, by: str, matchers: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str, matchers: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"


def age(timestamp: str, by: str, matchers: str) -> str:
    """Of the newest that any instance knows."""
    return f"time() - max by ({by}) ({timestamp}{{{matchers}}})"


def stage_age(stage: str) -> str:
    """How long ago all was known to be through this stage, by entity."""
    return FRESHNESS_BY_STAGE_S.replace(f"{{{E}}}", f'{{{E}, stage="{stage}"}}').replace(
        "by (entity, stage) (max", "by (entity) (max"
    )
