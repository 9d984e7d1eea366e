"""A namespace of its own on the stack for one lane of fault tests, what to park in it, and when it has settled."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from deploy.demo.books import was_told
from deploy.local.stack import Stack
from shared.aws import open_client
from shared.events.model import Reason
from shared.kafka.records import parse_headers
from shared.parked.bodies import BodyMissing
from shared.parked.evidence import Archive, unpack
from shared.parked.evidence_audit import verify
from shared.parked.groups import GroupStore, cause_of
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, State
from shared.parked.store import ParkedSettings
from tests.fakes.notices import HttpReceiver
from tests.fakes.retrier_world import RetrierWorld, due_now, retrier_world
from tests.fakes.stale_bench import SECRET, StaleBench
from tests.faults.checker import Archived, Found, Origin, ParkedRow, Posted, Record

RETRIER_LEASE_S = 3.2
NOTIFIER_LEASE_S = 1.5
DAY_US = 86_400_000_000
SETTLES_S = 90.0
"""Within this everything must have come to rest after a fault: some leases and back-offs."""

SETTINGS = {
    "TIDEMARK_LEASE_S": str(RETRIER_LEASE_S),
    "TIDEMARK_POLL_S": "0.3",
    "TIDEMARK_WAKE_PERIOD_S": "0.5",
    "TIDEMARK_REFRESH_S": "30",
    "TIDEMARK_NOTIFIER_LEASE_S": str(NOTIFIER_LEASE_S),
    "TIDEMARK_NOTIFIER_POLL_S": "0.5",
    "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "0.3",
    "TIDEMARK_NOTIFIER_LOOK_S": "0.3",
    "TIDEMARK_NOTIFIER_SETTLE_S": "0.6",
    "TIDEMARK_NOTIFIER_REFRESH_S": "30",
    "TIDEMARK_GRACE_S": "0.5",
    "NOTICE_SECRET": SECRET,
}


class Parked(Struct, frozen=True, kw_only=True):
    """What one round has put into the table, by what is to become of it."""

    published: Sequence[ParkedEvent] = ()
    held: Sequence[ParkedEvent] = ()
    stale: Sequence[ParkedEvent] = ()
    adrift: Sequence[ParkedEvent] = ()  # of an entity that is not configured

    @property
    def events(self) -> list[ParkedEvent]:
        return [*self.published, *self.held, *self.stale, *self.adrift]


class FaultWorld:
    def __init__(self, retrier: RetrierWorld, receiver: HttpReceiver) -> None:
        self.retrier = retrier
        self.receiver = receiver
        self.env: Mapping[str, str] = retrier.env | SETTINGS
        self.excuses: Counter[str] = Counter()
        self._expected: dict[str, Origin] = {}
        self._numbers = 0
        self._bench: StaleBench

    async def open(self) -> None:
        """Everything that ``retrier_world`` has not: the owner's channel, the archive, the groups."""
        file = self.retrier.folder / "entities.yaml"
        config = json.loads(file.read_text())
        url = f"http://127.0.0.1:{self.receiver.port}/hook"
        channel = {"kind": "webhook", "url": url, "secret_env": "NOTICE_SECRET", "timeout_s": 2}
        config["owners"] = {"payments": {"channels": [channel]}}
        file.write_text(json.dumps(config))  # YAML holds JSON
        s3 = await open_client("s3", self.retrier.resources)
        bucket = self.env["TIDEMARK_ARCHIVE_BUCKET"]
        self._bench = StaleBench(self.retrier.table, bucket, self.retrier.store, self.retrier.dynamodb, s3)
        self._bench.archive = Archive(bucket, f"{self.retrier.name}/", s3)
        settings = ParkedSettings(table=self.retrier.table)
        self._bench.groups = await GroupStore.open(settings, self.retrier.resources)
        await self._bench.archive.ensure_bucket()

    async def park_for_retrier(self) -> Parked:
        """A few events for each way that one may go from the queue of the re-drive."""
        parked = Parked(
            published=[
                *map(due_now, self._made(3)),
                *map(due_now, self._made(2, amount="12")),  # repaired
                *self._made(2, Reason.INVALID, amount="13"),  # repaired, once a waker has seen them
            ],
            held=[due_now(event) for event in self._made(2, shape="round")],
            stale=[replace(event, at_us=event.at_us - 8 * DAY_US) for event in self._made(2, Reason.INVALID, shape="")],
            adrift=[replace(due_now(event), entity="forgotten") for event in self._made(1)],
        )
        await self.retrier.store.park(parked.events)
        return parked

    async def park_for_notifier(self, sizes: Sequence[int] = (3, 1)) -> Parked:
        """Stale events of as many causes as there are sizes."""
        groups = [
            replace(event, path=f"/field{self._numbers}")
            for size in sizes
            for event in self._made(size, Reason.INVALID, shape="square")
        ]
        await self._bench.park_stale(groups)
        return Parked(stale=groups)

    async def park_for_both(self, count: int) -> Parked:
        """Half are published, some of these repaired; half are given up by a retrier, of four causes."""
        quarter = count // 4
        doomed = [self._made(quarter // 2, Reason.INVALID, **{f"shape{number}": 1}) for number in range(4)]
        parked = Parked(
            published=[*map(due_now, self._made(quarter)), *map(due_now, self._made(quarter, amount="12"))],
            stale=[replace(event, at_us=event.at_us - 8 * DAY_US) for events in doomed for event in events],
        )
        await self.retrier.store.park(parked.events)
        return parked

    def _made(self, count: int, reason: Reason = Reason.KAFKA_UNAVAILABLE, **more: Any) -> list[ParkedEvent]:
        first, self._numbers = self._numbers, self._numbers + count
        events = self.retrier.parked(range(first, first + count), reason, **more)
        for event in events:
            key = (event.key or "").encode()
            digest = sha256(event.raw).hexdigest()
            self._expected[event.event_id] = Origin(key, event.rank, event.tiebreak, digest)
        return events

    # When a round is over

    async def retried(self, parked: Parked, within_s: float = SETTLES_S) -> None:
        """Published ones are gone, and the others wait, looked at, under nobody's lease."""

        async def is_so() -> bool:
            rows = {row.event.event_id: row for row in await self.retrier.rows()}
            rest = [*parked.held, *parked.stale, *parked.adrift]
            return (
                not any(event.event_id in rows for event in parked.published)
                and all(event.event_id in rows for event in rest)
                and all(rows[event.event_id].tries and not rows[event.event_id].lease_token for event in rest)
                and all(rows[event.event_id].state is State.STALE for event in parked.stale)
            )

        await until(is_so, within_s, lambda: self._unsettled(parked))

    async def told(self, parked: Parked, within_s: float = SETTLES_S) -> None:
        """Stale ones are gone, and all groups are resolved."""

        async def is_so() -> bool:
            left = {row.event.event_id for row in await self.retrier.rows()}
            return not left & {event.event_id for event in parked.stale} and not await self._bench.groups.open_groups()

        await until(is_so, within_s, lambda: self._unsettled(parked))

    async def _unsettled(self, parked: Parked) -> str:
        wanted = {event.event_id for event in parked.events}
        rows = [row for row in await self.retrier.rows() if row.event.event_id in wanted]
        now_ms = _now_ms()
        lines = [
            f"{row.event.event_id[:8]} {row.state} tries {row.tries} due in {row.due_ms - now_ms} ms "
            f"lease {row.lease_owner} errs {[error.code for error in row.errs]}"
            for row in rows
        ]
        groups = await self._bench.groups.open_groups()
        lines += [f"group {group.cause_id} {group.phase} due in {group.due_ms - now_ms} ms" for group in groups]
        return "\n".join(lines)

    async def leased(self, pid: int | None = None) -> list[Row]:
        """Rows under a lease (of that process of a retrier)."""
        rows = [row for row in await self.retrier.rows() if row.lease_token]
        return [row for row in rows if pid is None or f"-{pid}-" in (row.lease_owner or "")]

    def excuse(self, event_ids: Iterable[str]) -> None:
        """Each may be on the topic once more."""
        self.excuses.update(event_ids)

    # What the stores hold

    async def read(self, parked: Parked | None = None) -> Found:
        """Everything, or what there is of one round's events. The chain over the evidence is verified with everything.

        Rows are read first: one that is archived and leaves meanwhile is then in two places, and never in none. One
        that is published meanwhile is looked at again: whoever lives and has sent it is about to delete it.
        """
        wanted = self._expected.keys() if parked is None else {event.event_id for event in parked.events}
        rows = [row for row in await self.retrier.rows() if row.event.event_id in wanted]
        records = [_record(record) for record in await self.retrier.records()]
        published = {record.event_id for record in records} - self.excuses.keys()
        rows = [row for row in rows if row.event.event_id not in published or await self._stays(row)]
        archived = [one async for one in self._archived(wanted)]
        causes = {one.cause_id for one in archived}
        problems = [] if parked is not None else (await verify(self._bench.archive, _now_ms())).problems
        return Found(
            entity="payments",
            expected={event_id: self._expected[event_id] for event_id in wanted},
            records=[record for record in records if record.event_id in wanted or record.event_id is None],
            parked=[await self._row(row) for row in rows],
            archived=archived,
            receipts=frozenset([cause for cause in causes if await self._has_receipt(cause)]),
            posted=[_posted(posted.headers, posted.body) for posted in self.receiver.posted],
            chain_problems=[f"{problem.kind} {problem.key}: {problem.text}" for problem in problems],
            excuses=dict(self.excuses),
        )

    async def _stays(self, row: Row) -> bool:
        """Whether it is there still once nobody holds it."""

        async def is_settled() -> bool:
            now = await self.retrier.store.transitions.look(row)
            return now is None or now.lease_token is None

        with suppress(AssertionError):  # held all the time: it stays
            await until(is_settled, 10)
        return await self.retrier.store.transitions.look(row) is not None

    async def _row(self, row: Row) -> ParkedRow:
        has_body = True
        try:
            await self.retrier.store.transitions.body(row)
        except BodyMissing:
            has_body = await self.retrier.store.transitions.look(row) is None
        return ParkedRow(
            event_id=row.event.event_id,
            reason=row.event.reason.value,
            state=row.state,
            maybe_sent=row.event.maybe_sent,
            has_body=has_body,
            arch_uri=row.arch_uri,
            arch_sha=row.arch_sha,
            receipts=len(row.ntf),
        )

    async def _archived(self, wanted: Container[str]) -> AsyncIterator[Archived]:
        archive = self._bench.archive
        async for uri in archive.uris():
            event_id = uri.split("/")[-2]  # of an item without a position in Kafka the event id is the item's
            if event_id not in wanted:
                continue
            body = await archive.get(uri.removeprefix(f"s3://{self._bench.archive_bucket}/{self.retrier.name}/"))
            assert body is not None, f"{uri} was listed"
            evidence = unpack(body)
            raw = evidence.event.raw if evidence.original is None else evidence.original
            yield Archived(
                event_id=evidence.event.event_id,
                uri=uri,
                sha256=sha256(body).hexdigest(),
                raw_sha256=sha256(raw).hexdigest(),
                cause_id=cause_of(evidence.event).id,
                maybe_sent=evidence.event.maybe_sent,
            )

    async def _has_receipt(self, cause_id: str) -> bool:
        return was_told(await self._bench.groups.get("payments", cause_id))


@asynccontextmanager
async def fault_world(stack: Stack, folder: Path) -> AsyncIterator[FaultWorld]:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    repair = [{"number": "/amount"}]
    async with AsyncExitStack() as resources:
        retrier = await resources.enter_async_context(retrier_world(stack, folder, repair=repair))
        world = FaultWorld(retrier, await resources.enter_async_context(HttpReceiver()))
        await world.open()
        yield world


async def until(
    claim: Callable[[], Awaitable[bool]], within_s: float, why: Callable[[], Awaitable[str]] | None = None
) -> None:
    """Stores can only be looked at. Raises ``AssertionError``, with what ``why`` says, when it doesn't come about."""
    deadline_s = time.monotonic() + within_s
    while not await claim():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {await why() if why else claim.__qualname__}")
        await asyncio.sleep(0.15)


def news_about(found: Found, event: ParkedEvent) -> set[str]:
    """Ids of the notices that were sent about the event's group."""
    return {posted.notice_id for posted in found.posted or () if posted.cause_id == cause_of(event).id}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _record(record: Any) -> Record:
    said = parse_headers(record.headers)
    return Record(
        partition=record.partition,
        offset=record.offset,
        event_id=said.event_id,
        key=record.key,
        rank=said.rank,
        tiebreak=said.tiebreak,
    )


def _posted(headers: Mapping[str, str], body: bytes) -> Posted:
    told = json.loads(body)["data"]
    return Posted(headers["webhook-id"], told["dedup_key"], told["group"], sha256(body).hexdigest())
