"""The notifier on a real DynamoDB and a real bucket: killed, doubled, with channels down; and its promise holds."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared.events.model import Reason
from shared.parked.evidence_audit import verify
from tests.fakes.http_source import Reply
from tests.fakes.notices import HttpReceiver
from tests.fakes.stale_bench import CANARY, SECRET, StaleBench, stale_bench, stale_event, webhook, write_entities

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
KILLS = 100 if FULL else 10
WITHIN_S = 60.0

QUICK = {
    "TIDEMARK_NOTIFIER_LEASE_S": "2",
    "TIDEMARK_NOTIFIER_POLL_S": "0.1",
    "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "0.5",
    "TIDEMARK_NOTIFIER_LOOK_S": "0.5",
    "TIDEMARK_NOTIFIER_SETTLE_S": "0.5",
    "TIDEMARK_NOTIFIER_REFRESH_S": "1",
    "TIDEMARK_LOG_FORMAT": "json",
    "NOTICE_SECRET": SECRET,
}


@pytest.fixture
async def bench(stack: Any) -> AsyncIterator[StaleBench]:
    async with stale_bench() as made:
        yield made


class Notifiers:
    """Child processes of one test."""

    def __init__(self, bench: StaleBench, entities: Path, log: Path, **settings: str) -> None:
        self._environ = {
            **os.environ,
            **QUICK,
            "TIDEMARK_ENTITIES_DIR": str(entities),
            "TIDEMARK_PARKED_TABLE": bench.table,
            "TIDEMARK_PARKED_BUCKET": bench.archive_bucket,
            "TIDEMARK_ARCHIVE_BUCKET": bench.archive_bucket,
            **settings,
        }
        self._log = log
        self._children: list[asyncio.subprocess.Process] = []

    async def start(self) -> asyncio.subprocess.Process:
        with self._log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.stale_notifier", env=self._environ, stdout=output, stderr=output
            )
        self._children.append(child)
        return child

    async def until(
        self, claim: Callable[[], Awaitable[bool]], within_s: float = WITHIN_S, pause_s: float = 0.1
    ) -> None:
        deadline_s = time.monotonic() + within_s
        while not await claim():
            dead = [child.returncode for child in self._children if child.returncode not in (None, -signal.SIGKILL)]
            assert not dead, f"a notifier has ended with {dead}:\n{self._log.read_text()[-3000:]}"
            assert time.monotonic() < deadline_s, f"it did not come about in time:\n{self._log.read_text()[-3000:]}"
            await asyncio.sleep(pause_s)

    async def __aenter__(self) -> "Notifiers":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]


async def whole(bench: StaleBench, ids: set[str]) -> dict[str, Any]:
    """The conservation law over the table and the archive; the rows that are left, by event id."""
    left = {row.event.event_id: row for row in await bench.rows()}
    archived = await bench.archived_ids()
    assert ids <= left.keys() | archived
    for row in left.values():
        assert not row.ntf or row.arch_sha is not None
        assert row.arch_sha is None or row.event.event_id in archived
    return left


def all_told(bench: StaleBench) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return all(row.ntf for row in await bench.rows())

    return told


def none_left(bench: StaleBench) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        return not await bench.rows()

    return empty


def notices(receiver: HttpReceiver) -> list[dict[str, Any]]:
    return [json.loads(posted.body) for posted in receiver.posted]


def distinct(receiver: HttpReceiver) -> Counter[str]:
    """By webhook-id: what a receiver of Standard Webhooks takes for one message."""
    return Counter(posted.headers["webhook-id"] for posted in receiver.posted)


async def test_2000_equal_stale_events_make_one_notice(bench: StaleBench, tmp_path: Path) -> None:
    events = [stale_event(number) for number in range(2_000)]
    await bench.park_stale(events)
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        settings = {"TIDEMARK_NOTIFIER_LEASE_S": "30", "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "2"}
        async with Notifiers(bench, entities, tmp_path / "log", **settings) as notifiers:
            started_s = time.monotonic()
            await notifiers.start()
            await notifiers.until(all_told(bench), 100, pause_s=1)
            print(f"2000 stale events archived and told of in {time.monotonic() - started_s:.1f} s")

    left = await whole(bench, {event.event_id for event in events})
    assert len(left) == 2_000, "in their grace"
    assert len({row.ntf for row in left.values()}) == 1, "one receipt for all"
    [notice] = notices(receiver)
    assert notice["count"] == 2_000
    report = await verify(bench.archive, time.time_ns() // 1_000_000)
    assert (report.problem_count, report.waiting, report.objects) == (0, 0, 2_000)
    everything = (tmp_path / "log").read_text() + "".join(posted.body.decode() for posted in receiver.posted)
    assert CANARY not in everything
    assert "north" in everything, "of a field that the contract marks public"
