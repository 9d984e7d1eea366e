"""The analyst of each entity under its newest registered schema: for whoever tries parked events again."""

import time
from collections.abc import Callable, Mapping

from msgspec import Struct

from shared.entities import Entity
from shared.events.contract import ContractError, check_columns, compile_contract
from shared.parked.analysis import Analyst
from shared.parked.wake import NoAnalyst
from shared.registry.cache import SchemaCache
from shared.registry.client import RegisteredSchema, RegistryError


class _Kept(Struct, frozen=True):
    analyst: Analyst
    until_s: float  # monotonic


class Analysts:
    """Asks the registry at most once in ``refresh_s`` per entity, and compiles only what has changed."""

    def __init__(
        self,
        entities: Mapping[str, Entity],
        schemas: SchemaCache,
        *,
        refresh_s: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entities = entities
        self._schemas = schemas
        self._refresh_s = refresh_s
        self._monotonic = monotonic
        self._kept: dict[str, _Kept] = {}
        self._versions: dict[str, list[RegisteredSchema]] = {}

    async def current(self, entity: str) -> Analyst:
        """By the newest schema version; by the disk's copy while the registry is down. Raises ``NoAnalyst``."""
        kept = self._kept.get(entity)
        if kept is not None and self._monotonic() < kept.until_s:
            return kept.analyst
        if entity not in self._entities:
            raise NoAnalyst(f"entity {entity!r} is not in the folder any more: its parked events need their contract")
        try:
            versions = await self._schemas.versions(self._entities[entity].schema_subject)
            if kept is None or versions != self._versions[entity]:
                kept = _Kept(analyst_of(self._entities[entity], versions), 0.0)
        except (RegistryError, ContractError) as error:
            raise NoAnalyst(f"{entity}: {error}") from error
        self._kept[entity] = _Kept(kept.analyst, self._monotonic() + self._refresh_s)
        self._versions[entity] = versions
        return kept.analyst


def analyst_of(entity: Entity, versions: list[RegisteredSchema]) -> Analyst:
    """By the last of ``versions``. Raises ``ContractError``."""
    check_columns([version.schema for version in versions])
    newest = versions[-1]
    return Analyst(
        compile_contract(entity.rules, newest.schema, newest.subject, newest.schema_id),
        entity.rules,
        entity.repairs,
        future_us_max=int(entity.future_s_max * 1_000_000),
        schemas={version.schema_id: version.schema for version in versions},
        version=newest.version,
    )


def candidate(entity: Entity, schema: str) -> Analyst:
    """By a schema that is not registered yet: for a dry run. Raises ``ContractError``."""
    return Analyst(
        compile_contract(entity.rules, schema, entity.schema_subject, 0),
        entity.rules,
        entity.repairs,
        future_us_max=int(entity.future_s_max * 1_000_000),
    )
