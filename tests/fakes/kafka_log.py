"""What a topic really holds: read to its end by a plain client, beside the code under test."""

import asyncio

from aiokafka import AIOKafkaConsumer, ConsumerRecord


async def read_topic(bootstrap: str, topic: str, *, within_s: float = 60) -> list[ConsumerRecord]:
    """All records, partition by partition in offset order."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    records: list[ConsumerRecord] = []
    async with asyncio.timeout(within_s):
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    records += batch
        finally:
            await consumer.stop()
    return sorted(records, key=lambda record: (record.partition, record.offset))
