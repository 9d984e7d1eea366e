"""Kafka and the parked store as delivery sees them, in memory; they fail when told to, the way the real ones do."""

import asyncio
from collections.abc import Sequence

from shared.kafka.records import NotPublished, Outgoing
from shared.parked.calls import ParkedUnavailable
from shared.parked.model import ParkedEvent


class FakeKafka:
    """Answers each call with the next of ``answers`` (applied to every record), then acknowledges."""

    def __init__(self, answers: Sequence[NotPublished | None] = ()) -> None:
        self.answers = list(answers)
        self.acked: list[Outgoing] = []
        self.calls = 0

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[NotPublished | None]:
        self.calls += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            self.acked += records
        return [answer] * len(records)


class FakeParked:
    """Keeps what it is given; fails ``failures`` times first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.events: list[ParkedEvent] = []

    async def park(self, events: Sequence[ParkedEvent]) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise ParkedUnavailable("parked_unavailable", "no answer")
        self.events += events
