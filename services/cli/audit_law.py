"""The law of conservation over distinct event ids: what was seen is in the lake, parked or archived. Pure.

Seen entries are evidence too, and may be falsified. What proves it: a page's own digest or bounds; and the stamp under
which each change was shown, which is part of its ``seq`` and unique per entity. An entry whose event is nowhere, beside
a published event that no entry names, both shown at one stamp, are one event, and the entry is not what was recorded.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct, field

from services.cli.audit_records import (
    ArchivedOne,
    Counts,
    Law,
    ParkedOne,
    RawEvent,
    SeenEntry,
    SeenPageOf,
    stamp_of,
)
from services.cli.audit_spill import PARTS
from shared.events.model import EventRules

LISTED_MAX = 100_000
"""Culprits of one kind that are kept, to be held against others; all are counted."""
NO_KEY = bytes(8)


class Unrecorded(NamedTuple):
    """Published or parked, shown before the fixed cursor, and in no seen page."""

    id: bytes
    shown_us: int
    updated_us: int | None
    chain: int  # -1: parked
    offset: int


class Altered(NamedTuple):
    """A seen entry that is not what was recorded."""

    page: int
    shown_us: int
    says: bytes
    is_really: bytes


class Tally(Struct):
    """What the comparison found. Lists hold ``LISTED_MAX`` at most; the counts are whole."""

    counts: Counts = field(default_factory=Counts)
    missing: list[SeenEntry] = field(default_factory=list)
    unrecorded: list[Unrecorded] = field(default_factory=list)
    altered: list[Altered] = field(default_factory=list)
    archived_alone: list[ArchivedOne] = field(default_factory=list)


def tally(law: Law) -> Tally:
    """Compare the spills, all of them."""
    found = Tally()
    compare_parts(law, found, range(PARTS))
    join_by_stamp(found)
    return found


def compare_parts(law: Law, found: Tally, parts: Iterable[int]) -> None:
    """Some of the parts; ``join_by_stamp`` when all are compared."""
    for number in parts:
        _compare(
            law,
            found,
            [SeenEntry(*fields) for fields in law.seen.part(number)],
            [RawEvent(*fields) for fields in law.raw.part(number)],
            [ParkedOne(*fields) for fields in law.parked.part(number)],
            [ArchivedOne(*fields) for fields in law.archived.part(number)],
        )


def _compare(
    law: Law,
    found: Tally,
    entries: Iterable[SeenEntry],
    rows: Iterable[RawEvent],
    items: Iterable[ParkedOne],
    evidence: Iterable[ArchivedOne],
) -> None:
    seen = _by_id(entries)
    raw: dict[bytes, RawEvent] = {}
    in_objects: set[bytes] = set()
    repeated = 0
    for row in rows:
        if not row.in_kafka_alone:
            repeated += row.id in in_objects
            in_objects.add(row.id)
        first = raw.get(row.id)
        if first is None or _stamp(law.rules, row) < _stamp(law.rules, first):
            raw[row.id] = row
    parked = {item.id: item for item in items}
    archived = {one.id: one for one in evidence}
    counts = found.counts
    counts.seen += len(seen)
    counts.raw += len(in_objects)
    counts.in_kafka += len(raw) - len(in_objects)
    counts.repeated += repeated
    counts.parked += len(parked)
    counts.archived += len(archived.keys() - parked.keys())
    counts.twice += len(raw.keys() & parked.keys())
    counts.redriven += len(raw.keys() & archived.keys())
    accounted = raw.keys() | parked.keys() | archived.keys()
    absent = [seen[one] for one in seen.keys() - accounted]
    missing = [entry for entry in absent if entry.shown_us > law.expired_us]
    counts.missing += len(missing)
    counts.expired += len(absent) - len(missing)
    _keep(found.missing, missing)
    unrecorded = list(_unrecorded(law, seen, raw, parked))
    counts.unrecorded += len(unrecorded)
    _keep(found.unrecorded, unrecorded)
    _keep(found.altered, _contradicted(law.rules, seen, raw))
    _keep(found.archived_alone, (archived[one] for one in archived.keys() - raw.keys() - parked.keys()))


def _by_id(entries: Iterable[SeenEntry]) -> dict[bytes, SeenEntry]:
    """Of several sightings of one event, one that was recorded under its own time."""
    seen: dict[bytes, SeenEntry] = {}
    for entry in entries:
        if entry.id not in seen or not entry.anchored:
            seen[entry.id] = entry
    return seen


def _unrecorded(
    law: Law, seen: dict[bytes, SeenEntry], raw: dict[bytes, RawEvent], parked: dict[bytes, ParkedOne]
) -> Iterable[Unrecorded]:
    for row in raw.values():
        shown_us = _stamp(law.rules, row)
        if row.id not in seen and shown_us <= law.limit_us:
            yield Unrecorded(row.id, shown_us, _dated(law.rules, row.rank, row.has_seq), row.chain, row.offset)
    for item in parked.values():
        shown_us = stamp_of(law.rules, item.rank, item.tiebreak)
        known = item.id in seen or item.id in raw or item.undecodable
        if not known and shown_us <= law.limit_us:
            yield Unrecorded(item.id, shown_us, item.updated_us, -1, 0)


def _contradicted(rules: EventRules, seen: dict[bytes, SeenEntry], raw: dict[bytes, RawEvent]) -> Iterable[Altered]:
    """Entries that name a published event under another key, or another time, than it has."""
    for id_, row in raw.items():
        entry = seen.get(id_)
        if entry is None or entry.anchored:
            continue
        dated_us = _dated(rules, row.rank, row.has_seq)
        other_key = row.key8 not in (NO_KEY, entry.key8)
        if other_key or (dated_us is not None and dated_us != entry.updated_us):
            yield Altered(entry.page, entry.shown_us, id_, id_)


def join_by_stamp(found: Tally) -> None:
    """Entries and events that were shown at one stamp are one: then the entry is not what was recorded."""
    by_stamp = {one.shown_us: one for one in found.unrecorded}
    altered = {entry.id: by_stamp[entry.shown_us] for entry in found.missing if entry.shown_us in by_stamp}
    if not altered:
        return
    for entry in found.missing:
        if entry.id in altered:
            found.altered.append(Altered(entry.page, entry.shown_us, entry.id, altered[entry.id].id))
    really = {one.id for one in altered.values()}
    found.missing = [entry for entry in found.missing if entry.id not in altered]
    found.unrecorded = [one for one in found.unrecorded if one.id not in really]
    found.counts.missing -= len(altered)
    found.counts.unrecorded -= len(really)


def attributed(pages: list[SeenPageOf], unrecorded: Iterable[Unrecorded]) -> tuple[dict[int, int], list[Unrecorded]]:
    """(falsified page → how many events it must have recorded, those that no falsified page explains)."""
    bad = [number for number, page in enumerate(pages) if page.problem is not None]
    counts: dict[int, int] = dict.fromkeys(bad, 0)
    left: list[Unrecorded] = []
    for one in unrecorded:
        page = next((n for n in bad if pages[n].shown_first_us <= one.shown_us <= pages[n].shown_last_us), None)
        if page is None:
            left.append(one)
        else:
            counts[page] += 1
    return counts, left


def _keep(kept: list, found: Iterable) -> None:  # type: ignore[type-arg]  # of any record
    for one in found:
        if len(kept) >= LISTED_MAX:
            return
        kept.append(one)


def _stamp(rules: EventRules, row: RawEvent) -> int:
    return stamp_of(rules, row.rank, row.tiebreak) if row.has_seq else 0


def _dated(rules: EventRules, rank: int, has_seq: bool) -> int | None:
    """The event's own time, where its ``seq`` holds it."""
    return rank if has_seq and rules.version is None and rules.shows == "events" else None
