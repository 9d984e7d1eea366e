"""The bank's clients: concurrent writers that do what makes change capture hard. Not a part of Tidemark.

Rows that share a timestamp, transactions that commit seconds after they took their stamp, stamps that run backwards
within one row because of a lock, deletes, one bulk update larger than a page, changes with invalid JSON.
"""

import argparse
import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from deploy.demo.bank import create_bank

ACCOUNTS_AT_START = 1_200
BULK_ROWS = 800
"""Both larger than a page of the bank's answers, and each under one timestamp."""

FLAWS = ("amount_as_text", "no_currency", "unknown_field", "unknown_symbol", "no_time")

_CITIES = ("Antwerpen", "Łódź", "São Paulo", "Reykjavík", "Århus", "東京", "Québec", "Malmö")
_COUNTRIES = ("BE", "PL", "BR", "IS", "DK", "JP", "CA", "SE")
_KINDS = ("CHECKING", "SAVINGS", "BUSINESS")

_OPEN = """INSERT INTO accounts (holder, kind, currency, balance, street, city, postcode, country)
    SELECT 'Holder ' || n, ($2::text[])[1 + n % 3], 'EUR', 1000 + n, n || ' Tidal Way', ($3::text[])[1 + n % 8],
        CASE WHEN n % 5 = 0 THEN NULL ELSE lpad(n::text, 5, '0') END, ($4::text[])[1 + n % 8]
    FROM generate_series(1, $1::int) n"""
_PAY = """INSERT INTO payments (account_id, amount, currency, status, counterparty, iban, bank_name, bank_country, note)
    VALUES ($1, $2, 'EUR', 'PENDING', $3, $4, $5, 'BE', $6)"""
_LAST_PAYMENT = "(SELECT last_value FROM payments_id_seq)"


class Writer:
    """One client with connections of its own. ``done`` counts what it did, by kind."""

    def __init__(self, pool: Any, seed: int, done: Counter[str]) -> None:
        self._pool = pool
        self._random = random.Random(seed)
        self._done = done
        self._kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "payment": (52, self.pay),
            "settled": (18, self.settle),
            "moved": (15, self.move),
            "opened": (4, self.open_account),
            "deleted": (4, self.delete),
            "late_commit": (3, self.commit_late),
            "lock_wait": (3, self.wait_for_lock),
            "invalid": (1, self.write_flaw),
        }

    async def write(self, until_s: float, per_s: float) -> None:
        """Transactions at a steady rate until the loop's clock shows ``until_s``; begun ones are ended."""
        clock = asyncio.get_running_loop().time
        due_s = clock()
        weights = [weight for weight, _ in self._kinds.values()]
        while (now_s := clock()) < until_s:
            [kind] = self._random.choices(list(self._kinds), weights)
            try:
                await self._kinds[kind][1]()
                self._done[kind] += 1
            except asyncpg.DeadlockDetectedError:
                self._done["deadlock"] += 1
            due_s = max(due_s + 1 / per_s, now_s - 1)
            await asyncio.sleep(max(0.0, min(due_s, until_s) - clock()))

    async def pay(self) -> None:
        """A payment and two accounts: three rows under one timestamp."""
        payer, payee = sorted(self._random.sample(range(1, ACCOUNTS_AT_START + 1), 2))
        amount = self._amount()
        async with self._pool.acquire() as connection, connection.transaction():
            await self._insert_payment(connection, payer, amount)
            for account, change in ((payer, -amount), (payee, amount)):
                await connection.execute(
                    "UPDATE accounts SET balance = balance + $2::numeric / 100 WHERE id = $1", account, change
                )

    async def settle(self) -> None:
        await self._pool.execute(
            f"""UPDATE payments SET status = CASE status WHEN 'PENDING' THEN 'BOOKED' ELSE 'REVERSED' END
            WHERE NOT deleted AND id = (1 + floor($1::float8 * {_LAST_PAYMENT}))::bigint""",
            self._random.random(),
        )

    async def move(self) -> None:
        at = self._random.randrange(len(_CITIES))
        await self._pool.execute(
            "UPDATE accounts SET city = $2, country = $3, street = $4 WHERE id = $1 AND NOT deleted",
            self._account(), _CITIES[at], _COUNTRIES[at], f"{self._random.randrange(999)} Ebb \"Lane\"",
        )  # fmt: skip

    async def open_account(self) -> None:
        await self._pool.execute(_OPEN, 1, _KINDS, _CITIES, _COUNTRIES)

    async def delete(self) -> None:
        await self._pool.execute(
            f"UPDATE payments SET deleted = true WHERE id = (1 + floor($1::float8 * {_LAST_PAYMENT}))::bigint",
            self._random.random(),
        )

    async def commit_late(self) -> None:
        """The stamp is the transaction's beginning; others overtake it before it becomes visible."""
        async with self._pool.acquire() as connection, connection.transaction():
            await self._insert_payment(connection, self._account(), self._amount())
            await asyncio.sleep(self._random.uniform(0.5, 4.0))

    async def wait_for_lock(self) -> None:
        """The earlier transaction waits for the later one's lock, so that the newer version has the older stamp."""
        account = self._account()
        update = "UPDATE accounts SET balance = balance + 1 WHERE id = $1"
        async with self._pool.acquire() as early, self._pool.acquire() as late, early.transaction():
            await early.fetchval("SELECT now()")
            await asyncio.sleep(0.005)
            async with late.transaction():
                await late.execute(update, account)
                waiting = asyncio.create_task(early.execute(update, account), name="lock-wait")
                await asyncio.sleep(0.02)
            await waiting

    async def write_flaw(self) -> None:
        flaw = FLAWS[self._done["invalid"] % len(FLAWS)]
        await self._pool.execute("UPDATE accounts SET flaw = $2 WHERE id = $1", self._account(), flaw)
        await self._pool.execute(
            f"UPDATE payments SET flaw = $2 WHERE id = (1 + floor($1::float8 * {_LAST_PAYMENT}))::bigint",
            self._random.random(), flaw,
        )  # fmt: skip

    async def _insert_payment(self, connection: Any, account: int, cents: int) -> None:
        number = self._random.randrange(10**14)
        note = self._random.choice((None, "rent", "naïve café ☕", 'said "no"\n'))
        bank = self._random.choice((None, "Ebb & Flow"))
        await connection.execute(_PAY, account, cents / 100, f"Payee {number % 97}", f"BE{number:014d}", bank, note)

    def _account(self) -> int:
        return self._random.randint(1, ACCOUNTS_AT_START)

    def _amount(self) -> int:
        return self._random.randint(1, 99_999)


async def open_bank(pool: Any) -> None:
    """The first accounts: more rows than a page holds, in one transaction."""
    await pool.execute(_OPEN, ACCOUNTS_AT_START, _KINDS, _CITIES, _COUNTRIES)


async def pay_interest(pool: Any, done: Counter[str]) -> None:
    """The bulk update. Locks in the order of ids, as everybody does."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM accounts WHERE id <= $1 ORDER BY id FOR NO KEY UPDATE", BULK_ROWS)
        await connection.execute("UPDATE accounts SET balance = round(balance * 1.001, 2) WHERE id <= $1", BULK_ROWS)
    done["bulk"] += 1


async def close_books(pool: Any) -> None:
    """One last change of each table, after all others have committed: a lookback behind it has seen them all."""
    async with pool.acquire() as connection:
        await asyncio.sleep(0.01)
        await connection.execute("UPDATE accounts SET street = 'closing time' WHERE id = 1")
        await connection.execute(_PAY, 1, 0.01, "closing", "BE00", None, None)


async def write_all(dsn: str, *, seconds: float, writers: int, per_s: float, seed: int) -> Counter[str]:
    """All of the writing. Ends early, but with everything committed and the books closed, when it is cancelled."""
    await create_bank(dsn)
    done: Counter[str] = Counter()
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2 * writers + 2) as pool:
        await open_bank(pool)
        until_s = asyncio.get_running_loop().time() + seconds
        clients = [Writer(pool, seed + number, done) for number in range(writers)]
        with suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                for number, client in enumerate(clients):
                    group.create_task(client.write(until_s, per_s / writers), name=f"writer-{number}")
                await asyncio.sleep(0.75 * seconds)  # after the outage, so that it is published
                await pay_interest(pool, done)
        for _ in FLAWS[done["invalid"] :]:
            await clients[0].write_flaw()
            done["invalid"] += 1
        await close_books(pool)
    return done


async def main(arguments: argparse.Namespace) -> None:
    writing = asyncio.create_task(
        write_all(
            os.environ["BANK_DSN"],
            seconds=arguments.seconds,
            writers=arguments.writers,
            per_s=arguments.rate,
            seed=arguments.seed,
        ),
        name="writing",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, writing.cancel)
    print(json.dumps(await writing), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.demo.writers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=60.0, help="transactions a second, of all writers together")
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(main(parser.parse_args()))
