"""The contract of an entity: its newest registered schema, compiled. Registered at first, cached at every start."""

from typing import Protocol

from shared.entities import Entity
from shared.events.contract import Contract, check_columns, compile_contract
from shared.registry.cache import SchemaCache


class Registrar(Protocol):
    """What registering needs of the registry."""

    async def register(self, subject: str, schema: str) -> int:
        """The schema's id; the same for the same text. Raises ``SchemaIncompatible``, ``RegistryUnavailable``."""


async def register(entity: Entity, registry: Registrar) -> None:
    """Register the file's schema, compatibility asked first; a schema that we could not use is never registered.

    Nothing changes where the registry has this schema already. Raises ``SchemaIncompatible``, ``ContractError``,
    ``RegistryUnavailable``.
    """
    if entity.register == "file" and entity.schema_text is not None:
        compile_contract(entity.rules, entity.schema_text, entity.schema_subject, 0)
        await registry.register(entity.schema_subject, entity.schema_text)


async def newest_contract(entity: Entity, schemas: SchemaCache) -> Contract:
    """Compile the newest version of the entity's subject, from the disk's copy while the registry is down.

    Raises ``RegistryUnavailable`` without such a copy, ``UnknownSubject``, ``ContractError``.
    """
    versions = await schemas.versions(entity.schema_subject)
    check_columns([version.schema for version in versions])
    newest = versions[-1]
    return compile_contract(entity.rules, newest.schema, newest.subject, newest.schema_id)
