"""A source in memory that behaves as badly as real ones do: ties, late commits, silent cuts, no order, odd clocks."""

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.json import encode

Manner = Literal["rows", "events"]
Order = Literal["ascending", "descending", "unordered"]

EPOCH_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


class Write(Struct, frozen=True, order=True):
    """One change of one row: stamped when it is written, shown from its commit on."""

    commit_us: int
    number: int  # rises in the order of the writes, as a sequence does
    stamp_us: int
    key: int
    raw: bytes

    @property
    def lateness_us(self) -> int:
        return self.commit_us - self.stamp_us


class History(Struct, frozen=True):
    """What shall happen at the source, and what a perfect reader gets from it."""

    shows: Manner
    writes: list[Write]  # in the order of their commits


class Lateness(Struct, frozen=True):
    """A share of the transactions commits late: by a mean, up to a cap; from ``jump_s`` on by other ones."""

    share: float = 0.05
    mean_s: float = 3.0
    cap_s: float = 30.0
    jump_s: float | None = None
    jump_mean_s: float = 40.0
    jump_cap_s: float = 90.0

    def of(self, chance: random.Random, at_s: float) -> float:
        if chance.random() >= self.share:
            return 0.0
        jumped = self.jump_s is not None and at_s >= self.jump_s
        mean_s, cap_s = (self.jump_mean_s, self.jump_cap_s) if jumped else (self.mean_s, self.cap_s)
        return min(cap_s, chance.expovariate(1 / mean_s))


def make_history(
    chance: random.Random,
    shows: Manner,
    *,
    seconds: int = 300,
    per_second: float = 5,
    granularity_us: int = SECOND_US,
    keys: int = 20,
    values: int = 3,
    lateness: Lateness = Lateness(),  # noqa: B008 (frozen)
    bursts: Sequence[tuple[int, int]] = (),
) -> History:
    """``bursts``: (at second, rows) of one transaction, all under one stamp. Few ``values`` make equal changes."""
    writes: list[Write] = []

    def write(at_s: float, late_s: float) -> None:
        stamp_us = EPOCH_US + int(at_s * SECOND_US)
        stamp_us -= stamp_us % granularity_us
        key = chance.randrange(keys)
        raw = encode({"k": key, "t": stamp_us, "v": chance.randrange(values)})
        commit_us = EPOCH_US + int((at_s + late_s) * SECOND_US)
        writes.append(Write(max(commit_us, stamp_us), len(writes), stamp_us, key, raw))

    for second in range(seconds):
        for _ in range(int(per_second) + (chance.random() < per_second % 1)):
            at_s = second + chance.random()
            write(at_s, lateness.of(chance, at_s))
        for at, rows in bursts:
            for _ in range(rows if at == second else 0):
                write(second + 0.5, 0.0)
    return History(shows, sorted(writes))


class SimulatedSource:
    """``GET …?updatedSince=…`` on a history, at a given time."""

    def __init__(
        self,
        history: History,
        *,
        exclusive: bool = False,
        silent_cap: int | None = None,
        takes_limit: bool = False,
        order: Order = "ascending",
        chance: random.Random | None = None,
    ) -> None:
        self.history = history
        self._exclusive = exclusive
        self.silent_cap = silent_cap
        self._takes_limit = takes_limit
        self.order = order
        self._chance = chance or random.Random(0)
        self._next = 0
        self._shown: list[tuple[int, int, bytes]] = []  # (stamp, number, raw), sorted
        self._states: dict[int, tuple[int, int, bytes]] = {}
        self.requests = 0
        self.rows = 0

    def get(self, since_us: int, now_us: int, limit: int | None = None) -> list[bytes]:
        """The rows shown at ``now_us``, which never goes back."""
        self._commit_until(now_us)
        edge = bisect_right if self._exclusive else bisect_left
        found = self._shown[edge(self._shown, since_us, key=lambda row: row[0]) :]
        if self.order == "descending":
            found.reverse()
        elif self.order == "unordered":
            self._chance.shuffle(found)
        cuts = [cut for cut in (self.silent_cap, limit if self._takes_limit else None) if cut is not None]
        found = found[: min(cuts, default=len(found))]
        self.requests += 1
        self.rows += len(found)
        return [raw for _, _, raw in found]

    def _commit_until(self, now_us: int) -> None:
        writes = self.history.writes
        while self._next < len(writes) and writes[self._next].commit_us <= now_us:
            write = writes[self._next]
            self._next += 1
            row = (write.stamp_us, write.number, write.raw)
            if self.history.shows == "rows":
                # The table's state: a transaction that waited for a lock may leave a newer row under an older stamp.
                before = self._states.get(write.key)
                if before is not None:
                    del self._shown[bisect_left(self._shown, before)]
                self._states[write.key] = row
            insort(self._shown, row)
