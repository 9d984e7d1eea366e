"""Where seen entries go that no longer tell repetitions: "seen" stays provable for ever, out of Postgres."""

import asyncio
import hashlib
from typing import Any, Protocol

import zstandard
from botocore.exceptions import BotoCoreError, ClientError

_EXISTS = ("PreconditionFailed", "412")


class ArchiveUnavailable(Exception):
    """The bucket did not take the object. Nothing is lost: the pages stay in Postgres until the next try."""


class SeenArchive(Protocol):
    """What ``Checkpoints.tidy`` needs of the bucket."""

    async def put(self, entity: str, min_us: int, max_us: int, entries: bytes) -> str:
        """Return the key once an object with just these entries exists. Idempotent. Raises ``ArchiveUnavailable``."""


class S3SeenArchive:
    """Objects ``seen/<entity>/<min_us>-<max_us>-<digest>.zst``, named by their content: an existing one is the same."""

    def __init__(self, s3_client: Any, bucket: str, prefix: str = "seen/") -> None:
        self._client = s3_client
        self._bucket = bucket
        self._prefix = prefix

    async def put(self, entity: str, min_us: int, max_us: int, entries: bytes) -> str:
        """See ``SeenArchive``. Entries are packed as in ``seen_page``, in the order of their commits."""
        digest = hashlib.blake2b(entries, digest_size=16).hexdigest()
        key = f"{self._prefix}{entity}/{min_us:020d}-{max_us:020d}-{digest}.zst"
        body = await asyncio.to_thread(zstandard.ZstdCompressor(level=3).compress, entries)
        try:
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] not in _EXISTS:
                raise ArchiveUnavailable(f"s3://{self._bucket}/{key}: {error}") from error
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise ArchiveUnavailable(f"s3://{self._bucket}/{key}: {error}") from error
        return key
