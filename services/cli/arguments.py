"""What an operator may type."""

import argparse
from collections.abc import Mapping

from services.cli import argument_types as of
from services.cli.doctor_findings import CHECKS
from services.cli.lake_arguments import add_audit, add_raw, add_table, add_trace
from services.cli.outcome import EXIT_CODES
from services.cli.parked_arguments import add_parked


def parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """Defaults come from ``environ``: TIDEMARK_ENTITIES_DIR and TIDEMARK_NAMESPACE."""
    top = _parser("tidemark", "Carries every change of a REST API into a Delta table. See `tidemark COMMAND --help`.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everywhere = _everywhere(environ)

    def command(
        group: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
    ) -> argparse.ArgumentParser:
        return group.add_parser(
            name,
            parents=[everywhere],
            help=text,
            description=text,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    bootstrap = command(
        commands, "bootstrap", "Make topics, tables, buckets and subjects, or verify those that are there."
    )
    bootstrap.add_argument("--plan", action="store_true", help="only print what would be made; writes nothing")
    validate = command(
        commands, "validate", "Check the entity folder: every problem with file and line. Needs no server."
    )
    validate.add_argument(
        "--without-environment", action="store_true", help="don't look whether the variables that files name are set"
    )
    command(commands, "status", "Everything on one screen: pollers, cursors, topics, raw objects, parked events.")
    doctor = command(commands, "doctor", "Look at the whole stack: what is wrong, where, and what to do.")
    doctor.add_argument(
        "--only",
        action="append",
        default=[],
        choices=CHECKS,
        metavar="NAME",
        help=f"one or more of {', '.join(CHECKS)}",
    )
    doctor.add_argument("--source", action="store_true", help="ask each source too, twice")
    doctor.add_argument(
        "--within", type=of.duration_s, default=10, metavar="TIME", help="how long each look may take, as 30s (10s)"
    )

    entity = _group(commands, "entity", "List entities, pause and resume their polling.")
    command(entity, "list", "List entities and their state.")
    pause = command(entity, "pause", "Stop the polling of an entity; its cursor stands.")
    pause.add_argument("entity")
    pause.add_argument("--reason", required=True, type=of.text, help="why; others will read it")
    resume = command(entity, "resume", "Let a paused entity be polled again.")
    resume.add_argument("entity")

    cursor = _group(commands, "cursor", "Show or move the cursor of an entity.")
    show = command(cursor, "show", "Show the cursor, its marks, and who moved it.")
    show.add_argument("entity")
    move = command(cursor, "set", "Move the cursor. Forward skips changes; backward reads and publishes them again.")
    move.add_argument("entity")
    move.add_argument(
        "--to", required=True, type=of.moment_us, metavar="TIME", help="2026-01-31T00:00:00Z, or 'beginning'"
    )
    move.add_argument("--reason", required=True, type=of.text, help="why; stands in the cursor's history")

    parked = _group(commands, "parked", "Look at events that could not be published, and act on them.")
    add_parked(parked, command)

    add_audit(commands, command)
    add_trace(commands, command)
    add_raw(_group(commands, "raw", "The raw objects: look at them, and let old ones expire."), command)
    add_table(_group(commands, "table", "The Delta tables."), command)

    evidence = _group(commands, "evidence", "The archive of events that could not be published.")
    verify = command(evidence, "verify", "Walk the chain of evidence, and compare it with what lies in the archive.")
    verify.add_argument("--day", type=of.day, help="only what was archived on this day (UTC), as 2026-01-31")
    verify.add_argument(
        "--expect-head", type=of.sha256, metavar="SHA256", help="the head that an earlier run printed: must be there"
    )
    return top


def _everywhere(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    common.add_argument("--debug", action="store_true", help="on an error, print the traceback too")
    common.add_argument(
        "--entities",
        metavar="DIR",
        default=environ.get("TIDEMARK_ENTITIES_DIR") or None,
        help="folder of *.yaml (default: TIDEMARK_ENTITIES_DIR)",
    )
    common.add_argument(
        "--namespace",
        type=of.namespace,
        default=environ.get("TIDEMARK_NAMESPACE") or "",
        help="prefix of topics, tables, subjects (default: TIDEMARK_NAMESPACE)",
    )
    return common


def _group(
    parent: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    group = parent.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="action", required=True, metavar="ACTION")


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        name, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
