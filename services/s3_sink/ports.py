"""What the sink needs of the world. Each port says what it may raise; who opened it closes it.

The faults below are waited out: the sink keeps what it holds and asks again, and nothing is lost by waiting.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from services.s3_sink.lane import Rows, Undecodable
from shared.events.lineage import ConsumedRecord
from shared.kafka.chunks import GroupCommit, KnownEnd, LogBounds, Partition, Reading
from shared.raw.generation import TopicLife
from shared.raw.keys import Chain


class ParkingUnavailable(Exception):
    """Undecodable records can't be parked now: the objects that cover them wait."""


class Learned(StrEnum):
    """What became of asking for a schema."""

    KNOWN = "known"
    UNKNOWN = "unknown"  # the registry answered: no such id
    UNUSABLE = "unusable"  # it is no schema that rows can be made from
    UNAVAILABLE = "unavailable"  # the registry did not answer


class RecordSource(Protocol):
    """A consumer group's member. None but ``commits`` raises for the world's faults."""

    @property
    def assigned(self) -> frozenset[Partition]: ...

    @property
    def assignment(self) -> int:
        """The number of the present assignment."""

    async def fetch(self, timeout_s: float) -> Reading:
        """What was read of the partitions that were started, within ``timeout_s``."""

    def start(self, partition: Partition, offset: int) -> None:
        """Read from ``offset`` on; what was read before and not yet handed over is dropped."""

    def hold(self, partitions: Iterable[Partition]) -> None:
        """Read nothing of these until the next call."""

    def log_end(self, partition: Partition) -> int | None: ...

    def known_end(self, partition: Partition) -> KnownEnd | None:
        """Never a later time than the log's end was asked for. To be called once a turn."""

    async def commit(self, partition: Partition, assignment: int, next_offset: int, metadata: str) -> bool:
        """A hint for the next owner. Within seconds; false when it could not be left."""

    async def commits(self, partitions: Sequence[Partition]) -> Mapping[Partition, GroupCommit]:
        """Raises ``KafkaUnreachable``."""


class Topics(Protocol):
    """What Kafka says about a topic. Both raise ``KafkaUnreachable``, ``TopicMissing`` and ``TopicRefused``."""

    async def life(self, topic: str) -> TopicLife: ...

    async def bounds(self, topic: str) -> Mapping[int, LogBounds]: ...


class Decoder(Protocol):
    """Avro to rows, by the schemas known so far."""

    def ready(self, topic: str, records: Sequence[ConsumedRecord]) -> tuple[int, int | None]:
        """How many of ``records``, from the first, can be made into rows now, and the schema id that the next needs."""

    def rows(self, chain: Chain, records: Sequence[ConsumedRecord]) -> Rows:
        """CPU only, a few microseconds a record; runs in a thread. The records are ready."""

    async def learn(self, topic: str, schema_id: int) -> Learned:
        """Ask for a schema. One question, no retries, bounded time."""


class Parking(Protocol):
    async def park(self, events: Sequence[Undecodable]) -> None:
        """Durable when it returns; the same record twice is parked once. Raises ``ParkingUnavailable``."""
