"""The records that an audit spills, and what it knows of one entity meanwhile. Pure."""

from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct, field

from services.cli.audit_spill import Spill
from shared.events.model import EventRules
from shared.raw.keys import Chain

SEEN_LAYOUT = "<16s8sqqIB"
RAW_LAYOUT = "<16s8sqqHqB"
PARKED_LAYOUT = "<16s8sqqqB"
ARCHIVED_LAYOUT = "<16sQ"
STATE_LAYOUT = "<16sqqq16sHqB"

HAS_SEQ = 1
KAFKA_ALONE = 2

REV_MAX = 2**31 - 1
RANGES_MAX = 100_000
"""Ranges of offsets without a row that are looked at; beyond it they are only counted."""
PLACES_MAX = 1_000_000
"""Undecodable records that are set aside, by their places."""


class SeenEntry(NamedTuple):
    """One recorded sighting."""

    id: bytes
    key8: bytes
    updated_us: int
    shown_us: int
    page: int  # which of ``Standing.pages``
    anchored: bool  # its time is where it was shown


class RawEvent(NamedTuple):
    """One raw row, as the law of conservation counts it."""

    id: bytes
    key8: bytes  # zeros: the row has no readable key
    rank: int
    tiebreak: int
    chain: int  # which of the chains
    offset: int
    flags: int

    @property
    def has_seq(self) -> bool:
        return bool(self.flags & HAS_SEQ)

    @property
    def in_kafka_alone(self) -> bool:
        """In no object that can be believed, but Kafka has it still."""
        return bool(self.flags & KAFKA_ALONE)


class ParkedOne(NamedTuple):
    id: bytes
    key8: bytes
    updated_us: int
    rank: int
    tiebreak: int
    undecodable: bool  # a record of the topic: it may call itself what it likes


class ArchivedOne(NamedTuple):
    id: bytes
    place: int  # of its name, in the list of names


class State(NamedTuple):
    """One raw row, or one row of the table, as the order of one key's changes sees it."""

    key: bytes
    rank: int
    tiebreak: int
    rev: int
    id: bytes
    chain: int
    offset: int
    is_delete: int  # 0 of a row of the table, which is not asked

    @property
    def order(self) -> tuple[int, int, int, bytes]:
        return (self.rank, self.tiebreak, self.rev, self.id)


class SeenPageOf(Struct):
    """One stored page of seen entries."""

    name: str
    shown_first_us: int = 0
    shown_last_us: int = 0
    problem: str | None = None


class ChainOf(Struct):
    """One chain, as it was walked."""

    chain: Chain
    floor: int = 0
    expired_ms: int | None = None  # of the newest record below the floor
    next_start: int = 0
    kafka_begin: int | None = None  # None: no partition of the topic as it is now
    kafka_end: int | None = None
    objects: int = 0
    rows: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)  # markers of what retention took, [start, end]
    holes: list[tuple[int, int]] = field(default_factory=list)  # offsets in no object, [start, end]
    doubled: list[tuple[int, int]] = field(default_factory=list)
    damaged: list[tuple[int, int, str]] = field(default_factory=list)  # objects that can't be believed
    position: int | None = None  # the table's next start
    silent: list[tuple[int, int]] = field(default_factory=list)  # offsets without a row, inside objects
    silent_more: int = 0

    @property
    def unproved(self) -> list[tuple[int, int]]:
        """Offsets of which the bucket can't say what they held."""
        return sorted([*self.holes, *((start, end) for start, end, _ in self.damaged)])


class Law(Struct):
    """What the law of conservation is judged by: one entity's spills."""

    rules: EventRules
    seen: Spill
    raw: Spill
    parked: Spill
    archived: Spill
    raw_states: Spill
    table_states: Spill
    limit_us: int = 0
    """The fixed cursor: whatever was shown up to here is recorded."""
    expired_us: int = -1
    """What was shown up to here may have lain in raw objects that are expired: it proves nothing by being absent."""
    pages: list[SeenPageOf] = field(default_factory=list)

    @classmethod
    def of(cls, rules: EventRules, folder: Path) -> "Law":
        def spill(name: str, layout: str) -> Spill:
            return Spill(folder, f"{rules.entity}.{name}", layout)

        return cls(
            rules=rules,
            seen=spill("seen", SEEN_LAYOUT),
            raw=spill("raw", RAW_LAYOUT),
            parked=spill("parked", PARKED_LAYOUT),
            archived=spill("archived", ARCHIVED_LAYOUT),
            raw_states=spill("raw-states", STATE_LAYOUT),
            table_states=spill("table-states", STATE_LAYOUT),
        )

    def close(self) -> None:
        for spill in (self.seen, self.raw, self.parked, self.archived, self.raw_states, self.table_states):
            spill.close()


def stamp_of(rules: EventRules, rank: int, tiebreak: int) -> int:
    """When a change was shown, as its ``seq`` says (DESIGN 3.2)."""
    return rank if rules.version is None and rules.shows == "rows" else tiebreak


Kind = Literal[
    "lost",
    "unrecorded",
    "seen_page",
    "raw_hole",
    "raw_twice",
    "raw_damaged",
    "raw_behind",
    "generation",
    "no_row",
    "parked_unreadable",
    "evidence",
    "untold",
    "table_behind",
    "table_stale",
    "table_lacks",
    "table_foreign",
    "table_twice",
    "quarantine",
    "source_unseen",
]


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is missing, or not what it should be; what is named, and what to type."""

    kind: Kind
    where: str  # a chain, a page, a table; "" for the entity
    count: int
    text: str
    names: tuple[str, ...] = ()
    repair: str = ""


class Counts(Struct, kw_only=True):
    """Distinct event ids, unless a name says otherwise."""

    seen: int = 0
    raw: int = 0
    raw_rows: int = 0
    repeated: int = 0  # raw rows beyond one per event id
    nameless: int = 0  # raw rows without an event id
    parked: int = 0
    parked_by_reason: dict[str, int] = field(default_factory=dict)
    archived: int = 0  # and no longer parked
    in_kafka: int = 0  # in no raw object that can be believed, but still in Kafka
    twice: int = 0  # in raw and parked
    redriven: int = 0  # in raw and archived
    unrecorded: int = 0
    missing: int = 0
    expired: int = 0  # absent, and perhaps only expired
    table_rows: int | None = None  # None: there is no table
    keys: int | None = None
    quarantined: int = 0
    unprovable: int = 0  # rows of the table whose raw rows are expired, or in a hole


class PartitionVerdict(Struct, frozen=True, kw_only=True):
    chain: str
    floor: int
    next_start: int
    kafka_begin: int | None
    kafka_end: int | None
    position: int | None
    objects: int
    rows: int
    gaps: list[tuple[int, int]]
    complete: bool


class Report(Struct, kw_only=True):
    """What an audit found of one entity."""

    entity: str
    complete: bool
    counts: Counts
    partitions: list[PartitionVerdict]
    findings: list[Finding]
    notes: list[str]
    fixed_us: int
    table_version: int | None = None
