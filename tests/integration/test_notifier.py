"""The notifier on a real DynamoDB and a real bucket: killed, doubled, with channels down; and its promise holds."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.stale_notifier.grouping import Timing, opened
from shared.parked.calls import Calls, Lanes
from shared.parked.evidence_audit import verify
from shared.parked.evidence_chain import Chain
from shared.parked.groups import GroupStore, Told, cause_of
from shared.parked.model import SHARDS, ParkedEvent, State
from tests.fakes.http_source import Reply
from tests.fakes.notices import HttpReceiver
from tests.fakes.parked_bench import LossyDynamo
from tests.fakes.stale_bench import CANARY, SECRET, StaleBench, stale_bench, stale_event, webhook, write_entities

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
KILLS = 100
WITHIN_S = 60.0
ROOT = Path(__file__).parents[2]

QUICK = {
    "TIDEMARK_NOTIFIER_LEASE_S": "2",
    "TIDEMARK_NOTIFIER_POLL_S": "0.1",
    "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "0.5",
    "TIDEMARK_NOTIFIER_LOOK_S": "0.5",
    "TIDEMARK_NOTIFIER_SETTLE_S": "0.5",
    "TIDEMARK_NOTIFIER_REFRESH_S": "1",
    "TIDEMARK_LOG_FORMAT": "json",
    "NOTICE_SECRET": SECRET,
}


@pytest.fixture
async def bench(stack: Any) -> AsyncIterator[StaleBench]:
    async with stale_bench() as made:
        yield made


class Notifiers:
    """Child processes of one test."""

    def __init__(self, bench: StaleBench, entities: Path, log: Path, **settings: str) -> None:
        self._environ = {
            **os.environ,
            **QUICK,
            "TIDEMARK_ENTITIES_DIR": str(entities),
            "TIDEMARK_PARKED_TABLE": bench.table,
            "TIDEMARK_PARKED_BUCKET": bench.archive_bucket,
            "TIDEMARK_ARCHIVE_BUCKET": bench.archive_bucket,
            **settings,
        }
        self._log = log
        self._children: list[asyncio.subprocess.Process] = []

    async def start(self) -> asyncio.subprocess.Process:
        with self._log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.stale_notifier"),
                cwd=ROOT,
                env=self._environ,
                stdout=output,
                stderr=output,
            )
        self._children.append(child)
        return child

    async def until(
        self, claim: Callable[[], Awaitable[bool]], within_s: float = WITHIN_S, pause_s: float = 0.1
    ) -> None:
        deadline_s = time.monotonic() + within_s
        while not await claim():
            dead = [child.returncode for child in self._children if child.returncode not in (None, -signal.SIGKILL)]
            assert not dead, f"a notifier has ended with {dead}:\n{self._log.read_text()[-3000:]}"
            assert time.monotonic() < deadline_s, f"it did not come about in time:\n{self._log.read_text()[-3000:]}"
            await asyncio.sleep(pause_s)

    async def __aenter__(self) -> "Notifiers":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def said(self, event: str, times: int = 1) -> Callable[[], Awaitable[bool]]:
        async def has_said() -> bool:
            return Counter(line["event"] for line in self.lines)[event] >= times

        return has_said

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]


async def whole(bench: StaleBench, ids: set[str]) -> dict[str, Any]:
    """The conservation law over the table and the archive; the rows that are left, by event id."""
    left = {row.event.event_id: row for row in await bench.rows()}
    archived = await bench.archived_ids()
    assert ids <= left.keys() | archived
    for row in left.values():
        assert not row.ntf or row.arch_sha is not None
        assert row.arch_sha is None or row.event.event_id in archived
    return left


def all_told(bench: StaleBench) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return not await bench.untold()

    return told


def none_left(bench: StaleBench) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        return not await bench.left()

    return empty


def notices(receiver: HttpReceiver) -> list[dict[str, Any]]:
    return [json.loads(posted.body)["data"] for posted in receiver.posted]


@pytest.mark.timeout(300)
async def test_2000_equal_stale_events_make_one_notice(bench: StaleBench, tmp_path: Path) -> None:
    events = [stale_event(number) for number in range(2_000)]
    await bench.park_stale(events)
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        settings = {"TIDEMARK_NOTIFIER_LEASE_S": "30", "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "2"}
        async with Notifiers(bench, entities, tmp_path / "log", **settings) as notifiers:
            started_s = time.monotonic()
            await notifiers.start()
            await notifiers.until(all_told(bench), 240, pause_s=2)
            print(f"2000 stale events archived and told of in {time.monotonic() - started_s:.1f} s")

    left = await whole(bench, {event.event_id for event in events})
    assert len(left) == 2_000, "in their grace"
    assert len({row.ntf for row in left.values()}) == 1, "one receipt for all"
    [notice] = notices(receiver)
    assert notice["count"] == 2_000
    report = await verify(bench.archive, time.time_ns() // 1_000_000)
    assert (report.problem_count, report.waiting, report.objects) == (0, 0, 2_000)
    everything = (tmp_path / "log").read_text() + "".join(posted.body.decode() for posted in receiver.posted)
    assert CANARY not in everything
    assert "north" in everything, "of a field that the contract marks public"


@pytest.mark.full("tests/faults has a death at each step, and ten at random with retriers beside them")
@pytest.mark.timeout(120 + 8 * KILLS)
async def test_a_notifier_killed_at_any_moment_deletes_nothing_untold_and_repeats_under_equal_keys(
    bench: StaleBench, tmp_path: Path
) -> None:
    parked: dict[str, str] = {}  # event id → its group
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        async with Notifiers(bench, entities, tmp_path / "log", TIDEMARK_GRACE_S="0.5") as notifiers:
            for number in range(KILLS):
                path = f"/field{number}"
                events = [stale_event(number * 10 + place, path=path) for place in range(3)]
                await bench.park_stale(events)
                parked |= {event.event_id: cause_of(event).id for event in events}
                child = await notifiers.start()
                await notifiers.until(notifiers.said("http_listening", number + 1))
                await asyncio.sleep(random.uniform(0, 2.5))  # the moment is what is random here
                child.kill()
                await child.wait()
                await nothing_untold_is_gone(bench, receiver, parked)
            await notifiers.start()
            await notifiers.until(none_left(bench), 90)
    await nothing_untold_is_gone(bench, receiver, parked)

    told = {notice["group"] for notice in notices(receiver) if notice["kind"] == "new"}
    assert told == set(parked.values()), "each group is told"
    by_message: dict[str, set[bytes]] = {}
    for posted in receiver.posted:
        by_message.setdefault(posted.headers["webhook-id"], set()).add(posted.body)
    assert all(len(bodies) == 1 for bodies in by_message.values()), "a repetition has the same bytes"
    new = Counter(
        json.loads(body)["data"]["group"] for [body] in map(list, by_message.values()) if b'"kind":"new"' in body
    )
    assert set(new.values()) == {1}, "each group is told once, as its receiver sees it"
    report = await verify(bench.archive, time.time_ns() // 1_000_000)
    assert (report.problem_count, report.waiting, report.objects) == (0, 0, len(parked))


async def test_two_notifiers_tell_each_group_once(bench: StaleBench, tmp_path: Path) -> None:
    events = [stale_event(number, path=f"/field{number % 12}") for number in range(60)]
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        async with Notifiers(bench, entities, tmp_path / "log", TIDEMARK_NOTIFIER_LEASE_S="20") as notifiers:
            await notifiers.start()
            await notifiers.start()
            await notifiers.until(notifiers.said("http_listening", 2))
            await bench.park_stale(events)
            await notifiers.until(all_told(bench))

    assert len(receiver.posted) == 12
    assert len({notice["dedup_key"] for notice in notices(receiver)}) == 12
    left = await whole(bench, {event.event_id for event in events})
    assert len(left) == 60
    workers = {row.lease_owner for row in left.values()}
    assert workers == {None}, "no lease is left behind"
    report = await verify(bench.archive, time.time_ns() // 1_000_000)
    assert (report.problem_count, report.waiting, report.objects) == (0, 0, 60)


async def test_while_the_channel_is_down_nothing_is_told_or_deleted_and_then_it_is(
    bench: StaleBench, tmp_path: Path
) -> None:
    events = [stale_event(number) for number in range(5)]
    await bench.park_stale(events)
    async with HttpReceiver(Reply(status=503)) as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        async with Notifiers(bench, entities, tmp_path / "log", TIDEMARK_GRACE_S="0") as notifiers:
            child = await notifiers.start()
            await notifiers.until(notifiers.said("group_not_told"))
            left = await whole(bench, {event.event_id for event in events})
            assert len(left) == 5
            assert all(row.arch_sha is not None and not row.ntf for row in left.values())

            receiver.replies.clear()
            receiver.replies.append(Reply())
            await skip_back_off(bench, events[0])
            await notifiers.until(none_left(bench))
            child.terminate()
            assert await child.wait() == 0, "it drains"

    bodies = {posted.body for posted in receiver.posted if b'"kind":"new"' in posted.body}
    assert len(bodies) == 1, "each attempt sends the same bytes"
    assert await bench.archived_ids() == {event.event_id for event in events}


async def test_a_channel_that_is_gone_is_disabled_and_the_next_one_told(bench: StaleBench, tmp_path: Path) -> None:
    await bench.park_stale([stale_event(number, path=f"/field{number}") for number in range(2)])
    async with HttpReceiver(Reply(status=410)) as gone, HttpReceiver() as next_one:
        entities = write_entities(tmp_path / "entities", [webhook(gone, "first"), webhook(next_one, "second")])
        async with Notifiers(bench, entities, tmp_path / "log") as notifiers:
            await notifiers.start()
            await notifiers.until(all_told(bench))

    assert {row.ntf[0].channel for row in await bench.rows()} == {"second"}
    assert len(next_one.posted) == 2
    assert len(gone.posted) in (1, 2), "both at once, or none after it has said so"
    disabled = [line for line in notifiers.lines if line["event"] == "channel_disabled"]
    assert {(line["level"], line["channel"]) for line in disabled} == {("error", "first")}


async def test_what_has_no_channel_goes_to_the_default_owner(bench: StaleBench, tmp_path: Path) -> None:
    await bench.park_stale([stale_event(1), stale_event(2, entity="gone", owner="nobody-knows")])
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [], default=webhook(receiver))
        async with Notifiers(bench, entities, tmp_path / "log") as notifiers:
            await notifiers.start()
            await notifiers.until(all_told(bench))

    assert {(notice["owner"], notice["entity"]) for notice in notices(receiver)} == {
        ("duty", "accounts"),
        ("duty", "gone"),
    }


async def test_without_any_channel_nothing_is_ever_deleted_and_it_is_said(bench: StaleBench, tmp_path: Path) -> None:
    events = [stale_event(number) for number in range(3)]
    await bench.park_stale(events)
    entities = write_entities(tmp_path / "entities", [])
    async with Notifiers(bench, entities, tmp_path / "log", TIDEMARK_GRACE_S="0") as notifiers:
        await notifiers.start()
        await notifiers.until(notifiers.said("owner_has_no_channel"))

        async def archived() -> bool:
            return await bench.archived_ids() == {event.event_id for event in events}

        await notifiers.until(archived)

    left = await whole(bench, {event.event_id for event in events})
    assert len(left) == 3
    assert all(not row.ntf for row in left.values())


async def test_an_event_that_an_operator_wakes_leaves_its_group_and_the_owner_hears_of_the_end(
    bench: StaleBench, tmp_path: Path
) -> None:
    await bench.park_stale([stale_event(1)])
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        async with Notifiers(bench, entities, tmp_path / "log") as notifiers:
            await notifiers.start()
            await notifiers.until(all_told(bench))
            [row] = await bench.rows()
            assert await bench.store.transitions.wake(row, 0.0, "operator", operator=True)
            await notifiers.until(notifiers.said("notice_accepted", 2))
            group = await bench.group(stale_event(1))
            assert group is not None
            assert group.phase == "resolved"

    assert [notice["kind"] for notice in notices(receiver)] == ["new", "resolved"]
    assert len({notice["dedup_key"] for notice in notices(receiver)}) == 1
    [row] = await bench.rows()
    assert (row.state, row.arch_sha, row.ntf) == (State.PARKED, None, ())


async def test_what_was_lost_from_the_archive_is_not_deleted_from_the_table(bench: StaleBench, tmp_path: Path) -> None:
    await bench.park_stale([stale_event(1)])
    async with HttpReceiver() as receiver:
        entities = write_entities(tmp_path / "entities", [webhook(receiver)])
        async with Notifiers(bench, entities, tmp_path / "log", TIDEMARK_GRACE_S="4") as notifiers:
            await notifiers.start()
            await notifiers.until(all_told(bench))
            [row] = await bench.rows()
            assert row.arch_uri is not None
            key = row.arch_uri.removeprefix(f"s3://{bench.archive_bucket}/")
            await bench.s3.delete_object(Bucket=bench.archive_bucket, Key=key)
            await notifiers.until(notifiers.said("evidence_missing"))

    assert len(await bench.rows()) == 1
    report = await verify(bench.archive, time.time_ns() // 1_000_000)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("deleted", key)]


async def test_of_many_swaps_of_one_version_one_wins_and_a_lost_answer_is_known_again(bench: StaleBench) -> None:
    event = stale_event(1)
    fresh = opened("ledger#1", cause_of(event), b"facts", 5, Timing(group_wait_s=1))
    stores = [await GroupStore.open(bench.settings, bench.resources) for _ in range(6)]
    made = await asyncio.gather(*(store.swap(fresh) for store in stores))
    [group] = [won for won in made if won is not None]
    told = Told("slack", "key", "id", "200", 7, 1, "new")
    after = replace(group, phase="told", receipts=(told,), due_ms=2_000)
    won = await asyncio.gather(*(store.swap(after) for store in stores))

    assert len([one for one in won if one is not None]) == 1
    assert await stores[0].swap(after) is None, "computed from a version that no longer stands"
    current = await stores[0].get("ledger#1", group.cause.id)
    assert current == replace(after, ver=2)
    due = [hint for number in range(SHARDS) for hint in await stores[0].due(number, 2_000)]
    assert [(hint.owner, hint.cause_id, hint.phase, hint.ver) for hint in due] == [
        ("ledger#1", group.cause.id, "told", 2)
    ]
    assert [hint for number in range(SHARDS) for hint in await stores[0].due(number, 1_999)] == []

    lossy = LossyDynamo(bench.client)
    lossy.lose = "answer"
    hasty = GroupStore(Calls(lossy, bench.table, Lanes(1)), bench.table)
    over = await hasty.swap(replace(current, phase="resolved"))
    assert over is not None
    assert over.ver == 3
    assert await stores[0].open_groups() == [], "a resolved group waits for nothing"


async def test_the_command_line_verifies_the_evidence(bench: StaleBench, tmp_path: Path) -> None:
    environ = {**os.environ, "TIDEMARK_ARCHIVE_BUCKET": bench.archive_bucket}

    async def verified(*options: str) -> tuple[int, dict[str, Any]]:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "evidence", "verify", "--json", *options),
            cwd=ROOT,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await child.communicate()
        assert child.returncode is not None
        return child.returncode, json.loads(output)

    code, report = await verified()
    assert (code, report["objects"], report["head"]) == (0, 0, None)
    await bench.park_stale([stale_event(1), stale_event(2)])
    rows = await bench.rows()
    written = [await bench.archive.keep(replace(row, event=replace(row.event, raw=b"{}"))) for row in rows]
    await Chain(bench.archive).append(written)
    code, report = await verified()
    assert (code, report["objects"], report["problems"]) == (0, 2, [])
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert (await verified("--day", today))[1]["objects"] == 2
    assert (await verified("--expect-head", report["head"]["sha256"]))[0] == 0

    await bench.s3.put_object(Bucket=bench.archive_bucket, Key=written[0].key, Body=b"forged")
    code, report = await verified()
    assert code == 1
    assert [(problem["kind"], problem["key"]) for problem in report["problems"]] == [("altered", written[0].key)]


async def nothing_untold_is_gone(bench: StaleBench, receiver: HttpReceiver, parked: dict[str, str]) -> None:
    told = {notice["group"] for notice in notices(receiver)}
    left = await whole(bench, set(parked))
    for event_id, group in parked.items():
        assert event_id in left or group in told, "deleted, though nobody was told"


async def skip_back_off(bench: StaleBench, event: ParkedEvent) -> None:
    """As if the channel's back-off, and the rows' wait for it, were over."""
    while True:
        group = await bench.group(event)
        assert group is not None
        if group.pending is not None and await bench.groups.swap(replace(group, due_ms=0)) is not None:
            break
        await asyncio.sleep(0.1)
    for row in await bench.rows():
        await bench.client.update_item(
            TableName=bench.table,
            Key={"pk": {"S": row.pk}, "sk": {"S": row.sk}},
            UpdateExpression="SET due = :due",
            ConditionExpression="attribute_exists(pk)",
            ExpressionAttributeValues={":due": {"S": f"{time.time_ns() // 1_000_000 + 2_000:013d}#{row.item_id}"}},
        )
