"""``tidemark cursor``: show it and its history; move it, with a reason that stands in the history."""

from typing import Any

from msgspec import to_builtins

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import OK, Outcome, aligned, iso, moment, printable
from services.cli.who import operator
from shared.checkpoints.model import CursorMove, UnknownEntity
from shared.config import ConfigError


async def show(edges: Edges, entity: str) -> Outcome:
    """Raises ``UnknownEntity``."""
    checkpoints = await edges.checkpoints()
    status = next((status for status in await checkpoints.entities() if status.entity == entity), None)
    if status is None:
        raise UnknownEntity(entity)
    moves = await checkpoints.history(entity)
    marks = [
        ["cursor", moment(status.cursor_us), "all changes dated before are published or parked"],
        ["swept", moment(status.swept_us), f"looked back up to here, {status.window_us / 1_000_000:g} s behind it"],
        ["cap swept", moment(status.cap_swept_us), "looked back up to here, as far as the lateness cap"],
        ["newest", moment(status.newest_us), "newest change that the source has shown"],
        ["committed", moment(status.committed_at_us), "last page"],
    ]
    history = [
        [moment(move.at_us), moment(move.cursor_from_us), moment(move.cursor_to_us), printable(move.who), _why(move)]
        for move in moves
    ]
    lines = aligned(marks)
    if history:
        lines += ["", *aligned(history, ("MOVED AT", "FROM", "TO", "BY", "WHY"))]
    fields = to_builtins(status)
    marks_document = {name.removesuffix("_us"): iso(fields[name]) for name in fields if name.endswith("_us")}
    return Outcome(
        exit_code=OK,
        lines=lines,
        document={"entity": entity, **marks_document, "history": [_document(move) for move in moves]},
    )


async def set_to(edges: Edges, entity: str, to_us: int, reason: str) -> Outcome:
    """Fences the poller that holds the entity. Raises ``UnknownEntity``, ``ConfigError``."""
    if to_us > clock_ms() * 1000:
        raise ConfigError([f"--to {moment(to_us)} lies ahead: all changes until then would be skipped unseen"])
    move = await (await edges.checkpoints()).set_cursor(entity, to_us, operator(), reason)
    backward = move.cursor_to_us < move.cursor_from_us
    effect = "is read and published again, under the same event ids" if backward else "is skipped"
    earlier, later = sorted((move.cursor_from_us, move.cursor_to_us))
    lines = [
        f"{entity}: cursor moved from {moment(move.cursor_from_us)} to {moment(move.cursor_to_us)}",
        f"what is dated from {moment(earlier)} to {moment(later)} {effect}",
    ]
    return Outcome(exit_code=OK, lines=lines, document=_document(move))


def _why(move: CursorMove) -> str:
    return printable(move.why) + (f" ({move.moves} times)" if move.moves > 1 else "")


def _document(move: CursorMove) -> dict[str, Any]:
    fields = to_builtins(move)
    return {name.removesuffix("_us"): iso(value) if name.endswith("_us") else value for name, value in fields.items()}
