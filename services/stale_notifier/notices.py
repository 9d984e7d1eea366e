"""What a notice about a group says, made from its first row and from a count. Pure.

The facts are those of one row: all rows of a group share cause, path and rule. No value of an event gets in, except
samples of fields that the contract marks public; what may be told of a path and a body is ``disclosure``'s to say.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from services.stale_notifier.grouping import Count, Tell
from services.stale_notifier.notice import Notice, dedup_key
from shared.parked.groups import Group
from shared.parked.leases import Row


class Facts(Struct, frozen=True, kw_only=True):
    """What the group's first row tells about all of them."""

    path: str
    rule: str
    subject: str | None
    evidence_uri: str
    evidence_sha256: str
    samples: Mapping[str, str] = {}


class About(Struct, frozen=True, kw_only=True):
    """What the settings and the registry say."""

    namespace: str
    contact: str = ""
    runbook_url: str = ""
    versions: tuple[int, ...] = ()
    grace_s: float


def facts_of(row: Row, path: str, samples: Mapping[str, str]) -> bytes:
    facts = Facts(
        path=path,
        rule=row.event.detail,
        subject=row.event.subject,
        evidence_uri=row.arch_uri or "",
        evidence_sha256=row.arch_sha or "",
        samples=samples,
    )
    return msgspec.json.encode(facts)


def notice_bytes(group: Group, tell: Tell, count: Count, about: About, now_ms: int) -> bytes:
    """The next notice of the group, to be kept with it."""
    facts = msgspec.json.decode(group.facts, type=Facts)
    cause = group.cause
    notice = Notice(
        owner=group.owner,
        contact=about.contact,
        entity=cause.entity,
        reason=cause.reason,
        path=facts.path,
        rule=facts.rule,
        fingerprint=cause.id,
        kind=tell.kind,
        number=group.number + 1,
        dedup_key=dedup_key(about.namespace, cause.entity, cause.reason, cause.id),
        count=count.events,
        told_count=group.told_count if group.told_ms is not None else None,
        first_seen_ms=count.first_ms or group.opened_ms,
        last_seen_ms=count.last_ms or group.opened_ms,
        subject=facts.subject,
        versions=about.versions,
        evidence_uri=facts.evidence_uri,
        evidence_sha256=facts.evidence_sha256,
        delete_after_ms=now_ms + int(about.grace_s * 1000),
        samples=facts.samples,
        runbook_url=about.runbook_url,
        at_ms=now_ms,
    )
    return msgspec.json.encode(notice)


def read_notice(notice: bytes) -> Notice:
    return msgspec.json.decode(notice, type=Notice)
