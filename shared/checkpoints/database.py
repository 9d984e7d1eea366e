"""The pool of connections to Postgres: every wait bounded, every failure named by what the caller is to do."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar, cast

import asyncpg

from shared.checkpoints.model import CheckpointsMisconfigured, CheckpointsUnavailable
from shared.checkpoints.settings import PostgresSettings
from shared.config import ConfigError, read_secret
from shared.retry import retry

_T = TypeVar("_T")
Work = Callable[[Any], Awaitable[_T]]

_NO_CONNECTION = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Builtin errors included: a cancelled or cut connection surfaces as any of these (asyncpg #1310)."""

_TRANSIENT_STATES = (
    "08",  # connection lost or refused
    "25006",  # read-only: this is a former primary
    "40",  # deadlock, serialization
    "53",  # disk full, out of memory, too many connections
    "55P03",  # a lock was not to be had in time
    "57",  # cancelled by timeout, shutting down, crashed, starting up
    "58",  # I/O error
    "XX",  # internal error
)
_NO_TABLES = ("42P01", "42703", "3F000")


class Database:
    """Runs statements on pooled connections. Connects when first used: a service starts while Postgres is down."""

    def __init__(self, pool: Any, settings: PostgresSettings) -> None:
        self._pool = pool
        self._settings = settings

    @classmethod
    async def open(cls, settings: PostgresSettings, stack: AsyncExitStack) -> "Database":
        """Closes with ``stack``. Raises ``CheckpointsMisconfigured`` on a dsn that can't be read, ``ConfigError``."""
        limit_ms = str(int(settings.command_timeout_s * 1000))
        session = {
            "application_name": "tidemark",
            "statement_timeout": limit_ms,
            "lock_timeout": limit_ms,
            "idle_in_transaction_session_timeout": str(int(settings.command_timeout_s * 2000)),
        }
        password_file = settings.password_file
        try:
            pool = await asyncpg.create_pool(
                settings.dsn,
                password=None if password_file is None else lambda: read_secret(password_file),
                ssl=settings.ssl_context(),
                min_size=0,
                max_size=settings.connections_max,
                max_inactive_connection_lifetime=60,
                timeout=settings.connect_timeout_s,
                command_timeout=settings.command_timeout_s,
                statement_cache_size=0 if settings.pgbouncer else 100,
                server_settings=None if settings.pgbouncer else session,
                reset=_nothing_to_reset,
            )
        except (asyncpg.ClientConfigurationError, ValueError) as error:
            raise _unusable(error) from None
        database = cls(pool, settings)
        stack.push_async_callback(database._close)
        return database

    async def run(self, work: Work[_T]) -> _T:
        """Await ``work(connection)``, again after a transient failure, within the budget. ``work`` must be idempotent.

        Raises ``CheckpointsUnavailable`` when the budget is spent: the last try's outcome is unknown.
        """
        return await retry(
            lambda: self.run_once(work),
            on=(CheckpointsUnavailable,),
            base_s=0.05,
            cap_s=1,
            budget_s=self._settings.budget_s,
        )

    async def run_once(self, work: Work[_T]) -> _T:
        """Await ``work(connection)`` once. Raises ``CheckpointsUnavailable``: then its outcome is unknown."""
        try:
            return await self._on_connection(work)
        except (asyncpg.ClientConfigurationError, asyncpg.DataError):
            raise  # our own bugs, though they are InterfaceErrors too
        except asyncpg.PostgresError as error:
            raise await self._named(error) from error
        except (ConfigError, ssl.SSLCertVerificationError) as error:
            raise CheckpointsMisconfigured(f"check password_file and ca_file of Postgres: {error}") from error
        except _NO_CONNECTION as error:
            raise CheckpointsUnavailable(f"no answer from Postgres ({_text(error)})") from error

    async def _on_connection(self, work: Work[_T]) -> _T:
        # Bounded by its own timeout and never cancelled from outside: a cancelled acquire leaked connections (#464).
        try:
            connection = await self._pool.acquire(timeout=self._settings.connect_timeout_s)
        except ssl.SSLCertVerificationError:
            raise  # it is a ValueError too
        except (asyncpg.ClientConfigurationError, ValueError) as error:  # what the dsn says is looked at here first
            raise _unusable(error) from error
        try:
            return await work(connection)
        except asyncpg.PostgresError:
            raise  # the server answered: the connection is sound
        except BaseException:
            connection.terminate()  # in doubt: half-open, or a statement may still be running on it
            raise
        finally:
            await self._pool.release(connection, timeout=self._settings.connect_timeout_s)

    async def _named(self, error: asyncpg.PostgresError) -> Exception:
        state = error.sqlstate or ""
        if state == "25006":
            await self._pool.expire_connections()  # all of them lead to the former primary
        if state.startswith(_TRANSIENT_STATES):
            return CheckpointsUnavailable(f"Postgres can't serve now: {_text(error)}")
        if state in _NO_TABLES:
            return CheckpointsMisconfigured(f"Postgres lacks our tables, run `tidemark bootstrap` ({_text(error)})")
        if state.startswith(("28", "3D", "42501")):
            return CheckpointsMisconfigured(f"Postgres refuses us, check user, password and rights ({_text(error)})")
        return cast(Exception, error)

    async def _close(self) -> None:
        try:
            # Nobody uses a connection any more when the stack unwinds; what still hangs is cut.
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._pool.close()
        except (TimeoutError, *_NO_CONNECTION):
            self._pool.terminate()


async def _nothing_to_reset(_connection: Any) -> None:
    """No statement of ours leaves session state behind: asyncpg's reset would cost a round trip a page."""


def _unusable(error: Exception) -> CheckpointsMisconfigured:
    return CheckpointsMisconfigured(f"the Postgres dsn can't be used ({error}); see TIDEMARK_POSTGRES_DSN")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
