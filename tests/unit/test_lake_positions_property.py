"""A table's position never passes a row that the table does not have, whatever commits in whatever order.

Readers take the positions of one version and commit on a later one; in between others merge, restore, replace, clean
up the log or carry the positions forward. Delta's own conflict check, which forbids many of these, is left out: the
fold must not need it. ``TIDEMARK_TEST_FULL=1`` runs many more histories.
"""

import os
from dataclasses import dataclass, field
from random import Random

import pytest

from shared.lake import positions
from shared.lake.positions import Commit, Known, Note, Positions, Ranges, advanced, carried, positions_at
from shared.raw.keys import Chain

HISTORIES = 20_000 if os.environ.get("TIDEMARK_TEST_FULL") else 800
STEPS = 30
CHAINS = (Chain("cdc.things", 1, 0), Chain("cdc.things", 2, 0))
ROWS = 60  # per chain

Content = frozenset[tuple[Chain, int]]


@dataclass
class Begun:
    """What a writer has read and will commit."""

    base: int
    positions: Positions
    ranges: Ranges
    replaces: bool = False


@dataclass
class Table:
    """Its commits, and which offsets each version truly holds."""

    random: Random
    commits: list[Commit] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    kept_from: int = 0
    begun: list[Begun] = field(default_factory=list)
    known: Known | None = None
    told: list[str] = field(default_factory=list)

    @property
    def version(self) -> int:
        return len(self.commits) - 1

    @property
    def content(self) -> Content:
        return self.contents[-1] if self.contents else frozenset()

    def read(self, version: int) -> Commit | None:
        return self.commits[version] if self.kept_from <= version <= self.version else None

    def positions(self, version: int, known: Known | None = None) -> Positions:
        return positions_at(version, self.read, known)

    def append(self, commit: Commit, content: Content) -> None:
        self.commits.append(commit)
        self.contents.append(content)
        self.told.append(f"{commit}")
        for known in (None, self.known):
            found = self.positions(self.version, known)
            missing = {place for chain, at in found.items() for place in spread(chain, 0, at)} - content
            assert not missing, "\n".join([*self.told, f"positions {found}, yet {sorted(missing)[:3]} is not there"])

    def step(self) -> None:
        (action,) = self.random.choices(
            [self.begin, self.commit, self.restore, self.foreign, self.clean, self.carry, self.refresh, self.remember],
            [8, 8, 2, 1, 1, 1, 1, 2],
        )
        action()

    def begin(self) -> None:
        """Mostly where the table ends; an operator may name any range."""
        at = self.positions(self.version, self.random.choice([None, self.known]))
        ranges = {}
        for chain in self.random.sample(CHAINS, self.random.randint(1, 2)):
            start = at.get(chain, 0) if self.random.random() < 0.9 else self.random.randrange(ROWS)
            ranges[chain] = (start, min(start + self.random.randint(1, 20), ROWS))
        self.begun.append(Begun(self.version, at, ranges))

    def refresh(self) -> None:
        """Built apart, from the first row on, and put in the table's place later."""
        ranges = {chain: (0, self.random.randint(1, ROWS)) for chain in CHAINS}
        self.begun.append(Begun(self.version, {}, ranges, replaces=True))

    def carry(self) -> None:
        self.begun.append(Begun(self.version, self.positions(self.version), {}))

    def commit(self) -> None:
        if not self.begun:
            return
        begun = self.begun.pop(self.random.randrange(len(self.begun)))
        note = carried(begun.base, begun.positions)
        if begun.ranges:
            note = Note(begun.base, begun.ranges, advanced(begun.positions, begun.ranges), begun.replaces)
        rows = frozenset(place for chain, span in begun.ranges.items() for place in spread(chain, *span))
        content = rows if begun.replaces else self.content | rows
        self.append(Commit(self.version + 1, "MERGE", note), content)

    def restore(self) -> None:
        if self.version >= self.kept_from:
            to = self.random.randint(self.kept_from, self.version)
            self.append(Commit(self.version + 1, "RESTORE", restored_to=to), self.contents[to])

    def foreign(self) -> None:
        """Somebody else's: without a note, with or without all that was there before."""
        forgets = self.random.random() < 0.3
        commit = Commit(self.version + 1, "WRITE" if forgets else "OPTIMIZE", forgets=forgets)
        self.append(commit, frozenset() if forgets else self.content)

    def clean(self) -> None:
        self.kept_from = self.random.randint(self.kept_from, max(self.version, self.kept_from))

    def remember(self) -> None:
        """What a long-lived reader knows of a version outlives the log's clean-up."""
        self.known = Known(self.version, self.positions(self.version)) if self.version >= 0 else None

    def load_alone(self) -> None:
        at = self.positions(self.version)
        ranges = {chain: (at.get(chain, 0), ROWS) for chain in CHAINS if at.get(chain, 0) < ROWS}
        self.begun = [Begun(self.version, at, ranges)]
        self.commit()


def spread(chain: Chain, start: int, end: int) -> list[tuple[Chain, int]]:
    return [(chain, offset) for offset in range(start, end)]


def run(histories: int) -> None:
    for seed in range(histories):
        table = Table(Random(seed))
        for _ in range(STEPS):
            table.step()

        table.load_alone()
        assert table.positions(table.version) == dict.fromkeys(CHAINS, ROWS), "a writer by itself gets to the end"
        assert table.content >= {place for chain in CHAINS for place in spread(chain, 0, ROWS)}


def test_a_position_never_passes_a_row_that_the_table_does_not_have() -> None:
    run(HISTORIES)


def test_no_progress_is_lost_while_the_log_is_whole() -> None:
    ends = []
    for seed in range(100):
        table = Table(Random(seed))
        before: Positions = {}
        for _ in range(STEPS):
            table.random.choice([table.begin, table.commit, table.carry, table.remember])()
            now = table.positions(table.version, table.known)
            assert all(now.get(chain, 0) >= at for chain, at in before.items()), table.told
            before = now
        ends.append(sum(before.values()))

    assert sum(ends) / len(ends) > ROWS / 2


@pytest.mark.parametrize("mistake", ["notes always hold", "ranges always count", "a restore is no news"])
def test_each_part_of_the_rule_is_needed(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    match mistake:
        case "notes always hold":
            monkeypatch.setattr(positions, "_quiet", lambda *_: True)
        case "ranges always count":
            monkeypatch.setattr(
                positions, "advanced", lambda at, ranges: dict(at) | {chain: end for chain, (_, end) in ranges.items()}
            )
        case _:
            append = Table.append

            def unsaid(table: Table, commit: Commit, content: Content) -> None:
                append(table, Commit(commit.version, commit.operation, commit.note), content)

            monkeypatch.setattr(Table, "append", unsaid)

    with pytest.raises(AssertionError):
        run(300)
