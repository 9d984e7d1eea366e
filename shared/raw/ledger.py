"""The bucket is the offset ledger: one chain of immutable objects per partition, whoever writes it.

An object may only begin where the one before ends, and is created only if nobody created it before. So for each start
there is at most one object, and every chain covers its offsets without gap or overlap, under any number of writers.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Literal

import msgspec
import zstandard
from msgspec import Struct

from shared.raw.keys import OFFSET_MAX, Chain, Keys
from shared.raw.objects import LastRecord, NotOurs, ObjectStore, RawObject, SlotTaken, StoreUnavailable, from_metadata

HEADS_AT_ONCE = 16
ROWS_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""An object that inflates beyond this was not written by us."""

EMPTY_BODY = zstandard.ZstdCompressor(level=3).compress(b"")


GapCause = Literal["genesis", "retention"]


class Tail(Struct, frozen=True):
    """Where a chain goes on. ``newest`` is ``None`` while it has no object at or above its floor."""

    next_start: int
    newest: RawObject | None
    last: LastRecord | None


class Damaged(Exception):
    """A stored object is not what its metadata says. Nothing of ours can mend it; audit names the range."""


class ChainReport(Struct, frozen=True):
    """One chain, followed from its floor to its end. ``problems`` empty: contiguous and readable."""

    chain: Chain
    floor: int
    next_start: int
    objects: Sequence[RawObject]
    problems: Sequence[str]

    @property
    def rows(self) -> int:
        return sum(link.count for link in self.objects)

    @property
    def gaps(self) -> Sequence[RawObject]:
        return [link for link in self.objects if link.kind == "gap"]


class Ledger:
    """Reads and extends chains. A writer awaits one ``write`` of a chain at a time; any number of them may race."""

    def __init__(self, store: ObjectStore, keys: Keys) -> None:
        self._store = store
        self.keys = keys

    async def write(self, candidate: RawObject, body: bytes) -> RawObject:
        """Put the object and return the one that stands in its slot afterwards: it, or another that came first.

        412 is never taken for our own earlier attempt: that one may have landed, or lie still on its way with another
        cut. Only what is stored says where the chain goes on. Raises ``StoreUnavailable`` (again, with the same bytes)
        and ``NotOurs``.
        """
        key = self.keys.link(candidate.chain, candidate.start)
        try:
            await self._store.create(key, body, candidate.metadata())
        except SlotTaken:
            standing = await self.link(candidate.chain, candidate.start)
            if standing is None:
                raise StoreUnavailable(f"{key!r} was taken, but is not there") from None
            return standing
        return candidate

    async def write_gap(
        self,
        chain: Chain,
        start: int,
        end: int,
        cause: GapCause,
        last: LastRecord | None,
        writer: str,
    ) -> RawObject:
        """Say that ``start`` to ``end`` can't be had. The marker is a link like any other, and as immutable."""
        marker = RawObject(
            chain=chain,
            start=start,
            end=end,
            count=0,
            sha256=sha256(EMPTY_BODY).hexdigest(),
            writer=writer,
            kind="gap",
            cause=cause,
            last=last,
        )
        return await self.write(marker, EMPTY_BODY)

    async def link(self, chain: Chain, start: int) -> RawObject | None:
        """The object that begins at ``start``."""
        metadata = await self._store.head(self.keys.link(chain, start))
        return None if metadata is None else from_metadata(chain, start, metadata)

    async def floor(self, chain: Chain) -> int:
        """Objects that begin below it are no part of the ledger. 0 where none was set."""
        stored = await self._store.read(self.keys.floor(chain))
        if stored is None:
            return 0
        try:
            return msgspec.json.decode(stored.body, type=_Floor).floor
        except msgspec.MsgspecError as error:
            raise NotOurs(f"{self.keys.floor(chain)!r} can't be read as a floor: {error}") from error

    async def tail(self, chain: Chain, hint: int | None = None) -> Tail:
        """Where the chain goes on: a few requests with a good ``hint`` (the start of a late object), else at most ~64.

        The hint saves time and decides nothing.
        """
        floor = await self.floor(chain)
        newest = await self._newest(chain, floor, hint)
        if newest is None:
            return Tail(floor, None, None)
        return Tail(newest.next_start, newest, newest.last)

    async def _newest(self, chain: Chain, floor: int, hint: int | None) -> RawObject | None:
        """Bisect for the greatest key: a page that is neither empty nor cut short ends with it."""
        low, high = floor, OFFSET_MAX
        probe = hint if hint is not None and hint >= floor else floor
        found: str | None = None
        while low <= high:
            page = await self._store.keys_after(self.keys.chain(chain), self.keys.before(chain, probe))
            if page.keys:
                found = page.keys[-1]
                if not page.more:
                    break
                low = self.keys.parse(found)[1] + 1
            else:
                high = probe - 1
            probe = (low + high) // 2
        if found is None:
            return None
        start = self.keys.parse(found)[1]
        newest = await self.link(chain, start)
        if newest is None:
            raise StoreUnavailable(f"{found!r} was listed, but is not there")
        return newest

    async def partitions(self, topic: str, generation: int) -> list[Chain]:
        """The chains that a generation has, in order: one request each."""
        prefix = self.keys.topic(topic, generation)
        chains: list[Chain] = []
        after = prefix
        while keys := (await self._store.keys_after(prefix, after, limit=1)).keys:
            chains.append(self.keys.parse(keys[0])[0])
            after = self.keys.before(chains[-1], 10**20 - 1) + "~"
        return chains

    async def objects(self, chain: Chain, start: int = 0) -> AsyncIterator[RawObject]:
        """The chain's objects from the first that begins at or above ``start``, in order of their offsets."""
        after, more = self.keys.before(chain, start), True
        while more:
            page = await self._store.keys_after(self.keys.chain(chain), after)
            for first in range(0, len(page.keys), HEADS_AT_ONCE):
                starts = [self.keys.parse(key)[1] for key in page.keys[first : first + HEADS_AT_ONCE]]
                for found, begins in zip(
                    await asyncio.gather(*(self.link(chain, begins) for begins in starts)), starts, strict=True
                ):
                    if found is None:
                        raise StoreUnavailable(f"the object of {chain} at {begins} was listed, but is not there")
                    yield found
            more = page.more and bool(page.keys)
            if page.keys:
                after = page.keys[-1]

    async def verify(self, chain: Chain) -> ChainReport:
        """Follow the chain from its floor: each object must begin where the one before ends. Bodies are not read."""
        floor = await self.floor(chain)
        links: list[RawObject] = []
        problems: list[str] = []
        due = floor
        async for link in self.objects(chain, floor):
            if link.start > due:
                problems.append(f"offsets {due} to {link.start - 1} are in no object")
            elif link.start < due:
                problems.append(f"offsets {link.start} to {min(due - 1, link.end)} are in two objects")
            due = max(due, link.next_start)
            links.append(link)
        return ChainReport(chain, floor, due, links, problems)

    async def rows(self, link: RawObject) -> bytes:
        """The object's NDJSON, after its digest was compared. Raises ``Damaged``."""
        stored = await self._store.read(self.keys.link(link.chain, link.start))
        if stored is None:
            raise Damaged(f"the object of {link.chain} at {link.start} is gone")
        if sha256(stored.body).hexdigest() != link.sha256:
            raise Damaged(f"the object of {link.chain} at {link.start} differs from its sha256")
        try:
            rows = _inflated(stored.body)
        except zstandard.ZstdError as error:
            raise Damaged(f"the object of {link.chain} at {link.start}: {error}") from error
        found = rows.count(b"\n")
        if found != link.count:
            raise Damaged(f"the object of {link.chain} at {link.start} has {found} rows, not {link.count}")
        return rows


class _Floor(Struct, frozen=True):
    floor: int


def _inflated(body: bytes) -> bytes:
    parts: list[bytes] = []
    length = 0
    for part in zstandard.ZstdDecompressor().read_to_iter(body):
        parts.append(part)
        length += len(part)
        if length > ROWS_BYTES_MAX:
            raise zstandard.ZstdError(f"inflates beyond {ROWS_BYTES_MAX} bytes")
    return b"".join(parts)
