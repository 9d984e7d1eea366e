"""One batch of stale rows, a step further: evidence, then the group's receipt, then, after the grace, out of the table.

The order is the promise. A row is marked as told only by a receipt of its group, and the store deletes none without
evidence, receipt and a grace that is over. Death between any two lines repeats the step with equal keys.
"""

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from msgspec import Struct

from services.stale_notifier.delivery import Owners
from services.stale_notifier.disclosure import Disclosure
from services.stale_notifier.grouping import Timing, joined, opened, row_wait_s
from services.stale_notifier.notices import facts_of
from services.stale_notifier.ports import Archives, Chains, Groups, StaleRows
from services.stale_notifier.together import all_of, those_of
from shared import metrics
from shared.logs import get_logger
from shared.parked.bodies import BodyMissing
from shared.parked.evidence import ArchiveUnavailable, EvidenceDamaged, Written
from shared.parked.groups import Group, cause_of
from shared.parked.leases import Claimed, Due, Receipt
from shared.parked.model import State
from shared.parked.transitions import BodyLost, LeaseLost, NotAllowed

log = get_logger(__name__)

JOINS_MAX = 32
NEEDS_A_PERSON_S = 3600.0
ARCHIVE_BACKOFF_S = (5.0, 600.0)

Step = Literal["archive", "tell", "finish", "wait"]

_T = TypeVar("_T")


class RowLimits(Struct, frozen=True):
    lease_s: float
    grace_s: float


def step_of(row: Claimed, now_ms: int) -> Step:
    """What is next for a stale row."""
    if row.arch_sha is None:
        return "archive"
    if not row.ntf:
        return "tell"
    return "finish" if row.grace_until_ms is not None and row.grace_until_ms <= now_ms else "wait"


class Rows:
    def __init__(
        self,
        rows: StaleRows,
        archive: Archives,
        chain: Chains,
        groups: Groups,
        owners: Owners,
        disclosures: Callable[[str], Disclosure],
        limits: RowLimits,
        timing: Timing,
        worker: str,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_s: Callable[[], float] = time.monotonic,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._rows, self._archive, self._chain, self._groups = rows, archive, chain, groups
        self._owners, self._disclosures, self._limits, self._timing = owners, disclosures, limits, timing
        self._worker, self._clock_ms, self._monotonic_s, self._unit = worker, clock_ms, monotonic_s, random_unit
        self._late = 0  # rows of the present batch whose leases were over before they were done

    async def work(self, hints: Sequence[Due]) -> bool:
        """Take each row that can be had one step further or more. False: for some the lease was too short.

        Raises ``ArchiveUnavailable`` when nothing could be archived, ``ParkedUnavailable``: then rows come due again
        after their leases.
        """
        self._late = 0
        claimed = await those_of(self._claim(hint) for hint in hints)
        metrics.NOTIFIER_CLAIMED.inc(len(claimed))
        kept = await self._keep([row for row in claimed if row.arch_sha is None])
        ready = [*kept, *(row for row in claimed if row.arch_sha is not None)]
        now_ms = self._clock_ms()
        await all_of(self._finish(row) for row in ready if step_of(row, now_ms) == "finish")
        await all_of(self._wait(row) for row in ready if step_of(row, now_ms) == "wait")
        told = _by_group([row for row in ready if step_of(row, now_ms) == "tell"])
        await all_of(self._tell(rows) for rows in told)
        return not self._late

    async def _claim(self, hint: Due) -> Claimed | None:
        try:
            claimed = await self._rows.claim(hint, self._worker, self._limits.lease_s)
        except BodyLost as lost:
            log.error("stale_body_lost", item=hint.item_id, entity=hint.entity, error=lost.detail)
            await self._leave(lost.claimed, NEEDS_A_PERSON_S, "body_lost")
            return None
        if claimed is not None and claimed.state is not State.STALE:
            await self._leave(claimed, 0.0, "not_stale")
            return None
        return claimed

    async def _keep(self, rows: Sequence[Claimed]) -> list[Claimed]:
        """Evidence, then its entry in the chain, then the mark on the row."""
        found = await those_of(self._write(row) for row in rows)
        try:
            await self._chain.append([written for _row, written in found])
        except (ArchiveUnavailable, EvidenceDamaged) as error:
            log.error("evidence_not_chained", count=len(found), error=str(error))
            await all_of(self._leave(row, self._archive_pause_s(row), "archive_unavailable") for row, _written in found)
            raise ArchiveUnavailable(str(error)) from error
        return await those_of(self._mark(row, written) for row, written in found)

    async def _write(self, row: Claimed) -> tuple[Claimed, Written] | None:
        try:
            original = await self._rows.original(row) if row.edits else None
            written = await self._archive.keep(row, original)
        except ArchiveUnavailable as error:
            metrics.EVIDENCE.labels(self._owners.entity_label(row.event.entity), "unavailable").inc()
            log.warning("archive_unavailable", item=row.item_id, error=str(error))
            await self._leave(row, self._archive_pause_s(row), "archive_unavailable")
            return None
        except (EvidenceDamaged, BodyMissing) as error:
            metrics.EVIDENCE.labels(self._owners.entity_label(row.event.entity), "refused").inc()
            log.error("evidence_refused", item=row.item_id, entity=row.event.entity, error=str(error))
            await self._leave(row, NEEDS_A_PERSON_S, "evidence_refused")
            return None
        metrics.EVIDENCE.labels(self._owners.entity_label(row.event.entity), "written").inc()
        return row, written

    async def _mark(self, row: Claimed, written: Written) -> Claimed | None:
        return await self._leased(row, lambda: self._rows.archived(row, self._archive.uri(written.key), written.sha256))

    async def _wait(self, row: Claimed) -> None:
        await self._leave(row, max(1.0, ((row.grace_until_ms or 0) - self._clock_ms()) / 1000), "in_grace")

    async def _tell(self, rows: Sequence[Claimed]) -> None:
        """``rows``: of one group. All are stale by now, so that whoever counts the group from now on counts them."""
        group = await self._join(rows[0])
        if group is not None and group.receipt is not None:
            told = group.receipt
            receipt = Receipt(told.channel, told.dedup_key, told.provider_id, told.at_ms)
            await all_of(self._mark_told(row, receipt) for row in rows)
            return
        now_ms = self._clock_ms()
        waits_s = [1.0 if group is None else row_wait_s(group, now_ms, self._unit()) for _ in rows]
        await all_of(self._leave(row, wait_s, "waits_for_notice") for row, wait_s in zip(rows, waits_s, strict=True))

    async def _mark_told(self, row: Claimed, receipt: Receipt) -> None:
        if await self._did(row, lambda: self._rows.notified(row, receipt, self._limits.grace_s)):
            metrics.STALE_NOTIFIED.labels(self._owners.entity_label(row.event.entity), row.event.reason.value).inc()

    async def _join(self, row: Claimed) -> Group | None:
        """The row's group as it stands after the row has come in. ``None``: others change it all the time."""
        cause = cause_of(row.event)
        owner = self._owners.owner_of(row.event.entity, row.event.owner)
        for _ in range(JOINS_MAX):
            group = await self._groups.get(owner, cause.id)
            now_ms = self._clock_ms()
            if group is None:
                after = opened(owner, cause, self._facts(row), now_ms, self._timing)
            else:
                after = joined(group, self._facts(row), now_ms, self._timing)
                if after is group:
                    return group
            if (swapped := await self._groups.swap(after)) is not None:
                log.info("group_opened", owner=owner, group=cause.id, entity=cause.entity, reason=cause.reason.value,
                         episode=swapped.episode)  # fmt: skip
                return swapped
        return None

    def _facts(self, row: Claimed) -> bytes:
        disclosure = self._disclosures(row.event.entity)
        samples = {} if row.event.kafka is not None else disclosure.samples(row.event.raw)
        return facts_of(row, disclosure.path(row.event.path), samples)

    async def _finish(self, row: Claimed) -> None:
        """Not without a look into the archive: what was lost there meanwhile must not go here too."""
        assert row.arch_uri is not None, "only archived rows are finished"
        assert row.arch_sha is not None, "only archived rows are finished"
        try:
            is_there = await self._archive.holds(row.arch_uri, row.arch_sha)
        except (ArchiveUnavailable, ValueError) as error:
            log.warning("archive_unavailable", item=row.item_id, error=str(error))
            await self._leave(row, self._archive_pause_s(row), "archive_unavailable")
            return
        if not is_there:
            log.error("evidence_missing", item=row.item_id, uri=row.arch_uri, sha256=row.arch_sha,
                      action="restore the object, or re-drive the event; it is kept until then")  # fmt: skip
            await self._leave(row, NEEDS_A_PERSON_S, "evidence_missing")
        elif await self._did(row, lambda: self._rows.finish(row)):
            metrics.STALE_DELETED.labels(self._owners.entity_label(row.event.entity), row.event.reason.value).inc()
            log.debug("stale_event_left", item=row.item_id, entity=row.event.entity, uri=row.arch_uri)

    async def _leave(self, row: Claimed, wait_s: float, why: str) -> None:
        due_ms = self._clock_ms() + int(wait_s * 1000)
        await self._did(row, lambda: self._rows.again(row, due_ms, why, counts=False))

    async def _leased(self, row: Claimed, transition: Callable[[], Awaitable[_T]]) -> _T | None:
        """``None``: it was not done, for the lease is over or the row was woken."""
        if self._monotonic_s() < row.lease_until_s:
            try:
                return await transition()
            except NotAllowed as refusal:
                log.error("transition_refused", item=row.item_id, error=str(refusal))
                return None
            except LeaseLost:
                pass
        metrics.NOTIFIER_LEASE_LOST.inc()
        self._late += self._monotonic_s() >= row.lease_until_s
        return None

    async def _did(self, row: Claimed, transition: Callable[[], Awaitable[None]]) -> bool:
        async def done() -> bool:
            await transition()
            return True

        return await self._leased(row, done) is True

    def _archive_pause_s(self, row: Claimed) -> float:
        base_s, cap_s = ARCHIVE_BACKOFF_S
        return (0.5 + self._unit() / 2) * min(cap_s, base_s * 2.0 ** min(row.tries_of_round, 16))


def _by_group(rows: Sequence[Claimed]) -> list[list[Claimed]]:
    """An entity has one owner at a time; of one that is no longer configured, who owned it when it was parked."""
    groups: dict[tuple[str, str], list[Claimed]] = {}
    for row in rows:
        groups.setdefault((row.event.owner, cause_of(row.event).id), []).append(row)
    return list(groups.values())
