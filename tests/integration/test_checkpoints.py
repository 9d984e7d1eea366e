"""Cursor, lease and seen entries on a real Postgres: fenced, recorded once, and found again after every stop."""

import asyncio
import os
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import trustme
from msgspec import structs

from shared.checkpoints.archive import ArchiveUnavailable
from shared.checkpoints.model import (
    CheckpointsMisconfigured,
    CheckpointsUnavailable,
    CursorState,
    Fenced,
    Grant,
    PageCommit,
    SeenPage,
    SweepProgress,
    UnknownEntity,
)
from shared.checkpoints.postgres import Checkpoints, TidyLimits
from shared.checkpoints.settings import PostgresSettings
from shared.checkpoints.shown import ShownClock
from tests.fakes.proxy import Mode, TcpProxy

LEASE_S = 30.0
START_US = 1_700_000_000_000_000


def elsewhere(dsn: str, *, database: str | None = None, port: int | None = None) -> str:
    """The dsn with another database, or behind a proxy's port."""
    parts = urlsplit(dsn)
    netloc = parts.netloc if port is None else f"{parts.netloc.rpartition(':')[0]}:{port}"
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path if database is None else f"/{database}"))


@pytest.fixture
async def dsn(stack: Any) -> AsyncIterator[str]:
    """A database of its own on the stack's Postgres, gone afterwards."""
    server = await asyncpg.connect(stack.env["TIDEMARK_POSTGRES_DSN"])
    name = f"checkpoints_{uuid.uuid4().hex[:12]}"
    await server.execute(f"CREATE DATABASE {name}")
    yield elsewhere(stack.env["TIDEMARK_POSTGRES_DSN"], database=name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def checkpoints(dsn: str, exits: AsyncExitStack) -> Checkpoints:
    opened = await Checkpoints.open(PostgresSettings(dsn=dsn), exits, tidy_limits=SMALL)
    await opened.migrate()
    await opened.ensure_entity("accounts", START_US)
    return opened


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET search_path TO tidemark")
    yield connection
    await connection.close()


SMALL = TidyLimits(every_commits=4, page_bytes=1000, archive_pages_min=3, archive_bytes_min=10_000)


async def acquired(checkpoints: Checkpoints, owner: str = "p1", lease_s: float = LEASE_S) -> Grant:
    grant = await checkpoints.acquire("accounts", owner, lease_s)
    assert grant is not None
    return grant


async def expire(sql: Any) -> None:
    """Make the lease run out by Postgres's clock, without waiting for it."""
    await sql.execute("UPDATE entity_cursor SET lease_until = clock_timestamp() WHERE owner IS NOT NULL")


def page(grant: Grant, number: int, **changes: Any) -> PageCommit:
    """The number-th page of this lease, counted from 1: one entry, dated ``START_US + number``."""
    at_us = START_US + number
    state = CursorState(cursor_us=at_us, swept_us=START_US, cap_swept_us=START_US)
    plain = PageCommit(
        state=state,
        shown_us=grant.shown_from_us + number,
        seen_floor_us=0,
        entries=f"<{number}>".encode(),
        min_us=at_us,
        max_us=at_us,
    )
    return structs.replace(plain, **changes)


class Bucket:
    """A ``SeenArchive`` in memory that can be told to fail."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []
        self.fails = False

    async def put(self, entity: str, min_us: int, max_us: int, entries: bytes) -> str:
        await asyncio.sleep(0)
        if self.fails:
            raise ArchiveUnavailable("told to fail")
        self.objects.append(entries)
        return f"seen/{entity}/{len(self.objects)}"


# --- migrations


async def test_two_migrations_at_once_apply_each_file_once(dsn: str, exits: AsyncExitStack) -> None:
    one = await Checkpoints.open(PostgresSettings(dsn=dsn), exits)
    other = await Checkpoints.open(PostgresSettings(dsn=dsn), exits)
    pending = await one.pending_migrations()

    applied = await asyncio.gather(one.migrate(), other.migrate())

    assert sorted(applied) == [[], pending]
    assert pending
    assert pending[0].startswith("0001")
    assert await one.pending_migrations() == await one.migrate() == []


async def test_two_namespaces_share_a_database_without_meeting(
    checkpoints: Checkpoints, exits: AsyncExitStack, dsn: str
) -> None:
    other = await Checkpoints.open(PostgresSettings(dsn=dsn), exits, schema="test_tidemark")
    await other.migrate()

    assert await other.entities() == []
    assert [status.entity for status in await checkpoints.entities()] == ["accounts"]


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(checkpoints: Checkpoints, sql: Any) -> None:
    await sql.execute("UPDATE schema_migration SET digest = 'other'")

    with pytest.raises(CheckpointsMisconfigured, match="was changed after it was applied"):
        await checkpoints.migrate()


async def test_without_tables_the_message_says_what_to_do(dsn: str, exits: AsyncExitStack) -> None:
    bare = await Checkpoints.open(PostgresSettings(dsn=dsn), exits)

    with pytest.raises(CheckpointsMisconfigured, match="run `tidemark bootstrap`"):
        await bare.ping()


async def test_a_database_that_does_not_exist_is_a_matter_of_configuration(dsn: str, exits: AsyncExitStack) -> None:
    lost = await Checkpoints.open(PostgresSettings(dsn=elsewhere(dsn, database="nowhere")), exits)

    with pytest.raises(CheckpointsMisconfigured, match="nowhere"):
        await lost.ping()


# --- lease


async def test_an_entity_has_one_owner_at_a_time(checkpoints: Checkpoints) -> None:
    grants = await asyncio.gather(*(checkpoints.acquire("accounts", f"p{i}", LEASE_S) for i in range(8)))

    assert len([grant for grant in grants if grant]) == 1


async def test_an_entity_without_a_row_is_unknown(checkpoints: Checkpoints) -> None:
    with pytest.raises(UnknownEntity, match="'payments' has no cursor yet"):
        await checkpoints.acquire("payments", "p1", LEASE_S)
    with pytest.raises(UnknownEntity):
        await checkpoints.pause("payments", "why", "me")


async def test_start_at_is_written_once(checkpoints: Checkpoints) -> None:
    assert not await checkpoints.ensure_entity("accounts", START_US + 1)
    assert await checkpoints.ensure_entity("payments", None)

    cursors = {status.entity: status.cursor_us for status in await checkpoints.entities()}
    assert cursors["accounts"] == START_US
    assert abs(cursors["payments"] - time.time() * 1e6) < 60e6


async def test_a_released_entity_is_free_at_once_and_clean(checkpoints: Checkpoints) -> None:
    first = await acquired(checkpoints)
    await checkpoints.release(first)

    second = await acquired(checkpoints, "p2")

    assert (first.unclean, second.unclean) == (False, False)
    assert second.epoch == first.epoch + 1


async def test_a_takeover_from_an_owner_that_did_not_release_is_unclean(checkpoints: Checkpoints, sql: Any) -> None:
    await acquired(checkpoints)
    assert await checkpoints.acquire("accounts", "p2", LEASE_S) is None
    await expire(sql)

    assert (await acquired(checkpoints, "p2")).unclean


async def test_unclean_lasts_until_the_new_owner_has_committed(checkpoints: Checkpoints, sql: Any) -> None:
    await acquired(checkpoints)
    await expire(sql)
    second = await acquired(checkpoints, "p2")
    await checkpoints.release(second)
    third = await acquired(checkpoints, "p3")
    assert third.unclean

    await checkpoints.commit(third, page(third, 1))
    await checkpoints.release(third)

    assert not (await acquired(checkpoints, "p4")).unclean


async def test_a_release_with_pages_in_doubt_is_unclean(checkpoints: Checkpoints) -> None:
    await checkpoints.release(await acquired(checkpoints), clean=False)

    assert (await acquired(checkpoints, "p2")).unclean


async def test_a_frozen_owner_can_neither_commit_nor_renew_nor_release(checkpoints: Checkpoints, sql: Any) -> None:
    frozen = await acquired(checkpoints)
    await expire(sql)
    owner = await acquired(checkpoints, "p2")
    await checkpoints.commit(owner, page(owner, 1))

    with pytest.raises(Fenced, match="taken over"):
        await checkpoints.commit(frozen, page(owner, 2, history=("frozen", "late")))
    with pytest.raises(Fenced):
        await checkpoints.renew(frozen)
    with pytest.raises(Fenced):
        await checkpoints.load(frozen)
    with pytest.raises(Fenced):
        await checkpoints.tidy(frozen, None)
    await checkpoints.release(frozen)

    state, pages = await checkpoints.load(owner)
    assert state.cursor_us == START_US + 1
    assert [seen.entries for seen in pages] == [b"<1>"]
    assert await checkpoints.history("accounts") == []


async def test_a_lease_that_ran_out_unnoticed_can_be_renewed(checkpoints: Checkpoints, sql: Any) -> None:
    grant = await acquired(checkpoints)
    await expire(sql)

    renewed = await checkpoints.renew(grant)

    assert await checkpoints.acquire("accounts", "p2", LEASE_S) is None
    assert renewed.shown_limit_us > grant.shown_limit_us


async def test_a_claim_whose_answer_was_lost_can_be_made_again(checkpoints: Checkpoints) -> None:
    lost = await acquired(checkpoints)

    again = await acquired(checkpoints)

    assert again.epoch == lost.epoch + 1
    assert again.shown_from_us >= lost.shown_limit_us


async def test_stamps_of_a_new_owner_lie_above_all_that_the_former_could_issue(
    checkpoints: Checkpoints, sql: Any
) -> None:
    former = await checkpoints.renew(await acquired(checkpoints))
    await expire(sql)

    new = await acquired(checkpoints, "p2")

    assert new.shown_from_us >= former.shown_limit_us
    assert new.shown_limit_us == new.shown_from_us + int(LEASE_S * 1e6)


async def test_a_renewal_covers_a_shown_clock_that_runs_ahead_of_postgres(checkpoints: Checkpoints, sql: Any) -> None:
    await sql.execute("UPDATE entity_cursor SET shown_limit_us = us(clock_timestamp() + interval '1 hour')")
    grant = await acquired(checkpoints)
    now_s = grant.shown_anchor_monotonic_s + LEASE_S  # its stamps are used up
    clock = ShownClock(grant, lambda: now_s)

    late = structs.replace(grant, shown_anchor_monotonic_s=grant.shown_anchor_monotonic_s - LEASE_S)
    clock.renewed(await checkpoints.renew(late))

    assert clock.start() >= grant.shown_limit_us


async def test_clean_restarts_do_not_push_the_stamps_ahead_of_the_time(checkpoints: Checkpoints) -> None:
    for number in range(20):
        grant = await acquired(checkpoints, f"p{number}")
        await checkpoints.release(grant, shown_us=ShownClock(grant).start())

    assert grant.shown_from_us < time.time() * 1e6 + LEASE_S * 1e6


# --- commit


async def test_what_was_committed_is_loaded_again(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    sweep = SweepProgress(at_us=2, until_us=3)
    state = CursorState(
        cursor_us=START_US + 9,
        swept_us=START_US + 5,
        cap_swept_us=START_US + 2,
        window_us=77,
        longest_answer_rows=12,
        newest_us=START_US + 8,
        cap_lookback=sweep,
        republish_before_us=START_US,
    )

    committed = await checkpoints.commit(grant, page(grant, 1, state=state, entries=b"\x00\xff"))

    assert (committed.seq, committed.paused_reason) == (1, None)
    expected = SeenPage(seq=1, min_us=START_US + 1, max_us=START_US + 1, entries=b"\x00\xff")
    assert await checkpoints.load(grant) == (state, [expected])


async def test_a_page_without_entries_leaves_no_row(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)

    await checkpoints.commit(grant, page(grant, 1, entries=b""))

    assert (await checkpoints.load(grant))[1] == []


async def test_the_same_page_is_recorded_once(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    once = page(grant, 1, history=("poller", "idle"))

    outcomes = [await checkpoints.commit(grant, once) for _ in range(3)]
    await asyncio.gather(*(checkpoints.commit(grant, page(grant, 2)) for _ in range(5)))

    assert outcomes == [outcomes[0]] * 3
    assert [seen.entries for seen in (await checkpoints.load(grant))[1]] == [b"<1>", b"<2>"]
    assert [move.moves for move in await checkpoints.history("accounts")] == [1]


async def test_a_stamp_that_does_not_rise_is_our_own_bug(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    await checkpoints.commit(grant, page(grant, 2))

    with pytest.raises(AssertionError, match="shown_us must rise"):
        await checkpoints.commit(grant, page(grant, 1))


async def test_the_store_refuses_stamps_beyond_the_grant(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)

    with pytest.raises(asyncpg.CheckViolationError):
        await checkpoints.commit(grant, page(grant, 1, shown_us=grant.shown_limit_us + 1))


async def test_the_cursor_stands_when_the_entries_can_not_be_written(checkpoints: Checkpoints, sql: Any) -> None:
    grant = await acquired(checkpoints)
    await sql.execute("INSERT INTO seen_page VALUES ('accounts', 1, 0, 0, 'in the way')")

    with pytest.raises(asyncpg.UniqueViolationError):
        await checkpoints.commit(grant, page(grant, 1, history=("poller", "idle")))

    assert (await checkpoints.load(grant))[0].cursor_us == START_US
    assert await checkpoints.history("accounts") == []


async def test_equal_moves_in_a_row_are_one_row_of_history(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    for number, history in enumerate(
        [("poller", "idle"), ("poller", "idle"), None, ("poller", "idle"), ("ann", "x")], 1
    ):
        await checkpoints.commit(grant, page(grant, number, history=history))

    newest, idle = await checkpoints.history("accounts")

    assert (newest.who, newest.moves, newest.cursor_from_us, newest.cursor_to_us) == (
        "ann",
        1,
        START_US + 4,
        START_US + 5,
    )
    assert (idle.who, idle.moves, idle.cursor_from_us, idle.cursor_to_us) == ("poller", 3, START_US, START_US + 4)


# --- pausing and moving


async def test_a_running_poller_learns_of_a_pause_with_its_next_call(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    assert await checkpoints.pause("accounts", "too_many_invalid", "ann")
    assert not await checkpoints.pause("accounts", "another", "bob")

    assert (await checkpoints.commit(grant, page(grant, 1))).paused_reason == "too_many_invalid"
    assert (await checkpoints.renew(grant)).paused_reason == "too_many_invalid"

    await checkpoints.release(grant)
    assert await checkpoints.acquire("accounts", "p1", LEASE_S) is None
    (status,) = await checkpoints.entities()
    assert (status.paused_reason, status.paused_by, status.cursor_us) == ("too_many_invalid", "ann", START_US + 1)


async def test_a_resumed_entity_can_be_leased(checkpoints: Checkpoints) -> None:
    await checkpoints.pause("accounts", "why", "ann")
    assert await checkpoints.resume("accounts", "bob")
    assert not await checkpoints.resume("accounts", "bob")

    assert await checkpoints.acquire("accounts", "p1", LEASE_S)
    assert [(move.who, move.why) for move in await checkpoints.history("accounts")] == [
        ("bob", "resumed"),
        ("ann", "paused: why"),
    ]


async def test_setting_the_cursor_fences_the_running_poller(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    await checkpoints.commit(grant, page(grant, 5))

    move = await checkpoints.set_cursor("accounts", START_US + 100, "ann", "skip the flood")

    with pytest.raises(Fenced):
        await checkpoints.commit(grant, page(grant, 6))
    assert (move.cursor_from_us, move.cursor_to_us, move.who) == (START_US + 5, START_US + 100, "ann")
    assert await checkpoints.history("accounts") == [move]
    fresh = await acquired(checkpoints)
    state, pages = await checkpoints.load(fresh)
    assert (state.cursor_us, state.swept_us, state.cap_swept_us) == (START_US + 100,) * 3
    assert [seen.entries for seen in pages] == [b"<5>"]
    assert fresh.unclean


async def test_a_rewind_ignores_the_digests_recorded_before_it(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    await checkpoints.commit(grant, page(grant, 5, seen_floor_us=START_US + 5))
    await checkpoints.release(grant)
    await checkpoints.set_cursor("accounts", START_US, "ann", "publish again")

    grant = await acquired(checkpoints)
    assert (await checkpoints.load(grant))[1] == []
    await checkpoints.commit(grant, page(grant, 6))

    assert [seen.entries for seen in (await checkpoints.load(grant))[1]] == [b"<6>"]
    assert [seen.entries async for seen in checkpoints.all_seen("accounts")] == [b"<5>", b"<6>"]


# --- seen pages


async def committed(checkpoints: Checkpoints, grant: Grant, sizes: list[int], floor: int = 0) -> bytes:
    """Commit one page per size; return all entries in order."""
    entries = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    for number, packed in enumerate(entries, 1):
        outcome = await checkpoints.commit(
            grant, page(grant, number, entries=packed, seen_floor_us=START_US + floor if floor else 0)
        )
        assert outcome.tidy_due == (number % SMALL.every_commits == 0)
    return b"".join(entries)


async def test_small_pages_are_joined_in_their_order(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    everything = await committed(checkpoints, grant, [100] * 25 + [600] + [10] * 5)

    tidied = await checkpoints.tidy(grant, None)

    pages = (await checkpoints.load(grant))[1]
    assert b"".join(seen.entries for seen in pages) == everything
    assert [len(seen.entries) for seen in pages] == [1000, 1000, 500, 600, 50]
    assert tidied.joined == 31 - len(pages)
    assert (pages[0].min_us, pages[0].max_us) == (START_US + 1, START_US + 10)
    assert (await checkpoints.tidy(grant, None)).joined == 0


async def test_pages_behind_the_floor_are_not_loaded_and_move_to_the_archive(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    everything = await committed(checkpoints, grant, [100] * 8, floor=6)
    bucket = Bucket()

    tidied = await checkpoints.tidy(grant, bucket)

    assert tidied.archived == 5
    assert b"".join(bucket.objects) == everything[:500]
    assert b"".join(seen.entries for seen in (await checkpoints.load(grant))[1]) == everything[500:]
    assert b"".join([seen.entries async for seen in checkpoints.all_seen("accounts")]) == everything[500:]


async def test_a_few_pages_behind_the_floor_wait_for_more(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    await committed(checkpoints, grant, [100] * 3, floor=3)

    assert (await checkpoints.tidy(grant, Bucket())).objects == []


async def test_large_pages_behind_the_floor_become_several_objects(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    everything = await committed(checkpoints, grant, [6_000] * 6, floor=7)
    bucket = Bucket()

    await checkpoints.tidy(grant, bucket)

    assert [len(entries) for entries in bucket.objects] == [12_000] * 3
    assert b"".join(bucket.objects) == everything


async def test_no_page_leaves_postgres_while_the_archive_fails(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    everything = await committed(checkpoints, grant, [100] * 8, floor=6)
    bucket = Bucket()
    bucket.fails = True

    with pytest.raises(ArchiveUnavailable):
        await checkpoints.tidy(grant, bucket)

    assert b"".join([seen.entries async for seen in checkpoints.all_seen("accounts")]) == everything


async def test_a_page_that_grew_while_it_was_archived_stays(checkpoints: Checkpoints, sql: Any) -> None:
    grant = await acquired(checkpoints)
    await committed(checkpoints, grant, [100] * 4, floor=5)

    class Joining(Bucket):
        async def put(self, entity: str, min_us: int, max_us: int, entries: bytes) -> str:
            await sql.execute("UPDATE seen_page SET entries = entries || 'x' WHERE seq = 2")
            return await super().put(entity, min_us, max_us, entries)

    tidied = await checkpoints.tidy(grant, Joining())

    assert tidied.archived == 3
    assert [seen.seq async for seen in checkpoints.all_seen("accounts")] == [2]


async def test_tidying_beside_commits_loses_and_reorders_nothing(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    written = b""

    async def tidy_for_ever() -> None:
        while True:
            await checkpoints.tidy(grant, None)

    async with asyncio.TaskGroup() as tasks:
        tidying = tasks.create_task(tidy_for_ever(), name="tidy")
        for number in range(1, 200):
            entries = f"<{number}>".encode()
            await checkpoints.commit(grant, page(grant, number, entries=entries))
            written += entries
        tidying.cancel()

    pages = (await checkpoints.load(grant))[1]
    assert b"".join(seen.entries for seen in pages) == written


# --- faults


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[TcpProxy]:
    parts = urlsplit(dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    async with TcpProxy(parts.port, target_host=parts.hostname) as opened:
        yield opened


@pytest.fixture
async def behind_proxy(checkpoints: Checkpoints, dsn: str, proxy: TcpProxy, exits: AsyncExitStack) -> Checkpoints:
    settings = PostgresSettings(
        dsn=elsewhere(dsn, port=proxy.port), connect_timeout_s=0.4, command_timeout_s=0.4, budget_s=0.8
    )
    return await Checkpoints.open(settings, exits)


@pytest.mark.parametrize("mode", ["refuse", "blackhole", "half_open", "drop_answers"])
async def test_an_outage_is_named_in_time_and_ends_by_itself(
    behind_proxy: Checkpoints, proxy: TcpProxy, mode: Mode
) -> None:
    grant = await acquired(behind_proxy)
    await proxy.set_mode(mode)
    began_s = time.monotonic()

    with pytest.raises(CheckpointsUnavailable):
        await behind_proxy.commit(grant, page(grant, 1))

    assert time.monotonic() - began_s < 4
    await proxy.set_mode("pass")
    await behind_proxy.commit(grant, page(grant, 1))
    assert [seen.entries for seen in (await behind_proxy.load(grant))[1]] == [b"<1>"]


async def test_a_commit_whose_answer_was_lost_is_recorded_once(
    behind_proxy: Checkpoints, checkpoints: Checkpoints, proxy: TcpProxy
) -> None:
    grant = await acquired(behind_proxy)
    await behind_proxy.commit(grant, page(grant, 1))
    await proxy.set_mode("drop_answers")
    with pytest.raises(CheckpointsUnavailable):
        await behind_proxy.commit(grant, page(grant, 2))
    assert (await checkpoints.load(grant))[0].cursor_us == START_US + 2  # it did arrive
    await proxy.set_mode("pass")

    assert (await behind_proxy.commit(grant, page(grant, 2))).seq == 2

    assert [seen.entries for seen in (await behind_proxy.load(grant))[1]] == [b"<1>", b"<2>"]


async def test_a_connection_in_doubt_is_cut_and_not_waited_for(
    checkpoints: Checkpoints, dsn: str, proxy: TcpProxy, exits: AsyncExitStack
) -> None:
    settings = PostgresSettings(
        dsn=elsewhere(dsn, port=proxy.port), connect_timeout_s=10, command_timeout_s=0.2, budget_s=0.01
    )
    opened = await Checkpoints.open(settings, exits)
    await opened.ping()
    await proxy.set_mode("half_open")
    began_s = time.monotonic()

    with pytest.raises(CheckpointsUnavailable):
        await opened.ping()

    assert time.monotonic() - began_s < 5


async def test_the_service_opens_while_postgres_is_down(dsn: str, proxy: TcpProxy, exits: AsyncExitStack) -> None:
    await proxy.set_mode("refuse")
    settings = PostgresSettings(dsn=elsewhere(dsn, port=proxy.port), budget_s=0.2)

    opened = await Checkpoints.open(settings, exits)

    with pytest.raises(CheckpointsUnavailable):
        await opened.ping()


async def test_a_former_primary_is_left_by_all_connections(checkpoints: Checkpoints, sql: Any, dsn: str) -> None:
    grant = await acquired(checkpoints)
    name = urlsplit(dsn).path[1:]
    await sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    repair = asyncio.get_running_loop().create_task(sql.execute(f"ALTER DATABASE {name} RESET ALL"))

    assert (await checkpoints.commit(grant, page(grant, 1))).seq == 1
    await repair


async def test_connections_that_the_server_cut_are_replaced(checkpoints: Checkpoints, sql: Any) -> None:
    grant = await acquired(checkpoints)
    for number in range(1, 6):
        await sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await checkpoints.commit(grant, page(grant, number))

    assert len((await checkpoints.load(grant))[1]) == 5


async def test_a_pooler_in_transaction_mode_is_sent_no_settings_and_no_named_statements(
    dsn: str, checkpoints: Checkpoints, sql: Any, exits: AsyncExitStack
) -> None:
    plain = await Checkpoints.open(PostgresSettings(dsn=dsn, pgbouncer=True, connections_max=1), exits)
    grant = await acquired(plain)
    await plain.commit(grant, page(grant, 1))

    names = await sql.fetchval(
        "SELECT array_agg(DISTINCT application_name) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert "" in names


async def test_a_cancelled_commit_leaves_the_pool_whole(checkpoints: Checkpoints) -> None:
    grant = await acquired(checkpoints)
    for turns in range(40):
        task = asyncio.ensure_future(checkpoints.commit(grant, page(grant, 1)))
        for _ in range(turns % 10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(checkpoints.commit(grant, page(grant, 1)) for _ in range(20)))
    assert [seen.entries for seen in (await checkpoints.load(grant))[1]] == [b"<1>"]


@asynccontextmanager
async def tls_front(dsn: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Answers Postgres's request for TLS in front of a server that has none; gives its port."""
    parts = urlsplit(dsn)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while received := await reader.read(65536):
            writer.write(received)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            assert await reader.readexactly(8) == bytes.fromhex("0000000804d2162f")  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        writer.transport.abort()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("name", "trusted", "accepted"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("pg.example", True, False)],
)
async def test_with_a_ca_file_only_a_server_that_proves_its_name_is_talked_to(
    dsn: str, checkpoints: Checkpoints, tmp_path: Path, name: str, trusted: bool, accepted: bool
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")

    async with tls_front(dsn, context) as port, AsyncExitStack() as exits:
        settings = PostgresSettings(dsn=elsewhere(dsn, port=port), ca_file=tmp_path / "ca.pem")
        opened = await Checkpoints.open(settings, exits)
        if accepted:
            await opened.ping()
        else:
            with pytest.raises(CheckpointsMisconfigured, match="ca_file"):
                await opened.ping()


async def test_a_server_without_tls_is_refused_when_a_ca_file_is_set(
    dsn: str, checkpoints: Checkpoints, exits: AsyncExitStack, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    opened = await Checkpoints.open(PostgresSettings(dsn=dsn, ca_file=tmp_path / "ca.pem", budget_s=0.1), exits)

    with pytest.raises(CheckpointsUnavailable, match="SSL"):
        await opened.ping()


async def test_a_password_file_is_read_for_each_connection(
    dsn: str, checkpoints: Checkpoints, exits: AsyncExitStack, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("app\n")
    opened = await Checkpoints.open(PostgresSettings(dsn=dsn, password_file=file, connections_max=1), exits)
    await opened.ping()
    file.unlink()

    await opened.ping()  # the connection is there already
    another = await Checkpoints.open(PostgresSettings(dsn=dsn, password_file=file), exits)
    with pytest.raises(CheckpointsMisconfigured, match="the secret can't be read"):
        await another.ping()


async def test_owners_that_lose_their_leases_all_the_time_never_commit_out_of_turn(
    checkpoints: Checkpoints, sql: Any
) -> None:
    """Four pollers whose leases run out at any moment: the stamps of what they commit rise, and nothing is lost."""
    stamps: list[tuple[int, int]] = []
    fenced = 0

    async def poller(name: str) -> None:
        nonlocal fenced
        while fenced < 20:
            grant = await checkpoints.acquire("accounts", name, LEASE_S)
            if grant is None:
                continue
            clock = ShownClock(grant)
            try:
                while fenced < 20:
                    last_us = clock.take(clock.start(), 3)
                    outcome = await checkpoints.commit(grant, page(grant, 1, shown_us=last_us))
                    stamps.append((outcome.seq, last_us))
            except Fenced:
                fenced += 1

    async def thief() -> None:
        while fenced < 20:
            await expire(sql)

    async with asyncio.timeout(60):
        await asyncio.gather(thief(), *(poller(f"p{number}") for number in range(4)))

    ordered = [stamp for _, stamp in sorted(stamps)]
    assert ordered == sorted(set(ordered))
    assert [seq for seq, _ in sorted(stamps)] == list(range(1, len(stamps) + 1))
    assert len([seen async for seen in checkpoints.all_seen("accounts")]) == len(stamps)


WORKER = """
import asyncio, os, sys
from contextlib import AsyncExitStack
from shared.checkpoints.model import CursorState, PageCommit
from shared.checkpoints.postgres import Checkpoints
from shared.checkpoints.settings import PostgresSettings

async def main():
    async with AsyncExitStack() as stack:
        checkpoints = await Checkpoints.open(PostgresSettings(dsn=sys.argv[1]), stack)
        grant = await checkpoints.acquire("accounts", str(os.getpid()), 0.2)
        state, pages = await checkpoints.load(grant)
        for number in range(1, 1_000_000):
            at_us = state.cursor_us + number
            moved = CursorState(cursor_us=at_us, swept_us=0, cap_swept_us=0)
            print(at_us, flush=True)
            await checkpoints.commit(grant, PageCommit(state=moved, shown_us=grant.shown_from_us + number,
                seen_floor_us=0, entries=at_us.to_bytes(8, "big"), min_us=at_us, max_us=at_us))
            grant = await checkpoints.renew(grant) if number % 50 == 0 else grant
            if number % 64 == 0:
                await checkpoints.tidy(grant, None)

asyncio.run(main())
"""


async def test_a_killed_poller_leaves_cursor_and_entries_in_step(checkpoints: Checkpoints, sql: Any, dsn: str) -> None:
    announced = START_US
    for kill in range(4):
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, dsn, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
        )
        assert worker.stdout is not None
        for _ in range(60 + 37 * kill):
            announced = int(await worker.stdout.readline())
        worker.kill()
        rest, _ = await worker.communicate()
        announced = int(rest.split()[-1]) if rest else announced
        await expire(sql)

        status = (await checkpoints.entities())[0]
        recorded = b"".join([seen.entries async for seen in checkpoints.all_seen("accounts")])
        cursors = [int.from_bytes(recorded[i : i + 8], "big") for i in range(0, len(recorded), 8)]
        assert cursors == list(range(START_US + 1, status.cursor_us + 1))
        assert status.cursor_us in (announced - 1, announced)
