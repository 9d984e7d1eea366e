"""What is kept of an event that nobody could publish: one object each, written before its owner is told.

The object is zstd-compressed JSON with the raw bytes (base64), where they came from, why they were refused, and what
was tried. Its key is the same at each attempt, and it is created, never overwritten: who finds it there (412) adopts
its digest. The digest is that of the object's bytes as they lie in the bucket, so that ``sha256sum`` can check it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec
import zstandard
from aiohttp import ClientError as CutShort
from botocore.exceptions import ClientError, HTTPClientError
from msgspec import Struct

from shared.aws import open_client
from shared.parked.calls import Budget, Calls, Lanes, ParkedUnavailable, Trouble, pauses
from shared.parked.items import decompress
from shared.parked.leases import Edit, Error, Row
from shared.parked.model import ParkedEvent

VERSION = 1
FOLDER = "evidence/"
INLINE_BYTES_MAX = 64 * 1024
"""Above it packing and unpacking go to a thread."""
PAGE_KEYS = 1000

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed"})


class ArchiveUnavailable(Exception):
    """The bucket does not answer, or not with yes: nothing may be told or deleted until it does."""

    def __init__(self, text: str, *, is_missing: bool = False) -> None:
        super().__init__(text)
        self.is_missing = is_missing  # the bucket does not exist


class EvidenceMissing(Exception):
    """There is no such object."""


class EvidenceDamaged(Exception):
    """An object is there, but not what was written, or it is no evidence."""


class History(Struct, frozen=True, kw_only=True):
    """What was tried before the event was given up."""

    round: int
    attempts: int
    tries: int
    first_at_ms: int
    deadline_ms: int
    stale_why: str
    errors: tuple[Error, ...] = ()
    edits: tuple[Edit, ...] = ()


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything that a re-drive from the archive needs, and what an auditor asks."""

    version: int = VERSION
    event: ParkedEvent  # with the raw bytes of its newest rev
    raw_sha256: str
    original: bytes | None = None  # as it was parked, where it was edited since
    key_cut: bool = False  # ``event.key`` is no more than its start: derive it from the raw bytes
    history: History


class Written(Struct, frozen=True):
    """Where a piece of evidence lies, and the sha256 of its bytes there."""

    key: str
    sha256: str


class Stored(Struct, frozen=True):
    key: str
    modified_ms: int


def evidence_of(row: Row, original: bytes | None = None) -> Evidence:
    """``row``: with its raw bytes. ``original``: where it was edited."""
    return Evidence(
        event=row.event,
        raw_sha256=sha256(row.event.raw).hexdigest(),
        original=original,
        key_cut=row.key_cut,
        history=History(
            round=row.round,
            attempts=row.att,
            tries=row.tries,
            first_at_ms=row.first_at_ms,
            deadline_ms=row.deadline_ms,
            stale_why=row.stale_why,
            errors=row.errs,
            edits=row.edits,
        ),
    )


def evidence_key(row: Row) -> str:
    """The same whenever it is asked for, and no other row's: the nonce tells events parked twice under one id."""
    day = datetime.fromtimestamp(row.first_at_ms // 1000, UTC).strftime("%Y/%m/%d")
    return f"{FOLDER}{day}/{row.event.entity}/{row.item_id}/{row.round:04d}-{row.nonce}.json.zst"


def pack(evidence: Evidence) -> bytes:
    return zstandard.compress(msgspec.json.encode(evidence))


def unpack(body: bytes) -> Evidence:
    """Raises ``EvidenceDamaged``: no evidence, or its raw bytes are not those that it names."""
    try:
        evidence = msgspec.json.decode(decompress(body), type=Evidence)
    except (zstandard.ZstdError, msgspec.MsgspecError, ValueError) as error:
        raise EvidenceDamaged(f"can't be read: {type(error).__name__}") from error
    if evidence.version != VERSION:
        raise EvidenceDamaged(f"has the version {evidence.version}; this program reads {VERSION}")
    if sha256(evidence.event.raw).hexdigest() != evidence.raw_sha256:
        raise EvidenceDamaged("the digest of its raw bytes differs from the one in it")
    return evidence


class Archive:
    """The archive bucket. Creates and reads; never overwrites, never deletes. Raises ``ArchiveUnavailable``."""

    def __init__(self, bucket: str, root: str, s3: Any, *, budget_s: float = 15.0) -> None:
        self._bucket = bucket
        self._root = root
        self._region = str(s3.meta.region_name or "")
        self._calls = Calls(s3, f"bucket {bucket}", Lanes(8))
        self._budget_s = budget_s

    @classmethod
    async def open(cls, bucket: str, root: str, stack: AsyncExitStack, *, budget_s: float = 15.0) -> "Archive":
        """``root``: the namespace's prefix, or ``""``. Makes no request."""
        return cls(bucket, root, await open_client("s3", stack, connections_max=10), budget_s=budget_s)

    async def keep(self, row: Row, original: bytes | None = None) -> Written:
        """Durable when it returns. What stands there already is adopted if it holds the same raw bytes.

        Raises ``EvidenceDamaged`` when something else stands there.
        """
        evidence = evidence_of(row, original)
        large = len(evidence.event.raw) > INLINE_BYTES_MAX
        body = await asyncio.to_thread(pack, evidence) if large else pack(evidence)
        written = Written(evidence_key(row), sha256(body).hexdigest())
        about = {"sha256": written.sha256, "raw-sha256": evidence.raw_sha256}
        if await self.create(written.key, body, about):
            return written
        there = await self._metadata(written.key)
        if there is None or there.get("raw-sha256") != evidence.raw_sha256 or "sha256" not in there:
            raise EvidenceDamaged(f"{self.uri(written.key)}: another object stands there, not this event's")
        return Written(written.key, there["sha256"])

    async def holds(self, uri: str, digest: str) -> bool:
        """Whether the object is (still) there under this digest, by what its metadata say."""
        found = await self._metadata(self._key_of(uri))
        return found is not None and found.get("sha256") == digest

    async def read(self, uri: str) -> ParkedEvent:
        """The event as it was archived, to be driven again. Raises ``EvidenceMissing``, ``EvidenceDamaged``."""
        return (await self.evidence(uri)).event

    async def evidence(self, uri: str) -> Evidence:
        """Raises ``EvidenceMissing``, ``EvidenceDamaged``; ``ValueError`` for a uri of another bucket."""
        body = await self.get(self._key_of(uri))
        if body is None:
            raise EvidenceMissing(f"{uri}: there is no such object")
        try:
            return await asyncio.to_thread(unpack, body) if len(body) > INLINE_BYTES_MAX else unpack(body)
        except EvidenceDamaged as damage:
            raise EvidenceDamaged(f"{uri}: {damage}") from damage

    async def uris(
        self, *, entity: str | None = None, since_day: str | None = None, until_day: str | None = None
    ) -> AsyncIterator[str]:
        """All evidence, by the day on which the events were parked first (``2026-01-31``, both days included)."""
        after = f"{FOLDER}{since_day.replace('-', '/')}" if since_day is not None else ""
        end = f"{FOLDER}{until_day.replace('-', '/')}0" if until_day is not None else None  # "0" follows "/"
        async for stored in self.listing(FOLDER, after):
            if end is not None and stored.key >= end:
                return
            if entity is None or stored.key.split("/")[4] == entity:
                yield self.uri(stored.key)

    async def ensure_bucket(self) -> bool:
        """True: created now."""
        region = self._region
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        place: dict[str, Any] = {} if region in ("", "us-east-1") else elsewhere
        if await self._call("head_bucket") is not None:
            return False
        try:
            await self._call("create_bucket", **place)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "OperationAborted"):
                raise
            return False
        return True

    async def demand(self) -> None:
        """One cheap call, before a reader takes a missing bucket for an empty one. Raises ``ArchiveUnavailable``."""
        if await self._call("head_bucket", budget_s=2.0) is None:
            raise self._missing()

    async def answers(self) -> str | None:
        """Why the bucket can't be used, if so: for readiness."""
        try:
            await self.demand()
        except ArchiveUnavailable as error:
            return str(error)
        return None

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._root}{key}"

    async def create(self, key: str, body: bytes, metadata: dict[str, str]) -> bool:
        """False: the key is taken (perhaps by us, when an answer was lost)."""
        try:
            put = await self._call("put_object", Key=self._root + key, Body=body, Metadata=metadata, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] not in _TAKEN:
                raise
            return False
        if put is None:
            raise self._missing()
        return True

    async def get(self, key: str) -> bytes | None:
        budget = Budget(self._budget_s)
        for pause_s in pauses():
            answer = await self._call("get_object", Key=self._root + key)
            if answer is None:
                return None
            try:
                async with answer["Body"] as stream:
                    return bytes(await stream.read())
            except (CutShort, HTTPClientError, OSError) as error:  # in the middle of the answer
                try:
                    await self._calls.back_off(pause_s, Trouble(f"{type(error).__name__}: {error}"), budget)
                except ParkedUnavailable as spent:
                    raise ArchiveUnavailable(f"reading {key!r}: {error}") from spent
        raise AssertionError("pauses have no end")

    async def listing(self, prefix: str, after: str = "") -> AsyncIterator[Stored]:
        """In order of keys, from the first one behind ``after``."""
        while True:
            start: dict[str, Any] = {"StartAfter": self._root + after} if after else {}
            answer = await self._call("list_objects_v2", Prefix=self._root + prefix, MaxKeys=PAGE_KEYS, **start)
            for found in (answer or {}).get("Contents", ()):
                after = found["Key"].removeprefix(self._root)
                yield Stored(after, int(found["LastModified"].timestamp() * 1000))
            if not (answer or {}).get("IsTruncated"):
                return

    async def folders(self, prefix: str) -> list[str]:
        """Names of what lies directly below ``prefix``, in order."""
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._call("list_objects_v2", Prefix=self._root + prefix, Delimiter="/", **more)
            folders = (answer or {}).get("CommonPrefixes", ())
            found += [folder["Prefix"].removeprefix(self._root + prefix).rstrip("/") for folder in folders]
            if not (answer or {}).get("IsTruncated"):
                return sorted(found)
            assert answer is not None
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def _missing(self) -> ArchiveUnavailable:
        return ArchiveUnavailable(
            f"the bucket {self._bucket} does not exist; run `tidemark bootstrap`", is_missing=True
        )

    async def _metadata(self, key: str) -> dict[str, str] | None:
        answer = await self._call("head_object", Key=self._root + key)
        return None if answer is None else {name.lower(): value for name, value in answer["Metadata"].items()}

    def _key_of(self, uri: str) -> str:
        start = f"s3://{self._bucket}/{self._root}"
        if not uri.startswith(start):
            raise ValueError(f"{uri!r} does not lie under {start}: set TIDEMARK_ARCHIVE_BUCKET and TIDEMARK_NAMESPACE")
        return uri.removeprefix(start)

    async def _call(self, operation: str, *, budget_s: float | None = None, **parameters: Any) -> dict[str, Any] | None:
        """``None``: there is no such key or bucket. Refusals of a condition are raised as they are."""
        budget = Budget(self._budget_s if budget_s is None else budget_s)
        try:
            return await self._calls.call(operation, budget, Bucket=self._bucket, **parameters)
        except ParkedUnavailable as error:
            if error.is_missing:
                return None
            raise ArchiveUnavailable(str(error).removeprefix(f"{error.reason}: ")) from error
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise
