"""``tidemark parked export``: events with all that is known of them; their bytes only with ``--raw``.

A file or folder appears whole or not at all, readable for its owner alone, and nothing is written over.
"""

import asyncio
import base64
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import OK, Outcome, iso
from services.cli.parked_audit import audited
from services.cli.parked_progress import Progress
from services.cli.parked_selection import selection_of
from shared.config import ConfigError
from shared.parked.groups import cause_of
from shared.parked.items import ParkedRow
from shared.parked.model import ParkedEvent
from shared.parked.selection import Selection, document_of

Sink = Callable[[ParkedRow, ParkedEvent], None]


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    now_us = clock_ms() * 1000
    selection = selection_of(edges, arguments, now_us).before(now_us)
    if arguments.out == "-" and arguments.json:
        raise ConfigError(["--out - writes the events to standard output: leave --json out, or name a file"])
    where = arguments.out or arguments.dir
    if where != "-" and await asyncio.to_thread(os.path.lexists, where):
        raise ConfigError([f"{where}: exists; name one that doesn't"])
    what = document_of(selection) | {"to": where, "raw": arguments.raw}
    async with audited(edges, "export", arguments.why or "", what) as deed:
        if where == "-":
            count = await _export(edges, selection, _lines(sys.stdout, with_raw=arguments.raw))
            sys.stdout.flush()
        elif arguments.dir is not None:
            count = await _to_folder(edges, selection, Path(where), with_raw=arguments.raw)
        else:
            count = await _to_file(edges, selection, Path(where), with_raw=arguments.raw)
        deed.counts = {"exported": count}
    if where == "-":
        return Outcome(exit_code=OK, lines=[], document=None)
    lines = [f"{where}: {count:,} events{'' if arguments.raw else ', without their bytes (--raw)'}"]
    return Outcome(exit_code=OK, lines=lines, document={"to": where, "events": count, "raw": arguments.raw})


async def _export(edges: Edges, selection: Selection, sink: Sink) -> int:
    """Those that are there when they are read."""
    desk, streams = await edges.desk(), (await edges.parked()).streams
    count = 0
    with Progress("exporting", await desk.walk.count(selection)) as progress:
        async for page in desk.walk.pages(selection):
            rows = iter(page.rows)
            async with aclosing(streams.events(page.rows)) as chunks:
                async for chunk in chunks:
                    there = [(row, event) for event, row in zip(chunk, rows, strict=False) if event is not None]
                    await asyncio.to_thread(_write_all, sink, there)
                    count += len(there)
                    progress.show(count)
    return count


def _write_all(sink: Sink, there: Sequence[tuple[ParkedRow, ParkedEvent]]) -> None:
    for row, event in there:
        sink(row, event)


async def _to_file(edges: Edges, selection: Selection, file: Path, *, with_raw: bool) -> int:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with _new(part) as stream:
            count = await _export(edges, selection, _lines(stream, with_raw=with_raw))
            stream.flush()
            os.fsync(stream.fileno())
        os.link(part, file)  # fails where somebody was faster, as a rename would not
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    finally:
        part.unlink(missing_ok=True)
    return count


async def _to_folder(edges: Edges, selection: Selection, folder: Path, *, with_raw: bool) -> int:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(mode=0o700)
        count = await _export(edges, selection, _files(part, with_raw=with_raw))
        part.rename(folder)
    except OSError as error:
        raise ConfigError([f"{folder}: {error.strerror}"]) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def _lines(stream: TextIO, *, with_raw: bool) -> Sink:
    def write(row: ParkedRow, event: ParkedEvent) -> None:
        stream.write(json.dumps(document(row, event, with_raw=with_raw)) + "\n")

    return write


def _files(folder: Path, *, with_raw: bool) -> Sink:
    """``<entity>/<event id>-<rev>.json``, and beside it ``.raw`` with the bytes as they are."""

    def write(row: ParkedRow, event: ParkedEvent) -> None:
        own = folder / event.entity
        own.mkdir(mode=0o700, exist_ok=True)
        name = f"{event.item_id.replace('/', '_')}-{row.rev}"
        _write(own / f"{name}.json", json.dumps(document(row, event, with_raw=False), indent=2).encode() + b"\n")
        if with_raw:
            _write(own / f"{name}.raw", event.raw)

    return write


def _write(file: Path, content: bytes) -> None:
    with open(_only_ours(file), "wb") as stream:
        stream.write(content)


def _new(file: Path) -> TextIO:
    return open(_only_ours(file), "w", encoding="utf-8")


def _only_ours(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def document(row: ParkedRow, event: ParkedEvent, *, with_raw: bool) -> dict[str, Any]:
    """Without ``with_raw`` no value of the event but its key."""
    found: dict[str, Any] = {
        "entity": event.entity,
        "event_id": event.event_id,
        "item_id": event.item_id,
        "rev": event.rev,
        "seq": [event.rank, event.tiebreak],
        "topic": event.topic,
        "key": event.key,
        "updated": iso(event.updated_us),
        "state": row.state.value,
        "reason": event.reason.value,
        "path": event.path,
        "detail": event.detail,
        "group": cause_of(event).id,
        "subject": event.subject,
        "fingerprint": event.fingerprint,
        "owner": event.owner,
        "first": iso(row.first_us),
        "maybe_sent": event.maybe_sent,
        "bytes": len(event.raw),
        "sha256": sha256(event.raw).hexdigest(),
    }
    if event.kafka is not None:
        found["kafka"] = {"position": event.kafka.text, "timestamp_ms": event.kafka.timestamp_ms}
    return found | ({"raw_base64": base64.b64encode(event.raw).decode()} if with_raw else {})
