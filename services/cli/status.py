"""``tidemark status``: one screen on which an operator sees who reads what, how far it came, and what waits why."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct, structs, to_builtins

from services.cli.edges import Edges, meaning
from services.cli.entity import state
from services.cli.outcome import DOWN, FINDING, OK, Outcome, aligned, iso, moment, printable, span
from shared.entities import Entity
from shared.events.model import Reason

if TYPE_CHECKING:
    from shared.checkpoints.model import EntityStatus

CALLS_AT_ONCE = 16
COUNTS = ("TOPIC END", "IN RAW", "LAG", "PARKED")

_T = TypeVar("_T")


class Problem(Struct, frozen=True):
    """Something that could not be had; ``exit_code`` tells a server that is down from one that refuses."""

    edge: str
    exit_code: int
    text: str


class Partition(Struct, frozen=True):
    """``raw_next``: the ledger's next offset; ``None`` when the bucket could not be asked."""

    partition: int
    begin: int
    end: int
    raw_next: int | None


class Line(Struct, frozen=True, kw_only=True):
    """All that is known of one entity; ``None`` where the server that knows did not answer."""

    entity: str
    state: str
    poller: str | None = None
    paused_reason: str | None = None
    paused_by: str | None = None
    cursor_us: int | None = None
    swept_us: int | None = None
    cap_swept_us: int | None = None
    committed_at_us: int | None = None
    owner: str = ""
    topic: str = ""
    partitions: list[Partition] | None = None
    parked: dict[Reason, int] | None = None

    @property
    def end(self) -> int | None:
        return None if self.partitions is None else sum(part.end for part in self.partitions)

    @property
    def raw_next(self) -> int | None:
        known = [part.raw_next for part in self.partitions or [] if part.raw_next is not None]
        return sum(known) if known else None

    @property
    def lag(self) -> int | None:
        """Offsets on the topic that no raw object covers yet."""
        return None if self.end is None or self.raw_next is None else max(0, self.end - self.raw_next)


async def run(edges: Edges) -> Outcome:
    """Asks every server at once; what can't be had is left open, and said. Raises ``ConfigError``."""
    edges.check_settings()
    problems: list[Problem] = []
    entities = list(edges.entities.entities.values())
    names = [entity.name for entity in entities]
    cursors, parked, partitions = await asyncio.gather(
        _known(_cursors(edges), "postgres", problems),
        _known(_parked(edges, names), "parked", problems),
        asyncio.gather(*(_known(_partitions(edges, entity.topic, problems), "kafka", problems) for entity in entities)),
    )
    lines = [
        _line(
            entity,
            None if cursors is None else cursors.get(entity.name),
            known,
            None if parked is None else {reason: n for (name, reason), n in parked.items() if name == entity.name},
            no_cursor="?" if cursors is None else "no cursor",
        )
        for entity, known in zip(entities, partitions, strict=True)
    ]
    return Outcome(
        exit_code=_exit_code(lines, problems),
        lines=render(lines, problems, time.time()),
        document=_document(lines, problems),
    )


def render(lines: list[Line], problems: list[Problem], now_s: float) -> list[str]:
    """The screen: one line per entity, then what is paused, what is parked, and what did not answer."""
    header = ("ENTITY", "STATE", "POLLER", "CURSOR", "AGE", "SWEPT AGO", "COMMIT AGO", *COUNTS)
    rows = [
        [
            line.entity,
            line.state,
            line.poller or "-",
            moment(line.cursor_us),
            _age(line.cursor_us, now_s),
            _age(line.swept_us, now_s),
            _age(line.committed_at_us, now_s),
            _number(line.end),
            _number(line.raw_next),
            _number(line.lag),
            _number(None if line.parked is None else sum(line.parked.values())),
        ]
        for line in lines
    ]
    screen = aligned(rows, header, right=frozenset({7, 8, 9, 10}))
    paused = [
        [line.entity, printable(line.paused_reason), f"by {line.paused_by or '?'}"]
        for line in lines
        if line.paused_reason
    ]
    waiting = [
        [line.entity, reason.value, str(count), line.owner]
        for line in lines
        for reason, count in sorted((line.parked or {}).items())
    ]
    if paused:
        screen += ["", *aligned(paused, ("PAUSED", "REASON", "")), "resume with: tidemark entity resume ENTITY"]
    if waiting:
        screen += ["", *aligned(waiting, ("PARKED", "REASON", "EVENTS", "OWNER"), right=frozenset({2}))]
    if problems:
        screen += ["", *(f"{problem.edge}: {problem.text}" for problem in problems)]
    return screen


def _line(
    entity: Entity,
    status: "EntityStatus | None",
    partitions: list[Partition] | None,
    parked: dict[Reason, int] | None,
    *,
    no_cursor: str,
) -> Line:
    of_folder = Line(
        entity=entity.name,
        state=no_cursor,
        owner=entity.owner.name,
        topic=entity.topic,
        partitions=partitions,
        parked=parked,
    )
    if status is None:
        return of_folder
    return structs.replace(
        of_folder,
        state=state(status),
        poller=status.owner if state(status) == "running" else None,
        paused_reason=status.paused_reason,
        paused_by=status.paused_by,
        cursor_us=status.cursor_us,
        swept_us=status.swept_us,
        cap_swept_us=status.cap_swept_us,
        committed_at_us=status.committed_at_us,
    )


async def _known(call: Awaitable[_T], edge: str, problems: list[Problem]) -> _T | None:
    try:
        return await call
    except Exception as error:
        known = meaning(error)
        if known is None:
            raise
        if not any(known.exit_code == DOWN == problem.exit_code and edge == problem.edge for problem in problems):
            problems.append(Problem(edge, known.exit_code, known.text))
        return None


async def _cursors(edges: Edges) -> "dict[str, EntityStatus]":
    return {status.entity: status for status in await (await edges.checkpoints()).entities()}


async def _parked(edges: Edges, names: list[str]) -> dict[tuple[str, Reason], int]:
    return await (await edges.parked()).counts(names)


async def _partitions(edges: Edges, topic: str, problems: list[Problem]) -> list[Partition]:
    marks = await (await edges.kafka()).watermarks(topic)
    ends = await _known(_raw_next(edges, topic, list(marks)), "raw bucket", problems) or {}
    return [Partition(number, mark.begin, mark.end, ends.get(number)) for number, mark in marks.items()]


async def _raw_next(edges: Edges, topic: str, numbers: list[int]) -> dict[int, int]:
    """Partition → next offset in the newest generation; 0 where nothing is written yet."""
    from shared.raw.generation import newest_claim
    from shared.raw.keys import Chain, Keys
    from shared.raw.ledger import Ledger

    store, keys = await edges.raw_store(), Keys(edges.namespace.prefix(""))
    claim = await newest_claim(store, keys, topic)
    if claim is None:
        return dict.fromkeys(numbers, 0)
    ledger, generation = Ledger(store, keys), claim.generation
    bound = asyncio.Semaphore(CALLS_AT_ONCE)

    async def next_start(number: int) -> int:
        async with bound:
            return (await ledger.tail(Chain(topic, generation, number))).next_start

    found = await asyncio.gather(*(next_start(number) for number in numbers))
    return dict(zip(numbers, found, strict=True))


def _exit_code(lines: list[Line], problems: list[Problem]) -> int:
    if any(problem.exit_code == DOWN for problem in problems):
        return DOWN
    return FINDING if problems or any(line.state in ("paused", "no cursor") for line in lines) else OK


def _document(lines: list[Line], problems: list[Problem]) -> dict[str, object]:
    entities = []
    for line in lines:
        fields = to_builtins(line)
        for name in ("cursor", "swept", "cap_swept", "committed_at"):
            fields[name] = iso(fields.pop(f"{name}_us"))
        entities.append(fields | {"topic_end": line.end, "raw_next": line.raw_next, "lag": line.lag})
    return {"entities": entities, "problems": to_builtins(problems)}


def _age(us: int | None, now_s: float) -> str:
    return "-" if not us else span(now_s - us / 1_000_000)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
