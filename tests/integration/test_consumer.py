"""The group consumer on a real broker: where it reads, what it says about offsets without records, and outages."""

import asyncio
import itertools
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from deploy.local.stack import Stack
from shared.config import load_config
from shared.kafka.admin import KafkaAdmin
from shared.kafka.chunks import Chunk, Partition
from shared.kafka.consumer import ConsumerSettings, GroupConsumer
from shared.kafka.settings import KafkaSettings

FAST = ConsumerSettings(session_timeout_s=6, fetch_wait_s=0.1, topics_recheck_s=1)


class World:
    def __init__(self, kafka: KafkaSettings, resources: AsyncExitStack) -> None:
        self.kafka = kafka
        self.topic = f"consumer-{uuid.uuid4().hex[:10]}"
        self.partition = Partition(self.topic, 0)
        self.group = f"{self.topic}-group"
        self.revokes = 0
        self._resources = resources

    async def make_topic(self, partitions: int = 1) -> None:
        admin = await KafkaAdmin.open(self.kafka, self._resources)
        await admin.ensure_topic(self.topic, partitions=partitions, replication=1)

    async def consumer(self, settings: ConsumerSettings = FAST) -> GroupConsumer:
        async def revoked() -> None:
            self.revokes += 1

        return await GroupConsumer.open(
            self.kafka, self.group, [self.topic], revoked, self._resources, consumer=settings
        )

    async def produce(self, count: int, transactional: str | None = None, abort: bool = False) -> None:
        kwargs = self.kafka.client_kwargs()
        async with AIOKafkaProducer(transactional_id=transactional, **kwargs) as producer:
            if transactional:
                await producer.begin_transaction()
            for number in range(count):
                await producer.send(self.topic, b"%d" % number, partition=0)
            await producer.flush()
            if transactional:
                await (producer.abort_transaction() if abort else producer.commit_transaction())


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    async with AsyncExitStack() as resources:
        made = World(load_config(KafkaSettings, os.environ, "TIDEMARK_KAFKA_"), resources)
        await made.make_topic()
        yield made


async def until(claim: Callable[[], Awaitable[bool]], within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not await claim():
            pass


async def read(consumer: GroupConsumer, partition: Partition, start: int, end: int) -> list[Chunk]:
    """The chunks from ``start`` to ``end``, once the partition is ours."""

    async def is_ours() -> bool:
        await consumer.fetch(0.2)
        return partition in consumer.assigned

    await until(is_ours)
    consumer.start(partition, start)
    chunks: list[Chunk] = []

    async def has_all() -> bool:
        chunks.extend((await consumer.fetch(0.5)).chunks)
        return bool(chunks) and chunks[-1].next_offset >= end

    await until(has_all)
    return chunks


async def test_chunks_follow_each_other_from_where_reading_was_started(world: World) -> None:
    await world.produce(1_000)
    small = ConsumerSettings(session_timeout_s=6, fetch_wait_s=0.1, chunk_records_max=70)

    chunks = await read(await world.consumer(small), world.partition, 100, 1_000)

    assert chunks[0].begins_at == 100
    assert all(one.next_offset == other.begins_at for one, other in itertools.pairwise(chunks))
    assert [record.offset for chunk in chunks for record in chunk.records] == list(range(100, 1_000))


async def test_offsets_of_markers_and_aborted_records_pass_without_records(world: World) -> None:
    await world.produce(3, transactional=f"{world.topic}-one")
    await world.produce(5, transactional=f"{world.topic}-two", abort=True)

    chunks = await read(await world.consumer(), world.partition, 0, 10)

    assert chunks[-1].next_offset == 10
    assert [record.offset for chunk in chunks for record in chunk.records] == [0, 1, 2]


async def test_a_partition_that_is_held_is_not_read_and_misses_nothing(world: World) -> None:
    await world.produce(10)
    consumer = await world.consumer()
    await read(consumer, world.partition, 0, 10)
    consumer.hold([world.partition])
    await world.produce(10)
    for _turn in range(5):
        assert not (await consumer.fetch(0.2)).chunks

    consumer.hold([])
    chunks: list[Chunk] = []

    async def has_all() -> bool:
        chunks.extend((await consumer.fetch(0.5)).chunks)
        return sum(len(chunk.records) for chunk in chunks) == 10

    await until(has_all)
    assert chunks[0].begins_at == 10


async def test_an_offset_that_kafka_does_not_have_is_said_and_moves_nothing(world: World) -> None:
    await world.produce(5)
    consumer = await world.consumer()
    await read(consumer, world.partition, 0, 5)
    consumer.start(world.partition, 500)

    async def is_said() -> bool:
        reading = await consumer.fetch(0.5)
        assert not reading.chunks
        return reading.out_of_range == {world.partition}

    await until(is_said)
    assert [c.begins_at for c in await read(consumer, world.partition, 2, 5)][:1] == [2]


async def test_a_commit_is_found_with_its_metadata_and_only_the_owner_may_leave_one(world: World) -> None:
    await world.produce(5)
    consumer = await world.consumer()
    await read(consumer, world.partition, 0, 5)

    assert await consumer.commit(world.partition, consumer.assignment, 5, "raw/some/object")
    assert not await consumer.commit(world.partition, consumer.assignment - 1, 3, "stale")
    found = (await consumer.commits([world.partition]))[world.partition]
    assert (found.next_offset, found.metadata) == (5, "raw/some/object")


async def test_a_topic_that_does_not_exist_is_waited_for(world: World) -> None:
    present, world.topic = world.topic, f"later-{world.topic}"
    world.partition = Partition(world.topic, 0)
    consumer = await world.consumer()
    for _turn in range(5):
        assert not (await consumer.fetch(0.2)).chunks
    await world.make_topic()
    await world.produce(3)

    assert (await read(consumer, world.partition, 0, 3))[-1].next_offset == 3
    assert present != world.topic


async def test_a_second_member_takes_partitions_after_the_first_was_told(world: World) -> None:
    await world.produce(5)
    first = await world.consumer()
    await read(first, world.partition, 0, 5)
    number = first.assignment
    second = await world.consumer()

    async def both_turned() -> bool:
        await asyncio.gather(first.fetch(0.2), second.fetch(0.2))
        return first.assignment > number and second.assignment > 0

    await until(both_turned)
    assert world.revokes >= 1
    assert first.assigned | second.assigned == {world.partition}
    assert first.assigned & second.assigned == frozenset()


async def test_while_the_broker_is_dead_fetch_is_empty_and_bounded_and_then_goes_on(stack: Stack) -> None:
    name = f"consumer-broker-{uuid.uuid4().hex[:6]}"
    bootstrap = stack.add_broker(name)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as resources:
        world = World(KafkaSettings(bootstrap=bootstrap), resources)
        consumer = await world.consumer()
        assert not (await consumer.fetch(1.0)).chunks  # a sink may start before its broker
        await asyncio.to_thread(stack.start, name)
        await world.make_topic()
        await world.produce(5)
        await read(consumer, world.partition, 0, 5)

        await asyncio.to_thread(stack.kill, name)
        for _turn in range(4):
            began_s = loop.time()
            assert not (await consumer.fetch(0.5)).chunks
            assert loop.time() - began_s < 2
        began_s = loop.time()
        assert not await consumer.commit(world.partition, consumer.assignment, 5, "x")
        assert loop.time() - began_s < 8
        await asyncio.to_thread(stack.start, name)
        await world.produce(5)

        assert TopicPartition(*world.partition)
        chunks = await read(consumer, world.partition, 5, 10)
        assert [record.offset for chunk in chunks for record in chunk.records][-5:] == [5, 6, 7, 8, 9]
        await consumer.close()
        await asyncio.to_thread(stack.kill, name)


async def test_a_corrupt_batch_stops_its_own_partition_at_its_offset_and_no_other(stack: Stack) -> None:
    name = f"consumer-corrupt-{uuid.uuid4().hex[:6]}"
    bootstrap = stack.add_broker(name)
    await asyncio.to_thread(stack.start, name)
    async with AsyncExitStack() as resources:
        world = World(KafkaSettings(bootstrap=bootstrap), resources)
        await world.make_topic(partitions=3)
        partitions = [Partition(world.topic, number) for number in range(3)]
        values = [random.Random(number).randbytes(100) for number in range(30)]
        async with AIOKafkaProducer(**world.kafka.client_kwargs()) as producer:
            for value in values:  # each a batch of its own
                for partition in partitions:
                    await producer.send_and_wait(world.topic, value, partition=partition.partition)
        damage(stack, name, world.topic, 1, values[10])
        consumer = await world.consumer()
        read = {partition: list[int]() for partition in partitions}
        unreadable: dict[Partition, str] = {}

        async def until_read(ends: list[int]) -> None:
            async def has_all() -> bool:
                reading = await consumer.fetch(0.5)
                unreadable.update(reading.unreadable)
                for chunk in reading.chunks:
                    assert chunk.begins_at == len(read[chunk.partition])
                    read[chunk.partition] += [record.offset for record in chunk.records]
                return [len(read[partition]) for partition in partitions] == ends and bool(unreadable)

            await until(has_all)

        async def is_ours() -> bool:
            await consumer.fetch(0.2)
            return consumer.assigned == set(partitions)

        await until(is_ours)
        for partition in partitions:
            consumer.start(partition, 0)
        await until_read([30, 10, 30])
        assert list(unreadable) == [partitions[1]]
        assert unreadable[partitions[1]].startswith("CorruptRecordException")

        await world.produce(100)  # to partition 0
        await until_read([130, 10, 30])

        unreadable.clear()
        consumer.start(partitions[1], 10)  # looked at again
        await world.produce(100)
        await until_read([230, 10, 30])
        assert list(unreadable) == [partitions[1]]

        consumer.start(partitions[1], 11)  # behind it
        read[partitions[1]] = list(range(11))
        await until_read([230, 30, 30])
        assert read[partitions[1]] == list(range(30))
        await consumer.close()
        await asyncio.to_thread(stack.kill, name)


def damage(stack: Stack, broker: str, topic: str, partition: int, value: bytes) -> None:
    """Flip one byte of a record on the broker's disk: brokers hand batches out as they lie there."""
    [segment] = stack.folder.glob(f"**/{broker}/logs/{topic}-{partition}/*.log")
    at = segment.read_bytes().index(value)
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value[0] ^ 1]))


async def test_a_member_that_reads_nothing_knows_within_seconds_whether_kafka_is_there(stack: Stack) -> None:
    name = f"consumer-idle-{uuid.uuid4().hex[:6]}"
    bootstrap = stack.add_broker(name)
    async with AsyncExitStack() as resources:
        world = World(KafkaSettings(bootstrap=bootstrap), resources)
        seldom = ConsumerSettings(session_timeout_s=6, fetch_wait_s=0.1, topics_recheck_s=600)
        await asyncio.to_thread(stack.start, name)
        await world.make_topic()
        consumer = await world.consumer(seldom)

        async def is_ours() -> bool:
            await consumer.fetch(0.2)
            return world.partition in consumer.assigned

        async def is_connected() -> bool:
            await consumer.fetch(0.2)
            return consumer.connected

        async def is_cut_off() -> bool:
            return not await is_connected()

        await until(is_ours)  # and nothing is started: all topics may be refused
        await until(is_connected)
        await asyncio.to_thread(stack.kill, name)
        await until(is_cut_off)
        await asyncio.to_thread(stack.start, name)
        await until(is_connected)
        await consumer.close()
        await asyncio.to_thread(stack.kill, name)
