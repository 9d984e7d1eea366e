"""One budget per host: what it allows, and whether it answers, is shared by all entities that a process polls there."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

PACE_WAIT_S_MAX = 10.0
"""Longer than this nobody waits for a turn within a call: the caller waits, where it can be stopped."""
UNREACHABLE_BASE_S = 1.0
REST_S_MAX = 7 * 86_400.0
UNREACHABLE_CAP_S = 300.0
PROBE_WAIT_S = 1.0


class HostResting(Exception):
    """No request may be sent to the host now; ask again after ``retry_after_s``."""

    def __init__(self, why: str, retry_after_s: float, *, limited: bool) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        self.limited = limited  # by the source's own word or our rate; else because the host can't be reached


class HostBudget:
    """Requests per second, rests that the host has asked for, and one probe at a time while it can't be reached."""

    def __init__(
        self,
        host: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._host = host
        self._clock = clock
        self._sleep = sleep
        self._random_unit = random_unit
        self._gap_s = 0.0
        self._next_turn_s = 0.0
        self._rests_until_s = 0.0
        self._limited_until_s = 0.0
        self._failures = 0
        self._probing = False

    def allow(self, requests_per_s: float) -> None:
        """At most so many requests a second; of several limits the lowest counts."""
        self._gap_s = max(self._gap_s, 1 / requests_per_s)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold it around one request. Raises ``HostResting``. May be cancelled."""
        self._refuse_while_resting()
        probes = self._failures > 0
        if probes and self._probing:
            raise HostResting(f"{self._host} can't be reached; it is being probed", PROBE_WAIT_S, limited=False)
        self._probing = self._probing or probes
        try:
            await self._wait_for_turn()
            yield
        finally:
            if probes:
                self._probing = False

    def rest(self, seconds: float) -> None:
        """The host wants no requests for so long (``Retry-After``). Obeyed in full, up to a week."""
        self._limited_until_s = max(self._limited_until_s, self._clock() + min(seconds, REST_S_MAX))

    def reached(self) -> None:
        """The host has answered, whatever it said."""
        self._failures = 0
        self._rests_until_s = 0.0

    def unreachable(self) -> float:
        """No connection came about: rest for a growing time, and return it. Of failures at once only one counts."""
        if (rests_s := self._rests_until_s - self._clock()) > 0:
            return rests_s
        ceiling_s = min(UNREACHABLE_CAP_S, UNREACHABLE_BASE_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        delay_s = self._random_unit() * ceiling_s
        self._rests_until_s = max(self._rests_until_s, self._clock() + delay_s)
        return delay_s

    async def _wait_for_turn(self) -> None:
        now_s = self._clock()
        turn_s = max(now_s, self._next_turn_s)
        if turn_s - now_s > PACE_WAIT_S_MAX:
            raise HostResting(f"more requests wait for {self._host} than its rate allows", turn_s - now_s, limited=True)
        self._next_turn_s = turn_s + self._gap_s
        if turn_s > now_s:
            await self._sleep(turn_s - now_s)
            self._refuse_while_resting()

    def _refuse_while_resting(self) -> None:
        now_s = self._clock()
        if now_s < self._limited_until_s:
            raise HostResting(f"{self._host} asked for a rest", self._limited_until_s - now_s, limited=True)
        if now_s < self._rests_until_s:
            raise HostResting(f"{self._host} can't be reached", self._rests_until_s - now_s, limited=False)


class HostBudgets:
    """The budgets of one process."""

    def __init__(self) -> None:
        self._by_host: dict[str, HostBudget] = {}

    def of(self, url: str, requests_per_s: float) -> HostBudget:
        """The budget of the url's scheme, host and port. Bounded by the number of configured sources."""
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        host = f"{parts.scheme}://{parts.hostname}:{port}"
        budget = self._by_host.setdefault(host, HostBudget(host))
        budget.allow(requests_per_s)
        return budget
