"""Retriers and notifiers are killed and frozen at random moments while events pass through both: the law holds.

Some events are published, some repaired first, and some are given up by the retriers, told of and archived by the
notifiers, and deleted when their grace is over. Whoever dies or stands still is replaced at once; the frozen ones wake
when their leases are long over, and must change nothing.
"""

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.faults.checker import faults, sheet_of
from tests.faults.children import Child, Nursery, Service, nursery
from tests.faults.world import NOTIFIER_LEASE_S, RETRIER_LEASE_S, SETTLES_S, FaultWorld, Parked, fault_world, until

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
KILLS = 100 if FULL else 10
"""Of retriers, and as many of notifiers."""
EVENTS_A_KILL = 30
FROZEN = 0.3
LEASES_S = {"retrier": RETRIER_LEASE_S, "notifier": NOTIFIER_LEASE_S}
SETTINGS = {
    "TIDEMARK_PUBLISHES_PER_S_MAX": "40",  # a fifth of it a second: events are under way all the time
    "TIDEMARK_BATCH_ROWS_MAX": "15",
}


class Crew:
    """Two retriers and two notifiers, whoever they are at the moment."""

    def __init__(self, world: FaultWorld, children: Nursery) -> None:
        self._world = world
        self._children = children
        self._env = {**world.env, **SETTINGS}
        self.at_work: dict[Service, list[Child]] = {"retrier": [], "notifier": []}
        self.thaws: list[asyncio.Task[None]] = []

    async def start(self, service: Service) -> None:
        self.at_work[service].append(await self._children.start(service, self._env))

    async def strike(self, service: Service) -> None:
        victim = self.at_work[service].pop(random.randrange(2))
        await until(lambda: _is_at_work(victim), SETTLES_S)
        await asyncio.sleep(random.uniform(0, 0.6))  # the moment is what is random here
        if random.random() < FROZEN:
            victim.send(signal.SIGSTOP)
            self.thaws.append(asyncio.create_task(self._wake(victim, 2 * LEASES_S[service])))
        else:
            await victim.end(signal.SIGKILL)
        # What it held when it was struck down may have been published, and will be again.
        self._world.excuse(row.event.event_id for row in await self._world.leased(victim.pid))
        await self.start(service)

    async def _wake(self, victim: Child, after_s: float) -> None:
        await asyncio.sleep(after_s)  # this is what the claim is about
        victim.send(signal.SIGCONT)
        await _stop(victim)

    async def stop(self) -> None:
        await asyncio.gather(*self.thaws)
        await asyncio.gather(*(_stop(child) for of in self.at_work.values() for child in of))


async def _is_at_work(child: Child) -> bool:
    return "leases.claim" in child.said("reached") or "queue.due" in child.said("reached")


async def _stop(child: Child) -> None:
    """Drained; or it was struck before it had come as far as to listen to signals."""
    code = await child.end(signal.SIGTERM)
    log = child.log.read_text()
    assert code == 0 or (code == -signal.SIGTERM and not log), log[-3000:]


@pytest.mark.timeout(3600 if FULL else 300)
async def test_killed_and_frozen_at_random_moments_both_keep_the_law(stack: Stack, tmp_path: Path) -> None:
    async with nursery(tmp_path) as children, fault_world(stack, tmp_path / "world") as world:
        parked = await world.park_for_both(EVENTS_A_KILL * KILLS)
        crew = Crew(world, children)
        for service in ("retrier", "retrier", "notifier", "notifier"):
            await crew.start(service)
        began_s = time.monotonic()
        for number in range(KILLS):
            await asyncio.gather(crew.strike("retrier"), crew.strike("notifier"))
            if number % 10 == 4:
                assert faults(await world.read()) == [], f"after {number + 1} kills"
        print(f"{time.monotonic() - began_s:.0f} s of kills")
        await world.retried(Parked(published=parked.published), within_s=90 + 2 * KILLS)
        print(f"published after {time.monotonic() - began_s:.0f} s")
        await world.told(Parked(stale=parked.stale), within_s=90 + 2 * KILLS)
        print(f"archived after {time.monotonic() - began_s:.0f} s")
        await crew.stop()

        found = await world.read()
        assert faults(found) == []
        sheet = sheet_of(found)
        assert (sheet.raw, sheet.archived, sheet.parked) == (len(parked.published), len(parked.stale), 0)
        print(f"{KILLS} kills of each: {sheet.raw} published, {sheet.repeated} once more, {sheet.archived} archived, "
              f"{len(found.posted or ())} notices")  # fmt: skip
