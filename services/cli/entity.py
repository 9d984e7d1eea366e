"""``tidemark entity``: list entities, pause and resume their polling."""

from typing import TYPE_CHECKING

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, iso, moment, printable
from services.cli.who import operator

if TYPE_CHECKING:
    from shared.checkpoints.model import EntityStatus


async def list_all(edges: Edges) -> Outcome:
    """Everything that has a cursor; exit code 1 when something is paused."""
    found = await (await edges.checkpoints()).entities()
    rows = [
        [status.entity, state(status), moment(status.cursor_us), printable(status.paused_reason or "")]
        for status in found
    ]
    document = [
        {
            "entity": status.entity,
            "state": state(status),
            "cursor": iso(status.cursor_us),
            "poller": status.owner,
            "paused_reason": status.paused_reason,
            "paused_by": status.paused_by,
            "paused_at": iso(status.paused_at_us),
        }
        for status in found
    ]
    paused = any(status.paused_reason for status in found)
    lines = aligned(rows, ("ENTITY", "STATE", "CURSOR", "REASON")) or ["no entity has a cursor yet: tidemark bootstrap"]
    return Outcome(exit_code=FINDING if paused else OK, lines=lines, document=document)


async def pause(edges: Edges, entity: str, reason: str) -> Outcome:
    """The poller that holds it learns of it with its next commit or renewal. The first reason stands."""
    changed = await (await edges.checkpoints()).pause(entity, reason, operator())
    text = "paused" if changed else "was paused before, and keeps its reason"
    return Outcome(exit_code=OK, lines=[f"{entity}: {text}"], document={"entity": entity, "changed": changed})


async def resume(edges: Edges, entity: str) -> Outcome:
    """Whoever leases it next goes on from its cursor."""
    changed = await (await edges.checkpoints()).resume(entity, operator())
    text = "resumed" if changed else "was not paused"
    return Outcome(exit_code=OK, lines=[f"{entity}: {text}"], document={"entity": entity, "changed": changed})


def state(status: "EntityStatus") -> str:
    """``paused``, ``running`` (a poller holds its lease) or ``no poller``."""
    if status.paused_reason:
        return "paused"
    return "running" if status.lease_left_s is not None and status.lease_left_s > 0 else "no poller"
