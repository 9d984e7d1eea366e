"""Poller and sink are killed again and again while the bank is busy, and Kafka once: the books add up all the same."""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

import pytest

from deploy.demo.books import seen_ids
from deploy.demo.demo import Demo, Options
from deploy.demo.progress import Screen
from deploy.local.stack import Stack
from shared.kafka.records import parse_headers
from tests.integration.topics import read_topic

KILLS = 10 if os.environ.get("TIDEMARK_TEST_FULL") else 5


class KilledDemo(Demo):
    """The demo, with its services killed at random moments under load, and its books opened after each kill."""

    checks = 0
    poller_env: Mapping[str, str] = {"TIDEMARK_LEASE_S": "2"}
    stale_after_s = 7 * 86_400.0

    async def trouble(self) -> None:
        for number in range(KILLS):
            for name in ("poller", "sink"):
                await asyncio.sleep(random.uniform(0.2, 1.5))  # the moment is what is random here
                await asyncio.to_thread(self.stack.kill, name)
                if name == "poller":
                    await self._cursor_is_not_ahead()
                await asyncio.to_thread(self.stack.start, name)
            if number == KILLS // 2:
                await self.kafka_outage()

    async def _cursor_is_not_ahead(self) -> None:
        """With the poller dead: what Postgres says was settled is on the topic or parked, every single event."""
        async with AsyncExitStack() as resources:
            stores = await self.open_stores(resources)
            for entity in self.entities.entities.values():
                settled = await seen_ids(stores, self.entities, entity.name)
                parked = {item.event_id for item in await stores.parked.scan_ids()}
                records = await read_topic(self.stack.env["TIDEMARK_KAFKA_BOOTSTRAP"], entity.topic)
                sent = {parse_headers(record.headers).event_id for record in records}
                assert settled <= sent | parked, f"{entity.name}: {len(settled - sent - parked)} events are nowhere"
                self.checks += len(settled)


@pytest.mark.timeout(900)
async def test_the_balance_adds_up_over_kills_and_a_broker_outage() -> None:
    options = Options(
        seconds=KILLS * 9, writers=4, rate=60, manner="both", plain=True, keep=False, name=f"kills-{os.getpid()}"
    )
    screen = Screen(plain=True)
    with Stack(options.name, report=screen.say) as stack:
        demo = KilledDemo(options, stack, screen, time.monotonic())

        assert await demo.run() == 0

    assert demo.checks > 0
