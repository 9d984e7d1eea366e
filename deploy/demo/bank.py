"""The bank's REST API: ``GET /cdc?entity=<entity>&updatedSince=<time>[&limit=<rows>]``. Not a part of Tidemark.

Entities ``account_events`` and ``payment_events`` show every change; ``accounts`` and ``payments`` show each row as it
is now (deleted ones with op ``d``). Rows at or after ``updatedSince``, by ``updated_at``; at most ``PAGE_ROWS``, or
``limit`` up to ``PAGE_ROWS_MAX``, without saying that more exist.
"""

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import web

PAGE_ROWS = 500
PAGE_ROWS_MAX = 2_000

_EVENTS = """SELECT payload FROM change_outbox
    WHERE entity = $1 AND updated_at >= $2 ORDER BY updated_at, id LIMIT $3"""
_ROWS = """SELECT {one}_json({table}, NULL, CASE WHEN deleted THEN 'd' ELSE 'u' END) FROM {table}
    WHERE updated_at >= $1 ORDER BY updated_at, id LIMIT $2"""
_ROW_ENTITIES = {"accounts": "account", "payments": "payment"}
_EVENT_ENTITIES = ("account_events", "payment_events")


async def create_bank(dsn: str) -> None:
    """Create the database that ``dsn`` names, and its tables, unless they are there. The server must allow it."""
    server, _, name = dsn.rpartition("/")
    connection = await asyncpg.connect(f"{server}/postgres")
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regclass('change_outbox') IS NULL"):
            async with connection.transaction():
                await connection.execute((Path(__file__).parent / "bank.sql").read_text())
    finally:
        await connection.close()


class Bank:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/cdc", self.changes)
        app.router.add_get("/health", self.health)
        return app

    async def changes(self, request: web.Request) -> web.Response:
        entity = request.query.get("entity", "")
        try:
            since = _moment(request.query.get("updatedSince", ""))
            limit = int(request.query.get("limit", PAGE_ROWS))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"updatedSince and limit: {error}") from None
        if limit < 1:
            raise web.HTTPBadRequest(text="limit must be 1 or more")
        limit = min(limit, PAGE_ROWS_MAX)
        if entity in _EVENT_ENTITIES:
            rows = await self._pool.fetch(_EVENTS, entity, since, limit)
        elif entity in _ROW_ENTITIES:
            rows = await self._pool.fetch(_ROWS.format(one=_ROW_ENTITIES[entity], table=entity), since, limit)
        else:
            raise web.HTTPNotFound(text=f"entity must be one of {', '.join((*_EVENT_ENTITIES, *_ROW_ENTITIES))}")
        body = "[" + ",\n".join(row[0] for row in rows) + "]"
        return web.Response(text=body, content_type="application/json")

    async def health(self, _request: web.Request) -> web.Response:
        await self._pool.fetchval("SELECT 1")
        return web.Response(text="ok")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the time needs an offset, as in 2026-11-03T12:00:00Z")
    return moment.astimezone(UTC)


async def serve(dsn: str, port: int) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await create_bank(dsn)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=8) as pool:
        runner = await listen(pool, "127.0.0.1", port)
        await stop.wait()
        await runner.cleanup()


async def listen(pool: Any, host: str, port: int) -> web.AppRunner:
    """Serve until the caller cleans up what this returns."""
    runner = web.AppRunner(Bank(pool).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


if __name__ == "__main__":
    asyncio.run(serve(os.environ["BANK_DSN"], int(os.environ["BANK_PORT"])))
