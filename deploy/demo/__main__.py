"""``./deploy/local/demo``: the main job on real parts, from a bank to its Delta tables, with a Kafka outage in the
middle, and its balance sheet."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from typing import get_args

import msgspec

from deploy.demo.dashboards import Ask
from deploy.demo.demo import Demo, Options
from deploy.demo.progress import Screen
from deploy.local import preflight
from deploy.local.install import InstallFailed, install
from deploy.local.stack import Stack
from deploy.local.supervision import StackFailed


def options_of(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="./deploy/local/demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the bank's clients write (60)")
    parser.add_argument("--writers", type=int, default=4, help="concurrent clients (4)")
    parser.add_argument("--rate", type=float, default=60.0, help="transactions a second, of all together (60)")
    parser.add_argument(
        "--manner",
        choices=("events", "rows", "both"),
        default="events",
        help="what the source shows: every change (events), or each row as it is now (rows)",
    )
    parser.add_argument(
        "--no-spark",
        dest="spark",
        action="store_false",
        help="end in the raw bucket: no Delta tables, and nothing of Spark is installed",
    )
    parser.add_argument(
        "--dashboards",
        choices=get_args(Ask),
        default="auto",
        help="ask all panels, and draw the home board, where prometheus is installed (auto); or fail when it isn't, or "
        "a panel has no data (require); or don't (skip)",
    )
    parser.add_argument("--plain", action="store_true", help="no control codes")
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, and print what to look at")
    parser.add_argument("--name", default="demo", help="the stack's name (demo): several demos may run side by side")
    chosen = parser.parse_args(arguments)
    if chosen.seconds < 5 or not 1 <= chosen.writers <= 64 or not 0 < chosen.rate <= 2_000:
        parser.error("seconds must be 5 or more, writers 1 to 64, rate up to 2000")
    plain = chosen.plain or not sys.stdout.isatty()
    return msgspec.convert({**vars(chosen), "plain": plain}, Options)


def main() -> int:
    """0: everything adds up; 1: it doesn't; 2: options; 3: something didn't start or died; 130: interrupted."""
    began_s = time.monotonic()
    options = options_of(sys.argv[1:])
    # A shell starts what runs in its background with SIGINT ignored; the others below would then be ignored too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Ends like Ctrl-C: services drain before the stack goes.
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    screen = Screen(plain=options.plain)
    stack = Stack(options.name, report=screen.say)
    try:
        if options.spark:
            install(screen.say, spark=True)
        with stack:
            return _run(Demo(options, stack, screen, began_s), stack)
    except (StackFailed, InstallFailed, preflight.NotReady) as failure:
        print(failure, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; everything has been stopped", file=sys.stderr)
        return 130


def _run(demo: Demo, stack: Stack) -> int:
    """As ``demo.run``, but what went wrong leaves its logs behind."""
    try:
        code = asyncio.run(demo.run())
    except Exception:
        _keep_logs(stack)
        raise
    if code:
        _keep_logs(stack)
    return code


def _keep_logs(stack: Stack) -> None:
    stack.fail()
    print(f"the logs are kept: {stack.folder / 'logs'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
