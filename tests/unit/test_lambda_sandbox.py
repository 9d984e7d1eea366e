"""How an invocation ends: in time, with every client closed and no task left to run."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.dynamo_retrier import lambda_function
from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.opening import Clients, monotonic_s
from services.dynamo_retrier.redrive import Deadline
from services.dynamo_retrier.sandbox import CUT_S, MARGIN_S, Sandbox
from shared.config import ConfigError
from shared.entities import Entities, Namespace
from shared.kafka.settings import KafkaSettings
from shared.registry.settings import RegistrySettings

TIME_S = 20.0


class Opened:
    """Stands for the clients: says when they were opened and closed."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def __call__(self, stack: AsyncExitStack) -> Any:
        self.told.append("opened")
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        await asyncio.sleep(0)
        self.told.append("closed")


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def sandbox(opened: Opened) -> Iterator[Sandbox]:
    config = RetrierConfig(
        kafka=KafkaSettings(bootstrap="127.0.0.1:9", delivery_deadline_s=1.0),
        registry=RegistrySettings(url="http://127.0.0.1:9"),
        entities_dir=Path("nowhere"),
        cache_dir=Path("nowhere"),
    )
    entities = Entities(sources={}, entities={}, owners={}, namespace=Namespace(""))
    made = Sandbox(config, entities, opened)
    yield made
    made.close()


def test_every_invocation_has_clients_of_its_own_and_they_are_closed_when_it_returns(
    sandbox: Sandbox, opened: Opened
) -> None:
    async def work(clients: Clients, deadline: Deadline) -> None:
        opened.told.append("worked")

    assert sandbox.invoke(work, TIME_S)
    assert sandbox.invoke(work, TIME_S)
    assert opened.told == ["opened", "worked", "closed"] * 2


def test_clients_are_closed_when_the_work_fails(sandbox: Sandbox, opened: Opened) -> None:
    async def work(clients: Clients, deadline: Deadline) -> None:
        raise TimeoutError("of the work's own")

    with pytest.raises(TimeoutError, match="of the work's own"):
        sandbox.invoke(work, TIME_S)
    assert opened.told == ["opened", "closed"]


def test_the_deadline_is_ten_seconds_before_the_end(sandbox: Sandbox) -> None:
    left_s = 0.0

    async def work(clients: Clients, deadline: Deadline) -> None:
        nonlocal left_s
        left_s = deadline.until_s - monotonic_s()

    sandbox.invoke(work, TIME_S)
    assert left_s == pytest.approx(TIME_S - MARGIN_S, abs=1)
    assert MARGIN_S == 10


def test_work_that_hangs_is_cut_short_and_its_clients_closed(
    sandbox: Sandbox, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dynamo_retrier.sandbox.CUT_S", TIME_S - 0.05)
    cancelled: list[str] = []

    async def work(clients: Clients, deadline: Deadline) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append("work")
            raise

    began_s = time.monotonic()
    assert not sandbox.invoke(work, TIME_S)
    assert time.monotonic() - began_s < 5
    assert cancelled == ["work"]
    assert opened.told == ["opened", "closed"]
    assert 0 < CUT_S < MARGIN_S


def test_a_task_that_somebody_forgot_does_not_outlive_the_invocation_and_is_named(sandbox: Sandbox) -> None:
    forgotten: list[asyncio.Task[None]] = []

    async def work(clients: Clients, deadline: Deadline) -> None:
        forgotten.append(asyncio.create_task(asyncio.sleep(3600), name="forgotten-sender"))

    with structlog.testing.capture_logs() as lines:
        assert sandbox.invoke(work, TIME_S)
    assert forgotten[0].cancelled()
    assert [line["tasks"] for line in lines if line["event"] == "left_in_flight"] == [["forgotten-sender"]]


def test_a_timeout_that_allows_no_work_is_refused_in_words(sandbox: Sandbox, opened: Opened) -> None:
    async def work(clients: Clients, deadline: Deadline) -> None:
        raise AssertionError("begun")

    with pytest.raises(ConfigError, match="set the function's timeout to at least 20 s"):
        sandbox.invoke(work, sandbox.remaining_s_min - 0.1)
    assert opened.told == []


class Context:
    aws_request_id = "request-1"
    function_name = "tidemark-retrier"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def test_a_function_without_settings_fails_with_all_of_them_and_looks_again_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TIDEMARK_KAFKA_BOOTSTRAP", "TIDEMARK_REGISTRY_URL"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with pytest.raises(ConfigError) as refused:
            lambda_function.redrive({}, Context())
        assert {problem.partition(":")[0] for problem in refused.value.problems} == {
            "TIDEMARK_KAFKA_BOOTSTRAP",
            "TIDEMARK_REGISTRY_URL",
        }
