"""What is set aside, of all entities at once: parked events, by one consistent scan; then the archive's evidence."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import IO, Protocol

from msgspec import Struct, field

from services.cli.audit_law import Tally
from services.cli.audit_records import PLACES_MAX, ArchivedOne, Law
from services.cli.audit_spill import packed_id
from shared.events.model import Reason
from shared.parked.census import Counted
from shared.parked.evidence import Evidence, EvidenceDamaged, EvidenceMissing
from shared.parked.groups import Group, cause_of
from shared.raw.keys import Chain

LISTED_MAX = 1_000
READS_IN_FLIGHT = 8
BY_HAND = "discarded by "
"""How evidence begins to say why, where an operator decided: nobody is told by a channel."""


class Parked(Protocol):
    """What is needed of ``Census``. Raises ``ParkedUnavailable``."""

    def scan(self) -> AsyncIterator[list[Counted]]: ...

    async def unreadable(self, page: Sequence[Counted]) -> list[Counted]: ...


class Evidences(Protocol):
    """What is needed of ``Archive``. Raises ``ArchiveUnavailable``."""

    def uris(self) -> AsyncIterator[str]: ...

    async def evidence(self, uri: str) -> Evidence:
        """Raises ``EvidenceMissing``, ``EvidenceDamaged``."""


class Groups(Protocol):
    """What is needed of ``GroupStore``. Raises ``ParkedUnavailable``."""

    async def get(self, owner: str, cause_id: str) -> Group | None: ...


class Aside(Struct):
    """What is set aside of one entity, besides the ids in its law."""

    law: Law
    uris: IO[str]
    """One line for each piece of evidence; ``ArchivedOne.place`` is where its line begins."""
    reasons: Counter[str] = field(default_factory=Counter)
    unreadable: list[Counted] = field(default_factory=list)
    unreadable_count: int = 0
    places: set[tuple[Chain, int]] = field(default_factory=set)
    """Of undecodable records: their offsets have no row."""
    places_more: int = 0

    def uri(self, one: ArchivedOne) -> str:
        self.uris.seek(one.place)
        return self.uris.readline().rstrip("\n")


async def read_parked(asides: Mapping[str, Aside], parked: Parked, progress: Callable[[int], None]) -> None:
    """Every item's bytes are read and held against their digest. Items of other entities are passed over."""
    done = 0
    async for page in parked.scan():
        own = [counted for counted in page if counted.row.event.entity in asides]
        for counted in own:
            _take_parked(asides[counted.row.event.entity], counted)
        for counted in await parked.unreadable(own):
            aside = asides[counted.row.event.entity]
            aside.unreadable_count += 1
            if len(aside.unreadable) < LISTED_MAX:
                aside.unreadable.append(counted)
        done += len(page)
        progress(done)


async def read_archive(asides: Mapping[str, Aside], archive: Evidences, progress: Callable[[int], None]) -> None:
    """The keys alone: an event's id stands in them."""
    done = 0
    async for uri in archive.uris():
        entity, item_id = named(uri)
        aside = asides.get(entity)
        if aside is not None:
            _take_archived(aside, uri, item_id)
        done += 1
        progress(done)


def _take_parked(aside: Aside, counted: Counted) -> None:
    row = counted.row
    event = row.event
    aside.reasons[event.reason.value] += 1
    undecodable = event.reason is Reason.UNDECODABLE
    if undecodable:
        _set_aside(aside, row.item_id)
    if event.event_id:
        id_, key8 = packed_id(event.event_id), event.key_hash[:8]
        pack = aside.law.parked.layout.pack
        aside.law.parked.add([pack(id_, key8, event.updated_us, event.rank, event.tiebreak, undecodable)])


def _take_archived(aside: Aside, uri: str, item_id: str) -> None:
    if "/" in item_id:
        _set_aside(aside, item_id)
        return
    aside.uris.seek(0, 2)
    place = aside.uris.tell()
    aside.uris.write(uri + "\n")
    aside.law.archived.add([aside.law.archived.layout.pack(packed_id(item_id), place)])


def _set_aside(aside: Aside, item_id: str) -> None:
    topic, generation, partition, offset = item_id.rsplit("/", 3)
    if len(aside.places) < PLACES_MAX:
        aside.places.add((Chain(topic, int(generation), int(partition)), int(offset)))
    else:
        aside.places_more += 1


def named(uri: str) -> tuple[str, str]:
    """(entity, item id) of a piece of evidence: ``…/evidence/2026/01/31/<entity>/<item id>/<round>-<nonce>.json.zst``;
    the item id of an undecodable record has slashes of its own."""
    _, _, path = uri.partition("/evidence/")
    parts = path.split("/")
    return (parts[3], "/".join(parts[4:-1])) if len(parts) >= 6 else ("", "")


class Judged(Struct, frozen=True):
    """What can't be told of evidence that is all there is of an event."""

    damaged: list[tuple[str, str]]  # (uri, why)
    untold: list[str]  # uris
    unread: int = 0


async def judge_archived(
    aside: Aside, found: Tally, archive: Evidences, groups: Groups, read_max: int, progress: Callable[[int], None]
) -> Judged:
    """Evidence that stands alone is read, and somebody must have been told of it. ``read_max``: pieces at most."""
    judged = Judged([], [], max(0, len(found.archived_alone) - read_max))
    told: dict[tuple[str, str], bool] = {}
    alone = found.archived_alone[:read_max]
    for start in range(0, len(alone), READS_IN_FLIGHT):
        uris = [aside.uri(one) for one in alone[start : start + READS_IN_FLIGHT]]
        answers = await asyncio.gather(*map(archive.evidence, uris), return_exceptions=True)
        for uri, answer in zip(uris, answers, strict=True):
            if isinstance(answer, EvidenceDamaged | EvidenceMissing):
                judged.damaged.append((uri, str(answer)))
            elif isinstance(answer, BaseException):
                raise answer
            elif not await _is_told(answer, groups, told):
                judged.untold.append(uri)
        progress(start + len(uris))
    return judged


async def _is_told(evidence: Evidence, groups: Groups, told: dict[tuple[str, str], bool]) -> bool:
    """A channel has accepted a notice about its group, in this episode or an earlier one; or an operator decided."""
    if evidence.history.stale_why.startswith(BY_HAND):
        return True
    place = (evidence.event.owner, cause_of(evidence.event).id)
    if place not in told:
        group = await groups.get(*place)
        notices = 0 if group is None else group.number - (group.pending is not None)
        told[place] = group is not None and (group.told_ms is not None or notices > 0)
    return told[place]
