"""When is everything through? Conditions asked of the real stores, with a deadline instead of a sleep."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from deploy.demo.books import Stores
from shared.entities import Entities, Entity
from shared.raw.generation import newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger

POLL_S = 0.5

_LAST_STAMPS = """SELECT 'account_events', max(updated_at) FROM change_outbox WHERE entity = 'account_events'
    UNION ALL SELECT 'payment_events', max(updated_at) FROM change_outbox WHERE entity = 'payment_events'
    UNION ALL SELECT 'accounts', max(updated_at) FROM accounts
    UNION ALL SELECT 'payments', max(updated_at) FROM payments"""


class NotDrained(Exception):
    """The deadline passed; says what was still waited for."""


async def drained(
    stores: Stores,
    entities: Entities,
    within_s: float,
    tick: Callable[[str], Awaitable[None]],
    also: Callable[[], Awaitable[str]],
) -> None:
    """Return once every change is read and re-driven where Kafka was to blame, and every record is in a raw object.

    ``also`` says what else is waited for. Raises ``NotDrained``.

    Read: a lookback that began behind the bank's last change has completed. That change was committed after all others,
    so what committed late lies within the lookback.
    """
    last_us = await _last_stamps_us(stores)
    deadline_s = asyncio.get_running_loop().time() + within_s
    while waiting := await _waiting_for(stores, entities, last_us) or await also():
        await tick(waiting)
        if asyncio.get_running_loop().time() > deadline_s:
            raise NotDrained(f"not through after {within_s:.0f} s: {waiting}")
        await asyncio.sleep(POLL_S)


async def _last_stamps_us(stores: Stores) -> Mapping[str, int]:
    rows = await stores.bank.fetch(_LAST_STAMPS)
    return {name: int(stamp.timestamp() * 1_000) * 1_000 for name, stamp in rows if stamp is not None}


async def _waiting_for(stores: Stores, entities: Entities, last_us: Mapping[str, int]) -> str:
    """What is still to come, in words; ``""``: nothing."""
    cursors = {status.entity: status for status in await stores.checkpoints.entities()}
    for entity in entities.entities.values():
        status = cursors.get(entity.name)
        if status is None:
            return f"{entity.name} has no cursor"
        if status.paused_reason is not None:
            return f"{entity.name} is paused: {status.paused_reason}"
        if status.swept_us < last_us.get(entity.source_entity, 0):
            return f"{entity.name}: the lookback behind the last change"
    counts = await stores.parked.counts(list(entities.entities))
    if waits := sum(count for (_, reason), count in counts.items() if reason.startswith("kafka_")):
        return f"{waits:,} parked events that Kafka could not take"
    for entity in entities.entities.values():
        if behind := await _behind(stores, Keys(entities.namespace.prefix("")), entity):
            return f"{entity.name}: {behind:,} records between Kafka and the raw bucket"
    return ""


async def _behind(stores: Stores, keys: Keys, entity: Entity) -> int:
    claim = await newest_claim(stores.s3, keys, entity.topic)
    marks = await stores.kafka.watermarks(entity.topic)
    if claim is None:
        return sum(mark.end - mark.begin for mark in marks.values())
    ledger = Ledger(stores.s3, keys)
    tails = [(await ledger.tail(Chain(entity.topic, claim.generation, number))).next_start for number in marks]
    return sum(max(0, mark.end - tail) for mark, tail in zip(marks.values(), tails, strict=True))
