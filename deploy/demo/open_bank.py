"""The bank as a service: its API, and a few clients that go on changing rows. ``python -m deploy.demo.open_bank``.

A restart finds the accounts that are there. What its clients do is what ``deploy.demo.writers`` does, slowly.
"""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

import asyncpg
from msgspec import Meta, Struct

from deploy.demo.bank import create_bank, listen
from deploy.demo.writers import Writer, open_bank
from shared.config import ConfigError, load_config

WRITERS = 2


class BankSettings(Struct, frozen=True, kw_only=True):
    """``BANK_DSN``, ``BANK_HOST``, ``BANK_PORT``, ``BANK_WRITES_PER_S``."""

    dsn: Annotated[str, Meta(min_length=1)]
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8000
    writes_per_s: Annotated[float, Meta(ge=0, le=1_000)] = 2.0
    """Transactions a second, of all clients together; 0: nobody writes."""


async def run(settings: BankSettings) -> None:
    """Until SIGTERM or SIGINT; a client that dies ends the bank, and Docker starts it again."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await create_bank(settings.dsn)
    async with asyncpg.create_pool(settings.dsn, min_size=1, max_size=8) as pool:
        if not await pool.fetchval("SELECT EXISTS (SELECT FROM accounts)"):
            await open_bank(pool)
        runner = await listen(pool, settings.host, settings.port)
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(_write(pool, settings.writes_per_s), name="writers")
                await stop.wait()
                writing.cancel()
        finally:
            await runner.cleanup()


async def _write(pool: "asyncpg.Pool", per_s: float) -> None:
    if per_s == 0:
        return
    done: Counter[str] = Counter()
    writers = [Writer(pool, seed, done) for seed in range(WRITERS)]
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*(writer.write(float("inf"), per_s / WRITERS) for writer in writers))


def main(environ: Mapping[str, str]) -> int:
    try:
        settings = load_config(BankSettings, environ, "BANK_")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    import os

    sys.exit(main(os.environ))
