"""How much of the publishing the re-drive may take, and how it comes back after an outage. Pure."""

from collections import deque

WINDOW_S = 1.02
"""A second, and what clocks of milliseconds lose by rounding."""
SLOW_START = 0.1
SLOW_STEP_S = 1.0


class Share:
    """At most ``per_s_max`` records in every window of one second, wherever it begins: by the time of sending and by
    the time of acknowledgement alike, since a record counts from its grant until a second after its answer.

    After ``start_slowly`` the limit is a tenth, and doubles each second until it is whole again: who comes back from an
    outage has live traffic to catch up with first.
    """

    def __init__(self, per_s_max: int) -> None:
        assert per_s_max >= 1, "the re-drive could never publish anything"
        self._per_s_max = per_s_max
        self._in_flight = 0
        self._settled: deque[tuple[float, int]] = deque()  # (when they stop counting, how many)
        self._settled_count = 0
        self._slow_since_s: float | None = None

    def start_slowly(self, now_s: float) -> None:
        self._slow_since_s = now_s

    def limit(self, now_s: float) -> int:
        """Records a second, now."""
        if self._slow_since_s is None:
            return self._per_s_max
        doublings = int((now_s - self._slow_since_s) / SLOW_STEP_S)
        if SLOW_START * 2.0 ** min(doublings, 16) >= 1:
            self._slow_since_s = None
            return self._per_s_max
        return max(1, int(self._per_s_max * SLOW_START * 2**doublings))

    def take(self, now_s: float, wanted: int) -> int:
        """Grants as many of ``wanted`` as may be sent now; each grant ends with ``settle``."""
        self._forget(now_s)
        granted = max(0, min(wanted, self.limit(now_s) - self._in_flight - self._settled_count))
        self._in_flight += granted
        return granted

    def settle(self, now_s: float, sent: int, unsent: int = 0) -> None:
        """``sent``: answered, or perhaps sent. ``unsent``: they never left, and count no more."""
        self._in_flight -= sent + unsent
        assert self._in_flight >= 0, "more was settled than granted"
        if sent:
            self._settled.append((now_s + WINDOW_S, sent))
            self._settled_count += sent

    def next_s(self, now_s: float) -> float:
        """When to ask again after a grant fell short: when the oldest answer is a second old, or shortly."""
        return self._settled[0][0] if self._settled else now_s + 0.05

    def _forget(self, now_s: float) -> None:
        while self._settled and self._settled[0][0] <= now_s:
            self._settled_count -= self._settled.popleft()[1]
