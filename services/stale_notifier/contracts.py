"""What the entities' schemas say to a notice: which of its words may be told, and which versions refuse the events."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from services.stale_notifier.disclosure import Disclosure
from shared.entities import Entities, Entity
from shared.events.contract import ContractError, compile_contract
from shared.logs import get_logger
from shared.parked.analysis import contract_fingerprint
from shared.parked.groups import Cause
from shared.registry.client import RegisteredSchema, RegistryError

log = get_logger(__name__)

VERSIONS_MAX = 5
"""Of the newest ones: events are tried against each new version, so that what refuses them is new."""


class Schemas(Protocol):
    """``SchemaCache``."""

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        """Oldest first. Raises ``RegistryError``."""


class Contracts:
    """``schemas`` None: there is no registry to ask."""

    def __init__(self, entities: Entities, schemas: Schemas | None = None) -> None:
        self._entities = entities
        self._schemas = schemas

    def disclosure(self, name: str) -> Disclosure:
        """By the schema of the entity's file. Without one next to nothing may be told."""
        entity = self._entities.entities.get(name)
        return Disclosure(None if entity is None else entity.schema_text)

    async def refusing(self, cause: Cause) -> tuple[int, ...]:
        """Schema versions whose contract has the cause's fingerprint, rising; ``()``: not known."""
        entity = self._entities.entities.get(cause.entity)
        if self._schemas is None or entity is None or not cause.fingerprint:
            return ()
        try:
            versions = await self._schemas.versions(entity.schema_subject)
        except RegistryError as error:
            log.info("versions_not_known", entity=cause.entity, error=str(error))
            return ()
        return await asyncio.to_thread(_refusing, entity, versions[-VERSIONS_MAX:], cause.fingerprint)


def _refusing(entity: Entity, versions: Sequence[RegisteredSchema], fingerprint: str) -> tuple[int, ...]:
    found = [v.version for v in versions if fingerprint in _fingerprints(entity, v.schema, v.schema_id)]
    return tuple(sorted(found))


def _fingerprints(entity: Entity, schema: str, schema_id: int) -> set[str]:
    try:
        contract = compile_contract(entity.rules, schema, entity.schema_subject, schema_id)
    except ContractError:
        return set()
    return {contract.fingerprint, contract_fingerprint(contract, entity.repairs), f"id:{schema_id}"}
