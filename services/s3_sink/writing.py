"""One object into its slot: what it takes before the PUT, and what the PUT's answer means."""

import time
from collections.abc import Callable

from services.s3_sink.lane import Lane, Sealed
from services.s3_sink.patience import Patience
from services.s3_sink.ports import Parking, Topics
from shared import logs, metrics
from shared.raw.generation import GenerationRefused, TopicLife
from shared.raw.ledger import Ledger
from shared.raw.objects import RawObject

log = logs.get_logger(__name__)


class ObjectWriter:
    """Insists until the slot is filled, by us or by another. The caller sees to it that one ``put`` of a lane runs."""

    def __init__(
        self,
        topics: Topics,
        parking: Parking,
        ledger: Ledger,
        patience: Patience,
        *,
        slot_age_s_max: float,
        clock: Callable[[], float],
    ) -> None:
        self._topics, self._parking, self._ledger, self._patience = topics, parking, ledger, patience
        self._slot_age_s_max, self._clock = slot_age_s_max, clock

    async def put(self, lane: Lane, sealed: Sealed, life: TopicLife) -> bool:
        """Park what can't be a row, then put the object; the lane goes on behind whatever stands in the slot.

        False: it ends elsewhere than ours, and reading must go on from ``lane.expected``. Raises refusals.
        """
        topic, insist = lane.chain.topic, self._patience.insist
        if sealed.undecodable:
            # Before anything is parked under this generation too, or another topic's records would be.
            await insist("identify", topic, lambda: self._is_still(topic, life))
            await insist("park", topic, lambda: self._parking.park(sealed.undecodable))
        await insist("identify", topic, lambda: self._is_still(topic, life))
        if await self._has_moved_on(lane, sealed):
            return False
        began_s = time.monotonic()
        standing = await insist("put", topic, lambda: self._ledger.write(sealed.link, sealed.body))
        _tell(sealed, standing, time.monotonic() - began_s)
        return lane.settle(standing, self._clock())

    async def _is_still(self, topic: str, life: TopicLife) -> None:
        """All that is buffered came before this answer: the same id now means that it is all of the same topic."""
        if await self._topics.life(topic) != life:
            raise GenerationRefused(f"{topic}: it was made anew while it was being read")

    async def _has_moved_on(self, lane: Lane, sealed: Sealed) -> bool:
        """After a long time (a frozen process) even a free slot proves nothing: old objects may have been expired."""
        if self._clock() - lane.verified_s < self._slot_age_s_max:
            return False
        near = lane.settled_start
        tail = await self._patience.insist("look up", lane.chain.topic, lambda: self._ledger.tail(lane.chain, near))
        lane.verified_s = self._clock()
        if tail.next_start == sealed.link.start:
            return False
        log.warning("buffer_outdated", chain=str(lane.chain), start=sealed.link.start, goes_on_at=tail.next_start)
        lane.jump(tail.next_start)
        return True


def _tell(sealed: Sealed, standing: RawObject, took_s: float) -> None:
    chain, ours = sealed.link.chain, standing is sealed.link
    metrics.RAW_PUT_S.labels(chain.topic).observe(took_s)
    if ours:
        metrics.RAW_OBJECTS.labels(chain.topic, sealed.cut).inc()
        metrics.RAW_RECORDS.labels(chain.topic).inc(standing.count)
        metrics.RAW_BYTES.labels(chain.topic).inc(len(sealed.body))
        metrics.LAST_OBJECT.labels(chain.topic).set_to_current_time()
    else:
        metrics.RAW_ADOPTED.labels(chain.topic).inc()
    log.info(
        "object_written" if ours else "object_adopted",
        chain=str(chain),
        start=standing.start,
        end=standing.end,
        rows=standing.count,
        parked=len(sealed.undecodable),
        cut=sealed.cut,
    )
