"""Children of the fault tests, forked from a process that has imported everything: a start in milliseconds.

``python -m tests.faults.nursery`` reads one JSON line for each child to start, and answers with its process id; when a
child has ended, a line says how. It ends its children when its input ends. One thread, no event loop: forks are safe.
"""

import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from tests.faults import faulty_notifier, faulty_retrier

MAINS = {"retrier": faulty_retrier.main, "notifier": faulty_notifier.main}


def main() -> None:
    children: set[int] = set()
    news, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: whoever started us decides
    orders = b""
    try:
        while True:
            readable, _, _ = select.select([0, news], [], [])
            if news in readable:
                os.read(news, 512)
                _bury(children)
            if 0 in readable:
                piece = os.read(0, 65536)
                if not piece:
                    return
                *lines, orders = (orders + piece).split(b"\n")
                for line in lines:
                    children.add(pid := _fork(json.loads(line)))
                    _say(started=pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["env"])
        code = MAINS[order["service"]]()
    except BaseException:  # noqa: BLE001 - a fork must never come back into the loop above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _bury(children: set[int]) -> None:
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            _say(ended=pid, code=os.waitstatus_to_exitcode(status))


def _say(**news: int) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


if __name__ == "__main__":
    main()
