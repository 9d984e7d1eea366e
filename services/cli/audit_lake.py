"""The Delta table of one entity: a version is pinned, then read into the law's spill."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from services.cli.audit_raw import key_text
from services.cli.audit_records import PLACES_MAX, REV_MAX, ChainOf, Law, State, stamp_of
from services.cli.audit_spill import packed_id
from services.cli.audit_states import UNKNOWN_CHAIN
from shared.events.model import EventRules
from shared.raw.keys import Chain

if TYPE_CHECKING:
    from shared.lake.reader import LakeTable

PLACE = ("_kafka_topic", "_kafka_generation", "_kafka_partition", "_kafka_offset")
ORDER = ("_rank", "_tiebreak", "_rev", "_event_id")
LOOK_S = 2.0


async def caught_up(
    open_table: Callable[[], "LakeTable | None"],
    ends: Mapping[Chain, int],
    until_s: float,
    pause: Callable[[float], Awaitable[object]],
) -> "LakeTable | None":
    """The table once its positions cover ``ends``, or as it is at ``until_s`` (monotonic). ``None``: there is none."""
    while True:
        table = await asyncio.to_thread(open_table)
        if table is None:
            return None
        positions = await asyncio.to_thread(table.positions)
        behind = [chain for chain, end in ends.items() if positions.get(chain, 0) < end]
        if not behind or time.monotonic() >= until_s:
            return table
        await pause(LOOK_S)


async def read_states(law: Law, table: "LakeTable", chains: Sequence[ChainOf], progress: Callable[[int], None]) -> None:
    """Fill ``law.table_states``, batch by batch, in threads."""
    numbers = {one.chain: number for number, one in enumerate(chains)}
    batches = table.rows([*law.rules.key, *ORDER, *PLACE])
    while (rows := await asyncio.to_thread(next, batches, None)) is not None:
        await asyncio.to_thread(_take_rows, law, rows, numbers)
        progress(law.table_states.count)


def _take_rows(law: Law, rows: Sequence[tuple[Any, ...]], numbers: Mapping[Chain, int]) -> None:
    keys = len(law.rules.key)
    pack = law.table_states.layout.pack
    packed = []
    for row in rows:
        rank, tiebreak, rev, event_id = row[keys : keys + 4]
        topic, generation, partition, offset = row[keys + 4 :]
        number = numbers.get(Chain(topic or "", generation or 0, partition or 0), UNKNOWN_CHAIN)
        own_rev = min(rev or 0, REV_MAX)
        own_id = packed_id(event_id or "")
        packed.append(pack(key_digest(row[:keys]), rank or 0, tiebreak or 0, own_rev, own_id, number, offset or 0, 0))
    law.table_states.add(packed)


def purged_from(rules: EventRules, before_us: int) -> Callable[[State], bool]:
    """By a key's last change: is its row one that was removed on request?"""
    return lambda due: bool(due.is_delete) and stamp_of(rules, due.rank, due.tiebreak) < before_us


def read_quarantined(table: "LakeTable", chains: Sequence[ChainOf]) -> set[tuple[int, int]]:
    """Places of rows that were set aside, unmerged: ``PLACES_MAX`` at most. Blocks."""
    numbers = {one.chain: number for number, one in enumerate(chains)}
    places: set[tuple[int, int]] = set()
    for rows in table.rows(PLACE):
        for topic, generation, partition, offset in rows:
            number = numbers.get(Chain(topic or "", generation or 0, partition or 0))
            if number is not None and len(places) < PLACES_MAX:
                places.add((number, offset))
    return places


def key_digest(values: Sequence[Any]) -> bytes:
    """As ``shared.events.identity.key_hash`` of the key's text."""
    text = key_text(values)
    return sha256(("" if text is None else text).encode("utf-8", "surrogatepass")).digest()[:16]
