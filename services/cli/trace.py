"""``tidemark trace``: where one key's events went, and why the table holds what it holds. Prints no field values."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field, to_builtins

from services.cli import trace_reading as reading
from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome, aligned, iso, moment, printable
from services.cli.parked_progress import Progress
from services.cli.parked_selection import known
from services.cli.trace_reading import Hit, Sighted, Wanted
from shared.config import ConfigError
from shared.entities import Entity
from shared.events.identity import key_hash
from shared.kafka.errors import KafkaUnreachable, TopicMissing
from shared.parked.census import Counted
from shared.raw.generation import FIRST, newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger

if TYPE_CHECKING:
    from shared.lake.reader import LakeTable

COMMITS_MAX = 10_000
"""Commits of the table that are looked through for the one that merged an event."""


class Held(Struct, frozen=True):
    """What the table holds of the key."""

    event_id: str
    rank: int
    tiebreak: int
    rev: int
    chain: str
    offset: int
    deleted: bool

    @property
    def order(self) -> tuple[int, int, int, str]:
        return (self.rank, self.tiebreak, self.rev, self.event_id)


class Traced(Struct, kw_only=True):
    """One event: everything that is known of it."""

    event_id: str
    sightings: list[Sighted] = field(default_factory=list)
    records: list[Hit] = field(default_factory=list)
    parked: list[Counted] = field(default_factory=list)
    archived: list[str] = field(default_factory=list)
    fate: str = ""
    versions: dict[str, int] = field(default_factory=dict)  # chain and offset → table version

    @property
    def order(self) -> tuple[int, int, int, str]:
        """The greatest that one of its records has."""
        orders = [hit.order for hit in self.records if hit.order is not None]
        return max(orders, default=(-(2**63), 0, 0, self.event_id))


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when nothing is known of the key or the event."""
    (name,) = known(edges, [arguments.entity])
    if (arguments.key is None) == (arguments.event_id is None):
        raise ConfigError(["trace: name a KEY, or an event by --event-id ID"])
    entity = edges.entities.entities[name]
    since_ms = None if arguments.newer_than is None else clock_ms() - arguments.newer_than * 1000
    tracing = Tracing(edges, entity, since_ms)
    await tracing.find(arguments.key, arguments.event_id)
    return tracing.outcome(arguments.event_id, arguments.limit)


class Tracing:
    """Gathers store by store: the key first, if only an event is named."""

    def __init__(self, edges: Edges, entity: Entity, since_ms: int | None) -> None:
        self._edges = edges
        self._entity = entity
        self._since_ms = since_ms
        self._keys = Keys(edges.namespace.prefix(""))
        self._events: dict[str, Traced] = {}
        self.key: str | None = None
        self.notes: list[str] = []
        self._nameless: list[Hit] = []
        self._table: LakeTable | None = None
        self._held: list[Held] = []
        self._positions: dict[Chain, int] = {}

    async def find(self, key: str | None, event_id: str | None) -> None:
        store = await self._edges.raw_store()
        ledger = Ledger(store, self._keys)
        chains, newest, ends = await self._chains(ledger)
        partitions = len(ends) or None
        self.key = key
        if event_id is not None:
            self._event(event_id)
            self.key = await self._key_of(ledger, chains, event_id)
        wanted = Wanted(self._entity.rules.key, self.key, event_id if self.key is None else None)
        await self._parked(event_id)
        own = reading.chains_of(chains, newest, partitions, self.key)
        if self.key is not None:
            await self._raw(ledger, own, wanted)
        await self._kafka(ledger, {chain: ends[chain] for chain in own if chain in ends}, wanted)
        await self._seen(wanted, event_id)
        await self._archive()
        if self.key is not None:
            await self._lake()

    async def _chains(self, ledger: Ledger) -> tuple[list[Chain], int, dict[Chain, int]]:
        """All chains with objects, the newest generation, and Kafka's ends by its chains."""
        topic, store = self._entity.topic, await self._edges.raw_store()
        claim = await newest_claim(store, self._keys, topic)
        newest = FIRST if claim is None else claim.generation
        try:
            marks = await (await self._edges.kafka()).watermarks(topic)
        except (KafkaUnreachable, TopicMissing) as error:
            self.notes.append(f"Kafka could not be asked, so that all partitions were read: {error}")
            marks = {}
        found = [chain for number in range(FIRST, newest + 1) for chain in await ledger.partitions(topic, number)]
        ends = {Chain(topic, newest, partition): mark.end for partition, mark in marks.items()}
        return sorted({*found, *ends}), newest, ends

    async def _key_of(self, ledger: Ledger, chains: Sequence[Chain], event_id: str) -> str | None:
        """From the parked item; else every partition is read, up to the event's first record."""
        for detail in await (await self._edges.parked()).show(event_id):
            if detail.row.key is not None:
                return detail.row.key
        wanted = Wanted(self._entity.rules.key, None, event_id)
        with Progress("raw objects", 0) as progress:
            store = await self._edges.raw_store()
            found = await reading.in_raw(ledger, store, chains, wanted, self._since_ms, progress.show, first_only=True)
        return found.hits[0].key if found.hits else None

    async def _parked(self, event_id: str | None) -> None:
        census = await self._edges.census()
        items = [] if self.key is None else await census.of_key(self._entity.name, key_hash(self.key))
        for counted in items:
            name = counted.row.event.event_id or counted.row.item_id
            self._event(name).parked.append(counted)

    async def _raw(self, ledger: Ledger, chains: Sequence[Chain], wanted: Wanted) -> None:
        with Progress("raw objects", 0) as progress:
            store = await self._edges.raw_store()
            found = await reading.in_raw(ledger, store, chains, wanted, self._since_ms, progress.show)
        self._take(found.hits)
        self.notes += found.damaged
        if found.more:
            self.notes.append(f"only {reading.HITS_MAX:,} rows are looked at: name a time with --newer-than")
        if found.skipped and self._since_ms is not None:
            self.notes.append(f"{found.skipped:,} older or empty objects were not read")

    async def _kafka(self, ledger: Ledger, ends: dict[Chain, int], wanted: Wanted) -> None:
        tails = await asyncio.gather(*(ledger.tail(chain) for chain in ends))
        ranges = {chain: (tail.next_start, end) for (chain, end), tail in zip(ends.items(), tails, strict=True)}
        hits, more = await reading.in_kafka(self._edges.reread(), ranges, wanted)
        if self.key is None and hits:
            self.key = hits[0].key
        self._take(hits)
        if more:
            self.notes.append(f"only {reading.KAFKA_RECORDS_MAX:,} records behind the ledger's end were looked at")

    async def _seen(self, wanted: Wanted, event_id: str | None) -> None:
        checkpoints, store = await self._edges.checkpoints(), await self._edges.raw_store()
        prefix = f"{self._edges.namespace.prefix('seen/')}{self._entity.name}/"
        ids = [event_id] if wanted.key is None and event_id is not None else []
        with Progress("seen entries", 0) as progress:
            pages = checkpoints.all_seen(self._entity.name)
            for one in await reading.seen(pages, store, prefix, wanted, ids, progress.show):
                self._event(one.event_id).sightings.append(one)

    async def _archive(self) -> None:
        archive = await self._edges.archive()
        with Progress("evidence", 0) as progress:
            uris = archive.uris(entity=self._entity.name)
            found = await reading.in_archive(uris, self._entity.name, self._events, progress.show)
        for event_id, where in found.items():
            self._event(event_id).archived = where

    async def _lake(self) -> None:
        """What the table holds of the key, who won, and in which version each record was merged."""
        uri = self._edges.lake.table(self._entity.name)
        self._table = table = await asyncio.to_thread(self._edges.lake_table, uri)
        if table is None:
            self.notes.append(f"no table at {uri}")
            return
        self._positions = await asyncio.to_thread(table.positions)
        self._held = await asyncio.to_thread(_held, table, self._entity.rules.key, self.key or "")
        await asyncio.to_thread(self._find_versions, table)

    def _find_versions(self, table: "LakeTable") -> None:
        """The first commit whose note says that it merged the record's offset."""
        waiting = [
            (event, hit) for event in self._events.values() for hit in event.records if hit.object_key is not None
        ]
        for count, commit in enumerate(table.commits()):
            if count >= COMMITS_MAX:
                self.notes.append(f"only the last {COMMITS_MAX:,} commits of the table were looked at")
                break
            ranges = commit.note.ranges if commit.note is not None else {}
            for event, hit in waiting:
                start, end = ranges.get(hit.chain, (0, 0))
                if start <= hit.offset < end:
                    event.versions[f"{hit.chain}/{hit.offset}"] = commit.version

    def _take(self, hits: Sequence[Hit]) -> None:
        for hit in hits:
            if hit.event_id is None:
                self._nameless.append(hit)
            else:
                self._event(hit.event_id).records.append(hit)

    def _event(self, event_id: str) -> Traced:
        return self._events.setdefault(event_id, Traced(event_id=event_id))

    def outcome(self, event_id: str | None, limit: int) -> Outcome:
        """Oldest first; of a named event, it and what it was held against."""
        events = sorted(self._events.values(), key=lambda event: (event.order, _shown(event)))
        self._judge(events)
        wanted = [event for event in events if event_id in (None, event.event_id)]
        shown = wanted[-limit:]
        something = any(event.sightings or event.records or event.parked or event.archived for event in wanted)
        key = "unknown" if self.key is None else printable(repr(self.key))
        lines = [f"{self._entity.name}, key {key}"]
        lines += [f"the table (version {self._table.version}) holds: {_holds(self._held)}"] if self._table else []
        if len(shown) < len(wanted):
            lines.append(f"{len(wanted) - len(shown)} older events are not shown (--limit)")
        for event in shown:
            lines += ["", *_sheet(event)]
        lines += ["", *(f"record without an event id: {_record(hit)}" for hit in self._nameless)] * bool(self._nameless)
        lines += ["", *map(printable, self.notes)] if self.notes else []
        if not something:
            lines.append("nothing is known of it: not seen, published, parked or archived")
        document = {
            "entity": self._entity.name,
            "key": self.key,
            "table_version": None if self._table is None else self._table.version,
            "held": to_builtins(self._held),
            "events": [_document(event) for event in shown],
            "notes": self.notes,
        }
        return Outcome(exit_code=OK if something else FINDING, lines=lines, document=document)

    def _judge(self, events: Sequence[Traced]) -> None:
        """Who won the MERGE, and why the others lost."""
        held = self._held[0] if self._held else None
        for event in events:
            event.fate = self._fate(event, held)

    def _fate(self, event: Traced, held: Held | None) -> str:
        if event.records:
            merged = [hit for hit in event.records if self._is_merged(event, hit)]
            if self._table is None:
                return "published; there is no table"
            if not merged:
                return "published, and not merged yet"
            if held is None:
                return "merged, but the table has no row of its key: run `tidemark audit`"
            best = max((hit.order for hit in merged if hit.order is not None), default=None)
            if best is None:
                return "can't be merged: no seq or event id (quarantined)"
            if best == held.order:
                return "won: it is what the table holds"
            if best > held.order:
                return f"must win against {held.event_id}, and the table does not hold it: run `tidemark audit`"
            return f"lost against {held.event_id}: {_why(best, held.order)}"
        if event.parked:
            return f"parked ({', '.join(one.row.state.value for one in event.parked)})"
        if event.archived:
            return "given up: archived"
        return "seen, and nowhere else: run `tidemark audit`" if event.sightings else "unknown"

    def _is_merged(self, event: Traced, hit: Hit) -> bool:
        return hit.offset < self._positions.get(hit.chain, 0) or f"{hit.chain}/{hit.offset}" in event.versions


def _held(table: "LakeTable", key_fields: Sequence[str], key: str) -> list[Held]:
    """By the key's text, column by column."""
    from shared.lake.reader import quoted, text_literal

    texts = [key] if len(key_fields) == 1 else [_text(part) for part in msgspec.json.decode(key, type=list[Any])]
    where = " AND ".join(
        f"CAST({quoted(name)} AS VARCHAR) = {text_literal(text)}" for name, text in zip(key_fields, texts, strict=True)
    )
    columns = ["_event_id", "_rank", "_tiebreak", "_rev", "_kafka_topic", "_kafka_generation", "_kafka_partition"]
    columns += ["_kafka_offset", *(["_deleted"] if "_deleted" in table.columns else [])]
    found = []
    for rows in table.rows(columns, where):
        for event_id, rank, tiebreak, rev, topic, generation, partition, offset, *deleted in rows:
            chain = f"{topic}/{generation}/{partition}"
            found.append(Held(event_id, rank, tiebreak, rev or 0, chain, offset, bool(deleted and deleted[0])))
    return found


def _text(part: object) -> str:
    return part if isinstance(part, str) else msgspec.json.encode(part).decode()


def _why(lost: tuple[int, int, int, str], won: tuple[int, int, int, str]) -> str:
    if lost[:2] != won[:2]:
        return f"lower seq: {lost[0]}.{lost[1]} < {won[0]}.{won[1]}"
    if lost[2] != won[2]:
        return f"same seq, lower rev: {lost[2]} < {won[2]}"
    return f"same seq and rev, lower event id: {lost[3]} < {won[3]}"


def _holds(held: Sequence[Held]) -> str:
    if not held:
        return "no row of this key"
    return "; ".join(
        f"{one.event_id} of {one.chain} offset {one.offset}{' (deleted)' if one.deleted else ''}" for one in held
    )


def _shown(event: Traced) -> int:
    return min((one.shown_us for one in event.sightings), default=0)


def _sheet(event: Traced) -> list[str]:
    rows = [["event", event.event_id]]
    for one in event.sightings:
        dated = "undated" if one.anchored else f"dated {iso(one.updated_us)}"
        rows.append(["shown", f"{iso(one.shown_us)}, {dated} ({one.page})"])
    for hit in event.records:
        rows.append(["published", _record(hit)])
        if hit.object_key is not None:
            rows.append(["raw", f"{hit.object_key} line {hit.line}"])
        version = event.versions.get(f"{hit.chain}/{hit.offset}")
        if version is not None:
            rows.append(["merged", f"in version {version} of the table"])
    for counted in event.parked:
        row = counted.row
        why = f"{row.event.reason.value} at {printable(row.event.path) or '(the whole)'}: {printable(row.event.detail)}"
        rows.append(["parked", f"{row.state.value} since {moment(row.first_at_ms * 1000)}, {row.tries} tries, {why}"])
        rows += [["", f"{moment(error.at_ms * 1000)} {error.kind}: {printable(error.code)}"] for error in row.errs]
        if row.stale_why:
            rows.append(["", f"given up: {printable(row.stale_why)}"])
    rows += [["archived", uri] for uri in event.archived]
    rows.append(["fate", event.fate])
    return aligned(rows)


def _record(hit: Hit) -> str:
    seq = "no seq" if hit.rank is None else f"seq {hit.rank}.{hit.tiebreak}"
    more = (f", rev {hit.rev}" if hit.rev else "") + (f", attempt {hit.attempt}" if hit.attempt else "")
    when = moment(None if hit.published_ms is None else hit.published_ms * 1000)
    where = "" if hit.object_key is not None else ", not in a raw object yet"
    return f"{hit.chain} offset {hit.offset}, {when}, op {hit.op or '-'}, {seq}{more}{where}"


def _document(event: Traced) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "fate": event.fate,
        "shown": [
            {"at": iso(one.shown_us), "updated": None if one.anchored else iso(one.updated_us), "page": one.page}
            for one in event.sightings
        ],
        "records": [
            {
                **{name: value for name, value in to_builtins(hit).items() if name not in ("chain", "published_ms")},
                "chain": str(hit.chain),
                "published": iso(None if hit.published_ms is None else hit.published_ms * 1000),
                "table_version": event.versions.get(f"{hit.chain}/{hit.offset}"),
            }
            for hit in event.records
        ],
        "parked": [
            {
                "state": counted.row.state.value,
                "reason": counted.row.event.reason.value,
                "path": counted.row.event.path,
                "detail": counted.row.event.detail,
                "since": iso(counted.row.first_at_ms * 1000),
                "tries": counted.row.tries,
                "attempts": counted.row.att,
                "errors": [to_builtins(error) for error in counted.row.errs],
                "stale_why": counted.row.stale_why,
            }
            for counted in event.parked
        ],
        "archived": event.archived,
    }
