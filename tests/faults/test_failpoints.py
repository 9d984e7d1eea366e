"""One death at each call over an edge, one lost answer at each: the law holds at once, and all comes to rest after it.

A clean run of the scenario names the points; then each round parks a few events, lets a service meet its fault, and
starts a clean one where it died. Rounds run side by side, each in a namespace of its own, since they mostly wait for
leases to end. CI: a death after each port's effect and between the writes of one, lost answers at each port and write
(a few in one run), hangs where they hurt. Full: every kind at every point, one at a time.
"""

import asyncio
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from deploy.local.stack import Stack
from tests.faults.checker import faults
from tests.faults.children import Child, Nursery, Service, nursery
from tests.faults.failpoints import DEATH, KINDS, Plan
from tests.faults.world import (
    NOTIFIER_LEASE_S,
    RETRIER_LEASE_S,
    SETTLES_S,
    FaultWorld,
    Parked,
    fault_world,
    news_about,
    until,
)

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
LANES = 5
HANG_S = {"retrier": RETRIER_LEASE_S + 1.0, "notifier": NOTIFIER_LEASE_S + 1.0}
_ONE_OF_MANY = re.compile(r"/Query#([2-9]|\d\d)$")  # the other shards of one index

PORTS: dict[Service, set[str]] = {
    "retrier": {
        "kafka.reachable", "waker_analysts.current", "queue.due", "waker.look", "waker.body", "waker.wake",
        "analysts.current", "leases.claim", "leases.again", "leases.failed", "repairs.keep", "kafka.publish",
        "leases.published",
    },
    "notifier": {
        "queue.due", "group_queue.due", "leases.claim", "leases.again", "archive.keep", "chain.append",
        "leases.archived", "joined_groups.get", "joined_groups.swap(open)", "groups.get", "groups.swap(waiting)",
        "counts.count", "versions.refusing", "groups.swap(waiting, new pending)", "channel.send", "groups.swap(told)",
        "leases.notified", "archive.holds", "leases.finish", "groups.swap(closing)",
        "groups.swap(closing, resolved pending)", "groups.swap(resolved)",
    },
}  # fmt: skip
"""What the scenario must come by: a port that it doesn't meet is not tested."""

LOST_IN_ONE_RUN = 8
_WRITE = re.compile(r"/(Put|Update|Delete)\w+#\d+$")

HANGS: dict[Service, tuple[str, ...]] = {
    "retrier": ("kafka.publish", "leases.published", "leases.claim"),
    "notifier": ("channel.send", "leases.finish", "leases.notified", "groups.swap(told)"),
}


@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.parametrize("service", ["retrier", "notifier"])
async def test_one_fault_at_each_call_loses_nothing_and_deletes_nothing_untold(
    stack: Stack, tmp_path: Path, service: Service
) -> None:
    async with AsyncExitStack() as resources:
        children = await resources.enter_async_context(nursery(tmp_path))
        worlds = [
            await resources.enter_async_context(fault_world(stack, tmp_path / f"lane-{number}"))
            for number in range(LANES)
        ]
        points = await _points(worlds[0], children, service)
        assert {point.partition("/")[0] for point in points} >= PORTS[service]
        plans = deque(_plans(service, points))
        print(f"{service}: {len(points)} points, {len(plans)} faults")

        problems = await asyncio.gather(*(_lane(world, children, service, plans) for world in worlds))
        assert [problem for lane in problems for problem in lane] == []


def _plans(service: Service, points: Sequence[str]) -> list[Plan]:
    hang_s = HANG_S[service]
    if FULL:
        return [Plan((point,), kind, hang_s) for point in points for kind in KINDS]
    ports = [point for point in points if "/" not in point]
    writes = [point for point in points if _WRITE.search(point)]
    lost = [*ports, *writes]
    runs = len(lost) // LOST_IN_ONE_RUN + 1
    return [
        *(Plan((point,), "hang", hang_s) for point in HANGS[service]),
        *(Plan((point,), "die_after") for point in (*ports, *(write for write in writes if write.endswith("#2")))),
        *(Plan((point.replace("#2", "#1"),), "die_after") for point in writes if point.endswith("#2")),
        *(Plan(tuple(lost[number::runs]), "lost_answer") for number in range(runs)),
    ]


async def _points(world: FaultWorld, children: Nursery, service: Service) -> list[str]:
    """Of the second of two clean runs: the first one begins the archive's chain, which happens once."""
    for _ in range(2):
        child = await children.start(service, world.env)
        await _settled(world, service)(await _park(world, service))
        assert await child.end(signal.SIGTERM) == 0, child.log.read_text()
    return [point for point in child.said("reached") if not _ONE_OF_MANY.search(point)]


async def _lane(world: FaultWorld, children: Nursery, service: Service, plans: deque[Plan]) -> list[str]:
    problems: list[str] = []
    while plans:
        plan = plans.popleft()
        began_s = time.monotonic()
        try:
            found = await _round(world, children, service, plan)
        except AssertionError as error:
            found = [str(error)]
        print(f"{time.monotonic() - began_s:5.1f} s  {service}, {plan.kind} at {', '.join(plan.points)}")
        problems += [f"{service}, {plan.kind} at {', '.join(plan.points)}: {problem}" for problem in found]
        if len(problems) > 3:  # this world is spoilt
            break
    return problems + faults(await world.read())


async def _round(world: FaultWorld, children: Nursery, service: Service, plan: Plan) -> list[str]:
    parked = await _park(world, service)
    settled = _settled(world, service)
    child = await children.start(service, world.env, plan)
    problems: list[str] = []
    try:
        if plan.kind in ("die_before", "die_after"):
            await _die(child)
            world.excuse(row.event.event_id for row in await world.leased())
            problems += [f"while it was dead: {problem}" for problem in faults(await world.read(parked))]
            child = await children.start(service, world.env)
            await settled(parked)
        elif plan.kind == "hang":
            await until(lambda: _said(child, "fired"), SETTLES_S)
            _excuse(world, plan, parked)
            other = await children.start(service, world.env)
            await settled(parked)
            await until(lambda: _said(child, "went on"), SETTLES_S)
            problems += await _stop(other)
        else:
            _excuse(world, plan, parked)
            await settled(parked)
            missed = set(plan.points) - set(child.said("fired"))
            problems += [f"{point} was never reached" for point in missed]
    except AssertionError as error:
        problems.append(f"{error}\n{child.log.read_text()[-2000:]}")
        await child.end()
        return problems
    problems += await _stop(child)
    found = await world.read(parked)
    problems += faults(found)
    for event in parked.stale if service == "notifier" else ():
        if (told := len(news_about(found, event))) != 2:
            problems.append(f"{told} notices about {event.path}, not one and the one that says that it is resolved")
    return problems


def _excuse(world: FaultWorld, plan: Plan, parked: Parked) -> None:
    """Whose ack was lost, or came to somebody who had meanwhile lost the lease, is sent once more."""
    late = plan.kind == "hang" and plan.points[0].startswith("leases.published")
    if late or "kafka.publish" in plan.points:
        world.excuse(event.event_id for event in parked.published)


async def _park(world: FaultWorld, service: Service) -> Parked:
    return await (world.park_for_retrier() if service == "retrier" else world.park_for_notifier())


def _settled(world: FaultWorld, service: Service) -> Callable[[Parked], Coroutine[Any, Any, None]]:
    return world.retried if service == "retrier" else world.told


async def _die(child: Child) -> None:
    try:
        async with asyncio.timeout(SETTLES_S):
            code = await asyncio.shield(child.code)
    except TimeoutError:
        raise AssertionError(f"alive after {SETTLES_S:g} s: it didn't come to the point") from None
    assert code == DEATH, f"it ended with {code}, not at the point"


async def _stop(child: Child) -> list[str]:
    """Drained: whatever it still held is settled."""
    code = await child.end(signal.SIGTERM)
    return [] if code == 0 else [f"SIGTERM ended it with {code}\n{child.log.read_text()[-2000:]}"]


async def _said(child: Child, word: Literal["fired", "went on"]) -> bool:
    return bool(child.said(word))
