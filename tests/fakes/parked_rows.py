"""A parked table in memory, as far as waking and counting see it. The same waking is tested on a real table too."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from shared.parked.bodies import BodyMissing
from shared.parked.calls import ParkedUnavailable
from shared.parked.items import Item, ParkedRow, draft_of, meta_item, row_of
from shared.parked.leases import Row, read_row
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.streaming import load
from shared.parked.transitions import Place

CHUNK_ROWS = 8


class ParkedRowsInMemory:
    """Pages of ``page_rows``. ``looked`` and ``woken`` tell what was asked for, by item id."""

    def __init__(self, events: Iterable[ParkedEvent], page_rows: int = 1_000) -> None:
        self.page_rows = page_rows
        self.looked: list[str] = []
        self.woken: list[str] = []
        self.spreads_s: list[float] = []
        self.gone: set[str] = set()  # by item id; the index still shows them
        self.bodiless: set[str] = set()
        self.calls_left: int | None = None  # then the table is away
        self._items: dict[str, Item] = {}
        self._raws: dict[str, bytes] = {}
        for event in events:
            self.add(event)

    def add(self, event: ParkedEvent) -> None:
        item = meta_item(draft_of(event, 1, 300_000))
        self._items[item["sk"]["S"]] = item
        self._raws[item["sk"]["S"]] = event.raw

    def remember(self, item_id: str, fingerprint: str) -> None:
        """As the retrier's ``hold`` does after another try in vain."""
        for item in self._items.values():
            if item["item"]["S"] == item_id:
                item["st"] = {"S": State.HELD.value}
                item["sfp"] = {"S": fingerprint}

    async def rows(self, wanted: ParkedFilter) -> AsyncIterator[list[ParkedRow]]:
        found = [
            row
            for row in (row_of(item) for item in self._items.values())
            if row.entity in wanted.entities
            and row.reason in wanted.reasons
            and row.state == wanted.state
            and row.first_us >= (wanted.since_us or 0)
        ]
        for start in range(0, len(found), self.page_rows):
            await self._call()
            yield found[start : start + self.page_rows]

    async def events(self, rows: Sequence[ParkedRow]) -> AsyncIterator[list[ParkedEvent | None]]:
        for start in range(0, len(rows), CHUNK_ROWS):
            yield [await load(row, self) for row in rows[start : start + CHUNK_ROWS]]

    async def look(self, place: Place) -> Row | None:
        await self._call()
        row = read_row(self._items[place.sk])
        self.looked.append(row.item_id)
        return None if row.item_id in self.gone else row

    async def body(self, row: Row) -> bytes:
        await self._call()
        if row.item_id in self.bodiless:
            raise BodyMissing(row.item_id)
        return self._raws[row.sk]

    async def wake(self, place: Place, spread_s: float, by: str) -> bool:
        await self._call()
        item = self._items[place.sk]
        if item["item"]["S"] in self.gone or item["st"]["S"] != State.HELD:
            return False
        item["st"] = {"S": State.PARKED.value}
        self.woken.append(item["item"]["S"])
        self.spreads_s.append(spread_s)
        return True

    async def _call(self) -> None:
        await asyncio.sleep(0)
        if self.calls_left is not None:
            if self.calls_left <= 0:
                raise ParkedUnavailable("parked_unavailable", "away")
            self.calls_left -= 1
