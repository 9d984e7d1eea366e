"""An operator's desk for tests: a namespace, a table, buckets and subjects of their own, with events parked in it."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.edges import Edges
from shared.aws import open_client
from shared.events.contract import Contract, compile_contract
from shared.events.identity import Identifier, event_id, seq
from shared.events.model import Event, EventRules, Reason, RejectedEvent
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, parked_from_event
from shared.parked.queries import ParkedFilter
from shared.parked.store import ParkedStore

NOW_US = 1_793_709_300_000_000
FOLDER = """
entities:
  things: {source: bank, key: id, updated_at: at, schema: things.avsc, owner: ledger}
sources: {bank: {url: "http://127.0.0.1:1/cdc"}}
owners: {ledger: {contact: "#ledger"}}
"""
ID, AT = '{"name": "id", "type": "string"}', '{"name": "at", "type": "string"}'
AMOUNT, NAME = '{"name": "amount", "type": "long"}', '{"name": "name", "type": ["null", "string"], "default": null}'
RULES = EventRules(entity="things", key=("id",), updated_at="at")

_T = TypeVar("_T")


def schema(*fields: str) -> str:
    return f'{{"type": "record", "name": "thing", "fields": [{", ".join((ID, AT, *fields))}]}}'


class Place:
    """A namespace, a table, buckets and subjects that no other test uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = f"op{uuid4().hex[:10]}"
        (folder / "bank.yaml").write_text(FOLDER)
        (folder / "things.avsc").write_text(schema(AMOUNT))
        self.contract = self.contract_of(schema(AMOUNT), 1)

    def contract_of(self, text: str, schema_id: int) -> Contract:
        return compile_contract(RULES, text, f"{self.namespace}.cdc.things-value", schema_id)

    def do(self, act: Callable[[Edges], Awaitable[_T]]) -> _T:
        async def inside() -> _T:
            async with AsyncExitStack() as stack:
                return await act(Edges(os.environ, stack, str(self.folder), self.namespace))

        return asyncio.run(inside())

    def register(self, text: str) -> None:
        async def act(edges: Edges) -> None:
            registry = await edges.registry()
            await registry.register(f"{self.namespace}.cdc.things-value", text)

        self.do(act)

    def refused(
        self, count: int, *, first: int = 0, reason: Reason = Reason.INVALID, at_us: int = NOW_US, **members: Any
    ) -> list[ParkedEvent]:
        """As the poller parks them at ``at_us``."""
        found = []
        for number in range(first, first + count):
            raw = json.dumps({"id": f"k{number}", "at": "2026-11-03T12:34:56Z", **members}).encode()
            (sighting,) = Identifier(RULES).identify([raw])
            (verdict,) = self.contract.encode([sighting])
            refusal = RejectedEvent(reason, "", "down")
            if reason is Reason.INVALID and isinstance(verdict, RejectedEvent):
                refusal = verdict
            event = Event(sighting, 0, event_id(sighting.identity, 0), NOW_US, *seq(RULES, sighting, NOW_US + number))
            found.append(
                parked_from_event(
                    event,
                    refusal,
                    entity="things",
                    topic=f"{self.namespace}.cdc.things",
                    subject=self.contract.subject,
                    fingerprint=self.contract.fingerprint,
                    owner="ledger",
                    at_us=at_us + number,
                )
            )
        return found

    def park(self, events: Sequence[ParkedEvent]) -> None:
        async def act(edges: Edges) -> None:
            await (await edges.parked()).park(events)

        self.do(act)

    def rows(self) -> dict[str, Row]:
        async def act(edges: Edges) -> dict[str, Row]:
            store = await edges.parked()
            found = {}
            async for page in store.streams.rows(ParkedFilter(entities=("things",))):
                for row in page:
                    seen = await store.transitions.look(row)
                    if seen is not None:
                        found[seen.item_id] = seen
            return found

        return self.do(act)

    def work(self, act: Callable[[ParkedStore, Row], Awaitable[None]]) -> None:
        """On all rows, as a retrier or notifier would."""

        async def inside(edges: Edges) -> None:
            store = await edges.parked()
            async for page in store.streams.rows(ParkedFilter(entities=("things",))):
                for row in page:
                    seen = await store.transitions.look(row)
                    if seen is not None:
                        await act(store, seen)

        self.do(inside)


@contextmanager
def place_on(stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The environment names it meanwhile."""
    folder.mkdir()
    own = Place(folder)
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(own.folder))
    monkeypatch.setenv("TIDEMARK_NAMESPACE", own.namespace)
    monkeypatch.setenv("TIDEMARK_PARKED_BUCKET", f"{own.namespace}-parked")
    monkeypatch.setenv("TIDEMARK_ARCHIVE_BUCKET", f"{own.namespace}-archive")

    async def make(edges: Edges) -> None:
        await (await edges.parked()).ensure_table()
        await (await edges.parked()).ensure_bucket()
        await (await edges.archive()).ensure_bucket()

    own.do(make)
    yield own
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", stack.env["AWS_ENDPOINT_URL_DYNAMODB"])
    own.do(remove_table)


async def remove_table(edges: Edges) -> None:
    async with AsyncExitStack() as stack:
        await (await open_client("dynamodb", stack)).delete_table(TableName=edges.parked_settings.table)


def typed(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, Any]:
    """``tidemark parked …``: its exit code and its document."""
    capsys.readouterr()
    code = main(["parked", *command, "--json"])
    return code, json.loads(capsys.readouterr().out)
