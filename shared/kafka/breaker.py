"""Whether a topic's records are sent at once or only behind one record that is risked first. Pure."""

from typing import Literal

FAILURES_MAX = 5


class Breaker:
    """Opens after one unknown outcome, five failures to reach a broker in a row, or a whole deadline without any.

    ``unproven``: no broker has answered yet in this process. As when open, one record goes first, but it is no alarm.
    """

    def __init__(self) -> None:
        self.state: Literal["unproven", "closed", "open"] = "unproven"
        self._failures = 0

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    def answered(self) -> None:
        """A broker gave an answer about this topic's records, a refusal included."""
        self.state = "closed"
        self._failures = 0

    def failed(self) -> bool:
        """No broker could be reached; nothing was sent. While unproven, once is enough. True: this opened it."""
        self._failures += 1
        if self.state == "unproven" or self._failures >= FAILURES_MAX:
            return self.open()
        return False

    def open(self) -> bool:
        """An unknown outcome, or a whole deadline without an answer. True: it was not open before."""
        news = self.state != "open"
        self.state = "open"
        return news
