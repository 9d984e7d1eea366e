"""Stamps, migrations and the archive, without a server."""

from typing import Any

import pytest
import zstandard
from botocore.exceptions import ClientError, EndpointConnectionError
from msgspec import structs

from shared.checkpoints.archive import ArchiveUnavailable, S3SeenArchive
from shared.checkpoints.migrations import migrations
from shared.checkpoints.model import COLUMNS, CursorState, Grant, moved
from shared.checkpoints.postgres import Checkpoints
from shared.checkpoints.settings import PostgresSettings
from shared.checkpoints.shown import ShownClock, ShownLimitReached

GRANT = Grant(
    entity="accounts",
    owner="p1",
    epoch=3,
    lease_s=1.0,
    lease_until_monotonic_s=51.0,
    shown_from_us=5_000_000,
    shown_limit_us=6_000_000,
    shown_anchor_monotonic_s=50.0,
    unclean=False,
)


class Monotonic:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_stamps_follow_the_monotonic_clock_from_where_the_grant_begins() -> None:
    monotonic = Monotonic()
    clock = ShownClock(GRANT, monotonic)
    assert clock.start() == 5_000_000
    monotonic.now_s += 0.25

    assert clock.start() == 5_250_000


def test_stamps_rise_even_when_rows_come_faster_than_microseconds() -> None:
    clock = ShownClock(GRANT, Monotonic())

    pages = []
    for rows in (3, 0, 1, 2):
        start_us = clock.start()
        pages.append((start_us, clock.take(start_us, rows)))

    assert pages == [(5_000_000, 5_000_002), (5_000_003, 5_000_003), (5_000_004, 5_000_004), (5_000_005, 5_000_006)]


def test_no_stamp_is_issued_at_or_beyond_the_limit() -> None:
    monotonic = Monotonic()
    clock = ShownClock(GRANT, monotonic)
    monotonic.now_s += 0.999999
    start_us = clock.start()

    with pytest.raises(ShownLimitReached, match="renew the lease"):
        clock.take(start_us, 2)
    assert clock.last_us == GRANT.shown_from_us - 1
    assert clock.take(start_us, 1) == GRANT.shown_limit_us - 1
    with pytest.raises(ShownLimitReached):
        clock.start()


def test_a_renewal_raises_the_limit_and_never_lowers_it() -> None:
    monotonic = Monotonic()
    clock = ShownClock(GRANT, monotonic)
    monotonic.now_s += 5
    clock.renewed(structs.replace(GRANT, shown_limit_us=20_000_000))
    clock.renewed(GRANT)

    assert clock.start() == 10_000_000


def test_a_request_that_began_before_the_last_stamp_can_not_be_stamped() -> None:
    clock = ShownClock(GRANT, Monotonic())
    old_us = clock.start()
    clock.take(clock.start(), 1)

    with pytest.raises(AssertionError):
        clock.take(old_us, 1)


def test_every_field_of_the_state_is_a_column_or_has_a_default() -> None:
    fields = structs.fields(CursorState)
    sql = migrations()[0].sql

    assert [field.name for field in fields[: len(COLUMNS)]] == list(COLUMNS)
    assert all(not field.required for field in fields[3:])
    assert all(f"    {name} " in sql for name in COLUMNS)


def test_moving_a_cursor_moves_both_swept_marks() -> None:
    state = CursorState(cursor_us=9, swept_us=5, cap_swept_us=2, window_us=7, newest_us=8)

    after = moved(state, 100)

    assert (after.cursor_us, after.swept_us, after.cap_swept_us, after.window_us) == (100, 100, 100, 7)
    assert after.newest_us is None


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_settings_are_never_printed_with_the_password() -> None:
    assert "secret" not in repr(PostgresSettings(dsn="postgresql://u:secret@h/d"))


@pytest.mark.parametrize("schema", ['x"; DROP', "", "Tidemark", "a-b", "a" * 64])
def test_a_schema_name_that_would_need_quoting_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="is no name for a schema"):
        Checkpoints(None, schema)  # type: ignore[arg-type]


class S3:
    """One bucket that honours If-None-Match, and fails when told."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.error: Exception | None = None

    async def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> None:
        assert (Bucket, IfNoneMatch) == ("raw", "*")
        if self.error:
            raise self.error
        if Key in self.objects:
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
        self.objects[Key] = Body


async def test_archived_entries_are_one_object_however_often_they_are_put() -> None:
    s3: Any = S3()
    archive = S3SeenArchive(s3, "raw")

    keys = {await archive.put("accounts", 5, 9, b"entries" * 100) for _ in range(3)}

    assert keys == set(s3.objects)
    (key,) = keys
    assert key.startswith(f"seen/accounts/{5:020d}-{9:020d}-")
    assert zstandard.ZstdDecompressor().decompress(s3.objects[key]) == b"entries" * 100


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "SlowDown"}}, "PutObject"),
        EndpointConnectionError(endpoint_url="http://h"),
        TimeoutError(),
    ],
)
async def test_a_bucket_that_does_not_take_the_object_is_unavailable(error: Exception) -> None:
    s3: Any = S3()
    s3.error = error

    with pytest.raises(ArchiveUnavailable):
        await S3SeenArchive(s3, "raw").put("accounts", 5, 9, b"entries")
