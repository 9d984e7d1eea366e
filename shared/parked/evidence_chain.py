"""The chain over all evidence: who alters, removes or slips in a piece has to rewrite every later entry.

Entries are small objects, ``chain/<day>/<number>.json``, each created under the condition that its key is free. An
entry holds the digests that it adds and the digest of the entry before it. A day's last entry names the day on which
the chain goes on, and nobody appends behind it: so there is one chain over all days, and it has no forks.
Any number of notifiers append: who finds a key taken reads what stands there and goes on behind it.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_hex

import msgspec
from msgspec import Struct

from shared.parked.evidence import Archive, ArchiveUnavailable, EvidenceDamaged, Written

FOLDER = "chain/"
OBJECTS_MAX = 500
"""In one entry."""
OVERTAKEN_MAX = 200
"""So often one append may be overtaken by others."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


class Link(Struct, frozen=True):
    """A place in the chain: an entry's key, and the sha256 of its bytes."""

    key: str
    sha256: str


class Entry(Struct, frozen=True, kw_only=True):
    day: str
    number: int
    previous: Link | None  # None: the chain begins here
    at: str
    writer: str  # unique to the attempt: so its writer knows its own entry
    next_day: str | None = None  # given: the day's last entry, and on which day the chain goes on
    objects: tuple[Written, ...] = ()

    @property
    def key(self) -> str:
        return entry_key(self.day, self.number)


class Tail(Struct, frozen=True):
    """The last entry that is known."""

    link: Link
    entry: Entry


def entry_key(day: str, number: int) -> str:
    return f"{FOLDER}{day}/{number:08d}.json"


def number_of(day: str, key: str) -> int | None:
    """``None``: not the key of an entry."""
    number = key.removeprefix(f"{FOLDER}{day}/").removesuffix(".json")
    return int(number) if number.isdecimal() and key == entry_key(day, int(number)) else None


def day_of(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d")


def read_entry(key: str, body: bytes) -> Entry:
    """Raises ``EvidenceDamaged``."""
    try:
        entry = msgspec.json.decode(body, type=Entry)
    except msgspec.MsgspecError as error:
        raise EvidenceDamaged(f"{key}: is no entry of the chain: {error}") from error
    if entry.key != key:
        raise EvidenceDamaged(f"{key}: says that it is {entry.key}")
    return entry


class Chain:
    """One per process. Raises ``ArchiveUnavailable``; ``EvidenceDamaged`` when the chain can't be continued."""

    def __init__(self, archive: Archive, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._archive = archive
        self._clock_ms = clock_ms
        self._tail: Tail | None = None
        self._turn = asyncio.Lock()

    async def append(self, objects: Sequence[Written]) -> None:
        """Each is in an entry when it returns. Appending twice, after a crash, does no harm."""
        async with self._turn:
            for start in range(0, len(objects), OBJECTS_MAX):
                await self._append(tuple(objects[start : start + OBJECTS_MAX]))

    async def _append(self, objects: tuple[Written, ...]) -> None:
        for _ in range(OVERTAKEN_MAX):
            today = day_of(self._clock_ms())
            tail = self._tail = self._tail or await self._last()
            if tail is None:
                entry = self._entry(today, 0, None, objects)
            elif tail.entry.next_day is not None:
                entry = self._entry(tail.entry.next_day, 0, tail.link, objects)
            elif tail.entry.day < today:
                entry = self._entry(tail.entry.day, tail.entry.number + 1, tail.link, (), next_day=today)
            else:  # also when the clock went back: the chain never does
                entry = self._entry(tail.entry.day, tail.entry.number + 1, tail.link, objects)
            if await self._put(entry) and entry.next_day is None:
                return
        raise ArchiveUnavailable(f"the chain's end was not free in {OVERTAKEN_MAX} attempts; try again")

    async def _put(self, entry: Entry) -> bool:
        """True: ours stands at the entry's key. The tail moves to what is known to be the last one."""
        body = msgspec.json.encode(entry)
        digest = sha256(body).hexdigest()
        if await self._archive.create(entry.key, body, {"sha256": digest}):
            self._tail = Tail(Link(entry.key, digest), entry)
            return True
        there = self._tail = await self._tail_at(entry.key)
        if there.entry.writer == entry.writer:  # the answer to our own PUT was lost
            return True
        last = await last_key(self._archive, entry.day, entry.key)
        if last is not None:
            self._tail = await self._tail_at(last)
        return False

    def _entry(
        self,
        day: str,
        number: int,
        previous: Link | None,
        objects: tuple[Written, ...],
        *,
        next_day: str | None = None,
    ) -> Entry:
        at = datetime.fromtimestamp(self._clock_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        return Entry(
            day=day, number=number, previous=previous, at=at, writer=token_hex(8), next_day=next_day, objects=objects
        )

    async def _last(self) -> Tail | None:
        days = await chain_days(self._archive)
        key = await last_key(self._archive, days[-1]) if days else None
        return None if key is None else await self._tail_at(key)

    async def _tail_at(self, key: str) -> Tail:
        body = await self._archive.get(key)
        if body is None:
            self._tail = None
            raise ArchiveUnavailable(f"{key}: was there a moment ago")
        return Tail(Link(key, sha256(body).hexdigest()), read_entry(key, body))


async def chain_days(archive: Archive) -> list[str]:
    """In order. What else lies beside them is not ours."""
    return [folder for folder in await archive.folders(FOLDER) if is_day(folder)]


async def last_key(archive: Archive, day: str, after: str = "") -> str | None:
    """Of the day's last entry, if there is one behind ``after``."""
    last = None
    async for stored in archive.listing(f"{FOLDER}{day}/", after):
        if number_of(day, stored.key) is not None:
            last = stored.key
    return last


def is_day(folder: str) -> bool:
    return _DAY.fullmatch(folder) is not None
