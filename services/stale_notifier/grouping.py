"""When a group's owner is told, and why: pure decisions over the group's item and a count of its rows.

A group goes from its first event to its emptiness: ``waiting`` until a channel has accepted the first notice, ``told``
until it is empty, ``closing`` until it has been empty for a while, ``resolved``. The while outlasts what the index may
be behind: a row that comes in meanwhile is counted, or has opened the group again by itself.
"""

from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from services.stale_notifier.notice import Kind
from shared.parked.groups import RECEIPTS_MAX, Cause, Group, Pending, Told

FALLBACK_S_MAX = 86_400.0
"""A notice that no channel of the first line has accepted for so long goes to the other ones."""
CHANNEL_BACKOFF_S = (30.0, 3_600.0)
ROW_WAIT_S = (2.0, 3_600.0)


class Timing(Struct, frozen=True, kw_only=True):
    """Seconds."""

    group_wait_s: float = 60.0
    repeat_s: float = 14_400.0
    look_s: float = 60.0
    settle_s: float = 60.0
    growth: int = 10


class Line(Struct, frozen=True):
    """A channel as decisions see it."""

    name: str
    escalate_after_s: float | None = None
    repost_s: float | None = None
    is_last_resort: bool = False  # the default owner's: only when the owner's own fail


class Count(Struct, frozen=True):
    """A group's stale rows, by the index."""

    events: int = 0
    first_ms: int = 0
    last_ms: int = 0


class Tell(Struct, frozen=True):
    kind: Kind
    to: tuple[str, ...] = ()  # each of these; (): any one of the first line


class Repost(Struct, frozen=True):
    to: tuple[str, ...]


class Close(Struct, frozen=True):
    """Empty: look again when that has settled."""


class Resolve(Struct, frozen=True):
    """Empty before anybody was told: nobody needs to hear of it."""


class Wait(Struct, frozen=True):
    until_ms: int


Decision: TypeAlias = Tell | Repost | Close | Resolve | Wait


def opened(owner: str, cause: Cause, facts: bytes, now_ms: int, timing: Timing) -> Group:
    """By the first row that comes in."""
    return Group(
        owner=owner,
        cause=cause,
        phase="waiting",
        due_ms=now_ms + _ms(timing.group_wait_s),
        opened_ms=now_ms,
        facts=facts,
    )


def joined(group: Group, facts: bytes, now_ms: int, timing: Timing) -> Group:
    """What a row that comes in makes of its group: mostly nothing; it opens again one that was thought to be empty."""
    resolving = group.pending is not None and group.pending.kind == Kind.RESOLVED
    if group.phase == "resolved" or resolving:
        fresh = opened(group.owner, group.cause, facts, now_ms, timing)
        return replace(fresh, ver=group.ver, episode=group.episode + 1, number=group.number)
    if group.closing_ms is None:
        return group
    phase = group.phase if group.told_ms is None else "told"
    return replace(group, phase=phase, closing_ms=None)


def decide(group: Group, count: Count, lines: Sequence[Line], now_ms: int, timing: Timing) -> Decision:
    """What to do with a group that is due and has no notice under way."""
    if count.events == 0:
        return _when_empty(group, lines, now_ms, timing)
    if group.told_ms is None or group.last_told_ms is None:
        return Tell(Kind.NEW)
    late = [line.name for line in lines if _must_escalate(group, line, now_ms)]
    if late:
        return Tell(Kind.ESCALATION, tuple(late))
    if count.events >= timing.growth * max(1, group.told_count):
        return Tell(Kind.GROWN)
    repeat_ms = group.last_told_ms + _ms(timing.repeat_s)
    if repeat_ms <= now_ms:
        return Tell(Kind.REPEAT)
    return _repost(group, lines, now_ms) or Wait(min(repeat_ms, _next_look(group, lines, now_ms, timing)))


def pending(group: Group, tell: Tell, notice: bytes, count: int, now_ms: int) -> Group:
    """The notice is on its way: from now on each attempt sends these bytes under this number."""
    number = group.number + 1
    made = Pending(number, tell.kind.value, notice, count, now_ms, tell.to)
    return replace(group, number=number, pending=made, closing_ms=None)


def accepted(group: Group, receipts: Sequence[Told], now_ms: int, timing: Timing) -> Group:
    """Channels have taken the pending notice. It stays pending while others are still to be told."""
    made = group.pending
    assert made is not None, "a receipt is for a pending notice"
    names = tuple(receipt.channel for receipt in receipts)
    escalates = made.kind == Kind.ESCALATION  # to others: those told before are told again in their own time
    left = tuple(name for name in made.to if name not in names)
    told = replace(
        group,
        receipts=_kept(group.receipts, receipts),
        newest=made.notice,
        told_ms=group.told_ms or now_ms,
        last_told_ms=group.last_told_ms if escalates else now_ms,
        posted_ms=now_ms,
        told_count=group.told_count if escalates else made.count,
        phase="told",
        due_ms=now_ms + _ms(timing.look_s),
        escalated=group.escalated + (names if escalates else ()),
    )
    if left:
        return replace(told, pending=replace(made, to=left), due_ms=now_ms)
    if made.kind == Kind.RESOLVED:
        return resolved(told, now_ms)
    return replace(told, pending=None)


def given_up(group: Group, now_ms: int, timing: Timing) -> Group:
    """Those who were to be told by the pending notice won't be; others were told of the group before."""
    made = group.pending
    assert made is not None, "only a pending notice can be given up"
    assert group.told_ms is not None, "a group that nobody was told of is never given up"
    if made.kind == Kind.RESOLVED:
        return resolved(group, now_ms)
    escalated = group.escalated + (made.to if made.kind == Kind.ESCALATION else ())
    return replace(group, pending=None, escalated=escalated, due_ms=now_ms + _ms(timing.look_s))


def postponed(group: Group, now_ms: int, retry_after_s: float | None, unit: float) -> Group:
    """No channel takes the pending notice now. Never earlier than the receiver has said."""
    made = group.pending
    assert made is not None, "only a pending notice is postponed"
    base_s, cap_s = CHANNEL_BACKOFF_S
    pause_s = max((0.5 + unit / 2) * min(cap_s, base_s * 2.0 ** min(made.attempts, 16)), retry_after_s or 0.0)
    return replace(group, pending=replace(made, attempts=made.attempts + 1), due_ms=now_ms + _ms(pause_s))


def closing(group: Group, now_ms: int, timing: Timing) -> Group:
    phase = "closing" if group.phase == "told" else group.phase
    return replace(group, phase=phase, closing_ms=now_ms, due_ms=now_ms + _ms(timing.settle_s))


def resolved(group: Group, now_ms: int) -> Group:
    return replace(group, phase="resolved", pending=None, closing_ms=None, due_ms=now_ms)


def looked(group: Group, until_ms: int) -> Group:
    """Rows are there: nothing to say now."""
    return replace(group, phase=group.phase if group.told_ms is None else "told", closing_ms=None, due_ms=until_ms)


def candidates(group: Group, made: Pending, lines: Sequence[Line], usable: frozenset[str], now_ms: int) -> list[str]:
    """In which order to try channels for one of which will do. Others than the first line: when none of that is left,
    or it has failed for as long as they would wait for an escalation."""
    waited_ms = now_ms - made.made_ms
    left = [line for line in lines if line.name in usable]
    first = [line.name for line in left if line.escalate_after_s is None]
    more = [
        line.name
        for line in left
        if line.escalate_after_s is not None
        and (not first or waited_ms >= _ms(min(line.escalate_after_s, FALLBACK_S_MAX)))
    ]
    return first + more


def row_wait_s(group: Group, now_ms: int, unit: float) -> float:
    """How long a row waits for its group's notice: past the group's next attempt, and the longer the longer it
    has waited, so that a thousand rows don't ask a thousand times during an outage of a channel."""
    least_s, most_s = ROW_WAIT_S
    waited_s = (now_ms - group.opened_ms) / 1000
    until_attempt_s = max(0.0, (group.due_ms - now_ms) / 1000)
    return min(most_s, max(until_attempt_s + least_s / 2, waited_s / 4, least_s) * (1 + unit / 4))


def _when_empty(group: Group, lines: Sequence[Line], now_ms: int, timing: Timing) -> Decision:
    if group.closing_ms is None:
        return Close()
    settled_ms = group.closing_ms + _ms(timing.settle_s)
    if settled_ms > now_ms:
        return Wait(settled_ms)
    told = {receipt.channel for receipt in group.receipts}
    to = tuple(line.name for line in lines if line.name in told)
    return Tell(Kind.RESOLVED, to) if to else Resolve()


def _must_escalate(group: Group, line: Line, now_ms: int) -> bool:
    if line.is_last_resort or line.escalate_after_s is None or line.name in group.escalated:
        return False
    return group.told_ms is not None and group.told_ms + _ms(line.escalate_after_s) <= now_ms


def _reposted(group: Group, lines: Sequence[Line]) -> list[tuple[str, float]]:
    told = {receipt.channel for receipt in group.receipts}
    return [(line.name, line.repost_s) for line in lines if line.repost_s is not None and line.name in told]


def _repost(group: Group, lines: Sequence[Line], now_ms: int) -> Repost | None:
    due = [name for name, every_s in _reposted(group, lines) if (group.posted_ms or 0) + _ms(every_s / 2) <= now_ms]
    return Repost(tuple(due)) if due else None


def _next_look(group: Group, lines: Sequence[Line], now_ms: int, timing: Timing) -> int:
    times = [now_ms + _ms(timing.look_s)]
    times += [(group.posted_ms or now_ms) + _ms(every_s / 2) for _name, every_s in _reposted(group, lines)]
    if group.told_ms is not None:
        times += [
            group.told_ms + _ms(line.escalate_after_s)
            for line in lines
            if line.escalate_after_s is not None and not line.is_last_resort and line.name not in group.escalated
        ]
    return max(now_ms + 1, min(times))


def _kept(old: tuple[Told, ...], new: Sequence[Told]) -> tuple[Told, ...]:
    """The newest one of each channel, the newest first: who is to hear of the end must not be forgotten."""
    newest = {receipt.channel: receipt for receipt in (*reversed(old), *new)}
    return tuple(sorted(newest.values(), key=lambda receipt: -receipt.at_ms))[:RECEIPTS_MAX]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
