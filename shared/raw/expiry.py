"""Old raw objects leave: first a floor is raised, then what lies below it is deleted, oldest first.

At every moment in between a chain is whole from its floor on, and what is left below it is a whole end of what was
there. So a reader needs no lock: it reads the floor, and if something is missing, the floor once more. The newest
object always stays: it says where the chain goes on. Whoever dies half way leaves the rest to the next run.
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from shared.raw.keys import Chain
from shared.raw.ledger import Floor, Ledger, read_floor
from shared.raw.objects import DELETED_AT_ONCE, ExpiringStore, RawObject, SlotTaken, StoreUnavailable

RAISES_MAX = 8


class Expiry(Struct, frozen=True, kw_only=True):
    """What may leave one chain. ``stays``: why what follows does not."""

    chain: Chain
    floor_was: int
    floor: int
    last_ms: int | None  # of the newest record below the new floor
    objects: int
    rows: int
    stays: str
    left_over: int = 0
    """Objects below the old floor: an earlier expiry did not come to its end."""


async def plan(ledger: Ledger, store: ExpiringStore, chain: Chain, before_ms: int, loaded: int | None) -> Expiry:
    """Objects from the floor on whose records are all older than ``before_ms``, up to the first that is not.

    ``loaded``: the table's next start; what it has not passed stays. ``None``: it is not asked.
    """
    standing = await ledger.floor_set(chain)
    stays, due = "", standing.floor
    floor, last_ms = standing.floor, standing.last_ms
    candidate: RawObject | None = None  # may leave, if another one follows
    objects = rows = 0
    async for link in ledger.objects(chain, standing.floor):
        if link.start != due:
            stays = f"offsets {due} to {link.start - 1} are in no object: mend that first (`tidemark audit`)"
            break
        if candidate is not None:
            objects, rows, floor = objects + 1, rows + candidate.count, candidate.next_start
            last_ms = max((ms for ms in (last_ms, candidate.last_ms) if ms is not None), default=None)
        due, candidate = link.next_start, link
        stays = _why(link, before_ms, loaded)
        if stays:
            break
    else:
        stays = "the newest object stays" if candidate is not None else "there is no object"
    left_over = 0
    async for _key in _below(ledger, store, chain, standing.floor):
        left_over += 1
    return Expiry(
        chain=chain,
        floor_was=standing.floor,
        floor=floor,
        last_ms=last_ms,
        objects=objects,
        rows=rows,
        stays=stays,
        left_over=left_over,
    )


async def expire(
    ledger: Ledger, store: ExpiringStore, expiry: Expiry, by: str, progress: Callable[[int], None] = lambda _done: None
) -> int:
    """Raise the floor, then delete all that lies below it; how many objects went. Raises ``StoreUnavailable``.

    A floor that others have raised further stands, and then more goes.
    """
    floor = await _raised(ledger, store, expiry, by)
    batch: list[str] = []
    done = 0
    async for key in _below(ledger, store, expiry.chain, floor.floor):
        batch.append(key)
        if len(batch) == DELETED_AT_ONCE:
            await store.delete(batch)
            done += len(batch)
            progress(done)
            batch = []
    await store.delete(batch)
    return done + len(batch)


async def _raised(ledger: Ledger, store: ExpiringStore, expiry: Expiry, by: str) -> Floor:
    """The floor as it stands afterwards: ours, or a higher one."""
    key = ledger.keys.floor(expiry.chain)
    wanted = Floor(
        floor=expiry.floor,
        last_ms=expiry.last_ms,
        set_at=datetime.now(UTC).isoformat(timespec="seconds"),
        set_by=by,
    )
    for _attempt in range(RAISES_MAX):
        there = await store.tagged(key)
        standing = Floor() if there is None else read_floor(key, there.body)
        if standing.floor >= wanted.floor:
            return standing
        try:
            if there is None:
                await store.create(key, msgspec.json.encode(wanted), {})
            else:
                await store.replace(key, msgspec.json.encode(wanted), there.tag)
        except SlotTaken:
            continue
        return wanted
    raise StoreUnavailable(f"{key!r}: others keep changing it; is another expiry at work?")


async def _below(ledger: Ledger, store: ExpiringStore, chain: Chain, floor: int) -> AsyncIterator[str]:
    """Keys of the objects that begin below ``floor``, oldest first."""
    prefix, end = ledger.keys.chain(chain), ledger.keys.before(chain, floor)
    after, more = prefix, True
    while more:
        page = await store.keys_after(prefix, after)
        for key in page.keys:
            if key >= end:
                return
            yield key
        more, after = page.more and bool(page.keys), page.keys[-1] if page.keys else after


def _why(link: RawObject, before_ms: int, loaded: int | None) -> str:
    """Why an object must stay; ``""``: it may leave, unless it is the newest."""
    if link.last_ms is not None and link.last_ms >= before_ms:
        return f"the object at {link.start} holds younger records"
    if loaded is not None and link.next_start > loaded:
        return f"the table has not passed offset {max(link.start, loaded)}"
    return ""
