"""Which of the world's faults are waited out, and how."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.s3_sink.ports import ParkingUnavailable
from shared import logs
from shared.kafka.errors import KafkaUnreachable, TopicMissing
from shared.raw.objects import StoreUnavailable
from shared.retry import backoff

log = logs.get_logger(__name__)

WAITED_OUT = (StoreUnavailable, KafkaUnreachable, TopicMissing, ParkingUnavailable)
BASE_S, CAP_S = 0.1, 5.0
SAID_EACH_S = 10.0

_T = TypeVar("_T")


class Patience:
    """Asks again and again. The asking task is cancelled when its partition is revoked or the drain takes too long."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.sleep = sleep

    async def insist(self, what: str, topic: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """The first answer of ``call``, or whatever it raises besides ``WAITED_OUT``."""
        waited_s = said_s = 0.0
        for delay_s in backoff(BASE_S, CAP_S):
            try:
                return await call()
            except WAITED_OUT as fault:
                if waited_s == 0 or waited_s - said_s >= SAID_EACH_S:
                    said_s = waited_s
                    log.warning("sink_waits", to=what, topic=topic, error=type(fault).__name__, detail=str(fault))
            waited_s += delay_s
            await self.sleep(delay_s)
        raise AssertionError("backoff has no end")
