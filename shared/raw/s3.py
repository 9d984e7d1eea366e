"""The raw bucket on S3, by a low-level aioboto3 client."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shared.raw.objects import KeyPage, SlotTaken, Stored, StoreUnavailable, Tagged

CALL_S_MAX = 60.0
"""Of one call, its body included: while a body is written to a frozen store no other time-out runs."""
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed"})


class S3Store:
    """An ``ObjectStore``. The client belongs to the caller; any number of calls may run at once."""

    def __init__(self, client: Any, bucket: str, *, call_s_max: float = CALL_S_MAX) -> None:
        self._client = client
        self._call_s_max = call_s_max
        self.bucket = bucket

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        checksum = base64.b64encode(sha256(body).digest()).decode()  # the store refuses a body that changed on its way
        await self._call(
            "put_object", key, Key=key, Body=body, Metadata=dict(metadata), IfNoneMatch="*", ChecksumSHA256=checksum
        )

    async def head(self, key: str) -> dict[str, str] | None:
        answer = await self._call("head_object", key, Key=key)
        return None if answer is None else _metadata(answer)

    async def read(self, key: str) -> Stored | None:
        answer = await self._call("get_object", key, Key=key)
        if answer is None:
            return None
        try:
            async with asyncio.timeout(self._call_s_max), answer["Body"] as stream:
                return Stored(await stream.read(), _metadata(answer))
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"reading {key!r}: {type(error).__name__}: {error}") from error

    async def keys_after(self, prefix: str, after: str, limit: int = 1000) -> KeyPage:
        answer = await self._call("list_objects_v2", prefix, Prefix=prefix, StartAfter=after, MaxKeys=limit)
        if answer is None:
            raise StoreUnavailable(f"listing {prefix!r}: the bucket {self.bucket!r} does not exist; run bootstrap")
        return KeyPage([item["Key"] for item in answer.get("Contents", ())], bool(answer.get("IsTruncated")))

    async def tagged(self, key: str) -> Tagged | None:
        answer = await self._call("get_object", key, Key=key)
        if answer is None:
            return None
        try:
            async with asyncio.timeout(self._call_s_max), answer["Body"] as stream:
                return Tagged(await stream.read(), answer["ETag"])
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"reading {key!r}: {type(error).__name__}: {error}") from error

    async def replace(self, key: str, body: bytes, tag: str) -> None:
        if await self._call("put_object", key, Key=key, Body=body, IfMatch=tag) is None:
            raise SlotTaken(key)

    async def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await self._call("delete_objects", keys[0], Delete=wanted)
        if answer is None or (errors := answer.get("Errors")):
            first = "the bucket is gone" if answer is None else f"{errors[0].get('Key')}: {errors[0].get('Code')}"
            raise StoreUnavailable(f"deleting {len(keys)} objects in {self.bucket!r}: {first}")

    async def answers(self) -> str | None:
        """Why the bucket can't be used, if so: one cheap call, for readiness."""
        try:
            await self.keys_after("", "", limit=1)
        except StoreUnavailable as error:
            return str(error)
        return None

    async def _call(self, name: str, what: str, **arguments: Any) -> Any:
        """The answer, or ``None`` when there is no such key."""
        try:
            async with asyncio.timeout(self._call_s_max):
                return await getattr(self._client, name)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _TAKEN:
                raise SlotTaken(what) from error
            if code in _MISSING:
                # To a plain PUT: a bucket that is not there, on stores that name it so.
                if name == "put_object" and "IfMatch" not in arguments:
                    raise StoreUnavailable(f"{name} {what!r}: {code}") from error
                return None
            raise StoreUnavailable(f"{name} {what!r} in {self.bucket!r}: {code}") from error
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"{name} {what!r}: {type(error).__name__}: {error}") from error


def _metadata(answer: Mapping[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in answer["Metadata"].items()}
