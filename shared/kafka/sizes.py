"""How large a record is on the wire, and what sizes a topic's brokers have refused lately."""

from shared.kafka.records import Outgoing

FORGET_S = 60.0
"""Then a refusal is no longer believed: the operator may have raised the topic's limit."""
BATCH_BYTES_MIN = 1024

_BATCH_OVERHEAD = 61
_RECORD_OVERHEAD = 30  # varints of lengths, timestamp and offset, at their longest for what passes our limits
_HEADER_OVERHEAD = 8


def record_bytes(record: Outgoing) -> int:
    """Upper bound of the record's bytes as a batch of its own, uncompressed, within some ten bytes."""
    value = record.value
    size = _BATCH_OVERHEAD + _RECORD_OVERHEAD + len(record.key) + (0 if value is None else len(value))
    for name, content in record.headers:
        size += len(name) + len(content) + _HEADER_OVERHEAD
    return size


class SizeLimits:
    """What was learned about one topic from the brokers' refusals, each for ``FORGET_S``. Pure; seconds are given."""

    def __init__(self, batch_bytes: int) -> None:
        self._whole_batch_bytes = batch_bytes
        self._batch_bytes = batch_bytes
        self._record_bytes: int | None = None
        self._until = 0.0

    def batch_bytes(self, now: float) -> int | None:
        """The room of one batch where it is less than the producer's own limit, else ``None``."""
        self._forget(now)
        return self._batch_bytes if self._batch_bytes < self._whole_batch_bytes else None

    def record_bytes(self, now: float) -> int:
        """A record above this was refused lately."""
        self._forget(now)
        return self._record_bytes if self._record_bytes is not None else 2**62

    def batch_refused(self, size: int, now: float) -> None:
        """A batch of several records was refused for its size; the next has half the room."""
        self._batch_bytes = max(BATCH_BYTES_MIN, min(self._batch_bytes, size) // 2)
        self._until = now + FORGET_S

    def record_refused(self, size: int, now: float) -> None:
        """A single record of ``size`` was refused."""
        self._record_bytes = min(size - 1, self.record_bytes(now))
        self._until = now + FORGET_S

    def _forget(self, now: float) -> None:
        if now >= self._until:
            self._batch_bytes = self._whole_batch_bytes
            self._record_bytes = None
