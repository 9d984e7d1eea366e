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

INLINE_BYTES_MAX = 64 * 1024
"""A larger body is proved and inflated in a thread."""

EMPTY_BODY = zstandard.ZstdCompressor(level=3).compress(b"")


GapCause = Literal["genesis", "retention"]


class Tail(Struct, frozen=True):
    """Where a chain goes on. ``newest`` is ``None`` while it has no object at or above its floor."""

    next_start: int
    newest: RawObject | None
    last: LastRecord | None


class Floor(Struct, frozen=True, kw_only=True):
    """The body of a floor: raised before anything below it is deleted, and never lowered."""

    floor: int = 0
    last_ms: int | None = None
    """The newest record that lay below it. ``None``: none did, or nobody knows."""
    set_at: str = ""
    set_by: str = ""


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

    async def covering(self, chain: Chain, offset: int) -> RawObject | None:
        """The object that begins at or below ``offset`` and ends at or behind it: a few requests. The floor is not
        looked at."""
        found: str | None = None
        back = 1
        while found is None:
            low = max(0, offset - back)
            after, last = self.keys.before(chain, low), self.keys.before(chain, offset + 1)
            found = await self._last_key(chain, after, last)
            if low == 0:
                break
            back *= 8
        link = None if found is None else await self.link(chain, self.keys.parse(found)[1])
        return link if link is not None and link.start <= offset <= link.end else None

    async def _last_key(self, chain: Chain, after: str, before: str) -> str | None:
        """The greatest key between the two."""
        found: str | None = None
        while True:
            page = await self._store.keys_after(self.keys.chain(chain), after)
            fitting = [key for key in page.keys if key < before]
            if fitting:
                found = after = fitting[-1]
            if not page.more or len(fitting) < len(page.keys):
                return found

    async def floor(self, chain: Chain) -> int:
        """Objects that begin below it are no part of the ledger. 0 where none was set."""
        return (await self.floor_set(chain)).floor

    async def floor_set(self, chain: Chain) -> Floor:
        """The floor, and what is known of what lay below. Raises ``NotOurs``."""
        stored = await self._store.read(self.keys.floor(chain))
        return Floor() if stored is None else read_floor(self.keys.floor(chain), stored.body)

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
        """Follow the chain from its floor: each object must begin where the one before ends. Bodies are not read.

        An expiry that overtakes us has raised the floor first: what seems to be missing is held against it once more.
        """
        floor = await self.floor(chain)
        while True:
            try:
                report = await self._verified(chain, floor)
            except StoreUnavailable:  # listed, and gone before it was asked for?
                report = None
            raised = await self.floor(chain) if report is None or report.problems else floor
            if report is not None and raised == floor:
                return report
            if report is None and raised == floor:
                return await self._verified(chain, floor)
            floor = raised

    async def _verified(self, chain: Chain, floor: int) -> ChainReport:
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
        if len(stored.body) <= INLINE_BYTES_MAX:
            return proved(link, stored.body)
        return await asyncio.to_thread(proved, link, stored.body)


def proved(link: RawObject, body: bytes) -> bytes:
    """The rows of a stored body, if it is what the object's metadata say. Raises ``Damaged``."""
    if sha256(body).hexdigest() != link.sha256:
        raise Damaged(f"the object of {link.chain} at {link.start} differs from its sha256")
    try:
        rows = _inflated(body)
    except zstandard.ZstdError as error:
        raise Damaged(f"the object of {link.chain} at {link.start}: {error}") from error
    found = rows.count(b"\n")
    if found != link.count:
        raise Damaged(f"the object of {link.chain} at {link.start} has {found} rows, not {link.count}")
    return rows


def read_floor(key: str, body: bytes) -> Floor:
    """Raises ``NotOurs``."""
    try:
        return msgspec.json.decode(body, type=Floor)
    except msgspec.MsgspecError as error:
        raise NotOurs(f"{key!r} can't be read as a floor: {error}") from error


def _inflated(body: bytes) -> bytes:
    parts: list[bytes] = []
    length = 0
    for part in zstandard.ZstdDecompressor().read_to_iter(body):
        parts.append(part)
        length += len(part)
        if length > ROWS_BYTES_MAX:
            raise zstandard.ZstdError(f"inflates beyond {ROWS_BYTES_MAX} bytes")
    return b"".join(parts)
