"""``python -m services.poller_producer``: settings, edges, health, then the loop."""

import os
import sys
from contextlib import AsyncExitStack
from functools import partial

from services.poller_producer.config import PollerConfig
from services.poller_producer.poller import poll
from shared import health
from shared.config import ConfigError, load_config
from shared.lifecycle import Stop, refused, run
from shared.producer.sdk import Producer, chosen

SERVICE = "poller-producer"


async def start(config: PollerConfig, stop: Stop) -> None:
    """Open the edges in the order in which they depend on each other, and poll until ``stop``."""
    async with AsyncExitStack() as stack:
        producer = await Producer.open(config, stack)
        names = chosen(producer.entities, config.entities)
        await health.serve(config.http, stack, edges=producer.edges(), pulses={"loop": stop.pulse})
        await poll(names, producer, stop)


def main() -> int:
    try:
        config = load_config(PollerConfig, os.environ)
    except ConfigError as error:
        return refused(SERVICE, error)
    return run(SERVICE, partial(start, config), drain_s=config.drain_s, log_settings=config.log)


if __name__ == "__main__":
    sys.exit(main())
