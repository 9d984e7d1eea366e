"""What is shown of each partition, and taken away with it: another member shows it from then on."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Literal

from shared import metrics
from shared.kafka.chunks import KnownEnd, Partition

Why = Literal["schema", "stopped"]
WHYS: tuple[Why, ...] = ("schema", "stopped")

MARKS_MAX = 64
MARK_S = 1.0
"""Between two ends of one log that are waited for."""


class Marks:
    """Ends that a log had at known times, until all below them is written. Only what is written makes it fresher."""

    def __init__(self, fresh_s: float) -> None:
        self.fresh_s = fresh_s
        self._ends: deque[KnownEnd] = deque()

    def move(self, written: int, known: KnownEnd | None) -> float:
        """Up to when everything is written. An end that finds no room is left out: a later one will do."""
        if known is not None and len(self._ends) < MARKS_MAX and self._is_due(known.at_s):
            self._ends.append(known)
        while self._ends and self._ends[0].offset <= written:
            self.fresh_s = max(self.fresh_s, self._ends.popleft().at_s)
        return self.fresh_s

    def _is_due(self, at_s: float) -> bool:
        return at_s > self.fresh_s if not self._ends else at_s >= self._ends[-1].at_s + MARK_S


class Gauges:
    """Of one member. A gauge that outlives its partition would raise alarms about what is no longer so.

    ``entities``: topic → entity; a topic that is not there shows no freshness.
    """

    def __init__(self, entities: Mapping[str, str]) -> None:
        self._entities = entities
        self._shown: set[Partition] = set()
        self._refused: set[str] = set()
        self._marks: dict[Partition, Marks] = {}
        self._counted: set[str] = set()

    def opened(self, partition: Partition, last_ms: int) -> None:
        """Until more is known, the ledger's last record says how far it is: what came later is not yet read. Its stamp
        is its sender's, whose clock may be ahead."""
        self._marks.setdefault(partition, Marks(min(last_ms / 1000, time.time())))

    def offsets(self, partition: Partition, written: int, log_end: int, known: KnownEnd | None) -> None:
        self._shown.add(partition)
        metrics.NEXT_OFFSET.labels(*_labels(partition)).set(written)
        metrics.LOG_END.labels(*_labels(partition)).set(log_end)
        entity, marks = self._entities.get(partition.topic), self._marks.get(partition)
        if entity is not None and marks is not None:
            metrics.FRESH.labels(entity, "raw", str(partition.partition)).set(marks.move(written, known))

    def beat(self, partition: Partition, at_ms: int | None) -> None:
        """When the newest heartbeat that is written was sent."""
        entity = self._entities.get(partition.topic)
        if entity is not None and at_ms is not None:
            metrics.HEARTBEAT.labels(entity, "raw", str(partition.partition)).set(at_ms / 1000)

    def in_progress(self, records: Mapping[str, int]) -> None:
        """By topic; those that are not there have none."""
        self._counted |= records.keys()
        for topic in self._counted:
            metrics.SINK_IN_PROGRESS.labels(topic).set(records.get(topic, 0))

    def waits(self, partition: Partition, why: Why, waits: bool) -> None:
        self._shown.add(partition)
        metrics.PARTITION_WAITS.labels(*_labels(partition), why).set(waits)

    def refused(self, topic: str, refused: bool) -> None:
        self._refused.add(topic)
        metrics.REFUSED_TOPICS.labels(topic).set(refused)

    def forget(self) -> None:
        """All partitions were given away."""
        for partition in self._shown:
            metrics.unset(metrics.NEXT_OFFSET, *_labels(partition))
            metrics.unset(metrics.LOG_END, *_labels(partition))
            for why in WHYS:
                metrics.unset(metrics.PARTITION_WAITS, *_labels(partition), why)
            for gauge in (metrics.FRESH, metrics.HEARTBEAT):
                metrics.unset(gauge, self._entities.get(partition.topic, ""), "raw", str(partition.partition))
        for topic in self._refused:
            metrics.REFUSED_TOPICS.labels(topic).set(0)
        self.in_progress({})
        self._shown, self._refused, self._marks = set(), set(), {}


def _labels(partition: Partition) -> tuple[str, str]:
    return partition.topic, str(partition.partition)
