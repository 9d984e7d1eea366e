"""``tidemark audit``: is every change that was seen in the lake, parked or archived? One verdict per partition and
entity, what is missing by name, and what to type."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import to_builtins

from services.cli.audit_records import Finding, PartitionVerdict, Report
from services.cli.audit_round import Options, Round
from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, iso, printable
from services.cli.parked_selection import known
from shared.entities import Entity


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when anything is missing or not what it should be."""
    entities = chosen(edges, arguments.entity)
    with TemporaryDirectory(prefix="tidemark-audit-") as folder:
        reports = await Round(edges, options_of(arguments), Path(folder)).run(entities)
    complete = all(report.complete for report in reports)
    return Outcome(exit_code=OK if complete else FINDING, lines=render(reports), document=document(reports))


def chosen(edges: Edges, names: Sequence[str]) -> list[Entity]:
    """Those named, or all. Raises ``ConfigError``."""
    return [edges.entities.entities[name] for name in known(edges, list(names) or None)]


def options_of(arguments: Namespace) -> Options:
    return Options(
        wait_s=arguments.wait_s,
        tables=arguments.table,
        source_window_s=arguments.window_s if arguments.source else None,
    )


def render(reports: Sequence[Report]) -> list[str]:
    """Entities, then partitions, then what was found: for each what to type."""
    lines = aligned([_entity(report) for report in reports], ENTITY_COLUMNS, frozenset(range(1, 8)))
    parts = [_partition(part) for report in reports for part in report.partitions]
    lines += ["", *aligned(parts, PARTITION_COLUMNS, frozenset(range(1, 6)))] if parts else []
    for report in reports:
        for finding in report.findings:
            lines += ["", *_finding(report.entity, finding)]
    notes = [f"{report.entity}: {printable(note)}" for report in reports for note in report.notes]
    lines += ["", *notes] if notes else []
    count = sum(len(report.findings) for report in reports)
    verdict = "complete" if not count else f"{count} finding{'s' if count > 1 else ''}"
    return [*lines, "", verdict]


ENTITY_COLUMNS = ("ENTITY", "SEEN", "RAW", "PARKED", "ARCHIVED", "MISSING", "RAW ROWS", "TABLE", "VERDICT")
PARTITION_COLUMNS = ("PARTITION", "FROM", "TO", "KAFKA END", "IN TABLE", "OBJECTS", "VERDICT")


def _entity(report: Report) -> list[str]:
    counts = report.counts
    numbers = [counts.seen, counts.raw, counts.parked, counts.archived, counts.missing, counts.raw_rows]
    table = "-" if counts.table_rows is None else f"{counts.table_rows:,}"
    return [report.entity, *(f"{number:,}" for number in numbers), table, _verdict(report.complete)]


def _partition(part: PartitionVerdict) -> list[str]:
    known_ = [part.kafka_end, part.position]
    texts = ["-" if number is None else f"{number:,}" for number in known_]
    return [
        part.chain,
        f"{part.floor:,}",
        f"{part.next_start:,}",
        *texts,
        f"{part.objects:,}",
        _verdict(part.complete),
    ]


def _verdict(complete: bool) -> str:
    return "complete" if complete else "INCOMPLETE"


def _finding(entity: str, finding: Finding) -> list[str]:
    lines = [f"{entity}: {printable(finding.text)}"]
    lines += [f"    {printable(name)}" for name in finding.names]
    if len(finding.names) < finding.count and finding.names:
        lines.append(f"    ... {finding.count:,} in all")
    return [*lines, f"  repair: {finding.repair}"] if finding.repair else lines


def document(reports: Sequence[Report]) -> dict[str, Any]:
    entities = []
    for report in reports:
        fields = to_builtins(report)
        entities.append({**fields, "fixed": iso(fields.pop("fixed_us"))})
    return {"complete": all(report.complete for report in reports), "entities": entities}
