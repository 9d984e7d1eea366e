"""``tidemark table maintain``: by the loader, which has Spark, in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

LOADER = (sys.executable, "-m", "services.delta_loader", "maintain")


def maintain(rest: Sequence[str], environ: Mapping[str, str], command: Sequence[str] = LOADER) -> int:
    """All that was typed is the loader's to understand, ``--help`` included; its output and exit code are ours.

    Stopped, we stop it and wait.
    """
    child = subprocess.Popen([*command, *rest], env=dict(environ))  # noqa: S603  # our own module
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        code = _ended(child)
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def _ended(child: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the child as well
            continue
