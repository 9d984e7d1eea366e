"""What an owner is told about one group of stale events, in words, and the port through which it is told. Pure.

A notice holds no value of any event: where, by which rule and how often, but not what. The one exception are samples
of fields that the contract marks public, and those come in a map of their own.

A notice is repeated until a channel has accepted it. Two keys make that harmless: ``dedup_key`` is the group's, the
same from its first notice to its last; ``notice_id`` is this notice's, the same on each attempt to deliver it.
"""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal, Protocol

from msgspec import Struct

SHORT_CHARS_MAX = 200
"""Of a field's path, a rule or a name in a notice."""
SAMPLES_MAX = 10
DEDUP_KEY_CHARS_MAX = 255
"""PagerDuty's limit, the narrowest of all."""

Severity = Literal["critical", "error", "warning", "info"]


class Kind(StrEnum):
    """Why the owner hears of the group now."""

    NEW = "new"
    GROWN = "grown"  # ten times as many as when it was last told
    REPEAT = "repeat"  # still there after the repeat interval
    ESCALATION = "escalation"  # nobody has acted for too long
    RESOLVED = "resolved"  # empty: re-driven or discarded


_SEVERITIES: Mapping[Kind, Severity] = {
    Kind.NEW: "error",
    Kind.GROWN: "error",
    Kind.REPEAT: "warning",
    Kind.ESCALATION: "critical",
    Kind.RESOLVED: "info",
}


class Notice(Struct, frozen=True, kw_only=True):
    """One message about one group. Keep it, or all that it is made from, so that each attempt sends the same bytes."""

    owner: str
    contact: str = ""  # for people, as the owner's settings have it
    entity: str
    reason: str  # of ``shared.events.model.Reason``
    path: str  # JSON pointer into the event; "": the whole
    rule: str  # what failed there, never quoting a value
    fingerprint: str  # of the root cause: what ``tidemark parked ... --group`` takes
    kind: Kind
    number: int  # 1 for the group's first notice, then rising; the same on each attempt
    dedup_key: str  # see ``dedup_key()``
    count: int  # events in the group now
    told_count: int | None = None  # at the notice before
    first_seen_ms: int
    last_seen_ms: int
    subject: str | None = None
    versions: tuple[int, ...] = ()  # schema versions that refuse these events
    evidence_uri: str = ""
    evidence_sha256: str = ""
    delete_after_ms: int | None = None  # end of the grace: then only the archive has them
    samples: Mapping[str, str] = {}  # path → value, of fields that the contract marks public; nothing else, ever
    runbook_url: str = ""
    at_ms: int  # when it was made; the same on each attempt

    @property
    def notice_id(self) -> str:
        """40 characters, letters, digits and ``_``: what a receiver recognises a repeated delivery by."""
        return f"msg_{sha256(f'{self.dedup_key}#{self.number}'.encode()).hexdigest()[:36]}"

    @property
    def severity(self) -> Severity:
        return _SEVERITIES[self.kind]


class Receipt(Struct, frozen=True, kw_only=True):
    """A channel has accepted a notice (which is not: a person has read it)."""

    channel: str
    dedup_key: str
    provider_id: str  # the receiver's own id of it, or ours where it gives none
    status: str  # its answer: ``200``, ``202 Event processed``, ``250``
    at_ms: int


class Channel(Protocol):
    """One way to one owner. Opened and closed by whoever wires the process."""

    @property
    def name(self) -> str:
        """Unique among its owner's channels; also the receipt's ``channel``."""

    @property
    def repost_s(self) -> float | None:
        """Where the receiver forgets what isn't said again: send the newest notice at least this often, up to and
        including the resolved one. ``None``: once is enough."""

    async def send(self, notice: Notice) -> Receipt:
        """Deliver once. Raises ``ChannelUnavailable`` or ``ChannelRefused``; after the former the notice may have been
        delivered, and sending it again does no harm. Ends by deadlines of its own: don't put a timeout around it.
        """


class ChannelUnavailable(Exception):
    """Not now: no connection, no answer in time, 5xx, 429. ``retry_after_s``: as the receiver said, not to be
    undercut; ``None``: the caller's own back-off."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ChannelRefused(Exception):
    """Repeating would not help: take the next channel. ``permanent``: the channel itself is gone or misconfigured
    (404, 410, its secret refused), disable it and say so; else only this notice is not to its taste (400, 413)."""

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


def dedup_key(namespace: str, entity: str, reason: str, fingerprint: str) -> str:
    """``cdc:<namespace>:<entity>:<reason>:<fingerprint, 16 characters>``: one incident per root cause."""
    key = f"cdc:{namespace}:{entity}:{reason}:{fingerprint[:16]}"
    if len(key) <= DEDUP_KEY_CHARS_MAX:
        return key
    return f"cdc:{sha256(key.encode()).hexdigest()}"


def title(notice: Notice) -> str:
    """One line for a subject or a headline, at most ``SHORT_CHARS_MAX`` characters."""
    entity, reason = legible(notice.entity, 100), legible(notice.reason, 40)
    where = f"{reason} at {legible(notice.path, 80)}" if notice.path else reason
    if notice.kind is Kind.RESOLVED:
        return cut(f"Resolved: {entity}: no stale events left ({where})")
    events = "1 stale event" if notice.count == 1 else f"{notice.count:,} stale events"
    prefix = {Kind.GROWN: "Growing: ", Kind.REPEAT: "Still open: ", Kind.ESCALATION: "Escalated: "}.get(notice.kind, "")
    return cut(f"{prefix}{entity}: {events} ({where})")


def facts(notice: Notice) -> list[tuple[str, str]]:
    """Label and text of all that is known, in order of interest; absent facts are absent."""
    told = f" ({notice.told_count:,} when last told)" if notice.told_count is not None else ""
    numbers = ", ".join(map(str, notice.versions[:20]))
    versions = f"version{'s' if len(notice.versions) > 1 else ''} {numbers}" if numbers else ""
    is_kept = notice.delete_after_ms is not None and notice.kind is not Kind.RESOLVED
    pairs = [
        ("Entity", legible(notice.entity)),
        ("Events", f"{notice.count:,}{told}"),
        ("Reason", legible(notice.reason)),
        ("Path", legible(notice.path) or "(the whole event)"),
        ("Rule", legible(notice.rule)),
        ("Schema", ", ".join(filter(None, (legible(notice.subject or ""), versions)))),
        ("First seen", moment(notice.first_seen_ms)),
        ("Last seen", moment(notice.last_seen_ms)),
        ("Kept until", moment(notice.delete_after_ms or 0) if is_kept else ""),
        ("Owner", legible(notice.owner) + (f" ({legible(notice.contact)})" if notice.contact else "")),
        ("Evidence", legible(notice.evidence_uri, 1_000)),
        ("Evidence sha256", legible(notice.evidence_sha256)),
        ("Runbook", legible(notice.runbook_url, 1_000)),
        ("Group", legible(notice.fingerprint)),
        *((f"Sample {legible(path, 80)}", legible(text)) for path, text in list(notice.samples.items())[:SAMPLES_MAX]),
    ]
    return [(label, text) for label, text in pairs if text]


def commands(notice: Notice) -> list[tuple[str, str]]:
    """What to type, and what it does. None once the group is resolved."""
    if notice.kind is Kind.RESOLVED:
        return []
    group = f"--group {shlex.quote(legible(notice.fingerprint))}"
    return [
        (f"tidemark parked list {group}", "look at them"),
        (f"tidemark parked redrive {group} --dry-run", "how many would pass now"),
        (f"tidemark parked redrive {group}", "publish them"),
    ]


def text(notice: Notice) -> str:
    """The whole notice as plain text of short lines, for mail and topics; ends with the commands."""
    pairs = facts(notice)
    width = max(len(label) for label, _ in pairs)
    lines = [title(notice), "", *(f"{label + ':':<{width + 1}} {fact}" for label, fact in pairs)]
    if act := commands(notice):
        width = max(len(command) for command, _ in act)
        lines += ["", "To act:", *(f"  {command:<{width}}  # {what}" for command, what in act)]
    return "\n".join(lines) + "\n"


def document(notice: Notice) -> dict[str, Any]:
    """The whole notice for programs: JSON types only, times as ISO 8601 UTC, stable names."""
    return {
        "dedup_key": notice.dedup_key,
        "notice_id": notice.notice_id,
        "kind": notice.kind.value,
        "severity": notice.severity,
        "title": title(notice),
        "owner": legible(notice.owner),
        "entity": legible(notice.entity),
        "reason": legible(notice.reason),
        "path": legible(notice.path),
        "rule": legible(notice.rule),
        "group": legible(notice.fingerprint),
        "count": notice.count,
        "told_count": notice.told_count,
        "first_seen": moment(notice.first_seen_ms),
        "last_seen": moment(notice.last_seen_ms),
        "delete_after": None if notice.delete_after_ms is None else moment(notice.delete_after_ms),
        "subject": None if notice.subject is None else legible(notice.subject),
        "versions": list(notice.versions[:20]),
        "evidence": {"uri": legible(notice.evidence_uri, 1_000), "sha256": legible(notice.evidence_sha256)},
        "runbook": legible(notice.runbook_url, 1_000),
        "samples": {legible(path): legible(value) for path, value in list(notice.samples.items())[:SAMPLES_MAX]},
        "commands": [command for command, _ in commands(notice)],
    }


def moment(at_ms: int) -> str:
    """``2026-01-31T12:00:00Z``"""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def legible(text: str, chars_max: int = SHORT_CHARS_MAX) -> str:
    """One printable line: a field's name is the source's to choose, and may hold line ends or control characters."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: chars_max + 1])
    return cut(printable, chars_max)


def cut(text: str, chars_max: int = SHORT_CHARS_MAX) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
