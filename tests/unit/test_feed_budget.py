"""One budget per host: rests are obeyed by all, rates are kept, and one caller at a time probes a dead host."""

import asyncio

import pytest

from shared.producer.budget import HostBudget, HostBudgets, HostResting


class Time:
    """A clock that a sleep moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        self.now_s += seconds


def budget_of(time: Time, unit: float = 1.0) -> HostBudget:
    return HostBudget("http://h:1", clock=time.clock, sleep=time.sleep, random_unit=lambda: unit)


async def refusal(budget: HostBudget) -> HostResting:
    with pytest.raises(HostResting) as caught:
        async with budget.turn():
            pass
    return caught.value


async def test_no_request_is_let_through_before_the_rest_that_the_host_asked_for_is_over() -> None:
    time = Time()
    budget = budget_of(time)
    budget.rest(600)
    budget.rest(10)
    time.now_s += 599.9

    resting = await refusal(budget)

    assert resting.limited
    assert resting.retry_after_s == pytest.approx(0.1)
    time.now_s += 0.1
    async with budget.turn():
        pass


async def test_a_success_does_not_end_a_rest_that_the_host_asked_for() -> None:
    budget = budget_of(Time())
    budget.rest(600)
    budget.reached()

    assert (await refusal(budget)).retry_after_s == 600


async def test_requests_keep_their_distance() -> None:
    time = Time()
    budget = budget_of(time)
    budget.allow(100)
    budget.allow(10)
    budget.allow(1000)

    for _ in range(4):
        async with budget.turn():
            pass

    assert time.slept == pytest.approx([0.1] * 3)


async def test_callers_beyond_what_the_rate_allows_wait_outside() -> None:
    time = Time()
    budget = budget_of(time)
    budget.allow(0.05)
    async with budget.turn():
        pass

    assert (await refusal(budget)).retry_after_s == pytest.approx(20)
    assert time.slept == []


async def test_a_rest_that_begins_while_a_caller_waits_for_its_turn_holds_it_back() -> None:
    time = Time()
    budget = budget_of(time)
    budget.allow(1)
    async with budget.turn():
        pass
    waiting = asyncio.ensure_future(refusal(budget))
    await asyncio.sleep(0)
    budget.rest(60)

    assert (await waiting).retry_after_s == pytest.approx(59)


async def test_a_host_that_can_not_be_reached_rests_longer_each_time_up_to_five_minutes() -> None:
    time = Time()
    budget = budget_of(time)
    rests = []
    for _ in range(11):
        rests.append(budget.unreachable())
        assert not (await refusal(budget)).limited
        time.now_s += rests[-1]

    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    budget.reached()
    assert budget.unreachable() == 1


async def test_many_entities_that_miss_a_host_at_once_count_as_one_failure() -> None:
    budget = budget_of(Time())

    assert [budget.unreachable() for _ in range(10)] == [1] * 10


async def test_one_caller_at_a_time_probes_a_host_that_was_not_reached() -> None:
    time = Time()
    budget = budget_of(time)
    budget.unreachable()
    time.now_s += 1

    async with budget.turn():
        assert "probed" in str(await refusal(budget))
        budget.unreachable()

    time.now_s += 2
    async with budget.turn():
        budget.reached()
        async with budget.turn():
            pass


async def test_a_probe_that_fails_in_any_way_makes_room_for_the_next() -> None:
    time = Time()
    budget = budget_of(time)
    budget.unreachable()
    time.now_s += 1
    with pytest.raises(ZeroDivisionError):
        async with budget.turn():
            raise ZeroDivisionError

    async with budget.turn():
        pass


def test_sources_on_one_host_share_a_budget_whatever_their_path() -> None:
    budgets = HostBudgets()

    assert budgets.of("http://h/a", 1) is budgets.of("http://H:80/b?c", 2)
    assert budgets.of("https://h/a", 1) is budgets.of("https://h:443/a", 1)
    assert budgets.of("http://h/a", 1) is not budgets.of("https://h/a", 1)
