"""The owner of a stack that was started from the command line: stays in the background until it is told to end."""

import signal
import sys
import threading

from deploy.local.stack import Stack, StackFailed


def main(name: str) -> int:
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    stack = Stack(name, report=lambda line: print(line, flush=True))
    try:
        stack.up()
    except StackFailed as failure:
        print(failure, flush=True)
        return 1
    code = 0
    while not asked.wait(0.5):
        if any(death.forgets for death in stack.deaths):
            # Whoever works on it would get wrong answers from an empty emulator: end it all, keep the logs.
            code = 1
            stack.fail()
            break
    if not code:
        stack.down()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
