"""A closed window, read once more from the source itself: what it shows there must have been seen.

Closed: older than the last completed cap lookback by the lateness cap. What becomes visible there now came later than
the cap allows, and nothing else would ever find it. The same reading that polls reads here, with an empty memory, so
that paging, ties and numbering are its own; nothing is stamped, published or recorded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import IO, NamedTuple, Protocol

from msgspec import Struct, field

from services.cli.audit_findings import NAMED_MAX, read_again
from services.cli.audit_records import Finding, Law
from services.cli.audit_spill import PARTS, Spill
from services.cli.outcome import moment
from shared.checkpoints.model import CursorMove, CursorState, Standing
from shared.entities import Entity, time_us
from shared.events.identity import Identifier
from shared.events.model import Event, Sighting
from shared.events.split import MalformedPage, split_page
from shared.producer.capture import reading_limits
from shared.producer.feed import FeedAnswer, FeedRequest, SourceError
from shared.producer.reading import Answer, Reading, ReadingFault, Wait
from shared.producer.seen import Seen

SHOWN_LAYOUT = "<16sqQ"
TRIES = 5
RETRY_S = 2.0
REST_S_MAX = 120.0
ASKED_MAX = 1_000_000
"""Requests of one window."""
BY_POLLER = "reading"


class Feed(Protocol):
    """What is needed of ``ChangeFeed``."""

    async def fetch(self, request: FeedRequest) -> FeedAnswer:
        """Raises ``SourceError``."""


class Window(Struct, frozen=True):
    """From ``start_us`` to just before ``end_us``. ``skipped``: ranges that an operator stepped over."""

    start_us: int
    end_us: int
    skipped: tuple[tuple[int, int], ...] = ()

    def __contains__(self, us: int) -> bool:
        return self.start_us <= us < self.end_us and not any(low <= us < high for low, high in self.skipped)


class Shown(Struct):
    """What the source shows of a window."""

    window: Window
    spill: Spill
    keys: IO[str]
    """One line for each event: its key, for those that are to be named."""
    requests: int = 0
    stopped: str | None = None
    """Why the window could not be read to its end."""
    stopped_us: int = 0


class _One(NamedTuple):
    id: bytes
    updated_us: int
    place: int


class Missing(Struct):
    count: int = 0
    listed: list[_One] = field(default_factory=list)


def closed_window(entity: Entity, standing: Standing, moves: Sequence[CursorMove], window_s: float) -> Window:
    """The window that ends where nothing can be late any more within the cap, and begins where reading did."""
    end_us = standing.state.cap_swept_us - int(entity.lateness_cap_s * 1e6)
    by_hand = [move for move in moves if move.who != BY_POLLER and move.cursor_from_us != move.cursor_to_us]
    begun_us = 0
    if entity.start_at == "now":
        begun_us = min(
            [standing.state.start_us or standing.state.cursor_us, *(move.cursor_from_us for move in by_hand)]
        )
    elif entity.start_at != "beginning":
        begun_us = time_us(entity.start_at)
    skipped = tuple(
        (move.cursor_from_us, move.cursor_to_us) for move in by_hand if move.cursor_from_us < move.cursor_to_us
    )
    return Window(max(end_us - int(window_s * 1e6), begun_us), end_us, skipped)


async def read_window(
    entity: Entity,
    feed: Feed,
    shown: Shown,
    progress: Callable[[int], None],
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Page by page until the window's end, or until the source shows nothing more. Raises ``SourceError``."""
    window = shown.window
    if window.start_us >= window.end_us:
        return
    state = CursorState(cursor_us=window.start_us, swept_us=window.start_us, cap_swept_us=window.start_us)
    reading = Reading(entity.rules, reading_limits(entity), state, Seen(entity.rules.shows))
    identifier = Identifier(entity.rules)
    monotonic_s, stamp_us = 0.0, 1
    for _ in range(ASKED_MAX):
        request = reading.next_request(monotonic_s)
        if isinstance(request, Wait):
            return  # all that there is has been read
        answer, sightings = await _asked(feed, request, identifier, entity.records, pause)
        shown.requests += 1
        judged = Answer(sightings=sightings, server_date_us=answer.server_date_us, requested_us=time.time_ns() // 1_000)
        try:
            page = reading.judge(request, judged, stamp_us)
        except ReadingFault as fault:
            shown.stopped, shown.stopped_us = str(fault), reading.state.cursor_us
            return
        stamp_us += len(sightings) + 1
        await asyncio.to_thread(_take, shown, page.events)
        reading.apply(page)
        progress(shown.spill.count)
        if page.pause is not None:
            shown.stopped, shown.stopped_us = page.pause, reading.state.cursor_us
            return
        if reading.state.cursor_us >= window.end_us or (page.run_ended and request.lane == "tail"):
            return
        monotonic_s += 0.001
    shown.stopped, shown.stopped_us = f"more than {ASKED_MAX:,} requests", reading.state.cursor_us


async def _asked(
    feed: Feed,
    request: FeedRequest,
    identifier: Identifier,
    records: str,
    pause: Callable[[float], Awaitable[object]],
) -> tuple[FeedAnswer, list[Sighting]]:
    """One whole answer. A source that rests or fails is asked again, some times."""
    for left in reversed(range(TRIES)):
        try:
            answer = await feed.fetch(request)
            raws = await asyncio.to_thread(split_page, answer.body, records)
            return answer, await asyncio.to_thread(identifier.identify, raws)
        except (SourceError, MalformedPage) as error:
            if not left:
                raise
            told_s = getattr(error, "retry_after_s", None)
            await pause(min(RETRY_S if told_s is None else told_s, REST_S_MAX))
    raise AssertionError("the last try returns or raises")


def _take(shown: Shown, events: Sequence[Event]) -> None:
    """Rows whose key or time can't be read are left out: they have no place in time."""
    pack = shown.spill.layout.pack
    packed = []
    for event in events:
        sighting = event.sighting
        if sighting.key is None or sighting.updated_us not in shown.window:
            continue
        shown.keys.seek(0, 2)
        place = shown.keys.tell()
        shown.keys.write(repr(sighting.key) + "\n")
        packed.append(pack(bytes.fromhex(event.event_id), sighting.updated_us, place))
    shown.spill.add(packed)


def unseen(law: Law, shown: Shown) -> Missing:
    """What the source shows, and no store knows of."""
    found = Missing()
    for number in range(PARTS):
        known = {fields[0] for spill in (law.seen, law.raw, law.parked, law.archived) for fields in spill.part(number)}
        for one in map(_One._make, shown.spill.part(number)):
            if one.id not in known:
                found.count += 1
                if len(found.listed) < 1_000:
                    found.listed.append(one)
    return found


def finding_of(entity: str, law: Law, shown: Shown) -> Finding | None:
    missing = unseen(law, shown)
    if not missing.count:
        return None
    listed = sorted(missing.listed, key=lambda one: one.updated_us)
    window = shown.window
    return Finding(
        kind="source_unseen",
        where="",
        count=missing.count,
        text=f"the source shows {missing.count:,} changes dated {moment(window.start_us)} to {moment(window.end_us)} "
        "that were never seen: they became visible later than lateness_cap_s after their stamp, or were passed over",
        names=tuple(
            f"key {_key(shown, one)}, dated {moment(one.updated_us)}: {one.id.hex()}" for one in listed[:NAMED_MAX]
        ),
        repair=read_again(entity, [one.updated_us for one in listed]),
    )


def _key(shown: Shown, one: _One) -> str:
    shown.keys.seek(one.place)
    return shown.keys.readline().rstrip("\n")
