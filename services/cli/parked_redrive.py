"""``tidemark parked redrive``: what would pass, and a job that lets it. Nothing is published here: the retriers do."""

from argparse import Namespace
from contextlib import aclosing
from functools import partial

from msgspec.structs import replace

from services.cli import parked_archive
from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.parked_arguments import PER_SECOND
from services.cli.parked_audit import audited
from services.cli.parked_dry_run import Chunks, Given, Tried, outcome_of, schema_given, try_all
from services.cli.parked_progress import Progress
from services.cli.parked_selection import demand_filter, filters_given, nothing, selection_of
from services.cli.who import operator
from shared.config import ConfigError
from shared.parked.bulk import Pace, Waker, run_job
from shared.parked.jobs import Job, new_job_id
from shared.parked.selection import Selection, document_of

WORDS = {
    "woken": "woken",
    "hurried": "brought forward",
    "due": "were due already",
    "busy": "with a worker now",
    "gone": "gone meanwhile",
    "damaged": "damaged",
}


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    _check(arguments)
    if arguments.job is not None:
        return await _go_on(edges, arguments)
    if arguments.from_archive is not None:
        return await parked_archive.run(edges, arguments, work)
    now_ms = clock_ms()
    selection = selection_of(edges, arguments, now_ms * 1000).before(now_ms * 1000)
    if arguments.dry_run:
        if arguments.schema is not None and len(selection.entities) > 1:
            raise ConfigError(["--schema is that of one entity: name it with --entity"])
        return await _dry_run(edges, selection, await schema_given(arguments.schema), now_ms * 1000)
    demand_filter(arguments)
    return await _begin(edges, selection, arguments, now_ms)


async def work(edges: Edges, job: Job, why: str) -> Outcome:
    """From where the job stands to its end, with an entry in the audit trail."""
    desk, parked = await edges.desk(), await edges.parked()
    what = document_of(job.selection) if job.selection is not None else {}
    what |= {} if job.archive is None else {"archived": job.archive.day, "entities": [job.archive.entity]}
    waker = Waker(parked.transitions, clock_ms, edges.patience)
    async with audited(edges, "redrive", why, what, job=job.id) as deed:
        job = await desk.jobs.save(job)
        pace = Pace(job.per_second)
        with Progress(job.id, job.total) as progress:
            progress.say(f"job {job.id}: {job.total:,} events; if interrupted: tidemark parked redrive --job {job.id}")

            def told(now: Job) -> None:
                deed.counts = now.counts
                progress.show(now.settled)

            if job.archive is None:
                job = await run_job(job, desk.jobs, desk.walk, waker, pace, told)
            else:
                job = await parked_archive.run_job(edges, job, waker, pace, told)
        deed.counts = job.counts
    return report(job)


def report(job: Job) -> Outcome:
    """Exit code 1: some events could not be had, so that the command is to be typed again."""
    counts = ", ".join(f"{count:,} {WORDS[name]}" for name, count in job.counts.items()) or "nothing to do"
    lines = [f"job {job.id}: {counts}"]
    if job.counts.get("woken") or job.counts.get("hurried"):
        lines.append("the retriers publish them within their share; watch: tidemark parked counts")
    left = job.counts.get("busy", 0) + job.counts.get("damaged", 0)
    document = {"job": job.id, "total": job.total, "counts": job.counts, "done": job.done}
    return Outcome(exit_code=FINDING if left else OK, lines=lines, document=document)


async def _begin(edges: Edges, selection: Selection, arguments: Namespace, now_ms: int) -> Outcome:
    total = await (await edges.desk()).walk.count(selection)
    if not total:
        return nothing(selection)
    job = Job(
        id=new_job_id(),
        who=operator(),
        why=arguments.why or "",
        per_second=arguments.per_second or PER_SECOND,
        selection=selection,
        total=total,
        created_ms=now_ms,
        changed_ms=now_ms,
    )
    return await work(edges, job, job.why)


async def _go_on(edges: Edges, arguments: Namespace) -> Outcome:
    job = await (await edges.desk()).jobs.get(arguments.job)
    if job.done:
        return report(job)
    return await work(edges, replace(job, per_second=arguments.per_second or job.per_second), arguments.why or job.why)


async def _dry_run(edges: Edges, selection: Selection, schema: Given | None, now_us: int) -> Outcome:
    """Entity by entity; those of which nothing fits need no schema."""
    desk, streams = await edges.desk(), (await edges.parked()).streams
    total = await desk.walk.count(selection)
    tried: list[Tried] = []

    async def events(entity: str) -> Chunks:
        async for page in desk.walk.pages(selection.only(entity)):
            async with aclosing(streams.events(page.rows)) as chunks:
                async for chunk in chunks:
                    yield chunk

    with Progress("trying", total) as progress:
        for entity in selection.entities if total else ():
            before = sum(one.tally.parked + one.tally.gone for one in tried)
            found = await try_all(edges, entity, events(entity), schema, now_us, partial(_add, progress, before))
            tried += [found] if found is not None else []
    return outcome_of(tried)


def _add(progress: Progress, before: int, done: int) -> None:
    progress.show(before + done)


def _check(arguments: Namespace) -> None:
    """What does not go together. Raises ``ConfigError`` with all of it."""
    given = filters_given(arguments)
    problems = []
    if arguments.job is not None and (
        given or arguments.all or arguments.dry_run or arguments.from_archive is not None
    ):
        problems.append("--job goes on with what its job selects: it takes no filter, --all, --dry-run, --from-archive")
    if arguments.schema is not None and not arguments.dry_run:
        problems.append("--schema is for --dry-run: bootstrap registers a schema")
    if arguments.day is not None and arguments.from_archive is None:
        problems.append("--day goes with --from-archive")
    if problems:
        raise ConfigError(problems)
