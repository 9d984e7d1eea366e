"""``tidemark evidence verify``: is all evidence in the archive, as it was written, and nothing besides?"""

from msgspec import to_builtins

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome, aligned, printable

LINES_MAX = 50


async def verify(edges: Edges, day: str | None, expect_head: str | None) -> Outcome:
    """Reads every entry of the chain and every object that it names. Exit code 1 when anything differs."""
    from shared.parked.evidence_audit import verify

    archive = await edges.archive()
    await archive.demand()
    report = await verify(archive, clock_ms(), day=day, expect_head=expect_head)
    head = "-" if report.head is None else f"{report.head.sha256}  {report.head.key}"
    lines = aligned(
        [
            ["days", str(report.days)],
            ["entries", str(report.entries)],
            ["objects", str(report.objects)],
            ["waiting", f"{report.waiting} written within the last hour, not chained yet"],
            ["problems", str(report.problem_count)],
            ["head", head],
        ]
    )
    shown = report.problems[:LINES_MAX]
    lines += ["", *aligned([[found.kind, printable(found.key), printable(found.text)] for found in shown])] * bool(
        shown
    )
    if report.problem_count > len(shown):
        lines.append(f"... and {report.problem_count - len(shown)} more; --json lists up to 1000")
    if not report.entries and not report.problem_count:
        lines.append(f"no evidence was written{'' if day is None else f' on {day}'} to {archive.uri('')}")
    return Outcome(exit_code=FINDING if report.problem_count else OK, lines=lines, document=to_builtins(report))
