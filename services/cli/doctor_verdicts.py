"""What the doctor thinks of what it saw: topics, tables, clocks, answers of a source, disks, variables. Pure."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from msgspec import Struct

from services.cli.doctor_findings import Judgement
from services.cli.outcome import span
from shared.config import guess
from shared.events.model import EventRules, Sighting
from shared.kafka.topic_state import TopicState
from shared.parked.table import differences

SKEW_S_MAX = 2.0
"""What ``clock_tolerance_s`` bears by default."""
RETENTION_S_MIN = 86_400.0
DISK_BYTES_MIN = 1024 * 1024 * 1024
_SERVICE_LINK = re.compile(r"(.+?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")
"""What Kubernetes puts into the environment of a pod for each Service."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What we ask of a topic: the entity's partitions, and what our producer sends at most."""

    partitions: int
    record_bytes_max: int
    batch_bytes: int


def unknown_variables(names: Collection[str], known: Collection[str]) -> Iterator[tuple[str, Judgement]]:
    """Variables that nothing reads: a typing error where a known name is close."""
    links = {name.removesuffix("_SERVICE_HOST") for name in names if name.endswith("_SERVICE_HOST")}
    for name in sorted(set(names) - set(known)):
        link = _SERVICE_LINK.fullmatch(name)
        if link is not None and link[1] in links:
            continue
        close = guess(name, sorted(known)).partition("did you mean ")[2].strip("'?")
        if close:
            yield name, Judgement(f"nothing reads this variable; did you mean {close}?", f"rename it to {close}")
        else:
            yield name, Judgement("nothing reads this variable", "unset it", is_wrong=False)


def judge_topic(topic: str, state: TopicState, wanted: Wanted, bootstrap: str) -> list[Judgement]:
    alter = f"kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {topic}"
    found = []
    if state.partitions < wanted.partitions:
        text = f"has {state.partitions} partitions, the entity asks for {wanted.partitions}"
        more = f"kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {topic}"
        remedy = f"{more} --partitions {wanted.partitions}, or `partitions: {state.partitions}` in the entity file"
        found.append(Judgement(text, remedy))
    policy = state.settings.get("cleanup.policy", "delete")
    if "compact" in policy:
        text = f"cleanup.policy is {policy!r}: compaction drops changes"
        found.append(Judgement(text, f"{alter} --add-config cleanup.policy=delete"))
    if state.settings.get("message.timestamp.before.max.ms") == "0":
        text = "message.timestamp.before.max.ms is 0: every record is refused (a demo that was killed leaves it so)"
        found.append(Judgement(text, f"{alter} --delete-config message.timestamp.before.max.ms"))
    found += _judge_replicas(state, alter)
    return [*found, *_judge_retention(state.settings, alter), *_judge_sizes(state.settings, wanted, alter)]


def _judge_replicas(state: TopicState, alter: str) -> Iterator[Judgement]:
    least = _whole(state.settings, "min.insync.replicas", 1)
    if state.leaderless:
        text = f"{state.leaderless} of {state.partitions} partitions have no leader"
        yield Judgement(text, "start the brokers that hold them")
    if least > state.replicas_min:
        text = f"min.insync.replicas is {least}, the replicas are {state.replicas_min}: no write can succeed"
        yield Judgement(text, f"{alter} --add-config min.insync.replicas={max(1, state.replicas_min - 1)}")
    elif least > state.in_sync_min:
        text = (
            f"a partition has {state.in_sync_min} replicas in sync, min.insync.replicas is {least}: it takes no write"
        )
        yield Judgement(text, "start the brokers that are missing, and let them catch up")


def _judge_retention(settings: Mapping[str, str], alter: str) -> Iterator[Judgement]:
    kept_ms, kept_bytes = _whole(settings, "retention.ms", -1), _whole(settings, "retention.bytes", -1)
    if 0 <= kept_ms < RETENTION_S_MIN * 1000:
        text = f"retention.ms is {kept_ms} ({span(kept_ms / 1000)}): a sink that is away for longer loses changes"
        yield Judgement(text, f"{alter} --add-config retention.ms=604800000")
    if kept_bytes >= 0:
        text = f"retention.bytes is {kept_bytes}: a burst may push out what no sink has read"
        yield Judgement(text, f"{alter} --delete-config retention.bytes", is_wrong=False)


def _judge_sizes(settings: Mapping[str, str], wanted: Wanted, alter: str) -> Iterator[Judgement]:
    taken = _whole(settings, "max.message.bytes", wanted.record_bytes_max)
    sent = {"RECORD_BYTES_MAX": wanted.record_bytes_max, "BATCH_BYTES": wanted.batch_bytes}
    larger = {f"TIDEMARK_KAFKA_{name}": ours for name, ours in sent.items() if ours > taken}
    if larger:
        text = f"max.message.bytes is {taken}, below {', '.join(f'{name} ({ours})' for name, ours in larger.items())}"
        lower = ", ".join(f"{name}={taken}" for name in larger)
        remedy = f"{alter} --add-config max.message.bytes={max(larger.values())}, or lower {lower}"
        yield Judgement(f"{text}: what is larger is refused", remedy)


def judge_table(description: Mapping[str, Any], ttl: str, recovery: str) -> list[Judgement]:
    """``ttl`` and ``recovery``: the states that DynamoDB names; empty where it has no answer."""
    table = description.get("TableName", "TABLE")
    move = "name another table in TIDEMARK_PARKED_TABLE, or move this one's items away, delete it, `tidemark bootstrap`"
    found = [Judgement(text, move) for text in differences(dict(description))]
    states = {"the table": description.get("TableStatus", "ACTIVE")}
    for index in description.get("GlobalSecondaryIndexes", ()):
        states[f"index {index['IndexName']!r}"] = index.get("IndexStatus", "ACTIVE")
    for name, state in states.items():
        if state not in ("ACTIVE", "DELETING"):
            found.append(Judgement(f"{name} is {state}, not ACTIVE", "wait until it is, and look again"))
    if ttl in ("ENABLED", "ENABLING"):
        command = f"aws dynamodb update-time-to-live --table-name {table} --time-to-live-specification"
        text = "TTL is on: DynamoDB would delete events that nobody has been told of"
        found.append(Judgement(text, f"{command} Enabled=false,AttributeName=NAME"))
    if recovery == "DISABLED":
        command = f"aws dynamodb update-continuous-backups --table-name {table} --point-in-time-recovery-specification"
        remedy = f"{command} PointInTimeRecoveryEnabled=true"
        found.append(Judgement("point-in-time recovery is off", remedy, is_wrong=False))
    return found


def judge_clock(name: str, ahead_s: float, uncertain_s: float) -> list[Judgement]:
    """``ahead_s``: how far that clock is before this machine's, known up to ``uncertain_s``."""
    if abs(ahead_s) <= SKEW_S_MAX + uncertain_s:
        return []
    text = f"its clock is {span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    return [Judgement(text, f"let NTP set both clocks: `chronyc tracking` here and on {name}")]


def date_ahead_s(date_us: int, asked_us: int, answered_us: int) -> tuple[float, float]:
    """A ``Date`` (whole seconds, the rest cut off) against our clock before and after: how far ahead, how uncertain."""
    middle_us = (asked_us + answered_us) / 2
    return (date_us + 500_000 - middle_us) / 1e6, 0.5 + (answered_us - asked_us) / 2e6


def judge_answers(
    rules: EventRules, since_us: int, first: Sequence[Sighting], again: Sequence[Sighting]
) -> list[Judgement]:
    """One question asked twice. Says nothing of values."""
    found = []
    refused = [one.refusal for one in first if one.key is None and one.refusal is not None]
    if refused:
        why = f"{refused[0].path or '/'}: {refused[0].reason.value}"
        text = f"{len(refused)} of {len(first)} rows have no readable key or time stamp (first at {why})"
        remedy = "correct `key` and `updated_at` in the entity file; `tidemark validate`"
        found.append(Judgement(text, remedy, is_wrong=len(refused) == len(first)))
    read = [one for one in first if one.key is not None]
    early = sum(one.updated_us < since_us - since_us % rules.granularity_us for one in read)
    if early:
        text = f"{early} of {len(read)} rows are older than what was asked for"
        found.append(Judgement(text, "correct `since_param` and `since_format` of the source"))
    if any(one.updated_us > after.updated_us for one, after in pairwise(read)):
        text = "rows don't come in the order of their time stamps: the cursor moves only at the end of each run"
        found.append(Judgement(text, "let the source sort by its time stamp", is_wrong=False))
    if order_differs(read, [one for one in again if one.key is not None]):
        decides = rules.shows == "events"
        text = "asked twice, rows of one time stamp came in another order"
        if decides:
            text += ", which decides what is newest"
        remedy = "let the source sort by (time stamp, key)" + (", or give the entity a `version`" if decides else "")
        found.append(Judgement(text, remedy, is_wrong=decides and rules.version is None))
    return found


def order_differs(first: Sequence[Sighting], again: Sequence[Sighting]) -> bool:
    """Whether what both answers show comes in another order within a time stamp; new rows between are no difference."""
    common = {one.identity for one in first} & {one.identity for one in again}
    return _ticks(first, common) != _ticks(again, common)


def _ticks(shown: Sequence[Sighting], common: Collection[bytes]) -> dict[int, list[bytes]]:
    kept = sorted((one for one in shown if one.identity in common), key=lambda one: one.updated_us)
    return {at: [one.identity for one in rows] for at, rows in groupby(kept, key=lambda one: one.updated_us)}


def judge_disk(free_bytes: int, total_bytes: int, *, is_writable: bool) -> list[Judgement]:
    found = []
    if not is_writable:
        found.append(Judgement("may not be written", "give this user the right to, or name another folder"))
    if free_bytes < DISK_BYTES_MIN:
        text = f"{size_in_words(free_bytes)} free of {size_in_words(total_bytes)}; an audit or a loader may need more"
        found.append(Judgement(text, "make room, or name a folder on another disk"))
    return found


def size_in_words(count: int) -> str:
    gib = count / 1024**3
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / 1024**2:.0f} MiB"


def _whole(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, "")
    return int(text) if re.fullmatch(r"-?\d+", text) else default
