"""``python -m services.dynamo_retrier``: wires the retrier and runs it until SIGTERM (see ``shared/lifecycle``)."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from functools import partial

from services.dynamo_retrier.census import Census
from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.opening import open_retrier
from services.dynamo_retrier.redrive import Deadline
from shared import health, lifecycle, metrics
from shared.config import ConfigError, load_config
from shared.entities import Entities, load_entities
from shared.parked.calls import ParkedUnavailable

SERVICE = "dynamo-retrier"


async def start(config: RetrierConfig, entities: Entities, stop: lifecycle.Stop) -> None:
    """Re-drive, wake and count until ``stop``."""
    names = list(entities.entities)
    metrics.expect_topics(entities.topics)
    metrics.expect_retries(names)
    async with AsyncExitStack() as stack:
        turns = lifecycle.Pulse(late_after_s=120.0)
        opened = await open_retrier(config, entities, stack, beat=turns.beat)
        census = await Census.open(opened.table, names, stack)

        async def kafka() -> str | None:
            return None if await opened.publisher.reachable() else "no broker answers"

        async def table() -> str | None:
            try:
                await opened.parked.answers()
            except ParkedUnavailable as error:
                return str(error)
            return None

        edges = {"kafka": kafka, "parked": table}
        await health.serve(config.http, stack, edges=edges, pulses={"loop": stop.pulse, "retrier": turns})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(opened.retrier.run(stop, Deadline()), name="retrier")
            tasks.create_task(opened.waker.run(names, stop, config.wake_period_s), name="waker")
            tasks.create_task(census.run(stop, config.refresh_s), name="census")


def main() -> int:
    try:
        config = load_config(RetrierConfig, os.environ)
        entities = load_entities(config.entities_dir, config.namespace)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    work = partial(start, config, entities)
    return lifecycle.run(SERVICE, work, drain_s=config.drain_s + 2, log_settings=config.log)


if __name__ == "__main__":
    sys.exit(main())
