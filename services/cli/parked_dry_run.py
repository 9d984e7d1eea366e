"""What would pass if it were re-driven now, and why the rest would not: tried in memory, nothing written."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from msgspec import Struct

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, printable
from shared.config import ConfigError
from shared.entities import read_schema
from shared.events.contract import ContractError
from shared.events.model import Reason
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.causes import cause_path
from shared.parked.dry_run import CAUSES_MAX, OTHER_PATHS, Tally
from shared.parked.model import ParkedEvent

Chunks = AsyncGenerator[Sequence[ParkedEvent | None], None]
LINES_MAX = 50


class Refusal(Struct, frozen=True, order=True):
    reason: Reason
    path: str
    rule: str


class Tried(Struct):
    """One entity's."""

    entity: str
    tally: Tally
    refusals: dict[Refusal, int] = {}

    def count(self, found: Retriable | NotYet) -> None:
        self.tally.count(found)
        if isinstance(found, Retriable):
            return
        kind = Refusal(found.reason, cause_path(found.path), found.why)
        if kind not in self.refusals and len(self.refusals) >= CAUSES_MAX:
            kind = Refusal(found.reason, OTHER_PATHS, OTHER_PATHS)
        self.refusals[kind] = self.refusals.get(kind, 0) + 1


class Given(Struct, frozen=True):
    """A schema that was typed."""

    file: str
    text: str


async def schema_given(file: str | None) -> Given | None:
    """Raises ``ConfigError``: also where nothing is parked that it could be tried on."""
    try:
        return None if file is None else Given(file, await asyncio.to_thread(read_schema, Path(file)))
    except ValueError as error:
        raise ConfigError([f"--schema: {error}"]) from None


async def try_all(
    edges: Edges, entity: str, chunks: Chunks, schema: Given | None, now_us: int, progress: Callable[[int], None]
) -> Tried | None:
    """``schema``: one that is not registered yet. ``None``: there are no events, so nobody is asked.

    Raises ``NoAnalyst``, ``ParkedUnavailable``, ``ConfigError``.
    """
    tried: Tried | None = None
    analyst: Analyst | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            if analyst is None:
                analyst = await _analyst(edges, entity, schema)
            if tried is None:
                tried = Tried(entity, Tally(analyst.version))
            there = [event for event in chunk if event is not None]
            tried.tally.gone += len(chunk) - len(there)
            for found in await asyncio.to_thread(_analysed, analyst, there, now_us):
                tried.count(found)
            progress(tried.tally.parked + tried.tally.gone)
    return tried


def outcome_of(tried: Sequence[Tried]) -> Outcome:
    """Exit code 1: some would not pass."""
    if not tried:
        return Outcome(exit_code=OK, lines=["nothing that is parked fits"], document={"entities": []})
    lines = [one.tally.text() if len(tried) == 1 else f"{one.entity}: {one.tally.text()}" for one in tried]
    refused = [(one.entity, kind, count) for one in tried for kind, count in one.refusals.items()]
    refused.sort(key=lambda found: (-found[2], found[0], found[1]))
    rows = [
        [entity, kind.reason.value, printable(kind.path) or "(the whole)", printable(kind.rule), f"{count:,}"]
        for entity, kind, count in refused
    ]
    if rows:
        header = ("ENTITY", "REASON", "PATH", "RULE", "EVENTS")
        lines += ["", *aligned(rows[:LINES_MAX], header, right=frozenset({4}))]
    if len(rows) > LINES_MAX:
        lines.append(f"and {len(rows) - LINES_MAX:,} more kinds of refusal; all with --json")
    document = {"entities": [_document(one) for one in tried]}
    return Outcome(exit_code=FINDING if rows else OK, lines=lines, document=document)


async def _analyst(edges: Edges, entity: str, schema: Given | None) -> Analyst:
    if schema is None:
        return await (await edges.analysts()).current(entity)
    from shared.producer.analysts import candidate

    try:
        return candidate(edges.entities.entities[entity], schema.text)
    except ContractError as error:
        raise ConfigError([f"--schema {schema.file}: for entity {entity}: {error}"]) from None


def _analysed(analyst: Analyst, events: Sequence[ParkedEvent], now_us: int) -> list[Retriable | NotYet]:
    return [analyst.analyse(event, now_us) for event in events]


def _document(one: Tried) -> dict[str, object]:
    tally = one.tally
    return {
        "entity": one.entity,
        "version": tally.version,
        "parked": tally.parked,
        "passing": tally.passing,
        "repaired": tally.repaired,
        "gone": tally.gone,
        "refused": [
            {"reason": kind.reason.value, "path": kind.path, "rule": kind.rule, "events": count}
            for kind, count in sorted(one.refusals.items(), key=lambda found: (-found[1], found[0]))
        ],
    }
