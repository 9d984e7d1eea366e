"""Cursor, lease and seen entries of each entity, in Postgres. One page = one transaction, fenced by (epoch, owner)."""

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from msgspec import Struct

from shared.checkpoints import statements as sql
from shared.checkpoints.archive import SeenArchive
from shared.checkpoints.database import Database
from shared.checkpoints.migrations import apply_migrations, missing_migrations
from shared.checkpoints.model import (
    COLUMNS,
    Committed,
    CursorMove,
    CursorState,
    EntityStatus,
    Fenced,
    Grant,
    PageCommit,
    SeenPage,
    Standing,
    UnknownEntity,
    moved,
)
from shared.checkpoints.settings import PostgresSettings

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PAGES_AT_ONCE = 32
"""Rows of ``seen_page`` in one answer: some MB at most."""


class TidyLimits(Struct, frozen=True, kw_only=True):
    """When and how far seen pages are joined and moved out."""

    every_commits: int = 64
    page_bytes: int = 256 * 1024  # small pages are joined up to about this
    archive_pages_min: int = 64  # pages behind the floor move out when there are so many ...
    archive_bytes_min: int = 1024 * 1024  # ... or so many bytes; also about the size of one object
    archive_objects_max: int = 16  # in one call of ``tidy``


_TIDY_LIMITS = TidyLimits()


class Tidied(Struct, frozen=True, kw_only=True):
    """What one ``tidy`` did."""

    joined: int  # pages that were joined with a neighbour
    archived: int  # pages that moved to the archive
    objects: list[str]


class Checkpoints:
    """What pollers and the command line do with ``entity_cursor``, ``seen_page`` and ``cursor_history``.

    Every call raises ``CheckpointsUnavailable`` when Postgres does not serve within the budget (transient: wait, call
    again) and ``CheckpointsMisconfigured`` when waiting won't help.
    """

    def __init__(
        self,
        database: Database,
        schema: str,
        *,
        tidy_limits: TidyLimits = _TIDY_LIMITS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(f"{schema!r} is no name for a schema: lower-case letters, digits and '_', at most 63")
        self._database = database
        self._schema = schema
        self._tidy_limits = tidy_limits
        self._monotonic = monotonic

    @classmethod
    async def open(
        cls,
        settings: PostgresSettings,
        stack: AsyncExitStack,
        *,
        schema: str = "tidemark",
        tidy_limits: TidyLimits = _TIDY_LIMITS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> "Checkpoints":
        """Closes with ``stack``. Connects when first used, so that it opens while Postgres is down."""
        database = await Database.open(settings, stack)
        return cls(database, schema, tidy_limits=tidy_limits, monotonic=monotonic)

    async def ping(self) -> None:
        """Return when Postgres answers and has our tables."""
        await self._fetchrow(sql.EXISTS, "")

    async def clock_us(self) -> int:
        """Postgres's own clock, asked for once: raises ``CheckpointsUnavailable`` at the first failure."""
        statement = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        return int(await self._database.run_once(lambda connection: connection.fetchval(statement)))

    async def migrate(self) -> list[str]:
        """Make or renew the tables; return the names of the migrations applied now. Callers at once wait in a row."""
        return await self._database.run_once(lambda connection: apply_migrations(connection, self._schema))

    async def pending_migrations(self) -> list[str]:
        """Names of the migrations that ``migrate`` would apply."""
        missing = await self._database.run(lambda connection: missing_migrations(connection, self._schema))
        return [migration.name for migration in missing]

    # --- for pollers

    async def ensure_entity(self, entity: str, start_at_us: int | None) -> bool:
        """Make the entity's row, its cursor at ``start_at_us`` (``None``: now, by Postgres's clock), unless it exists.

        True when it was made by this call (False too when a repeated try finds the row of its own).
        """
        window_us = msgspec.structs.fields(CursorState)[COLUMNS.index("window_us")].default
        return await self._fetchrow(sql.ENSURE, entity, start_at_us, window_us) is not None

    async def acquire(self, entity: str, owner: str, lease_s: float) -> Grant | None:
        """Lease the entity; ``None`` while another owner holds it or it is paused. Raises ``UnknownEntity``.

        ``owner`` is unique per start of a process, and asks once per entity at a time. The lease ends by Postgres's
        clock.
        """
        asked_s = self._monotonic()
        row = await self._fetchrow(sql.ACQUIRE, entity, owner, _us(lease_s))
        if row is None:
            if await self._fetchrow(sql.EXISTS, entity) is None:
                raise UnknownEntity(entity)
            return None
        return Grant(
            entity=entity,
            owner=owner,
            epoch=row["epoch"],
            lease_s=lease_s,
            lease_until_monotonic_s=asked_s + lease_s,
            shown_from_us=row["shown_limit_us"] - _us(lease_s),
            shown_limit_us=row["shown_limit_us"],
            shown_anchor_monotonic_s=self._monotonic(),
            unclean=row["unclean"],
        )

    async def renew(self, grant: Grant) -> Grant:
        """Lengthen the lease by ``lease_s`` from now, and raise ``shown_limit_us``. Raises ``Fenced``.

        A lease that ran out unnoticed can be renewed as long as nobody else has taken it.
        """
        asked_s = self._monotonic()
        shown_now_us = grant.shown_from_us + _us(asked_s - grant.shown_anchor_monotonic_s)
        row = await self._fetchrow(sql.RENEW, *_fence(grant), _us(grant.lease_s), shown_now_us)
        if row is None:
            raise Fenced(grant.entity, grant.epoch)
        return msgspec.structs.replace(
            grant,
            lease_until_monotonic_s=asked_s + grant.lease_s,
            shown_limit_us=row["shown_limit_us"],
            paused_reason=row["paused_reason"],
        )

    async def release(self, grant: Grant, *, shown_us: int | None = None, clean: bool = True) -> None:
        """Give the entity free at once; nothing happens if it has been taken over.

        ``clean=False``: something may be published that was not committed; the next owner then looks out for it, as
        after a kill. ``shown_us``: the last stamp issued.
        """
        await self._fetchrow(sql.RELEASE, *_fence(grant), clean, shown_us)

    async def load(self, grant: Grant) -> tuple[CursorState, list[SeenPage]]:
        """The state to go on from, and the seen pages at or above the floor by rising ``seq``. Raises ``Fenced``."""
        row = await self._fetchrow(sql.LOAD_STATE, *_fence(grant))
        if row is None:
            raise Fenced(grant.entity, grant.epoch)
        return _state(row), [page async for page in self._pages(sql.LOAD_PAGES, grant.entity)]

    async def commit(self, grant: Grant, page: PageCommit) -> Committed:
        """Record a settled page. Raises ``Fenced``.

        ``CheckpointsUnavailable`` leaves the outcome unknown: call again with the same page, it is recorded once.
        """
        columns, reading = _split(page.state)
        seen = (page.seen_floor_us, page.min_us, page.max_us, page.entries)
        history = page.history or (None, None)
        row = await self._fetchrow(sql.COMMIT, *_fence(grant), page.shown_us, *seen, *history, *columns, reading)
        if row is None:
            row = await self._committed_before(grant, page)
        seq = row["commit_seq"]
        return Committed(
            seq=seq, paused_reason=row["paused_reason"], tidy_due=seq % self._tidy_limits.every_commits == 0
        )

    async def tidy(self, grant: Grant, archive: SeenArchive | None) -> Tidied:
        """Join small pages, and move pages behind the floor to ``archive`` (``None``: they stay, and are not loaded).

        May run beside commits. A page leaves Postgres only when its object exists. Raises ``Fenced``, and what
        ``archive.put`` raises; each step stands by itself.
        """
        row = await self._fetchrow(sql.MERGE, *_fence(grant), self._tidy_limits.page_bytes)
        if row["fences"] == 0:
            raise Fenced(grant.entity, grant.epoch)
        joined, archived = row["gone"] - row["joined"], 0
        objects: list[str] = []
        while archive is not None and len(objects) < self._tidy_limits.archive_objects_max:
            pages = await self._unloaded(grant)
            if not pages:
                break
            least, greatest = min(page.min_us for page in pages), max(page.max_us for page in pages)
            entries = b"".join(page.entries for page in pages)
            objects.append(await archive.put(grant.entity, least, greatest, entries))
            archived += await self._forget(grant, pages)
        return Tidied(joined=joined, archived=archived, objects=objects)

    # --- for people

    async def entities(self) -> list[EntityStatus]:
        """Every entity that has a cursor, by name."""
        rows = await self._fetch(sql.ENTITIES)
        return [EntityStatus(**{name: row[name] for name in EntityStatus.__struct_fields__}) for row in rows]

    async def pause(self, entity: str, reason: str, who: str) -> bool:
        """Stop the polling of an entity, cursor standing; its poller learns of it with its next commit or renewal.

        False: it was paused before, and keeps its reason. Raises ``UnknownEntity``.
        """
        return await self._changed(sql.PAUSE, entity, reason, who)

    async def resume(self, entity: str, who: str) -> bool:
        """Let the entity be polled again. False: it was not paused. Raises ``UnknownEntity``."""
        return await self._changed(sql.RESUME, entity, who)

    async def paused_reason(self, entity: str) -> str | None:
        """``None``: it is not paused, or has no row."""
        row = await self._fetchrow(sql.PAUSED_REASON, entity)
        return None if row is None else row["paused_reason"]

    async def history(self, entity: str, limit: int = 20) -> list[CursorMove]:
        """The last moves of the cursor that were no ordinary page, newest first."""
        return [CursorMove(**row) for row in await self._fetch(sql.HISTORY, entity, limit)]

    async def set_cursor(self, entity: str, to_us: int, who: str, why: str) -> CursorMove:
        """Move the cursor and both swept marks; the running poller is fenced and starts anew from there.

        Forward, the range from ``cursor_from_us`` to ``cursor_to_us`` is skipped, and stands in the history. Backward,
        the digests recorded so far are ignored: what is read again is published again, under the same event ids.
        Tried once: after ``CheckpointsUnavailable`` look at the history. Raises ``UnknownEntity``.
        """

        async def move(connection: Any) -> CursorMove:
            async with connection.transaction():
                row = await connection.fetchrow(self._sql(sql.LOCK_CURSOR), entity)
                if row is None:
                    raise UnknownEntity(entity)
                was = _state(row)
                columns, reading = _split(moved(was, to_us))
                epoch = await connection.fetchval(self._sql(sql.SET_CURSOR), entity, *columns, reading)
                note = (entity, who, why, was.cursor_us, to_us, was.swept_us, was.cap_swept_us, epoch)
                await connection.execute(self._sql(sql.NOTE_MOVE), *note)
                return CursorMove(**await connection.fetchrow(self._sql(sql.HISTORY), entity, 1))

        return await self._database.run_once(move)

    async def standing(self, entity: str) -> Standing | None:
        """``None``: it has never been polled."""
        row = await self._fetchrow(sql.STANDING, entity)
        if row is None:
            return None
        return Standing(
            state=_state(row),
            shown_us=row["shown_us"],
            commit_seq=row["commit_seq"],
            held=row["held"],
            unclean=row["left_unclean"],
        )

    def all_seen(self, entity: str, after_seq: int = -1) -> AsyncIterator[SeenPage]:
        """Every seen page that is still in Postgres, whatever the floor, by rising ``seq``."""
        return self._pages(sql.ALL_PAGES, entity, after_seq)

    # --- inside

    async def _committed_before(self, grant: Grant, page: PageCommit) -> Any:
        """Nothing was updated: because an earlier try of this very page did it, or because we are fenced."""
        row = await self._fetchrow(sql.WHO_COMMITTED, grant.entity)
        if row is None or (row["epoch"], row["owner"]) != (grant.epoch, grant.owner):
            raise Fenced(grant.entity, grant.epoch)
        assert row["shown_us"] == page.shown_us, "shown_us must rise from page to page"
        return row

    async def _unloaded(self, grant: Grant) -> list[SeenPage]:
        limits = self._tidy_limits
        rows = await self._fetch(sql.UNLOADED, *_fence(grant), limits.archive_pages_min, limits.archive_bytes_min)
        return [SeenPage(**row) for row in rows]

    async def _forget(self, grant: Grant, pages: list[SeenPage]) -> int:
        seqs, sizes = [page.seq for page in pages], [len(page.entries) for page in pages]
        row = await self._fetchrow(sql.FORGET, *_fence(grant), seqs, sizes)
        if row["fences"] == 0:
            raise Fenced(grant.entity, grant.epoch)
        return int(row["gone"])

    async def _pages(self, statement: str, entity: str, after_seq: int = -1) -> AsyncIterator[SeenPage]:
        seq = after_seq
        while rows := await self._fetch(statement, entity, seq, _PAGES_AT_ONCE):
            for row in rows:
                yield SeenPage(**row)
            seq = rows[-1]["seq"]

    async def _changed(self, statement: str, entity: str, *arguments: str) -> bool:
        row = await self._fetchrow(statement, entity, *arguments)
        if row["count"] == 0 and await self._fetchrow(sql.EXISTS, entity) is None:
            raise UnknownEntity(entity)
        return bool(row["count"])

    def _sql(self, statement: str) -> str:
        return sql.for_schema(statement, self._schema)

    async def _fetchrow(self, statement: str, *arguments: object) -> Any:
        return await self._database.run(lambda connection: connection.fetchrow(self._sql(statement), *arguments))

    async def _fetch(self, statement: str, *arguments: object) -> Any:
        return await self._database.run(lambda connection: connection.fetch(self._sql(statement), *arguments))


def _fence(grant: Grant) -> tuple[str, int, str]:
    return grant.entity, grant.epoch, grant.owner


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _split(state: CursorState) -> tuple[list[int | None], str]:
    """The values of ``COLUMNS``, and the rest as the text of the jsonb column."""
    fields = msgspec.to_builtins(state)
    columns = [fields.pop(name) for name in COLUMNS]
    return columns, msgspec.json.encode(fields).decode()


def _state(row: Any) -> CursorState:
    return msgspec.convert(json.loads(row["reading"]) | {name: row[name] for name in COLUMNS}, CursorState)
