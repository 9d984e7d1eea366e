"""What was seen: which changes of one entity are in the books, so that they are not published twice.

An entry is 44 bytes, without header, so that pages of entries join by concatenation. Memory is bounded by the reading,
which moves the floor up when ``memory_bytes`` reaches its limit.
"""

from collections.abc import Iterable, Iterator
from struct import Struct as Layout
from typing import Literal, NamedTuple

ENTRY = Layout("<8s16sIqq")
ENTRY_BYTES = ENTRY.size
KEY_BYTES = 8
"""Of the key's hash. Two keys that share them are told apart by their identities, so that a collision can repeat a
change, and never hide one."""

ANCHORED = 1 << 31
"""Bit of the packed occurrence: the entry's time is where it was shown, since its own can't be read or trusted."""

NO_FLOOR = 2**62

_MEMORY_BYTES = {"rows": 280, "events": 160}
"""Per entry, resident: hash table slots, two bytes objects, the page's lists (measured in the tests)."""


class Entry(NamedTuple):
    """One change that is published or parked. ``event_id(identity, occurrence)`` is its id."""

    key: bytes  # the first 8 bytes of the key's hash
    identity: bytes
    occurrence: int
    updated_us: int
    shown_us: int


def unpack(entries: bytes) -> Iterator[Entry]:
    """The entries of a stored page, in the order shown. One change may stand in several pages."""
    for key, identity, occurrence, updated_us, shown_us in ENTRY.iter_unpack(entries):
        yield Entry(key, identity, occurrence & ~ANCHORED, updated_us, shown_us)


class _Page(NamedTuple):
    min_us: int
    max_us: int
    identities: list[bytes]
    keys: list[bytes]  # empty when the source shows events: only rows are told apart by their last state


class Seen:
    """The seen changes above the floor. Looked up by ``numbering``, written only by ``add`` and ``drop_below``."""

    def __init__(self, shows: Literal["rows", "events"], republish_before_us: int | None = None) -> None:
        self.counts: dict[bytes, int] = {}  # identity → how many of its occurrences are recorded
        self.last: dict[bytes, bytes] = {}  # rows: key → identity of its last recorded state
        self.anchors: dict[bytes, int] = {}  # identity → the time under which an undated event is recorded
        self.settled_keys: set[bytes] | None = None if republish_before_us is None else set()
        """After an unclean takeover: the keys whose last state was recorded by us. None: all are trusted."""
        self._republish_before_us = republish_before_us
        self._rows = shows == "rows"
        self._pages: list[_Page] = []
        self._entry_bytes = _MEMORY_BYTES[shows]
        self.entries = 0

    @classmethod
    def load(
        cls, shows: Literal["rows", "events"], pages: Iterable[bytes], republish_before_us: int | None = None
    ) -> "Seen":
        """From stored pages in the order of their commits. Takes about a second per million entries: use a thread."""
        seen = cls(shows, republish_before_us)
        for entries in pages:
            seen.add(entries)
        return seen

    @property
    def memory_bytes(self) -> int:
        """Memory held, estimated."""
        return self.entries * self._entry_bytes

    def add(self, entries: bytes) -> None:
        """Take in a page whose transaction has committed."""
        if not entries:
            return
        identities: list[bytes] = []
        keys: list[bytes] = []
        times: list[int] = []
        counts = self.counts
        for key, identity, packed, updated_us, shown_us in ENTRY.iter_unpack(entries):
            occurrence = packed & ~ANCHORED
            if counts.get(identity, 0) <= occurrence:
                counts[identity] = occurrence + 1
            if packed != occurrence:
                self.anchors[identity] = max(updated_us, self.anchors.get(identity, updated_us))
            identities.append(identity)
            times.append(updated_us)
            if self._rows:
                keys.append(key)
                self.last[key] = identity
                if self.settled_keys is not None and shown_us >= (self._republish_before_us or 0):
                    self.settled_keys.add(key)
        self._pages.append(_Page(min(times), max(times), identities, keys))
        self.entries += len(identities)

    def drop_below(self, floor_us: int, entries_max: int | None = None) -> None:
        """Forget pages that hold nothing at or above the floor: some ``entries_max`` of them, the rest another time.

        What else is older stays with its page: it does no harm.
        """
        kept: list[_Page] = []
        left = self.entries if entries_max is None else entries_max
        for page in self._pages:
            if page.max_us >= floor_us or left <= 0:
                kept.append(page)
                continue
            left -= len(page.identities)
            self._forget(page, floor_us)
        self._pages = kept

    def trust_all(self) -> None:
        """The first lookback after an unclean takeover has completed."""
        self.settled_keys = None

    def stamp_before(self, tick_us: int) -> int | None:
        """A recorded stamp below, the nearest that is found at little cost (the ends of pages); None: none is known."""
        stamps = [us for page in self._pages for us in (page.min_us, page.max_us) if us < tick_us]
        return max(stamps, default=None)

    def more_than(self, rows: int, since_us: int) -> bool:
        """Are more rows than so many known to be dated since then? (Of a page that reaches further back: none.)"""
        known: set[bytes] = set()
        for page in self._pages:
            if page.min_us >= since_us:
                known.update(page.keys or page.identities)
                if len(known) > rows:
                    return True
        return False

    def floor_for(self, bytes_max: int, arriving: bytes) -> int | None:
        """The least time below which pages must go so that all fits once ``arriving`` is added; None: it fits.

        ``NO_FLOOR``: it would not fit if all were gone.
        """
        excess = self.entries + len(arriving) // ENTRY_BYTES - bytes_max // self._entry_bytes
        if excess <= 0:
            return None
        for page in sorted(self._pages, key=lambda page: page.max_us):
            excess -= len(page.identities)
            if excess <= 0:
                return page.max_us + 1
        return NO_FLOOR

    def _forget(self, page: _Page, floor_us: int) -> None:
        # An identity holds its time, so that all its entries lie below the floor, whatever page they stand in; only
        # undated ones may have been recorded anew above it.
        for identity in page.identities:
            if self.anchors.get(identity, floor_us - 1) < floor_us:
                self.counts.pop(identity, None)
                self.anchors.pop(identity, None)
        for key, identity in zip(page.keys, page.identities, strict=self._rows):
            if self.last.get(key) == identity and identity not in self.counts:
                del self.last[key]
        self.entries -= len(page.identities)
