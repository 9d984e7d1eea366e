"""Buckets: made, and proved to be able to carry the ledger."""

import asyncio
from typing import Any

from botocore.exceptions import ClientError

from shared.raw.objects import SlotTaken, StoreUnavailable
from shared.raw.s3 import S3Store

PROBE = "probes/conditional-put"
"""One fixed key: probing again leaves nothing new behind."""

PUT_S_MAX = 30.0
"""The client's own read timeout does not hold while a PUT waits for ``100 Continue``."""

_MISSING = frozenset({"404", "NoSuchBucket", "NotFound"})
_OURS_ALREADY = frozenset({"BucketAlreadyOwnedByYou"})


class Buckets:
    """S3 by a low-level client that belongs to the caller. Raises botocore's errors."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def store(self, bucket: str) -> S3Store:
        return S3Store(self._client, bucket)

    async def exists(self, bucket: str) -> bool:
        try:
            await self._client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return False
            raise
        return True

    async def create(self, bucket: str) -> None:
        region = self._client.meta.region_name
        place = {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            await self._client.create_bucket(Bucket=bucket, **place)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _OURS_ALREADY:
                raise

    async def date(self, bucket: str) -> str | None:
        """The store's clock, as its header ``Date`` says it: a refusal has one too."""
        try:
            answer = await self._client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
        headers: dict[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
        return headers.get("date")

    async def expiring_rules(self, bucket: str) -> list[str]:
        """Names of the lifecycle rules that delete current objects: the ledger must not lose links by itself."""
        try:
            answer = await self._client.get_bucket_lifecycle_configuration(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration":
                return []
            raise
        rules = answer.get("Rules", [])
        return [rule.get("ID", "?") for rule in rules if "Expiration" in rule and rule.get("Status") == "Enabled"]

    async def refuses_second_put(self, bucket: str, key: str) -> bool:
        """Whether a key that exists can't be created again: the one property that the ledger stands on (412)."""
        store = self.store(bucket)
        for _attempt in range(2):
            try:
                async with asyncio.timeout(PUT_S_MAX):
                    await store.create(key, b"Only one of two conditional PUTs may succeed.\n", {})
            except SlotTaken:
                return True
            except TimeoutError:
                raise StoreUnavailable(f"no answer to a PUT into {bucket!r} within {PUT_S_MAX:g} s") from None
        return False
