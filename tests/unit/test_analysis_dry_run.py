"""How many would pass: counted without writing, in bounded memory, told as it goes; and where analysts come from."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from shared.entities import Entity, Owner, Source
from shared.events.contract import ContractError
from shared.events.model import Reason
from shared.events.repair import Number
from shared.parked import dry_run as module
from shared.parked.analysis import NotYet
from shared.parked.bodies import Bodies
from shared.parked.calls import Calls, Lanes
from shared.parked.dry_run import OTHER_PATHS, Tally, count_passing, dry_run
from shared.parked.items import Item, body_item, draft_of, meta_item, row_of
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.streaming import ParkedStreams
from shared.parked.wake import NoAnalyst
from shared.producer.analysts import Analysts, candidate
from shared.registry.cache import SchemaCache
from shared.registry.client import RegisteredSchema, RegistryUnavailable, UnknownSubject
from tests.fakes.parked_rows import ParkedRowsInMemory
from tests.unit.analysis_events import NOW_US, RULES, analyst, parked, schema, text

AMOUNT = ("amount", "long")
WANTED = ParkedFilter(entities=("things",), state=State.HELD)


def event(number: int, amount: object) -> ParkedEvent:
    return parked(text(id=f"k{number}", amount=amount))


async def test_the_count_tells_what_passes_what_needs_repair_and_why_the_rest_stays() -> None:
    amounts: list[object] = [1] * 20 + ["2"] * 5 + ["x"] * 3 + [None] * 2
    rows = ParkedRowsInMemory([event(number, amount) for number, amount in enumerate(amounts)])
    made = analyst(AMOUNT, repairs=[Number("/amount")], version=7)
    heard: list[int] = []

    tally = await dry_run(WANTED, rows, made, NOW_US, lambda so_far: heard.append(so_far.parked))

    assert (tally.parked, tally.passing, tally.repaired, tally.gone) == (30, 25, 5, 0)
    assert tally.refused == {(Reason.INVALID, "/amount"): 5}
    assert tally.text() == "of 30 parked, 25 would pass with schema version 7 (5 of them repaired)"
    assert heard == [8, 16, 24, 30]
    assert rows.woken == []


def test_large_counts_are_legible() -> None:
    assert Tally(7, 40_112, 39_870).text() == "of 40,112 parked, 39,870 would pass with schema version 7"
    assert Tally(None, 2, 1).text() == "of 2 parked, 1 would pass with this schema"


async def test_what_leaves_while_we_count_is_not_parked_any_more() -> None:
    events = [event(number, 1) for number in range(3)]
    rows = ParkedRowsInMemory(events)
    rows.gone = {events[1].item_id}

    tally = await dry_run(WANTED, rows, analyst(AMOUNT), NOW_US)

    assert (tally.parked, tally.passing, tally.gone) == (2, 2, 1)


async def test_the_kinds_of_refusal_told_apart_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAUSES_MAX", 2)
    tally = Tally(None)
    for path in ("/a", "/b", "/c", "/d", "/a", "/lines/1/x", "/lines/2/x"):
        tally.count(NotYet(Reason.INVALID, path, "", ""))

    assert tally.refused == {
        (Reason.INVALID, "/a"): 2, (Reason.INVALID, "/b"): 1, (Reason.INVALID, OTHER_PATHS): 4,
    }  # fmt: skip


async def test_any_selection_of_events_can_be_counted() -> None:
    async def chunks() -> AsyncIterator[Sequence[ParkedEvent | None]]:
        yield [event(1, 1), None]
        yield []
        yield [event(2, "x")]

    tally = await count_passing(chunks(), analyst(AMOUNT), NOW_US)

    assert (tally.parked, tally.passing, tally.gone) == (2, 1, 1)


ENTITY = Entity(
    name="things",
    source=Source(name="bank", url="https://bank.example/cdc"),
    rules=RULES,
    owner=Owner(name="ledger"),
    topic="cdc.things",
    schema_subject="things-value",
    schema_file=None,
    schema_text=None,
    repairs=(Number("/amount"),),
)


class RegistryInMemory:
    def __init__(self, *schemas: str) -> None:
        self.schemas = list(schemas)
        self.asked = 0
        self.is_away = False

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        self.asked += 1
        if self.is_away:
            raise RegistryUnavailable("away")
        if not self.schemas:
            raise UnknownSubject(subject)
        return [RegisteredSchema(subject, n + 1, 10 + n, found) for n, found in enumerate(self.schemas)]

    async def schema_by_id(self, schema_id: int) -> str:
        return self.schemas[schema_id - 10]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def analysts(registry: RegistryInMemory, folder: Path, clock: Clock) -> Analysts:
    return Analysts({"things": ENTITY}, SchemaCache(registry, folder, scope="r"), monotonic=clock)


async def test_the_newest_version_is_asked_for_now_and_then_and_compiled_when_it_is_another(tmp_path: Path) -> None:
    registry, clock = RegistryInMemory(schema(AMOUNT)), Clock()
    made = analysts(registry, tmp_path, clock)
    first = await made.current("things")
    assert await made.current("things") is first
    assert registry.asked == 1

    clock.now_s = 31
    assert await made.current("things") is first
    registry.schemas.append(schema(AMOUNT, ("name", ["null", "string"], None)))
    assert (await made.current("things")).version == 1
    clock.now_s = 62
    newer = await made.current("things")

    assert (newer.version, newer.contract.schema_id, registry.asked) == (2, 11, 3)
    assert newer.repairs == ENTITY.repairs


async def test_a_registry_that_is_away_is_stood_in_for_by_the_disk_else_there_is_no_analyst(tmp_path: Path) -> None:
    registry = RegistryInMemory(schema(AMOUNT))
    known = await analysts(registry, tmp_path, Clock()).current("things")
    registry.is_away = True

    assert (await analysts(registry, tmp_path, Clock()).current("things")).fingerprint == known.fingerprint
    with pytest.raises(NoAnalyst, match="things: away"):
        await analysts(registry, tmp_path / "empty", Clock()).current("things")


@pytest.mark.parametrize(
    ("schemas", "entity"), [([], "things"), ([json.dumps({"type": "string"})], "things"), ([schema(AMOUNT)], "others")]
)
async def test_without_a_contract_that_can_be_used_there_is_no_analyst(
    tmp_path: Path, schemas: list[str], entity: str
) -> None:
    with pytest.raises(NoAnalyst):
        await analysts(RegistryInMemory(*schemas), tmp_path, Clock()).current(entity)


async def test_a_schema_can_be_tried_before_it_is_registered() -> None:
    rows = ParkedRowsInMemory([event(1, 1)])

    tally = await dry_run(WANTED, rows, candidate(ENTITY, schema(AMOUNT)), NOW_US)

    assert tally.text() == "of 1 parked, 1 would pass with this schema"
    with pytest.raises(ContractError):
        candidate(replace(ENTITY, rules=replace(RULES, key=("other",))), schema(AMOUNT))


class HalfReading:
    """A DynamoDB that answers each batch in part, and now and then not at all."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = {(item["pk"]["S"], item["sk"]["S"]): item for item in items}
        self.asked: list[int] = []

    async def batch_get_item(self, RequestItems: dict[str, Any]) -> dict[str, Any]:
        ((table, request),) = RequestItems.items()
        keys = request["Keys"]
        self.asked.append(len(keys))
        read = 0 if len(self.asked) % 3 == 2 else (len(keys) + 1) // 2
        found = [self._items.get((key["pk"]["S"], key["sk"]["S"])) for key in keys[:read]]
        left = {table: {"Keys": keys[read:]}} if keys[read:] else {}
        return {"Responses": {table: [item for item in found if item is not None]}, "UnprocessedKeys": left}


async def test_what_a_batch_leaves_unread_is_asked_for_again() -> None:
    drafts = [draft_of(event(number, number), 1, 300_000) for number in range(120)]
    metas = [meta_item(draft) for draft in drafts]
    table = HalfReading([*metas[:-1], *(body_item(draft) for draft in drafts[1:])])
    calls = Calls(table, "parked", Lanes(1))
    streams = ParkedStreams(calls, "parked", Bodies(calls, calls, "parked", "b", budget_s=5, body_bytes_max=300_000))

    found = [each async for chunk in streams.events([row_of(meta) for meta in metas]) for each in chunk]

    assert [each and each.raw for each in found] == [None, *(draft.event.raw for draft in drafts[1:-1]), None]
    assert max(table.asked) == 100
