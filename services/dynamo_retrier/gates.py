"""For which topics rows may be claimed: all of them while Kafka takes their records, one at a time while it does not.

Pure: time is an argument. An outage is learnt from the outcomes of publishing, and nothing else.
"""

import random
from collections.abc import Callable, Iterable

from msgspec import Struct

PROBE_BASE_S = 1.0
PROBE_CAP_S = 30.0


class _Down(Struct):
    probe_s: float  # when the next probe may go
    failures: int = 0  # 0: no more than suspected, since another topic has failed


class Gates:
    """Topics are open until publishing fails; a closed one lets a single row through after each pause.

    There is one probe at a time over all topics. When one fails the others have to prove themselves anew, by a single
    row and without a pause; when one is answered, the others are tried at once.
    """

    def __init__(self, topics: Iterable[str], random_unit: Callable[[], float] = random.random) -> None:
        self._topics = tuple(topics)
        self._down: dict[str, _Down] = {}
        self._proven: set[str] = set()  # have answered since the last failure of any
        self._probing: str | None = None
        self._random_unit = random_unit

    def allowed(self, topic: str, now_s: float, wanted: int) -> int:
        """How many rows of ``wanted`` may be claimed for this topic now."""
        down = self._down.get(topic)
        if down is None:
            return wanted
        return min(1, wanted) if self._probing is None and now_s >= down.probe_s else 0

    def claimed(self, topic: str) -> None:
        """Rows of this topic are about to be claimed: of a closed one, the probe."""
        if topic in self._down:
            self._probing = topic

    def settled(self, topic: str) -> None:
        """They have left our hands; with or without an answer of Kafka."""
        if self._probing == topic:
            self._probing = None

    def answered(self, topic: str, now_s: float) -> bool:
        """A broker answered for this topic, refusals included. True: it had failed, and so had all others since."""
        down = self._down.pop(topic, None)
        back = down is not None and down.failures > 0 and not self._proven
        self._proven.add(topic)
        if down is not None:
            for other in self._down.values():
                other.probe_s = now_s
        return back

    def failed(self, topic: str, now_s: float) -> bool:
        """No broker took a record of this topic, or none said so. True: it was open until now."""
        was_open = topic not in self._down
        down = self._down.setdefault(topic, _Down(now_s))
        down.probe_s = now_s + self._pause_s(down.failures)
        down.failures += 1
        if was_open:
            self._proven.clear()
            for other in self._topics:
                self._down.setdefault(other, _Down(now_s))
        return was_open

    def allowed_of_all(self, now_s: float, wanted: int) -> int:
        """How many rows of ``wanted`` may be claimed, whichever topics they are for: while all are closed, a probe."""
        return max((self.allowed(topic, now_s, wanted) for topic in self._topics), default=wanted)

    def _pause_s(self, failures: int) -> float:
        """Half of the pause is certain, so that a dead cluster is not knocked at without end."""
        ceiling_s: float = min(PROBE_CAP_S, PROBE_BASE_S * 2.0 ** min(failures, 16))
        return ceiling_s * (0.5 + self._random_unit() / 2)
