"""``tidemark raw expire``: old raw objects leave, and the ledger stays whole at every moment."""

import asyncio
from argparse import Namespace
from datetime import UTC, datetime

from msgspec import to_builtins

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, moment
from services.cli.parked_progress import Progress
from services.cli.parked_selection import known
from services.cli.who import operator
from shared.entities import Entity
from shared.lake.layout import HISTORY
from shared.lake.positions import Positions
from shared.raw.expiry import Expiry, expire, plan
from shared.raw.generation import FIRST, newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when something old had to stay that the entity's tables have not passed."""
    (name,) = known(edges, [arguments.entity])
    store, keys = await edges.raw_store(), Keys(edges.namespace.prefix(""))
    ledger = Ledger(store, keys)
    entity = edges.entities.entities[name]
    topic = entity.topic
    claim = await newest_claim(store, keys, topic)
    generations = range(FIRST, (FIRST - 1 if claim is None else claim.generation) + 1)
    chains = [chain for number in generations for chain in await ledger.partitions(topic, number)]
    loaded = None if arguments.unloaded else await _loaded(edges, entity)
    plans = [
        await plan(ledger, store, chain, arguments.before // 1000, None if loaded is None else loaded.get(chain, 0))
        for chain in chains
    ]
    if not arguments.dry_run:
        total = sum(one.objects + one.left_over for one in plans)
        with Progress(f"{name}: expiring", total) as progress:
            for one in plans:
                progress.add(await expire(ledger, store, one, operator()))
    return _outcome(plans, arguments)


async def _loaded(edges: Edges, entity: Entity) -> dict[Chain, int]:
    """What all of the entity's tables have passed; none without a table: then nothing may leave.

    A full refresh reads every raw object once more: until it is put in the table's place, it counts like a table.
    """
    table, built = edges.lake.table(entity.name), edges.lake.refresh(entity.name)
    endings = ("", HISTORY) if entity.delta.history else ("",)
    tables = [await _positions(edges, f"{table}{ending}") for ending in endings]
    building = [await _positions(edges, f"{built}{ending}") for ending in endings]
    if any(one is not None for one in building):
        tables += building
    known = [one or {} for one in tables]
    return {chain: min(one.get(chain, 0) for one in known) for chain in known[0]}


async def _positions(edges: Edges, uri: str) -> Positions | None:
    """``None``: there is no table."""
    table = await asyncio.to_thread(edges.lake_table, uri)
    return None if table is None else await asyncio.to_thread(table.positions)


def _outcome(plans: list[Expiry], arguments: Namespace) -> Outcome:
    verb = "would go" if arguments.dry_run else "gone"
    rows = [
        [
            str(one.chain),
            f"{one.floor_was:,}",
            f"{one.floor:,}",
            f"{one.objects + one.left_over:,}",
            f"{one.rows:,}",
            moment(None if one.last_ms is None else one.last_ms * 1000),
            one.stays,
        ]
        for one in plans
    ]
    header = ("CHAIN", "FLOOR WAS", "FLOOR", f"OBJECTS {verb.upper()}", "ROWS", "NEWEST RECORD", "WHAT STAYS")
    lines = aligned(rows, header, frozenset({1, 2, 3, 4})) or ["there are no raw objects"]
    held_back = any("table has not passed" in one.stays for one in plans)
    if held_back:
        lines.append(
            "objects that the table, its history or a full refresh under way does not hold stay: load them (python -m "
            f"services.delta_loader batch {arguments.entity}; --full-refresh ends a refresh), or give them up with "
            "--unloaded"
        )
    before = datetime.fromtimestamp(arguments.before / 1_000_000, UTC).isoformat()
    document = {
        "entity": arguments.entity,
        "before": before,
        "dry_run": arguments.dry_run,
        "chains": [{**to_builtins(one), "chain": str(one.chain)} for one in plans],
    }
    return Outcome(exit_code=FINDING if held_back else OK, lines=lines, document=document)
