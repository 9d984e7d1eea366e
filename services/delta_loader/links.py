"""Which raw objects come next: those of a topic's chains from the table's positions on, a bounded number of them.

The ledger's chains have no holes. One that has is not stepped over: its offsets would be missing from the table, and
the position behind them would say that they are not.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError
from msgspec import Struct

from shared.lake.positions import Positions, Ranges
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import HEADS_AT_ONCE, Ledger
from shared.raw.objects import ObjectStore, RawObject, StoreUnavailable
from shared.raw.s3 import S3Store

CHAINS_AT_ONCE = 8
PAGE_KEYS = 1000


class RawBucket(ObjectStore, Protocol):
    """The raw bucket, with sizes. Any call may raise ``StoreUnavailable``."""

    async def sizes_after(self, prefix: str, after: str, limit: int = PAGE_KEYS) -> tuple[list[tuple[str, int]], bool]:
        """The first keys below ``prefix`` that are greater than ``after``, with their bytes; do more follow?"""


class ChunkLimits(Struct, frozen=True):
    """What one commit takes at most. One object is always taken."""

    objects: int
    bytes: int
    rows: int


class Chunk(Struct, frozen=True):
    """Objects of some chains, in each the next ones in order."""

    links: Sequence[RawObject]
    keys: Sequence[str]
    """Of those that hold rows."""
    ranges: Ranges
    bytes: int

    @property
    def rows(self) -> int:
        return sum(link.count for link in self.links)

    @property
    def names_all_ids(self) -> bool:
        """False: an object has rows of more schemas than its metadata can hold."""
        return not any(link.schema_ids_more for link in self.links)

    @property
    def schema_ids(self) -> frozenset[int]:
        return frozenset(schema_id for link in self.links for schema_id in link.schema_ids)


class LedgerBroken(Exception):
    """Raw objects that should be there are not. Someone must look; nothing is merged past it."""


class Links:
    """The raw objects of one topic. ``through`` names for each chain the start of the last object to be taken."""

    def __init__(self, bucket: RawBucket, keys: Keys, topic: str, limits: ChunkLimits) -> None:
        self._bucket = bucket
        self._ledger = Ledger(bucket, keys)
        self._keys = keys
        self._topic = topic
        self._limits = limits

    async def chains(self) -> list[Chain]:
        """All chains that have objects, of all generations, the oldest first."""
        found: list[Chain] = []
        for generation in await self._generations():
            found += await self._ledger.partitions(self._topic, generation)
        return found

    async def ends(self, positions: Mapping[Chain, int]) -> dict[Chain, int]:
        """Where all chains end now: the start of their newest object, or the position that lies within it."""
        chains = await self.chains()
        tails = await _some_at_once([self._ledger.tail(chain, positions.get(chain)) for chain in chains])
        return {
            chain: max(tail.newest.start, positions.get(chain, 0))
            for chain, tail in zip(chains, tails, strict=True)
            if tail.newest is not None and tail.newest.next_start > positions.get(chain, 0)
        }

    async def next_chunk(
        self, reading: Positions, through: Mapping[Chain, int], merged: Positions, *, past_floor: bool = False
    ) -> Chunk:
        """What comes next from ``reading`` on, up to ``through``; no links: nothing does.

        ``merged``: the table's positions. ``past_floor``: what was expired before it was merged is given up.
        Raises ``LedgerBroken``, ``StoreUnavailable``, ``NotOurs``.
        """
        starts: dict[Chain, int] = {}
        for chain in sorted(through):
            position = reading.get(chain, 0)
            if position <= through[chain]:
                starts[chain] = await self._start(chain, position, merged.get(chain, 0), past_floor)
        found = await _some_at_once([self._listed(chain, starts[chain], through[chain]) for chain in starts])
        listed = dict(zip(starts, found, strict=True))
        for chain, start in starts.items():
            if not listed[chain] or listed[chain][0][0] != start:
                starts[chain] = begin = await self._covered_from(chain, start)
                listed[chain] = await self._listed(chain, begin, through[chain])
        chosen = self._choose(listed)
        links = self._within_rows(await self._heads(chosen))
        for chain, start in starts.items():
            await self._check_contiguous(chain, start, [link for link in links if link.chain == chain])
        return Chunk(
            links=links,
            keys=[self._keys.link(link.chain, link.start) for link in links if link.count],
            ranges=_spans(links, reading, starts),
            bytes=sum(size for _chain, _start, size in chosen[: len(links)]),
        )

    async def holding(self, chain: Chain, offset: int) -> int:
        """The start of the object that holds ``offset``. Raises ``LedgerBroken``: none does."""
        link = await self._ledger.covering(chain, offset)
        if link is None:
            raise LedgerBroken(f"offset {offset} of {chain} is in no raw object")
        return link.start

    async def expired(self) -> list[Chain]:
        """The chains that have a floor: what lay below it is in no raw object any more."""
        chains = await self.chains()
        floors = await _some_at_once([self._ledger.floor(chain) for chain in chains])
        return [chain for chain, floor in zip(chains, floors, strict=True) if floor > 0]

    async def _generations(self) -> list[int]:
        """All that were claimed. A topic without a claim has no objects yet."""
        prefix = self._keys.claims(self._topic)
        page = await self._bucket.keys_after(prefix, prefix)
        newest = max((_generation(key.removeprefix(prefix)) for key in page.keys), default=0)
        return list(range(1, newest + 1))

    async def _start(self, chain: Chain, position: int, merged: int, past_floor: bool) -> int:
        """Where reading begins. A chain's floor is looked at when it begins there, and when something is missing."""
        if position > 0 and not past_floor:
            return position
        floor = await self._ledger.floor(chain)
        if 0 < merged < floor and not past_floor:
            raise _expired(chain, merged, floor)
        return max(position, floor)

    async def _covered_from(self, chain: Chain, start: int) -> int:
        """Where the object begins that holds ``start``: one put in the place of lost ones may be cut elsewhere. Some of
        its rows are merged already, which changes nothing."""
        over = await self._ledger.covering(chain, start)
        return start if over is None else over.start

    async def _listed(self, chain: Chain, start: int, last: int) -> list[tuple[int, int]]:
        """(start, bytes) of the objects from ``start`` up to ``last``: no more than one chunk can take."""
        wanted = self._limits.objects + 1
        found: list[tuple[int, int]] = []
        after, more = self._keys.before(chain, start), True
        while more and len(found) < wanted:
            limit = min(PAGE_KEYS, wanted - len(found))
            page, more = await self._bucket.sizes_after(self._keys.chain(chain), after, limit)
            found += [(self._keys.parse(key)[1], size) for key, size in page]
            if not page or found[-1][0] >= last:
                break
            after = page[-1][0]
        return [(begin, size) for begin, size in found if begin <= last]

    def _choose(self, listed: Mapping[Chain, list[tuple[int, int]]]) -> list[tuple[Chain, int, int]]:
        """The same share of each chain, as long as there is room."""
        chosen: list[tuple[Chain, int, int]] = []
        room = self._limits.bytes
        rounds = max((len(found) for found in listed.values()), default=0)
        for turn in range(rounds):
            for chain, found in listed.items():
                if turn >= len(found):
                    continue
                begin, size = found[turn]
                if chosen and (len(chosen) >= self._limits.objects or size > room):
                    return chosen
                chosen.append((chain, begin, size))
                room -= size
        return chosen

    async def _heads(self, chosen: Sequence[tuple[Chain, int, int]]) -> list[RawObject]:
        found = await _some_at_once([self._ledger.link(chain, begin) for chain, begin, _size in chosen], HEADS_AT_ONCE)
        links: list[RawObject] = []
        for link, (chain, begin, _size) in zip(found, chosen, strict=True):
            if link is None:
                raise StoreUnavailable(f"the object of {chain} at {begin} was listed, but is not there")
            links.append(link)
        return links

    def _within_rows(self, links: Sequence[RawObject]) -> list[RawObject]:
        """As many as the row limit admits, in the order chosen."""
        rows = 0
        for index, link in enumerate(links):
            rows += link.count
            if index and rows > self._limits.rows:
                return list(links[:index])
        return list(links)

    async def _check_contiguous(self, chain: Chain, due: int, links: Sequence[RawObject]) -> None:
        for link in links:
            if link.start != due:
                floor = await self._ledger.floor(chain)
                if due < floor:
                    raise _expired(chain, due, floor)
                what = "are in no object" if link.start > due else "are in two objects"
                raise LedgerBroken(
                    f"offsets {min(due, link.start)} to {max(due, link.start) - 1} of {chain} {what}; nothing behind "
                    "them is merged until they are there: restore the object (a versioned bucket keeps what was "
                    "deleted), and see `tidemark audit` for all that is missing"
                )
            due = link.next_start


class S3RawBucket:
    """A ``RawBucket`` on S3: what ``store`` does, and sizes."""

    def __init__(self, store: S3Store, client: Any, bucket: str) -> None:
        self.create, self.head, self.read, self.keys_after = store.create, store.head, store.read, store.keys_after
        self._store = store
        self._client = client
        self._name = bucket

    async def answers(self) -> str | None:
        """Why the bucket can't be used, if so."""
        return await self._store.answers()

    async def sizes_after(self, prefix: str, after: str, limit: int = PAGE_KEYS) -> tuple[list[tuple[str, int]], bool]:
        try:
            async with asyncio.timeout(60):
                answer = await self._client.list_objects_v2(
                    Bucket=self._name, Prefix=prefix, StartAfter=after, MaxKeys=limit
                )
        except (BotoCoreError, ClientError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"listing {prefix!r}: {type(error).__name__}: {error}") from error
        found = [(item["Key"], item["Size"]) for item in answer.get("Contents", ())]
        return found, bool(answer.get("IsTruncated"))


def _expired(chain: Chain, position: int, floor: int) -> LedgerBroken:
    return LedgerBroken(
        f"offsets {position} to {floor - 1} of {chain} were expired before they were merged; restore the objects and "
        "lower the floor, or go on without them: batch --skip-expired"
    )


def _spans(links: Sequence[RawObject], reading: Positions, starts: Mapping[Chain, int]) -> Ranges:
    """What the links cover, for the note. What lies below a floor is no part of the ledger: it counts as covered."""
    spans: Ranges = {}
    for link in links:
        begin = spans[link.chain][0] if link.chain in spans else min(reading.get(link.chain, 0), starts[link.chain])
        spans[link.chain] = (begin, link.next_start)
    return spans


def _generation(name: str) -> int:
    digits = name.removesuffix(".json")
    return int(digits) if digits.isdecimal() else 0


async def _some_at_once(calls: Sequence[Any], limit: int = CHAINS_AT_ONCE) -> list[Any]:
    found: list[Any] = []
    for first in range(0, len(calls), limit):
        found += await asyncio.gather(*calls[first : first + limit])
    return found
