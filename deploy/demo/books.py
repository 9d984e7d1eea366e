"""Counts for the balance sheet, read from the real stores and the bank; never from the services' own counters."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import msgspec
import zstandard
from msgspec import Meta, Struct

from deploy.demo.balance import ArchivedItem, Books, ParkedItem, RawRow, Truth
from shared.aws import open_client
from shared.checkpoints.postgres import Checkpoints
from shared.checkpoints.settings import PostgresSettings
from shared.entities import Entities, Entity, Namespace
from shared.events.identity import Identifier, event_id
from shared.events.model import Reason
from shared.kafka.admin import KafkaAdmin
from shared.kafka.settings import KafkaSettings
from shared.parked.evidence import Archive
from shared.parked.groups import Group, GroupStore, cause_of
from shared.parked.items import ParkedId
from shared.parked.model import ParkedEvent
from shared.parked.store import ParkedSettings, ParkedStore
from shared.producer.seen import unpack
from shared.raw.generation import newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.s3 import S3Store

OCCURRENCES = 8
"""How often a row may be seen to come back to one state; the bank's versions rise, so that it never does."""

ROWS = """SELECT id::text, version, flaw, {one}_json({table}, NULL, CASE WHEN deleted THEN 'd' ELSE 'u' END)
    FROM {table}"""
"""The bank's own table, its rows as the source shows them."""


class StoreSettings(Struct, frozen=True, kw_only=True):
    """Where the stores are: read from the same ``TIDEMARK_*`` as the services."""

    entities_dir: Path
    kafka: KafkaSettings
    postgres: PostgresSettings
    parked: ParkedSettings = ParkedSettings()
    raw_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-raw"
    archive_bucket: Annotated[str, Meta(min_length=3)] = "tidemark-archive"
    namespace: str = ""


class Stores:
    """The edges of one open set of books."""

    def __init__(
        self,
        bank: Any,
        checkpoints: Checkpoints,
        parked: ParkedStore,
        groups: GroupStore,
        archive: Archive,
        s3: S3Store,
        kafka: KafkaAdmin,
    ) -> None:
        self.bank = bank
        self.checkpoints = checkpoints
        self.parked = parked
        self.groups = groups
        self.archive = archive
        self.s3 = s3
        self.kafka = kafka

    @classmethod
    async def open(cls, settings: StoreSettings, bank_dsn: str, space: Namespace, stack: AsyncExitStack) -> "Stores":
        bank = await asyncpg.connect(bank_dsn)
        stack.push_async_callback(bank.close)
        return cls(
            bank,
            await Checkpoints.open(settings.postgres, stack, schema=space.postgres_schema()),
            await ParkedStore.open(settings.parked.within(space), stack),
            await GroupStore.open(settings.parked.within(space), stack),
            await Archive.open(settings.archive_bucket, space.prefix(""), stack),
            S3Store(await open_client("s3", stack, read_timeout_s=30), settings.raw_bucket),
            await KafkaAdmin.open(settings.kafka, stack),
        )


async def read_books(stores: Stores, entities: Entities) -> list[Books]:
    """The books of every entity. Nothing may be written meanwhile, except what lies beyond the last change."""
    parked = await stores.parked.scan_ids()
    return [await _read(stores, entities, entity, parked) for entity in entities.entities.values()]


async def archived_items(stores: Stores, entity: Entity) -> list[ArchivedItem]:
    """What the archive holds of the entity."""
    found = []
    async for uri in stores.archive.uris(entity=entity.name):
        event = await stores.archive.read(uri)
        found.append(archived_item(event, await stores.groups.get(entity.owner.name, cause_of(event).id)))
    return found


def archived_item(event: ParkedEvent, group: Group | None) -> ArchivedItem:
    place = None if event.kafka is None else (event.kafka.partition, event.kafka.offset)
    return ArchivedItem(event_id=event.event_id, told=was_told(group), place=place)


def was_told(group: Group | None) -> bool:
    """A channel has accepted a notice about the group, now or before it was empty for a while: each time that it opens
    again its receipts begin anew."""
    return group is not None and (group.told_ms is not None or (group.episode > 1 and group.number > 0))


async def _read(stores: Stores, entities: Entities, entity: Entity, parked: list[ParkedId]) -> Books:
    truth, final_versions = await _truth(stores.bank, entity)
    raw, problems = await _raw(stores, Keys(entities.namespace.prefix("")), entity.topic)
    marks = await stores.kafka.watermarks(entity.topic)
    return Books(
        entity=entity.name,
        shows=entity.rules.shows,
        truth=truth,
        seen=await seen_ids(stores, entities, entity.name),
        raw=raw,
        parked=[_parked(item) for item in parked if item.entity == entity.name],
        archived=await archived_items(stores, entity),
        log={partition: range(mark.begin, mark.end) for partition, mark in marks.items()},
        final_versions=final_versions,
        chain_problems=problems,
    )


async def _truth(bank: Any, entity: Entity) -> tuple[list[Truth], dict[str, int]]:
    """What the bank did, under the event ids that its bytes have."""
    identify = Identifier(entity.rules).identify
    if entity.rules.shows == "events":
        changes = await bank.fetch(
            "SELECT id, payload FROM change_outbox WHERE entity = $1 ORDER BY id", entity.source_entity
        )
        sightings = identify([change["payload"].encode() for change in changes])
        named = zip(changes, sightings, strict=True)
        return [
            Truth(name=f"change {row['id']}", event_ids=(event_id(seen.identity, 0),), number=str(row["id"]))
            for row, seen in named
        ], {}
    table = entity.source_entity
    rows = await bank.fetch(ROWS.format(one=table.removesuffix("s"), table=table))
    states = zip(rows, identify([row[3].encode() for row in rows]), strict=True)
    truth = [
        Truth(
            name=f"row {row['id']}, version {row['version']}",
            event_ids=tuple(event_id(seen.identity, number) for number in range(OCCURRENCES)),
        )
        for row, seen in states
    ]
    return truth, {row["id"]: row["version"] for row in rows if row["flaw"] is None}


async def seen_ids(stores: Stores, entities: Entities, entity: str) -> frozenset[str]:
    """Event ids of the entries in Postgres, and of those that were moved to the bucket."""
    prefix = entities.namespace.prefix("seen/")
    seen: set[str] = set()
    async for page in stores.checkpoints.all_seen(entity):
        seen.update(_entries(page.entries))
    after, more = "", True
    while more:
        page_of_keys = await stores.s3.keys_after(f"{prefix}{entity}/", after)
        for key in page_of_keys.keys:
            stored = await stores.s3.read(key)
            assert stored is not None, f"{key} was listed"
            seen.update(_entries(zstandard.decompress(stored.body)))
        more = page_of_keys.more
        after = page_of_keys.keys[-1] if page_of_keys.keys else after
    return frozenset(seen)


def _entries(packed: bytes) -> set[str]:
    return {event_id(identity, occurrence) for _, identity, occurrence, _, _ in unpack(packed)}


async def _raw(stores: Stores, keys: Keys, topic: str) -> tuple[list[RawRow], list[str]]:
    """Every row of the topic's newest generation, from the objects' own lines."""
    claim = await newest_claim(stores.s3, keys, topic)
    if claim is None:
        return [], []
    ledger = Ledger(stores.s3, keys)
    rows: list[RawRow] = []
    problems: list[str] = []
    for chain in await ledger.partitions(topic, claim.generation):
        report = await ledger.verify(chain)
        problems += [f"{chain}: {problem}" for problem in report.problems]
        for link in report.objects:
            rows += [_raw_row(chain, line) for line in (await ledger.rows(link)).splitlines()]
    return rows, problems


class _Line(Struct, frozen=True):
    """The columns of a raw row that the sheet needs. ``id``, ``version`` and ``event_id`` are the bank's own."""

    id: int
    kafka_offset: int = msgspec.field(name="_kafka_offset")
    kafka_partition: int = msgspec.field(name="_kafka_partition")
    tidemark_id: str | None = msgspec.field(name="_event_id")
    rank: int | None = msgspec.field(name="_rank")
    tiebreak: int | None = msgspec.field(name="_tiebreak")
    rev: int = msgspec.field(name="_rev")
    version: int | None = None
    event_id: int | None = None


_decode_line = msgspec.json.Decoder(_Line).decode


def _raw_row(chain: Chain, text: bytes) -> RawRow:
    line = _decode_line(text)
    assert line.kafka_partition == chain.partition, f"{chain} holds a row of partition {line.kafka_partition}"
    order = None
    if line.rank is not None and line.tiebreak is not None and line.tidemark_id is not None:
        order = (line.rank, line.tiebreak, line.rev, line.tidemark_id)
    return RawRow(
        event_id=line.tidemark_id,
        place=(line.kafka_partition, line.kafka_offset),
        order=order,
        key=str(line.id),
        version=line.version,
        number=None if line.event_id is None else str(line.event_id),
    )


def _parked(item: ParkedId) -> ParkedItem:
    place = None
    if item.reason is Reason.UNDECODABLE:
        *_, partition, offset = item.item_id.split("/")
        place = (int(partition), int(offset))
    return ParkedItem(event_id=item.event_id, reason=item.reason.value, maybe_sent=item.maybe_sent, place=place)
