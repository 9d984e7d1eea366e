"""``python -m tests.bench [--events N] [poller|sink]``: CPU seconds per million events and peak memory."""

import argparse
import sys
from contextlib import ExitStack

from deploy.local.stack import Stack
from tests.bench import poller_bench, sink_bench

PARTS = {"poller": poller_bench.run, "sink": sink_bench.run}


def main() -> int:
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("--events", type=int, default=300_000)
    arguments.add_argument("--stack", help="a running stack; by default one is started and taken down")
    arguments.add_argument("part", nargs="?", choices=list(PARTS), help="by default each in turn")
    chosen = arguments.parse_args()
    with ExitStack() as ending:
        stack = Stack.attach(chosen.stack) if chosen.stack else Stack("bench")
        ending.callback(stack.down)  # of an attached stack: only what was added here
        if not chosen.stack:
            stack.up()
        for part in [chosen.part] if chosen.part else PARTS:
            report(part, PARTS[part](stack, chosen.events))
    return 0


def report(part: str, figures: dict[str, float]) -> None:
    """One aligned line a part."""
    print(
        f"{part:<8}{figures['cpu_s_per_million']:7.1f} CPU s per million events"
        f"{figures['peak_mb']:8.0f} MB peak{figures['events_per_s']:10,.0f} events/s"
        f"{figures['events']:12,.0f} events",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
