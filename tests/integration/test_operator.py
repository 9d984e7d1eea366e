"""An operator's day, with a live retrier and a live notifier: what is typed, and what comes of it on the topic."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.edges import clock_ms
from shared.entities import Namespace
from shared.events.model import Reason
from shared.kafka.records import parse_headers
from shared.parked.items import ParkedRow
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.store import ParkedSettings, ParkedStore
from tests.fakes.notices import HttpReceiver
from tests.fakes.stale_bench import SECRET, webhook
from tests.integration.operator_place import AMOUNT, FOLDER, NAME, Place, place_on, schema, typed
from tests.integration.topics import read_topic

ROOT = Path(__file__).parents[2]
SERVICES = ("services.dynamo_retrier", "services.stale_notifier")
WITHIN_S = 120.0
EIGHT_DAYS_US = 8 * 86_400_000_000
QUICK = {
    "TIDEMARK_POLL_S": "0.1",
    "TIDEMARK_WAKE_PERIOD_S": "1",
    "TIDEMARK_KAFKA_DELIVERY_DEADLINE_S": "5",
    "TIDEMARK_GRACE_S": "0.5",
    "TIDEMARK_NOTIFIER_POLL_S": "0.1",
    "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "0.5",
    "TIDEMARK_LOG_FORMAT": "json",
    "NOTICE_SECRET": SECRET,
}


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place_on(stack, tmp_path / "entities", monkeypatch) as own:
        yield own


@contextmanager
def services(place: Place, log: Path) -> Iterator[Callable[[], None]]:
    """Give what looks whether they still run. At the end they drain, and end with 0."""
    environ = {**os.environ, **QUICK, "TIDEMARK_CACHE_DIR": str(log.with_name("cache"))}
    with log.open("wb") as output:
        running = {
            name: subprocess.Popen([sys.executable, "-m", name], cwd=ROOT, env=environ, stdout=output, stderr=output)
            for name in SERVICES
        }

    def check() -> None:
        dead = {name: child.returncode for name, child in running.items() if child.poll() is not None}
        assert not dead, f"{dead}:\n{log.read_text()[-3000:]}"

    try:
        yield check
        for child in running.values():
            child.send_signal(signal.SIGTERM)
        ends = {name: child.wait(60) for name, child in running.items()}
        assert set(ends.values()) == {0}, f"{ends}:\n{log.read_text()[-3000:]}"
    finally:
        for child in running.values():
            child.kill()
            child.wait()


class Day:
    """What the operator sees."""

    def __init__(
        self,
        place: Place,
        stack: Stack,
        capsys: pytest.CaptureFixture[str],
        check: Callable[[], None],
        store: ParkedStore,
    ) -> None:
        self.place = place
        self._bootstrap = stack.env["TIDEMARK_KAFKA_BOOTSTRAP"]
        self._type = partial(typed, capsys)
        self._check = check
        self._store = store

    async def types(self, *command: str) -> tuple[int, Any]:
        return await asyncio.to_thread(self._type, *command)

    async def rows(self) -> dict[str, Row]:
        """By the table itself: the index is behind."""
        found = [await self._store.transitions.look(row) for row in await self._listed()]
        return {row.item_id: row for row in found if row is not None}

    async def _listed(self) -> list[ParkedRow]:
        wanted = ParkedFilter(entities=("things",))
        return [row async for page in self._store.streams.rows(wanted) for row in page]

    async def parked(self) -> set[str]:
        return {found.item_id for found in await self._store.scan_ids()}

    async def on_topic(self) -> list[ConsumerRecord]:
        return await read_topic(self._bootstrap, f"{self.place.namespace}.cdc.things")

    async def sees(self, claim: Callable[[], Awaitable[bool]]) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while not await claim():
            self._check()
            assert time.monotonic() < deadline_s, "it did not come about in time"
            await asyncio.sleep(0.2)

    async def sees_published(self, *events: ParkedEvent, rev: int | None = None) -> None:
        """Each on the topic, once, as it was first seen; and gone from the table."""
        wanted = {event.event_id: event for event in events}

        async def are_gone() -> bool:
            return not wanted.keys() & await self.parked()

        await self.sees(are_gone)
        found = [(record, parse_headers(record.headers)) for record in await self.on_topic()]
        ours = [(record, said) for record, said in found if said.event_id in wanted]
        assert Counter(said.event_id for _, said in ours) == Counter(wanted.keys())
        for record, said in ours:
            event = wanted[said.event_id or ""]
            assert (record.key, said.rank, said.tiebreak) == ((event.key or "").encode(), event.rank, event.tiebreak)
            assert said.rev == (rev or 0)


async def test_an_operators_day(place: Place, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now_us = clock_ms() * 1000
    mended = place.refused(3, reason=Reason.HOSTILE, amount=1, at_us=now_us)  # refused by a bug of ours, say
    (typo, other) = place.refused(2, first=10, amount="12.50", at_us=now_us)
    late = place.refused(2, first=20, amount=1, name="Ada", at_us=now_us - EIGHT_DAYS_US)
    async with HttpReceiver() as receiver, AsyncExitStack() as resources:
        folder = FOLDER.replace('{contact: "#ledger"}', f"{{channels: [{webhook(receiver)}]}}")
        (place.folder / "bank.yaml").write_text(folder)
        assert await asyncio.to_thread(main, ["bootstrap"]) == 0
        await asyncio.to_thread(place.park, [*mended, typo, other, *late])
        settings = ParkedSettings(bucket=f"{place.namespace}-parked").within(Namespace(place.namespace))
        store = await ParkedStore.open(settings, resources)
        with services(place, tmp_path / "log") as check:
            day = Day(place, stack, capsys, check, store)
            await _looks_holds_and_redrives(day, mended)
            await _edits(day, typo, tmp_path / "new.json")
            notice = await _is_told(receiver, day)
            await _redrives_from_the_archive(day, notice, late)
            left = await day.rows()
            assert {row.event.event_id: row.state for row in left.values()} == {other.event_id: State.HELD}
    await _has_left_a_trail(day)


async def _looks_holds_and_redrives(day: Day, events: list[ParkedEvent]) -> None:
    groups = (await day.types("groups"))[1]["groups"]
    (ours,) = [group for group in groups if group["reason"] == "hostile"]
    group = ("--group", ours["group"])
    listed = (await day.types("list", *group))[1]["events"]
    shown = (await day.types("show", listed[0]["item_id"]))[1]["events"][0]
    tried = (await day.types("redrive", *group, "--dry-run"))[1]["entities"][0]

    assert ours["events"] == 3
    assert [event["item_id"] for event in listed] == [event.event_id for event in events]
    assert (shown["event_id"], shown["group"], shown["state"]) == (events[0].event_id, ours["group"], "HELD")
    assert (tried["parked"], tried["passing"], tried["version"]) == (3, 3, 1)

    assert (await day.types("hold", *group, "--for", "2h", "--why", "the ledger is being closed"))[1]["counts"] == {
        "held": 3
    }
    rows = await day.rows()
    assert all(7_000_000 < rows[event.event_id].due_ms - clock_ms() <= 7_200_000 for event in events)
    assert await day.on_topic() == []

    code, done = await day.types("redrive", *group, "--why", "the ledger is open again")
    assert (code, done["counts"]) == (0, {"woken": 3})
    await day.sees_published(*events)


async def _edits(day: Day, event: ParkedEvent, file: Path) -> None:
    await asyncio.to_thread(file.write_bytes, event.raw.replace(b'"12.50"', b"1250"))
    with pytest.raises(SystemExit) as refused:
        await day.types("edit", event.event_id, "--file", str(file))
    assert refused.value.code == 2, "it asks why"

    code, said = await day.types("edit", event.event_id, "--file", str(file), "--why", "in cents, the bank says")
    assert (code, said["rev"]) == (0, 1)
    await day.sees_published(event, rev=1)


async def _is_told(receiver: HttpReceiver, day: Day) -> dict[str, Any]:
    """Their time was over when they were parked: the retrier gives them up, the notifier archives and tells."""

    async def has_come() -> bool:
        return bool(receiver.posted)

    await day.sees(has_come)
    notice: dict[str, Any] = json.loads(receiver.posted[0].body)["data"]
    assert (notice["kind"], notice["path"], notice["count"]) == ("new", "/name", 2)
    return notice


async def _redrives_from_the_archive(day: Day, notice: dict[str, Any], events: list[ParkedEvent]) -> None:
    async def are_archived() -> bool:
        return not {event.event_id for event in events} & await day.parked()

    await day.sees(are_archived)
    assert (await day.types("list", "--group", notice["group"]))[1]["events"] == []
    await asyncio.to_thread(day.place.register, schema(AMOUNT, NAME))
    parked_on = time.strftime("%Y-%m-%d", time.gmtime(events[0].at_us / 1_000_000))
    archived = ("--from-archive", "--day", parked_on, "--entity", "things")
    tried = (await day.types("redrive", *archived, "--dry-run"))[1]["entities"][0]
    assert (tried["parked"], tried["passing"], tried["version"]) == (2, 2, 2)

    code, done = await day.types("redrive", *archived, "--why", "version 2 has the name")
    assert (code, done["counts"]) == (0, {"woken": 2})
    await day.sees_published(*events)


async def _has_left_a_trail(day: Day) -> None:
    entries = (await day.types("audit"))[1]["entries"]

    told = [(entry["action"], entry["why"], entry["counts"], entry["outcome"]) for entry in reversed(entries)]
    assert told == [
        ("hold", "the ledger is being closed", {"held": 3}, "done"),
        ("redrive", "the ledger is open again", {"woken": 3}, "done"),
        ("edit", "in cents, the bank says", {"edited": 1}, "done"),
        ("redrive", "version 2 has the name", {"woken": 2}, "done"),
    ]
    assert all("@" in entry["who"] and entry["at"] <= entry["ended"] for entry in entries)
