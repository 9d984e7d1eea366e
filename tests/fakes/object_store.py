"""The raw bucket in memory: what ``shared.raw.objects.ObjectStore`` promises, and the ways in which S3 fails it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from hashlib import sha256

from shared.raw.objects import KeyPage, SlotTaken, Stored, StoreUnavailable, Tagged


class Fault(Enum):
    """How one request fails. Of all of these the caller sees only ``StoreUnavailable``."""

    REFUSED = "503, nothing done"
    LOST = "done, and the answer lost"
    LATE = "no answer, and done later"


class MemoryStore:
    """An ``ExpiringStore``. ``fault(operation, key)`` may choose a fault; ``turns``: how long a request waits."""

    def __init__(
        self,
        fault: Callable[[str, str], Fault | None] = lambda _operation, _key: None,
        turns: Callable[[], int] = lambda: 1,
    ) -> None:
        self.objects: dict[str, Stored] = {}
        self.requests: list[tuple[str, str]] = []
        self.refused = 0
        """Creates of keys that existed."""
        self._fault = fault
        self._turns = turns
        self._late: list[tuple[str, Stored]] = []

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        stored = Stored(body, dict(metadata))
        fault = await self._request("create", key)
        if fault is Fault.LATE:
            self._late.append((key, stored))
        if fault is not None and fault is not Fault.LOST:
            raise StoreUnavailable(f"{key}: {fault.value}")
        taken = not self._place(key, stored)
        self.refused += taken
        await self._yield()
        if fault is Fault.LOST:
            raise StoreUnavailable(f"{key}: {fault.value}")
        if taken:
            raise SlotTaken(key)

    async def head(self, key: str) -> dict[str, str] | None:
        await self._read("head", key)
        return dict(self.objects[key].metadata) if key in self.objects else None

    async def read(self, key: str) -> Stored | None:
        await self._read("read", key)
        return self.objects.get(key)

    async def keys_after(self, prefix: str, after: str, limit: int = 1000) -> KeyPage:
        await self._read("list", prefix)
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return KeyPage(keys[:limit], len(keys) > limit)

    async def tagged(self, key: str) -> Tagged | None:
        await self._read("tagged", key)
        stored = self.objects.get(key)
        return None if stored is None else Tagged(stored.body, sha256(stored.body).hexdigest())

    async def replace(self, key: str, body: bytes, tag: str) -> None:
        fault = await self._request("replace", key)
        if fault is not None and fault is not Fault.LOST:
            raise StoreUnavailable(f"{key}: {fault.value}")
        stored = self.objects.get(key)
        if stored is None or sha256(stored.body).hexdigest() != tag:
            raise SlotTaken(key)
        self.objects[key] = Stored(body, {})
        if fault is Fault.LOST:
            raise StoreUnavailable(f"{key}: {fault.value}")

    async def delete(self, keys: Sequence[str]) -> None:
        """Key by key: a fault leaves the rest where it is."""
        for key in keys:
            fault = await self._request("delete", key)
            if fault is not None and fault is not Fault.LOST:
                raise StoreUnavailable(f"{key}: {fault.value}")
            self.objects.pop(key, None)
            if fault is Fault.LOST:
                raise StoreUnavailable(f"{key}: {fault.value}")

    def land_late(self, count: int | None = None) -> None:
        """Carry out the requests that got no answer, oldest first."""
        for key, stored in self._late[:count]:
            self._place(key, stored)
        del self._late[:count]

    def _place(self, key: str, stored: Stored) -> bool:
        if key in self.objects:
            return False
        self.objects[key] = stored
        return True

    async def _read(self, operation: str, key: str) -> None:
        if await self._request(operation, key) is not None:
            raise StoreUnavailable(f"{operation} {key}")

    async def _request(self, operation: str, key: str) -> Fault | None:
        self.requests.append((operation, key))
        fault = self._fault(operation, key)
        await self._yield()
        return fault

    async def _yield(self) -> None:
        for _turn in range(self._turns()):
            await asyncio.sleep(0)


class OverwritingStore(MemoryStore):
    """A store without conditional PUT, as many are: what must never hold the ledger."""

    def _place(self, key: str, stored: Stored) -> bool:
        self.objects[key] = stored
        return True
