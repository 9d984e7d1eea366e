"""Holes are closed from Kafka only with records that are this generation's, and that are all still there."""

from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import Struct

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.raw_mend import run
from shared.entities import load_entities
from shared.kafka.admin import Watermarks
from shared.kafka.metadata import TopicIdentity
from shared.raw.generation import TopicLife, open_next
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject
from tests.fakes.object_store import MemoryStore

TOPIC = "cdc.things"
KEYS = Keys("")
LIFE, OTHER = TopicLife("cluster", "first"), TopicLife("cluster", "second")
SCHEMA = """{"type": "record", "name": "thing", "fields": [
    {"name": "id", "type": "long"}, {"name": "at", "type": "string"}]}"""
FOLDER = """
entities:
  things: {source: bank, key: id, updated_at: at, schema: things.avsc, owner: ledger}
sources: {bank: {url: "https://bank.example/cdc"}}
owners: {ledger: {contact: "#ledger"}}
"""
STEP = 10
PAGE = 4


class Tombstone(Struct):
    offset: int
    timestamp: int = 1
    key: bytes | None = b"7"
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


class World:
    """What the command needs of its edges. ``begins``: Kafka's first offset at each asking, the last one from then
    on."""

    def __init__(self, folder: Path) -> None:
        (folder / "things.avsc").write_text(SCHEMA)
        (folder / "bank.yaml").write_text(FOLDER)
        self.entities = load_entities(str(folder), "", {})
        self.namespace = self
        self.store = MemoryStore()
        self.ledger = Ledger(self.store, KEYS)
        self.life = LIFE
        self.begins = [0]
        self.end = 100

    def prefix(self, _of: str) -> str:
        return ""

    async def raw_store(self) -> MemoryStore:
        return self.store

    async def kafka(self) -> "World":
        return self

    async def schemas(self) -> None:
        """Tombstones have none."""

    def reread(self) -> "World":
        return self

    async def identity(self, _topic: str) -> TopicIdentity:
        return TopicIdentity(str(self.life.cluster_id), str(self.life.topic_id), 1)

    async def watermarks(self, _topic: str) -> dict[int, Watermarks]:
        begin = self.begins.pop(0) if len(self.begins) > 1 else self.begins[0]
        return {0: Watermarks(begin, self.end)}

    async def records(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]:
        for first in range(max(start, self.begins[0]), end, PAGE):
            yield [Tombstone(offset) for offset in range(first, min(first + PAGE, end))]

    async def generation(self, number: int, life: TopicLife, starts: Sequence[int]) -> Chain:
        assert await open_next(self.store, KEYS, TOPIC, life, "me", f"number {number}") == number
        chain = Chain(TOPIC, number, 0)
        for start in starts:
            await self.ledger.write(RawObject(chain=chain, start=start, end=start + STEP - 1, count=0, sha256="x"), b"")
        return chain

    async def mend(self, *, lost: bool = False) -> Outcome:
        return await run(cast(Edges, self), Namespace(entity="things", lost=lost, dry_run=False))

    async def links(self, chain: Chain) -> list[tuple[int, int, str]]:
        return [(link.start, link.end, link.kind) async for link in self.ledger.objects(chain)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fates(outcome: Outcome) -> list[tuple[int, int, str, int]]:
    return [(one["start"], one["end"], one["fate"], one["rows"]) for one in outcome.document["holes"]]


def whys(outcome: Outcome) -> str:
    return msgspec.json.encode([one["why"] for one in outcome.document["holes"]]).decode()


async def test_a_hole_that_kafka_has_is_closed_page_by_page(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])

    outcome = await world.mend()

    assert (outcome.exit_code, fates(outcome)) == (OK, [(10, 19, "mended", 10)])
    closed = [(10, 13, "records"), (14, 17, "records"), (18, 19, "records")]
    assert await world.links(chain) == [(0, 9, "records"), *closed, (20, 29, "records")]
    assert (await world.mend()).lines == ["things: no chain has a hole"]


async def test_what_a_topic_made_anew_holds_is_not_written_as_the_old_ones(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])
    world.life = OTHER

    outcome = await world.mend()

    assert (outcome.exit_code, fates(outcome)) == (FINDING, [(10, 19, "Kafka no longer has it", 0)])
    assert "belongs to topic id first in cluster cluster, but Kafka now has second in cluster" in whys(outcome)
    assert "--lost" in whys(outcome)
    assert len(await world.links(chain)) == 2

    assert fates(await world.mend(lost=True)) == [(10, 19, "marked as lost", 0)]
    assert await world.links(chain) == [(0, 9, "records"), (10, 19, "gap"), (20, 29, "records")]


async def test_a_topic_made_anew_after_its_records_were_read_is_noticed_before_they_are_written(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])
    read = world.records

    async def then_made_anew(topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]:
        async for page in read(topic, partition, start, end):
            yield page
        world.life = OTHER

    world.records = then_made_anew  # type: ignore[method-assign]

    outcome = await world.mend()

    assert fates(outcome) == [(10, 17, "mended", 8), (18, 19, "Kafka no longer has it", 0)]
    assert [start for start, _end, _kind in await world.links(chain)] == [0, 10, 14, 20]


async def test_nothing_is_compared_where_the_claim_names_no_life(world: World) -> None:
    await world.generation(1, TopicLife(None, None), [0, 20])

    assert (await world.mend()).exit_code == OK


async def test_what_retention_takes_meanwhile_is_not_written_as_empty(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])
    world.begins = [0, 100]

    outcome = await world.mend()

    assert (outcome.exit_code, fates(outcome)) == (FINDING, [(10, 19, "Kafka no longer has it", 0)])
    assert "Kafka's log begins at 100" in whys(outcome)
    assert len(await world.links(chain)) == 2


async def test_retention_is_asked_for_before_each_object_and_the_rest_can_be_given_up(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])
    world.begins = [0, 10, 16]

    outcome = await world.mend()

    assert (outcome.exit_code, fates(outcome)) == (
        FINDING,
        [(10, 13, "mended", 4), (14, 19, "Kafka no longer has it", 0)],
    )
    assert fates(await world.mend(lost=True)) == [(14, 19, "marked as lost", 0)]
    assert await world.links(chain) == [
        (0, 9, "records"),
        (10, 13, "records"),
        (14, 19, "gap"),
        (20, 29, "records"),
    ]


async def test_a_hole_beyond_the_end_of_a_log_that_was_cut_back_is_not_read(world: World) -> None:
    chain = await world.generation(1, LIFE, [0, 20])
    world.end = 19

    outcome = await world.mend()

    assert (outcome.exit_code, fates(outcome)) == (FINDING, [(10, 19, "Kafka no longer has it", 0)])
    assert "Kafka's log ends at 19" in whys(outcome)
    assert len(await world.links(chain)) == 2


async def test_holes_of_older_generations_are_found_and_never_filled_from_kafka(world: World) -> None:
    older = await world.generation(1, LIFE, [0, 20])
    newest = await world.generation(2, OTHER, [0, 20])
    world.life = OTHER

    outcome = await world.mend()

    assert outcome.exit_code == FINDING
    assert fates(outcome) == [(10, 19, "Kafka no longer has it", 0), (10, 19, "mended", 10)]
    assert [one["chain"] for one in outcome.document["holes"]] == [str(older), str(newest)]
    assert "the topic is in generation 2 by now" in whys(outcome)

    assert (await world.mend(lost=True)).exit_code == OK
    assert await world.links(older) == [(0, 9, "records"), (10, 19, "gap"), (20, 29, "records")]
