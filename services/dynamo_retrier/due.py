"""Reads the re-drive queue of the index, shard by shard, and hands out each row version once."""

import random
from collections.abc import Callable, Collection, Sequence

from services.dynamo_retrier.ports import DueRows
from shared.parked.leases import Due
from shared.parked.model import SHARDS

DEPTH_MIN, DEPTH_MAX = 16, 1_000
"""Rows read of one shard, to look past those that have to wait."""
DEEP_AGAIN_S = 5.0
"""Between two looks into the depth that found nothing there: each reads some megabytes."""
REMEMBERED_S = 10.0
"""The index is behind the table: a row that we have just had may be shown once more as it was before."""


class DueQueue:
    """Workers begin at random shards and go round, so that two of them rarely want the same rows."""

    def __init__(self, rows: DueRows, *, shards: Sequence[int] = range(SHARDS)) -> None:
        self._rows = rows
        self._shards = list(shards)
        random.shuffle(self._shards)
        self._had: dict[tuple[str, str], tuple[int, float]] = {}  # place → (version, forgotten at)
        self._deep_from_s = 0.0
        self._in_vain = False

    async def look(self, now_ms: int, now_s: float, count: int, may_go: Callable[[Due], bool]) -> list[Due]:
        """About ``count`` due rows that ``may_go``, from as few shards as hold them; earliest first in each.

        Raises ``ParkedUnavailable``, ``ClockSkewed``.
        """
        self._had = {place: had for place, had in self._had.items() if had[1] > now_s}
        found: list[Due] = []
        depth_max = DEPTH_MAX if now_s >= self._deep_from_s else DEPTH_MIN
        for _ in range(len(self._shards)):
            self._shards.append(self._shards.pop(0))
            found += await self._read(self._shards[-1], now_ms, count - len(found), depth_max, may_go)
            if len(found) >= count:
                break
        if self._in_vain:
            self._deep_from_s, self._in_vain = now_s + DEEP_AGAIN_S, False
        return found

    def hand_out(self, hints: Collection[Due], now_s: float) -> None:
        for hint in hints:
            self._had[hint.pk, hint.sk] = (hint.ver, now_s + REMEMBERED_S)

    async def _read(
        self, shard: int, now_ms: int, count: int, depth_max: int, may_go: Callable[[Due], bool]
    ) -> list[Due]:
        """Rows that have to wait may lie before others: then read deeper, up to a bound."""
        limit = max(DEPTH_MIN, count)
        while True:
            rows = await self._rows.due("r", shard, now_ms, limit)
            usable = [row for row in rows if may_go(row) and self._is_news(row)]
            if usable or len(rows) < limit or limit >= depth_max:
                self._in_vain = self._in_vain or (not usable and limit > DEPTH_MIN)
                return usable[:count]
            limit = min(DEPTH_MAX, limit * 8)

    def _is_news(self, row: Due) -> bool:
        had = self._had.get((row.pk, row.sk))
        return had is None or row.ver > had[0]
