"""Schemas in memory and on disk, so that a process starts and runs while the registry is down.

An id never changes its schema, so what is known of it is known for ever. That an id or a subject is unknown may change
any moment, so that is believed for seconds only. Which versions a subject has is always asked; the disk answers only
while the registry can't.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog
from msgspec import Struct

from shared.registry.client import RegisteredSchema, RegistryUnavailable, UnknownSchema

log = structlog.get_logger(__name__)

NEGATIVES_MAX = 10_000
SCHEMAS_MAX = 10_000
"""In memory. Beyond it the oldest is read from disk again when needed."""

_S = TypeVar("_S", bound=Struct)


class SchemaSource(Protocol):
    """What the cache needs of the registry."""

    async def schema_by_id(self, schema_id: int) -> str:
        """Raises ``UnknownSchema``, ``RegistryUnavailable``."""

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        """Oldest first. Raises ``UnknownSubject``, ``RegistryUnavailable``."""


class _StoredSchema(Struct, frozen=True):
    schema_id: int
    schema: str


class _StoredVersions(Struct, frozen=True):
    subject: str
    versions: list[RegisteredSchema]


class SchemaCache:
    """``scope`` names the registry (its address): ids of two registries must not meet in one folder."""

    def __init__(
        self,
        registry: SchemaSource,
        cache_dir: Path,
        *,
        scope: str,
        negative_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._folder = cache_dir / f"registry-{hashlib.sha256(scope.encode()).hexdigest()[:16]}"
        self._negative_s = negative_s
        self._monotonic = monotonic
        self._schemas: dict[int, str] = {}
        self._unknown_until: dict[int, float] = {}

    def known(self, schema_id: int) -> str | None:
        """What is in memory; asks nobody."""
        return self._schemas.get(schema_id)

    async def by_id(self, schema_id: int) -> str:
        """The schema. Raises ``UnknownSchema`` (believed for ``negative_s``), ``RegistryUnavailable``."""
        if (schema := self._schemas.get(schema_id)) is not None:
            return schema
        if self._unknown_until.get(schema_id, 0.0) > self._monotonic():
            raise UnknownSchema(schema_id)
        stored = await self._read(self._schema_path(schema_id), _StoredSchema)
        if stored is not None and stored.schema_id == schema_id:
            self._remember(schema_id, stored.schema)
            return stored.schema
        try:
            schema = await self._registry.schema_by_id(schema_id)
        except UnknownSchema:
            if len(self._unknown_until) >= NEGATIVES_MAX:
                self._unknown_until.clear()
            self._unknown_until[schema_id] = self._monotonic() + self._negative_s
            raise
        await self._keep(schema_id, schema)
        return schema

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        """All versions of a subject, oldest first, from the registry; while it is down, those it had last.

        Raises ``UnknownSubject``, and ``RegistryUnavailable`` where the disk has none either.
        """
        path = self._folder / "subjects" / f"{hashlib.sha256(subject.encode()).hexdigest()[:32]}.json"
        try:
            versions = await self._registry.versions(subject)
        except RegistryUnavailable as error:
            stored = await self._read(path, _StoredVersions)
            if stored is None or stored.subject != subject or not stored.versions:
                raise
            log.warning("schema_versions_from_disk", subject=subject, versions=len(stored.versions), why=str(error))
            versions = stored.versions
        else:
            await self._write(path, _StoredVersions(subject, versions))
        for version in versions:
            await self._keep(version.schema_id, version.schema)
        return versions

    async def latest(self, subject: str) -> RegisteredSchema:
        """The newest of ``versions``; raises the same."""
        return (await self.versions(subject))[-1]

    async def _keep(self, schema_id: int, schema: str) -> None:
        path = self._schema_path(schema_id)
        known = self._schemas.get(schema_id)
        if known is None and (stored := await self._read(path, _StoredSchema)) is not None:
            known = stored.schema
        if known is not None and known != schema:
            # A registry that was emptied and filled anew. Its word counts, but records of before can't be read by it.
            log.error("schema_id_changed_its_schema", schema_id=schema_id, folder=str(self._folder))
        if known != schema:
            await self._write(path, _StoredSchema(schema_id, schema))
        self._remember(schema_id, schema)

    def _remember(self, schema_id: int, schema: str) -> None:
        if len(self._schemas) >= SCHEMAS_MAX:
            self._schemas.pop(next(iter(self._schemas)))
        self._schemas[schema_id] = schema
        self._unknown_until.pop(schema_id, None)

    def _schema_path(self, schema_id: int) -> Path:
        return self._folder / "ids" / f"{schema_id}.json"

    async def _read(self, path: Path, kind: type[_S]) -> _S | None:
        """What the file holds; a file that is torn or foreign counts as none, for the registry can be asked."""
        try:
            return msgspec.json.decode(await asyncio.to_thread(path.read_bytes), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("schema_cache_unreadable", path=str(path), why=type(error).__name__)
            return None

    async def _write(self, path: Path, content: Struct) -> None:
        """Whole or not at all. A disk that is full or read-only costs the copy, not the work."""
        try:
            await asyncio.to_thread(_replace, path, msgspec.json.encode(content))
        except OSError as error:
            log.warning("schema_cache_not_written", path=str(path), why=error.strerror or str(error))


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    try:
        with open(written, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
