"""One partition on its way into the ledger: what was read, what is buffered, where the next object begins. Pure.

expected      the offset that Kafka is to hand over next
pending       records read, not yet flattened: up to ``expected``
covered       every offset below it is flattened, or holds no record
start         where the next object begins: the previous one's end + 1

start <= covered <= expected. ``seal`` moves ``start`` on trust; ``settle`` confirms it by what the bucket says.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from msgspec import Struct

from services.s3_sink.limits import SinkSettings
from services.s3_sink.packing import Pack
from shared.events.lineage import ConsumedRecord, is_heartbeat
from shared.kafka.chunks import Chunk, Partition
from shared.raw.keys import Chain
from shared.raw.objects import LastRecord, RawObject, record_digest

Cut = Literal["bytes", "records", "clock", "revoked", "stop"]

RECORD_BYTES = 700
"""What aiokafka's record costs besides its value."""


class Undecodable(Struct, frozen=True):
    """A record whose bytes fail under a known schema: parked before the object that covers it is written."""

    chain: Chain
    record: ConsumedRecord
    detail: str


class Rows(Struct, frozen=True):
    """Records, flattened: NDJSON in the order of offsets, without those that failed (by their index, ascending)."""

    ndjson: bytes
    count: int
    schema_ids: Sequence[int]
    failed: Sequence[tuple[int, str]]


class Sealed(Struct, frozen=True):
    """An object ready to be put: these bytes and no others, however often it takes."""

    link: RawObject
    body: bytes
    undecodable: Sequence[Undecodable]
    cut: Cut
    beat_ms: int | None = None
    """When the newest heartbeat in it was sent."""


class OtherRecord(Exception):
    """Kafka holds another record than the ledger does, or can't show the one that would prove it is the same topic."""


class Lane:
    """See the module. Times are seconds on the clock of the caller."""

    def __init__(
        self,
        chain: Chain,
        assignment: int,
        *,
        start: int,
        log_begin: int,
        last: LastRecord | None,
        proven: bool,
        now_s: float,
        writer: str,
    ) -> None:
        self.chain = chain
        self.partition = Partition(chain.topic, chain.partition)
        self.assignment = assignment
        self.start = start
        self.verified_s = now_s
        self.flying: Sealed | None = None
        self.settled_start: int | None = None  # of the newest object, and the offset behind it: what is committed
        self.settled_next = start
        self.reopen = False  # nothing more can be read here: write what is buffered, then open the lane anew
        self.reopen_after_s = 0.0
        self.stopped = False  # too many undecodable records in a row
        self.beat_ms: int | None = None  # of the newest heartbeat that is written
        self.jumps = 0
        self.blocked_by: int | None = None
        self.unproven = not proven and last is not None
        self._writer = writer
        self._last = last
        # The ledger's last record is read once more, to be compared, if Kafka still has it.
        self._witness = last if last is not None and log_begin <= last.offset < start else None
        self.expected = start if self._witness is None else self._witness.offset
        if self.unproven and self._witness is None:
            raise OtherRecord(f"{chain}: Kafka no longer has offset {last.offset if last else '?'}, the ledger's last")
        self._empty()

    def _empty(self) -> None:
        self.pending: list[ConsumedRecord] = []
        self.pending_bytes = 0
        self.covered = self.start
        self.pack = Pack()
        self.count = 0
        self.undecodable: list[Undecodable] = []
        self.bad_in_a_row = 0
        self.opened_s: float | None = None
        self._first_ms: int | None = None
        self._last_ms: int | None = None
        self._ids: set[int] = set()
        self._beat_ms: int | None = None
        self._buffered_last: LastRecord | None = None

    @property
    def held_bytes(self) -> int:
        return self.pending_bytes + self.pack.held_bytes + (len(self.flying.body) if self.flying else 0)

    @property
    def in_progress(self) -> int:
        """Records read that are in no object known to be written."""
        return len(self.pending) + self.count + (self.flying.link.count if self.flying else 0)

    @property
    def written(self) -> int:
        """Every offset below it is in an object that is known to be written."""
        return self.flying.link.start if self.flying else self.start

    @property
    def last_ms(self) -> int:
        """The time of the ledger's last record; 0: there is none."""
        return 0 if self._last is None else self._last.timestamp_ms

    @property
    def is_empty(self) -> bool:
        """Nothing waits to be written: no record, and no offset that passed without one."""
        return self.expected <= self.start and self.covered == self.start

    @property
    def is_held(self) -> bool:
        """Nothing more is to be read before something else has happened."""
        return self.stopped or self.reopen or self.blocked_by is not None

    def take(self, chunk: Chunk, now_s: float) -> bool:
        """Add what was read. False: it is not what comes next (an answer from before a seek), and was dropped.

        Raises ``OtherRecord``.
        """
        if chunk.begins_at != self.expected:
            return False
        records = chunk.records
        if chunk.begins_at < self.start:
            self._compare(chunk)
            records = [record for record in records if record.offset >= self.start]
        self.expected = chunk.next_offset
        self.pending += records
        self.pending_bytes += sum(len(record.value or b"") for record in records) + RECORD_BYTES * len(records)
        if self.opened_s is None and self.expected > self.start:
            self.opened_s = now_s
        return True

    def _compare(self, chunk: Chunk) -> None:
        witness = self._witness
        if witness is None or chunk.next_offset <= witness.offset:
            return
        self._witness = None
        found = next((record for record in chunk.records if record.offset == witness.offset), None)
        if found is None:  # retention would have made the offset out of range
            raise OtherRecord(f"{self.chain}: Kafka's log has no record at offset {witness.offset}, the ledger's last")
        if (found.timestamp, record_digest(found.key, found.value)) != (witness.timestamp_ms, witness.digest):
            raise OtherRecord(
                f"{self.chain}: the record at offset {witness.offset} is not the one that the ledger ends with: the "
                "topic was made anew, or its log was cut back and written again"
            )
        self.unproven = False

    def absorb(self, records: Sequence[ConsumedRecord], rows: Rows) -> None:
        """``records``, the first of ``pending``, are flattened, and ``rows`` of them are in ``pack``."""
        taken = len(records)
        rest = self.pending[taken:]
        self.covered = max(self.start, rest[0].offset if rest else self.expected)
        self.pending_bytes = self.pending_bytes * len(rest) // len(self.pending) if rest else 0
        self.pending = rest
        self.count += rows.count
        self._ids.update(rows.schema_ids)
        self.undecodable += [Undecodable(self.chain, records[index], detail) for index, detail in rows.failed]
        self.bad_in_a_row = bad_run(rows.failed, taken, self.bad_in_a_row)
        beats = [record.timestamp for record in records if record.value is None and is_heartbeat(record)]
        self._beat_ms = max(beats, default=self._beat_ms)
        if taken:
            times = [record.timestamp for record in records]
            self._first_ms = min(times) if self._first_ms is None else min(self._first_ms, *times)
            self._last_ms = max(times) if self._last_ms is None else max(self._last_ms, *times)
            last = records[-1]
            self._buffered_last = LastRecord(last.offset, last.timestamp, record_digest(last.key, last.value))

    def due(self, limits: SinkSettings, now_s: float) -> Cut | None:
        """Why the object is to be cut now, if it is."""
        if self.opened_s is None or self.is_empty:
            return None
        if self.pack.compressed_bytes >= limits.object_bytes_max:
            return "bytes"
        if self.count + len(self.pending) >= limits.object_records_max:
            return "records"
        if now_s - self.opened_s >= limits.object_age_s_max or self.reopen:
            return "clock"
        return None

    def seal(self, cut: Cut, now_s: float) -> Sealed | None:
        """Cut what is covered. The buffer goes on, behind it, on the word that this very object will stand there."""
        assert self.flying is None, "one PUT is in flight per partition"
        if self.covered <= self.start:
            return None
        body = self.pack.finish()
        link = RawObject(
            chain=self.chain,
            start=self.start,
            end=self.covered - 1,
            count=self.count,
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            schema_ids=tuple(sorted(self._ids)),
            sha256=sha256(body).hexdigest(),
            writer=self._writer,
            last=self._buffered_last or self._last,
        )
        self.flying = Sealed(link, body, self.undecodable, cut, self._beat_ms)
        pending, pending_bytes, bad = self.pending, self.pending_bytes, self.bad_in_a_row
        self.start = self.covered
        self._empty()
        self.pending, self.pending_bytes, self.bad_in_a_row = pending, pending_bytes, bad
        self.opened_s = now_s if self.expected > self.start else None
        return self.flying

    def settle(self, standing: RawObject, now_s: float) -> bool:
        """``standing`` is what the bucket has in the slot of the object in flight. False: it ends elsewhere than ours.

        Then all that was buffered is dropped, and reading must go on from ``expected``.
        """
        assert self.flying is not None
        ours, beat_ms, self.flying = self.flying.link, self.flying.beat_ms, None
        self._last = standing.last
        self.verified_s = now_s
        self.settled_start, self.settled_next = standing.start, standing.next_start
        if standing.end == ours.end:
            self.beat_ms = beat_ms or self.beat_ms
            return True
        self.jump(standing.next_start)
        return False

    def jump(self, start: int) -> None:
        """Forget what is buffered and go on from ``start``."""
        self.flying = None
        self.start = self.expected = start
        self._witness = None
        self.blocked_by = None
        self.jumps += 1
        self._empty()

    def halt(self) -> None:
        """Read no further than what is covered."""
        self.stopped = True
        self.pending, self.pending_bytes = [], 0
        self.expected = max(self.start, self.covered)


def bad_run(failed: Sequence[tuple[int, str]], taken: int, before: int) -> int:
    """How many records in a row are undecodable at the end of ``taken`` records, after ``before`` ahead of them."""
    if len(failed) == taken:
        return before + taken
    run = 0
    due = taken - 1
    for index, _detail in reversed(failed):
        if index != due:
            break
        run, due = run + 1, due - 1
    return run


def first_of_long_run(failed: Sequence[tuple[int, str]], before: int, in_a_row_max: int) -> int | None:
    """The index at which a run of more than ``in_a_row_max`` failures begins (0 when it began ahead of these)."""
    run, begins, due = before, 0, 0
    for index, _detail in failed:
        if index != due:
            run, begins = 0, index
        run, due = run + 1, index + 1
        if run > in_a_row_max:
            return begins
    return None
