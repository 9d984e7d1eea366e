"""What the raw bucket holds, and what is asked of the store that holds it. Pure: no client library.

An object's metadata travels in the same PUT as its body, so that neither exists without the other.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Literal, Protocol

from msgspec import Struct

from shared.raw.keys import Chain

SCHEMA_IDS_MAX = 100
"""S3 allows 2 KB of metadata. Longer lists end in ``more``: they help readers to plan, and prove nothing."""

_NUMBER = re.compile(r"\d{1,19}")


class LastRecord(Struct, frozen=True):
    """The last record that exists at or below an object's end: if Kafka still has it, it must be the same one."""

    offset: int
    timestamp_ms: int
    digest: str
    """Of key and value, by ``record_digest``."""


class RawObject(Struct, frozen=True, kw_only=True):
    """One link of a chain: all offsets from ``start`` to ``end``, both included, whether or not a record is there."""

    chain: Chain
    start: int
    end: int
    count: int
    """Rows in the body. Less than the offsets covered where these hold no record, or one that was parked."""
    first_ms: int | None = None
    """The smallest record timestamp; ``None`` without records."""
    last_ms: int | None = None
    schema_ids: tuple[int, ...] = ()
    schema_ids_more: bool = False
    sha256: str = ""
    """Of the body as stored, in hex."""
    writer: str = ""
    kind: Literal["records", "gap"] = "records"
    cause: Literal["", "genesis", "retention"] = ""
    """Of a gap: the log began later than offset 0, or Kafka's retention overtook the sink."""
    last: LastRecord | None = None

    @property
    def next_start(self) -> int:
        return self.end + 1

    def metadata(self) -> dict[str, str]:
        """As S3 user metadata: lower-case names, ASCII values."""
        ids = ",".join(map(str, self.schema_ids[:SCHEMA_IDS_MAX]))
        if self.schema_ids_more or len(self.schema_ids) > SCHEMA_IDS_MAX:
            ids += ",more"
        fields: dict[str, object] = {
            "tm-kind": self.kind,
            "tm-cause": self.cause,
            "tm-end": self.end,
            "tm-count": self.count,
            "tm-first-ts": self.first_ms,
            "tm-last-ts": self.last_ms,
            "tm-schema-ids": ids,
            "tm-sha256": self.sha256,
            "tm-writer": self.writer,
        }
        if self.last is not None:
            fields |= {
                "tm-record-offset": self.last.offset,
                "tm-record-ts": self.last.timestamp_ms,
                "tm-record-digest": self.last.digest,
            }
        return {name: str(value) for name, value in fields.items() if value not in (None, "")}


class NotOurs(Exception):
    """What lies where a link of the chain should can't be read as one. Someone must look; nothing is written."""


def from_metadata(chain: Chain, start: int, metadata: Mapping[str, str]) -> RawObject:
    """The object whose metadata these are. Raises ``NotOurs``."""
    try:
        ids = [part for part in metadata.get("tm-schema-ids", "").split(",") if part]
        kind, cause = metadata["tm-kind"], metadata.get("tm-cause", "")
        if kind not in ("records", "gap") or cause not in ("", "genesis", "retention"):
            raise ValueError(f"unknown kind {kind!r} or cause {cause!r}")
        found = RawObject(
            chain=chain,
            start=start,
            end=int(metadata["tm-end"]),
            count=int(metadata["tm-count"]),
            first_ms=_optional(metadata.get("tm-first-ts")),
            last_ms=_optional(metadata.get("tm-last-ts")),
            schema_ids=tuple(int(part) for part in ids if _NUMBER.fullmatch(part)),
            schema_ids_more=ids[-1:] == ["more"],
            sha256=metadata["tm-sha256"],
            writer=metadata.get("tm-writer", ""),
            kind="gap" if kind == "gap" else "records",
            cause=cause,  # type: ignore[arg-type]  # checked above
            last=_last_record(metadata),
        )
    except (KeyError, ValueError) as error:
        raise NotOurs(f"the object of {chain} at offset {start} has no readable metadata ({error})") from error
    if found.end < start:
        raise NotOurs(f"the object of {chain} at offset {start} claims to end at {found.end}")
    return found


def record_digest(key: bytes | None, value: bytes | None) -> str:
    """A digest of one record, hex. Lengths stand before the parts; an absent part is not an empty one."""
    digest = sha256()
    for part in (key, value):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.hexdigest()


def _last_record(metadata: Mapping[str, str]) -> LastRecord | None:
    if "tm-record-offset" not in metadata:
        return None
    return LastRecord(
        offset=int(metadata["tm-record-offset"]),
        timestamp_ms=int(metadata["tm-record-ts"]),
        digest=metadata["tm-record-digest"],
    )


def _optional(text: str | None) -> int | None:
    return None if text is None else int(text)


class SlotTaken(Exception):
    """The key exists already (412). Who wrote it is unknown: it may have been our own request, landing late."""


class StoreUnavailable(Exception):
    """No answer, or one that says nothing about the outcome (409, 5xx, denied): try the same bytes again."""


class Stored(Struct, frozen=True):
    body: bytes
    metadata: dict[str, str]


class KeyPage(Struct, frozen=True):
    """Keys in ascending order; ``more``: further ones follow."""

    keys: Sequence[str]
    more: bool


class ObjectStore(Protocol):
    """What the ledger needs of a bucket. Each call is one request, and may raise ``StoreUnavailable``."""

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        """Create it or raise ``SlotTaken``; never overwrite. After ``StoreUnavailable`` it may exist or appear."""

    async def head(self, key: str) -> dict[str, str] | None:
        """The object's metadata, or ``None`` if there is none."""

    async def read(self, key: str) -> Stored | None:
        """Body and metadata, or ``None``."""

    async def keys_after(self, prefix: str, after: str, limit: int = 1000) -> KeyPage:
        """The first keys below ``prefix`` that are greater than ``after``."""


class Tagged(Struct, frozen=True):
    """A small object that may be replaced, and the tag of this very version of it."""

    body: bytes
    tag: str


class ExpiringStore(ObjectStore, Protocol):
    """What an expiry needs besides: the only one who replaces or deletes anything. As above."""

    async def tagged(self, key: str) -> Tagged | None:
        """The object as it is now."""

    async def replace(self, key: str, body: bytes, tag: str) -> None:
        """Overwrite the version that ``tag`` names, or raise ``SlotTaken``: it is another one by now."""

    async def delete(self, keys: Sequence[str]) -> None:
        """``DELETED_AT_ONCE`` at most, those that are gone already included. Some may stay when it raises."""


DELETED_AT_ONCE = 1000
