"""Avro records → flattened rows, by schemas from the registry's cache."""

from collections.abc import Mapping, Sequence

from services.s3_sink.lane import Rows
from services.s3_sink.ports import Learned
from shared import logs
from shared.entities import Entity
from shared.events.contract import ContractError
from shared.events.flatten import Flattener, KeyContract, Origin, flatten_batch, schema_id_of, schema_ids
from shared.events.lineage import ConsumedRecord
from shared.raw.keys import Chain
from shared.registry.cache import SchemaCache
from shared.registry.client import RegistryError, RegistryUnavailable, UnknownSchema

log = logs.get_logger(__name__)

KEY_CONTRACT = -1
"""Stands for a schema id while a topic's key contract is not known: any version of its schema gives it."""


class AvroDecoder:
    """A ``Decoder``. Schemas never change under an id, so what was learned once is kept for good."""

    def __init__(self, schemas: SchemaCache, topics: Mapping[str, Entity]) -> None:
        self._schemas = schemas
        self._topics = topics
        self._flatteners: dict[int, Flattener] = {}
        self._keys: dict[str, KeyContract] = {}
        for topic, entity in topics.items():
            if entity.schema_text is not None:
                self._keys[topic] = KeyContract(entity.rules.key, entity.schema_text)

    def ready(self, topic: str, records: Sequence[ConsumedRecord]) -> tuple[int, int | None]:
        missing = schema_ids(records) - self._flatteners.keys()
        if topic not in self._keys:
            return 0, next(iter(missing), KEY_CONTRACT)
        if not missing:
            return len(records), None
        for index, record in enumerate(records):
            schema_id = schema_id_of(record.value)
            if schema_id in missing:
                return index, schema_id
        raise AssertionError("a schema id that no record has")

    def rows(self, chain: Chain, records: Sequence[ConsumedRecord]) -> Rows:
        origin = Origin(chain.topic, chain.generation, chain.partition)
        flat = flatten_batch(origin, records, self._flatteners, self._keys[chain.topic])
        return Rows(flat.body, flat.rows, flat.schema_ids, [(bad.index, bad.detail) for bad in flat.undecodable])

    async def learn(self, topic: str, schema_id: int) -> Learned:
        try:
            await self._learn(topic, schema_id)
        except UnknownSchema:
            return Learned.UNKNOWN
        except ContractError as error:
            log.error("schema_unusable", topic=topic, schema_id=schema_id, why=str(error))
            return Learned.UNUSABLE
        except RegistryUnavailable:
            return Learned.UNAVAILABLE
        except RegistryError as error:  # refused us, or has no such subject yet
            log.warning("registry_refused", topic=topic, schema_id=schema_id, why=str(error))
            return Learned.UNAVAILABLE
        return Learned.KNOWN

    async def _learn(self, topic: str, schema_id: int) -> None:
        entity = self._topics[topic]
        if schema_id == KEY_CONTRACT:
            schema = (await self._schemas.latest(entity.schema_subject)).schema
        else:
            schema = await self._schemas.by_id(schema_id)
            flattener = Flattener(schema, schema_id)
            if flattener.general:
                log.info("schema_on_general_path", schema_id=schema_id, why=flattener.reasons)
            self._flatteners[schema_id] = flattener
        if topic not in self._keys:
            self._keys[topic] = KeyContract(entity.rules.key, schema)
