"""Raw objects leave only when all of an entity's tables have passed them."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from arro3.core import Array, DataType, Table
from deltalake import CommitProperties, write_deltalake

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.raw_expire import run
from shared.entities import load_entities
from shared.lake.layout import Lake
from shared.lake.positions import Note, encode_note
from shared.lake.reader import LakeTable
from shared.raw.generation import TopicLife, settle
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject
from tests.fakes.object_store import MemoryStore

CHAIN, OTHER = Chain("cdc.things", 1, 0), Chain("cdc.things", 1, 1)
KEYS = Keys("")
SCHEMA = """{"type": "record", "name": "thing", "fields": [
    {"name": "id", "type": "long"}, {"name": "at", "type": "string"}]}"""
FOLDER = """
entities:
  things: {source: bank, key: id, updated_at: at, schema: things.avsc, owner: ledger, delta: {history: HISTORY}}
sources: {bank: {url: "https://bank.example/cdc"}}
owners: {ledger: {contact: "#ledger"}}
"""
STEP = 10
LINKS = 8


class World:
    """What the command needs of its edges; tables lie in a folder."""

    def __init__(self, folder: Path, *, history: bool) -> None:
        (folder / "things.avsc").write_text(SCHEMA)
        (folder / "bank.yaml").write_text(FOLDER.replace("HISTORY", str(history).lower()))
        self.entities = load_entities(str(folder), "", {})
        self.namespace = self
        self.store = MemoryStore()
        self.lake = Lake(f"file://{folder}/lake")

    def prefix(self, _of: str) -> str:
        return ""

    async def raw_store(self) -> MemoryStore:
        return self.store

    def lake_table(self, uri: str) -> LakeTable | None:
        return LakeTable.open(uri, {})

    async def fill(self) -> None:
        await settle(self.store, KEYS, CHAIN.topic, TopicLife("cluster", "first"), "me")
        ledger = Ledger(self.store, KEYS)
        for chain in (CHAIN, OTHER):
            for start in range(0, LINKS * STEP, STEP):
                await ledger.write(
                    RawObject(chain=chain, start=start, end=start + STEP - 1, count=STEP, last_ms=1, sha256="x"), b""
                )

    def load(self, uri: str, first: int, second: int = LINKS * STEP) -> None:
        note = encode_note(Note(-1, {}, {CHAIN: first, OTHER: second}, replaces=True))
        Path(uri.removeprefix("file://")).mkdir(parents=True)
        write_deltalake(
            uri,
            Table.from_pydict({"id": Array([1], DataType.int64())}),
            commit_properties=CommitProperties(custom_metadata={"userMetadata": note}),
        )

    async def expire(self, *, unloaded: bool = False) -> Outcome:
        await self.fill()
        return await run(cast(Edges, self), Namespace(entity="things", before=10**15, unloaded=unloaded, dry_run=False))


@pytest.fixture
def world(tmp_path: Path) -> Callable[[bool], World]:
    return lambda history: World(tmp_path, history=history)


def floors(outcome: Outcome) -> list[int]:
    return [one["floor"] for one in outcome.document["chains"]]


async def test_what_the_table_has_leaves(world: Callable[[bool], World]) -> None:
    one = world(False)
    one.load(one.lake.table("things"), 80)

    outcome = await one.expire()

    assert (outcome.exit_code, floors(outcome)) == (OK, [70, 70])


async def test_without_a_table_nothing_leaves_whatever_a_refresh_has(world: Callable[[bool], World]) -> None:
    one = world(False)
    one.load(one.lake.refresh("things"), 80)

    assert floors(await one.expire()) == [0, 0]


async def test_what_the_history_has_not_passed_stays(world: Callable[[bool], World]) -> None:
    one = world(True)
    one.load(one.lake.table("things"), 80, 40)
    one.load(one.lake.history("things"), 30)

    outcome = await one.expire()

    assert (outcome.exit_code, floors(outcome)) == (FINDING, [30, 40])
    assert "its history" in outcome.lines[-1]


async def test_a_history_that_is_not_there_yet_has_passed_nothing(world: Callable[[bool], World]) -> None:
    one = world(True)
    one.load(one.lake.table("things"), 80)

    assert floors(await one.expire()) == [0, 0]


async def test_a_history_that_is_not_kept_any_more_holds_nothing_back(world: Callable[[bool], World]) -> None:
    one = world(False)
    one.load(one.lake.table("things"), 80)
    one.load(one.lake.history("things"), 30)

    assert floors(await one.expire()) == [70, 70]


async def test_what_a_full_refresh_under_way_has_not_read_stays_unless_it_is_given_up(
    world: Callable[[bool], World],
) -> None:
    one = world(False)
    one.load(one.lake.table("things"), 80)
    one.load(one.lake.refresh("things"), 20)

    outcome = await one.expire()
    assert (outcome.exit_code, floors(outcome)) == (FINDING, [20, 70])

    outcome = await one.expire(unloaded=True)
    assert (outcome.exit_code, floors(outcome)) == (OK, [70, 70])


async def test_a_full_refresh_that_has_begun_with_its_history_has_no_table_yet(world: Callable[[bool], World]) -> None:
    one = world(True)
    one.load(one.lake.table("things"), 80)
    one.load(one.lake.history("things"), 80)
    one.load(f"{one.lake.refresh('things')}_history", 20)

    assert floors(await one.expire()) == [0, 0]
