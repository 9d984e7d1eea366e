"""The parked store on a real DynamoDB and a real bucket, through a proxy that fails as the real service does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from random import randbytes
from typing import Any

import pytest
from msgspec.structs import replace

from shared import metrics
from shared.aws import open_client
from shared.events.model import Reason
from shared.parked.calls import ParkedUnavailable
from shared.parked.model import KafkaPosition, ParkedEvent, State, undecodable
from shared.parked.queries import ParkedFilter
from shared.parked.store import ParkedSettings, ParkedStore
from shared.parked.table import ParkedTableDiffers
from shared.parked.transitions import Clocks
from tests.fakes.dynamodb_proxy import (
    DynamoProxy,
    answer_lost,
    broken,
    half_read,
    half_written,
    statements_throttled,
    throttled,
    unique,
)

AT_US = 1_760_000_000_000_000


def parked(number: int, **changes: object) -> ParkedEvent:
    event = ParkedEvent(
        entity="payments",
        topic="cdc.payments",
        key=str(number % 10),
        key_hash=sha256(str(number % 10).encode()).digest()[:16],
        updated_us=AT_US + number,
        event_id=sha256(b"%d" % number).hexdigest()[:32],
        rank=AT_US + number,
        tiebreak=0,
        reason=Reason.INVALID,
        path="/amount",
        detail="expected a decimal",
        raw=b'{"id": %d, "amount": "ten"}' % number,
        subject="cdc.payments-value",
        fingerprint="ab" * 8,
        owner="payments-team",
        at_us=AT_US + number,
    )
    return replace(event, **changes)


class Bench:
    """A table of its own; stores that reach it directly or through the proxy."""

    def __init__(self, resources: AsyncExitStack, proxy: DynamoProxy, endpoint: str, table: str) -> None:
        self.resources = resources
        self.proxy = proxy
        self.endpoint = endpoint
        self.settings = ParkedSettings(table=table, bucket=table.replace("_", "-"), budget_s=5.0)

    async def store(self, *, proxied: bool = False, budget_s: float = 5.0) -> ParkedStore:
        os.environ["AWS_ENDPOINT_URL_DYNAMODB"] = self.proxy.url if proxied else self.endpoint
        try:
            return await ParkedStore.open(replace(self.settings, budget_s=budget_s), self.resources)
        finally:
            os.environ["AWS_ENDPOINT_URL_DYNAMODB"] = self.endpoint

    async def items(self, prefix: str) -> list[dict[str, Any]]:
        client = await open_client("dynamodb", self.resources)
        answer = await client.scan(TableName=self.settings.table, ConsistentRead=True)
        return [item for item in answer["Items"] if item["sk"]["S"].startswith(prefix)]


@pytest.fixture
async def bench(stack: Any) -> AsyncIterator[Bench]:
    endpoint = stack.env["AWS_ENDPOINT_URL_DYNAMODB"]
    async with AsyncExitStack() as resources, DynamoProxy(endpoint) as proxy:
        table = unique("parked_")
        made = Bench(resources, proxy, endpoint, table)
        assert await (await made.store()).ensure_table()
        yield made
        client = await open_client("dynamodb", resources)
        for name in {table, made.settings.table}:
            await client.delete_table(TableName=name)


async def test_what_is_parked_is_counted_listed_and_shown_with_its_bytes(bench: Bench) -> None:
    store = await bench.store()
    events = [parked(number) for number in range(60)] + [parked(99, reason=Reason.KAFKA_UNKNOWN, maybe_sent=True)]
    outcome = await store.park(events)

    assert (outcome.new, outcome.seen_again, outcome.conflicts) == (61, 0, 0)
    assert await store.counts(["payments", "accounts"]) == {
        ("payments", Reason.INVALID): 60,
        ("payments", Reason.KAFKA_UNKNOWN): 1,
    }
    assert {found.event_id for found in await store.scan_ids()} == {event.event_id for event in events}
    [shown] = await store.show(events[7].event_id)
    assert (shown.raw, shown.seq, shown.topic) == (events[7].raw, (AT_US + 7, 0), "cdc.payments")
    assert (shown.row.key, shown.row.state, shown.seen) == ("7", State.HELD, 1)
    [unknown] = await store.show(events[-1].event_id)
    assert (unknown.row.state, unknown.maybe_sent) == (State.PARKED, True)
    assert await store.show("0" * 32) == []


async def test_parking_nothing_asks_nobody(bench: Bench) -> None:
    outcome = await (await bench.store(proxied=True)).park([])

    assert (outcome.new, bench.proxy.calls) == (0, [])


async def test_a_listing_pages_through_all_shards_in_the_order_of_parking(bench: Bench) -> None:
    store = await bench.store()
    await store.park([parked(number) for number in range(45)])
    wanted = ParkedFilter(entities=("payments",), reasons=(Reason.INVALID, Reason.HOSTILE))
    seen: list[int] = []
    after: str | None = None
    while True:
        page = await store.find(wanted, limit=10, after=after)
        seen += [row.first_us - AT_US for row in page.rows]
        after = page.after
        if after is None:
            break

    assert seen == list(range(45))
    some = await store.find(replace(wanted, since_us=AT_US + 3, until_us=AT_US + 6, path="/amount"))
    assert [row.first_us - AT_US for row in some.rows] == [3, 4, 5]
    assert (await store.find(replace(wanted, state=State.PARKED))).rows == []
    assert (await store.find(replace(wanted, owner="nobody"))).rows == []


async def test_parking_again_counts_and_keeps_the_greater_seq(bench: Bench) -> None:
    events = [parked(number) for number in range(30)]
    await (await bench.store()).park(events)
    again = await bench.store()
    later = [replace(event, rank=event.rank + 5, maybe_sent=True) for event in events[:10]]
    outcome = await again.park([*later, *events[10:]])

    assert (outcome.new, outcome.seen_again) == (0, 30)
    [raised] = await again.show(events[0].event_id)
    assert (raised.seq, raised.seen, raised.maybe_sent) == ((AT_US + 5, 0), 2, True)
    outcome = await again.park(events)
    [kept] = await again.show(events[0].event_id)
    assert (outcome.seen_again, kept.seq, kept.seen, kept.maybe_sent) == (30, (AT_US + 5, 0), 3, True)
    assert len(await bench.items("B#")) == 30


async def test_a_crash_between_bodies_and_metas_loses_and_doubles_nothing(bench: Bench) -> None:
    events = [parked(number) for number in range(30)]
    bench.proxy.fail("BatchExecuteStatement", *[broken] * 500)
    with pytest.raises(ParkedUnavailable) as caught:
        await (await bench.store(proxied=True, budget_s=0.3)).park(events)

    assert caught.value.reason == "parked_unavailable"
    assert await bench.items("E#") == []
    assert len(await bench.items("B#")) == 30
    outcome = await (await bench.store()).park(events)
    assert outcome.new == 30
    await assert_whole(bench, events)


async def test_a_crash_amid_the_metas_loses_and_doubles_nothing(bench: Bench) -> None:
    events = [parked(number) for number in range(100)]
    bench.proxy.fail("BatchExecuteStatement", answer_lost, *[broken] * 500)
    store = await bench.store(proxied=True, budget_s=0.3)
    with pytest.raises(ParkedUnavailable):
        await store.park(events)
    there = len(await bench.items("E#"))
    assert 0 < there < 100

    bench.proxy.heal()
    outcome = await store.park(events)
    assert (outcome.new, outcome.seen_again) == (100 - there, there)
    await assert_whole(bench, events)


async def test_an_insert_whose_answer_was_lost_is_new_and_keeps_its_body(bench: Bench) -> None:
    events = [parked(number) for number in range(20)]
    bench.proxy.fail("BatchExecuteStatement", answer_lost)
    outcome = await (await bench.store(proxied=True)).park(events)

    assert (outcome.new, outcome.seen_again) == (20, 0)
    await assert_whole(bench, events)
    assert len(await bench.items("B#")) == 20


async def test_concurrent_parkers_of_one_event_make_one_item(bench: Bench) -> None:
    events = [parked(number) for number in range(40)]
    stores = [await bench.store() for _ in range(4)]
    outcomes = await asyncio.gather(*(store.park(events) for store in stores))

    assert sum(outcome.new for outcome in outcomes) == 40
    assert sum(outcome.seen_again for outcome in outcomes) == 120
    await assert_whole(bench, events)
    assert len(await bench.items("B#")) == 40
    assert {item["seen"]["N"] for item in await bench.items("E#")} == {"4"}


async def test_partial_answers_are_completed_and_throttles_named(bench: Bench) -> None:
    events = [parked(number) for number in range(50)]
    before = metrics.DYNAMO_THROTTLES.labels("grp", "throttled")._value.get()
    bench.proxy.fail("BatchGetItem", half_read, throttled("grp"), half_read)
    bench.proxy.fail("BatchWriteItem", half_written, half_written, throttled("due"), half_written)
    bench.proxy.fail("BatchExecuteStatement", statements_throttled("grp", 1), broken, statements_throttled("grp", 2))
    outcome = await (await bench.store(proxied=True)).park(events)

    assert outcome.new == 50
    await assert_whole(bench, events)
    assert metrics.DYNAMO_THROTTLES.labels("grp", "throttled")._value.get() > before


async def test_throttling_beyond_the_budget_names_the_index(bench: Bench) -> None:
    bench.proxy.fail("BatchExecuteStatement", *[throttled("grp")] * 500)
    with pytest.raises(ParkedUnavailable) as caught:
        await (await bench.store(proxied=True, budget_s=0.3)).park([parked(1)])

    assert (caught.value.reason, caught.value.throttled_at) == ("parked_throttled", "grp")


async def test_a_store_that_refuses_connections_is_unavailable_within_the_budget(bench: Bench) -> None:
    os.environ["AWS_ENDPOINT_URL_DYNAMODB"] = "http://127.0.0.1:9"
    try:
        store = await ParkedStore.open(replace(bench.settings, budget_s=0.2), bench.resources)
    finally:
        os.environ["AWS_ENDPOINT_URL_DYNAMODB"] = bench.endpoint

    with pytest.raises(ParkedUnavailable, match="parked_unavailable"):
        await store.park([parked(1)])
    with pytest.raises(ParkedUnavailable):
        await store.answers()


async def test_one_event_id_with_other_bytes_is_parked_under_another_rev(bench: Bench) -> None:
    store = await bench.store()
    first, second, third = (parked(1, raw=raw) for raw in (b"{}", b"{ }", b"{  }"))
    await store.park([first])
    outcome = await store.park([second, first, third])

    assert (outcome.new, outcome.seen_again, outcome.conflicts) == (2, 1, 2)
    assert [(shown.rev, shown.raw) for shown in await store.show(first.event_id)] == [
        (0, b"{}"), (1, b"{ }"), (2, b"{  }"),
    ]  # fmt: skip
    outcome = await (await bench.store()).park([third, second])
    assert (outcome.new, outcome.seen_again) == (0, 2)


async def test_a_large_body_lies_in_the_bucket_once(bench: Bench) -> None:
    store = await bench.store()
    assert await store.ensure_bucket()
    assert not await store.ensure_bucket()
    raw = b"".join(sha256(b"%d" % number).digest() for number in range(30_000))
    event = parked(1, raw=raw, reason=Reason.TOO_LARGE)
    await store.park([event, parked(2)])
    outcome = await (await bench.store()).park([event])

    assert outcome.seen_again == 1
    [shown] = await store.show(event.event_id)
    assert shown.raw == raw
    client = await open_client("s3", bench.resources)
    listed = await client.list_objects_v2(Bucket=bench.settings.bucket)
    [found] = listed["Contents"]
    assert found["Key"].startswith(f"bodies/payments/{sha256(raw).hexdigest()}-")
    await client.delete_object(Bucket=bench.settings.bucket, Key=found["Key"])
    await client.delete_bucket(Bucket=bench.settings.bucket)


async def test_an_undecodable_record_is_found_under_its_offset(bench: Bench) -> None:
    store = await bench.store()
    position = KafkaPosition("cdc.payments", 1, 2, 77, 1_760_000_000_000, None)
    event = undecodable(
        entity="payments", position=position, value=b"\x00\x00\x00\x00\x09junk", detail="trailing bytes",
        subject="cdc.payments-value", fingerprint=None, owner="o", at_us=AT_US,
    )  # fmt: skip
    await store.park([event])
    await store.park([event])

    [shown] = await store.show("cdc.payments/1/2/77")
    assert (shown.raw, shown.seen, shown.row.reason) == (event.raw, 2, Reason.UNDECODABLE)


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (randbytes(500_000), (("tm-op", b"u"),)),
        (b"7", (("foreign", randbytes(500_000)), ("tm-op", b"u"))),
        (b"k" * 500_000, (("null", None),)),  # which packs small: behind the body's item, not in the bucket
    ],
    ids=["key", "header", "packs small"],
)
async def test_an_undecodable_record_whose_key_or_header_no_item_has_room_for_is_parked_whole(
    bench: Bench, key: bytes, headers: tuple[tuple[str, bytes | None], ...]
) -> None:
    store = await bench.store()
    await store.ensure_bucket()
    position = KafkaPosition("cdc.payments", 1, 2, 78, 1_760_000_000_000, key, headers)
    event = undecodable(
        entity="payments", position=position, value=b"\x00\x00\x00\x00\x09junk", detail="trailing bytes",
        subject="cdc.payments-value", fingerprint=None, owner="o", at_us=AT_US,
    )  # fmt: skip
    await store.park([event])
    await store.park([event])

    [shown] = await store.show(event.item_id)
    assert (shown.raw, shown.seen) == (event.raw, 2)
    transitions = store.transitions_by(Clocks(bound_s=None))
    row = await transitions.look(shown.row)
    assert row is not None
    claimed = await transitions.claim(row, "w", 60, early=True)
    assert claimed is not None
    assert (claimed.event.kafka, claimed.event.raw) == (position, event.raw)
    renewed = await transitions.renew(claimed, 60)
    assert renewed.event.kafka == position


async def test_an_existing_table_is_verified(bench: Bench) -> None:
    assert not await (await bench.store()).ensure_table()

    client = await open_client("dynamodb", bench.resources)
    name = unique("parked_wrong_")
    await client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    bench.settings = replace(bench.settings, table=name)
    with pytest.raises(ParkedTableDiffers, match="index 'due' is missing"):
        await (await bench.store()).ensure_table()
    await client.delete_table(TableName=name)
    bench.settings = replace(bench.settings, table=unique("parked_"))
    with pytest.raises(ParkedUnavailable, match="bootstrap"):
        await (await bench.store()).park([parked(1)])
    assert await (await bench.store()).ensure_table()


async def assert_whole(bench: Bench, events: list[ParkedEvent]) -> None:
    """Each event has one item, whose body is there and holds the event's bytes."""
    store = await bench.store()
    found = await store.scan_ids()
    assert sorted(item.event_id for item in found) == sorted(event.event_id for event in events)
    bodies = {(item["pk"]["S"], item["sk"]["S"]) for item in await bench.items("B#")}
    for item in await bench.items("E#"):
        assert (item["pk"]["S"], item["body"]["S"]) in bodies
    for event in events[:3]:
        [shown] = await store.show(event.event_id)
        assert shown.raw == event.raw
