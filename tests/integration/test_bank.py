"""The demo's bank does what makes change capture hard, and shows it behind the contract that Tidemark reads."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import asyncpg
import pytest
import pytest_asyncio
from aiohttp import web

from deploy.demo.bank import PAGE_ROWS, PAGE_ROWS_MAX, Bank, create_bank
from deploy.demo.writers import ACCOUNTS_AT_START, BULK_ROWS, FLAWS, Writer, write_all
from tests.fakes.dynamodb_proxy import unique

BEGINNING = "1970-01-01T00:00:00Z"


class Client:
    """The bank as its clients see it, and its database."""

    def __init__(self, session: aiohttp.ClientSession, url: str, database: Any, done: Counter[str]) -> None:
        self.session = session
        self.url = url
        self.database = database
        self.done = done

    async def get(self, entity: str, since: str, **more: str) -> aiohttp.ClientResponse:
        return await self.session.get(self.url, params={"entity": entity, "updatedSince": since, **more})

    async def rows(self, entity: str, since: str, **more: str) -> list[dict[str, Any]]:
        answer = await self.get(entity, since, **more)
        assert answer.status == 200, await answer.text()
        found: list[dict[str, Any]] = await answer.json()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bank(stack: Any) -> AsyncIterator[Client]:
    """One bank for all tests, after a few seconds of writing."""
    server = stack.env["TIDEMARK_POSTGRES_DSN"].rpartition("/")[0]
    name = unique("bank_")
    dsn = f"{server}/{name}"
    await create_bank(dsn)
    done = await write_all(dsn, seconds=3, writers=4, per_s=80, seed=7)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool, aiohttp.ClientSession() as session:
        runner = web.AppRunner(Bank(pool).app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Client(session, f"http://127.0.0.1:{runner.addresses[0][1]}/cdc", pool, done)
        await runner.cleanup()
    connection = await asyncpg.connect(f"{server}/postgres")
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_changes_come_by_time_and_pages_are_cut_without_saying_so(bank: Client) -> None:
    page = await bank.rows("account_events", BEGINNING)
    stamps = [row["updated_at"] for row in page if "updated_at" in row]

    assert len(page) == PAGE_ROWS
    assert stamps == sorted(stamps)
    assert len(await bank.rows("account_events", BEGINNING, limit="7")) == 7
    assert len(await bank.rows("account_events", BEGINNING, limit="100000")) <= PAGE_ROWS_MAX


async def test_updated_since_is_inclusive(bank: Client) -> None:
    last = await bank.database.fetchval(
        "SELECT iso(max(updated_at)) FROM change_outbox WHERE entity = $1", "payment_events"
    )
    found = await bank.rows("payment_events", last)

    assert found
    assert {row["updated_at"] for row in found} == {last}


async def test_the_date_header_is_the_banks_clock(bank: Client) -> None:
    answer = await bank.get("payments", BEGINNING, limit="1")
    date = parsedate_to_datetime(answer.headers["Date"])

    assert abs(datetime.now(UTC) - date) < timedelta(seconds=3)


@pytest.mark.parametrize(
    ("entity", "since", "limit", "status"),
    [
        ("nothing", BEGINNING, "1", 404),
        ("payments", "yesterday", "1", 400),
        ("payments", "2026-01-01T00:00:00", "1", 400),
        ("payments", BEGINNING, "0", 400),
        ("payments", BEGINNING, "many", 400),
    ],
)
async def test_bad_questions_are_refused(bank: Client, entity: str, since: str, limit: str, status: int) -> None:
    answer = await bank.get(entity, since, limit=limit)

    assert answer.status == status


async def test_every_change_has_its_event(bank: Client) -> None:
    """As many events of a row as its version says, with the versions 0, 1, 2, ... in the order of their numbers."""
    for entity, table in (("account_events", "accounts"), ("payment_events", "payments")):
        versions = dict(await bank.database.fetch(f"SELECT id, version FROM {table}"))
        events: dict[int, list[int]] = {}
        query = "SELECT payload FROM change_outbox WHERE entity = $1 ORDER BY id"
        for [payload] in await bank.database.fetch(query, entity):
            event = json.loads(payload)
            events.setdefault(event["id"], []).append(event["version"])

        assert events == {row: list(range(version + 1)) for row, version in versions.items()}


async def test_rows_show_the_last_state_of_each_row(bank: Client) -> None:
    found = await bank.rows("payments", BEGINNING, limit=str(PAGE_ROWS_MAX))
    deleted = await bank.database.fetchval("SELECT count(*) FROM payments WHERE deleted")

    assert (
        len({row["id"] for row in found}) == len(found) == await bank.database.fetchval("SELECT count(*) FROM payments")
    )
    assert sum(row["op"] == "d" for row in found) == deleted > 0
    assert not any("event_id" in row for row in found)


async def test_a_first_load_and_a_bulk_update_share_one_stamp_each_and_exceed_a_page(bank: Client) -> None:
    ticks = await bank.database.fetch(
        "SELECT count(*) FROM change_outbox WHERE entity = 'account_events' GROUP BY updated_at ORDER BY 1 DESC LIMIT 2"
    )

    assert ACCOUNTS_AT_START > BULK_ROWS > PAGE_ROWS
    assert [tick["count"] >= rows for tick, rows in zip(ticks, (ACCOUNTS_AT_START, BULK_ROWS), strict=True)] == [
        True,
        True,
    ]


async def test_stamps_run_backwards_within_a_row(bank: Client) -> None:
    backwards = await bank.database.fetchval("""
        SELECT count(*) FROM (
            SELECT updated_at, lag(updated_at) OVER (PARTITION BY payload::json->>'id' ORDER BY id) AS before
            FROM change_outbox WHERE entity = 'account_events') changes WHERE updated_at < before""")

    assert bank.done["lock_wait"] > 0
    assert backwards > 0


async def test_each_flaw_was_shown(bank: Client) -> None:
    payloads = [row["payload"] for row in await bank.database.fetch("SELECT payload FROM change_outbox")]
    events = [json.loads(payload) for payload in payloads]

    assert bank.done["invalid"] >= len(FLAWS)
    assert any("twelve fifty" in (event.get("amount"), event.get("balance")) for event in events)
    assert any("currency" not in event for event in events)
    assert any("colour" in event for event in events)
    assert any("mislaid" in (event.get("status"), event.get("kind")) for event in events)
    assert any("updated_at" not in event for event in events)


async def test_the_books_are_closed_by_the_last_stamps(bank: Client) -> None:
    """Who has read up to the last stamp of an entity finds no later commit behind it."""
    for entity, text in (("account_events", "closing time"), ("payment_events", "closing")):
        [last] = await bank.database.fetch(
            "SELECT payload FROM change_outbox WHERE entity = $1 ORDER BY updated_at DESC, id DESC LIMIT 1", entity
        )
        assert text in last["payload"]


async def test_a_late_commit_appears_behind_what_was_shown_before(bank: Client) -> None:
    writer = Writer(bank.database, 1, Counter())
    begun = await bank.database.fetchval("SELECT iso(now())")
    late = asyncio.create_task(writer.commit_late())
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    async with asyncio.timeout(5):
        while True:
            if await bank.database.fetchval(idle):
                break
            await asyncio.sleep(0.01)
    await writer.pay()
    before = await bank.rows("payment_events", begun)
    await late
    after = await bank.rows("payment_events", begun)

    new = [row for row in after if row not in before]
    assert len(new) == 1
    assert new[0]["updated_at"] < before[-1]["updated_at"]
