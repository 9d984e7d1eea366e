"""``tidemark parked``: what could not be published, why, and since when."""

import base64
import heapq
from argparse import Namespace
from typing import Any

from msgspec import Struct, to_builtins

from services.cli.edges import Edges, clock_ms
from services.cli.outcome import FINDING, OK, Outcome, aligned, iso, moment, printable
from services.cli.parked_selection import known, selection_of
from shared.parked.groups import Cause, cause_of
from shared.parked.items import ParkedDetail, ParkedRow
from shared.parked.leases import Row
from shared.parked.model import State
from shared.parked.selection import Selection
from shared.parked.walk import place_of

KEY_WIDTH = 32
CAUSES_MAX = 10_000
"""Told apart by ``groups``; beyond it the rest is counted together."""


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Commands that act are imported when they are typed."""
    match arguments.action:
        case "list":
            selection = selection_of(edges, arguments, clock_ms() * 1000)
            return await list_some(edges, selection, arguments.limit, arguments.after)
        case "groups":
            return await groups(edges, selection_of(edges, arguments, clock_ms() * 1000))
        case "show":
            return await show(edges, arguments.event_id, with_raw=arguments.raw)
        case "counts":
            return await counts(edges)
        case "redrive":
            from services.cli import parked_redrive

            return await parked_redrive.run(edges, arguments)
        case "hold":
            from services.cli import parked_hold

            return await parked_hold.run(edges, arguments)
        case "edit":
            from services.cli import parked_edit

            return await parked_edit.run(edges, arguments)
        case "discard":
            from services.cli import parked_discard

            return await parked_discard.run(edges, arguments)
        case "export":
            from services.cli import parked_export

            return await parked_export.run(edges, arguments)
    from services.cli import parked_audit

    return await parked_audit.list_entries(edges, arguments.newer_than, arguments.limit)


async def list_some(edges: Edges, selection: Selection, limit: int, after: str | None) -> Outcome:
    """Oldest first."""
    found, more = await _oldest(edges, selection, limit, after)
    rows = [
        [moment(row.first_us), row.entity, row.reason.value, row.state.value, printable(row.path) or "-", _key(row),
         row.item_id]
        for row in found
    ]  # fmt: skip
    lines = aligned(rows, ("SINCE", "ENTITY", "REASON", "STATE", "PATH", "KEY", "EVENT ID")) or ["nothing is parked"]
    if more is not None:
        lines.append(f"more with: --after '{more}'")
    return Outcome(exit_code=OK, lines=lines, document={"events": [_row(row) for row in found], "after": more})


async def groups(edges: Edges, selection: Selection) -> Outcome:
    """By root cause, largest first. Exact within a refresh of the index."""
    found: dict[Cause, _Group] = {}
    async for page in (await edges.desk()).walk.pages(selection):
        for row in page.rows:
            cause = cause_of(row)
            if cause not in found and len(found) >= CAUSES_MAX:
                cause = Cause(row.entity, row.reason, "…", "")
            found.setdefault(cause, _Group()).count(row)
    ordered = sorted(found.items(), key=lambda pair: (-pair[1].events, pair[0]))
    rows = [
        [cause.id, cause.entity, cause.reason.value, printable(cause.path) or "-", f"{group.events:,}",
         *(f"{group.states.get(state, 0):,}" for state in State), moment(group.first_us), moment(group.last_us),
         ", ".join(sorted(group.owners)) or "-"]
        for cause, group in ordered
    ]  # fmt: skip
    header = ("GROUP", "ENTITY", "REASON", "PATH", "EVENTS", *State, "OLDEST", "NEWEST", "OWNER")
    lines = aligned(rows, header, right=frozenset({4, 5, 6, 7})) or ["nothing is parked"]
    return Outcome(exit_code=OK, lines=lines, document={"groups": [_group(*pair) for pair in ordered]})


async def _oldest(
    edges: Edges, selection: Selection, limit: int, after: str | None
) -> tuple[list[ParkedRow], str | None]:
    """(at most ``limit`` rows, where to go on). What the index can't filter is found by reading every row, once."""
    if selection.is_all_index:
        page = await (await edges.parked()).find(selection.filter, limit=limit, after=after)
        return page.rows, page.after
    rows: list[ParkedRow] = []
    async for page_of_index in (await edges.desk()).walk.pages(selection, above=after or ""):
        rows = heapq.nsmallest(limit + 1, [*rows, *page_of_index.rows], key=place_of)
    return rows[:limit], place_of(rows[limit - 1]) if len(rows) > limit else None


class _Group(Struct):
    events: int = 0
    states: dict[State, int] = {}
    owners: set[str] = set()
    first_us: int | None = None
    last_us: int | None = None

    def count(self, row: ParkedRow) -> None:
        self.events += 1
        self.states[row.state] = self.states.get(row.state, 0) + 1
        self.owners.add(row.owner or "-")
        self.first_us = row.first_us if self.first_us is None else min(self.first_us, row.first_us)
        self.last_us = row.first_us if self.last_us is None else max(self.last_us, row.first_us)


async def show(edges: Edges, item_id: str, *, with_raw: bool) -> Outcome:
    """Every revision of one event; exit code 1 when there is none."""
    details = await (await edges.parked()).show(item_id)
    if not details:
        return Outcome(exit_code=FINDING, lines=[f"{item_id}: not parked"], document={"events": []})
    transitions = (await edges.parked()).transitions
    lines: list[str] = []
    documents = []
    for detail in details:
        row = await transitions.look(detail.row)
        lines += [*([""] if lines else []), *_sheet(detail, row)]
        newest = await transitions.body(row) if with_raw and row is not None and row.edits else None
        if with_raw:
            lines += ["", _raw_text(detail.raw)]
        if newest is not None:
            lines += ["", f"after edit {len(row.edits) if row is not None else 0}:", _raw_text(newest)]
        documents.append(_detail(detail, row, newest, with_raw=with_raw))
    return Outcome(exit_code=OK, lines=lines, document={"events": documents})


async def counts(edges: Edges) -> Outcome:
    """By entity and reason, exact within a refresh of the index."""
    found = await (await edges.parked()).counts(known(edges, None))
    rows = [[entity, reason.value, str(count)] for (entity, reason), count in sorted(found.items())]
    lines = aligned(rows, ("ENTITY", "REASON", "EVENTS"), right=frozenset({2})) or ["nothing is parked"]
    document = [
        {"entity": entity, "reason": reason.value, "events": n} for (entity, reason), n in sorted(found.items())
    ]
    return Outcome(exit_code=OK, lines=lines, document=document)


def _sheet(detail: ParkedDetail, now: Row | None) -> list[str]:
    row = detail.row
    return aligned(
        [
            ["event id", detail.event_id or row.item_id],
            ["entity", row.entity],
            ["key", printable(row.key) if row.key is not None else "(unreadable)"],
            ["reason", f"{row.reason.value} at {printable(row.path) or '(the whole)'}: {printable(detail.detail)}"],
            ["state", f"{row.state.value}, due {moment(detail.due_ms * 1000)}{_end(detail)}"],
            ["parked", f"{moment(row.first_us)}, last shown {moment(detail.last_us)}, {detail.seen} times"],
            ["changed", f"{moment(detail.updated_us)}, seq {detail.seq[0]}.{detail.seq[1]}, rev {detail.rev}"],
            ["schema", f"{row.subject or '-'} ({row.fingerprint or '-'})"],
            ["topic", detail.topic + (" (may have been sent)" if detail.maybe_sent else "")],
            ["attempts", f"{row.attempts} counted, {detail.tries} in all"],
            ["owner", row.owner or "-"],
            ["bytes", f"{len(detail.raw)}, sha256 {detail.body_sha}"],
            ["group", cause_of(row).id],
            *([] if now is None else _history(now)),
        ]
    )


def _end(detail: ParkedDetail) -> str:
    return "" if detail.row.state is State.STALE else f", given up at {moment(detail.deadline_ms * 1000)}"


def _history(row: Row) -> list[list[str]]:
    """What was tried, by whom it was touched, and what its owner was told."""
    lines = [["error", f"{moment(error.at_ms * 1000)} {error.kind}: {printable(error.code)}"] for error in row.errs]
    lines += [
        ["edit", f"{moment(edit.at_ms * 1000)} rev {edit.rev} by {printable(edit.who)}: {printable(edit.why)}"]
        for edit in row.edits
    ]
    if row.stale_why:
        lines.append(["given up", printable(row.stale_why)])
    if row.arch_uri is not None:
        lines.append(["evidence", f"{row.arch_uri} sha256 {row.arch_sha}"])
    lines += [
        ["told", f"{moment(told.at_ms * 1000)} {told.channel}: {printable(told.provider_id)}"] for told in row.ntf
    ]
    if row.grace_until_ms is not None:
        lines.append(["kept until", moment(row.grace_until_ms * 1000)])
    return lines


def _raw_text(raw: bytes) -> str:
    try:
        return printable(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)


def _key(row: ParkedRow) -> str:
    key = "(unreadable)" if row.key is None else printable(row.key)
    return key if len(key) <= KEY_WIDTH else key[: KEY_WIDTH - 3] + "..."


def _row(row: ParkedRow) -> dict[str, Any]:
    fields = to_builtins(row)
    return {**fields, "first": iso(fields.pop("first_us")), "group": cause_of(row).id}


def _group(cause: Cause, group: _Group) -> dict[str, Any]:
    return {
        "group": cause.id,
        **to_builtins(cause),
        "events": group.events,
        "states": {state.value: count for state, count in group.states.items()},
        "owners": sorted(group.owners),
        "first": iso(group.first_us),
        "last": iso(group.last_us),
    }


def _detail(detail: ParkedDetail, now: Row | None, newest: bytes | None, *, with_raw: bool) -> dict[str, Any]:
    fields = {name: value for name, value in to_builtins(detail).items() if name not in ("raw", "row")}
    times = {
        "due": iso(fields.pop("due_ms") * 1000),
        "deadline": iso(fields.pop("deadline_ms") * 1000),
        "updated": iso(fields.pop("updated_us")),
        "last": iso(fields.pop("last_us")),
    }
    raw = {"raw_base64": base64.b64encode(detail.raw).decode()} if with_raw else {}
    if newest is not None:
        raw["edited_base64"] = base64.b64encode(newest).decode()
    history = {} if now is None else {"history": [{"what": what, "text": text} for what, text in _history(now)]}
    return {**_row(detail.row), **fields, **times, "bytes": len(detail.raw), **history, **raw}
