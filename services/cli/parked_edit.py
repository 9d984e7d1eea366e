"""``tidemark parked edit``: other bytes for one event. The original stays; identity and order do not move.

The new bytes must pass the contract as it is now, under the same key and time stamp: event id and ``seq`` were given
at first sight and stand. Where key or time could not be read before, what the new bytes say is taken.
"""

import asyncio
import os
import shlex
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from msgspec.structs import replace

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome, printable
from services.cli.parked_audit import audited
from services.cli.who import operator
from shared.config import ConfigError
from shared.events.identity import Identifier, pointer
from shared.events.model import EventRules
from shared.parked.analysis import Analyst, NotYet
from shared.parked.bodies import BodyMissing
from shared.parked.items import ParkedDetail
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent
from shared.parked.transitions import Transitions

RAW_BYTES_MAX = 64 * 1024 * 1024


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    store = await edges.parked()
    details = await store.show(arguments.event_id)
    if not details:
        return Outcome(exit_code=FINDING, lines=[f"{arguments.event_id}: not parked"], document={"edited": False})
    row = await store.transitions.look(_chosen(details, arguments.rev).row)
    if row is None:
        return Outcome(exit_code=FINDING, lines=[f"{arguments.event_id}: gone meanwhile"], document={"edited": False})
    if row.event.kafka is not None:
        raise ConfigError(["edit: an undecodable record is Avro on its topic already; re-drive it, or discard it"])
    if row.event.entity not in edges.entities.entities:
        raise ConfigError([f"edit: entity {row.event.entity!r} is not in the folder: its contract is needed"])
    rules = edges.entities.entities[row.event.entity].rules
    analyst = await (await edges.analysts()).current(row.event.entity)
    old = await _old(store.transitions, row)
    if arguments.file is not None:
        return await _apply(edges, arguments, row, old, await _read(Path(arguments.file)), analyst, rules)
    return await _in_editor(edges, arguments, row, old, analyst, rules)


def refusal(event: ParkedEvent, old: bytes, new: bytes, analyst: Analyst, rules: EventRules, now_us: int) -> str | None:
    """Why ``new`` may not stand for ``old``, never quoting a value. Pure."""
    before, after = Identifier(rules).identify([old, new])
    if after.refusal is not None and after.refusal.path == "":
        return f"{after.refusal.reason} at (the whole): {printable(after.refusal.detail)}"
    changed = (
        "must not change: event id and order were given by it; discard the event, and have the source show another"
    )
    if before.key is not None and after.key_hash != before.key_hash:
        return f"{' '.join(pointer(name) for name in rules.key)}: the key {changed}"
    if before.key is not None and after.updated_us != before.updated_us:
        return f"{pointer(rules.updated_at)}: the time stamp {changed}"
    if before.version is not None and after.version != before.version:
        return f"{pointer(rules.version or '')}: the version {changed}"
    found = analyst.analyse(replace(event, raw=new), now_us)
    if isinstance(found, NotYet):
        return f"{found.reason} at {printable(found.place or found.path) or '(the whole)'}: {printable(found.why)}"
    return None


async def _apply(
    edges: Edges, arguments: Namespace, row: Row, old: bytes, new: bytes, analyst: Analyst, rules: EventRules
) -> Outcome:
    """Raises ``RowChanged``."""
    item = row.item_id
    if new == old:
        return Outcome(exit_code=OK, lines=[f"{item}: nothing has changed"], document={"edited": False})
    if (why := refusal(row.event, old, new, analyst, rules, clock_ms() * 1000)) is not None:
        return Outcome(exit_code=FINDING, lines=[f"refused: {why}"], document={"edited": False, "refused": why})
    what = {"ids": [item], "entities": [row.event.entity], "sha256": sha256(new).hexdigest(), "was": row.newest.sha}
    async with audited(edges, "edit", arguments.why, what) as deed:
        try:
            edited = await (await edges.parked()).transitions.edit(
                row, new, operator(), arguments.why, stale_after_s=edges.patience(row.event.entity)
            )
        except ValueError as error:  # edited too often
            raise ConfigError([f"edit: {error}"]) from None
        deed.counts = {"edited": 1}
    rev = edited.event.rev
    lines = [f"{item}: rev {rev}, due now; the original is kept"]
    return Outcome(exit_code=OK, lines=lines, document={"edited": True, "event_id": item, "rev": rev})


async def _in_editor(
    edges: Edges, arguments: Namespace, row: Row, old: bytes, analyst: Analyst, rules: EventRules
) -> Outcome:
    """Whatever is refused is kept where it was typed, so that the work is not lost."""
    folder = Path(mkdtemp(prefix="tidemark-edit-"))  # nobody else can look into it
    file = folder / "event.json"
    await asyncio.to_thread(file.write_bytes, old)
    kept = False
    try:
        await asyncio.to_thread(_open_editor, file, os.environ)
        found = await _apply(edges, arguments, row, old, await _read(file, old), analyst, rules)
        kept = found.exit_code != OK
        hint = [f"what you typed is kept: mend it and use --file {file}"] if kept else []
        return Outcome(exit_code=found.exit_code, lines=[*found.lines, *hint], document=found.document)
    finally:
        if not kept:
            await asyncio.to_thread(shutil.rmtree, folder)


def _open_editor(file: Path, environ: Mapping[str, str]) -> None:
    editor = environ.get("VISUAL") or environ.get("EDITOR")
    if not editor:
        raise ConfigError(["edit: neither VISUAL nor EDITOR is set; set one, or use --file FILE"])
    try:
        done = subprocess.run([*shlex.split(editor), str(file)], check=False)  # noqa: S603 - the operator's own editor
    except OSError as error:
        advice = "set VISUAL or EDITOR to one that can, or use --file FILE"
        raise ConfigError([f"edit: {editor!r} can't be run ({error.strerror}); {advice}"]) from None
    if done.returncode != 0:
        raise ConfigError([f"edit: {editor!r} ended with {done.returncode}; nothing was done"])


async def _read(file: Path, old: bytes | None = None) -> bytes:
    """An editor ends the last line, where it had no end: that is no change."""
    try:
        new = await asyncio.to_thread(_bounded, file)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    return new.removesuffix(b"\n") if old is not None and not old.endswith(b"\n") else new


def _bounded(file: Path) -> bytes:
    with file.open("rb") as stream:
        found = stream.read(RAW_BYTES_MAX + 1)
    if len(found) > RAW_BYTES_MAX:
        raise ConfigError([f"{file}: larger than {RAW_BYTES_MAX} bytes"])
    return found


async def _old(transitions: Transitions, row: Row) -> bytes:
    try:
        return await transitions.body(row)
    except BodyMissing as error:
        raise ConfigError([f"edit: {error}; discard it, or have the source show it again"]) from None


def _chosen(details: list[ParkedDetail], rev: int | None) -> ParkedDetail:
    """Raises ``ConfigError`` where it is not clear which one is meant."""
    found = [detail for detail in details if rev is None or detail.row.rev == rev]
    if len(found) == 1:
        return found[0]
    revs = ", ".join(str(detail.row.rev) for detail in details)
    if rev is not None:
        raise ConfigError([f"edit: there is no --rev {rev} of this event; there is {revs}"])
    raise ConfigError([f"edit: this event id was shown with different bytes, as --rev {revs}: name one"])
