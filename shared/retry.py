"""Try again: full jitter, a bound on attempts or time, and a stop that wakes the wait."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Wakes(Protocol):
    """What a wait needs of ``lifecycle.Stop``."""

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True as soon as the process is to stop, false after ``timeout_s``."""


def backoff(base_s: float, cap_s: float, random_unit: Callable[[], float] = random.random) -> Iterator[float]:
    """Delays without end: ``rand(0, min(cap_s, base_s * 2^n))`` seconds (full jitter, AWS Architecture Blog, 2015)."""
    ceiling_s = base_s
    while True:
        yield random_unit() * min(cap_s, ceiling_s)
        ceiling_s = min(cap_s, ceiling_s * 2)


async def retry(
    call: Callable[[], Awaitable[_T]],
    *,
    on: tuple[type[Exception], ...],
    base_s: float,
    cap_s: float,
    attempts: int | None = None,
    budget_s: float | None = None,
    stop: Wakes | None = None,
) -> _T:
    """Await ``call()`` until it returns; between tries wait by ``backoff``. Only exceptions in ``on`` are tried again.

    The last one is raised when ``attempts`` are used up, when the next wait would end past ``budget_s`` (waits and
    calls together; a running call is not cut short), or when ``stop`` is set. One of the three must be given.
    """
    assert attempts is not None or budget_s is not None or stop is not None, "an endless retry needs a stop"
    clock = asyncio.get_running_loop().time
    started_s = clock()
    tried = 0
    for delay_s in backoff(base_s, cap_s):
        try:
            return await call()
        except on:
            tried += 1
            if attempts is not None and tried >= attempts:
                raise
            if budget_s is not None and clock() - started_s + delay_s > budget_s:
                raise
            if await _stopped(stop, delay_s):
                raise
    raise AssertionError("backoff has no end")


async def _stopped(stop: Wakes | None, delay_s: float) -> bool:
    if stop is not None:
        return await stop.wait(delay_s)
    await asyncio.sleep(delay_s)
    return False
