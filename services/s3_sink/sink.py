"""Each Kafka offset ends up in exactly one raw object, whoever writes it, whatever crashes.

Read, flatten, cut, and put where the chain of objects ends, if nobody did: what then stands there says where to go on.
Kafka's committed offset is a hint; the bucket is the ledger. What can't be done now is waited for, holding little.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol
from uuid import uuid4

from services.s3_sink.gauges import Gauges
from services.s3_sink.lane import Lane, OtherRecord, Rows, Sealed, first_of_long_run
from services.s3_sink.limits import SinkSettings
from services.s3_sink.opening import LogCutBack, Opener, by_topic
from services.s3_sink.patience import Patience
from services.s3_sink.ports import Decoder, Learned, Parking, RecordSource, Topics
from services.s3_sink.writing import ObjectWriter
from shared import logs, metrics
from shared.events.lineage import ConsumedRecord
from shared.kafka.chunks import Chunk, Partition
from shared.kafka.errors import TopicRefused
from shared.raw.generation import GenerationRefused, TopicLife
from shared.raw.ledger import Ledger
from shared.raw.objects import NotOurs, ObjectStore
from shared.retry import backoff

log = logs.get_logger(__name__)

REFUSALS = (GenerationRefused, TopicRefused, NotOurs, OtherRecord, LogCutBack)
TURN_S = 0.5
THREAD_RECORDS = 300
"""Flattening fewer than this takes less than a thread's hop is worth."""
PENDING_BYTES_MAX = 8 * 1024 * 1024
NO_ROWS = Rows(b"", 0, (), ())


class Stopping(Protocol):
    @property
    def is_set(self) -> bool: ...


class Sink:
    """One member of the group. ``run`` is awaited once; ``revoked`` is called by the source during a rebalance."""

    def __init__(
        self,
        source: RecordSource,
        topics: Topics,
        decoder: Decoder,
        parking: Parking,
        store: ObjectStore,
        ledger: Ledger,
        settings: SinkSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        beat: Callable[[], None] = lambda: None,
        entities: Mapping[str, str] | None = None,
    ) -> None:
        """``entities``: topic → entity, of all whose freshness is to be shown."""
        patience = Patience(sleep)
        self._source, self._decoder, self._ledger, self._settings = source, decoder, ledger, settings
        self._opener = Opener(source, topics, store, ledger, patience, uuid4().hex, clock)
        self._writer = ObjectWriter(
            topics, parking, ledger, patience, slot_age_s_max=settings.slot_age_s_max, clock=clock
        )
        self._clock, self._sleep, self._beat = clock, sleep, beat
        self._lanes: dict[Partition, Lane] = {}
        self._lives: dict[str, TopicLife] = {}
        self._due: dict[Partition, float] = {}  # to be opened, and when
        self._assignment = 0
        self._gauges = Gauges(entities or {})
        self._halted: set[Partition] = set()  # until an object of theirs is written
        self._crowded = False
        self._asked_last: set[tuple[str, int]] | None = None  # schemas asked for while draining
        self._puts = asyncio.Semaphore(settings.puts_at_once_max)
        self._writing: dict[Partition, asyncio.Task[None]] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._learning: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def run(self, stop: Stopping) -> None:
        """Until ``stop``; then write what is buffered and return. Raises what no partition is to blame for."""
        async with asyncio.TaskGroup() as self._tasks:
            while not stop.is_set:
                await self._turn()
            await self._drain()

    async def _turn(self) -> None:
        self._open_due()
        reading = await self._source.fetch(TURN_S)
        for chunk in reading.chunks:
            self._take(chunk)
        for partition in reading.out_of_range & self._lanes.keys():
            self._lanes[partition].reopen = True
        for partition in reading.unreadable.keys() & self._lanes.keys():
            self._stand_before(self._lanes[partition], reading.unreadable[partition])
        for lane in list(self._lanes.values()):
            await self._alone(lane, self._advance(lane))
        self._hold_back()
        self._beat()

    def _take(self, chunk: Chunk) -> None:
        lane = self._lanes.get(chunk.partition)
        if lane is None:
            return
        try:
            if lane.take(chunk, self._clock()):
                self._look_ahead(lane, chunk)
                metrics.CONSUMED.labels(lane.chain.topic).inc(len(chunk.records))
            else:
                self._source.start(lane.partition, lane.expected)
        except OtherRecord as refusal:
            self._refuse(lane.chain.topic, str(refusal))
        except Exception:  # noqa: BLE001 - see _alone
            self._halt(lane)

    def _look_ahead(self, lane: Lane, chunk: Chunk) -> None:
        """Ask for schemas when their records arrive, not when an object is due."""
        missing = self._decoder.ready(lane.chain.topic, chunk.records)[1]
        if missing is not None and lane.blocked_by is None:
            self._wait_for_schema(lane, missing)

    async def _advance(self, lane: Lane) -> None:
        """Flatten what was read, and send the object on its way when it is due."""
        many = len(lane.pending) >= self._settings.pack_records or lane.pending_bytes >= PENDING_BYTES_MAX
        if many or (self._crowded and lane.pending) or lane.due(self._settings, self._clock()):
            await self._pack(lane)
        if not self._holds(lane) or lane.flying is not None:
            return
        cut = lane.due(self._settings, self._clock())
        if cut is None and self._crowded and lane is self._largest():
            cut = "bytes"
        if cut is not None and (sealed := lane.seal(cut, self._clock())):
            self._send(lane, sealed)
        elif lane.reopen and lane.is_empty and lane.partition not in self._writing:
            self._drop(lane)
            self._due[lane.partition] = self._clock() + lane.reopen_after_s

    def _send(self, lane: Lane, sealed: Sealed) -> None:
        self._spawn(self._writing, lane.partition, self._alone(lane, self._write(lane, sealed)), f"write {lane.chain}")

    async def _write(self, lane: Lane, sealed: Sealed) -> None:
        """Park, put, then commit. Never in another order."""
        topic = lane.chain.topic
        try:
            async with self._puts:
                goes_on = await self._writer.put(lane, sealed, self._lives[topic])
        except REFUSALS as refusal:
            self._refuse(topic, str(refusal))
            return
        if not goes_on and self._holds(lane):
            self._source.start(lane.partition, lane.expected)
        if lane.partition in self._halted and self._holds(lane) and not lane.reopen:
            self._goes_on(lane.partition)
        if lane.settled_start is not None:
            key = self._ledger.keys.link(lane.chain, lane.settled_start)
            await self._source.commit(lane.partition, lane.assignment, lane.settled_next, key)

    async def _pack(self, lane: Lane) -> None:
        """Make rows of the pending records, as far as their schemas are known."""
        ready, missing = self._decoder.ready(lane.chain.topic, lane.pending)
        if missing is not None and lane.blocked_by != missing:
            self._wait_for_schema(lane, missing)
        if lane.pending and ready == 0:
            return
        records, jumps = lane.pending[:ready], lane.jumps
        if ready > THREAD_RECORDS:
            packed = await asyncio.to_thread(self._make_rows, lane, records)
        else:
            packed = self._make_rows(lane, records)
        if self._holds(lane) and lane.jumps == jumps:
            self._absorb(lane, *packed)

    def _make_rows(self, lane: Lane, records: list[ConsumedRecord]) -> tuple[list[ConsumedRecord], Rows, bool]:
        pack, stops = lane.pack, False
        rows = self._decoder.rows(lane.chain, records) if records else NO_ROWS
        begins = first_of_long_run(rows.failed, lane.bad_in_a_row, self._settings.undecodable_in_a_row_max)
        if begins is not None:
            records, stops = records[:begins], True
            rows = self._decoder.rows(lane.chain, records) if records else NO_ROWS
        if rows.ndjson:
            pack.add(rows.ndjson)
        return records, rows, stops

    def _absorb(self, lane: Lane, records: list[ConsumedRecord], rows: Rows, stops: bool) -> None:
        lane.absorb(records, rows)
        if stops:
            lane.halt()
            self._gauges.waits(lane.partition, "stopped", True)
            why = "too many undecodable records in a row; mend the producer or the registry, then restart the sink"
            log.error("partition_stopped", chain=str(lane.chain), at_offset=lane.expected, why=why)

    def _hold_back(self) -> None:
        """Bound what is held: read on only where it can be put away."""
        held_bytes = sum(lane.held_bytes for lane in self._lanes.values())
        full = held_bytes >= self._settings.buffered_bytes_max
        self._crowded = held_bytes >= self._settings.buffered_bytes_max // 2
        metrics.BUFFERED_BYTES.set(held_bytes)
        in_progress: Counter[str] = Counter()
        now_s = self._clock()
        held = [partition for partition in self._source.assigned if partition not in self._lanes]
        for partition, lane in self._lanes.items():
            log_end = self._source.log_end(partition)
            self._gauges.offsets(partition, lane.written, log_end or lane.expected, self._source.known_end(partition))
            self._gauges.beat(partition, lane.beat_ms)
            in_progress[partition.topic] += lane.in_progress
            if partition in self._halted and lane.is_empty and log_end is not None and lane.expected >= log_end:
                self._goes_on(partition)
            if full or lane.is_held or (lane.flying and lane.due(self._settings, now_s)):
                held.append(partition)
        self._gauges.in_progress(in_progress)
        self._source.hold(held)

    def _largest(self) -> Lane:
        return max((lane for lane in self._lanes.values() if lane.flying is None), key=lambda lane: lane.held_bytes)

    # Partitions come and go

    def _open_due(self) -> None:
        if self._source.assignment != self._assignment:
            self._assignment = self._source.assignment
            self._due = dict.fromkeys(self._source.assigned, self._clock())
        now_s = self._clock()
        for topic, partitions in by_topic([p for p, at_s in self._due.items() if at_s <= now_s]).items():
            if topic not in self._opening:
                for partition in partitions:
                    del self._due[partition]
                self._spawn(self._opening, topic, self._open(topic, partitions, self._assignment), f"open {topic}")

    async def _open(self, topic: str, partitions: list[Partition], assignment: int) -> None:
        try:
            opened = await self._opener.open(partitions, assignment)
        except REFUSALS as refusal:
            self._refuse(topic, str(refusal))
            self._due.update(dict.fromkeys(partitions, self._clock() + self._settings.recheck_s))
            return
        except Exception:  # noqa: BLE001 - see _alone
            for partition in partitions:
                self._look_again_later(partition)
            return
        self._lives[topic] = opened.life
        self._gauges.refused(topic, False)
        for lane in opened.lanes:
            self._lanes[lane.partition] = lane
            self._gauges.opened(lane.partition, lane.last_ms)
            self._source.start(lane.partition, lane.expected)
            self._gauges.waits(lane.partition, "schema", False)
            self._gauges.waits(lane.partition, "stopped", lane.partition in self._halted)
            log.info("partition_opened", chain=str(lane.chain), start=lane.start, reads_from=lane.expected)
        self._hold_back()  # what waited for its lane is read from now on

    def _refuse(self, topic: str, why: str) -> None:
        """Nothing more of this topic, until it is found in order; all others go on."""
        log.error("topic_refused", topic=topic, why=why, looked_at_again_in_s=self._settings.recheck_s)
        self._gauges.refused(topic, True)
        for lane in [lane for lane in self._lanes.values() if lane.chain.topic == topic]:
            self._drop(lane)
            self._due[lane.partition] = self._clock() + self._settings.recheck_s

    # What nobody foresaw

    async def _alone(self, lane: Lane, work: Awaitable[None]) -> None:
        """A fault that nobody foresaw stops the one lane that met it: not the process, which would stop all of them and
        meet it again at once.
        """
        try:
            await work
        except Exception:  # whatever one record brings about must not reach the others
            if self._holds(lane):
                self._halt(lane)
            else:
                log.exception("given_away_partition_failed", chain=str(lane.chain))

    def _halt(self, lane: Lane) -> None:
        """Within an ``except``. The bucket is the ledger: opened anew, the lane goes on where its objects end."""
        self._drop(lane)
        self._look_again_later(lane.partition)

    def _look_again_later(self, partition: Partition) -> None:
        """Within an ``except``."""
        again_s = self._settings.recheck_s
        log.exception(
            "partition_stopped", topic=partition.topic, partition=partition.partition, looked_at_again_in_s=again_s
        )
        self._mark_halted(partition)
        self._due[partition] = self._clock() + again_s

    def _stand_before(self, lane: Lane, why: str) -> None:
        """What lies next can't be read. Write what came before it, then look again now and then."""
        again_s = self._settings.recheck_s
        log.error(
            "partition_unreadable",
            chain=str(lane.chain),
            at_offset=lane.expected,
            why=why,
            looked_at_again_in_s=again_s,
        )
        self._mark_halted(lane.partition)
        lane.reopen, lane.reopen_after_s = True, again_s

    def _mark_halted(self, partition: Partition) -> None:
        self._halted.add(partition)
        self._gauges.waits(partition, "stopped", True)

    def _goes_on(self, partition: Partition) -> None:
        self._halted.discard(partition)
        self._gauges.waits(partition, "stopped", False)

    async def revoked(self) -> None:
        """A rebalance takes all partitions. Puts under way may finish and commit; others read the rest again."""
        lanes, self._lanes, self._due = self._lanes, {}, {}
        self._halted.clear()
        self._gauges.forget()
        for opener in self._opening.values():
            opener.cancel()
        if self._writing:
            await asyncio.wait(list(self._writing.values()), timeout=self._settings.revoke_wait_s)
        for writer in self._writing.values():
            writer.cancel()
        log.info("partitions_revoked", partitions=len(lanes), dropped_bytes=sum(x.held_bytes for x in lanes.values()))

    def _drop(self, lane: Lane) -> None:
        self._lanes.pop(lane.partition, None)
        writer = self._writing.get(lane.partition)
        if writer is not None and writer is not asyncio.current_task():
            writer.cancel()

    def _holds(self, lane: Lane) -> bool:
        return self._lanes.get(lane.partition) is lane

    # Schemas that are not known yet

    def _wait_for_schema(self, lane: Lane, schema_id: int) -> None:
        lane.blocked_by = schema_id
        wanted = (lane.chain.topic, schema_id)
        if wanted not in self._learning and self._asked_last is None:
            self._spawn(self._learning, wanted, self._learn(*wanted), f"learn schema {schema_id}")

    async def _learn(self, topic: str, schema_id: int) -> None:
        delays = backoff(0.2, self._settings.recheck_s)
        while blocked := [x for x in self._lanes.values() if x.chain.topic == topic and x.blocked_by == schema_id]:
            learned = await self._ask(topic, schema_id)
            for lane in filter(self._holds, blocked):
                self._gauges.waits(lane.partition, "schema", learned is not Learned.KNOWN)
                if learned is Learned.KNOWN and lane.blocked_by == schema_id:
                    lane.blocked_by = None
            if learned is not Learned.KNOWN:
                say = log.warning if learned is Learned.UNAVAILABLE else log.error
                say("schema_waited_for", topic=topic, schema_id=schema_id, outcome=learned.value)
                await self._sleep(next(delays))

    async def _ask(self, topic: str, schema_id: int) -> Learned:
        try:
            return await self._decoder.learn(topic, schema_id)
        except Exception:  # see _alone
            log.exception("schema_failed", topic=topic, schema_id=schema_id)
            return Learned.UNUSABLE

    # The end

    async def _drain(self) -> None:
        """Write what can be written. Records whose schema stays unknown stay in Kafka, and are read again."""
        self._asked_last = set()
        for task in [*self._opening.values(), *self._learning.values()]:
            task.cancel()
        while any([await self._sends_rest(lane) for lane in list(self._lanes.values())]):
            if self._writing:  # the last write may have ended while another lane was being packed
                await asyncio.wait(list(self._writing.values()), timeout=TURN_S, return_when=asyncio.FIRST_COMPLETED)

    async def _sends_rest(self, lane: Lane) -> bool:
        """True while something of this lane is on its way."""
        if lane.partition not in self._writing:
            await self._alone(lane, self._send_rest(lane))
        return lane.partition in self._writing

    async def _send_rest(self, lane: Lane) -> None:
        await self._ask_once_more(lane)
        await self._pack(lane)
        if self._holds(lane) and (sealed := lane.seal("stop", self._clock())):
            self._send(lane, sealed)

    async def _ask_once_more(self, lane: Lane) -> None:
        """Each schema is asked for once: a sink that is stopped early may not know the first one yet."""
        assert self._asked_last is not None
        topic = lane.chain.topic
        while (missing := self._decoder.ready(topic, lane.pending)[1]) is not None:
            if (topic, missing) in self._asked_last:
                return
            self._asked_last.add((topic, missing))
            await self._ask(topic, missing)

    def _spawn(
        self, among: dict[Any, asyncio.Task[None]], key: Any, work: Coroutine[Any, Any, None], name: str
    ) -> None:
        """Start a task that this sink owns, and forgets when it is done; what kills it ends ``run``."""
        task = self._tasks.create_task(work, name=name)
        among[key] = task
        task.add_done_callback(lambda done: among.pop(key) if among.get(key) is done else None)
