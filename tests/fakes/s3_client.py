"""A low-level S3 client over a dictionary, as far as the archive uses one."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError


class FakeS3:
    """``objects``: key → (body, metadata, modified)."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str], datetime]] = {}
        self.meta = SimpleNamespace(region_name="us-east-1")
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)
        self.down = False
        self.puts = 0

    async def put_object(
        self, *, Bucket: str, Key: str, Body: bytes, Metadata: dict[str, str], IfNoneMatch: str
    ) -> dict[str, Any]:
        await self._turn()
        assert IfNoneMatch == "*"
        if Key in self.objects:
            raise refusal("PutObject", "PreconditionFailed", 412)
        self.puts += 1
        self.objects[Key] = (Body, Metadata, self.now)
        return {}

    async def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        await self._turn()
        if Key not in self.objects:
            raise refusal("HeadObject", "404", 404)
        return {"Metadata": self.objects[Key][1]}

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        await self._turn()
        if Key not in self.objects:
            raise refusal("GetObject", "NoSuchKey", 404)
        return {"Body": _Body(self.objects[Key][0])}

    async def list_objects_v2(
        self, *, Bucket: str, Prefix: str, MaxKeys: int = 1000, StartAfter: str = "", Delimiter: str = ""
    ) -> dict[str, Any]:
        await self._turn()
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > StartAfter)
        if Delimiter:
            folders = {Prefix + key.removeprefix(Prefix).split("/")[0] + "/" for key in keys}
            return {"CommonPrefixes": [{"Prefix": folder} for folder in sorted(folders)], "IsTruncated": False}
        found = [{"Key": key, "LastModified": self.objects[key][2]} for key in keys[:MaxKeys]]
        return {"Contents": found, "IsTruncated": len(keys) > MaxKeys}

    async def head_bucket(self, *, Bucket: str) -> dict[str, Any]:
        await self._turn()
        return {}

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise refusal("Any", "ServiceUnavailable", 503)


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aenter__(self) -> "_Body":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    async def read(self) -> bytes:
        return self._body


def refusal(operation: str, code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )
