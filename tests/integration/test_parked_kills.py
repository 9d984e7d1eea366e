"""An operator's command that is killed at any of its calls, and typed again: nothing is lost, nothing deleted that is
not archived."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Struct

from services.cli.parked_archive import run_job
from services.cli.parked_discard import By, Discarding
from shared.parked.bulk import Pace, Waker
from shared.parked.calls import Calls, Lanes
from shared.parked.evidence import Archive, unpack
from shared.parked.evidence_audit import verify
from shared.parked.evidence_chain import Chain
from shared.parked.jobs import FromArchive, Job, JobStore
from shared.parked.leases import Row, read_row
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.selection import Selection
from shared.parked.store import ParkedStore
from shared.parked.transitions import Clocks, Transitions
from tests.fakes.dying_client import Death, DyingClient, Killed
from tests.fakes.stale_bench import StaleBench, stale_bench, stale_event

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
AT_ONCE = 6
BY = By("deed", "operator", "of no use")
DAY = "2026-01-31"
DAY_US = 1_769_860_800_000_000


@pytest.fixture
async def bench(stack: Any) -> AsyncIterator[StaleBench]:
    async with stale_bench() as made:
        yield made


class Run(Struct):
    """One run of a command, with clients of its own; ``later_s``: after so many seconds."""

    store: ParkedStore
    rows: Transitions
    archive: Archive
    jobs: JobStore


def run_of(bench: StaleBench, name: str, death: Death, later_s: float = 0.0) -> Run:
    dynamodb, s3 = DyingClient(bench.client, death), DyingClient(bench.s3, death)
    store = ParkedStore(bench.settings, dynamodb, s3)
    clocks = Clocks(wall_ms=lambda: now_ms() + int(later_s * 1000), bound_s=None)
    jobs = JobStore(Calls(dynamodb, bench.table, Lanes(4)), bench.table, now_ms)
    return Run(store, store.transitions_by(clocks), Archive(bench.archive_bucket, f"{name}/", s3), jobs)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def dies(command: Coroutine[Any, Any, object]) -> None:
    with pytest.raises((Killed, BaseExceptionGroup)) as died:
        await command
    if isinstance(died.value, BaseExceptionGroup):
        assert died.value.split(Killed)[1] is None


async def rows_of(bench: StaleBench, name: str) -> list[Row]:
    scan: dict[str, Any] = {
        "TableName": bench.table,
        "ConsistentRead": True,
        "FilterExpression": "entity = :entity",
        "ExpressionAttributeValues": {":entity": {"S": name}},
    }
    answer = await bench.client.scan(**scan)
    assert "LastEvaluatedKey" not in answer, "more than a megabyte"
    return [read_row(item) for item in answer["Items"]]


async def archived_raws(archive: Archive) -> dict[str, set[str]]:
    """Event id → digests of the original bytes that lie in the archive."""
    found: dict[str, set[str]] = {}
    async for uri in archive.uris():
        evidence = await archive.evidence(uri)
        raw = evidence.event.raw if evidence.original is None else evidence.original
        found.setdefault(evidence.event.event_id, set()).add(sha256(raw).hexdigest())
    return found


async def rounds(calls: int, one: Callable[[int, bool], Awaitable[None]]) -> None:
    """``one(at, after)``: before and after each call; in CI before every fourth and after every fourth."""
    every = [(at, after) for at in range(1, calls + 1) for after in (False, True)]
    plans = every if FULL else [(at, after) for at, after in every if at % 4 == (3 if after else 1)]
    lanes = asyncio.Semaphore(AT_ONCE)

    async def in_lane(at: int, after: bool) -> None:
        async with lanes:
            await one(at, after)

    async with asyncio.TaskGroup() as tasks:
        for at, after in plans:
            tasks.create_task(in_lane(at, after))
    print(f"{len(plans)} kills, {calls} calls")


# Discarding


async def for_discard(bench: StaleBench, name: str) -> list[ParkedEvent]:
    """One that was edited, and one that the notifier has archived already."""
    edited, stale = (stale_event(number, entity=name, raw=b'{"n": %d}' % number) for number in (1, 2))
    await bench.store.park([edited])
    await bench.park_stale([stale])
    transitions = run_of(bench, name, Death()).rows
    for row in await rows_of(bench, name):
        if row.state is not State.STALE:
            await transitions.edit(row, b'{"n": "better"}', "operator", "a try")
            continue
        claimed = await transitions.claim(row, "notifier", 60, early=True)
        assert claimed is not None
        archive = run_of(bench, name, Death()).archive
        written = await archive.keep(claimed)
        await Chain(archive).append([written])
        claimed = await transitions.archived(claimed, archive.uri(written.key), written.sha256)
        await transitions.again(claimed, now_ms(), "waits_for_notice", counts=False)
    return [edited, stale]


async def discard(bench: StaleBench, name: str, run: Run) -> Discarding:
    selection = Selection(entities=(name,))
    page = await bench.store.find(ParkedFilter(entities=(name,)), limit=100)
    discarding = Discarding(run.rows, run.archive, Chain(run.archive), selection, BY)
    await discarding.work(page.rows, Pace(1e6), lambda _: None)
    return discarding


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_discard_killed_at_any_call_and_typed_again_loses_nothing_and_deletes_nothing_unarchived(
    bench: StaleBench,
) -> None:
    await for_discard(bench, "clean")
    counting = Death()
    done = await discard(bench, "clean", run_of(bench, "clean", counting))
    assert done.fates == {"discarded": 2}

    async def one(at: int, after: bool) -> None:
        name = f"at{at}-{after}"
        events = await for_discard(bench, name)
        await dies(discard(bench, name, run_of(bench, name, Death(at, after=after))))
        await _is_kept(bench, name, events)

        again = await discard(bench, name, run_of(bench, name, Death(), later_s=90))
        assert again.fates["busy"] == again.fates["not archived"] == 0, name
        assert await rows_of(bench, name) == [], name
        await _is_kept(bench, name, events)
        report = await verify(run_of(bench, name, Death()).archive, now_ms())
        assert (report.problem_count, report.waiting, report.objects) == (0, 0, 2), name

    await rounds(len(counting.calls), one)


async def _is_kept(bench: StaleBench, name: str, events: Sequence[ParkedEvent]) -> None:
    """Each event is in the table, whole, or in the archive with the bytes that it was parked with."""
    archive = run_of(bench, name, Death()).archive
    left = {row.event.event_id: row for row in await rows_of(bench, name)}
    archived = await archived_raws(archive)
    for event in events:
        digest = sha256(event.raw).hexdigest()
        if row := left.get(event.event_id):
            assert await bench.store.transitions.original(row) == event.raw, name
            await bench.store.transitions.body(row)
        else:
            assert archived.get(event.event_id) == {digest}, name


# Back from the archive


async def for_return(bench: StaleBench, name: str, count: int) -> list[ParkedEvent]:
    """Nothing of them is left but their evidence."""
    events = [stale_event(n, entity=name, at_us=DAY_US + n, raw=b'{"n": %d}' % n) for n in range(count)]
    await bench.park_stale(events)
    archive = run_of(bench, name, Death()).archive
    for row in await rows_of(bench, name):
        claimed = await bench.store.transitions.claim(row, "notifier", 60, early=True)
        assert claimed is not None
        written = await archive.keep(claimed)
        assert unpack(await archive.get(written.key) or b"").event.event_id == row.event.event_id
        await bench.client.delete_item(TableName=bench.table, Key={"pk": {"S": row.pk}, "sk": {"S": row.sk}})
    return events


async def put_back(run: Run, job: Job) -> Job:
    """The command's own job, over edges of ours."""

    async def edge(of: Any) -> Any:
        return of

    edges: Any = SimpleNamespace(
        desk=lambda: edge(SimpleNamespace(jobs=run.jobs)),
        archive=lambda: edge(run.archive),
        parked=lambda: edge(run.store),
        entities=SimpleNamespace(entities={}),
        patience=lambda _: None,
    )
    waker = Waker(run.rows, now_ms, edges.patience)
    return await run_job(edges, job, waker, Pace(8.0, sleep=_at_once), lambda _: None)


async def _at_once(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.mark.timeout(600 if FULL else 180)
async def test_a_return_from_the_archive_killed_at_any_call_goes_on_and_parks_each_event_once(
    bench: StaleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.parked_archive.SAVE_S", 0.0)
    count = 4  # two chunks

    async def begun(name: str) -> tuple[list[ParkedEvent], Job]:
        events = await for_return(bench, name, count)
        job = Job(
            id=name, who="operator", why="", per_second=8.0, archive=FromArchive(name, DAY), total=count,
            created_ms=1, changed_ms=1,
        )  # fmt: skip
        return events, await run_of(bench, name, Death()).jobs.save(job)

    counting = Death()
    _, job = await begun("clean")
    done = await put_back(run_of(bench, "clean", counting), job)
    assert (done.counts, done.done) == ({"woken": count}, True)

    async def one(at: int, after: bool) -> None:
        name = f"at{at}-{after}"
        events, job = await begun(name)
        await dies(put_back(run_of(bench, name, Death(at, after=after)), job))
        jobs = run_of(bench, name, Death()).jobs
        saved = await jobs.get(job.id)
        if not saved.done:
            saved = await put_back(run_of(bench, name, Death()), saved)

        assert (saved.done, sum(saved.counts.values())) == (True, count), name
        rows = await rows_of(bench, name)
        assert sorted(row.event.event_id for row in rows) == sorted(event.event_id for event in events), name
        assert {(row.state, row.event.rev) for row in rows} == {(State.PARKED, 0)}, name
        bodies = {row.event.event_id: await bench.store.transitions.body(row) for row in rows}
        assert bodies == {event.event_id: event.raw for event in events}, name

    await rounds(len(counting.calls), one)
