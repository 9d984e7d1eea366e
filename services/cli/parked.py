"""``tidemark parked``: what could not be published, why, and since when."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, iso, moment, printable
from shared.config import ConfigError, guess
from shared.events.model import Reason

if TYPE_CHECKING:
    from shared.parked.items import ParkedDetail, ParkedRow

KEY_WIDTH = 32


async def list_some(
    edges: Edges,
    entities: Sequence[str] | None,
    reasons: Sequence[str] | None,
    state: str | None,
    limit: int,
    after: str | None,
) -> Outcome:
    """Oldest first. Raises ``ConfigError`` for an entity that the folder doesn't have."""
    from shared.parked.model import State
    from shared.parked.queries import ParkedFilter

    wanted = ParkedFilter(
        entities=_known(edges, entities),
        reasons=tuple(Reason(reason) for reason in reasons) if reasons else tuple(Reason),
        state=State(state) if state else None,
    )
    page = await (await edges.parked()).find(wanted, limit=limit, after=after)
    rows = [
        [moment(row.first_us), row.entity, row.reason.value, row.state.value, row.path or "-", _key(row), row.item_id]
        for row in page.rows
    ]
    lines = aligned(rows, ("SINCE", "ENTITY", "REASON", "STATE", "PATH", "KEY", "EVENT ID")) or ["nothing is parked"]
    if page.after is not None:
        lines.append(f"more with: --after '{page.after}'")
    return Outcome(
        exit_code=OK, lines=lines, document={"events": [_row(row) for row in page.rows], "after": page.after}
    )


async def show(edges: Edges, item_id: str, *, with_raw: bool) -> Outcome:
    """Every revision of one event; exit code 1 when there is none."""
    details = await (await edges.parked()).show(item_id)
    if not details:
        return Outcome(exit_code=FINDING, lines=[f"{item_id}: not parked"], document={"events": []})
    lines: list[str] = []
    for detail in details:
        lines += [*([""] if lines else []), *_sheet(detail)]
        if with_raw:
            lines += ["", _raw_text(detail.raw)]
    return Outcome(
        exit_code=OK, lines=lines, document={"events": [_detail(detail, with_raw=with_raw) for detail in details]}
    )


async def counts(edges: Edges) -> Outcome:
    """By entity and reason, exact within a refresh of the index."""
    found = await (await edges.parked()).counts(_known(edges, None))
    rows = [[entity, reason.value, str(count)] for (entity, reason), count in sorted(found.items())]
    lines = aligned(rows, ("ENTITY", "REASON", "EVENTS"), right=frozenset({2})) or ["nothing is parked"]
    document = [
        {"entity": entity, "reason": reason.value, "events": n} for (entity, reason), n in sorted(found.items())
    ]
    return Outcome(exit_code=OK, lines=lines, document=document)


def _known(edges: Edges, wanted: Sequence[str] | None) -> tuple[str, ...]:
    names = list(edges.entities.entities)
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ConfigError([f"--entity {name}: not in the folder{guess(name, names)}" for name in unknown])
    return tuple(wanted or names)


def _sheet(detail: "ParkedDetail") -> list[str]:
    row = detail.row
    return aligned(
        [
            ["event id", detail.event_id or row.item_id],
            ["entity", row.entity],
            ["key", printable(row.key) if row.key is not None else "(unreadable)"],
            ["reason", f"{row.reason.value} at {printable(row.path) or '(the whole)'}: {printable(detail.detail)}"],
            ["state", f"{row.state.value}, due {moment(detail.due_ms * 1000)}"],
            ["parked", f"{moment(row.first_us)}, last shown {moment(detail.last_us)}, {detail.seen} times"],
            ["changed", f"{moment(detail.updated_us)}, seq {detail.seq[0]}.{detail.seq[1]}, rev {detail.rev}"],
            ["schema", f"{row.subject or '-'} ({row.fingerprint or '-'})"],
            ["topic", detail.topic + (" (may have been sent)" if detail.maybe_sent else "")],
            ["attempts", f"{row.attempts} counted, {detail.tries} in all"],
            ["owner", row.owner or "-"],
            ["bytes", f"{len(detail.raw)}, sha256 {detail.body_sha}"],
        ]
    )


def _raw_text(raw: bytes) -> str:
    try:
        return printable(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)


def _key(row: "ParkedRow") -> str:
    key = "(unreadable)" if row.key is None else printable(row.key)
    return key if len(key) <= KEY_WIDTH else key[: KEY_WIDTH - 3] + "..."


def _row(row: "ParkedRow") -> dict[str, Any]:
    fields = to_builtins(row)
    return {**fields, "first": iso(fields.pop("first_us"))}


def _detail(detail: "ParkedDetail", *, with_raw: bool) -> dict[str, Any]:
    fields = {name: value for name, value in to_builtins(detail).items() if name not in ("raw", "row")}
    times = {
        "due": iso(fields.pop("due_ms") * 1000),
        "deadline": iso(fields.pop("deadline_ms") * 1000),
        "updated": iso(fields.pop("updated_us")),
        "last": iso(fields.pop("last_us")),
    }
    raw = {"raw_base64": base64.b64encode(detail.raw).decode()} if with_raw else {}
    return {**_row(detail.row), **fields, **times, "bytes": len(detail.raw), **raw}
