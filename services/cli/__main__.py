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
    arguments = parser(os.environ).parse_args(argv)
    logs.configure("tidemark", level="debug" if arguments.debug else "error", format="text", stream=sys.stderr)
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
    from services.cli import parked

    return await parked.run(edges, arguments)


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
    if not as_json and not outcome.lines:  # it has printed what there was
        return
    try:
        print(json.dumps(outcome.document, indent=2) if as_json else "\n".join(outcome.lines), flush=True)
    except BrokenPipeError:  # `tidemark parked list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
