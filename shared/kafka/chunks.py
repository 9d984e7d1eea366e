"""What a consumer hands over. Pure: no client library."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from shared.events.lineage import ConsumedRecord


class Partition(NamedTuple):
    topic: str
    partition: int


class Chunk(Struct, frozen=True):
    """What was read of one partition: every record that exists from ``begins_at`` to just before ``next_offset``."""

    partition: Partition
    begins_at: int
    next_offset: int
    records: Sequence[ConsumedRecord]


class Reading(Struct, frozen=True):
    """One turn's yield. ``out_of_range``: these can't go on, since Kafka has no such offset; start them anew.

    ``unreadable``: what lies at the offset can't be read (a corrupt batch, no rights), and why. These are read no
    further until they are started anew, so that all others go on.
    """

    chunks: Sequence[Chunk] = ()
    out_of_range: frozenset[Partition] = frozenset()
    unreadable: Mapping[Partition, str] = {}


class GroupCommit(Struct, frozen=True):
    """What the group has committed: a hint with a name on it."""

    next_offset: int
    metadata: str


class KnownEnd(Struct, frozen=True):
    """At ``at_s`` (since 1970) a partition's log reached no further than just before ``offset``."""

    offset: int
    at_s: float


class LogBounds(Struct, frozen=True):
    """What Kafka has of a partition: offsets from ``begin`` to just before ``end``."""

    begin: int
    end: int
