"""What a Lambda function keeps from one invocation to the next, and how each ends with nothing in flight.

Kept: the event loop, the settings, and what is known of Kafka's health and of our share. Opened anew by each
invocation and closed before it returns: every client. A frozen sandbox doesn't notice that its connections die, and
nothing of aiokafka's runs while it is frozen; a client is made in some 20 ms once its models have been loaded.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Literal

from msgspec.structs import replace

from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.gates import Gates
from services.dynamo_retrier.opening import Clients, monotonic_s, open_clients
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Deadline
from shared.config import ConfigError
from shared.entities import Entities
from shared.logs import get_logger
from shared.parked.calls import ParkedUnavailable

log = get_logger(__name__)

MARGIN_S = 10.0
"""Before the invocation's end everything is settled: nothing is claimed that might not be."""
CUT_S = 5.0
"""Before the invocation's end what should have been settled is cancelled. Closing takes the rest; if even that hangs,
AWS ends the process, and its rows come due when their leases end."""
WORK_S_MIN = 5.0
CLEAR_S = 1.0
PARKED_BUDGET_S = 5.0
"""Of one call to the table: a table that is away must not keep us beyond the margin."""

WaitsFor = Literal["", "kafka", "parked"]


async def missing(clients: Clients, *, kafka: bool) -> WaitsFor:
    """Which server does not answer now; ``""``: none."""
    try:
        await clients.parked.answers()
    except ParkedUnavailable as error:
        log.warning("invocation_waits", what="parked", why=str(error))
        return "parked"
    if kafka and not await clients.publisher.reachable():
        log.warning("invocation_waits", what="kafka", why="no broker answers")
        return "kafka"
    return ""


Work = Callable[[Clients, Deadline], Awaitable[None]]
Opener = Callable[[AsyncExitStack], Awaitable[Clients]]


class Sandbox:
    """One invocation at a time, as AWS promises."""

    def __init__(self, config: RetrierConfig, entities: Entities, opener: Opener | None = None) -> None:
        self.config = config
        self.entities = entities
        self.gates = Gates(entities.topics)
        self.share = Share(config.per_s_max)
        self.share.start_slowly(monotonic_s())  # perhaps there was an outage just now
        self._open = opener or self._open_clients
        self._loop = asyncio.new_event_loop()

    @property
    def remaining_s_min(self) -> float:
        """An invocation that has less could never publish anything."""
        return MARGIN_S + self.config.publish_s_max + WORK_S_MIN

    def invoke(self, work: Work, remaining_s: float) -> bool:
        """Run ``work`` with clients of its own. False: it was cut short, and what it held comes due by itself.

        Raises ``ConfigError`` where the function's timeout is too short for any work.
        """
        if remaining_s < self.remaining_s_min:
            raise ConfigError([
                f"the invocation has {remaining_s:.0f} s; set the function's timeout to at least "
                f"{self.remaining_s_min:.0f} s, or shorten TIDEMARK_KAFKA_DELIVERY_DEADLINE_S"
            ])  # fmt: skip
        try:
            return self._loop.run_until_complete(self._within(work, remaining_s))
        finally:
            self._loop.run_until_complete(_cleared())

    def close(self) -> None:
        self._loop.close()

    async def _within(self, work: Work, remaining_s: float) -> bool:
        deadline = Deadline(monotonic_s() + remaining_s - MARGIN_S)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(remaining_s - CUT_S) as limit:
                    await work(await self._open(stack), deadline)
        except TimeoutError:
            if not limit.expired():
                raise
            log.error("invocation_cut_short", seconds=remaining_s - CUT_S)
            return False
        return True

    async def _open_clients(self, stack: AsyncExitStack) -> Clients:
        config = self.config
        hasty = replace(config.parked, budget_s=min(config.parked.budget_s, PARKED_BUDGET_S))
        return await open_clients(replace(config, parked=hasty), self.entities, stack)


async def _cleared() -> None:
    """Nothing may be left to run when the sandbox is frozen. There never is anything, unless a library forgot it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if not left:
        return
    log.error("left_in_flight", tasks=sorted(task.get_name() for task in left), pid=os.getpid())
    for task in left:
        task.cancel()
    await asyncio.wait(left, timeout=CLEAR_S)
