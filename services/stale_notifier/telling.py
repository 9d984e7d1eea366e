"""One group that is due: decide, keep the notice, deliver it, keep the receipt.

The group's item is claimed by a swap that moves its due time, and each later swap is refused to whoever was overtaken.
A notice is kept before it is sent, so that after a death between the two the next holder sends the same bytes under the
same keys, and its receivers see a repetition.
"""

import random
import time
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from services.stale_notifier.delivery import Delivery, Owners
from services.stale_notifier.grouping import (
    FALLBACK_S_MAX,
    Close,
    Count,
    Line,
    Repost,
    Resolve,
    Tell,
    Timing,
    Wait,
    accepted,
    candidates,
    closing,
    decide,
    given_up,
    looked,
    pending,
    postponed,
    resolved,
)
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, Kind, Receipt
from services.stale_notifier.notices import About, notice_bytes, read_notice
from services.stale_notifier.ports import Counts, Groups, Versions
from shared import metrics
from shared.logs import get_logger
from shared.parked.groups import Group, OpenGroup, Pending, Told

log = get_logger(__name__)

NO_CHANNEL_S = 300.0
"""How often a group is looked at, and complained of, that nobody can be told of."""


class TellingLimits(Struct, frozen=True, kw_only=True):
    lease_s: float
    grace_s: float
    namespace: str = ""
    runbook_url: str = ""


class _Attempt(Struct):
    """What became of one attempt at a pending notice."""

    receipts: list[Told]
    refused: list[str]
    retry_after_s: float | None = None


class Teller:
    def __init__(
        self,
        groups: Groups,
        counts: Counts,
        versions: Versions,
        owners: Owners,
        delivery: Delivery,
        limits: TellingLimits,
        timing: Timing,
        worker: str,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._groups, self._counts, self._versions = groups, counts, versions
        self._owners, self._delivery, self._limits, self._timing = owners, delivery, limits, timing
        self._worker, self._clock_ms, self._unit = worker, clock_ms, random_unit

    async def work(self, hint: OpenGroup) -> None:
        """Take one due group a step further. Raises ``ParkedUnavailable``: then it comes due again after the lease."""
        group = await self._claim(hint)
        if group is None:
            return
        lines = self._delivery.lines(group.owner)
        if self._owners.owner_of(group.cause.entity, group.owner) != group.owner:
            await self._groups.swap(resolved(group, self._clock_ms()))  # its rows come in with their new owner's
        elif not lines:
            await self._nobody_to_tell(group)
        elif group.pending is not None:
            await self._deliver(group, group.pending, lines)
        else:
            await self._decide(group, lines)

    async def _claim(self, hint: OpenGroup) -> Group | None:
        group = await self._groups.get(hint.owner, hint.cause_id)
        if group is None or group.phase == "resolved" or group.due_ms > self._clock_ms():
            return None
        return await self._leased(group)

    async def _leased(self, group: Group) -> Group | None:
        due_ms = self._clock_ms() + int(self._limits.lease_s * 1000)
        return await self._groups.swap(replace(group, due_ms=due_ms, lease_own=self._worker))

    async def _decide(self, group: Group, lines: Sequence[Line]) -> None:
        count = await self._counts.count(group.cause)
        now_ms = self._clock_ms()
        match decide(group, count, lines, now_ms, self._timing):
            case Wait(until_ms):
                after = group if count.events == 0 else looked(group, until_ms)
                await self._groups.swap(replace(after, due_ms=until_ms))
            case Close():
                await self._groups.swap(closing(group, now_ms, self._timing))
            case Resolve():
                await self._groups.swap(resolved(group, now_ms))
            case Repost(to):
                await self._repost(group, to)
            case Tell() as tell:
                notice = notice_bytes(group, tell, count, await self._about(group), now_ms)
                kept = await self._groups.swap(pending(group, tell, notice, count.events, now_ms))
                if kept is not None and kept.pending is not None:
                    await self._deliver(kept, kept.pending, lines)

    async def _about(self, group: Group) -> About:
        return About(
            namespace=self._limits.namespace,
            contact=self._owners.contact(group.owner),
            runbook_url=self._limits.runbook_url,
            versions=await self._versions.refusing(group.cause),
            grace_s=self._limits.grace_s,
        )

    async def _deliver(self, group: Group, made: Pending, lines: Sequence[Line]) -> None:
        """One attempt. The lease is renewed before each channel, for any of them may take its time to fail."""
        attempt = _Attempt([], [])
        now_ms = self._clock_ms()
        usable = self._delivery.usable(group.owner)
        for name in made.to or candidates(group, made, lines, usable, now_ms):
            held = await self._leased(group)
            if held is None:
                return
            group = held
            await self._send(group, made, name, attempt)
            if attempt.receipts and not made.to:
                break
        await self._groups.swap(self._after(group, made, attempt))

    async def _send(self, group: Group, made: Pending, name: str, attempt: _Attempt) -> None:
        try:
            receipt = await self._delivery.send(group.owner, name, read_notice(made.notice))
        except ChannelUnavailable as error:
            known = [after_s for after_s in (attempt.retry_after_s, error.retry_after_s) if after_s is not None]
            attempt.retry_after_s = min(known, default=None)
        except ChannelRefused:
            attempt.refused.append(name)
        else:
            attempt.receipts.append(_told(receipt, name, made))

    def _after(self, group: Group, made: Pending, attempt: _Attempt) -> Group:
        now_ms = self._clock_ms()
        names_channels = bool(made.to)
        if names_channels:  # those that will never take it are no longer waited for
            made = replace(made, to=tuple(name for name in made.to if name not in attempt.refused))
            escalated = tuple(attempt.refused) if made.kind == Kind.ESCALATION else ()
            group = replace(group, pending=made, escalated=group.escalated + escalated)
        if attempt.receipts:
            return accepted(group, attempt.receipts, now_ms, self._timing)
        is_old = now_ms - made.made_ms >= FALLBACK_S_MAX * 1000
        if names_channels and (is_old or not made.to):
            return given_up(group, now_ms, self._timing)
        if not names_channels:
            log.error("group_not_told", owner=group.owner, group=group.cause.id, entity=group.cause.entity,
                      attempts=made.attempts + 1, since_ms=made.made_ms)  # fmt: skip
        return postponed(group, now_ms, attempt.retry_after_s, self._unit())

    async def _repost(self, group: Group, to: Sequence[str]) -> None:
        """The newest notice again, to receivers that forget. A failure waits for the next time."""
        for name in to:
            try:
                await self._delivery.send(group.owner, name, read_notice(group.newest))
            except (ChannelUnavailable, ChannelRefused):
                continue  # counted and logged where it was sent
        now_ms = self._clock_ms()
        await self._groups.swap(replace(group, posted_ms=now_ms, due_ms=now_ms))

    async def _nobody_to_tell(self, group: Group) -> None:
        metrics.NOTICES.labels(self._owners.owner_label(group.owner), "", "no_channel").inc()
        log.error("owner_has_no_channel", owner=group.owner, entity=group.cause.entity, group=group.cause.id,
                  action="give the owner channels, or set default_owner; nothing is deleted until then")  # fmt: skip
        count = await self._counts.count(group.cause)
        now_ms = self._clock_ms()
        if count == Count() and group.closing_ms is not None:
            await self._groups.swap(resolved(group, now_ms))
            return
        due_ms = now_ms + int(NO_CHANNEL_S * 1000)
        closing_ms = now_ms if count == Count() else None
        await self._groups.swap(replace(group, closing_ms=closing_ms, due_ms=due_ms))


def _told(receipt: Receipt, name: str, made: Pending) -> Told:
    return Told(
        channel=name,
        dedup_key=receipt.dedup_key,
        provider_id=receipt.provider_id,
        status=receipt.status,
        at_ms=receipt.at_ms,
        number=made.number,
        kind=made.kind,
    )
