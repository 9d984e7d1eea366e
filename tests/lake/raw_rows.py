"""Raw objects as the sink writes them: by the project's own flattening and ledger, into S3 or a folder."""

import io
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import fastavro
import zstandard
from msgspec import Struct

from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import KeyPage, ObjectStore, RawObject, SlotTaken, Stored


class Change(Struct, frozen=True):
    """One record of the topic. ``fields`` None: a tombstone. ``seq`` None, ``event_id`` "": without their headers."""

    key: str
    fields: dict[str, Any] | None
    seq: tuple[int, int] | None
    event_id: str
    op: str = "u"
    schema_id: int = 1
    rev: int = 0
    attempt: int = 0


HEARTBEAT = Change("", None, None, "", op="h")


class _Record(Struct, frozen=True):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Topic:
    """Cuts changes into the objects of a chain, each beginning where the one before ends."""

    def __init__(
        self, store: ObjectStore, keys: Keys, topic: str, key: Sequence[str], schemas: Mapping[int, str]
    ) -> None:
        self.ledger = Ledger(store, keys)
        self.store, self.keys, self.topic, self.key = store, keys, topic, key
        self.schemas: dict[int, str] = {}
        self._flatteners: dict[int, Flattener] = {}
        self._parsed: dict[int, Any] = {}
        self.next: dict[Chain, int] = {}
        for schema_id, schema in schemas.items():
            self.add_schema(schema_id, schema)

    def add_schema(self, schema_id: int, schema: str) -> None:
        self.schemas[schema_id] = schema
        self._flatteners[schema_id] = Flattener(schema, schema_id)
        self._parsed[schema_id] = fastavro.parse_schema(json.loads(schema))

    def chain(self, partition: int = 0, generation: int = 1) -> Chain:
        return Chain(self.topic, generation, partition)

    async def write(self, changes: Sequence[Change], partition: int = 0, generation: int = 1) -> RawObject:
        """One object that holds these, at the chain's end."""
        chain = self.chain(partition, generation)
        start = self.next.get(chain, 0)
        body, count, ids = self.rows(changes, chain, start)
        packed = zstandard.ZstdCompressor(level=3).compress(body)
        link = RawObject(
            chain=chain,
            start=start,
            end=start + len(changes) - 1,
            count=count,
            schema_ids=ids,
            sha256=sha256(packed).hexdigest(),
            writer="test",
        )
        self.next[chain] = link.next_start
        return await self.ledger.write(link, packed)

    async def write_body(self, body: bytes, count: int, partition: int = 0) -> RawObject:
        """One object with these bytes, whatever they are, that claims ``count`` rows."""
        chain = self.chain(partition)
        start = self.next.get(chain, 0)
        packed = zstandard.ZstdCompressor(level=3).compress(body)
        digest = sha256(packed).hexdigest()
        link = RawObject(chain=chain, start=start, end=start + count - 1, count=count, sha256=digest, writer="test")
        self.next[chain] = link.next_start
        return await self.ledger.write(link, packed)

    def rows(self, changes: Sequence[Change], chain: Chain, start: int) -> tuple[bytes, int, tuple[int, ...]]:
        records = [self._record(start + index, change) for index, change in enumerate(changes)]
        contract = KeyContract(self.key, next(iter(self.schemas.values())))
        origin = Origin(chain.topic, chain.generation, chain.partition)
        flat = flatten_batch(origin, records, self._flatteners, contract)
        assert not flat.undecodable, flat.undecodable
        return flat.body, flat.rows, flat.schema_ids

    def _record(self, offset: int, change: Change) -> _Record:
        value = None if change.fields is None else self._framed(change.schema_id, change.fields)
        headers = [("tm-op", change.op.encode())]
        if change.event_id:
            headers.append(("tm-event-id", change.event_id.encode()))
        if change.seq is not None:
            headers.append(("tm-seq", b"%d.%d" % change.seq))
        if change.rev:
            headers.append(("tm-rev", b"%d" % change.rev))
        if change.attempt:
            headers.append(("tm-attempt", b"%d" % change.attempt))
        return _Record(offset, 1_700_000_000_000 + offset, change.key.encode(), value, headers)

    def _framed(self, schema_id: int, fields: dict[str, Any]) -> bytes:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, self._parsed[schema_id], fields)
        return b"\x00" + schema_id.to_bytes(4, "big") + body.getvalue()


class FolderStore:
    """The raw bucket as a folder that Spark can read, with its metadata beside it: an ``ObjectStore`` with sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = folder.with_name(f"{folder.name}.metadata")
        self.requests: list[tuple[str, str]] = []

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        self.requests.append(("create", key))
        path, beside = self.folder / key, self._metadata / key
        if path.exists():
            raise SlotTaken(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(dict(metadata)))
        path.write_bytes(body)

    async def head(self, key: str) -> dict[str, str] | None:
        self.requests.append(("head", key))
        return self._found(key)

    async def read(self, key: str) -> Stored | None:
        self.requests.append(("read", key))
        metadata = self._found(key)
        return None if metadata is None else Stored((self.folder / key).read_bytes(), metadata)

    async def keys_after(self, prefix: str, after: str, limit: int = 1000) -> KeyPage:
        self.requests.append(("list", prefix))
        keys = self._keys(prefix, after)
        return KeyPage(keys[:limit], len(keys) > limit)

    async def sizes_after(self, prefix: str, after: str, limit: int = 1000) -> tuple[list[tuple[str, int]], bool]:
        self.requests.append(("list", prefix))
        keys = self._keys(prefix, after)
        return [(key, (self.folder / key).stat().st_size) for key in keys[:limit]], len(keys) > limit

    def delete(self, key: str) -> None:
        (self.folder / key).unlink()

    def _found(self, key: str) -> dict[str, str] | None:
        if not (self.folder / key).exists():
            return None
        metadata: dict[str, str] = json.loads((self._metadata / key).read_text())
        return metadata

    def _keys(self, prefix: str, after: str) -> list[str]:
        below = self.folder / prefix.rpartition("/")[0]
        found = [path.relative_to(self.folder).as_posix() for path in below.rglob("*") if path.is_file()]
        return sorted(key for key in found if key.startswith(prefix) and key > after)
