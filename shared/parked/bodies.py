"""The bytes of parked events: in an item beside the row, or in the bucket when they are too large for one.

Each body has a key of its own that holds a nonce, so that one row names it and no other: once that row is gone, so may
the body go, whatever is parked meanwhile with the same content.
"""

import asyncio
from hashlib import sha256
from secrets import token_hex
from typing import Any

import msgspec
import zstandard
from aiohttp import ClientError as CutShort
from botocore.exceptions import ClientError, HTTPClientError
from msgspec.structs import replace

from shared.logs import get_logger
from shared.parked.calls import Budget, Calls, ParkedUnavailable, Trouble, pauses
from shared.parked.items import decompress, record_of, wire
from shared.parked.leases import Body, Row
from shared.parked.model import KafkaPosition, body_key, object_key

log = get_logger(__name__)

REMOVAL_S_MAX = 2.0
INLINE_BYTES_MAX = 64 * 1024  # packed; above it the event loop would feel the unpacking


class BodyMissing(Exception):
    """The bytes that a row names are not there, or are not those that were parked."""


class Bodies:
    """Reads raise ``BodyMissing``; reads and writes raise ``ParkedUnavailable``."""

    def __init__(
        self,
        table: Calls,
        bucket: Calls,
        table_name: str,
        bucket_name: str,
        *,
        budget_s: float,
        body_bytes_max: int,
    ) -> None:
        self._table = table
        self._bucket = bucket
        self._table_name = table_name
        self._bucket_name = bucket_name
        self._budget_s = budget_s
        self._body_bytes_max = body_bytes_max

    async def read(self, row: Row, body: Body) -> bytes:
        """Strongly consistent, and compared with the digest that the row names."""
        packed = await self._packed(row, body)
        if len(packed) > INLINE_BYTES_MAX:
            return await asyncio.to_thread(unpacked, packed, body)
        return unpacked(packed, body)

    async def position(self, row: Row, cut: KafkaPosition) -> KafkaPosition:
        """With the whole key and headers of a row that has no room for them, from behind its body."""
        packed = await self._packed(row, row.original)
        try:
            return await asyncio.to_thread(record_of, packed, cut)
        except (zstandard.ZstdError, msgspec.MsgspecError, ValueError) as error:
            raise BodyMissing(f"behind the body {_name(row.original)}: {error}") from error

    async def write(self, row: Row, rev: int, raw: bytes, at_us: int) -> Body:
        """Before the row names it."""
        packed = await asyncio.to_thread(zstandard.compress, raw)
        digest = sha256(raw).hexdigest()
        nonce = token_hex(8)
        budget = Budget(self._budget_s)
        if len(packed) > self._body_bytes_max:
            key = object_key(row.event.entity, digest, nonce)
            put: dict[str, Any] = {"Key": key, "Body": packed, "Metadata": {"raw-sha256": digest}}
            await self._bucket.call("put_object", budget, Bucket=self._bucket_name, **put)
            return Body(sha=digest, object_key=key)
        sk = body_key(replace(row.event, rev=rev), nonce)
        item = {"pk": wire(row.pk), "sk": wire(sk), "raw": wire(packed), "at_us": wire(at_us)}
        await self._table.call("put_item", budget, TableName=self._table_name, Item=item)
        return Body(sha=digest, sk=sk)

    async def remove(self, row: Row, bodies: list[Body]) -> None:
        """What no row names any more is harmless: one short try, and the collector of orphans has the rest."""
        budget = Budget(REMOVAL_S_MAX)
        try:
            for body in bodies:
                if body.object_key is not None:
                    await self._bucket.call("delete_object", budget, Bucket=self._bucket_name, Key=body.object_key)
                else:
                    key = {"pk": wire(row.pk), "sk": wire(body.sk or "")}
                    await self._table.call("delete_item", budget, TableName=self._table_name, Key=key)
        except ParkedUnavailable as error:
            log.info("parked_orphans_left", count=len(bodies), error=str(error))

    async def _packed(self, row: Row, body: Body) -> bytes:
        packed = await self._object(body.object_key) if body.object_key is not None else await self._item(row, body)
        if packed is None:
            raise BodyMissing(f"the body {_name(body)} is missing")
        return packed

    async def _item(self, row: Row, body: Body) -> bytes | None:
        key = {"pk": wire(row.pk), "sk": wire(body.sk or "")}
        reading: dict[str, Any] = {"TableName": self._table_name, "Key": key, "ConsistentRead": True}
        answer = await self._table.call("get_item", Budget(self._budget_s), **reading)
        return bytes(answer["Item"]["raw"]["B"]) if "Item" in answer else None

    async def _object(self, key: str) -> bytes | None:
        budget = Budget(self._budget_s)
        for pause_s in pauses():
            try:
                answer = await self._bucket.call("get_object", budget, Bucket=self._bucket_name, Key=key)
                async with answer["Body"] as stream:
                    return bytes(await stream.read())
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchKey":
                    raise
                return None
            except (CutShort, HTTPClientError, OSError) as error:  # in the middle of the answer
                await self._bucket.back_off(pause_s, Trouble(f"{type(error).__name__}: {error}"), budget)
        raise AssertionError("pauses have no end")


def unpacked(packed: bytes, body: Body) -> bytes:
    """Raises ``BodyMissing``."""
    try:
        raw = decompress(packed)
    except (zstandard.ZstdError, ValueError) as error:
        raise BodyMissing(f"the body {_name(body)} can't be unpacked: {error}") from error
    if sha256(raw).hexdigest() != body.sha:
        raise BodyMissing(f"the body {_name(body)} is not what was parked: its digest differs")
    return raw


def _name(body: Body) -> str:
    return repr(body.object_key or body.sk)
