"""``tidemark raw mend``: closes the holes of an entity's chains, so that the loader can go on.

What Kafka still has is read again and written as the object that is missing: the same rows, under a conditional PUT as
ever. What Kafka no longer has becomes a gap marker, only where ``--lost`` says so: then the audit names the events that
went with it, and the command that publishes them again. Typed twice, or beside another, it adopts what is there.

Kafka can only have what is of the topic's newest generation, and of the very life that this was claimed for: the
offsets of a topic that was made anew are other records.
"""

from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Literal

import zstandard
from msgspec import Struct, to_builtins

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned
from services.cli.parked_selection import known
from services.cli.who import operator
from shared.entities import Entity
from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch, schema_ids
from shared.events.lineage import ConsumedRecord
from shared.raw.generation import FIRST, Claim, TopicLife, newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import LastRecord, RawObject, record_digest

Fate = Literal["mended", "would mend", "marked as lost", "would mark", "Kafka no longer has it", "not all decodable"]


class Hole(Struct, frozen=True):
    chain: Chain
    start: int
    end: int
    before: RawObject | None  # the object in front of it
    newest: Claim  # of its topic


class Mended(Struct, frozen=True):
    chain: str
    start: int
    end: int
    fate: Fate
    objects: int = 0
    rows: int = 0
    why: str = ""


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when a hole stays, or with ``--dry-run`` when there is one."""
    (name,) = known(edges, [arguments.entity])
    entity = edges.entities.entities[name]
    ledger = Ledger(await edges.raw_store(), Keys(edges.namespace.prefix("")))
    holes = await _holes(edges, ledger, entity)
    found = [one for hole in holes for one in await _mend(edges, ledger, entity, hole, arguments)]
    rows = [[one.chain, f"{one.start} to {one.end}", one.fate, f"{one.rows:,} rows", one.why] for one in found]
    lines = aligned(rows, ("CHAIN", "OFFSETS", "FATE", "ROWS", "")) or [f"{name}: no chain has a hole"]
    done = all(one.fate in ("mended", "marked as lost") for one in found)
    document = {"entity": name, "holes": [to_builtins(one) for one in found]}
    return Outcome(exit_code=OK if done else FINDING, lines=lines, document=document)


async def _holes(edges: Edges, ledger: Ledger, entity: Entity) -> list[Hole]:
    """Between two objects, or between the floor and the first one. What lies behind the last one is the sink's."""
    claim = await newest_claim(await edges.raw_store(), ledger.keys, entity.topic)
    if claim is None:
        return []
    generations = range(FIRST, claim.generation + 1)
    holes = []
    for chain in [one for number in generations for one in await ledger.partitions(entity.topic, number)]:
        report = await ledger.verify(chain)
        due, before = report.floor, None
        for link in report.objects:
            if link.start > due:
                holes.append(Hole(chain, due, link.start - 1, before, claim))
            due, before = max(due, link.next_start), link
    return holes


async def _mend(edges: Edges, ledger: Ledger, entity: Entity, hole: Hole, arguments: Namespace) -> list[Mended]:
    place = (str(hole.chain), hole.start, hole.end)
    if gone := await _gone(edges, hole, hole.start, hole.end):
        if not arguments.lost:
            return [_left(hole, hole.start, gone)]
        if arguments.dry_run:
            return [Mended(*place, "would mark", why=gone)]
        last = None if hole.before is None else hole.before.last
        await ledger.write_gap(hole.chain, hole.start, hole.end, "retention", last, operator())
        return [Mended(*place, "marked as lost", objects=1, why=gone)]
    if arguments.dry_run:
        return [Mended(*place, "would mend")]
    flatteners = _Flatteners(edges, entity)
    objects = rows = 0
    async for link, body, undecodable in _objects(edges, hole, flatteners):
        for offset in undecodable:
            if not await (await edges.parked()).show(f"{hole.chain}/{offset}"):
                why = f"the record at {offset} fails under its schema, and is not parked"
                return [Mended(*place, "not all decodable", objects, rows, why)]
        # Asked anew after the records were read: retention, or a new topic of this name, may have overtaken them, and
        # the object would say that there were none.
        if gone := await _gone(edges, hole, link.start, link.end):
            done = [Mended(str(hole.chain), hole.start, link.start - 1, "mended", objects, rows)] if objects else []
            return [*done, _left(hole, link.start, gone)]
        standing = await ledger.write(link, body)
        objects, rows = objects + 1, rows + standing.count
    return [Mended(*place, "mended", objects, rows)]


async def _gone(edges: Edges, hole: Hole, start: int, end: int) -> str:
    """Why Kafka does not have all of the hole from ``start`` to ``end``; ``""``: it has."""
    newest, topic = hole.newest, hole.chain.topic
    if hole.chain.generation != newest.generation:
        return f"the topic is in generation {newest.generation} by now"
    kafka = await edges.kafka()
    mark = (await kafka.watermarks(topic)).get(hole.chain.partition)
    if newest.life.known:  # asked after the watermarks: so they are this life's too
        identity = await kafka.identity(topic)
        life = TopicLife(identity.cluster_id, identity.topic_id)
        if life != newest.life:
            return (
                f"generation {newest.generation} belongs to topic id {newest.topic_id} in cluster {newest.cluster_id}, "
                f"but Kafka now has {life.topic_id} in {life.cluster_id}"
            )
    if mark is None:
        return "Kafka has no such partition"
    if mark.begin > start:
        return f"Kafka's log begins at {mark.begin}"
    return f"Kafka's log ends at {mark.end}" if mark.end <= end else ""


def _left(hole: Hole, start: int, gone: str) -> Mended:
    why = f"{gone}: restore the object, or give it up with --lost"
    return Mended(str(hole.chain), start, hole.end, "Kafka no longer has it", why=why)


class _Flatteners:
    """By schema id, from the registry or its cache."""

    def __init__(self, edges: Edges, entity: Entity) -> None:
        self._edges = edges
        self._entity = entity
        self._known: dict[int, Flattener] = {}
        self._keys: KeyContract | None = None

    async def flatten(
        self, chain: Chain, records: Sequence[ConsumedRecord]
    ) -> tuple[bytes, int, tuple[int, ...], list[int]]:
        """(NDJSON, rows, schema ids, offsets whose bytes fail). Raises ``RegistryError``."""
        schemas = await self._edges.schemas()
        for schema_id in schema_ids(records) - self._known.keys():
            self._known[schema_id] = Flattener(await schemas.by_id(schema_id), schema_id)
        if self._keys is None:
            text = self._entity.schema_text or (await schemas.latest(self._entity.schema_subject)).schema
            self._keys = KeyContract(self._entity.rules.key, text)
        origin = Origin(chain.topic, chain.generation, chain.partition)
        flat = flatten_batch(origin, records, self._known, self._keys)
        return flat.body, flat.rows, flat.schema_ids, [records[bad.index].offset for bad in flat.undecodable]


async def _objects(
    edges: Edges, hole: Hole, flatteners: _Flatteners
) -> AsyncIterator[tuple[RawObject, bytes, list[int]]]:
    """The objects that close the hole, one for each page of records: the last one reaches its end."""
    start, last = hole.start, None if hole.before is None else hole.before.last
    held: Sequence[ConsumedRecord] = ()
    pages = edges.reread().records(hole.chain.topic, hole.chain.partition, hole.start, hole.end + 1)
    async for page in pages:
        if held:
            yield await _object(hole.chain, flatteners, start, page[0].offset - 1, held, last)
            start, last = page[0].offset, _last(held)
        held = page
    yield await _object(hole.chain, flatteners, start, hole.end, held, last)


async def _object(
    chain: Chain,
    flatteners: _Flatteners,
    start: int,
    end: int,
    records: Sequence[ConsumedRecord],
    before: LastRecord | None,
) -> tuple[RawObject, bytes, list[int]]:
    ndjson, rows, ids, undecodable = await flatteners.flatten(chain, records)
    body = zstandard.compress(ndjson)
    times = [record.timestamp for record in records]
    link = RawObject(
        chain=chain,
        start=start,
        end=end,
        count=rows,
        first_ms=min(times, default=None),
        last_ms=max(times, default=None),
        schema_ids=ids,
        sha256=sha256(body).hexdigest(),
        writer=operator(),
        last=_last(records) or before,
    )
    return link, body, undecodable


def _last(records: Sequence[ConsumedRecord]) -> LastRecord | None:
    if not records:
        return None
    record = records[-1]
    return LastRecord(record.offset, record.timestamp, record_digest(record.key, record.value))
