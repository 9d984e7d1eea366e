"""What an operator may type."""

import argparse
from collections.abc import Mapping

from services.cli.outcome import EXIT_CODES
from shared.entities import NAMESPACE_PATTERN, time_us
from shared.events.model import Reason

LIMIT_MAX = 1_000


def parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """Defaults come from ``environ``: TIDEMARK_ENTITIES_DIR and TIDEMARK_NAMESPACE."""
    top = _parser("tidemark", "Carries every change of a REST API into a Delta table. See `tidemark COMMAND --help`.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everywhere = _everywhere(environ)

    def command(
        of: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
    ) -> argparse.ArgumentParser:
        return of.add_parser(
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

    entity = _group(commands, "entity", "List entities, pause and resume their polling.")
    command(entity, "list", "List entities and their state.")
    pause = command(entity, "pause", "Stop the polling of an entity; its cursor stands.")
    pause.add_argument("entity")
    pause.add_argument("--reason", required=True, type=_text, help="why; others will read it")
    resume = command(entity, "resume", "Let a paused entity be polled again.")
    resume.add_argument("entity")

    cursor = _group(commands, "cursor", "Show or move the cursor of an entity.")
    show = command(cursor, "show", "Show the cursor, its marks, and who moved it.")
    show.add_argument("entity")
    move = command(cursor, "set", "Move the cursor. Forward skips changes; backward reads and publishes them again.")
    move.add_argument("entity")
    move.add_argument("--to", required=True, type=_time, metavar="TIME", help="2026-01-31T00:00:00Z, or 'beginning'")
    move.add_argument("--reason", required=True, type=_text, help="why; stands in the cursor's history")

    parked = _group(commands, "parked", "Look at events that could not be published.")
    listing = command(parked, "list", "List parked events, oldest first.")
    listing.add_argument("--entity", action="append", help="only this one; may be given several times")
    listing.add_argument("--reason", action="append", choices=[reason.value for reason in Reason])
    listing.add_argument("--state", choices=["PARKED", "HELD", "STALE"])
    listing.add_argument("--limit", type=_limit, default=50, help="lines at most (default 50)")
    listing.add_argument("--after", help="go on where an earlier list ended: its last line says how")
    one = command(parked, "show", "Show one parked event: why, since when, and with --raw its bytes.")
    one.add_argument("event_id", help="event id, or topic/generation/partition/offset of an undecodable record")
    one.add_argument("--raw", action="store_true", help="also print the event itself (it may hold personal data)")
    command(parked, "counts", "Count parked events by entity and reason.")
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
        type=_namespace,
        default=environ.get("TIDEMARK_NAMESPACE") or "",
        help="prefix of topics, tables, subjects (default: TIDEMARK_NAMESPACE)",
    )
    return common


def _group(
    of: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    group = of.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="action", required=True, metavar="ACTION")


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        name, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _text(value: str) -> str:
    text = value.strip()
    if not text or len(text) > 500:
        raise argparse.ArgumentTypeError("expected 1 to 500 characters")
    return text


def _time(value: str) -> int:
    if value == "beginning":
        return 0
    try:
        us = time_us(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a time as 2026-01-31T00:00:00Z, got {value!r}") from None
    if us < 0:
        raise argparse.ArgumentTypeError("expected a time from 1970 on")
    return us


def _limit(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {LIMIT_MAX}, got {value!r}")
    return int(value)


def _namespace(value: str) -> str:
    if value and not NAMESPACE_PATTERN.fullmatch(value):
        raise argparse.ArgumentTypeError(f"expected to match {NAMESPACE_PATTERN.pattern}, got {value!r}")
    return value
