"""From a refusal to the wake that a registered schema or a repair rule causes, on a real table and a real registry."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from shared.entities import Entity, Owner, Source
from shared.events.contract import compile_contract
from shared.events.model import EventRules, Reason, RejectedEvent
from shared.events.repair import Number, RepairRule
from shared.parked import streaming
from shared.parked.analysis import NotYet, Retriable
from shared.parked.dry_run import dry_run
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.wake import Waker, WakeReport
from shared.producer.analysts import Analysts
from shared.registry.cache import SchemaCache
from shared.registry.client import Registry
from shared.registry.settings import RegistrySettings
from tests.fakes.parked_bench import AT_MS, ParkedBench, parked_bench
from tests.unit.analysis_events import parked, schema, text

AMOUNT = ("amount", "long")
NAME = ("name", ["null", "string"], None)
V1, V2 = schema(AMOUNT), schema(AMOUNT, NAME)
LEASE_S = 60.0


@pytest.fixture(scope="module")
def bench(stack: Any) -> Iterator[ParkedBench]:
    with parked_bench(with_bucket=True) as made:
        yield made


class Story:
    """One entity of its own: its subject, its rows in the table, the poller that parks, the retrier that tries."""

    def __init__(self, bench: ParkedBench, registry: Registry, folder: Path, repairs: tuple[RepairRule, ...]) -> None:
        self.name = f"w{uuid4().hex[:10]}"
        self.bench = bench
        self.registry = registry
        self.entity = Entity(
            name=self.name,
            source=Source(name="bank", url="https://bank.example/cdc"),
            rules=EventRules(entity=self.name, key=("id",), updated_at="at", op="op"),
            owner=Owner(name="ledger"),
            topic=f"cdc.{self.name}",
            schema_subject=f"cdc.{self.name}-value",
            schema_file=None,
            schema_text=None,
            repairs=repairs,
        )
        self.now_us = AT_MS * 1000
        self.analysts = Analysts(
            {self.name: self.entity}, SchemaCache(registry, folder, scope=self.name), refresh_s=0.0
        )
        self.waker = Waker(self.analysts, bench.store.streams, bench.transitions, clock_us=lambda: self.now_us)
        self._kept: list[ParkedEvent] = []

    async def refuse(self, count: int, **members: Any) -> list[ParkedEvent]:
        """Park as the poller does: with the refusal, and the fingerprint of the contract that refused."""
        newest = (await self.registry.versions(self.entity.schema_subject))[-1]
        contract = compile_contract(self.entity.rules, newest.schema, newest.subject, newest.schema_id)
        events = []
        for _ in range(count):
            raw = text(id=uuid4().hex, **members)
            event = parked(raw, rules=self.entity.rules, fingerprint=contract.fingerprint, at_us=self.now_us)
            found = (await self.analysts.current(self.name)).analyse(event, self.now_us)
            path = found.path if isinstance(found, NotYet) else "/amount"
            events.append(replace(event, path=path, subject=contract.subject, updated_us=self.now_us))
        await self.bench.store.park(events)
        return events

    async def wakes(self) -> WakeReport:
        report = await self.waker.pass_over(self.name)
        assert report is not None
        return report

    async def states(self) -> dict[State, int]:
        found: dict[State, int] = {}
        async for page in self.bench.store.streams.rows(ParkedFilter(entities=(self.name,))):
            for row in page:
                found[row.state] = found.get(row.state, 0) + 1
        return found

    async def retry_woken(self) -> list[Retriable]:
        """As the retrier does, but for Kafka."""
        analyst = await self.analysts.current(self.name)
        published = []
        self.bench.clock.advance(60)
        wanted = ParkedFilter(entities=(self.name,), state=State.PARKED)
        async for page in self.bench.store.streams.rows(wanted):
            for row in page:
                seen = await self.bench.transitions.look(row)
                assert seen is not None
                claimed = await self.bench.transitions.claim(seen, "test", LEASE_S)
                assert claimed is not None
                found = analyst.analyse(claimed.event, self.now_us)
                if isinstance(found, Retriable):
                    await self.bench.transitions.published(claimed)
                    published.append(found)
                else:
                    why = RejectedEvent(found.reason, found.path, found.why)
                    due_ms = self.bench.clock.now_ms + 3_600_000
                    await self.bench.transitions.hold(
                        claimed, due_ms, why, reason=found.reason, fingerprint=found.fingerprint
                    )
        return published


async def story(bench: ParkedBench, stack: Any, folder: Path, resources: AsyncExitStack, *repairs: RepairRule) -> Story:
    registry = await Registry.open(RegistrySettings(url=stack.env["TIDEMARK_REGISTRY_URL"]), resources)
    await registry.set_compatibility("BACKWARD")
    made = Story(bench, registry, folder, repairs)
    await registry.register(made.entity.schema_subject, V1)
    return made


def test_a_registered_version_wakes_what_it_accepts_and_nothing_else(
    bench: ParkedBench, stack: Any, tmp_path: Path
) -> None:
    async def tell() -> None:
        async with AsyncExitStack() as resources:
            made = await story(bench, stack, tmp_path, resources)
            await made.refuse(30, amount=5, name="Jo")
            await made.refuse(20, amount="x", name="Jo")
            assert (await made.wakes()).mismatched == 0

            await made.registry.register(made.entity.schema_subject, V2)
            wanted = ParkedFilter(entities=(made.name,))
            analyst = await made.analysts.current(made.name)
            tally = await dry_run(wanted, bench.store.streams, analyst, made.now_us)
            report = await made.wakes()

            assert tally.text() == "of 50 parked, 30 would pass with schema version 2"
            assert (report.mismatched, report.woken, report.left) == (50, 30, 20)
            assert await made.states() == {State.PARKED: 30, State.HELD: 20}
            published = await made.retry_woken()
            assert len({found.key for found in published}) == 30
            assert {json.loads(found.raw)["name"] for found in published} == {"Jo"}
            assert await made.states() == {State.HELD: 20}

    bench.run(tell())


def test_a_repair_rule_wakes_what_the_poller_parks_once(bench: ParkedBench, stack: Any, tmp_path: Path) -> None:
    async def tell() -> None:
        async with AsyncExitStack() as resources:
            made = await story(bench, stack, tmp_path, resources, Number("/amount"))
            await made.refuse(15, amount="5")
            # One sample for both: some pass, so each is tried before it is woken.
            await made.refuse(10, amount="five")

            report = await made.wakes()
            assert (report.woken, report.left) == (15, 10)
            repaired = await made.retry_woken()
            assert {(found.rev, found.applied[0].rule) for found in repaired} == {(1, "number")}

            await made.refuse(5, amount="6")
            made.now_us += 30_000_000
            assert (await made.wakes()).woken == 5

    bench.run(tell())


def test_what_was_tried_in_vain_is_remembered_with_its_contract(bench: ParkedBench, stack: Any, tmp_path: Path) -> None:
    async def tell() -> None:
        async with AsyncExitStack() as resources:
            made = await story(bench, stack, tmp_path, resources)
            (event,) = await made.refuse(1, amount="x", name="Jo")
            await made.registry.register(made.entity.schema_subject, V2)
            place = bench.place(event)
            assert await bench.transitions.wake(place, 1.0, "test")

            assert await made.retry_woken() == []

            row = await bench.transitions.look(place)
            analyst = await made.analysts.current(made.name)
            assert row is not None
            assert (row.state, row.event.reason, row.event.path) == (State.HELD, Reason.INVALID, "/amount")
            assert row.event.fingerprint == analyst.fingerprint
            assert (await made.wakes()).mismatched == 0

    bench.run(tell())


def test_every_row_of_every_shard_is_streamed_once_and_loaded_whole(
    bench: ParkedBench, stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK_RAW_BYTES_MAX", 2_000)

    async def tell() -> None:
        async with AsyncExitStack() as resources:
            made = await story(bench, stack, tmp_path, resources)
            early = await made.refuse(40, amount="x" * 500)
            early += await made.refuse(1, amount=token_hex(4_000))  # lies in the bucket
            made.now_us += 1_000_000
            late = await made.refuse(40, amount="x")
            streams = bench.store.streams

            async def seen(**more: Any) -> list[ParkedEvent | None]:
                wanted = ParkedFilter(entities=(made.name,), **more)
                pages = [page async for page in streams.rows(wanted)]
                rows = [row for page in pages for row in page]
                return [event async for chunk in streams.events(rows) for event in chunk]

            assert sorted(e.raw for e in await seen() if e) == sorted(e.raw for e in [*early, *late])
            assert {e.event_id for e in await seen(since_us=made.now_us) if e} == {e.event_id for e in late}
            assert {e.event_id for e in await seen(until_us=made.now_us) if e} == {e.event_id for e in early}
            gone = bench.place(late[0])
            rows = [row async for page in streams.rows(ParkedFilter(entities=(made.name,))) for row in page]
            await bench.client.delete_item(TableName=bench.table, Key={"pk": {"S": gone.pk}, "sk": {"S": gone.sk}})
            chunks = [chunk async for chunk in streams.events(rows)]
            assert [event for chunk in chunks for event in chunk].count(None) == 1
            assert max(sum(len(event.raw) for event in chunk if event) for chunk in chunks if len(chunk) > 1) <= 2_000
            assert await seen(state=State.STALE) == []
            assert await seen(reasons=(Reason.HOSTILE,)) == []

    bench.run(tell())
