"""What is shown of each partition, and taken away with it: another member shows it from then on."""

from typing import Literal

from shared import metrics
from shared.kafka.chunks import Partition

Why = Literal["schema", "stopped"]
WHYS: tuple[Why, ...] = ("schema", "stopped")


class Gauges:
    """Of one member. A gauge that outlives its partition would raise alarms about what is no longer so."""

    def __init__(self) -> None:
        self._shown: set[Partition] = set()
        self._refused: set[str] = set()

    def offsets(self, partition: Partition, next_offset: int, log_end: int) -> None:
        self._shown.add(partition)
        metrics.NEXT_OFFSET.labels(*_labels(partition)).set(next_offset)
        metrics.LOG_END.labels(*_labels(partition)).set(log_end)

    def waits(self, partition: Partition, why: Why, waits: bool) -> None:
        self._shown.add(partition)
        metrics.PARTITION_WAITS.labels(*_labels(partition), why).set(waits)

    def refused(self, topic: str, refused: bool) -> None:
        self._refused.add(topic)
        metrics.REFUSED_TOPICS.labels(topic).set(refused)

    def forget(self) -> None:
        """All partitions were given away."""
        for partition in self._shown:
            metrics.NEXT_OFFSET.remove(*_labels(partition))
            metrics.LOG_END.remove(*_labels(partition))
            for why in WHYS:
                metrics.PARTITION_WAITS.remove(*_labels(partition), why)
        for topic in self._refused:
            metrics.REFUSED_TOPICS.labels(topic).set(0)
        self._shown, self._refused = set(), set()


def _labels(partition: Partition) -> tuple[str, str]:
    return partition.topic, str(partition.partition)
