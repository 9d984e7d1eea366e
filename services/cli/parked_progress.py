"""How far a long command has come: one line that changes on a terminal, a line every few seconds in a log.

On standard error, so that standard output holds the result alone.
"""

import sys
import time
from collections.abc import Callable
from typing import TextIO

TERMINAL_S = 0.2
LOG_S = 5.0
_TO_END = "\x1b[K"


class Progress:
    """``total`` is what was counted before: the end may come with more or fewer. 0: nobody knows."""

    def __init__(
        self,
        what: str,
        total: int,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._quiet = quiet
        self._done = 0
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._monotonic_s = monotonic_s
        self._began_s = self._shown_s = monotonic_s()
        self._is_open = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the line, so that what follows has its own."""
        if self._is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._is_open = False

    def say(self, line: str) -> None:
        """A line of its own."""
        print(line, file=self._stream, flush=True)

    def add(self, done: int) -> None:
        """So many more."""
        self._done += done
        self.show(self._done)

    def show(self, done: int) -> None:
        """At most once in a while; nothing at all for what is over at once."""
        if self._quiet:
            return
        now_s = self._monotonic_s()
        if now_s - self._shown_s < (TERMINAL_S if self._is_terminal else LOG_S):
            return
        self._shown_s = now_s
        line = self._line(done, now_s - self._began_s)
        if self._is_terminal:
            self._stream.write(f"\r{line}{_TO_END}")
            self._stream.flush()
            self._is_open = True
        else:
            self.say(line)

    def _line(self, done: int, elapsed_s: float) -> str:
        rate = done / elapsed_s if elapsed_s > 0 else 0.0
        if not self._total:
            return f"{self._what}  {done:,}  {rate:,.0f} /s"
        width = len(f"{max(self._total, 1):,}")
        share = 100 if self._total <= 0 else min(100, done * 100 // self._total)
        return f"{self._what}  {done:>{width},} of {self._total:,}  {share:>3} %  {rate:>7,.0f} /s"
