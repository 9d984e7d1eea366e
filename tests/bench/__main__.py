"""``python -m tests.bench [--events N] [poller|sink|retrier|operator|lake]``: CPU seconds per million events and
peak memory; what a re-drive costs; how long an operator waits for a dry run; what the lake costs (needs Spark)."""

import argparse
import sys
from contextlib import ExitStack

from deploy.local.stack import Stack
from tests.bench import lake_bench, operator_bench, poller_bench, retrier_bench, sink_bench

RETRIER = "retrier"
RETRIER_EVENTS_MAX = 2_000
"""An emulated DynamoDB takes a hundred calls a second: more events tell no more."""
OPERATOR = "operator"
LAKE = "lake"
"""Never by default: it needs the environment that has Spark."""
PARTS = {"poller": poller_bench.run, "sink": sink_bench.run}


def main() -> int:
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("--events", type=int, default=300_000)
    arguments.add_argument("--stack", help="a running stack; by default one is started and taken down")
    arguments.add_argument(
        "part", nargs="?", choices=[*PARTS, RETRIER, OPERATOR, LAKE], help="by default each but lake in turn"
    )
    chosen = arguments.parse_args()
    with ExitStack() as ending:
        stack = Stack.attach(chosen.stack) if chosen.stack else Stack("bench")
        ending.callback(stack.down)  # of an attached stack: only what was added here
        if not chosen.stack:
            stack.up()
        for part in [chosen.part] if chosen.part else [*PARTS, RETRIER, OPERATOR]:
            if part == RETRIER:
                print(retrier_bench.text(retrier_bench.run(stack, min(chosen.events, RETRIER_EVENTS_MAX))), flush=True)
            elif part == OPERATOR:
                print(operator_bench.run(stack, min(chosen.events, operator_bench.EVENTS)), flush=True)
            elif part == LAKE:
                for text in lake_bench.run(stack, chosen.events):
                    print(text, flush=True)
            else:
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
