"""Every change that a source shows is published or parked before the cursor passes it.

One task an entity: it waits for the entity's lease, reads under it, and waits again. What one entity does never stops
another; an unexpected exception stops the process, and other replicas take its leases over when they run out.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from shared.lifecycle import Stop


class Captures(Protocol):
    """What the poller needs of the producer SDK."""

    async def capture(self, name: str, stop: Stop) -> None:
        """Capture one entity whenever its lease can be had, until ``stop``; returns once its page is settled."""


async def poll(entities: Iterable[str], producer: Captures, stop: Stop) -> None:
    """Capture all entities until ``stop``; returns when each has settled and released its lease."""
    async with asyncio.TaskGroup() as tasks:
        for name in entities:
            tasks.create_task(producer.capture(name, stop), name=f"capture-{name}")
