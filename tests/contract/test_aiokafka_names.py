"""The private names of aiokafka that the publisher lives by. When one fails, read shared/kafka/incarnation.py."""

import asyncio
import importlib.metadata
import inspect

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.sender import Sender
from aiokafka.structs import TopicPartition

from shared.kafka.errors import KafkaUnreachable
from shared.kafka.incarnation import Incarnation, ProducerDestroyed, may_have_been_sent
from shared.kafka.settings import KafkaSettings


def test_the_minor_version_is_the_one_that_was_read() -> None:
    assert importlib.metadata.version("aiokafka").startswith("0.14.")


async def test_a_producer_has_the_parts_that_its_destruction_takes_apart() -> None:
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:9")

    assert isinstance(producer._message_accumulator, MessageAccumulator)
    assert isinstance(producer._sender, Sender)
    assert isinstance(producer.client, AIOKafkaClient)
    assert producer._sender.sender_task is None
    assert callable(producer._sender._fail_all)
    assert producer._closed is False
    assert isinstance(producer._message_accumulator._pending_batches, set)
    assert producer.client._conns == {}
    assert producer.client._md_update_fut is None
    assert inspect.iscoroutinefunction(producer.client._get_conn)
    assert asyncio.isfuture(producer.client.force_metadata_update())
    assert isinstance(AIOKafkaAdminClient(bootstrap_servers="127.0.0.1:9")._client, AIOKafkaClient)
    await producer.stop()


async def test_a_connection_shows_its_transport() -> None:
    assert AIOKafkaConnection("127.0.0.1", 9)._writer is None


def test_a_batch_is_built_just_before_it_is_sent() -> None:
    batch = BatchBuilder(1000, 0)
    batch.append(timestamp=1, key=b"k", value=b"v")
    assert not may_have_been_sent(batch)

    batch._build()

    assert may_have_been_sent(batch)
    builders = inspect.getsource(importlib.import_module("aiokafka.producer.sender"))
    assert builders.count("get_data_buffer()") == 1, "a second place builds batches"


async def test_a_batch_is_appended_without_a_pause_where_nothing_waits() -> None:
    accumulator = MessageAccumulator(None, 1000, 0, 30)

    adding = accumulator.add_batch(BatchBuilder(1000, 0), TopicPartition("t", 0), 1)

    with pytest.raises(StopIteration):
        adding.send(None)  # no await in between: what send_batch returned from is enqueued, what it raised from isn't


async def test_failing_all_fails_batches_that_wait_and_batches_in_flight() -> None:
    accumulator = MessageAccumulator(None, 1000, 0, 30)
    acknowledged = await accumulator.add_batch(BatchBuilder(1000, 0), TopicPartition("t", 0), 1)
    (batch,) = accumulator._batches[TopicPartition("t", 0)]
    assert isinstance(batch, MessageBatch)

    accumulator.fail_all(ProducerDestroyed("why"))

    assert isinstance(batch._drain_waiter.exception(), ProducerDestroyed)
    with pytest.raises(ProducerDestroyed):
        await acknowledged
    with pytest.raises(ProducerDestroyed):
        await accumulator.add_batch(BatchBuilder(1000, 0), TopicPartition("t", 0), 1)


async def test_a_producer_that_never_reached_a_broker_ends_quietly() -> None:
    incarnation = Incarnation(KafkaSettings(bootstrap="127.0.0.1:9"), {"bootstrap_servers": "127.0.0.1:9"})

    async with asyncio.timeout(5):
        with pytest.raises(KafkaUnreachable):
            await incarnation.start()
        await incarnation.destroy()

    assert not incarnation.usable
