"""Kafka topics and a group in memory, for the sink: records with gaps between offsets, and commits that regress."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from services.s3_sink.lane import Rows, Undecodable
from services.s3_sink.ports import Learned
from shared.events.lineage import ConsumedRecord
from shared.kafka.chunks import Chunk, GroupCommit, KnownEnd, LogBounds, Partition, Reading
from shared.raw.generation import TopicLife
from shared.raw.keys import Chain


class MemoryRecord(Struct, frozen=True):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class MemoryLog:
    """Partitions of topics, what the group committed, and what the cluster calls each topic."""

    def __init__(self) -> None:
        self.records: dict[Partition, list[MemoryRecord]] = {}
        self.begin: dict[Partition, int] = {}
        self.end: dict[Partition, int] = {}
        self.commits: dict[Partition, GroupCommit] = {}
        self.lives: dict[str, TopicLife] = {}
        self.now_s = 0.0
        """When its ends were asked for."""

    def append(self, partition: Partition, value: bytes | None = b"", *, skip: int = 0) -> int:
        """One more record, ``skip`` offsets after the last; its offset."""
        offset = self.end.get(partition, 0) + skip
        text = b"%d" % offset
        record = MemoryRecord(offset, 1_000_000 + offset, text, text if value == b"" else value)
        self.records.setdefault(partition, []).append(record)
        self.begin.setdefault(partition, 0)
        self.end[partition] = offset + 1
        self.lives.setdefault(partition.topic, TopicLife("cluster", "first"))
        return offset

    def expire(self, partition: Partition, below: int) -> None:
        self.begin[partition] = below
        self.records[partition] = [record for record in self.records[partition] if record.offset >= below]

    async def life(self, topic: str) -> TopicLife:
        await asyncio.sleep(0)
        return self.lives[topic]

    async def bounds(self, topic: str) -> Mapping[int, LogBounds]:
        await asyncio.sleep(0)
        return {p.partition: LogBounds(self.begin[p], self.end[p]) for p in self.records if p.topic == topic}


class MemorySource:
    """One member that believes it owns ``assigned``. Each fetch reads up to ``chunk_records()`` records a partition."""

    def __init__(
        self,
        log: MemoryLog,
        assigned: Iterable[Partition],
        *,
        chunk_records: Callable[[], int] = lambda: 100,
        turns: Callable[[], int] = lambda: 1,
        commits_arrive: Callable[[], bool] = lambda: True,
        on_fetch: Callable[[], None] = lambda: None,
    ) -> None:
        self.log = log
        self.assigned = frozenset(assigned)
        self.assignment = 1
        self.positions: dict[Partition, int] = {}
        self.held: frozenset[Partition] = frozenset()
        self.committed: list[tuple[Partition, int, str]] = []
        self.unreadable: dict[Partition, int] = {}
        """Offsets at which the log is corrupt."""
        self._given_up: set[Partition] = set()
        self._chunk_records, self._turns, self._commits_arrive = chunk_records, turns, commits_arrive
        self._on_fetch = on_fetch

    async def fetch(self, timeout_s: float) -> Reading:
        self._on_fetch()
        for _turn in range(1 + self._turns()):
            await asyncio.sleep(0)
        chunks, lost, unreadable = [], set(), {}
        for partition, position in list(self.positions.items()):
            if partition in self.held or partition in self._given_up:
                continue
            if position == self.unreadable.get(partition):
                self._given_up.add(partition)
                unreadable[partition] = "corrupt"
                continue
            if not self.log.begin[partition] <= position <= self.log.end[partition]:
                lost.add(partition)
            elif chunk := self._chunk(partition, position):
                self.positions[partition] = chunk.next_offset
                chunks.append(chunk)
        return Reading(chunks, frozenset(lost), unreadable)

    def _chunk(self, partition: Partition, position: int) -> Chunk | None:
        ahead = [record for record in self.log.records[partition] if record.offset >= position]
        bound = self.unreadable.get(partition, self.log.end[partition])
        records = [record for record in ahead[: self._chunk_records()] if not position <= bound <= record.offset]
        next_offset = records[-1].offset + 1 if len(records) < len(ahead) else self.log.end[partition]
        return Chunk(partition, position, next_offset, records) if next_offset > position else None

    def start(self, partition: Partition, offset: int) -> None:
        if partition in self.assigned:
            self.positions[partition] = offset
            self._given_up.discard(partition)

    def hold(self, partitions: Iterable[Partition]) -> None:
        self.held = frozenset(partitions)

    def log_end(self, partition: Partition) -> int | None:
        return self.log.end[partition]

    def known_end(self, partition: Partition) -> KnownEnd | None:
        return KnownEnd(self.log.end[partition], self.log.now_s)

    async def commit(self, partition: Partition, assignment: int, next_offset: int, metadata: str) -> bool:
        await asyncio.sleep(0)
        if assignment != self.assignment or not self._commits_arrive():
            return False
        self.committed.append((partition, next_offset, metadata))
        self.log.commits[partition] = GroupCommit(next_offset, metadata)
        return True

    async def commits(self, partitions: Sequence[Partition]) -> Mapping[Partition, GroupCommit]:
        await asyncio.sleep(0)
        return {partition: self.log.commits[partition] for partition in partitions if partition in self.log.commits}


class OffsetDecoder:
    """A row is the record's value and a line end. Values that begin with ``!`` fail; ``?<n>`` needs schema ``n``."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.asked: list[int] = []
        self.answer = Learned.KNOWN

    def ready(self, topic: str, records: Sequence[ConsumedRecord]) -> tuple[int, int | None]:
        for index, record in enumerate(records):
            value = record.value or b""
            if value.startswith(b"?") and int(value[1:]) not in self.known:
                return index, int(value[1:])
        return len(records), None

    def rows(self, chain: Chain, records: Sequence[ConsumedRecord]) -> Rows:
        failed = [(index, "bad") for index, record in enumerate(records) if (record.value or b"").startswith(b"!")]
        bad = {index for index, _detail in failed}
        lines = [b"%d\n" % record.offset for index, record in enumerate(records) if index not in bad]
        return Rows(b"".join(lines), len(lines), (1,) if lines else (), failed)

    async def learn(self, topic: str, schema_id: int) -> Learned:
        await asyncio.sleep(0)
        self.asked.append(schema_id)
        if self.answer is Learned.KNOWN:
            self.known.add(schema_id)
        return self.answer


class MemoryParking:
    def __init__(self) -> None:
        self.parked: dict[tuple[Chain, int], Undecodable] = {}
        self.down: Callable[[], Exception | None] = lambda: None

    async def park(self, events: Sequence[Undecodable]) -> None:
        await asyncio.sleep(0)
        if (error := self.down()) is not None:
            raise error
        for event in events:
            self.parked[event.chain, event.record.offset] = event
