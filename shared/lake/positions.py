"""How far a Delta table is: for each chain of raw objects the first offset that is not merged yet. Pure.

The position lives in the commits themselves, so that a table that was restored, copied or overtaken by another writer
says the truth about itself. Each commit of ours carries a note (``userMetadata``): the ranges that it merged, and the
positions that follow from those it had read. A range counts only if it begins at or below the position of the version
before, so that a commit whose positions were overtaken (by a RESTORE, say) can't jump over what is missing.

A chain of which nothing is said stands at 0. Objects below a chain's floor are no part of the ledger: a range that
begins at the floor is written down as beginning at 0.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from shared.raw.keys import Chain

Positions: TypeAlias = dict[Chain, int]
"""Next start; a chain that is not in it stands at 0."""
Ranges: TypeAlias = dict[Chain, tuple[int, int]]
"""First offset, and the one after the last."""

_FORMAT = 1


class Note(Struct, frozen=True):
    """What a commit of ours says. ``replaces``: it put new content in place of all there was, so ``positions`` hold."""

    base: int
    """The version whose positions were read; -1: there was none."""
    ranges: Ranges
    positions: Positions
    """Those of ``base``, advanced by ``ranges``."""
    replaces: bool = False


class Commit(Struct, frozen=True):
    """What the fold needs to know of one commit."""

    version: int
    operation: str
    note: Note | None = None
    restored_to: int | None = None
    forgets: bool = False
    """Somebody else replaced the content, or restored it to a time: nothing is known to be in it."""

    @property
    def speaks(self) -> bool:
        """Does it change the positions otherwise than by leaving them as they were?"""
        return self.note is not None or self.restored_to is not None or self.forgets


class Known(Struct, frozen=True):
    """The positions of one version: that version never changes."""

    version: int
    positions: Positions


def positions_at(version: int, read: Callable[[int], Commit | None], known: Known | None = None) -> Positions:
    """The positions of a table's ``version``, by its log, newest first.

    ``read`` gives ``None`` for what is not retained: then nothing is known, and all raw rows count as not merged, which
    costs time and is otherwise harmless. ``known`` spares the way back. Usually one commit is read.
    """
    ranges: list[Ranges] = []
    while True:
        if known is not None and version == known.version:
            return _folded(known.positions, ranges)
        commit = read(version) if version >= 0 else None
        if commit is None or commit.forgets:
            return _folded({}, ranges)
        if commit.restored_to is not None:
            version = commit.restored_to
            continue
        if commit.note is not None:
            if commit.note.replaces or _quiet(commit.note.base, version, read):
                return _folded(commit.note.positions, ranges)
            ranges.append(commit.note.ranges)
        version -= 1


def advanced(positions: Mapping[Chain, int], ranges: Mapping[Chain, tuple[int, int]]) -> Positions:
    """``positions`` moved by the ranges that begin at or below them; never back."""
    moved = dict(positions)
    for chain, (start, after) in ranges.items():
        if start <= moved.get(chain, 0) < after:
            moved[chain] = after
    return moved


def carried(base: int, positions: Mapping[Chain, int]) -> Note:
    """The note of a commit that merges nothing (maintenance), so that the positions don't leave with old log files."""
    return Note(base, {}, dict(positions))


def commit_of(version: int, commit_info: Mapping[str, Any]) -> Commit:
    """From a ``commitInfo`` action, or a row of the table's history."""
    operation = str(commit_info.get("operation", ""))
    parameters = commit_info.get("operationParameters") or {}
    note = parse_note(commit_info.get("userMetadata"))
    if operation == "RESTORE":
        restored_to = _whole(parameters.get("version"))
        if restored_to is None or restored_to >= version:
            return Commit(version, operation, forgets=True)
        return Commit(version, operation, restored_to=restored_to)
    return Commit(version, operation, note, forgets=note is None and _replaces(operation, parameters))


def encode_note(note: Note) -> str:
    """As ``userMetadata``."""
    words: dict[str, Any] = {
        "tidemark": _FORMAT,
        "base": note.base,
        "ranges": {str(chain): list(span) for chain, span in sorted(note.ranges.items())},
        "positions": {str(chain): start for chain, start in sorted(note.positions.items())},
    }
    return msgspec.json.encode(words | ({"replaces": True} if note.replaces else {})).decode()


def parse_note(text: object) -> Note | None:
    """``None``: no note of ours. A note of a later format is none either: then all is merged again, which is safe."""
    if not isinstance(text, str) or '"tidemark"' not in text:
        return None
    try:
        words = msgspec.json.decode(text, type=_Words)
        if words.tidemark != _FORMAT:
            return None
        ranges = {chain_of(chain): span for chain, span in words.ranges.items()}
        return Note(words.base, ranges, {chain_of(chain): at for chain, at in words.positions.items()}, words.replaces)
    except (msgspec.MsgspecError, ValueError):
        return None


def chain_of(text: str) -> Chain:
    """The chain that ``str`` wrote: ``<topic>/<generation>/<partition>``. Raises ``ValueError``."""
    topic, generation, partition = text.rsplit("/", 2)
    if not topic or not generation.isdecimal() or not partition.isdecimal():
        raise ValueError(f"{text!r} is no chain; expected <topic>/<generation>/<partition>")
    return Chain(topic, int(generation), int(partition))


class _Words(Struct):
    tidemark: int
    base: int
    ranges: dict[str, tuple[int, int]]
    positions: dict[str, int]
    replaces: bool = False


def _folded(positions: Mapping[Chain, int], newest_first: list[Ranges]) -> Positions:
    folded = dict(positions)
    for ranges in reversed(newest_first):
        folded = advanced(folded, ranges)
    return folded


def _quiet(base: int, version: int, read: Callable[[int], Commit | None]) -> bool:
    """Did nothing between the two change the positions?"""
    return all(commit is not None and not commit.speaks for commit in _between(base, version, read))


def _between(base: int, version: int, read: Callable[[int], Commit | None]) -> Iterator[Commit | None]:
    return (read(other) for other in range(version - 1, base, -1))


def _replaces(operation: str, parameters: Mapping[str, Any]) -> bool:
    """A table made anew, or all of it overwritten, by somebody else."""
    if operation.startswith(("CREATE OR REPLACE", "REPLACE TABLE", "CLONE", "CONVERT", "TRUNCATE")):
        return True
    return operation in ("WRITE", "STREAMING UPDATE") and parameters.get("mode", parameters.get("outputMode")) in (
        "Overwrite",
        "Complete",
    )


def _whole(value: object) -> int | None:
    """Spark writes parameters as JSON text, readers hand them on as text or as numbers."""
    text = str(value).strip('"')
    return int(text) if text.isdecimal() else None
