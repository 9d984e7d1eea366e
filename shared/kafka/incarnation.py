"""One aiokafka producer, from its start to its end; after an unknown outcome there is another, never the same again.

aiokafka's idempotent producer never times a record out, and what it holds may still be sent minutes later. So a
producer with a record whose outcome is unknown has to be destroyed, through private attributes: the minor version is
pinned and ``tests/contract`` holds the names. aiokafka behaviour: issues #1101, #1013, #512 there.
"""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ClusterAuthorizationFailedError, KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import TopicPartition

from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused
from shared.kafka.metadata import ask_topic
from shared.kafka.settings import KafkaSettings

CLOSE_S = 3.0
"""Bounds each of: a flush of what is left at the end, the death of the sender, the closing of the connections."""
_RETRY_S = 0.1
_CANCELLATIONS = 6


class ProducerDestroyed(KafkaError):  # type: ignore[misc]  # aiokafka publishes no types
    """Set on every future of a destroyed producer. What it was set on may have been appended all the same."""


def may_have_been_sent(batch: BatchBuilder) -> bool:
    """Whether a batch was ever made ready for the wire. aiokafka builds its bytes just before it sends them."""
    return batch._buffer is not None


class Incarnation:
    """Wraps one producer. Once ``retired`` it gets no more records, and is closed when its last user has left."""

    def __init__(self, settings: KafkaSettings, client_kwargs: Mapping[str, Any]) -> None:
        self._settings = settings
        self.retired = False
        self.users = 0
        self._at_most_one_user = asyncio.Event()
        self._destruction: asyncio.Task[None] | None = None
        self.producer = AIOKafkaProducer(
            client_id="tidemark-publisher",
            acks="all",
            enable_idempotence=True,
            compression_type=None if settings.compression == "none" else settings.compression,
            max_batch_size=settings.batch_bytes,
            max_request_size=settings.record_bytes_max,
            linger_ms=settings.linger_ms,
            request_timeout_ms=settings.request_timeout_ms,
            metadata_max_age_ms=60_000,
            **client_kwargs,
        )

    def enter(self) -> None:
        """A publish call is about to put batches in."""
        self.users += 1
        if self.users > 1:
            self._at_most_one_user.clear()

    def leave(self) -> None:
        self.users -= 1
        if self.users <= 1:
            self._at_most_one_user.set()

    async def others_have_left(self, patience_s: float) -> None:
        """Wait until only one publish call is left, or for ``patience_s``."""
        if self.users > 1:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_most_one_user.wait(), patience_s)

    @property
    def destroyed(self) -> bool:
        return self._destruction is not None

    @property
    def usable(self) -> bool:
        """False once retired, destroyed, or when its sender has died by itself (out of order, fenced)."""
        task = self.producer._sender.sender_task
        return not (self.retired or task is None or task.done())

    async def start(self) -> None:
        """Connect by the bootstrap list and get a producer id. Raises ``KafkaUnreachable``, ``TopicRefused``.

        Cancelled only at the end of the process, for aiokafka then leaks the connection that it bootstraps by. It ends
        by itself: after two request timeouts per bootstrap server, and two more.
        """
        servers = len(self._settings.bootstrap.split(","))
        bound_s = (2 * servers + 2) * self._settings.request_timeout_ms / 1000
        try:
            async with asyncio.timeout(bound_s):
                await self.producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            if isinstance(error, ClusterAuthorizationFailedError):
                raise TopicRefused("*", "not authorised to write idempotently") from error
            raise KafkaUnreachable(str(error) or type(error).__name__) from error
        except asyncio.CancelledError:
            await self.destroy()
            raise

    async def partitions_with_leaders(self, topic: str, until: float) -> int:
        """How many partitions the topic has, when a connection to each one's leader stands. ``until``: loop time.

        Raises ``KafkaUnreachable``, ``TopicMissing``, ``TopicRefused``.
        """
        try:
            async with asyncio.timeout_at(until):
                partitions = self.producer.client.cluster.partitions_for_topic(topic)
                if partitions is None:
                    partitions = await self._learn(topic)
                await self._connect_leaders(topic, partitions)
        except (KafkaError, OSError) as error:
            raise KafkaUnreachable(f"{type(error).__name__}: {error}") from error
        except TimeoutError:
            raise KafkaUnreachable("no broker answered in time") from None
        return len(partitions)

    async def answers(self, until: float) -> bool:
        """Whether any broker answers a request for metadata. ``until``: loop time."""
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout_at(until):
                return bool(await self.producer.client.force_metadata_update())
        return False

    async def _learn(self, topic: str) -> set[int]:
        """Ask for the topic without creating it, and only then let aiokafka track it."""
        client = self.producer.client
        loop = asyncio.get_running_loop()
        unknown_until = loop.time() + self._settings.topic_wait_s
        while True:
            try:
                await self._ask_any_broker(topic)
                client.add_topic(topic)
                await client.force_metadata_update()
                if (partitions := client.cluster.partitions_for_topic(topic)) is not None:
                    return set(partitions)
            except TopicMissing:
                if loop.time() >= unknown_until:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _ask_any_broker(self, topic: str) -> None:
        brokers = list(self.producer.client.cluster.brokers())
        random.shuffle(brokers)
        for broker in brokers:
            try:
                await ask_topic(self.producer.client, broker.nodeId, topic)
            except (KafkaError, OSError):
                continue
            return
        raise KafkaUnreachable("no broker answered")

    async def _connect_leaders(self, topic: str, partitions: set[int]) -> None:
        client = self.producer.client
        leaders = {client.cluster.leader_for_partition(TopicPartition(topic, partition)) for partition in partitions}
        for leader in leaders:
            if leader is None or leader == -1:
                client.force_metadata_update()
                raise KafkaUnreachable(f"a partition of {topic!r} has no leader")
            if not await client.ready(leader):
                raise KafkaUnreachable(f"the leader of a partition of {topic!r} refuses connections")

    async def close(self) -> None:
        """Flush what is left, close the connections; destroy what can't be flushed. At most ``CLOSE_S`` each."""
        self.retired = True
        if self._destruction is None:
            stopping = asyncio.ensure_future(self.producer.stop())
            await asyncio.wait([stopping], timeout=CLOSE_S)
            if stopping.done() and stopping.exception() is None:
                return
        await self.destroy()  # which also ends the stop, by failing what it flushes

    async def destroy(self) -> None:
        """Make sure that nothing more is sent. Every future that is still open fails with ``ProducerDestroyed``.

        The futures fail before the first await; the rest takes at most three times ``CLOSE_S``.
        """
        self.retired = True
        if self._destruction is None:
            self._fail_all()
            self._cut_off()
            self._destruction = asyncio.create_task(self._tear_down(), name="kafka-producer-destruction")
        await asyncio.shield(self._destruction)

    def _fail_all(self) -> None:
        accumulator = self.producer._message_accumulator
        waiting = [batch for batches in accumulator._batches.values() for batch in batches]
        # A batch that waits for its second try isn't in the set from which its end removes it.
        accumulator._pending_batches = _ForgivingSet(accumulator._pending_batches)
        accumulator.fail_all(ProducerDestroyed("the producer was destroyed after an unknown outcome"))
        for batch in waiting:
            if batch._drain_waiter.done():
                batch._drain_waiter.exception()  # nobody waits for it; asyncio would complain
        if (sender := self.producer._sender.sender_task) is not None:
            sender.remove_done_callback(self.producer._sender._fail_all)  # fails itself without a transaction

    def _cut_off(self) -> None:
        """No more bytes leave, and no connection is made again."""
        client = self.producer.client
        self.producer._closed = True  # a later stop() returns at once
        client._get_conn = _no_connection
        client.force_metadata_update = _no_metadata
        for connection in client._conns.values():
            if connection._writer is not None:
                connection._writer.transport.abort()  # close() would flush what is in the buffer

    async def _tear_down(self) -> None:
        await self._close_client()  # ends the task that would answer those who wait for metadata
        waited_for = self.producer.client._md_update_fut
        if waited_for is not None and not waited_for.done():
            waited_for.set_result(False)
        sender = self.producer._sender.sender_task
        if sender is None:
            return
        # The sender takes the first cancellation as "wait for the requests in flight"; a further one ends such a wait.
        for _ in range(_CANCELLATIONS):
            sender.cancel()
            done, _ = await asyncio.wait([sender], timeout=CLOSE_S / _CANCELLATIONS)
            if done:
                break
        if sender.done() and not sender.cancelled():
            sender.exception()
        await self._close_client()

    async def _close_client(self) -> None:
        with suppress(TimeoutError, KafkaError, OSError):
            await asyncio.wait_for(self.producer.client.close(), CLOSE_S)


class _ForgivingSet(set[Any]):
    def remove(self, element: Any) -> None:
        self.discard(element)


async def _no_connection(*_: object, **__: object) -> None:
    return None


def _no_metadata() -> "asyncio.Future[bool]":
    nothing: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    nothing.set_result(False)
    return nothing
