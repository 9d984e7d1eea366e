"""What the poller has recorded as seen, up to a fixed cursor: pages in Postgres, then those that moved to the bucket.

In this order, since a page leaves Postgres only when its object exists. Each page is judged by what it says of itself:
Postgres's rows by the bounds beside them, objects by the digest in their names.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import zstandard

from services.cli.audit_records import Law, SeenPageOf
from shared.checkpoints.model import SeenPage
from shared.events.identity import event_id
from shared.producer.seen import ANCHORED, ENTRY
from shared.raw.objects import KeyPage, Stored

OBJECT_BYTES_MAX = 256 * 1024 * 1024
"""An object that inflates beyond this was not written by us."""
NEVER_US = 2**62


class Pages(Protocol):
    """What is needed of ``Checkpoints``. Raises ``CheckpointsUnavailable``."""

    def all_seen(self, entity: str, after_seq: int = -1) -> AsyncIterator[SeenPage]: ...


class Objects(Protocol):
    """What is needed of ``S3Store``. Each call is one request, and may raise ``StoreUnavailable``."""

    async def read(self, key: str) -> Stored | None: ...

    async def keys_after(self, prefix: str, after: str, limit: int = 1000) -> KeyPage: ...


async def read_seen(law: Law, pages: Pages, objects: Objects, prefix: str, progress: Callable[[int], None]) -> None:
    """Fill ``law.seen`` and ``law.pages``. ``prefix``: of the entity's objects, ending in ``/``."""
    async for page in pages.all_seen(law.rules.entity):
        own = SeenPageOf(name=f"seen_page {page.seq} in Postgres", problem=problem_of(page))
        if not await asyncio.to_thread(_take, law, own, page.entries):
            break  # committed behind the fixed cursor, as is all that follows
        progress(law.seen.count)
    _bound_by_neighbours(law.pages)
    after, more = "", True
    while more:
        listed = await objects.keys_after(prefix, after)
        for key in listed.keys:
            stored = await objects.read(key)
            if stored is not None:
                await asyncio.to_thread(_take_object, law, key, prefix, stored.body)
            progress(law.seen.count)
        more, after = listed.more and bool(listed.keys), listed.keys[-1] if listed.keys else after


async def read_recorded_since(law: Law, pages: Pages, after_seq: int) -> frozenset[bytes]:
    """Ids that were recorded behind ``after_seq``: since the audit began."""
    found: set[bytes] = set()
    async for page in pages.all_seen(law.rules.entity, after_seq):
        if problem_of(page) is None:
            found.update(bytes.fromhex(event_id(entry[1], entry[2] & ~ANCHORED)) for entry in _unpacked(page.entries))
    return frozenset(found)


def problem_of(page: SeenPage) -> str | None:
    """What shows that a page of Postgres is not as it was committed."""
    if len(page.entries) % ENTRY.size:
        return f"its length ({len(page.entries)} bytes) is no multiple of an entry's"
    if not page.entries:
        return "it has no entries"
    times = [entry[3] for entry in _unpacked(page.entries)]
    if (min(times), max(times)) != (page.min_us, page.max_us):
        return "its entries are not dated as the row says (min_us, max_us)"
    return None


def _take(law: Law, page: SeenPageOf, entries: bytes) -> bool:
    """False: it was committed behind the fixed cursor."""
    if page.problem is not None:
        law.pages.append(page)
        return True
    packed = _unpacked(entries)
    stamps = [entry[4] for entry in packed]
    page.shown_first_us, page.shown_last_us = min(stamps), max(stamps)
    if page.shown_first_us > law.limit_us:
        return False
    number = len(law.pages)
    law.pages.append(page)
    pack = law.seen.layout.pack
    law.seen.add(
        pack(
            bytes.fromhex(event_id(identity, occurrence & ~ANCHORED)),
            key,
            updated_us,
            shown_us,
            number,
            occurrence >= ANCHORED,
        )
        for key, identity, occurrence, updated_us, shown_us in packed
        if shown_us <= law.limit_us
    )
    return True


def _take_object(law: Law, key: str, prefix: str, body: bytes) -> None:
    page = SeenPageOf(name=f"object {key}")
    entries = b""
    try:
        entries = inflated(body)
    except zstandard.ZstdError as error:
        page.problem = f"can't be unpacked ({error})"
    name = key.removeprefix(prefix).removesuffix(".zst").split("-")
    if page.problem is None and hashlib.blake2b(entries, digest_size=16).hexdigest() != name[-1]:
        page.problem = "its content is not what its name says (blake2b)"
    if page.problem is not None:
        stamps = [entry[4] for entry in _unpacked(entries[: len(entries) // ENTRY.size * ENTRY.size])]
        page.shown_first_us, page.shown_last_us = min(stamps, default=0), max(stamps, default=law.limit_us)
    _take(law, page, entries)


def _bound_by_neighbours(pages: list[SeenPageOf]) -> None:
    """A falsified page's stamps prove nothing: it was shown behind the page before it, and before the one behind."""
    after_us = 0
    for page in pages:
        if page.problem is None:
            after_us = page.shown_last_us + 1
        else:
            page.shown_first_us = after_us
    before_us = NEVER_US
    for page in reversed(pages):
        if page.problem is None:
            before_us = page.shown_first_us - 1
        else:
            page.shown_last_us = before_us


def inflated(body: bytes) -> bytes:
    """Raises ``ZstdError``."""
    with zstandard.ZstdDecompressor().stream_reader(body) as reader:
        entries = reader.read(OBJECT_BYTES_MAX + 1)
    if len(entries) > OBJECT_BYTES_MAX:
        raise zstandard.ZstdError(f"inflates beyond {OBJECT_BYTES_MAX} bytes")
    return bytes(entries)


def _unpacked(entries: bytes) -> list[tuple[bytes, bytes, int, int, int]]:
    return list(ENTRY.iter_unpack(entries))
