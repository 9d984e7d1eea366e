"""A bulk re-drive that dies anywhere and goes on: each event is woken once, at the rate that was asked for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from shared.events.model import Reason
from shared.parked.audit import _months
from shared.parked.bulk import CHUNK_ROWS, Pace, Waker, run_job
from shared.parked.items import Item, ParkedRow, draft_of, meta_item, row_of
from shared.parked.jobs import Job, JobTaken
from shared.parked.leases import Claimed, Row, claimed_row, error_of, errors_wire, read_row
from shared.parked.model import State
from shared.parked.selection import Selection
from shared.parked.transitions import Hint, Place
from shared.parked.walk import START, Page, Position, place_of
from tests.fakes.parked_bench import AT_MS, event_of

NOW_MS = AT_MS + 60_000
ALL = Selection(entities=("payments",))


class Killed(Exception):
    """The process ends here."""


class Table:
    """Rows as the index and the table have them; dies before or after its ``dies_at``-th write."""

    def __init__(self, items: list[Item]) -> None:
        self.items = {item["sk"]["S"]: item for item in items}
        self.wakes: Counter[str] = Counter()
        self.saved: Job | None = None
        self.dies_at: int | None = None
        self.dies_after = False
        self.leased: set[str] = set()
        self.limits_s: set[float | None] = set()

    async def look(self, place: Place) -> Row | None:
        await asyncio.sleep(0)
        return read_row(self.items[place.sk]) if place.sk in self.items else None

    async def wake(
        self,
        place: Place,
        spread_s: float,
        by: str,
        *,
        operator: bool = False,
        stale_after_s: float | None = None,
    ) -> bool:
        self.limits_s.add(stale_after_s)
        row = await self.look(place)
        if row is None or row.state is State.PARKED:
            return False
        self._write(lambda: self._woken(row, by, "woken"))
        return True

    async def claim(self, hint: Hint, worker: str, lease_s: float, *, early: bool = False) -> Claimed | None:
        row = await self.look(hint)
        return None if row is None or row.item_id in self.leased else claimed_row(row, "t", 0.0)

    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool, free: bool = False) -> None:
        assert not counts
        self._write(lambda: self._woken(claimed, error, "invalid", due_ms))

    async def save(self, job: Job) -> Job:
        await asyncio.sleep(0)
        if self.saved is not None and self.saved.ver != job.ver:
            raise JobTaken
        self._write(lambda: setattr(self, "saved", replace(job, ver=job.ver + 1)))
        assert self.saved is not None
        return self.saved

    async def pages(self, selection: Selection, start: Position = START) -> AsyncIterator[Page]:
        rows = sorted((row_of(item) for item in self.items.values()), key=place_of)
        for number, _ in enumerate(selection.partitions[:2]):
            own = [row for index, row in enumerate(rows) if index % 2 == number and selection.takes(row)]
            if number == start.partition:
                own = [row for row in own if place_of(row) > start.after]
            if number >= start.partition and own:
                yield Page(number, own)

    def refuse_again(self) -> None:
        """The retrier has tried all that is woken, in vain."""
        for item in self.items.values():
            item["st"] = {"S": "HELD"}

    def _woken(self, row: Row, by: str, kind: str, due_ms: int = NOW_MS) -> None:
        self.wakes[row.item_id] += 1
        item = self.items[row.sk]
        item["st"] = {"S": "PARKED"}
        item["due"] = {"S": f"{due_ms:013d}#{row.item_id}"}
        item["errs"] = errors_wire((*row.errs, error_of(by, kind, NOW_MS)))

    def _write(self, write: object) -> None:
        if self.dies_at is not None:
            self.dies_at -= 1
        dies = self.dies_at == 0
        if not dies or self.dies_after:
            assert callable(write)
            write()
        if dies:
            raise Killed


def held(count: int, **changes: object) -> list[Item]:
    events = [event_of(number, at_us=AT_MS * 1000 + number, **changes) for number in range(count)]
    return [meta_item(draft_of(event, 1, 300_000)) for event in events]


def job_of(total: int, selection: Selection = ALL) -> Job:
    return Job(id="r1", who="w", why="", per_second=8.0, selection=selection, total=total, created_ms=0, changed_ms=0)


def clock(seconds_per_look: float) -> object:
    now = [0.0]

    def monotonic_s() -> float:
        now[0] += seconds_per_look
        return now[0]

    return monotonic_s


async def run(table: Table, job: Job, seconds_per_look: float = 1.0) -> Job:
    async def no_wait(seconds: float) -> None:
        await asyncio.sleep(0)

    pace = Pace(job.per_second, monotonic_s=lambda: 0.0, sleep=no_wait)
    waker = Waker(table, lambda: NOW_MS, {"payments": 3_600.0}.get)
    return await run_job(job, table, table, waker, pace, monotonic_s=clock(seconds_per_look))  # type: ignore[arg-type]


async def test_all_that_is_selected_is_woken_and_counted() -> None:
    table = Table(held(9))

    done = await run(table, await table.save(job_of(9)))

    assert (done.counts, done.done, set(table.wakes.values())) == ({"woken": 9}, True, {1})
    assert table.limits_s == {3_600.0}, "the entity's own"
    assert table.saved == done


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("dies_at", range(1, 16))
async def test_a_job_killed_at_any_write_wakes_nothing_twice_and_nothing_not_at_all(dies_at: int, after: bool) -> None:
    table = Table(held(9))
    job = await table.save(job_of(9))
    table.dies_at, table.dies_after = dies_at, after

    with pytest.raises(Killed):
        await run(table, job)
    table.refuse_again()
    assert table.saved is not None
    done = await run(table, table.saved)

    assert len(table.wakes) == 9
    assert set(table.wakes.values()) == {1}
    assert done.counts == {"woken": 9}


async def test_what_is_not_selected_any_more_is_left_alone() -> None:
    table = Table(held(4))
    selection = replace(ALL, group="0" * 16)

    class Behind(Table):
        """An index that still shows what the table has no more."""

        def pages(self, selection: Selection, start: Position = START) -> AsyncIterator[Page]:
            return super().pages(ALL, start)

    behind = Behind(list(table.items.values()))
    done = await run(behind, await behind.save(job_of(4, selection)))

    assert (done.counts, behind.wakes.total()) == ({"gone": 4}, 0)


async def test_a_parked_event_that_is_due_later_is_brought_forward_and_one_that_is_due_is_left() -> None:
    soon, later, leased = (
        meta_item(draft_of(event_of(n, reason=Reason.KAFKA_TOPIC, at_us=AT_MS * 1000 + n), 1, 9)) for n in range(3)
    )
    for item in (later, leased):
        item["due"] = {"S": f"{NOW_MS + 3_600_000:013d}#x"}
    table = Table([soon, later, leased])
    table.leased = {leased["item"]["S"]}

    done = await run(table, await table.save(job_of(3)))

    assert done.counts == {"due": 1, "hurried": 1, "busy": 1}
    assert table.wakes == {later["item"]["S"]: 1}
    assert table.items[later["sk"]["S"]]["due"]["S"].startswith(f"{NOW_MS:013d}")


async def test_a_runner_that_was_overtaken_stops_at_its_next_save() -> None:
    table = Table(held(9))
    job = await table.save(job_of(9))
    await table.save(job)  # another run takes it over

    with pytest.raises(JobTaken):
        await run(table, job)

    assert table.wakes.total() < 9


async def test_no_second_has_many_more_than_its_rate_and_a_pause_is_not_made_up_for() -> None:
    now = [0.0]
    begun: list[float] = []

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(100.0, monotonic_s=lambda: now[0], sleep=sleep)
    for turn in range(60):
        if turn == 30:
            now[0] += 60.0
        await pace.turn(pace.chunk)
        begun += [now[0]] * pace.chunk

    assert pace.chunk == CHUNK_ROWS
    for start in set(begun):
        assert sum(start <= at < start + 1 for at in begun) <= 100 + pace.chunk
    assert Pace(0.1).chunk == 1


def test_a_job_counts_what_it_has_settled() -> None:
    job = job_of(3).moved(Position(1, "a"), ["woken", "gone"]).moved(Position(2, "b"), ["woken"])

    assert (job.counts, job.settled, job.position) == ({"woken": 2, "gone": 1}, 3, Position(2, "b"))


def test_the_trail_is_read_month_by_month_back_to_its_bound() -> None:
    day_ms = 86_400_000

    assert list(_months(0, 0)) == ["1970-01"]
    assert list(_months(40 * day_ms, 20 * day_ms)) == ["1970-02", "1970-01"]
    assert list(_months(370 * day_ms, 330 * day_ms)) == ["1971-01", "1970-12", "1970-11"]


def row_at(number: int) -> ParkedRow:
    return row_of(held(number + 1)[number])


def test_places_are_in_the_order_of_first_parking() -> None:
    assert place_of(row_at(1)) < place_of(row_at(2)) < place_of(row_at(10))
