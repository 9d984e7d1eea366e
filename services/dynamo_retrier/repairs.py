"""What a repair changed, and the bytes as they were: kept in the archive before the repaired event is published."""

from services.dynamo_retrier.ports import ArchiveUnavailable
from shared.raw.objects import SlotTaken, StoreUnavailable
from shared.raw.s3 import S3Store


class S3RepairArchive:
    """A ``RepairArchive``: one object an event and repair, never overwritten."""

    def __init__(self, store: S3Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    async def keep(self, name: str, line: bytes) -> None:
        try:
            await self._store.create(f"{self._prefix}repaired/{name}.json", line, {})
        except SlotTaken:
            return  # an earlier try of ours, which did not come as far as the acknowledgement
        except StoreUnavailable as error:
            raise ArchiveUnavailable(str(error)) from error
