"""Which raw objects come next, and that no hole is stepped over."""

from collections.abc import Mapping
from itertools import pairwise

import pytest

from services.delta_loader.links import ChunkLimits, LedgerBroken, Links
from shared.lake.positions import Positions, advanced
from shared.raw.keys import Chain, Keys
from shared.raw.objects import RawObject
from tests.fakes.object_store import MemoryStore

TOPIC = "cdc.a"
A, B = Chain(TOPIC, 1, 0), Chain(TOPIC, 1, 3)
NO_LIMITS = ChunkLimits(objects=100, bytes=1 << 30, rows=1 << 30)


class Bucket(MemoryStore):
    async def sizes_after(self, prefix: str, after: str, limit: int = 1000) -> tuple[list[tuple[str, int]], bool]:
        page = await self.keys_after(prefix, after, limit)
        return [(key, len(self.objects[key].body)) for key in page.keys], page.more


class World:
    def __init__(self, limits: ChunkLimits = NO_LIMITS) -> None:
        self.bucket = Bucket()
        self.keys = Keys("ns/")
        self.links = Links(self.bucket, self.keys, TOPIC, limits)

    async def put(self, chain: Chain, *cuts: int, count: int | None = None, size: int = 10) -> None:
        """Objects between the cuts: ``put(A, 0, 5, 9)`` makes 0..4 and 5..8."""
        for start, after in pairwise(cuts):
            rows = after - start if count is None else count
            link = RawObject(
                chain=chain, start=start, end=after - 1, count=rows, schema_ids=(1,), sha256="x", writer="t"
            )
            await self.bucket.create(self.keys.link(chain, start), b"x" * size, link.metadata())

    async def claim(self, generation: int) -> None:
        await self.bucket.create(self.keys.claim(TOPIC, generation), b"{}", {})

    async def chosen(
        self,
        reading: Positions,
        through: Mapping[Chain, int],
        merged: Positions | None = None,
        *,
        past_floor: bool = False,
    ) -> list[tuple[int, int, int]]:
        """(partition, start, end) of the next chunk's objects."""
        chunk = await self.links.next_chunk(
            reading, through, reading if merged is None else merged, past_floor=past_floor
        )
        return [(link.chain.partition, link.start, link.end) for link in chunk.links]


async def test_a_chunk_begins_at_the_positions_and_ends_at_the_object_named() -> None:
    world = World()
    await world.put(A, 0, 5, 9, 12)
    await world.put(B, 0, 3)

    assert await world.chosen({A: 5}, {A: 5, B: 0}) == [(0, 5, 8), (3, 0, 2)]
    assert await world.chosen({A: 12}, {A: 9}) == []


async def test_a_position_inside_an_object_that_was_cut_anew_begins_with_that_object() -> None:
    """Its rows up to there are merged twice, which changes nothing; what is behind them is not passed over."""
    world = World()
    await world.claim(1)
    await world.put(A, 0, 4, 9)
    newest = await world.links.ends({A: 6})
    chunk = await world.links.next_chunk({A: 6}, newest, {A: 6})

    assert [(link.start, link.end) for link in chunk.links] == [(4, 8)]
    assert advanced({A: 6}, chunk.ranges) == {A: 9}
    await world.put(A, 9, 12)
    assert await world.chosen({A: 6}, await world.links.ends({A: 6})) == [(0, 4, 8), (0, 9, 11)]
    assert await world.links.ends({A: 12}) == {}


async def test_chains_with_a_floor_are_those_that_were_expired() -> None:
    world = World()
    await world.claim(1)
    await world.put(A, 0, 5, 9)
    await world.put(B, 0, 3)
    assert await world.links.expired() == []

    await world.bucket.create(world.keys.floor(A), b'{"floor": 5}', {})
    assert await world.links.expired() == [A]


async def test_a_chunk_is_bounded_and_each_chain_has_its_share() -> None:
    by_objects = World(ChunkLimits(objects=3, bytes=1 << 30, rows=1 << 30))
    by_bytes = World(ChunkLimits(objects=100, bytes=25, rows=1 << 30))
    by_rows = World(ChunkLimits(objects=100, bytes=1 << 30, rows=4))
    nothing_fits = World(ChunkLimits(objects=1, bytes=1, rows=1))
    for world in (by_objects, by_bytes, by_rows, nothing_fits):
        await world.put(A, 0, 2, 4, 6, 8)
        await world.put(B, 0, 2, 4)

    assert await by_objects.chosen({}, {A: 6, B: 2}) == [(0, 0, 1), (3, 0, 1), (0, 2, 3)]
    assert await by_bytes.chosen({}, {A: 6, B: 2}) == [(0, 0, 1), (3, 0, 1)]
    assert await by_rows.chosen({}, {A: 6, B: 2}) == [(0, 0, 1), (3, 0, 1)]
    assert await nothing_fits.chosen({}, {A: 6, B: 2}) == [(0, 0, 1)]


async def test_only_objects_with_rows_are_read_and_all_of_them_count_as_merged() -> None:
    world = World()
    await world.put(A, 0, 7, count=0)
    await world.put(A, 7, 9)
    chunk = await world.links.next_chunk({}, {A: 7}, {})

    assert chunk.keys == [world.keys.link(A, 7)]
    assert (chunk.rows, chunk.ranges, chunk.schema_ids) == (2, {A: (0, 9)}, frozenset({1}))


async def test_a_hole_is_named_and_nothing_is_chosen() -> None:
    world = World()
    await world.put(A, 0, 5)
    await world.put(A, 7, 9)

    with pytest.raises(LedgerBroken, match=r"offsets 5 to 6 of .* are in no object"):
        await world.chosen({}, {A: 7})
    with pytest.raises(LedgerBroken, match="offsets 5 to 6"):
        await world.chosen({A: 5}, {A: 7})


async def test_overlapping_objects_are_named() -> None:
    world = World()
    await world.put(A, 0, 5)
    await world.put(A, 3, 9)

    with pytest.raises(LedgerBroken, match=r"offsets 3 to 4 of .* are in two objects"):
        await world.chosen({}, {A: 3})


async def test_a_new_table_begins_at_the_floor_and_its_range_says_so() -> None:
    world = World()
    await world.put(A, 5, 9)
    await world.bucket.create(world.keys.floor(A), b'{"floor": 5}', {})
    chunk = await world.links.next_chunk({}, {A: 5}, {})

    assert chunk.ranges == {A: (0, 9)}


async def test_what_was_expired_before_it_was_merged_stops_until_it_is_given_up() -> None:
    world = World()
    await world.put(A, 5, 9)
    await world.bucket.create(world.keys.floor(A), b'{"floor": 5}', {})

    for reading, merged in (({A: 3}, {A: 3}), ({}, {A: 3})):
        with pytest.raises(LedgerBroken, match=r"offsets 3 to 4 of .* were expired before they were merged"):
            await world.chosen(reading, {A: 5}, merged)
    given_up = await world.links.next_chunk({A: 3}, {A: 5}, {A: 3}, past_floor=True)
    assert given_up.ranges == {A: (3, 9)}


async def test_the_ends_of_all_generations_are_found() -> None:
    world = World()
    newer = Chain(TOPIC, 2, 0)
    for generation in (1, 2):
        await world.claim(generation)
    await world.put(A, 0, 5, 9)
    await world.put(newer, 0, 4)

    assert await world.links.ends({}) == {A: 5, newer: 0}
    assert await world.links.ends({A: 9}) == {newer: 0}


async def test_the_object_that_holds_an_offset_is_found_in_a_long_chain() -> None:
    world = World()
    await world.put(A, *range(0, 30_000, 10))

    assert [await world.links.holding(A, offset) for offset in (0, 9, 10, 15_555, 29_989)] == [0, 0, 10, 15_550, 29_980]
    with pytest.raises(LedgerBroken, match=r"offset 29990 of .* is in no raw object"):
        await world.links.holding(A, 29_990)
    with pytest.raises(LedgerBroken, match=r"offset 0 of cdc\.a/1/3"):
        await world.links.holding(B, 0)


async def test_the_requests_for_a_chunk_do_not_grow_with_the_old_objects() -> None:
    asked = []
    for old in (100, 2_000):
        world = World()
        await world.put(A, *range(0, old * 10 + 30, 10))
        world.bucket.requests.clear()
        await world.chosen({A: old * 10}, {A: old * 10 + 10})
        asked.append(len(world.bucket.requests))

    assert asked[0] == asked[1] <= 4
