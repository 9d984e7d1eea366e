"""Reading a whole topic back, for tests that count what arrived."""

import asyncio

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition


async def read_topic(bootstrap: str, topic: str, within_s: float = 30) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record of the topic up to the end offsets of now, partition by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(within_s):
            partitions = [TopicPartition(topic, p) for p in await _found(consumer, topic)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            records: list[ConsumerRecord[bytes, bytes]] = []
            while any([await consumer.position(p) < ends[p] for p in partitions]):
                for batch in (await consumer.getmany(timeout_ms=200, max_records=10_000)).values():
                    records += batch
            return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()


async def records_in(bootstrap: str, topic: str) -> int:
    """How many records the topic holds now, by its watermarks."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in await _found(consumer, topic)]
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        return sum(ends[p] - begins[p] for p in partitions)
    finally:
        await consumer.stop()


async def _found(consumer: "AIOKafkaConsumer", topic: str) -> set[int]:
    consumer.subscribe([topic])
    while not (found := consumer.partitions_for_topic(topic)):  # noqa: ASYNC110  # Kafka tells nobody
        await asyncio.sleep(0.05)
    consumer.unsubscribe()
    return set(found)
