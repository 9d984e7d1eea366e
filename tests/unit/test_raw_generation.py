"""Generations: claimed once, kept for a topic's life, refused when the topic is another."""

import asyncio

import pytest

from shared.raw import generation
from shared.raw.generation import Generation, GenerationRefused, TopicLife
from shared.raw.keys import Keys
from shared.raw.objects import NotOurs
from tests.fakes.object_store import MemoryStore

KEYS = Keys()
FIRST = TopicLife("cluster", "topic-1")
SECOND = TopicLife("cluster", "topic-2")
TOPIC = "cdc.accounts"


async def settle(store: MemoryStore, life: TopicLife) -> Generation:
    return await generation.settle(store, KEYS, TOPIC, life, "me")


async def test_the_first_sight_of_a_topic_claims_generation_1_and_later_ones_find_it() -> None:
    store = MemoryStore()

    assert await settle(store, FIRST) == Generation(1, proven=True)
    assert await settle(store, FIRST) == Generation(1, proven=True)
    assert list(store.objects) == ["generations/cdc.accounts/00001.json"]


async def test_many_claims_at_once_agree() -> None:
    store = MemoryStore()

    assert set(await asyncio.gather(*(settle(store, FIRST) for _ in range(10)))) == {Generation(1, proven=True)}


async def test_a_topic_made_anew_is_refused_until_the_operator_opens_the_next_generation() -> None:
    store = MemoryStore()
    await settle(store, FIRST)

    with pytest.raises(GenerationRefused, match="open generation 2"):
        await settle(store, SECOND)
    assert await generation.open_next(store, KEYS, TOPIC, SECOND, "me", "made anew") == 2
    assert await settle(store, SECOND) == Generation(2, proven=True)
    with pytest.raises(GenerationRefused):
        await settle(store, FIRST)


async def test_the_same_topic_on_another_cluster_is_another_topic() -> None:
    store = MemoryStore()
    await settle(store, FIRST)

    with pytest.raises(GenerationRefused, match="cluster elsewhere"):
        await settle(store, TopicLife("elsewhere", "topic-1"))


async def test_without_ids_only_records_can_prove_the_topic() -> None:
    store = MemoryStore()
    await settle(store, FIRST)

    assert await settle(store, TopicLife(None, None)) == Generation(1, proven=False)


async def test_opening_twice_for_one_reason_opens_once() -> None:
    store = MemoryStore()
    await settle(store, FIRST)

    opened = [await generation.open_next(store, KEYS, TOPIC, FIRST, "me", "log was cut back") for _ in range(2)]
    assert opened == [2, 2]
    assert await generation.open_next(store, KEYS, TOPIC, FIRST, "me", "cut back again") == 3


async def test_topics_whose_names_begin_alike_have_their_own_generations() -> None:
    store = MemoryStore()
    await generation.open_next(store, KEYS, "cdc.accounts2", SECOND, "me", "first")

    assert await settle(store, FIRST) == Generation(1, proven=True)


async def test_an_unreadable_claim_stops_the_topic() -> None:
    store = MemoryStore()
    await store.create(KEYS.claim(TOPIC, 1), b"{", {})

    with pytest.raises(NotOurs):
        await settle(store, FIRST)
