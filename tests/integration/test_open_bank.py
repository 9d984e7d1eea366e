"""The bank as Compose runs it: it changes rows by itself, and a restart finds what is there."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import asyncpg
import httpx
import pytest

from deploy.demo.open_bank import main
from deploy.demo.writers import ACCOUNTS_AT_START
from deploy.local.places import CHECKOUT
from deploy.local.stack import Stack

EVERYTHING = {"entity": "account_events", "updatedSince": "1970-01-01T00:00:00Z", "limit": "2000"}


@contextmanager
def bank(dsn: str, port: int) -> Iterator[str]:
    told = {"BANK_DSN": dsn, "BANK_PORT": str(port), "BANK_WRITES_PER_S": "50"}
    env = {"PATH": os.environ["PATH"], **told}
    with subprocess.Popen([sys.executable, "-m", "deploy.demo.open_bank"], cwd=CHECKOUT, env=env) as running:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            running.send_signal(signal.SIGTERM)
            code = running.wait(timeout=20)
    assert code == 0


async def test_the_bank_changes_rows_by_itself_and_goes_on_after_a_restart(stack: Stack) -> None:
    dsn = stack.env["TIDEMARK_POSTGRES_DSN"].rpartition("/")[0] + f"/bank_{uuid.uuid4().hex[:8]}"
    port = stack.free_port(f"open-bank-{uuid.uuid4().hex[:8]}")
    with bank(dsn, port) as url:
        before = await changes(url, beyond=ACCOUNTS_AT_START)
    with bank(dsn, port) as url:
        await changes(url, beyond=before)
        connection = await asyncpg.connect(dsn)
        accounts = await connection.fetchval("SELECT count(*) FROM accounts")
        await connection.close()

    assert ACCOUNTS_AT_START <= accounts < 2 * ACCOUNTS_AT_START


async def changes(url: str, beyond: int) -> int:
    """How many the bank shows, as soon as there are more than ``beyond``."""
    async with httpx.AsyncClient() as client, asyncio.timeout(30):
        while True:
            with suppress(httpx.TransportError):
                count = len((await client.get(f"{url}/cdc", params=EVERYTHING)).json())
                if count > beyond:
                    return count
            await asyncio.sleep(0.1)


def test_a_bank_that_is_told_nothing_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"BANK_PORT": "0"}) == 2
    said = capsys.readouterr().err
    assert "BANK_DSN: not set" in said
    assert "BANK_PORT: expected" in said
