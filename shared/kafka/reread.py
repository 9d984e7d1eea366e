"""What Kafka still has of a range of offsets: read once more, by nobody's group, for auditors.

An offset without a record (a transaction's marker, a record that compaction or a deletion took) is passed over.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from shared.events.lineage import ConsumedRecord
from shared.kafka.client_logs import quiet_client_logs
from shared.kafka.errors import KafkaUnreachable
from shared.kafka.settings import KafkaSettings

PAGE_RECORDS = 2_000
POLL_MS = 500
QUIET_S_MAX = 20.0
"""So long nothing may come from a range that holds offsets: then the brokers don't serve it."""


class Reread:
    """Opens a consumer per range: a rare thing. Raises ``KafkaUnreachable``."""

    def __init__(self, settings: KafkaSettings) -> None:
        quiet_client_logs()
        self._settings = settings

    async def records(
        self, topic: str, partition: int, start: int, end: int
    ) -> AsyncIterator[Sequence[ConsumedRecord]]:
        """The records from ``start`` up to ``end`` (exclusive), in their order, some thousand at a time.

        Offsets that retention has taken are passed over. ``end`` must not lie beyond the log's end.
        """
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_uncommitted",
            max_partition_fetch_bytes=4 * 1024 * 1024,
            request_timeout_ms=self._settings.request_timeout_ms,
            **self._settings.client_kwargs(),
        )
        place = TopicPartition(topic, partition)
        try:
            await consumer.start()
            consumer.assign([place])
            begin = (await consumer.beginning_offsets([place]))[place]
            if begin < end:
                consumer.seek(place, max(start, begin))
                async for page in _pages(consumer, place, end):
                    yield page
        except (KafkaError, OSError, TimeoutError) as error:
            raise KafkaUnreachable(f"{topic}/{partition}: {type(error).__name__}: {error}".rstrip(": ")) from error
        finally:
            await consumer.stop()


async def _pages(
    consumer: AIOKafkaConsumer, place: TopicPartition, end: int
) -> AsyncIterator[Sequence[ConsumedRecord]]:
    loop = asyncio.get_running_loop()
    quiet_until_s = loop.time() + QUIET_S_MAX
    position = await consumer.position(place)
    while position < end:
        try:
            answer = await consumer.getmany(place, timeout_ms=POLL_MS, max_records=PAGE_RECORDS)
        except OffsetOutOfRangeError:  # retention went on meanwhile
            begin = (await consumer.beginning_offsets([place]))[place]
            consumer.seek(place, begin)
            answer = {}
        if page := [record for record in answer.get(place, ()) if record.offset < end]:
            yield page
        moved = await consumer.position(place)
        if moved > position:
            position, quiet_until_s = moved, loop.time() + QUIET_S_MAX
        elif loop.time() >= quiet_until_s:
            raise TimeoutError(f"nothing came behind offset {position}")
