"""The audit trail: an entry before each deed, its end after it, and ``tidemark parked audit``."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from msgspec import Struct, to_builtins

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import OK, Outcome, aligned, iso, moment, printable
from services.cli.who import operator
from shared.parked.audit import Action, Entry
from shared.parked.calls import ParkedUnavailable


class Deed(Struct):
    """What is to stand in the entry's end."""

    id: str
    who: str
    counts: Mapping[Any, int] = {}  # by the words of the command


@asynccontextmanager
async def audited(
    edges: Edges, action: Action, why: str, what: dict[str, Any], *, job: str = ""
) -> AsyncIterator[Deed]:
    """The entry is durable before the body runs. Killed meanwhile, it stays without an end."""
    trail = (await edges.desk()).audit
    entry = await trail.begin(action, operator(), why, what, job)
    deed = Deed(entry.id, entry.who)
    try:
        yield deed
    except Exception as error:
        with suppress(ParkedUnavailable):  # the first error is the one to be told
            await trail.end(entry, "failed", _counts(deed), type(error).__name__)
        raise
    await trail.end(entry, "done", _counts(deed))


async def list_entries(edges: Edges, newer_than_s: int, limit: int) -> Outcome:
    since_ms = max(0, clock_ms() - newer_than_s * 1000)
    entries = await (await edges.desk()).audit.entries(since_ms, limit)
    header = ("WHEN", "WHO", "ACTION", "END", "COUNTS", "WHAT", "WHY")
    lines = aligned([_line(entry) for entry in entries], header) or ["nobody has done anything"]
    return Outcome(exit_code=OK, lines=lines, document={"entries": [_document(entry) for entry in entries]})


def _counts(deed: Deed) -> dict[str, int]:
    return {str(fate): count for fate, count in deed.counts.items() if count}


def _line(entry: Entry) -> list[str]:
    what = {"job": entry.job, **entry.what} if entry.job else entry.what
    return [
        moment(entry.at_ms * 1000),
        printable(entry.who),
        entry.action,
        f"failed ({entry.error})" if entry.outcome == "failed" else "-" if entry.outcome == "begun" else entry.outcome,
        ", ".join(f"{count:,} {name}" for name, count in entry.counts.items()) or "-",
        printable(" ".join(f"{name}={_word(value)}" for name, value in what.items())) or "-",
        printable(entry.why) or "-",
    ]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _document(entry: Entry) -> dict[str, Any]:
    fields = to_builtins(entry)
    at_us, ended_ms = fields.pop("at_ms") * 1000, fields.pop("ended_ms")
    return {**fields, "at": iso(at_us), "ended": None if ended_ms is None else iso(ended_ms * 1000)}
