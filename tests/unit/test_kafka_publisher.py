"""What the publisher says without any broker. With one: tests/integration/test_kafka_publisher.py."""

import asyncio
from contextlib import AsyncExitStack

from shared.events.model import Reason
from shared.kafka.publisher import Publisher
from shared.kafka.records import NotPublished, Outgoing
from shared.kafka.settings import KafkaSettings

NOBODY_THERE = KafkaSettings(bootstrap="127.0.0.1:9,127.0.0.1:10")


def record(value: bytes = b"v") -> Outgoing:
    return Outgoing(b"k", value, (), 1)


def reasons(outcomes: list[NotPublished | None]) -> list[Reason | None]:
    return [None if outcome is None else outcome.reason for outcome in outcomes]


async def test_a_service_starts_and_is_told_at_once_that_kafka_is_down() -> None:
    async with asyncio.timeout(5), AsyncExitStack() as edges:
        publisher = await Publisher.open(NOBODY_THERE, edges)

        outcomes = await publisher.publish("t", [record() for _ in range(1000)])

        assert reasons(outcomes) == [Reason.KAFKA_UNAVAILABLE] * 1000
        assert publisher.breaker_open("t")
        assert not await publisher.reachable()


async def test_what_is_too_large_is_told_while_kafka_is_down_too() -> None:
    async with asyncio.timeout(5), AsyncExitStack() as edges:
        publisher = await Publisher.open(NOBODY_THERE, edges)

        outcomes = await publisher.publish("t", [record(), record(b"x" * 2_000_000)])

        assert reasons(outcomes) == [Reason.KAFKA_UNAVAILABLE, Reason.TOO_LARGE]


async def test_calls_at_the_same_time_wait_for_the_same_attempt() -> None:
    async with asyncio.timeout(5), AsyncExitStack() as edges:
        publisher = await Publisher.open(NOBODY_THERE, edges)

        pages = await asyncio.gather(*(publisher.publish(f"t{n}", [record()]) for n in range(50)))

        assert all(reasons(outcomes) == [Reason.KAFKA_UNAVAILABLE] for outcomes in pages)


async def test_nothing_is_sent_after_the_end() -> None:
    async with asyncio.timeout(5):
        async with AsyncExitStack() as edges:
            publisher = await Publisher.open(NOBODY_THERE, edges)

        assert reasons(await publisher.publish("t", [record()])) == [Reason.KAFKA_UNAVAILABLE]
