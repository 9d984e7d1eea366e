"""One round of the audit. The order is what makes it right beside running services, and is not to be changed:

seen up to a fixed cursor; then parked, by a consistent scan; then the archive; then raw, once it covers Kafka's end
offsets taken after the scan; then Delta, at a version whose rows all lie in what was walked. Whatever moves on
meanwhile moves in this direction: from seen to parked or Kafka, from parked to the archive or Kafka, from Kafka to raw
to Delta. So it is met at least once; and what is only seen again later is waited for before anybody is alarmed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from services.cli import audit_lake
from services.cli.audit_aside import Aside, read_archive, read_parked
from services.cli.audit_raw import Taker, walk
from services.cli.audit_records import ChainOf, Law, Report
from services.cli.audit_seen import read_seen
from services.cli.audit_source import SHOWN_LAYOUT, Shown, closed_window, read_window
from services.cli.audit_spill import Spill
from services.cli.edges import Edges
from services.cli.outcome import moment
from services.cli.parked_progress import Progress
from shared.checkpoints.model import Standing
from shared.entities import Entity
from shared.kafka.errors import TopicMissing
from shared.raw.generation import FIRST, TopicLife, newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger

if TYPE_CHECKING:
    from shared.lake.reader import LakeTable

LOOK_S = 1.0
REREAD_RECORDS_MAX = 1_000_000
"""Records of one entity that are read again from Kafka, where no sound object covers them."""

MOVES_MAX = 10_000
"""Moves of the cursor that are looked at: what an operator stepped over was not wanted."""
CLOCKS_US = 900 * 1_000_000
"""How far the clocks of pollers and of Postgres may differ: a record's time is a poller's, its stamp is Postgres's."""

Tables = Literal["auto", "require", "skip"]
Pause = Callable[[float], Awaitable[object]]


class Options(Struct, frozen=True, kw_only=True):
    wait_s: float = 90.0
    """How long raw and table may take to reach Kafka's ends, and the poller to see again what was not recorded."""
    tables: Tables = "auto"
    evidence_max: int = 100_000
    """Pieces of evidence, of each entity, that are read because nothing else is left of their events."""
    source_window_s: float | None = None
    """``None``: the source is not asked."""


class Work(Struct, kw_only=True):
    """One entity under audit."""

    entity: Entity
    law: Law
    aside: Aside
    standing: Standing | None = None
    chains: list[ChainOf] = field(default_factory=list)
    ends: dict[Chain, int] = field(default_factory=dict)
    """Kafka's, of the newest generation."""
    generation_problem: str | None = None
    table: "LakeTable | None" = None
    table_uri: str | None = None
    """``None``: tables are not looked at."""
    taker: Taker | None = None
    shown: Shown | None = None
    """What the source shows of a closed window, if it was asked."""
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        self.law.close()
        self.aside.uris.close()
        if self.shown is not None:
            self.shown.keys.close()


class Round:
    """``pause`` waits so many seconds, or returns at once when the work is to stop. Raises what the edges raise: then
    nothing is known, and nothing is found fault with."""

    def __init__(
        self, edges: Edges, options: Options, folder: Path, *, quiet: bool = False, pause: Pause = asyncio.sleep
    ) -> None:
        self.edges = edges
        self.options = options
        self.pause = pause
        self.keys = Keys(edges.namespace.prefix(""))
        self._folder = folder
        self._quiet = quiet
        self.until_s = 0.0

    async def run(self, entities: Sequence[Entity]) -> list[Report]:
        from services.cli.audit_judgement import judged

        works = [self._begun(entity) for entity in entities]
        try:
            for work in works:
                await self._seen(work)
                await self._source(work)
            await self._set_aside(works)
            for work in works:
                await self._ends(work)
            self.until_s = time.monotonic() + self.options.wait_s
            for work in works:
                await self._covered(work)
                await self._pin_table(work)
            reports = []
            for work in works:
                await self._walk(work)
                reports.append(await judged(self, work))
                work.law.close()
            return reports
        finally:
            for work in works:
                work.close()

    def progress(self, what: str, total: int) -> Progress:
        return Progress(what, total, quiet=self._quiet)

    async def ledger(self) -> Ledger:
        return Ledger(await self.edges.raw_store(), self.keys)

    def _begun(self, entity: Entity) -> Work:
        law = Law.of(entity.rules, self._folder)
        uris = (self._folder / f"{entity.name}.uris").open("w+", encoding="utf-8")
        return Work(entity=entity, law=law, aside=Aside(law=law, uris=uris))

    async def _seen(self, work: Work) -> None:
        """The fixed cursor: the last stamp that a committed page has."""
        checkpoints, store = await self.edges.checkpoints(), await self.edges.raw_store()
        name = work.entity.name
        work.standing = await checkpoints.standing(name)
        if work.standing is None:
            work.notes.append("has never been polled: nothing is recorded as seen")
            return
        work.law.limit_us = work.standing.shown_us
        prefix = f"{self.edges.namespace.prefix('seen/')}{name}/"
        with self.progress(f"{name}: seen", 0) as progress:
            await read_seen(work.law, checkpoints, store, prefix, progress.show)

    async def _source(self, work: Work) -> None:
        """Read again when all that the poller made of it is known."""
        window_s, standing, name = self.options.source_window_s, work.standing, work.entity.name
        if window_s is None or standing is None:
            return
        moves = await (await self.edges.checkpoints()).history(name, MOVES_MAX)
        window = closed_window(work.entity, standing, moves, window_s)
        keys = (self._folder / f"{name}.keys").open("w+", encoding="utf-8", errors="surrogatepass")
        work.shown = Shown(window=window, spill=Spill(self._folder, f"{name}.source", SHOWN_LAYOUT), keys=keys)
        with self.progress(f"{name}: the source", 0) as progress:
            feed = await self.edges.feed(work.entity)
            await read_window(work.entity, feed, work.shown, progress.show, self.pause)
        span_text = f"{moment(window.start_us)} to {moment(window.end_us)}"
        if window.start_us >= window.end_us:
            work.notes.append(
                "the source was not asked: no window is closed yet (the cap lookback has not come so far)"
            )
        elif work.shown.stopped is not None:
            until = moment(work.shown.stopped_us)
            work.notes.append(f"the source could be read only up to {until}, of {span_text}: {work.shown.stopped}")
        else:
            count, requests = work.shown.spill.count, work.shown.requests
            work.notes.append(f"the source shows {count:,} changes dated {span_text} ({requests} requests)")

    async def _set_aside(self, works: Sequence[Work]) -> None:
        asides = {work.entity.name: work.aside for work in works}
        with self.progress("parked", 0) as progress:
            await read_parked(asides, await self.edges.census(), progress.show)
        with self.progress("archive", 0) as progress:
            await read_archive(asides, await self.edges.archive(), progress.show)

    async def _ends(self, work: Work) -> None:
        """What exists of chains, and where Kafka ends now."""
        kafka, store, ledger = await self.edges.kafka(), await self.edges.raw_store(), await self.ledger()
        topic = work.entity.topic
        try:
            identity = await kafka.identity(topic)
            marks = await kafka.watermarks(topic)
        except TopicMissing as error:
            identity, marks = None, {}
            work.notes.append(str(error))
        claim = await newest_claim(store, self.keys, topic)
        newest = FIRST if claim is None else claim.generation
        if claim is not None and identity is not None and claim.life.known:
            life = TopicLife(identity.cluster_id, identity.topic_id)
            if claim.life != life:
                marks = {}
                work.generation_problem = (
                    f"{topic}: its raw objects (generation {newest}) belong to topic id {claim.topic_id} in cluster "
                    f"{claim.cluster_id}, but Kafka now has {life.topic_id} in {life.cluster_id}"
                )
        found = [chain for number in range(FIRST, newest + 1) for chain in await ledger.partitions(topic, number)]
        work.ends = {Chain(topic, newest, partition): mark.end for partition, mark in marks.items()}
        begins = {Chain(topic, newest, partition): mark.begin for partition, mark in marks.items()}
        work.chains = [
            ChainOf(chain=chain, kafka_begin=begins.get(chain), kafka_end=work.ends.get(chain))
            for chain in sorted({*found, *work.ends})
        ]

    async def _covered(self, work: Work) -> None:
        """Wait until the ledger reaches Kafka's ends."""
        ledger = await self.ledger()
        waiting = {chain: end for chain, end in work.ends.items() if end > 0}
        while waiting:
            tails = await asyncio.gather(*(ledger.tail(chain) for chain in waiting))
            reached = dict(zip(waiting, (tail.next_start for tail in tails), strict=True))
            waiting = {chain: end for chain, end in waiting.items() if reached[chain] < end}
            if not waiting or time.monotonic() >= self.until_s:
                return
            await self.pause(LOOK_S)

    async def _pin_table(self, work: Work) -> None:
        """A version from before the walk: each of its rows came from an object that the walk meets, or that expired."""
        if self.options.tables == "skip":
            return
        uri = work.table_uri = self.edges.lake.table(work.entity.name)
        ledger = await self.ledger()
        chains = [one.chain for one in work.chains]
        tails = await asyncio.gather(*(ledger.tail(chain) for chain in chains))
        ends = {
            chain: min(work.ends.get(chain, tail.next_start), tail.next_start)
            for chain, tail in zip(chains, tails, strict=True)
        }
        work.table = await audit_lake.caught_up(partial(self.edges.lake_table, uri), ends, self.until_s, self.pause)
        if work.table is None:
            return
        positions = await asyncio.to_thread(work.table.positions)
        unknown = [ChainOf(chain=chain) for chain in positions if chain not in chains]
        work.chains = sorted([*work.chains, *unknown], key=lambda one: one.chain)
        for one in work.chains:
            one.position = positions.get(one.chain, 0)

    async def _walk(self, work: Work) -> None:
        """Every object of every chain, then the table's rows, then what Kafka still has where no object speaks."""
        store, ledger = await self.edges.raw_store(), await self.ledger()
        work.taker = taker = Taker(work.law, work.chains, with_states=work.table is not None)
        total = sum(work.ends.values())
        with self.progress(f"{work.entity.name}: offsets in raw", total) as progress:
            for one in work.chains:
                await walk(ledger, store, one, taker.take, progress.add)
        expired = [one.expired_ms for one in work.chains if one.expired_ms is not None]
        work.law.expired_us = max(expired, default=-1) * 1000 + (CLOCKS_US if expired else 0)
        for one in work.chains:
            if one.position is not None and one.position > one.next_start:
                one.holes.append((one.next_start, one.position - 1))  # it was merged, so there was an object
                one.next_start = one.position
        if work.table is not None:
            with self.progress(f"{work.entity.name}: rows of the table", 0) as progress:
                await audit_lake.read_states(work.law, work.table, work.chains, progress.show)
        await self._reread(work, taker)

    async def _reread(self, work: Work, taker: Taker) -> None:
        """An event that is still on its topic is not lost with the object that held it."""
        left = REREAD_RECORDS_MAX
        for one in work.chains:
            end = one.kafka_end
            if end is None:
                continue
            ranges = [*one.unproved, *([(one.next_start, end - 1)] if one.next_start < end else [])]
            for first, last in ranges:
                if first >= end:
                    continue
                records = self.edges.reread().records(one.chain.topic, one.chain.partition, first, min(last + 1, end))
                async for page in records:
                    await asyncio.to_thread(taker.take_records, one.chain, page)
                    left -= len(page)
                    if left <= 0:
                        work.notes.append(f"more than {REREAD_RECORDS_MAX:,} records would have to be read from Kafka")
                        return
