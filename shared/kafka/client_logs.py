"""aiokafka logs each failed retry as an error, twenty times a second while brokers are down. One in a while is enough.

What an outage means to us is said by our own events (``kafka_breaker_opened``, ``kafka_producer_destroyed``).
"""

import logging
import time
from collections.abc import Callable

REPEAT_S = 30.0
TEMPLATES_MAX = 500

_LOGGERS = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.consumer",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
)


class FewRepeats(logging.Filter):
    """Lets a message template through once in ``repeat_s``, and calls no more than a warning what aiokafka retries."""

    def __init__(self, repeat_s: float = REPEAT_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._repeat_s = repeat_s
        self._monotonic = monotonic
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now = self._monotonic()
        template = str(record.msg)
        if now - self._said_at.get(template, -self._repeat_s) < self._repeat_s:
            return False
        if len(self._said_at) >= TEMPLATES_MAX:
            self._said_at.clear()
        self._said_at[template] = now
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def quiet_client_logs() -> None:
    """Put the filter on aiokafka's loggers; once, however often it is called."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, FewRepeats) for present in logger.filters):
            logger.addFilter(FewRepeats())
