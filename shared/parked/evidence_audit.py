"""Is all evidence there, as it was written, and nothing besides? Walks the chain and compares it with the bucket.

What it finds: a piece that was altered or deleted, an entry that was altered or deleted, a piece that is in no entry.
What no chain can tell by itself: that its newest entries were cut off together with all that they name. Whoever keeps
the head that an earlier run printed can: ``expect_head`` must still be in the chain.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256

from msgspec import Struct, field

from shared.parked.evidence import FOLDER as EVIDENCE
from shared.parked.evidence import Archive, EvidenceDamaged, Written, unpack
from shared.parked.evidence_chain import FOLDER, Entry, Link, day_of, entry_key, is_day, last_key, number_of, read_entry

READS_IN_FLIGHT = 8
PROBLEMS_MAX = 1_000  # listed; all are counted
YOUNG_MS = 3_600_000
"""So long a piece may wait for its entry: its notifier may have died between the two, and another repeats them."""


class Problem(Struct, frozen=True):
    kind: str  # altered, deleted, inserted, entry_altered, entry_deleted, chain_broken
    key: str
    text: str


class AuditReport(Struct, kw_only=True):
    days: int = 0
    entries: int = 0
    objects: int = 0
    waiting: int = 0  # young pieces that are in no entry yet
    head: Link | None = None  # the chain's last entry that was walked
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def found(self, kind: str, key: str, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, key, text))


async def verify(
    archive: Archive, now_ms: int, *, day: str | None = None, expect_head: str | None = None
) -> AuditReport:
    """The whole chain, or one day's entries and what was written on that day. Raises ``ArchiveUnavailable``."""
    return await _Audit(archive, now_ms, day).run(expect_head)


class _Audit:
    def __init__(self, archive: Archive, now_ms: int, day: str | None) -> None:
        self._archive = archive
        self._now_ms = now_ms
        self._day = day
        self._report = AuditReport()
        self._chained: dict[str, str] = {}  # of the days that are walked, and of later ones
        self._digests: set[str] = set()

    async def run(self, expect_head: str | None) -> AuditReport:
        folders = await self._archive.folders(FOLDER)
        for foreign in [folder for folder in folders if not is_day(folder)]:
            self._report.found("inserted", f"{FOLDER}{foreign}", "is no day of the chain")
        days = [folder for folder in folders if is_day(folder)]
        wanted = [day for day in days if self._day in (None, day)]
        for day in wanted:
            await self._walk(day, days)
        if self._day is not None:
            for later in [day for day in days if day > self._day]:
                async for entry, _link in self._entries(later, judged=False):
                    self._chained |= {written.key: written.sha256 for written in entry.objects}
        await self._compare_listing()
        if expect_head is not None and expect_head not in self._digests:
            self._report.found("chain_broken", "", f"the expected head {expect_head} is not in the chain any more")
        return self._report

    async def _walk(self, day: str, days: Sequence[str]) -> None:
        place = days.index(day)
        expected = await self._head_of(days[place - 1]) if place else None
        first, closed = True, False
        async for entry, link in self._entries(day):
            self._digests.add(link.sha256)
            if entry.previous != expected and (first or expected is not None):
                said = entry.previous.key if entry.previous is not None else "nothing"
                self._report.found("chain_broken", link.key, f"follows {said}, which is not what stands before it")
            if closed:
                self._report.found("chain_broken", link.key, "stands behind the entry that closed its day")
            closed = entry.next_day is not None
            if closed and place + 1 < len(days) and entry.next_day != days[place + 1]:
                self._report.found("entry_deleted", f"{FOLDER}{entry.next_day}/", "the day that follows is missing")
            await self._check_objects(entry.objects)
            expected, first = link, False
            self._report.head = link
        self._report.days += 1
        if not closed and place + 1 < len(days):
            self._report.found("entry_deleted", f"{FOLDER}{day}/", "the entry that closed the day is missing")

    async def _entries(self, day: str, *, judged: bool = True) -> AsyncIterator[tuple[Entry, Link]]:
        """In order; what is missing or can't be read is a problem, and passed over."""
        report = self._report if judged else AuditReport()
        expected = 0
        async for stored in self._archive.listing(f"{FOLDER}{day}/"):
            number = number_of(day, stored.key)
            if number is None:
                report.found("inserted", stored.key, "is no entry of the chain")
                continue
            if number > expected:
                gap = f"{number - expected} entries before this one are missing"
                report.found("entry_deleted", entry_key(day, expected), gap)
            expected = number + 1
            body = await self._archive.get(stored.key) or b""
            try:
                entry = read_entry(stored.key, body)
            except EvidenceDamaged as damage:
                report.found("entry_altered", stored.key, str(damage))
                continue
            report.entries += 1
            yield entry, Link(stored.key, sha256(body).hexdigest())

    async def _head_of(self, day: str) -> Link | None:
        head = await last_key(self._archive, day)
        body = None if head is None else await self._archive.get(head)
        return None if head is None or body is None else Link(head, sha256(body).hexdigest())

    async def _check_objects(self, objects: Sequence[Written]) -> None:
        for start in range(0, len(objects), READS_IN_FLIGHT):
            await asyncio.gather(*map(self._check, objects[start : start + READS_IN_FLIGHT]))

    async def _check(self, written: Written) -> None:
        known = self._chained.get(written.key)
        if known == written.sha256:
            return  # chained twice, after a crash
        self._report.objects += 1
        if known is not None:
            self._report.found("altered", written.key, "two entries name it under two digests")
            return
        self._chained[written.key] = written.sha256
        body = await self._archive.get(written.key)
        if body is None:
            self._report.found("deleted", written.key, "is in the chain, but not in the bucket")
        elif sha256(body).hexdigest() != written.sha256:
            self._report.found("altered", written.key, "its bytes are not those that were written")
        else:
            try:
                await asyncio.to_thread(unpack, body)
            except EvidenceDamaged as damage:
                self._report.found("altered", written.key, str(damage))

    async def _compare_listing(self) -> None:
        async for stored in self._archive.listing(EVIDENCE):
            if stored.key in self._chained or self._day not in (None, day_of(stored.modified_ms)):
                continue
            if self._now_ms - stored.modified_ms < YOUNG_MS:
                self._report.waiting += 1
            else:
                self._report.found("inserted", stored.key, "is in no entry of the chain")
