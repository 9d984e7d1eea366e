"""What is to be done with claimed rows, and the record that one becomes. Pure."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from shared.events.model import Event, Reason, RejectedEvent, Sighting
from shared.kafka.records import Outgoing, event_headers
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.leases import Claimed
from shared.parked.policy import Next, after_failure
from shared.parked.transitions import standing

SOON_MS = 1_000


class Sendable(Struct, frozen=True):
    row: Claimed
    found: Retriable


class Refused(Struct, frozen=True):
    row: Claimed
    after: Next
    error: RejectedEvent
    fingerprint: str | None = None


def judge(analyst: Analyst, rows: Sequence[Claimed], now_ms: int) -> tuple[list[Sendable], list[Refused]]:
    """CPU only, some ten microseconds a row: runs in a thread. A row that our own code fails on spoils only itself."""
    sendable: list[Sendable] = []
    refused: list[Refused] = []
    for row in rows:
        try:
            found = analyst.analyse(row.event, now_ms * 1000)
            if isinstance(found, Retriable):
                record_of(Sendable(row, found), now_ms)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this row's: the next ones must not wait for it)
            refused.append(bug(row, f"{type(error).__name__} while it was analysed", now_ms))
            continue
        if isinstance(found, Retriable):
            sendable.append(Sendable(row, found))
        else:
            refused.append(_not_yet(analyst, row, found, now_ms))
    return sendable, refused


def bug(row: Claimed, detail: str, now_ms: int) -> Refused:
    """Ours to mend: counted, so that it ends as stale and somebody hears of it."""
    return Refused(row, after_failure(standing(row), Reason.BUG, now_ms), RejectedEvent(Reason.BUG, "", detail))


def record_of(sendable: Sendable, ingest_ms: int) -> Outgoing:
    """Key, event id, ``seq`` and op as at first sight. New are the time of ingest, and what says that it is a retry."""
    row, found = sendable.row, sendable.found
    sighting = Sighting(found.raw, found.key, row.event.key_hash, row.event.updated_us, b"", found.op == "d")
    event = Event(sighting, 0, row.event.event_id, 0, row.event.rank, row.event.tiebreak)
    headers = event_headers(event, found.op, attempt=row.tries, rev=found.rev)
    return Outgoing(found.key.encode(), found.value, headers, ingest_ms)


def _not_yet(analyst: Analyst, row: Claimed, found: NotYet, now_ms: int) -> Refused:
    new = not analyst.settles(row.event.reason, row.event.fingerprint)
    after = after_failure(standing(row), found.reason, now_ms, new_fingerprint=new)
    if found.retry_at_us is not None and after.action == "hold":
        after = replace(after, due_ms=min(after.due_ms, max(found.retry_at_us // 1000, now_ms) + SOON_MS))
    return Refused(row, after, RejectedEvent(found.reason, found.path, found.why), found.fingerprint)
