"""Retries are jittered, bounded, and wake on stop."""

import itertools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lifecycle import Stop
from shared.retry import backoff, retry


class Transient(Exception):
    pass


def failing(times: int) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    calls: list[int] = []

    async def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise Transient(str(len(calls)))
        return "done"

    return call, calls


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.floats(0, 1))
def test_backoff_doubles_its_ceiling_up_to_the_cap(base_s: float, cap_s: float, unit: float) -> None:
    delays = list(itertools.islice(backoff(base_s, cap_s, lambda: unit), 12))

    assert delays[0] == pytest.approx(unit * min(base_s, cap_s))
    assert all(0 <= delay <= cap_s for delay in delays)
    assert delays == sorted(delays)
    if base_s * 2**11 >= cap_s:
        assert delays[-1] == pytest.approx(unit * cap_s)


async def test_a_named_transient_is_tried_again_until_it_passes() -> None:
    call, calls = failing(3)

    assert await retry(call, on=(Transient,), base_s=0.0001, cap_s=0.0001, attempts=5) == "done"
    assert len(calls) == 4


async def test_the_last_error_is_raised_when_attempts_are_used_up() -> None:
    call, calls = failing(9)

    with pytest.raises(Transient, match="3"):
        await retry(call, on=(Transient,), base_s=0.0001, cap_s=0.0001, attempts=3)
    assert len(calls) == 3


async def test_an_error_that_is_not_named_is_not_tried_again() -> None:
    call, calls = failing(9)

    with pytest.raises(Transient):
        await retry(call, on=(OSError,), base_s=0.0001, cap_s=0.0001, attempts=3)
    assert len(calls) == 1


async def test_no_wait_ends_past_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    call, calls = failing(9)

    with pytest.raises(Transient):
        await retry(call, on=(Transient,), base_s=30, cap_s=60, budget_s=10)
    assert len(calls) <= 2


async def test_a_stop_wakes_the_wait_and_raises_the_last_error() -> None:
    stop = Stop()
    calls: list[int] = []

    async def call() -> None:
        calls.append(1)
        stop.set("test")
        raise Transient

    with pytest.raises(Transient):
        await retry(call, on=(Transient,), base_s=3600, cap_s=3600, stop=stop)
    assert len(calls) == 1


async def test_an_endless_retry_is_our_own_bug() -> None:
    call, _ = failing(0)

    with pytest.raises(AssertionError):
        await retry(call, on=(Transient,), base_s=1, cap_s=1)
