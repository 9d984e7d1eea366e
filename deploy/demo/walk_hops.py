"""Where one change is now, as ``tidemark trace`` sees it: the walk asks again and again until it has come to a hop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout
from msgspec import Struct, field

from services.cli.edges import Edges
from services.cli.trace import Tracing
from shared.entities import Entity

POLL_S = 0.5
RECEIVER_S = 5.0
_T = TypeVar("_T")


class Shown(Struct, frozen=True):
    at: str
    page: str


class Record(Struct, frozen=True):
    chain: str
    offset: int
    object_key: str | None = None
    line: int = 0
    attempt: int = 0
    table_version: int | None = None


class Parked(Struct, frozen=True):
    state: str
    reason: str
    path: str
    detail: str
    since: str
    tries: int
    stale_why: str = ""


class Traced(Struct, frozen=True):
    """One event, as the document of ``tidemark trace`` has it."""

    event_id: str
    fate: str
    shown: list[Shown] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    archived: list[str] = field(default_factory=list)

    @property
    def in_raw(self) -> Record | None:
        return next((record for record in self.records if record.object_key is not None), None)


class Trace(Struct, frozen=True):
    events: list[Traced]
    table_version: int | None = None


class Stuck(Exception):
    """A change did not come to a hop in time."""

    def __init__(self, hop: str, what: str, look_at: str) -> None:
        super().__init__(f"{what}; look at: {look_at}")
        self.hop = hop
        self.what = what
        self.look_at = look_at


async def traced(edges: Edges, entity: Entity, key: str, event_id: str, since_ms: int) -> tuple[Traced, int | None]:
    """The event, of what was published since then, and the version of the table, if there is one."""
    tracing = Tracing(edges, entity, since_ms)
    await tracing.find(key, None)
    found = msgspec.convert(tracing.outcome(None, 1000).document, Trace)
    known = {event.event_id: event for event in found.events}
    return known.get(event_id, Traced(event_id=event_id, fate="unknown")), found.table_version


async def until(seen: Callable[[], Awaitable[_T | None]], within_s: float) -> _T | None:
    """What ``seen`` returns when it is not ``None`` any more; ``None``: it still was after so long."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while (found := await seen()) is None and loop.time() < deadline_s:  # noqa: ASYNC110  # it asks real stores
        await asyncio.sleep(POLL_S)
    return found


async def accepted_notices(url: str) -> list[dict[str, Any]]:
    """Those that the receiver shows, oldest first. Raises ``Stuck``: it doesn't answer."""
    try:
        async with ClientSession(timeout=ClientTimeout(total=RECEIVER_S)) as session, session.get(url) as answer:
            answer.raise_for_status()
            notices: list[dict[str, Any]] = await answer.json()
            return notices
    except (ClientError, TimeoutError, ValueError) as error:
        raise Stuck("receiver", f"{url} does not answer ({error})", "the receiver's log; BANK_NOTICES_URL") from error
