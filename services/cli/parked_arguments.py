"""What an operator may type after ``tidemark parked``."""

import argparse
from collections.abc import Callable

from services.cli import argument_types as of
from shared.events.model import Reason

STATES = ("PARKED", "HELD", "STALE")
PER_SECOND = 500.0
AUDIT_AGE_S = 30 * 86_400

Command = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]", str, str], argparse.ArgumentParser]
WHY = "why; others will read it in the audit trail"


def add_parked(parked: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command) -> None:
    listing = command(parked, "list", "List parked events, oldest first.")
    _add_filters(listing)
    listing.add_argument("--limit", type=of.limit, default=50, help="lines at most (default 50)")
    listing.add_argument("--after", type=of.place, help="go on where an earlier list ended: its last line says how")
    _add_filters(command(parked, "groups", "Count parked events by root cause, largest first."))
    one = command(parked, "show", "Show one parked event: why, since when, and with --raw its bytes.")
    one.add_argument("event_id", help="event id, or topic/generation/partition/offset of an undecodable record")
    one.add_argument("--raw", action="store_true", help="also print the event itself (it may hold personal data)")
    command(parked, "counts", "Count parked events by entity and reason.")
    _add_redrive(command(parked, "redrive", "Let parked events be published now: the retriers do, within their share."))
    _add_hold(command(parked, "hold", "Put parked events off: nobody tries or deletes them before."))
    _add_edit(command(parked, "edit", "Correct one parked event's bytes; the original is kept."))
    _add_discard(command(parked, "discard", "Archive parked events as evidence, then delete them."))
    _add_export(command(parked, "export", "Write parked events to a file or a folder."))
    audit = command(parked, "audit", "Who did what to parked events, when and why; newest first.")
    audit.add_argument("--newer-than", type=of.age_s, default=AUDIT_AGE_S, metavar="AGE", help="default 30d")
    audit.add_argument("--limit", type=of.limit, default=50, help="entries at most (default 50)")


def _add_redrive(redrive: argparse.ArgumentParser) -> None:
    _add_filters(redrive, with_all=True)
    redrive.add_argument("--dry-run", action="store_true", help="only count what would pass now, and why the rest not")
    redrive.add_argument("--schema", metavar="FILE", help="with --dry-run: an Avro schema that isn't registered yet")
    redrive.add_argument("--per-second", type=of.per_second, help=f"events woken per second (default {PER_SECOND:g})")
    redrive.add_argument("--why", type=of.text, help=WHY)
    redrive.add_argument("--job", metavar="ID", help="go on with a job that was interrupted; takes no filter")
    redrive.add_argument(
        "--from-archive",
        nargs="?",
        const="",
        metavar="URI",
        help="put archived events back: one piece of evidence, or with --day and --entity those of a day",
    )
    redrive.add_argument("--day", type=of.day, help="with --from-archive: the day on which they were parked first")


def _add_hold(hold: argparse.ArgumentParser) -> None:
    _add_filters(hold, with_all=True)
    hold.add_argument("--why", required=True, type=of.text, help=WHY)
    hold.add_argument(
        "--for",
        dest="for_s",
        type=of.duration_s,
        metavar="AGE",
        help="how long, at most 7 days or the entity's stale_after_s, whichever is longer (default: so long)",
    )
    hold.add_argument("--per-second", type=of.per_second, default=PER_SECOND)


def _add_edit(edit: argparse.ArgumentParser) -> None:
    edit.add_argument("event_id")
    edit.add_argument("--why", required=True, type=of.text, help=WHY)
    edit.add_argument("--file", metavar="FILE", help="the new bytes; without it $VISUAL or $EDITOR opens the old ones")
    edit.add_argument("--rev", type=int, help="which one, where an event id was shown with different bytes")


def _add_discard(discard: argparse.ArgumentParser) -> None:
    _add_filters(discard, with_all=True)
    discard.add_argument("--why", required=True, type=of.text, help=WHY)
    discard.add_argument("--yes", action="store_true", help="don't ask for the number of events")
    discard.add_argument("--per-second", type=of.per_second, default=PER_SECOND)


def _add_export(export: argparse.ArgumentParser) -> None:
    _add_filters(export)
    where = export.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="FILE", help="one JSON object a line; - is standard output")
    where.add_argument("--dir", metavar="DIR", help="a new folder with a file for each event")
    export.add_argument("--raw", action="store_true", help="with the events themselves (they may hold personal data)")
    export.add_argument("--why", type=of.text, help=WHY)


def _add_filters(parser: argparse.ArgumentParser, *, with_all: bool = False) -> None:
    filters = parser.add_argument_group("which events (all that is given must fit)")
    filters.add_argument("--entity", action="append", help="only this one; may be given several times")
    filters.add_argument(
        "--reason", action="append", choices=[reason.value for reason in Reason], help="class of error; several allowed"
    )
    filters.add_argument("--state", choices=STATES)
    filters.add_argument("--group", type=of.group, metavar="ID", help="root cause, as notices and `groups` name it")
    filters.add_argument(
        "--path", type=of.pointer, help="JSON pointer that was refused; * stands for any one step of it"
    )
    filters.add_argument("--owner")
    filters.add_argument("--key", help="text of the row key")
    filters.add_argument("--id", action="append", metavar="EVENT_ID", help="only this event; several allowed")
    filters.add_argument("--older-than", type=of.age_s, metavar="AGE", help="parked longer ago than 30s, 15min, 6h, 7d")
    filters.add_argument("--newer-than", type=of.age_s, metavar="AGE", help="parked since then")
    if with_all:
        filters.add_argument("--all", action="store_true", help="everything: needed where no filter is given")
