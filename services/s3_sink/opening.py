"""Where a partition goes on, when it is given to us: the bucket says, and Kafka must fit to it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct

from services.s3_sink.lane import Lane
from services.s3_sink.patience import Patience
from services.s3_sink.ports import RecordSource, Topics
from shared import logs, metrics
from shared.kafka.chunks import GroupCommit, LogBounds, Partition
from shared.raw import generation
from shared.raw.generation import Generation, TopicLife
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import GapCause, Ledger, Tail
from shared.raw.objects import ObjectStore, RawObject

log = logs.get_logger(__name__)


class LogCutBack(Exception):
    """Kafka's log ends before the ledger does. Never a gap: new records would take offsets that are written already."""


class Opened(Struct, frozen=True):
    life: TopicLife
    lanes: Sequence[Lane]


class Opener:
    """Opens partitions of one topic together. Asks as long as it takes; refusals go to the caller."""

    def __init__(
        self,
        source: RecordSource,
        topics: Topics,
        store: ObjectStore,
        ledger: Ledger,
        patience: Patience,
        writer: str,
        clock: Callable[[], float],
    ) -> None:
        self._source, self._topics, self._store, self._ledger = source, topics, store, ledger
        self._patience, self._writer, self._clock = patience, writer, clock

    async def open(self, partitions: Sequence[Partition], assignment: int) -> Opened:
        """Find where each chain ends, and mark what Kafka lost before that.

        Raises ``GenerationRefused``, ``TopicRefused``, ``NotOurs``, ``OtherRecord``, ``LogCutBack``.
        """
        topic = partitions[0].topic
        insist = self._patience.insist
        commits = await insist("ask for commits", topic, lambda: self._source.commits(partitions))
        life = await insist("identify", topic, lambda: self._topics.life(topic))
        of = await insist("settle the generation", topic, lambda: self._generation(topic, life))
        tails = [await self._tail(partition, of, commits) for partition in partitions]
        bounds = await insist("ask for bounds", topic, lambda: self._topics.bounds(topic))  # after the tails: not older
        lanes = []
        for partition, found in zip(partitions, tails, strict=True):
            chain, log_bounds = Chain(topic, of.number, partition.partition), bounds[partition.partition]
            tail = await self._close_gap(chain, found, log_bounds)
            lanes.append(self._lane(chain, assignment, of, tail, log_bounds))
        return Opened(life, lanes)

    async def _generation(self, topic: str, life: TopicLife) -> Generation:
        return await generation.settle(self._store, self._ledger.keys, topic, life, self._writer)

    async def _tail(self, partition: Partition, of: Generation, commits: Mapping[Partition, GroupCommit]) -> Tail:
        chain = Chain(partition.topic, of.number, partition.partition)
        near = hint(self._ledger.keys, chain, commits.get(partition))
        return await self._patience.insist("look up", chain.topic, lambda: self._ledger.tail(chain, near))

    async def _close_gap(self, chain: Chain, tail: Tail, log_bounds: LogBounds) -> Tail:
        """The tail behind a marker for what Kafka no longer has."""
        while gap := missing_range(chain, tail, log_bounds):
            marker = await self._patience.insist("mark a gap", chain.topic, self._marking(chain, tail, gap))
            if marker.writer == self._writer:
                _tell_gap(marker)
            tail = Tail(marker.next_start, marker, marker.last)
        return tail

    def _marking(self, chain: Chain, tail: Tail, gap: range) -> Callable[[], Awaitable[RawObject]]:
        cause: GapCause = "genesis" if tail.newest is None and tail.next_start == 0 else "retention"
        return lambda: self._ledger.write_gap(chain, gap.start, gap.stop - 1, cause, tail.last, self._writer)

    def _lane(self, chain: Chain, assignment: int, of: Generation, tail: Tail, log_bounds: LogBounds) -> Lane:
        lane = Lane(
            chain,
            assignment,
            start=tail.next_start,
            log_begin=log_bounds.begin,
            last=tail.last,
            proven=of.proven,
            now_s=self._clock(),
            writer=self._writer,
        )
        lane.settled_start = tail.newest.start if tail.newest is not None else None
        return lane


def hint(keys: Keys, chain: Chain, commit: GroupCommit | None) -> int | None:
    """The start of the object that a commit names. Commits without such a name, or of another chain, say nothing."""
    if commit is None:
        return None
    try:
        named, start = keys.parse(commit.metadata)
    except ValueError:
        return None
    return start if named == chain and start < commit.next_offset else None


def missing_range(chain: Chain, tail: Tail, log_bounds: LogBounds) -> range:
    """The offsets that Kafka no longer has and the ledger never got. Raises ``LogCutBack``."""
    if log_bounds.end < tail.next_start:
        raise LogCutBack(
            f"{chain}: Kafka's log ends at {log_bounds.end}, the raw objects at {tail.next_start}. The topic was made "
            "anew or its log was cut back; if that is meant, open the next generation"
        )
    return range(tail.next_start, log_bounds.begin)


def by_topic(partitions: Sequence[Partition]) -> dict[str, list[Partition]]:
    topics: dict[str, list[Partition]] = {}
    for partition in sorted(partitions):
        topics.setdefault(partition.topic, []).append(partition)
    return topics


def _tell_gap(marker: RawObject) -> None:
    lost = marker.next_start - marker.start
    if marker.cause == "retention":
        metrics.RAW_GAPS.labels(marker.chain.topic).inc(lost)
    say = log.error if marker.cause == "retention" else log.warning
    say("gap_marked", chain=str(marker.chain), start=marker.start, end=marker.end, offsets=lost, cause=marker.cause)
