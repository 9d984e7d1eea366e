"""What the notifier needs of the world, smallest first."""

from collections.abc import Sequence
from typing import Literal, Protocol

from services.stale_notifier.grouping import Count
from shared.parked.evidence import Written
from shared.parked.groups import Cause, Group, OpenGroup
from shared.parked.leases import Claimed, Due, Receipt, Row


class StaleRows(Protocol):
    """``Transitions``, as far as stale rows go. Each may raise ``ParkedUnavailable``; those that take a ``Claimed``
    raise ``LeaseLost`` and ``NotAllowed``."""

    async def due(self, queue: Literal["r", "n"], shard_number: int, now_ms: int, limit: int) -> list[Due]:
        """Earliest first. Raises ``ClockSkewed``."""

    async def claim(self, hint: Due, worker: str, lease_s: float) -> Claimed | None:
        """``None``: somebody else's. Raises ``BodyLost``."""

    async def again(self, claimed: Claimed, due_ms: int, error: str, *, counts: bool) -> None:
        """Look at it later."""

    async def archived(self, claimed: Claimed, uri: str, sha: str) -> Claimed: ...

    async def notified(self, claimed: Claimed, receipt: Receipt, grace_s: float) -> None: ...

    async def finish(self, claimed: Claimed) -> None: ...

    async def original(self, row: Row) -> bytes:
        """Raises ``BodyMissing``."""


class Archives(Protocol):
    """The archive bucket. Raises ``ArchiveUnavailable``, ``EvidenceDamaged``."""

    async def keep(self, row: Row, original: bytes | None = None) -> Written: ...

    async def holds(self, uri: str, digest: str) -> bool: ...

    def uri(self, key: str) -> str: ...


class Chains(Protocol):
    async def append(self, objects: Sequence[Written]) -> None:
        """Raises ``ArchiveUnavailable``, ``EvidenceDamaged``."""


class Groups(Protocol):
    """The groups' items. Each raises ``ParkedUnavailable``."""

    async def get(self, owner: str, cause_id: str) -> Group | None: ...

    async def swap(self, group: Group) -> Group | None:
        """``None``: somebody was faster."""

    async def due(self, shard_number: int, now_ms: int, limit: int) -> list[OpenGroup]: ...


class Counts(Protocol):
    async def count(self, cause: Cause) -> Count:
        """The stale rows of a cause, by an index that may be seconds behind. Raises ``ParkedUnavailable``."""


class Versions(Protocol):
    async def refusing(self, cause: Cause) -> tuple[int, ...]:
        """Numbers of the schema versions whose contract has the cause's fingerprint; ``()``: not known. Never raises
        for a registry that is down: a notice must not wait for it."""
