"""The owner of a stack that was started from the command line: stays in the background until it is told to end."""

import signal
import sys
import time
from types import FrameType

from deploy.local.stack import Stack, StackFailed

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(name: str) -> int:
    for number in _ENDS:
        signal.signal(number, _end)
    try:
        with Stack(name, report=lambda line: print(line, flush=True)) as stack:
            while not any(death.forgets for death in stack.deaths):
                time.sleep(0.5)
            # Whoever works on it would get wrong answers from an empty emulator: end it all, keep the logs.
            stack.fail()
    except StackFailed as failure:
        print(failure, flush=True)
    return 1


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in _ENDS:  # once is enough: a second must not interrupt the way down
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
