"""Publishes a page to Kafka and says of each record what became of it, within a deadline of our own.

No record is ever guessed about: acknowledged, certainly not written, or unknown. To keep the unknown few, connections
to the leaders are made before anything is sent, one batch per partition is in flight at a time, and while the breaker
is open a single record goes first.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

import structlog
from aiokafka.errors import (
    BrokerResponseError,
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RecordListTooLargeError,
    UnknownProducerId,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from shared import metrics
from shared.events.model import Reason
from shared.kafka.breaker import Breaker
from shared.kafka.client_logs import quiet_client_logs
from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused
from shared.kafka.incarnation import CLOSE_S, Incarnation, ProducerDestroyed, may_have_been_sent
from shared.kafka.partitions import partition_of_keys
from shared.kafka.records import NotPublished, Outgoing
from shared.kafka.settings import KafkaSettings
from shared.kafka.sizes import SizeLimits, record_bytes

log = structlog.get_logger(__name__)

RECONNECT_S = 1.0
"""At most between two attempts to reach a broker while the breaker is still closed."""
OTHERS_GRACE_S = 1.0
"""How long the destruction of a producer waits for publish calls that are not to blame."""

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_LOST_TRACK = (OutOfOrderSequenceNumber, InvalidProducerEpoch, ProducerFenced, UnknownProducerId)
"""The broker and this producer disagree about what was written."""

_NOT_SENT = NotPublished(Reason.KAFKA_UNAVAILABLE, "not sent")
_UNKNOWN = NotPublished(Reason.KAFKA_UNKNOWN, "no acknowledgement by the deadline")


class _Page:
    """The records of one call. Until something is known about a record, it is ``_NOT_SENT``."""

    def __init__(self, topic: str, records: Sequence[Outgoing]) -> None:
        self.topic = topic
        self.records = records
        self.outcomes: list[NotPublished | None] = [_NOT_SENT] * len(records)

    def settle(self, indexes: Iterable[int], outcome: NotPublished | None) -> None:
        for index in indexes:
            self.outcomes[index] = outcome

    def settle_unsent(self, outcome: NotPublished) -> None:
        self.outcomes = [outcome if known is _NOT_SENT else known for known in self.outcomes]

    def has_unknown(self) -> bool:
        return any(outcome is _UNKNOWN for outcome in self.outcomes)


class Publisher:
    """One per process, for all its topics: calls for different topics run concurrently and share a producer."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client_kwargs = settings.client_kwargs()
        self._probe_s = min(settings.probe_deadline_s, settings.delivery_deadline_s)
        self._pause_s = min(RECONNECT_S, settings.delivery_deadline_s / 5)
        self._breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
        self._limits: defaultdict[str, SizeLimits] = defaultdict(lambda: SizeLimits(settings.batch_bytes))
        self._current: Incarnation | None = None
        self._starting: asyncio.Task[Incarnation] | None = None
        self._live: set[Incarnation] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, settings: KafkaSettings, stack: AsyncExitStack) -> "Publisher":
        """Closes with ``stack``, in bounded time. Connects when first needed: Kafka may be down.

        Raises ``ConfigError`` when a certificate or password file can't be used.
        """
        quiet_client_logs()
        publisher = cls(settings)
        stack.push_async_callback(publisher._close)
        return publisher

    def breaker_open(self, topic: str) -> bool:
        return self._breakers[topic].state == "open"

    async def reachable(self) -> bool:
        """Whether a broker answers now; for readiness."""
        until = asyncio.get_running_loop().time() + self._probe_s
        try:
            incarnation = await self._incarnation(until)
        except (KafkaUnreachable, TopicRefused):
            return False
        return await incarnation.answers(until)

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[NotPublished | None]:
        """Publish a page; one outcome a record, in their order, ``None``: acknowledged by all in-sync replicas.

        Returns within the delivery deadline, and some ``CLOSE_S`` more where a producer has to be destroyed.
        Records of one key keep their order. A cancelled call leaves its records unknown.
        """
        page = _Page(topic, records)
        fitting = self._refuse_oversized(page)
        if not fitting:
            return page.outcomes
        breaker = self._breakers[topic]
        started = asyncio.get_running_loop().time()
        try:
            if not breaker.closed:
                probe, fitting = fitting[:1], fitting[1:]
                await self._deliver(page, probe, breaker, started + self._probe_s)
            if fitting and breaker.closed:
                await self._deliver(page, fitting, breaker, started + self._settings.delivery_deadline_s)
        except KafkaUnreachable as error:
            page.settle_unsent(NotPublished(Reason.KAFKA_UNAVAILABLE, str(error)))
        except (TopicMissing, TopicRefused) as error:
            self._answered(topic, breaker)
            page.settle_unsent(NotPublished(Reason.KAFKA_TOPIC, str(error)))
        self._measure(page, asyncio.get_running_loop().time() - started)
        return page.outcomes

    def _refuse_oversized(self, page: _Page) -> list[int]:
        limits = self._limits[page.topic]
        limit = min(self._settings.record_bytes_max, limits.record_bytes(asyncio.get_running_loop().time()))
        fitting = []
        for index, record in enumerate(page.records):
            if record_bytes(record) <= limit:
                fitting.append(index)
            else:
                page.outcomes[index] = NotPublished(Reason.TOO_LARGE, f"more than {limit} bytes")
        return fitting

    async def _deliver(self, page: _Page, indexes: list[int], breaker: Breaker, until: float) -> None:
        """Send records until each has an outcome or the deadline passes; batches refused for size go out smaller."""
        while indexes:
            incarnation, partitions = await self._reach(page.topic, breaker, until)
            incarnation.enter()
            try:
                lanes = self._lanes(incarnation, partitions, page, indexes)
                indexes = await self._send(incarnation, lanes, until)
            finally:
                incarnation.leave()
                self._end_if_unused(incarnation)
            if page.has_unknown():
                self._open(page.topic, breaker, "unknown outcome")
                return
            if any(lane.answered for lane in lanes):
                self._answered(page.topic, breaker)
            elif indexes:
                await asyncio.sleep(self._pause_s)
            if indexes and asyncio.get_running_loop().time() >= until:
                raise KafkaUnreachable("not sent by the deadline")

    async def _reach(self, topic: str, breaker: Breaker, until: float) -> tuple[Incarnation, int]:
        """A producer that is connected to the topic's leaders, and the number of partitions.

        Raises ``KafkaUnreachable`` when the breaker is or becomes open, ``TopicMissing``, ``TopicRefused``.
        """
        loop = asyncio.get_running_loop()
        while True:
            attempt_until = min(until, loop.time() + self._probe_s)
            try:
                incarnation = await self._incarnation(attempt_until)
                try:
                    return incarnation, await incarnation.partitions_with_leaders(topic, attempt_until)
                except KafkaUnreachable:
                    self._retire(incarnation)  # aiokafka never goes back to the bootstrap list by itself
                    raise
            except KafkaUnreachable as error:
                if breaker.failed():
                    self._say_open(topic, str(error))
                elif breaker.closed and loop.time() + self._pause_s >= until:
                    self._open(topic, breaker, str(error))
                if not breaker.closed:
                    raise
            await asyncio.sleep(self._pause_s)

    async def _incarnation(self, until: float) -> Incarnation:
        """The present producer or a new one. Those who wait at the same time wait for the same one.

        Raises ``KafkaUnreachable``, ``TopicRefused``.
        """
        if self._closed:
            raise KafkaUnreachable("the publisher is closed")
        if self._current is not None:
            if self._current.usable:
                return self._current
            self._retire(self._current)
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="kafka-producer-start")
            self._starting.add_done_callback(_look_at)
        starting = self._starting
        await asyncio.wait([starting], timeout=max(0.0, until - asyncio.get_running_loop().time()))
        if not starting.done():
            raise KafkaUnreachable("no broker answered in time")
        if starting.cancelled():
            raise KafkaUnreachable("the publisher is closed")
        return starting.result()

    async def _start(self) -> Incarnation:
        incarnation = Incarnation(self._settings, self._client_kwargs)
        try:
            await incarnation.start()
        finally:
            self._starting = None
        self._live.add(incarnation)
        self._current = incarnation
        return incarnation

    def _lanes(self, incarnation: Incarnation, partitions: int, page: _Page, indexes: list[int]) -> "list[_Lane]":
        chosen = partition_of_keys([page.records[index].key for index in indexes], partitions)
        by_partition: dict[int, list[int]] = {}
        for index, partition in zip(indexes, chosen, strict=True):
            own = page.records[index].partition
            by_partition.setdefault(partition if own is None else own % partitions, []).append(index)
        limits = self._limits[page.topic]
        return [_Lane(incarnation, page, partition, mine, limits) for partition, mine in by_partition.items()]

    async def _send(self, incarnation: Incarnation, lanes: "list[_Lane]", until: float) -> list[int]:
        """Send all partitions at once, and at the deadline destroy the producer. Returns what is to be sent again."""
        tasks = [asyncio.create_task(lane.run(), name=f"kafka-send-{lane.partition}") for lane in lanes]
        try:
            now = asyncio.get_running_loop().time()
            _, late = await asyncio.wait(tasks, timeout=max(0.0, until - now))
            if late or any(lane.lost_track for lane in lanes):
                await self._destroy(incarnation, "deadline" if late else "fatal")
                # Who waited for an acknowledgement has ended now; who waited to be enqueued may not have.
                for task in late:
                    task.cancel()
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
        return sorted(index for task in tasks if not task.cancelled() for index in task.result())

    async def _destroy(self, incarnation: Incarnation, why: str) -> None:
        """Give other calls a moment to get their acknowledgements, then end the producer and all it still holds."""
        self._retire(incarnation)
        await incarnation.others_have_left(min(OTHERS_GRACE_S, self._settings.delivery_deadline_s / 4))
        if not incarnation.destroyed:
            log.warning("kafka_producer_destroyed", why=why, calls_in_flight=incarnation.users)
            metrics.PRODUCER_REBUILDS.labels(why=why).inc()
        await incarnation.destroy()

    def _retire(self, incarnation: Incarnation) -> None:
        """No new records for it; it ends when the last call that uses it has ended."""
        incarnation.retired = True
        if self._current is incarnation:
            self._current = None
        self._end_if_unused(incarnation)

    def _end_if_unused(self, incarnation: Incarnation) -> None:
        if incarnation.retired and incarnation.users == 0 and incarnation in self._live:
            self._live.remove(incarnation)
            task = asyncio.create_task(incarnation.close(), name="kafka-producer-close")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _answered(self, topic: str, breaker: Breaker) -> None:
        if breaker.state == "open":
            log.info("kafka_breaker_closed", topic=topic)
        breaker.answered()
        metrics.BREAKER_OPEN.labels(target=topic).set(0)

    def _open(self, topic: str, breaker: Breaker, why: str) -> None:
        if breaker.open():
            self._say_open(topic, why)

    def _say_open(self, topic: str, why: str) -> None:
        log.warning("kafka_breaker_opened", topic=topic, why=why)
        metrics.BREAKER_OPEN.labels(target=topic).set(1)

    def _measure(self, page: _Page, took_s: float) -> None:
        metrics.PUBLISH_S.labels(topic=page.topic).observe(took_s)
        if unknown := sum(outcome is _UNKNOWN for outcome in page.outcomes):
            metrics.PUBLISH_UNKNOWN.labels(topic=page.topic).inc(unknown)

    async def _close(self) -> None:
        """What is still in flight is flushed or ends as unknown. Bounded by a few times ``CLOSE_S``."""
        self._closed = True
        if (starting := self._starting) is not None:
            await asyncio.wait([starting], timeout=CLOSE_S)
            starting.cancel()
            await asyncio.wait([starting], timeout=3 * CLOSE_S)
        for incarnation in self._live:
            self._ending.add(asyncio.create_task(incarnation.close(), name="kafka-producer-close"))
        if self._ending:
            await asyncio.wait(self._ending, timeout=4 * CLOSE_S)


class _Lane:
    """The records of one page that go to one partition: batch after batch, each acknowledged before the next.

    One batch at a time costs nothing (aiokafka has one request per broker in flight) and leaves fewer unknown.
    """

    def __init__(
        self, incarnation: Incarnation, page: _Page, partition: int, indexes: list[int], limits: SizeLimits
    ) -> None:
        self.partition = partition
        self.answered = False
        self.lost_track = False
        self._incarnation = incarnation
        self._page = page
        self._indexes = indexes
        self._limits = limits

    async def run(self) -> list[int]:
        """Settle the outcomes. Returns the records that were certainly not written and are worth sending again."""
        position = 0
        while position < len(self._indexes):
            batch, end = self._fill(position)
            sent = self._indexes[position:end]
            try:
                acknowledged = await self._incarnation.producer.send_batch(
                    batch, self._page.topic, partition=self.partition
                )
                await acknowledged
            except KafkaError as error:
                return self._failed(error, batch, sent) + self._rest(error, end)
            except asyncio.CancelledError:
                if may_have_been_sent(batch):
                    self._page.settle(sent, _UNKNOWN)
                raise
            self.answered = True
            self._page.settle(sent, None)
            position = end
        return []

    def _fill(self, start: int) -> tuple[BatchBuilder, int]:
        batch = self._incarnation.producer.create_batch()
        append = batch.append
        records, indexes = self._page.records, self._indexes
        room = self._limits.batch_bytes(asyncio.get_running_loop().time())
        end = start
        while end < len(indexes):
            record = records[indexes[end]]
            if room is not None:
                room -= record_bytes(record)
                if room < 0 and end > start:
                    break
            stored = append(
                timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=list(record.headers)
            )
            if stored is None:
                break
            end += 1
        batch.close()
        return batch, end

    def _failed(self, error: KafkaError, batch: BatchBuilder, sent: list[int]) -> list[int]:
        """What a failed batch means for its records. Returns those to be sent again, by another producer.

        A producer that had a batch refused is of no more use: there is a gap in the partition's sequence.
        """
        destroyed = isinstance(error, ProducerDestroyed)
        self._incarnation.retired = True
        if not may_have_been_sent(batch):
            return [] if destroyed else sent
        if not _is_refusal(error):
            self.lost_track = not destroyed
            self._page.settle(sent, _UNKNOWN)
            return []
        self.answered = True
        if isinstance(error, _TOO_LARGE):
            return self._too_large(sent)
        self._page.settle(sent, NotPublished(Reason.KAFKA_TOPIC, f"refused by the broker: {type(error).__name__}"))
        return []

    def _rest(self, error: KafkaError, end: int) -> list[int]:
        """What was not sent yet is sent by another producer, unless this one ended with an unknown outcome."""
        return [] if isinstance(error, ProducerDestroyed) or self.lost_track else self._indexes[end:]

    def _too_large(self, sent: list[int]) -> list[int]:
        now = asyncio.get_running_loop().time()
        if len(sent) > 1:
            self._limits.batch_refused(sum(record_bytes(self._page.records[index]) for index in sent), now)
            return sent
        size = record_bytes(self._page.records[sent[0]])
        self._limits.record_refused(size, now)
        self._page.settle(sent, NotPublished(Reason.TOO_LARGE, f"{size} bytes are refused by the broker"))
        return []


def _look_at(starting: asyncio.Task[Incarnation]) -> None:
    """Those who waited for it may all have gone; asyncio would complain of a failure that nobody saw."""
    if not starting.cancelled():
        starting.exception()


def _is_refusal(error: KafkaError) -> bool:
    """Whether a broker said that it did not write the batch, and will not."""
    if isinstance(error, _LOST_TRACK) or error.retriable:
        return False
    return isinstance(error, BrokerResponseError) and error.errno > 0
