"""The clock of first sight: one stamp for each row shown, strictly rising per entity over any number of pollers.

A lease grants the stamps from ``shown_from_us`` up to ``shown_limit_us``; the next owner begins at or above that limit,
so that two owners can never issue the same stamp, nor an older owner a greater one. Between the two the clock follows
the monotonic time of the process: a jump of the wall clock does not move it.
"""

import time
from collections.abc import Callable

from shared.checkpoints.model import Grant


class ShownLimitReached(Exception):
    """The lease grants no further stamps: renew it, then go on. Nothing was issued."""


class ShownClock:
    """Issues the stamps of one lease. Not for two requests at once: an entity has one in flight."""

    def __init__(self, grant: Grant, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._entity = grant.entity
        self._epoch = grant.epoch
        self._from_us = grant.shown_from_us
        self._anchor_s = grant.shown_anchor_monotonic_s
        self._limit_us = grant.shown_limit_us
        self._monotonic = monotonic
        self.last_us = grant.shown_from_us - 1

    def renewed(self, grant: Grant) -> None:
        """Go on up to the limit that the renewal granted. The time itself is not set anew."""
        assert (grant.entity, grant.epoch) == (self._entity, self._epoch), "a new lease needs a new clock"
        self._limit_us = max(self._limit_us, grant.shown_limit_us)

    def start(self) -> int:
        """The stamp of a request that is about to be sent. Raises ``ShownLimitReached``."""
        now_us = self._from_us + int((self._monotonic() - self._anchor_s) * 1_000_000)
        return self._within_limit(max(now_us, self.last_us + 1))

    def take(self, start_us: int, rows: int) -> int:
        """Issue ``start_us + i`` for each row i of the answer, and at least one stamp; return the last one issued.

        Raises ``ShownLimitReached``: then renew and take again, with the same arguments.
        """
        assert start_us > self.last_us, "a stamp was issued after this request had begun"
        self.last_us = self._within_limit(start_us + max(rows, 1) - 1)
        return self.last_us

    def _within_limit(self, stamp_us: int) -> int:
        if stamp_us >= self._limit_us:
            raise ShownLimitReached(f"{self._entity}: renew the lease, it grants no stamp beyond {self._limit_us}")
        return stamp_us
