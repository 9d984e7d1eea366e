"""Exec a command that dies with its parent; run as ``leash.py PARENT_PID DEATH_SIGNAL USER COMMAND…``.

A program of its own instead of a ``preexec_fn``, which may deadlock in a parent that has threads.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def leashed(*command: str, death_signal: signal.Signals = signal.SIGKILL, user: str | None = None) -> list[str]:
    """``command`` as a child of ours that gets ``death_signal`` when the thread that started it ends."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), str(int(death_signal)), user or "-", *command]


def main(arguments: list[str]) -> None:
    parent, death_signal, user, *command = arguments
    for inherited in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(inherited, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if user != "-":
        become(user)
    # After the change of user, which clears it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execvp(command[0], command)


def become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


if __name__ == "__main__":
    main(sys.argv[1:])
