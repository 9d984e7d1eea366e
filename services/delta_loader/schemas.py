"""Which Avro versions an entity's rows may have, and the lake's schema over all of them; renewed when an id is new."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from services.delta_loader.schema import LakeSchema, lake_schema
from shared import logs
from shared.registry.client import RegisteredSchema

log = logs.get_logger(__name__)


class SchemaVersions(Protocol):
    """What is needed of the registry's cache."""

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        """Oldest first. Raises ``UnknownSubject``, ``RegistryUnavailable``."""

    async def by_id(self, schema_id: int) -> str:
        """Raises ``UnknownSchema``, ``RegistryUnavailable``."""


class Schemas:
    """One entity's. What it raises besides: ``Breaking``, ``ContractError``."""

    def __init__(self, registry: SchemaVersions, subject: str, keys: Sequence[str]) -> None:
        self._registry = registry
        self._subject = subject
        self._keys = keys
        self._texts: dict[int, str] = {}
        self._current: LakeSchema | None = None

    async def covering(self, ids: Iterable[int]) -> LakeSchema:
        """A schema for rows of these ids, and of all that were asked for before."""
        wanted = frozenset(ids)
        if self._current is None or not wanted <= self._current.schema_ids:
            texts = {one.schema_id: one.schema for one in await self._registry.versions(self._subject)}
            for schema_id in sorted((wanted | self._texts.keys()) - texts.keys()):
                # Registered under another subject, or the same text under an id of its own.
                texts[schema_id] = self._texts.get(schema_id) or await self._registry.by_id(schema_id)
            made = lake_schema(texts, self._keys)
            if self._current is not None:
                log.info("schema_renewed", subject=self._subject, schema_ids=sorted(made.schema_ids))
            self._texts, self._current = texts, made
        return self._current
