"""Poller, sink and the stream's driver are killed again and again while the bank is busy, and Kafka once: the books add
up all the same, the tables are equal, and the audit names what is taken away afterwards, and nothing else."""

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

import asyncpg
import pytest

from deploy.demo.books import seen_ids
from deploy.demo.demo import Demo, Options
from deploy.demo.progress import Screen
from deploy.local.environment import environment
from deploy.local.stack import Stack
from services.cli.edges import Edges
from shared.kafka.records import parse_headers
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from tests.integration.topics import read_topic

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
SECONDS = 600 if FULL else 60
KILLS = 40 if FULL else 5
DRIVER_KILLS = 30 if FULL else 2
BETWEEN_S_MAX = 0.6 * SECONDS / KILLS / 2
"""Between a service's start and the next one's kill."""
MERGING_S_MAX = 8.0
"""Into the driver's life: it reads, merges, commits, or waits for more."""


class KilledDemo(Demo):
    """The demo, with its services killed at random moments under load, and its books opened after each kill."""

    checks = 0
    driver_kills = 0
    poller_env: Mapping[str, str] = {"TIDEMARK_LEASE_S": "2"}
    stale_after_s = 7 * 86_400.0

    async def trouble(self) -> None:
        for number in range(KILLS):
            for name in ("poller", "sink"):
                await asyncio.sleep(random.uniform(0.2, BETWEEN_S_MAX))  # the moment is what is random here
                await asyncio.to_thread(self.stack.kill, name)
                if name == "poller":
                    await self._cursor_is_not_ahead()
                await asyncio.to_thread(self.stack.start, name)
            if number == KILLS // 2:
                await self.kafka_outage()

    async def start_stream(self) -> None:
        await super().start_stream()
        for _ in range(DRIVER_KILLS):
            await asyncio.sleep(random.uniform(0.2, MERGING_S_MAX))
            await asyncio.to_thread(self.stack.kill, "stream")
            self.driver_kills += 1
            await asyncio.to_thread(self.stack.start, "stream")

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


class Damage:
    """What is taken away from a lake that stands still, each of an entity of its own."""

    def __init__(self, settings: Mapping[str, str], edges: Edges) -> None:
        self._settings, self._edges = settings, edges

    async def delete_raw_object(self, entity: str) -> str:
        """Neither the first nor the last of the chain; the chain."""
        store = await self._edges.raw_store()
        ledger = Ledger(store, Keys(""))
        chain = Chain(self._edges.entities.entities[entity].topic, 1, 0)
        links = [link async for link in ledger.objects(chain)]
        key = ledger.keys.link(chain, links[len(links) // 2].start)
        await store._client.delete_object(Bucket=self._edges.raw_bucket, Key=key)
        return str(chain)

    async def remove_parked_item(self, entity: str) -> str:
        """Its event id."""
        census = await self._edges.census()
        async for page in census.scan():
            for one in page:
                if one.row.event.entity == entity:
                    key = {"pk": {"S": one.row.pk}, "sk": {"S": one.row.sk}}
                    table = self._edges.parked_settings.table
                    await census._table._client.delete_item(TableName=table, Key=key)
                    return one.row.event.event_id
        raise AssertionError(f"nothing of {entity} is parked")

    async def falsify_seen_page(self, entity: str) -> str:
        """The page's name."""
        connection = await asyncpg.connect(self._settings["TIDEMARK_POSTGRES_DSN"])
        try:
            page = await connection.fetchrow(
                "SELECT seq, entries FROM tidemark.seen_page WHERE entity = $1 ORDER BY seq DESC LIMIT 1", entity
            )
            entries = bytearray(page["entries"])
            entries[12] ^= 1  # the first entry's identity
            await connection.execute(
                "UPDATE tidemark.seen_page SET entries = $1 WHERE entity = $2 AND seq = $3",
                bytes(entries),
                entity,
                page["seq"],
            )
            return f"seen_page {page['seq']} in Postgres"
        finally:
            await connection.close()


@pytest.mark.timeout(1800 if FULL else 900)
async def test_the_balance_adds_up_over_kills_and_a_broker_outage() -> None:
    options = Options(
        seconds=SECONDS, writers=4, rate=60, manner="both", plain=True, keep=False, name=f"kills-{os.getpid()}"
    )
    screen = Screen(plain=True)
    with Stack(options.name, report=screen.say) as stack:
        demo = KilledDemo(options, stack, screen, time.monotonic())

        assert await demo.run() == 0
        await _audit_names_what_is_taken_away(demo)

    assert demo.checks > 0
    assert demo.driver_kills == DRIVER_KILLS


async def _audit_names_what_is_taken_away(demo: KilledDemo) -> None:
    """Each of an entity of its own; and of the fourth, nothing is said."""
    async with AsyncExitStack() as resources:
        with environment(demo.settings):
            damage = Damage(demo.settings, Edges(demo.settings, resources, demo.settings["TIDEMARK_ENTITIES_DIR"], ""))
            chain = await damage.delete_raw_object("accounts")
            event_id = await damage.remove_parked_item("payment_events")
            page = await damage.falsify_seen_page("account_events")

    code, output, _ = await demo.tidemark("audit", "--table", "require", "--wait", "1s", "--json")

    found = {entity["entity"]: entity["findings"] for entity in json.loads(output)["entities"]}
    named = {(entity, one["kind"], one["where"]) for entity, findings in found.items() for one in findings}
    assert named == {
        ("accounts", "raw_hole", chain),
        ("payment_events", "lost", ""),
        ("account_events", "seen_page", page),
    }
    assert code == 1
    [lost] = found["payment_events"]
    assert lost["count"] == 1
    assert lost["names"][0].startswith(event_id)
