"""The conservation law, judged over what the real stores hold. Pure: ``reading.py`` reads, this compares.

Each expected event is on its topic (or in the raw bucket), parked, or archived with a receipt; it is in no two of them,
and twice in none, but for a reason that has a name. The law holds at every instant, not only after everything drained.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from deploy.demo.balance import ArchivedItem, Balance, Books, ParkedItem, RawRow, balance
from shared.parked.model import State

NAMED_MAX = 5
"""Culprits of one kind that are named; the others are counted."""


class Origin(Struct, frozen=True):
    """An event as its source has shown it."""

    key: bytes
    rank: int
    tiebreak: int
    raw_sha256: str


class Record(Struct, frozen=True, kw_only=True):
    """One record of the topic."""

    partition: int
    offset: int
    event_id: str | None
    key: bytes | None
    rank: int | None
    tiebreak: int | None


class ParkedRow(Struct, frozen=True, kw_only=True):
    event_id: str
    reason: str
    state: State
    maybe_sent: bool = False
    has_body: bool = True  # whole, under the digest that the row names
    arch_uri: str | None = None
    arch_sha: str | None = None
    receipts: int = 0


class Archived(Struct, frozen=True, kw_only=True):
    """One piece of evidence, read back."""

    event_id: str
    uri: str
    sha256: str  # of the object as it lies there
    raw_sha256: str  # of the event's bytes as it was parked
    cause_id: str
    maybe_sent: bool = False


class Posted(Struct, frozen=True):
    """What a channel's receiver was sent, once for each time."""

    notice_id: str
    dedup_key: str
    cause_id: str
    body_sha256: str
    taken: bool = True  # the receiver said so


class Found(Struct, frozen=True, kw_only=True):
    """Everything that was read. ``excuses``: event id → how often it may have been sent once more, because a worker
    died, was frozen or lost an answer while it held the event; whoever caused that names it here."""

    entity: str
    expected: Mapping[str, Origin]
    records: Sequence[Record]
    parked: Sequence[ParkedRow] = ()
    archived: Sequence[Archived] = ()
    receipts: frozenset[str] = frozenset()  # causes whose group item has one, or had one in an earlier episode
    posted: Sequence[Posted] | None = None  # None: the receiver is not ours to ask
    raw: Sequence[RawRow] | None = None  # None: no sink has run
    chain_problems: Sequence[str] = ()  # of the ledger of raw objects, and of the chain over the evidence
    excuses: Mapping[str, int] = {}


def faults(found: Found) -> list[str]:
    """One line for each kind of hole; ``[]``: the law holds."""
    sheet = balance(books_of(found))
    kinds: list[tuple[str, Iterable[str]]] = [
        ("lost: on no topic, not parked, not archived", sheet.missing),
        ("deleted, and nobody was told", sheet.untold),
        ("deleted, and no receiver has a notice", _unheard(found)),
        ("published again without a reason", _repeated(found)),
        ("published and still parked without a reason", _published_and(found, {row.event_id for row in found.parked})),
        ("published and archived without a reason", _published_and(found, {one.event_id for one in found.archived})),
        ("published otherwise than it was seen", _altered_records(found)),
        ("published under no event id", [f"{one.partition}/{one.offset}" for one in found.records if not one.event_id]),
        ("archived with other bytes than were parked", _altered_evidence(found)),
        ("parked without its bytes", [row.event_id for row in found.parked if not row.has_body]),
        ("told of before there was evidence", [r.event_id for r in found.parked if r.receipts and not r.arch_sha]),
        ("parked with evidence that is not in the archive", _without_evidence(found)),
        ("one notice with two contents", _two_faced(found.posted or ())),
        ("offset in no raw object", sheet.offsets_missing),
        ("offset in two raw objects", sheet.offsets_twice),
        ("raw row of no Kafka offset", sheet.offsets_unknown),
        ("chain", found.chain_problems),
    ]
    listed = [(kind, sorted(names)) for kind, names in kinds]
    return [f"{kind} ({len(names)}): {', '.join(names[:NAMED_MAX])}" for kind, names in listed if names]


def books_of(found: Found) -> Books:
    """For the balance sheet. Where no sink has run the topic stands for the raw bucket."""
    rows = [RawRow(event_id=one.event_id, place=(one.partition, one.offset)) for one in found.records]
    log: dict[int, range] = {}
    for one in found.records:
        so_far = log.get(one.partition, range(one.offset, one.offset))
        log[one.partition] = range(min(so_far.start, one.offset), max(so_far.stop, one.offset + 1))
    return Books(
        entity=found.entity,
        shows="events",
        truth=(),
        seen=frozenset(found.expected),
        raw=rows if found.raw is None else found.raw,
        parked=[ParkedItem(event_id=r.event_id, reason=r.reason, maybe_sent=r.maybe_sent) for r in found.parked],
        archived=[ArchivedItem(event_id=a.event_id, told=a.cause_id in found.receipts) for a in found.archived],
        log=log,
    )


def sheet_of(found: Found) -> Balance:
    return balance(books_of(found))


def _repeated(found: Found) -> Iterable[str]:
    sent = Counter(record.event_id for record in found.records if record.event_id)
    unsure = _maybe_sent(found)
    for event_id, count in sent.items():
        if count > 1 + found.excuses.get(event_id, 0) + (event_id in unsure):
            yield f"{event_id} {count} times"


def _published_and(found: Found, elsewhere: set[str]) -> Iterable[str]:
    unsure = _maybe_sent(found) | found.excuses.keys()
    return ({record.event_id for record in found.records if record.event_id} & elsewhere) - unsure


def _maybe_sent(found: Found) -> set[str]:
    parked = {row.event_id for row in found.parked if row.maybe_sent}
    return parked | {one.event_id for one in found.archived if one.maybe_sent}


def _altered_records(found: Found) -> Iterable[str]:
    for record in found.records:
        origin = found.expected.get(record.event_id or "")
        if origin is not None and (record.key, record.rank, record.tiebreak) != (
            origin.key,
            origin.rank,
            origin.tiebreak,
        ):
            yield f"{record.event_id} at {record.partition}/{record.offset}"


def _altered_evidence(found: Found) -> Iterable[str]:
    for one in found.archived:
        origin = found.expected.get(one.event_id)
        if origin is not None and origin.raw_sha256 != one.raw_sha256:
            yield f"{one.event_id} at {one.uri}"


def _without_evidence(found: Found) -> Iterable[str]:
    there = {(one.uri, one.sha256, one.event_id) for one in found.archived}
    for row in found.parked:
        if row.arch_sha is not None and (row.arch_uri, row.arch_sha, row.event_id) not in there:
            yield f"{row.event_id} at {row.arch_uri}"


def _unheard(found: Found) -> Iterable[str]:
    """The group's receipt says that somebody was told: the receiver must know of it."""
    if found.posted is None:
        return []
    heard = {posted.cause_id for posted in found.posted if posted.taken}
    elsewhere = {row.event_id for row in found.parked} | {record.event_id for record in found.records}
    return {one.event_id for one in found.archived if one.cause_id not in heard} - elsewhere


def _two_faced(posted: Iterable[Posted]) -> Iterable[str]:
    """Repeats carry the same keys, and say the same."""
    first: dict[str, tuple[str, str]] = {}
    for one in posted:
        if first.setdefault(one.notice_id, (one.dedup_key, one.body_sha256)) != (one.dedup_key, one.body_sha256):
            yield one.notice_id
