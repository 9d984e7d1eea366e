"""A new schema version, rule, limit or repair rule wakes, by itself, the events that were refused for the old one.

Who: every retrier, for each of its entities in turn (and the analysing Lambda, once per call). When: at start and
whenever the contract's fingerprint changes, all held events of the entity; for ten minutes after a change, and always
where there are repair rules, those parked since the last pass (a poller may park under the old contract for a while,
and knows no repair rules); every six hours all again. State is compared, not a notice received: nothing is lost with a
process, and whatever is missed here is still tried at its own re-check.

What it costs: a pass reads the index (31,000 read units per million events) and bodies of a sample; a wake and the try
that follows take 12 write units. So a sample is tried first, in memory, per page of the index (some thousand events of
one shard) and cause: none of it passes: the page's events of this cause are left; all pass: they are woken; else each
is tried before. Where no re-check would ever try an event again (hostile, too large), each is tried before.

Two wakers at once do no harm: a wake is conditional in the table, and happens once.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from msgspec import Struct, structs

from shared import metrics
from shared.events.model import Reason
from shared.logs import get_logger
from shared.parked.analysis import Analyst, Retriable
from shared.parked.calls import ParkedUnavailable
from shared.parked.causes import cause_path
from shared.parked.items import ParkedRow
from shared.parked.model import State
from shared.parked.policy import POLICIES
from shared.parked.queries import ParkedFilter
from shared.parked.streaming import ParkedRows, Readable, load
from shared.retry import Wakes

log = get_logger(__name__)

HELD_REASONS = tuple(reason for reason in Reason if POLICIES[reason].state is State.HELD)
SAMPLE = 10  # events per page and cause
IN_FLIGHT = 8  # bodies held at once, or wakes under way
SPREAD_S_MIN = 1.0
SETTLE_US = 600_000_000
FULL_EVERY_US = 6 * 3_600_000_000
OVERLAP_US = 300_000_000  # for clocks that differ, and an index that is behind


class NoAnalyst(Exception):
    """The entity's contract can't be had now; its parked events keep their due times."""


class AnalystSource(Protocol):
    async def current(self, entity: str) -> Analyst:
        """Under the newest contract. Raises ``NoAnalyst``."""


class Wakeable(Readable, Protocol):
    """What waking needs of ``Transitions``."""

    async def wake(self, row: ParkedRow, spread_s: float, by: str) -> bool:
        """HELD → PARKED, due within ``spread_s``; false: it was not held any more. Raises ``ParkedUnavailable``."""


class WakeReport(Struct):
    """One pass over one entity."""

    entity: str
    fingerprint: str
    mismatched: int = 0  # held, and last tried against another contract
    tried: int = 0  # in memory
    woken: int = 0
    left: int = 0  # still refused, as far as the sample says
    complete: bool = False  # false: stopped on the way


class _Pass(Struct, frozen=True):
    fingerprint: str
    changed_us: int  # when this fingerprint was first seen
    full_us: int  # when the last pass over all began
    began_us: int


class Waker:
    """``wakes_per_s_max`` spreads the due times of what is woken: give it what the re-drive may publish."""

    def __init__(
        self,
        analysts: AnalystSource,
        rows: ParkedRows,
        parked: Wakeable,
        *,
        wakes_per_s_max: float = 1_000.0,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._analysts = analysts
        self._rows = rows
        self._parked = parked
        self._wakes_per_s_max = wakes_per_s_max
        self._clock_us = clock_us
        self._passes: dict[str, _Pass] = {}

    async def run(self, entities: Sequence[str], stop: Wakes, period_s: float = 30.0) -> None:
        """Pass over all entities, wait, and so on until ``stop``. One entity's trouble is logged and tried again."""
        while True:
            for entity in entities:
                if await stop.wait(0):
                    return
                try:
                    await self.pass_over(entity, stop)
                except (NoAnalyst, ParkedUnavailable) as error:
                    log.warning("wake_put_off", entity=entity, why=str(error))
            if await stop.wait(period_s):
                return

    async def pass_over(self, entity: str, stop: Wakes | None = None) -> WakeReport | None:
        """Wake what the newest contract accepts; ``None``: nothing could have changed since the last pass.

        Raises ``NoAnalyst``, ``ParkedUnavailable``: call it again, what was woken is not met twice.
        """
        analyst = await self._analysts.current(entity)
        began_us = self._clock_us()
        last = self._passes.get(entity)
        since_us = _since_us(last, analyst, began_us)
        if since_us is None:
            return None
        report = await self.wake(entity, analyst, since_us, stop)
        if report.complete:
            changed = last is None or last.fingerprint != analyst.fingerprint
            self._passes[entity] = _Pass(
                fingerprint=analyst.fingerprint,
                changed_us=began_us if changed or last is None else last.changed_us,
                full_us=began_us if since_us == 0 or last is None else last.full_us,
                began_us=began_us,
            )
        return report

    async def wake(self, entity: str, analyst: Analyst, since_us: int = 0, stop: Wakes | None = None) -> WakeReport:
        """One pass over the events first parked at or after ``since_us``. Raises ``ParkedUnavailable``."""
        report = WakeReport(entity, analyst.fingerprint)
        for reason in HELD_REASONS:
            wanted = ParkedFilter(entities=(entity,), reasons=(reason,), state=State.HELD, since_us=since_us)
            async for page in self._rows.rows(wanted):
                if stop is not None and await stop.wait(0):
                    return report
                refused = [row for row in page if not analyst.settles(reason, row.fingerprint)]
                for rows in _by_cause(refused):
                    await self._wake_group(rows, analyst, report)
        report.complete = True
        if report.mismatched:
            log.info("contract_wakes", **structs.asdict(report), schema_version=analyst.version)
        return report

    async def _wake_group(self, rows: list[ParkedRow], analyst: Analyst, report: WakeReport) -> None:
        """``rows``: of one page and one cause."""
        report.mismatched += len(rows)
        sample, rest = rows, list[ParkedRow]()
        if POLICIES[rows[0].reason].rechecks_s:
            sample, rest = _sampled(rows)
        passing = await self._passing(sample, analyst, report)
        verdict = _verdict(len(passing), len(sample))
        if verdict == "some":
            rest = await self._passing(rest, analyst, report)
        waking = [*passing, *(rest if verdict != "none" else [])]
        report.left += len(rows) - len(waking)
        await self._wake_rows(waking, analyst, report)

    async def _passing(self, rows: Sequence[ParkedRow], analyst: Analyst, report: WakeReport) -> list[ParkedRow]:
        """Those that the analyst would let through now. Tried in memory: nothing is claimed or written."""
        passing: list[ParkedRow] = []
        for chunk in _chunks(rows):
            found = await asyncio.gather(*(self._passes_now(row, analyst) for row in chunk))
            passing += [row for row, is_passing in zip(chunk, found, strict=True) if is_passing]
        report.tried += len(rows)
        return passing

    async def _passes_now(self, row: ParkedRow, analyst: Analyst) -> bool:
        event = await load(row, self._parked)
        if event is None:
            return False
        return isinstance(await asyncio.to_thread(analyst.analyse, event, self._clock_us()), Retriable)

    async def _wake_rows(self, rows: Sequence[ParkedRow], analyst: Analyst, report: WakeReport) -> None:
        """The more have been woken in this pass, the further their due times are spread."""
        spread_s = max(SPREAD_S_MIN, (report.woken + len(rows)) / self._wakes_per_s_max)
        by = f"contract {analyst.fingerprint[:8]}"
        for chunk in _chunks(rows):
            woken = sum(await asyncio.gather(*(self._parked.wake(row, spread_s, by) for row in chunk)))
            report.woken += woken
            metrics.WOKEN.labels(report.entity, chunk[0].reason.value).inc(woken)


def _since_us(last: _Pass | None, analyst: Analyst, now_us: int) -> int | None:
    """From which first parking on a pass must look; ``None``: nothing can have changed."""
    if last is None or last.fingerprint != analyst.fingerprint or now_us - last.full_us >= FULL_EVERY_US:
        return 0
    if analyst.repairs or now_us - last.changed_us < SETTLE_US:
        return max(0, last.began_us - OVERLAP_US)
    return None


def _by_cause(rows: Iterable[ParkedRow]) -> Iterable[list[ParkedRow]]:
    groups: dict[tuple[Reason, str, str | None], list[ParkedRow]] = {}
    for row in rows:
        groups.setdefault((row.reason, cause_path(row.path), row.fingerprint), []).append(row)
    return groups.values()


def _sampled(rows: list[ParkedRow]) -> tuple[list[ParkedRow], list[ParkedRow]]:
    """(a sample, spread evenly over the page; the rest)."""
    step = max(1, len(rows) // SAMPLE)
    chosen = range(0, len(rows), step)[:SAMPLE]
    return [rows[index] for index in chosen], [row for index, row in enumerate(rows) if index not in chosen]


def _verdict(passing: int, tried: int) -> Literal["none", "some", "all"]:
    if passing == 0:
        return "none"
    return "all" if passing == tried else "some"


def _chunks(rows: Sequence[ParkedRow]) -> Iterable[Sequence[ParkedRow]]:
    return (rows[start : start + IN_FLIGHT] for start in range(0, len(rows), IN_FLIGHT))
