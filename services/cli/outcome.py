"""What a command found, to be printed as text or as JSON, and the exit codes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

OK = 0
FINDING = 1
USAGE = 2
DOWN = 3

EXIT_CODES = """exit codes:
  0  done, nothing to report
  1  a finding: something is refused, paused, missing, or would be created (--plan)
  2  wrong usage or configuration: each problem with file and line
  3  a server did not answer: nothing is wrong with what you asked; try again
"""


class Outcome(Struct, frozen=True):
    """``document`` is what ``--json`` prints; ``lines`` are for people."""

    exit_code: int
    lines: Sequence[str]
    document: Any


def aligned(
    rows: Sequence[Sequence[str]], header: Sequence[str] = (), right: frozenset[int] = frozenset()
) -> list[str]:
    """Columns side by side, two spaces between; those in ``right`` are numbers. Lines end where their text ends."""
    table = [*([header] if header and rows else []), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))] if table else []
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in table]


def _padded(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> list[str]:
    return [
        text.rjust(width) if column in right else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def moment(us: int | None) -> str:
    """A time for people, to the second: ``2026-01-31 12:00:00Z``; ``-`` for none, ``beginning`` for 0."""
    if us is None:
        return "-"
    if us == 0:
        return "beginning"
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def iso(us: int | None) -> str | None:
    """A time for programs, with microseconds."""
    if us is None:
        return None
    whole = datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{us % 1_000_000:06d}Z"


def span(seconds: float) -> str:
    """A duration in its two largest units: ``2 h 5 min``, ``12 s``."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def printable(text: str) -> str:
    """Text from outside, without what would move a terminal's cursor or break a line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
