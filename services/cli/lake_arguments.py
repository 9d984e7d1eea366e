"""What an operator may type about the lake: ``audit``, ``trace``, ``raw``, ``table``."""

import argparse

from services.cli import argument_types as of
from services.cli.parked_arguments import Command

WAIT_S = 90
WINDOW_S = 86_400
PERIOD_S = 3_600
ROWS_MAX = 1_000


def add_audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command) -> None:
    audit = command(
        commands, "audit", "Is every change that was seen in the lake, parked or archived? Names what isn't."
    )
    audit.add_argument("entity", nargs="*", help="those to look at (default: all)")
    audit.add_argument("--source", action="store_true", help="also read a closed window from the source's API again")
    audit.add_argument(
        "--window",
        dest="window_s",
        type=of.age_s,
        default=WINDOW_S,
        metavar="AGE",
        help="with --source: how long the window is that ends where the lateness cap does (default 1d)",
    )
    audit.add_argument("--watch", action="store_true", help="go on, a round each period; metrics on TIDEMARK_HTTP_PORT")
    audit.add_argument(
        "--period", dest="period_s", type=of.age_s, default=PERIOD_S, metavar="AGE", help="with --watch (default 1h)"
    )
    audit.add_argument(
        "--wait",
        dest="wait_s",
        type=of.age_s,
        default=WAIT_S,
        metavar="AGE",
        help="how long raw and table may take to reach what is in Kafka now (default 90s)",
    )
    audit.add_argument(
        "--table",
        choices=("auto", "require", "skip"),
        default="auto",
        help="the Delta table: judged where there is one (auto), or must be there (require), or is left out (skip)",
    )


def add_trace(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command) -> None:
    trace = command(commands, "trace", "Where one key's events, or one event, went: seen, parked, raw, table; and why.")
    trace.add_argument("entity")
    trace.add_argument("key", nargs="?", help="as text; a composite key as a compact JSON array")
    trace.add_argument("--event-id", metavar="ID", help="one event instead of a key")
    trace.add_argument("--newer-than", type=of.age_s, metavar="AGE", help="leave out raw objects that are older")
    trace.add_argument("--limit", type=of.limit, default=100, help="events at most (default 100)")


def add_raw(raw: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command) -> None:
    show = command(raw, "show", "Show raw chains: objects, gaps, floor; or one object and its rows.")
    show.add_argument("what", help="an entity, a chain (TOPIC/GENERATION/PARTITION), or an object's key")
    show.add_argument("--rows", type=of.limit, metavar="N", help="print the first N rows (they may hold personal data)")
    show.add_argument("--limit", type=of.limit, default=50, help="objects at most, the newest (default 50)")
    mend = command(raw, "mend", "Close the holes of an entity's chains: from Kafka, or, given up, by gap markers.")
    mend.add_argument("entity")
    mend.add_argument("--dry-run", action="store_true", help="only say what would be done")
    mend.add_argument("--lost", action="store_true", help="mark as lost what Kafka no longer has")
    opening = command(raw, "open", "Open the next generation of a topic that was made anew, or whose log was cut back.")
    opening.add_argument("entity")
    opening.add_argument("--why", required=True, type=of.text, help="why; stands in the claim")
    expire = command(raw, "expire", "Delete raw objects that are old and in the table: the floor first, then they.")
    expire.add_argument("entity")
    expire.add_argument(
        "--before", required=True, type=of.moment_us, metavar="TIME", help="whose records are all older than this"
    )
    expire.add_argument("--dry-run", action="store_true", help="only say what would go")
    expire.add_argument(
        "--unloaded", action="store_true", help="also what the table does not hold: it can't be loaded any more then"
    )


def add_table(table: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Command) -> None:
    """For ``--help`` alone: what follows is passed on as it is."""
    command(table, "maintain", "Compact, vacuum and cluster the tables: python -m services.delta_loader maintain.")
