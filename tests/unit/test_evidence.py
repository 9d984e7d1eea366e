"""Evidence and its chain: adopted, not overwritten; altered, deleted or slipped in, and it is found."""

import asyncio
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from shared.parked.evidence import (
    Archive,
    ArchiveUnavailable,
    EvidenceDamaged,
    EvidenceMissing,
    Written,
    evidence_key,
    unpack,
)
from shared.parked.evidence_audit import AuditReport, verify
from shared.parked.evidence_chain import OBJECTS_MAX, Chain, entry_key, read_entry
from shared.parked.items import draft_of, meta_item
from shared.parked.leases import Error, Row, read_row
from shared.parked.model import KafkaPosition, undecodable
from tests.fakes.s3_client import FakeS3
from tests.fakes.stale_bench import stale_event

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def row_of(number: int, **changes: Any) -> Row:
    event = stale_event(number, at_us=1_769_860_800_000_000, **changes)
    row = read_row(meta_item(draft_of(event, 1, 300_000)))
    return replace(row, event=event, nonce=f"{number:016x}", errs=(Error(1, "invalid", "/balance"),), stale_why="age")


class World:
    def __init__(self) -> None:
        self.s3 = FakeS3()
        self.archive = Archive("archive", "ns/", self.s3, budget_s=0.2)

    def ms(self) -> int:
        return int(self.s3.now.timestamp() * 1000)

    def chain(self, archive: Archive | None = None) -> Chain:
        return Chain(archive or self.archive, self.ms)

    async def archived(self, chain: Chain, *numbers: int) -> list[Written]:
        written = [await self.archive.keep(row_of(number)) for number in numbers]
        await chain.append(written)
        return written

    async def audit(self, **options: Any) -> AuditReport:
        return await verify(self.archive, self.ms() + 7_200_000, **options)

    async def kinds(self, **options: Any) -> list[str]:
        report = await self.audit(**options)
        assert report.problem_count == len(report.problems)
        return [problem.kind for problem in report.problems]

    def entry(self, day: str, number: int) -> str:
        return "ns/" + entry_key(day, number)


@pytest.fixture
def world() -> World:
    return World()


async def test_what_is_read_from_the_archive_is_what_was_parked(world: World) -> None:
    position = KafkaPosition("cdc.accounts", 1, 0, 42, 7, b"k", (("tm-op", b"u"),))
    record = undecodable(
        entity="accounts", position=position, value=b"\x00\xff", detail="trailing bytes", subject="s",
        fingerprint="f", owner="ledger", at_us=5,
    )  # fmt: skip
    for row in (row_of(1), replace(row_of(2), event=record)):
        written = await world.archive.keep(row, b"as parked")
        uri = world.archive.uri(written.key)

        assert await world.archive.read(uri) == row.event
        evidence = await world.archive.evidence(uri)
        assert (evidence.original, evidence.history.errors, evidence.history.stale_why) == (
            b"as parked",
            row.errs,
            "age",
        )
        assert written.sha256 == sha256(world.s3.objects["ns/" + written.key][0]).hexdigest()
        assert await world.archive.holds(uri, written.sha256)
        assert not await world.archive.holds(uri, "0" * 64)


async def test_a_key_is_the_same_at_each_attempt_and_another_in_the_next_round() -> None:
    row = row_of(1)

    assert evidence_key(row) == f"evidence/2026/01/31/accounts/{row.item_id}/0000-{row.nonce}.json.zst"
    assert evidence_key(replace(row, tries=9, ver=9)) == evidence_key(row)
    assert evidence_key(replace(row, round=1)) != evidence_key(row)


async def test_evidence_that_stands_there_is_adopted_with_its_own_digest(world: World) -> None:
    first = await world.archive.keep(row_of(1))
    again = await world.archive.keep(replace(row_of(1), tries=5))

    assert again == first
    assert world.s3.puts == 1


async def test_something_else_that_stands_there_is_not_adopted(world: World) -> None:
    row = row_of(1)
    await world.archive.create(evidence_key(row), b"other", {"sha256": "x", "raw-sha256": "y"})

    with pytest.raises(EvidenceDamaged, match="another object"):
        await world.archive.keep(row)


async def test_an_archive_that_is_down_is_unavailable_within_the_budget(world: World) -> None:
    world.s3.down = True
    with pytest.raises(ArchiveUnavailable):
        await world.archive.keep(row_of(1))
    assert await world.archive.answers() is not None


async def test_a_uri_of_another_bucket_and_one_of_nothing_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="TIDEMARK_ARCHIVE_BUCKET"):
        await world.archive.read("s3://other/ns/evidence/x")
    with pytest.raises(EvidenceMissing):
        await world.archive.read("s3://archive/ns/evidence/x")


async def test_evidence_is_listed_by_day_and_entity(world: World) -> None:
    days = (NOON, NOON + timedelta(days=1), NOON + timedelta(days=2))
    rows = [replace(row_of(place), first_at_ms=int(day.timestamp() * 1000)) for place, day in enumerate(days)]
    other = row_of(9, entity="loans")
    for row in (*rows, other):
        await world.archive.keep(row)
    uris = [world.archive.uri(evidence_key(row)) for row in rows]

    assert [uri async for uri in world.archive.uris(entity="accounts")] == uris
    assert [uri async for uri in world.archive.uris(entity="accounts", since_day="2026-02-01")] == uris[1:]
    assert [uri async for uri in world.archive.uris(entity="accounts", until_day="2026-02-01")] == uris[:2]
    assert len([uri async for uri in world.archive.uris()]) == 4


async def test_a_whole_chain_over_days_has_no_problems(world: World) -> None:
    chain = world.chain()
    for day in range(3):
        await world.archived(chain, day * 2, day * 2 + 1)
        world.s3.now += timedelta(days=1 + day)
    await world.archived(world.chain(), 100)  # another process goes on
    report = await world.audit()

    assert (report.problems, report.days, report.entries, report.objects) == ([], 4, 7, 7)
    assert report.head is not None
    assert await world.kinds(expect_head=report.head.sha256) == []
    assert await world.kinds(day="2026-02-01") == []
    assert (await world.audit(day="2026-02-01")).objects == 2
    assert await world.kinds(day="2026-03-01") == []


async def test_many_notifiers_make_one_chain_without_forks(world: World) -> None:
    chains = [world.chain() for _ in range(4)]

    async def busy(number: int) -> None:
        for place in range(6):
            await world.archived(chains[number], number * 100 + place)
            if place == 3 and number == 0:
                world.s3.now += timedelta(days=1)

    await asyncio.gather(*(busy(number) for number in range(4)))
    report = await world.audit()

    assert (report.problems, report.objects) == ([], 24)
    assert report.entries == 25, "24, and the one that closes the first day"


async def test_appending_twice_after_a_crash_does_no_harm(world: World) -> None:
    written = await world.archived(world.chain(), 1)
    await world.chain().append(written)
    report = await world.audit()

    assert (report.problems, report.entries, report.objects) == ([], 2, 1)


async def test_a_clock_that_went_back_does_not_take_the_chain_with_it(world: World) -> None:
    await world.archived(world.chain(), 1)
    world.s3.now -= timedelta(days=2)
    await world.archived(world.chain(), 2)

    assert (await world.audit()).entries == 2
    assert await world.kinds() == []


async def test_long_lists_are_split_over_entries(world: World) -> None:
    many = [Written(f"evidence/x/{number}", "0" * 64) for number in range(OBJECTS_MAX + 1)]
    await world.chain().append(many)

    sizes = [len(read_entry(key[3:], body).objects) for key, (body, _, _) in world.s3.objects.items()]
    assert sizes == [OBJECTS_MAX, 1]


async def test_evidence_that_was_altered_is_found(world: World) -> None:
    [written, _] = await world.archived(world.chain(), 1, 2)
    other = await world.archive.keep(row_of(3))
    world.s3.objects["ns/" + written.key] = world.s3.objects.pop("ns/" + other.key)

    assert await world.kinds() == ["altered"]


async def test_evidence_that_was_deleted_is_found(world: World) -> None:
    [written, _] = await world.archived(world.chain(), 1, 2)
    del world.s3.objects["ns/" + written.key]

    assert await world.kinds() == ["deleted"]
    assert await world.kinds(day="2026-01-31") == ["deleted"]


async def test_evidence_that_was_slipped_in_is_found_once_it_is_no_longer_young(world: World) -> None:
    await world.archived(world.chain(), 1)
    await world.archive.keep(row_of(2))

    assert await world.kinds() == ["inserted"]
    assert await world.kinds(day="2026-01-31") == ["inserted"]
    assert await world.kinds(day="2026-01-30") == []
    young = await verify(world.archive, world.ms() + 1000)
    assert (young.problems, young.waiting) == ([], 1)


async def four_entries(world: World) -> None:
    """Three on the first day and the one that closes it; one on the next."""
    chain = world.chain()
    for number in range(3):
        await world.archived(chain, number)
    world.s3.now += timedelta(days=1)
    await world.archived(chain, 3)


@pytest.mark.parametrize(("number", "expected"), [(0, "entry_deleted"), (1, "entry_deleted"), (3, "entry_deleted")])
async def test_an_entry_that_was_deleted_is_found(world: World, number: int, expected: str) -> None:
    await four_entries(world)
    del world.s3.objects[world.entry("2026-01-31", number)]

    assert expected in await world.kinds()


async def test_a_day_that_was_deleted_is_found(world: World) -> None:
    await four_entries(world)
    for number in range(4):
        del world.s3.objects[world.entry("2026-01-31", number)]

    assert await world.kinds() == ["chain_broken", "inserted", "inserted", "inserted"]


async def test_the_newest_entries_cut_off_leave_their_evidence_behind(world: World) -> None:
    await four_entries(world)
    head = (await world.audit()).head
    assert head is not None
    del world.s3.objects[world.entry("2026-02-01", 0)]

    assert await world.kinds() == ["inserted"]
    del world.s3.objects["ns/" + evidence_key(row_of(3))]
    assert await world.kinds() == [], "what no chain can tell by itself"
    assert await world.kinds(expect_head=head.sha256) == ["chain_broken"]


async def test_an_entry_that_was_rewritten_is_found_by_the_next_one(world: World) -> None:
    await four_entries(world)
    key = world.entry("2026-01-31", 1)
    body, metadata, modified = world.s3.objects[key]
    world.s3.objects[key] = (body.replace(b'"number":1', b'"number": 1'), metadata, modified)

    assert await world.kinds() == ["chain_broken"]
    assert await world.kinds(day="2026-01-31") == ["chain_broken"]
    world.s3.objects[key] = (b"{}", metadata, modified)
    assert set(await world.kinds()) == {"entry_altered", "chain_broken", "inserted"}


async def test_a_foreign_object_among_the_entries_is_found_and_stops_nobody(world: World) -> None:
    await four_entries(world)
    await world.archive.create("chain/2026-01-31/zzz", b"?", {})
    await world.archive.create("chain/notes/1", b"?", {})
    await world.archived(world.chain(), 7)

    assert await world.kinds() == ["inserted", "inserted"]


async def test_an_entry_appended_behind_the_closing_one_is_found(world: World) -> None:
    await four_entries(world)
    key = world.entry("2026-01-31", 4)
    body, metadata, modified = world.s3.objects[world.entry("2026-01-31", 1)]
    world.s3.objects[key] = (body.replace(b'"number":1', b'"number":4'), metadata, modified)

    assert "chain_broken" in await world.kinds()


def test_bytes_that_are_no_evidence_are_damaged() -> None:
    for body in (b"", b"nonsense", b"{}"):
        with pytest.raises(EvidenceDamaged):
            unpack(body)
