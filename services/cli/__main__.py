"""``tidemark``: what an operator types. Wires arguments, edges and printing, and nothing else."""

import argparse
import asyncio
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from services.cli import edges as edges_of
from services.cli.arguments import parser
from services.cli.outcome import FINDING, Outcome
from shared import logs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and print what it found; the exit code (see ``services.cli.outcome``)."""
    typed = sys.argv[1:] if argv is None else list(argv)
    if typed[:2] == ["table", "maintain"]:
        from services.cli import table

        return table.maintain(typed[2:], os.environ)
    arguments = parser(os.environ).parse_args(typed)
    logs.configure("tidemark", level="debug" if arguments.debug else "error", format="text", stream=sys.stderr)
    if getattr(arguments, "watch", False):
        from services.cli import audit_watch

        return audit_watch.main(arguments, os.environ)
    try:
        outcome = asyncio.run(_run(arguments, os.environ))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # the process shell: what a person sees of any failure
        return _failed(error, arguments)
    _print(outcome, as_json=arguments.json)
    return outcome.exit_code


async def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Outcome:
    async with AsyncExitStack() as stack:
        edges = edges_of.Edges(environ, stack, arguments.entities, arguments.namespace)
        return await _command(arguments, edges, environ)


async def _command(arguments: argparse.Namespace, edges: edges_of.Edges, environ: Mapping[str, str]) -> Outcome:
    """Commands are imported when they are typed: each brings its own libraries."""
    match arguments.command, getattr(arguments, "action", None):
        case "bootstrap", _:
            from services.cli import bootstrap

            return await bootstrap.run(edges, plan=arguments.plan)
        case "validate", _:
            from services.cli import validate

            looked_at = None if arguments.without_environment else environ
            return validate.run(arguments.entities, arguments.namespace, looked_at)
        case "status", _:
            from services.cli import status

            return await status.run(edges)
        case "doctor", _:
            from services.cli import doctor

            return await doctor.run(
                edges, environ, only=arguments.only, source=arguments.source, within_s=arguments.within
            )
        case "entity", action:
            from services.cli import entity

            match action:
                case "list":
                    return await entity.list_all(edges)
                case "pause":
                    return await entity.pause(edges, arguments.entity, arguments.reason)
            return await entity.resume(edges, arguments.entity)
        case "cursor", action:
            from services.cli import cursor

            if action == "show":
                return await cursor.show(edges, arguments.entity)
            return await cursor.set_to(edges, arguments.entity, arguments.to, arguments.reason)
        case "evidence", _:
            from services.cli import evidence

            return await evidence.verify(edges, arguments.day, arguments.expect_head)
        case "audit" | "trace" | "raw", _:
            return await _about_the_lake(arguments, edges)
    from services.cli import parked

    return await parked.run(edges, arguments)


async def _about_the_lake(arguments: argparse.Namespace, edges: edges_of.Edges) -> Outcome:
    match arguments.command, getattr(arguments, "action", None):
        case "audit", _:
            from services.cli import audit

            return await audit.run(edges, arguments)
        case "trace", _:
            from services.cli import trace

            return await trace.run(edges, arguments)
        case "raw", "show":
            from services.cli import raw_show

            return await raw_show.run(edges, arguments)
        case "raw", "mend":
            from services.cli import raw_mend

            return await raw_mend.run(edges, arguments)
        case "raw", "open":
            from services.cli import raw_open

            return await raw_open.run(edges, arguments)
    from services.cli import raw_expire

    return await raw_expire.run(edges, arguments)


def _failed(error: Exception, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exception(error)
    known = edges_of.meaning(error)
    exit_code = known.exit_code if known else FINDING
    text = known.text if known else f"{type(error).__name__}: {error} (a bug of ours; --debug shows where)"
    print(text, file=sys.stderr)
    if arguments.json:
        print(json.dumps({"error": text, "exit_code": exit_code}, indent=2))
    return exit_code


def _print(outcome: Outcome, *, as_json: bool) -> None:
    if not outcome.lines and (not as_json or outcome.document is None):  # it has printed what there was
        return
    try:
        print(json.dumps(outcome.document, indent=2) if as_json else "\n".join(outcome.lines), flush=True)
    except BrokenPipeError:  # `tidemark parked list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
