"""Numbered SQL files, each applied once, in order, under a lock: any number of processes may try at once."""

import hashlib
from importlib import resources
from typing import Any

from msgspec import Struct

from shared.checkpoints.model import CheckpointsMisconfigured

TIMEOUT_S = 120.0


class Migration(Struct, frozen=True):
    """One file ``<number>_<what>.sql``, written without schema names."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """A migration that was applied must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All that this version has, in order."""
    folder = resources.files("shared.checkpoints").joinpath("migrations")
    found = [
        Migration(int(file.name.split("_")[0]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.number)


async def apply_migrations(connection: Any, schema: str) -> list[str]:
    """Apply what is missing, all or nothing; return its names."""
    async with connection.transaction():
        # A migration may wait for another process's, so the limits of ordinary statements don't fit.
        limit = f"{int(TIMEOUT_S)}s"
        await connection.execute(
            "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true),"
            " set_config('search_path', $2, true)",
            limit,
            f'"{schema}"',
        )
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('tidemark migrations ' || $1, 0))", schema, timeout=TIMEOUT_S
        )
        missing = await missing_migrations(connection, schema)
        if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", f'"{schema}"'):
            await connection.execute(f'CREATE SCHEMA "{schema}"')
        if await connection.fetchval("SELECT to_regclass('schema_migration') IS NULL"):
            await connection.execute(
                "CREATE TABLE schema_migration (number integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
        for migration in missing:
            await connection.execute(migration.sql, timeout=TIMEOUT_S)
            await connection.execute(
                "INSERT INTO schema_migration (number, name, digest) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.digest,
            )
    return [migration.name for migration in missing]


async def missing_migrations(connection: Any, schema: str) -> list[Migration]:
    """What this version has and the schema lacks. Raises ``CheckpointsMisconfigured`` if an applied one was changed."""
    table = f'"{schema}".schema_migration'
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", table):
        return migrations()
    rows = await connection.fetch(f"SELECT number, digest FROM {table}")  # noqa: S608  the schema's name was checked
    applied = {row["number"]: row["digest"] for row in rows}
    for migration in migrations():
        if applied.get(migration.number, migration.digest) != migration.digest:
            raise CheckpointsMisconfigured(
                f"migration {migration.name} was changed after it was applied to {schema}: add a new one instead"
            )
    return [migration for migration in migrations() if migration.number not in applied]
