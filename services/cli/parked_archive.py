"""``tidemark parked redrive --from-archive``: evidence becomes a parked event again, under its old id and ``seq``.

An event that is still in the table is woken there, so that it is never parked twice. One that was published since its
evidence was written can't be told from one that was not: it is published again under its event id, which every reader
of the topic takes for a repetition.
"""

from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256

from msgspec import Struct
from msgspec.structs import replace

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import OK, Outcome
from services.cli.parked_arguments import PER_SECOND
from services.cli.parked_audit import audited
from services.cli.parked_dry_run import Chunks, Given, outcome_of, schema_given, try_all
from services.cli.parked_progress import Progress
from services.cli.parked_selection import filters_given, known
from services.cli.who import operator
from shared.config import ConfigError
from shared.events.identity import Identifier
from shared.parked.bulk import SAVE_S, Pace, Waker, finished, together
from shared.parked.evidence import Archive, Evidence, EvidenceDamaged, EvidenceMissing
from shared.parked.jobs import FromArchive, Job, Woke, new_job_id
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, meta_key, partition_key
from shared.parked.store import ParkedStore
from shared.parked.walk import Position

REVS_MAX = 16
DRY_RUN_EVENTS = 25
"""Read from the archive at once."""


class _Place(Struct, frozen=True):
    pk: str
    sk: str


async def run(edges: Edges, arguments: Namespace, work: Callable[[Edges, Job, str], Awaitable[Outcome]]) -> Outcome:
    """``work`` runs a new job to its end."""
    uri, day = arguments.from_archive, arguments.day
    _check(arguments)
    schema = await schema_given(arguments.schema)
    await (await edges.archive()).demand()
    if uri:
        if arguments.dry_run:
            return await _dry_run(edges, None, _one(uri), 1, schema)
        return await _one_event(edges, uri, arguments.why or "")
    (entity,) = known(edges, arguments.entity)
    part = FromArchive(entity, day)
    archive = await edges.archive()
    total = 0
    async for _ in newest_of_each(archive, part):
        total += 1
    if not total:
        return Outcome(exit_code=OK, lines=[f"no evidence of {entity} from {day}"], document={"total": 0, "counts": {}})
    if arguments.dry_run:
        return await _dry_run(edges, entity, newest_of_each(archive, part), total, schema)
    now_ms = clock_ms()
    job = Job(
        id=new_job_id(),
        who=operator(),
        why=arguments.why or "",
        per_second=arguments.per_second or PER_SECOND,
        archive=part,
        total=total,
        created_ms=now_ms,
        changed_ms=now_ms,
    )
    return await work(edges, job, job.why)


async def run_job(edges: Edges, job: Job, waker: Waker, pace: Pace, told: Callable[[Job], None]) -> Job:
    """From where the job stands to its end. Raises ``JobTaken``, ``ParkedUnavailable``, ``ArchiveUnavailable``."""
    assert job.archive is not None, "a job over the table has no archive"
    desk, returns = await edges.desk(), Returns(edges, await edges.archive(), await edges.parked(), waker)
    saved_ms = clock_ms()
    async for uris in _chunks(newest_of_each(await edges.archive(), job.archive, job.position.after), pace.chunk):
        await pace.turn(len(uris))
        outcomes = await together([returns.put_back(uri, job.by) for uri in uris])
        job = job.moved(Position(0, uris[-1]), outcomes)
        if clock_ms() - saved_ms >= SAVE_S * 1000:
            job = await desk.jobs.save(job)
            saved_ms = clock_ms()
        told(job)
    return await desk.jobs.save(finished(job))


class Returns:
    """From the archive into the table."""

    def __init__(self, edges: Edges, archive: Archive, parked: ParkedStore, waker: Waker) -> None:
        self._edges = edges
        self._archive = archive
        self._parked = parked
        self._waker = waker

    async def put_back(self, uri: str, by: str) -> Woke:
        """PARKED when it returns, due now, with a new deadline; doing it twice is doing it once."""
        try:
            evidence = await self._archive.evidence(uri)
        except (EvidenceDamaged, EvidenceMissing):
            return "damaged"
        event = replace(
            evidence.event,
            key=self._whole_key(evidence),
            at_us=clock_ms() * 1000,
            stale_after_s=self._edges.patience(evidence.event.entity),
        )
        row = await self._there(event, uri)
        if row is None:
            await self._parked.park([event])
            row = await self._there(event, uri)
        if row is None:
            return "gone"  # published at once
        outcome = await self._waker.wake(row, by)
        return "woken" if outcome == "due" else outcome

    async def _there(self, event: ParkedEvent, uri: str) -> Row | None:
        """Its row: the one that the evidence is of, perhaps edited since it was parked, or one with the same bytes."""
        digest = sha256(event.raw).hexdigest()
        for rev in (0, *range(max(1, event.rev), event.rev + REVS_MAX)):
            row = await self._parked.transitions.look(_Place(partition_key(event), meta_key(event, rev)))
            if row is None and rev >= event.rev:
                return None
            if row is not None and (row.nonce == nonce_of(uri) or row.original.sha == digest):
                return row
        return None

    def _whole_key(self, evidence: Evidence) -> str | None:
        """Evidence holds no more of a long key than the table did; the bytes have all of it."""
        event = evidence.event
        if not evidence.key_cut or event.entity not in self._edges.entities.entities:
            return event.key
        rules = self._edges.entities.entities[event.entity].rules
        (sighting,) = Identifier(rules).identify([event.raw])
        return sighting.key if sighting.key_hash == event.key_hash else event.key


def nonce_of(uri: str) -> str:
    return uri.rpartition("-")[2].partition(".")[0]


async def newest_of_each(archive: Archive, part: FromArchive, after: str = "") -> AsyncIterator[str]:
    """One piece of evidence for each event: it was given up once in each round, and the last one has all."""
    last: dict[str, str] = {}  # nonce → uri, of the event whose folder we are in
    folder = ""
    async for uri in archive.uris(entity=part.entity, since_day=part.day, until_day=part.day):
        if uri <= after:
            continue
        if uri.rpartition("/")[0] != folder:
            for found in sorted(last.values()):
                yield found
            last, folder = {}, uri.rpartition("/")[0]
        last[nonce_of(uri)] = uri
    for found in sorted(last.values()):
        yield found


async def _one_event(edges: Edges, uri: str, why: str) -> Outcome:
    archive = await edges.archive()
    await _evidence(archive, uri)  # says what is wrong with it
    parked = await edges.parked()
    returns = Returns(edges, archive, parked, Waker(parked.transitions, clock_ms, edges.patience))
    async with audited(edges, "redrive", why, {"uri": uri}) as deed:
        outcome = await returns.put_back(uri, deed.id)
        deed.counts = {outcome: 1}
    event = (await _evidence(archive, uri)).event
    lines = [f"{event.entity} {event.item_id}: parked again, due now"]
    return Outcome(exit_code=OK, lines=lines, document={"total": 1, "counts": deed.counts, "event_id": event.item_id})


async def _evidence(archive: Archive, uri: str) -> Evidence:
    """Raises ``EvidenceMissing``, ``EvidenceDamaged``, ``ConfigError``."""
    try:
        return await archive.evidence(uri)
    except ValueError as error:
        raise ConfigError([f"--from-archive {error}"]) from None


async def _dry_run(
    edges: Edges, entity: str | None, uris: AsyncIterator[str], total: int, schema: Given | None
) -> Outcome:
    archive = await edges.archive()

    async def events(parts: AsyncIterator[list[str]]) -> Chunks:
        async for part in parts:
            yield [found.event for found in await together([_evidence(archive, uri) for uri in part])]

    if entity is None:
        uri = await anext(uris)
        event = (await _evidence(archive, uri)).event
        (entity,), uris = known(edges, [event.entity]), _one(uri)
    chunks = events(_chunks(uris, DRY_RUN_EVENTS))
    with Progress("trying", total) as progress:
        found = await try_all(edges, entity, chunks, schema, clock_ms() * 1000, progress.show)
    return outcome_of([] if found is None else [found])


async def _one(uri: str) -> AsyncIterator[str]:
    yield uri


async def _chunks(uris: AsyncIterator[str], size: int) -> AsyncIterator[list[str]]:
    chunk: list[str] = []
    async for uri in uris:
        chunk.append(uri)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _check(arguments: Namespace) -> None:
    given = filters_given(arguments)
    if arguments.from_archive:
        if given or arguments.day or arguments.all:
            raise ConfigError(["--from-archive URI names one event: it takes no filter and no --day"])
    elif given != ["--entity"] or len(arguments.entity) != 1 or arguments.day is None:
        raise ConfigError(["--from-archive: name a URI, or one --entity and a --day, and no other filter"])
