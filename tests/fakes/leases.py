"""The parked table and Kafka as re-driving sees them, in memory: they note what happens in which order."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

from shared.events.identity import key_hash
from shared.events.model import Reason, RejectedEvent
from shared.kafka.records import NotPublished, Outgoing, parse_headers
from shared.parked.leases import Body, Claimed, Due
from shared.parked.model import ParkedEvent, State, shard
from shared.parked.policy import Next
from shared.parked.transitions import LeaseLost

AT_MS = 1_760_000_000_000
DAY_MS = 86_400_000


class HandClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return AT_MS + int((self.now_s - 1_000.0) * 1000)


def hint(number: int, *, entity: str = "payments", ver: int = 1, reason: Reason = Reason.KAFKA_UNAVAILABLE) -> Due:
    return Due(f"P#{number}", f"E#{number}", State.PARKED, ver, entity, reason, AT_MS, f"{number:032x}")


def claimed_of(
    due: Due, raw: bytes, lease_until_s: float, *, fingerprint: str | None = None, **changes: Any
) -> Claimed:
    number = int(due.item_id, 16)
    event = ParkedEvent(
        entity=due.entity,
        topic="cdc.payments",
        key=str(number),
        key_hash=key_hash(str(number)),
        updated_us=AT_MS * 1000,
        event_id=due.item_id,
        rank=number,
        tiebreak=3,
        reason=due.reason,
        raw=raw,
        fingerprint=fingerprint,
        at_us=AT_MS * 1000,
    )
    values: dict[str, Any] = {
        "att": 0, "tries": 1, "tries_free": 0, "tries_before": 0, "first_at_ms": AT_MS,
        "deadline_ms": AT_MS + 7 * DAY_MS, "round": 0, "key_cut": False, "errs": (),
        "arch_uri": None, "arch_sha": None, "ntf": (), "grace_until_ms": None,
        "edits": (), "original": Body("", sk="B#"), "nonce": "n", "lease_token": f"t{number}", "lease_owner": "w",
        "lease_until_ms": 0, "done_token": None, "stale_why": "",
    }  # fmt: skip
    values |= {"pk": due.pk, "sk": due.sk, "item_id": due.item_id, "event": event, "state": due.state, "ver": due.ver}
    return Claimed(**{**values, "due_ms": AT_MS, "token": f"t{number}", "lease_until_s": lease_until_s, **changes})


class FakeTable:
    """``rows``: item id → raw bytes. ``fails``: (operation, item id) → what it raises, once each."""

    def __init__(self, clock: HandClock, raws: dict[str, bytes]) -> None:
        self.clock = clock
        self.rows = raws
        self.did: list[tuple[str, str]] = []
        self.said: dict[str, Any] = {}
        self.fails: dict[tuple[str, str], list[Exception]] = {}
        self.changes: dict[str, Any] = {}
        self.lease_s = 54.0
        self.claim_s = 0.0  # what each claim takes

    async def claim(self, hint: Due, worker: str, lease_s: float) -> Claimed | None:
        until_s = self.clock.now_s + self.lease_s
        self.clock.now_s += self.claim_s
        await self._do("claim", hint.item_id)
        if hint.item_id not in self.rows:
            return None
        return claimed_of(hint, self.rows[hint.item_id], until_s, **self.changes)

    async def published(self, claimed: Claimed) -> None:
        await self._do("published", claimed.item_id)
        if self.rows.pop(claimed.item_id, None) is None:
            raise LeaseLost(claimed, "published", gone=True)

    async def failed(
        self,
        claimed: Claimed,
        after: Next,
        error: RejectedEvent | str,
        *,
        maybe_sent: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        await self._do(after.action, claimed.item_id)
        self.said[claimed.item_id] = (after, error, maybe_sent, fingerprint)

    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool, free: bool) -> None:
        await self._do("again", claimed.item_id)
        self.said[claimed.item_id] = (error, counts, free)

    async def stale(self, claimed: Claimed, why: str) -> None:
        await self._do("stale", claimed.item_id)
        self.said[claimed.item_id] = why

    async def due(self, queue: Literal["r", "n"], shard_number: int, now_ms: int, limit: int) -> list[Due]:
        await asyncio.sleep(0)
        mine = [hint(int(item_id, 16)) for item_id in self.rows if shard(item_id) == shard_number]
        return mine[:limit]

    async def _do(self, operation: str, item_id: str) -> None:
        await asyncio.sleep(0)
        if failures := self.fails.get((operation, item_id)):
            raise failures.pop(0)
        self.did.append((operation, item_id))


class FakeBroker:
    """Acknowledges what ``outcome`` doesn't object to; ``meanwhile`` is called while records are on their way."""

    def __init__(self, table: FakeTable) -> None:
        self._table = table
        self.outcome: Callable[[Outgoing], NotPublished | None] = lambda _: None
        self.meanwhile: Callable[[], None] = lambda: None
        self.calls: list[list[Outgoing]] = []
        self.is_up = True

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[NotPublished | None]:
        self.calls.append(list(records))
        self.meanwhile()
        await asyncio.sleep(0)
        outcomes = [self.outcome(record) for record in records]
        for record, why in zip(records, outcomes, strict=True):
            if why is None:
                self._table.did.append(("acknowledged", parse_headers(record.headers).event_id or ""))
        return outcomes

    async def reachable(self) -> bool:
        return self.is_up


def item_id(number: int) -> str:
    return f"{number:032x}"
