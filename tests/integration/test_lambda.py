"""The built zip, under AWS's own runtime client and a Runtime API on loopback, over a real Kafka and DynamoDB.

The sandboxes see nothing that is installed here but the runtime client, and are frozen while they have no
invocation.
"""

import asyncio
import platform
import sys
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy.aws.build_lambda import ARCHES, HANDLERS, UNZIPPED_BYTES_MAX, Target, build
from deploy.local.stack import Stack
from shared.events.model import Reason
from shared.kafka.records import parse_headers
from shared.parked.model import State
from tests.fakes.lambda_runtime import lambda_sandbox, unpacked
from tests.fakes.proxy import TcpProxy
from tests.fakes.retrier_world import ENTITY, RetrierWorld, due_now, ids, retrier_world, schema

REDRIVE, ANALYSE = HANDLERS
COLOUR = {"name": "colour", "type": ["null", "string"], "default": None}


@pytest.fixture(scope="module")
def task_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip for this machine, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("lambda")
    arch = next(name for name, machine in ARCHES.items() if machine == platform.machine())
    target = Target(f"{sys.version_info[0]}.{sys.version_info[1]}", arch)
    assert build(folder / "function.zip", target) < UNZIPPED_BYTES_MAX
    return unpacked(folder / "function.zip", folder / "task")


def env_of(world: RetrierWorld, **settings: object) -> dict[str, str]:
    settings = {"lease_s": 60, **settings}  # a busy machine is slow to claim, and gives back what it can't finish
    own = {f"TIDEMARK_{name.upper()}": str(value) for name, value in settings.items()}
    wanted = ("TIDEMARK_", "AWS_", "NO_PROXY", "no_proxy")
    return {name: value for name, value in world.env.items() if name.startswith(wanted)} | own


async def test_an_invocation_publishes_what_is_due_and_leaves_nothing_open_when_it_is_frozen(
    stack: Stack, tmp_path: Path, task_root: Path
) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = [due_now(event) for event in world.parked(range(250))]
        async with lambda_sandbox(task_root, REDRIVE, env_of(world), tmp_path) as sandbox:
            for first, last in ((0, 200), (200, 250)):
                await world.store.park(events[first:last])
                answer = await sandbox.invoke({"source": "aws.scheduler", "detail": {}})

                assert answer.error is None
                assert answer.result["published"] == last - first
                assert (answer.result["waits_for"], answer.result["cut_short"]) == ("", False)
                assert answer.result["lease_lost"] == answer.result["failed"] == 0
                assert sandbox.peers() == [], "a connection was kept, to die while the sandbox is frozen"
                assert await world.items() == 0
            done = [line for line in sandbox.log_lines() if line["event"] == "invocation_done"]
            assert [line["level"] for line in sandbox.log_lines() if line["level"] in ("error", "warning")] == []

        records = await world.records()
        assert Counter(ids(records)) == Counter(event.event_id for event in events)
        assert {parse_headers(record.headers).attempt for record in records} == {1}
        assert [line["published"] for line in done] == [200, 50]
        names = [metric["Name"] for metric in done[0]["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
        assert {"published", "lease_lost", "waits"} <= set(names) <= set(done[0]), "CloudWatch finds no figure"


async def test_an_invocation_claims_no_more_than_it_can_settle_ten_seconds_before_its_end(
    stack: Stack, tmp_path: Path, task_root: Path
) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = [due_now(event) for event in world.parked(range(500))]
        await world.store.park(events)
        env = env_of(world, publishes_per_s_max=100)
        async with lambda_sandbox(task_root, REDRIVE, env, tmp_path) as sandbox:
            answer = await sandbox.invoke(timeout_s=21)

            left = await world.rows()
            assert answer.left_s >= 10
            assert answer.result["cut_short"] is False
            assert 0 < answer.result["published"] < 200
            assert answer.result["published"] == len(events) - len(left)
            assert [row for row in left if row.lease_token] == []
            assert len(await world.records()) == answer.result["published"]

            too_short = await sandbox.invoke(timeout_s=15)
            assert too_short.error is not None
            assert "set the function's timeout to at least 20 s" in too_short.error["errorMessage"]


async def test_overlapping_invocations_publish_nothing_twice(stack: Stack, tmp_path: Path, task_root: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = [due_now(event) for event in world.parked(range(300))]
        env = env_of(world, publishes_per_s_max=4_000, batch_rows_max=10, replicas=2)
        async with (
            lambda_sandbox(task_root, REDRIVE, env, tmp_path) as one,
            lambda_sandbox(task_root, REDRIVE, env, tmp_path) as other,
        ):
            await world.store.park(events)
            answers = list(await asyncio.gather(one.invoke(), other.invoke()))
            while await world.rows():  # what one of them had while the other looked
                answers.append(await one.invoke())

        published = [answer.result["published"] for answer in answers]
        assert Counter(ids(await world.records())) == Counter(event.event_id for event in events)
        assert sum(published) == 300
        assert min(published[:2]) > 20, published


async def test_a_warm_sandbox_waits_for_kafka_and_counts_no_attempt(
    stack: Stack, tmp_path: Path, task_root: Path
) -> None:
    port = int(stack.env["TIDEMARK_KAFKA_BOOTSTRAP"].rpartition(":")[2])
    async with retrier_world(stack, tmp_path) as world, TcpProxy(port) as proxy:
        await world.store.park([due_now(event) for event in world.parked(range(20))])
        env = env_of(world, kafka_bootstrap=f"127.0.0.1:{proxy.port}")
        async with lambda_sandbox(task_root, REDRIVE, env, tmp_path) as sandbox:
            for mode in ("refuse", "blackhole"):
                await proxy.set_mode(mode)
                away = await sandbox.invoke()
                assert (away.result["waits_for"], away.result["published"]) == ("kafka", 0)
                assert sandbox.peers() == []
            assert {(row.tries, row.att) for row in await world.rows()} == {(0, 0)}

            await proxy.set_mode("pass")
            back = await sandbox.invoke()
            assert (back.result["waits_for"], back.result["published"]) == ("", 20)


async def test_an_analysis_by_hand_wakes_what_a_new_schema_version_accepts(
    stack: Stack, tmp_path: Path, task_root: Path
) -> None:
    async with retrier_world(stack, tmp_path) as world:
        coloured = [replace(event, path="/colour") for event in world.parked(range(40), Reason.INVALID, colour="red")]
        shaped = [replace(event, path="/shape") for event in world.parked(range(40, 50), Reason.INVALID, shape="round")]
        await world.store.park([*coloured, *shaped])
        env = env_of(world)
        async with (
            lambda_sandbox(task_root, ANALYSE, env, tmp_path) as analyse,
            lambda_sandbox(task_root, REDRIVE, env, tmp_path) as redrive,
        ):
            before = await analyse.invoke({"entities": [ENTITY], "dry_run": True})
            assert before.result["would_pass"] == {ENTITY: "of 50 parked, 0 would pass with schema version 1"}

            await world.register(schema(COLOUR))
            counted = await analyse.invoke({"dry_run": True})
            assert counted.result["would_pass"][ENTITY] == "of 50 parked, 40 would pass with schema version 2"
            assert {row.state for row in await world.rows()} == {State.HELD}

            woken = await analyse.invoke({"entities": [ENTITY]})
            assert (woken.result["woken"], woken.result["left"], woken.result["complete"]) == (40, 10, True)
            assert analyse.peers() == []
            published = 0
            while published < 40:  # due times are spread over a second
                published += (await redrive.invoke()).result["published"]
            unknown = await analyse.invoke({"entities": ["nobody"]})
            assert unknown.error is not None
            assert "not configured: ['nobody']" in unknown.error["errorMessage"]

        assert Counter(ids(await world.records())) == Counter(event.event_id for event in coloured)
        assert {row.event.event_id for row in await world.rows()} == {event.event_id for event in shaped}
