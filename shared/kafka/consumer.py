"""A member of a consumer group that reads from where its owner says, and never from where the group's commits say.

aiokafka's edges that this file rounds off:
- a failing ``getmany`` may already have moved the positions of partitions whose records it then drops (seen in its
  source: one corrupt batch skips what was read before it), so after any error each partition is sought back;
- it doesn't say which partition failed, and fails again for all of them: after some failures each is read *apart*, a
  record at a time, until the culprit is found at its very offset; that one is paused, and all others go on;
- ``getmany`` blocks without limit during a rebalance and ``commit`` and ``stop`` while brokers are down: each is given
  a bound, and a reading that is under way is kept rather than cancelled;
- after a seek, an answer to the old position may still arrive: a chunk says where it begins, so that one can tell;
- ``committed()`` drops the metadata, the admin client returns it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from aiokafka.structs import OffsetAndMetadata
from msgspec import Struct

from shared import logs
from shared.events.lineage import ConsumedRecord
from shared.kafka.chunks import Chunk, GroupCommit, KnownEnd, Partition, Reading
from shared.kafka.client_logs import quiet_client_logs
from shared.kafka.errors import KafkaUnreachable
from shared.kafka.settings import KafkaSettings
from shared.retry import backoff

log = logs.get_logger(__name__)

REQUEST_S = 10.0
COMMIT_S = 5.0
STOP_S = 5.0
IDLE_RECHECK_S = 5.0
"""With nothing to read the brokers are asked this often for the topics, to know whether they are there at all."""
FAILURES_TOGETHER_MAX = 3
"""As many reads may fail in a row before partitions are read apart; a fault of the line is over by then, or is none."""
CLEAN_ROUNDS_APART = 3
"""After as many without a failure, and with nothing left over, partitions are read together again."""
FAILURES_APART_MAX = 3
"""As often may one offset fail while it is read apart."""
RECORDS_APART_MAX = 1_000
"""A partition is read apart record by record, within one turn of the event loop: some 15 ms."""
_OF_A_PARTITION = (CorruptRecordException, RecordTooLargeError, TopicAuthorizationFailedError, UnsupportedCodecError)


class ConsumerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one member. Memory for what is read ahead: ``partition_fetch_bytes_max`` for each partition held."""

    instance_id: str | None = None
    """A name that outlives the process, its own for each replica: after a crash the next one takes over at once."""
    session_timeout_s: float = 10.0
    """How long a member that died in silence keeps its partitions."""
    rebalance_timeout_s: float = 60.0
    partition_fetch_bytes_max: int = 1024 * 1024
    fetch_bytes_min: int = 64 * 1024
    """The broker waits up to ``fetch_wait_s`` for this much, so that a trickle is handed over in few, larger chunks."""
    fetch_wait_s: float = 0.5
    chunk_records_max: int = 10_000
    topics_recheck_s: float = 30.0
    """How often missing topics are looked for again."""
    stuck_s: float = 60.0
    """Without any answer to a fetch for this long, the client is thrown away and made anew."""


class GroupConsumer:
    """Owns one aiokafka consumer, and makes another when it fails. One task calls ``fetch`` at a time.

    Partitions are assigned paused and without a position: ``start`` lets one go. ``on_revoke`` is awaited before
    partitions are given up: commits are still possible then, and it must return well within ``rebalance_timeout_s``.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        topics: Iterable[str],
        on_revoke: Callable[[], Awaitable[None]],
        *,
        consumer: ConsumerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka = settings
        self._group = group
        self._wanted = frozenset(topics)
        self._on_revoke = on_revoke
        self._settings = consumer or ConsumerSettings()
        self._clock = clock
        self._consumer: AIOKafkaConsumer | None = None
        self._subscribed: frozenset[str] = frozenset()
        self._topics_due_s = self._looked_s = 0.0
        self._assigned: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}
        self._held: frozenset[Partition] = frozenset()
        self._answered_ms: dict[Partition, tuple[int, int]] = {}  # the last two answers that were seen
        self._reading: asyncio.Task[Reading] | None = None
        self._failures_together = 0
        self._apart = False
        self._clean_rounds = 0
        self._failures: dict[Partition, tuple[int, int]] = {}  # the offset that failed apart, and how often
        self._unreadable: set[Partition] = set()
        self._progress_s = clock()
        self._fetched_ms = 0
        self._delays = backoff(0.2, 5.0)
        self.assignment = 0
        """Grows with every assignment: what was begun under another number may not be committed."""
        self.connected = False

    @classmethod
    async def open(
        cls,
        settings: KafkaSettings,
        group: str,
        topics: Iterable[str],
        on_revoke: Callable[[], Awaitable[None]],
        stack: AsyncExitStack,
        *,
        consumer: ConsumerSettings | None = None,
    ) -> "GroupConsumer":
        """Connects at the first ``fetch``; Kafka may be down until then. Leaves the group when ``stack`` closes."""
        quiet_client_logs()
        member = cls(settings, group, topics, on_revoke, consumer=consumer)
        stack.push_async_callback(member.close)
        return member

    @property
    def assigned(self) -> frozenset[Partition]:
        return self._assigned

    async def fetch(self, timeout_s: float) -> Reading:
        """What there is, within ``timeout_s``. Empty while Kafka is down: this never raises for the world's faults."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="kafka-read")
        await asyncio.wait({self._reading}, timeout=timeout_s)
        if self._reading.done():
            reading, self._reading = self._reading.result(), None
            return reading
        if self._clock() - self._progress_s > self._settings.stuck_s:
            await self._rebuild("stuck")
        return Reading()

    def start(self, partition: Partition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on. Nothing happens if it is no longer ours."""
        if self._is_ours(partition):
            assert self._consumer is not None
            self._consumer.seek(TopicPartition(*partition), offset)
            self._positions[partition] = offset
            if partition in self._unreadable:
                self._unreadable.discard(partition)
                self._apart, self._clean_rounds = True, 0  # it may fail again, and is not to stop the others for that
            if partition not in self._held:
                self._consumer.resume(TopicPartition(*partition))

    def hold(self, partitions: Iterable[Partition]) -> None:
        """Read nothing of these for now, and of all others that were started. Read-ahead is dropped and read again."""
        held = frozenset(partitions)
        for partition in self._positions:
            if not self._is_ours(partition) or partition in self._unreadable:
                continue
            assert self._consumer is not None
            if partition in held and partition not in self._held:
                self._consumer.pause(TopicPartition(*partition))
            elif partition not in held and partition in self._held:
                self._consumer.resume(TopicPartition(*partition))
        self._held = held

    def log_end(self, partition: Partition) -> int | None:
        """Kafka's log end as of the last fetch of this partition."""
        if not self._is_ours(partition):
            return None
        assert self._consumer is not None
        end: int | None = self._consumer.highwater(TopicPartition(*partition))
        return end

    def known_end(self, partition: Partition) -> KnownEnd | None:
        """The log's end by the last answer, and when the answer before it had come: it was asked for after that.

        An answer may lie unread for as long as this process is held up; so its own time would say too much.
        """
        end = self.log_end(partition)
        if end is None or self._consumer is None:
            return None
        answered_ms: int = self._consumer.last_poll_timestamp(TopicPartition(*partition))
        last_ms, before_ms = self._answered_ms.get(partition, (0, 0))
        if answered_ms != last_ms:
            self._answered_ms[partition] = answered_ms, last_ms
            before_ms = last_ms
        return KnownEnd(end, before_ms / 1000) if before_ms else None

    async def commit(self, partition: Partition, assignment: int, next_offset: int, metadata: str) -> bool:
        """Leave a hint in the group. False when it could not be left: the partition is gone, or Kafka is down."""
        if assignment != self.assignment or not self._is_ours(partition):
            return False
        assert self._consumer is not None
        offsets = {TopicPartition(*partition): OffsetAndMetadata(next_offset, metadata)}
        try:
            async with asyncio.timeout(COMMIT_S):
                await self._consumer.commit(offsets)
        except (KafkaError, TimeoutError, AssertionError) as error:
            # An AssertionError is aiokafka's way to say that the assignment went away in between.
            log.info("commit_failed", topic=partition.topic, partition=partition.partition, error=type(error).__name__)
            return False
        return True

    async def commits(self, partitions: Sequence[Partition]) -> dict[Partition, GroupCommit]:
        """What the group has committed for these, with metadata. Raises ``KafkaUnreachable``."""
        if not partitions:
            return {}
        admin = AIOKafkaAdminClient(request_timeout_ms=int(REQUEST_S * 1000), **self._kafka.client_kwargs())
        try:
            async with asyncio.timeout(REQUEST_S):
                await admin.start()
                found = await admin.list_consumer_group_offsets(
                    self._group, partitions=[TopicPartition(*partition) for partition in partitions]
                )
        except (KafkaError, TimeoutError, OSError) as error:
            raise KafkaUnreachable(f"the commits of group {self._group!r} can't be read: {error}") from error
        finally:
            with suppress(KafkaError, TimeoutError, OSError):
                async with asyncio.timeout(STOP_S):
                    await admin.close()
        return {
            Partition(*partition): GroupCommit(commit.offset, commit.metadata or "")
            for partition, commit in found.items()
            if commit.offset >= 0
        }

    async def close(self) -> None:
        """Leave the group, within some seconds, whatever Kafka does."""
        await self._cancel_reading()
        await self._discard()

    async def _read(self) -> Reading:
        try:
            consumer = await self._joined()
        except (KafkaError, OSError, TimeoutError) as error:
            return await self._failed(error)
        if consumer is None:
            return Reading()
        try:
            return await (self._read_apart(consumer) if self._apart else self._read_together(consumer))
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            return self._lost_place(error)
        except Exception as error:  # noqa: BLE001 - decoders of bytes that anybody wrote raise whatever they like
            self._failures_together += 1
            if self._failures_together >= FAILURES_TOGETHER_MAX and _is_of_a_partition(error):
                self._apart, self._clean_rounds = True, 0
            return await self._failed(error)

    async def _failed(self, error: Exception) -> Reading:
        if not _is_of_a_partition(error):
            self.connected = False
        self._seek_back()
        log.warning("kafka_read_failed", error=type(error).__name__, detail=str(error)[:500])
        await asyncio.sleep(next(self._delays))
        return Reading()

    async def _read_together(self, consumer: AIOKafkaConsumer) -> Reading:
        wait_ms = int(self._settings.fetch_wait_s * 1000)
        records = await consumer.getmany(timeout_ms=wait_ms, max_records=self._settings.chunk_records_max)
        chunks = self._kept(records)  # no await in between: positions belong to these very records
        if chunks:
            self._failures_together = 0
        self._note_progress()
        return Reading(chunks)

    async def _read_apart(self, consumer: AIOKafkaConsumer) -> Reading:
        """One partition after another, so that a failure is known to be its own; until all that is there was read."""
        await asyncio.sleep(self._settings.fetch_wait_s)  # the client fetches ahead meanwhile
        chunks: list[Chunk] = []
        unreadable: dict[Partition, str] = {}
        is_clean = True
        for partition in self._reading_now():
            tp, records = TopicPartition(*partition), list[ConsumedRecord]()
            failure = await self._take_apart(consumer, tp, records)
            chunks += self._kept({tp: records})
            is_clean = is_clean and failure is None and len(records) < RECORDS_APART_MAX
            if failure is None:
                continue
            if not _is_of_a_partition(failure) or _is_out_of_range(failure):
                if not chunks:
                    raise failure
                break  # it comes again, and is raised then: these chunks are not to be lost for it
            if self._fails_for_good(partition):
                unreadable[partition] = f"{type(failure).__name__}: {str(failure)[:500]}"
                self._unreadable.add(partition)
                consumer.pause(tp)
        self._clean_rounds = self._clean_rounds + 1 if is_clean else 0
        self._apart = self._clean_rounds < CLEAN_ROUNDS_APART
        self._note_progress()
        return Reading(chunks, unreadable=unreadable)

    async def _take_apart(
        self, consumer: AIOKafkaConsumer, tp: TopicPartition, records: list[ConsumedRecord]
    ) -> Exception | None:
        """Append what comes before the first failure, and stand there. Record by record, or what was unpacked before
        the failure would be lost with it.
        """
        partition = Partition(*tp)
        while len(records) < RECORDS_APART_MAX:
            try:
                one = (await consumer.getmany(tp, timeout_ms=0, max_records=1)).get(tp)
            except Exception as error:  # noqa: BLE001 - as in _read; who called sorts them
                if self._is_ours(partition) and partition in self._positions:  # the position may have moved on
                    consumer.seek(tp, records[-1].offset + 1 if records else self._positions[partition])
                return error
            if not one:
                return None
            records += one
        return None

    def _fails_for_good(self, partition: Partition) -> bool:
        if partition not in self._positions or not self._is_ours(partition):
            return False
        offset = self._positions[partition]
        before, times = self._failures.get(partition, (offset, 0))
        self._failures[partition] = (offset, times + 1 if before == offset else 1)
        return self._failures[partition][1] >= FAILURES_APART_MAX

    def _reading_now(self) -> list[Partition]:
        idle = self._held | self._unreadable
        return [partition for partition in self._positions if partition not in idle and self._is_ours(partition)]

    def _kept(self, records: dict[TopicPartition, list[ConsumedRecord]]) -> list[Chunk]:
        chunks: list[Chunk] = []
        assert self._consumer is not None
        for partition, begins_at in list(self._positions.items()):
            if not self._is_ours(partition):
                continue
            tp = TopicPartition(*partition)
            next_offset = _position(self._consumer, tp)
            if next_offset != begins_at:
                self._positions[partition] = next_offset
                chunks.append(Chunk(partition, begins_at, next_offset, records.get(tp, [])))
        return chunks

    def _note_progress(self) -> None:
        """With nothing to read no fetch tells whether Kafka is there; looking for topics does (``_subscribe``)."""
        assert self._consumer is not None
        reading = self._reading_now()
        newest_ms = max((self._consumer.last_poll_timestamp(TopicPartition(*p)) or 0 for p in reading), default=0)
        if not reading or newest_ms != self._fetched_ms:
            self._progress_s = self._clock()
        if reading and newest_ms != self._fetched_ms:
            self._fetched_ms = newest_ms
            self.connected = True
            self._delays = backoff(0.2, 5.0)

    def _lost_place(self, error: KafkaError) -> Reading:
        """One partition is out of range. The others are sought back: their records may have been dropped with it."""
        self._seek_back()
        place = error.args[0] if error.args else None
        lost = set(place) if isinstance(place, dict) else {place} if isinstance(place, TopicPartition) else set()
        return Reading(out_of_range=frozenset(Partition(*tp) for tp in lost) & self._positions.keys())

    def _seek_back(self) -> None:
        for partition, offset in self._positions.items():
            if self._is_ours(partition):
                assert self._consumer is not None
                self._consumer.seek(TopicPartition(*partition), offset)

    async def _joined(self) -> AIOKafkaConsumer | None:
        """The consumer, subscribed to those of the wanted topics that exist; ``None`` while there is none of them."""
        if self._consumer is None:
            self._consumer = await self._connect()
            self._topics_due_s = self._clock()
            self._progress_s = self._clock()
        is_due = self._clock() >= self._topics_due_s
        is_idle = not self._reading_now() and self._clock() >= self._looked_s + IDLE_RECHECK_S
        if is_due or is_idle:
            await self._subscribe(self._consumer)
        if not self._subscribed:
            self._progress_s = self._clock()
            await asyncio.sleep(self._settings.fetch_wait_s)
            return None
        return self._consumer

    async def _connect(self) -> AIOKafkaConsumer:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            group_id=self._group,
            group_instance_id=settings.instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 10),
            rebalance_timeout_ms=int(settings.rebalance_timeout_s * 1000),
            max_poll_interval_ms=300_000,
            max_partition_fetch_bytes=settings.partition_fetch_bytes_max,
            fetch_min_bytes=settings.fetch_bytes_min,
            fetch_max_wait_ms=int(settings.fetch_wait_s * 1000),
            request_timeout_ms=int(REQUEST_S * 1000),
            metadata_max_age_ms=int(settings.topics_recheck_s * 1000),
            **self._kafka.client_kwargs(),
        )
        try:
            await consumer.start()
        except BaseException:
            await _stop(consumer)
            raise
        return consumer

    async def _subscribe(self, consumer: AIOKafkaConsumer) -> None:
        """New topics come and go: a missing one is waited for, not an error."""
        present = frozenset(await consumer.topics()) & self._wanted
        self.connected = True
        self._looked_s = self._clock()
        self._topics_due_s = self._clock() + self._settings.topics_recheck_s
        if not present:
            self._topics_due_s = self._clock() + min(2.0, self._settings.topics_recheck_s)
        if present != self._subscribed:
            if missing := sorted(self._wanted - present):
                log.warning("topics_missing", topics=missing)
            self._subscribed = present
            if present:
                consumer.subscribe(sorted(present), listener=_Listener(self._revoked, self._given))
            else:
                await self._revoked()
                consumer.unsubscribe()

    async def _revoked(self) -> None:
        if self._assigned:
            await self._on_revoke()
        self._assigned = frozenset()
        self._positions = {}

    async def _given(self, partitions: Iterable[TopicPartition]) -> None:
        assert self._consumer is not None
        self.assignment += 1
        self._assigned = frozenset(Partition(*tp) for tp in partitions)
        self._positions = {}
        self._held = frozenset()
        self._failures, self._unreadable = {}, set()
        self._progress_s = self._clock()
        for partition in self._assigned:
            self._consumer.seek(TopicPartition(*partition), 0)  # a position, so that no commit is asked for one
            self._consumer.pause(TopicPartition(*partition))

    def _is_ours(self, partition: Partition) -> bool:
        return (
            partition in self._assigned
            and self._consumer is not None
            and TopicPartition(*partition) in self._consumer.assignment()
        )

    async def _rebuild(self, why: str) -> None:
        log.warning("kafka_consumer_rebuilt", why=why, group=self._group)
        await self._cancel_reading()
        await self._revoked()
        await self._discard()
        self._progress_s = self._clock()

    async def _cancel_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
            self._reading = None

    async def _discard(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._assigned, self._positions, self._subscribed = frozenset(), {}, frozenset()
        self.connected = False
        if consumer is not None:
            await _stop(consumer)


def _is_of_a_partition(error: Exception) -> bool:
    """Whether what failed is in one partition's bytes or rights, and not the line to the brokers or the group."""
    return isinstance(error, _OF_A_PARTITION) or not isinstance(error, (KafkaError, OSError, TimeoutError))


def _is_out_of_range(error: Exception) -> bool:
    return isinstance(error, (OffsetOutOfRangeError, NoOffsetForPartitionError))


def _position(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
    """``position`` is a coroutine that only ever waits for a partition without one; ours have theirs from ``start``."""
    coroutine = consumer.position(tp)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return int(done.value)
    coroutine.close()
    raise AssertionError(f"{tp} was started, and has no position")


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Stop it, or, as that hangs while brokers are down, take its connections away and let it go."""
    try:
        async with asyncio.timeout(STOP_S):
            await consumer.stop()
    except (KafkaError, TimeoutError, OSError, IllegalStateError):
        for owner in (consumer._coordinator, consumer._fetcher):
            for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_fetch_task"):
                task: Any = getattr(owner, name, None)
                if task is not None:
                    task.cancel()
        with suppress(KafkaError, TimeoutError, OSError):
            async with asyncio.timeout(STOP_S):
                await consumer._client.close()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka publishes no types
    def __init__(
        self, revoked: Callable[[], Awaitable[None]], given: Callable[[Iterable[TopicPartition]], Awaitable[None]]
    ) -> None:
        self._revoked = revoked
        self._given = given

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._revoked()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._given(assigned)
