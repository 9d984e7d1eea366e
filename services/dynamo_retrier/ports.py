"""What re-driving needs of the world. Each port says what it may raise; who opened it closes it."""

from collections.abc import Sequence
from typing import Literal, Protocol

from shared.events.model import RejectedEvent
from shared.kafka.records import NotPublished, Outgoing
from shared.parked.analysis import Analyst
from shared.parked.leases import Claimed, Due
from shared.parked.policy import Next


class ArchiveUnavailable(Exception):
    """What a repair changed can't be kept now: the repaired events wait."""


class DueRows(Protocol):
    """The index. It may be behind the table: a claim decides."""

    async def due(self, queue: Literal["r", "n"], shard_number: int, now_ms: int, limit: int) -> list[Due]:
        """Earliest first. Raises ``ParkedUnavailable``, ``ClockSkewed``."""


class Leases(Protocol):
    """One row under a lease. All raise ``ParkedUnavailable``: call again with the same lease, and nothing doubles."""

    async def claim(self, hint: Due, worker: str, lease_s: float) -> Claimed | None:
        """``None``: somebody else's, changed or gone. Raises ``BodyLost``."""

    async def published(self, claimed: Claimed) -> None:
        """The row leaves the table: only after Kafka's acknowledgement. Raises ``LeaseLost``."""

    async def failed(
        self,
        claimed: Claimed,
        after: Next,
        error: RejectedEvent | str,
        *,
        maybe_sent: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        """Ends the lease as the policy decided. Raises ``LeaseLost``."""

    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool, free: bool) -> None:
        """Ends the lease: due again at ``due_ms``. Raises ``LeaseLost``."""

    async def stale(self, claimed: Claimed, why: str) -> None:
        """Ends the lease of a row beyond its deadline. Raises ``LeaseLost``, ``NotAllowed``."""


class Kafka(Protocol):
    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[NotPublished | None]:
        """One outcome a record, ``None``: acknowledged. Bounded by the delivery deadline; an outage is an outcome."""

    async def reachable(self) -> bool:
        """Whether a broker answers now; within seconds."""


class AnalystSource(Protocol):
    async def current(self, entity: str) -> Analyst:
        """Under the newest contract, from the disk's copy while the registry is down. Raises ``NoAnalyst``."""


class RepairArchive(Protocol):
    async def keep(self, name: str, line: bytes) -> None:
        """Durable when it returns; the same name twice is kept once. Raises ``ArchiveUnavailable``."""


class Stopping(Protocol):
    @property
    def is_set(self) -> bool: ...

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True as soon as it is set, false after ``timeout_s``."""
