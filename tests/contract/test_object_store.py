"""What the ledger needs of a bucket holds for the fake in memory, and for S3 as the local stack emulates it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from shared.aws import open_client
from shared.raw.objects import ExpiringStore, ObjectStore, SlotTaken
from shared.raw.s3 import S3Store
from tests.fakes.object_store import MemoryStore


@pytest.fixture(params=["memory", "s3"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ExpiringStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    request.getfixturevalue("stack")
    async with AsyncExitStack() as stack:
        client = await open_client("s3", stack)
        bucket = f"contract-{uuid.uuid4().hex[:12]}"
        await client.create_bucket(Bucket=bucket)
        yield S3Store(client, bucket)


async def test_an_object_is_read_back_as_it_was_created(store: ObjectStore) -> None:
    await store.create("a/1", b"body", {"tm-end": "7", "tm-kind": "records"})

    found = await store.read("a/1")
    assert found is not None
    assert found.body == b"body"
    assert found.metadata == {"tm-end": "7", "tm-kind": "records"}
    assert await store.head("a/1") == {"tm-end": "7", "tm-kind": "records"}


async def test_a_missing_object_is_none_and_no_error(store: ObjectStore) -> None:
    assert await store.head("a/none") is None
    assert await store.read("a/none") is None


async def test_a_second_create_is_refused_and_changes_nothing(store: ObjectStore) -> None:
    await store.create("a/1", b"first", {"tm-writer": "one"})

    with pytest.raises(SlotTaken):
        await store.create("a/1", b"second", {"tm-writer": "two"})
    found = await store.read("a/1")
    assert found is not None
    assert (found.body, found.metadata) == (b"first", {"tm-writer": "one"})


async def test_of_many_creates_at_once_exactly_one_wins(store: ObjectStore) -> None:
    async def create(number: int) -> int | None:
        try:
            await store.create("a/race", b"%d" % number, {"tm-writer": str(number)})
        except SlotTaken:
            return None
        return number

    winners = [number for number in await asyncio.gather(*map(create, range(10))) if number is not None]

    assert len(winners) == 1
    found = await store.read("a/race")
    assert found is not None
    assert found.body == b"%d" % winners[0]


async def test_keys_come_in_order_after_the_given_one_and_below_the_prefix(store: ObjectStore) -> None:
    for key in ("a/3", "a/1", "a/2", "b/1", "a/10"):
        await store.create(key, b"", {})

    page = await store.keys_after("a/", "a/1")
    assert (list(page.keys), page.more) == (["a/10", "a/2", "a/3"], False)
    page = await store.keys_after("a/", "a/", limit=2)
    assert (list(page.keys), page.more) == (["a/1", "a/10"], True)
    page = await store.keys_after("a/", "a/3")
    assert (list(page.keys), page.more) == ([], False)


async def test_an_empty_body_is_an_object(store: ObjectStore) -> None:
    await store.create("a/empty", b"", {})

    found = await store.read("a/empty")
    assert found is not None
    assert found.body == b""


async def test_only_the_version_that_was_read_is_replaced(store: ExpiringStore) -> None:
    await store.create("a/floor", b"1", {})
    first = await store.tagged("a/floor")
    assert first is not None

    await store.replace("a/floor", b"2", first.tag)
    with pytest.raises(SlotTaken):
        await store.replace("a/floor", b"3", first.tag)

    second = await store.tagged("a/floor")
    assert second is not None
    assert (first.body, second.body) == (b"1", b"2")
    assert await store.tagged("a/none") is None
    with pytest.raises(SlotTaken):
        await store.replace("a/none", b"1", first.tag)


async def test_keys_are_deleted_together_and_those_that_are_gone_are_no_error(store: ExpiringStore) -> None:
    for number in range(5):
        await store.create(f"a/{number}", b"", {})

    await store.delete(["a/0", "a/1", "a/none"])
    await store.delete([])

    assert (await store.keys_after("a/", "")).keys == ["a/2", "a/3", "a/4"]
