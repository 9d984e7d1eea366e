"""Kafka that takes no more records of some topics, asked for over its own protocol: nothing is stopped or cut off.

A topic's ``message.timestamp.before.max.ms`` says how old a record may be when it comes; with 0 the real broker refuses
every record, since each has got older on its way. (``min.insync.replicas`` above the number of replicas would be the
nearer thing, but brokers have bounded it by that number since 3.7.)
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from shared.kafka.errors import KafkaUnreachable
from shared.kafka.settings import KafkaSettings

_T = TypeVar("_T")

SETTING = "message.timestamp.before.max.ms"
REFUSES = "0"
_OF_THE_TOPIC = 1
"""The source of a setting that was made on the topic itself; all others are defaults."""


class Topics:
    """Their settings, changed one at a time: the others stay as they are."""

    def __init__(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        self._admin = admin
        self._names = tuple(names)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Inside, the broker refuses every record; afterwards it takes them, whatever happened inside."""
        try:
            await self._set_all(REFUSES)
            yield
        finally:
            await self._set_all(None)

    async def heal(self) -> list[str]:
        """What a walk that was killed has left refusing takes records again. Returns the names."""
        left = [name for name in self._names if (await self._own(name)).get(SETTING) == REFUSES]
        for name in left:
            await self._set(name, None)
        return left

    async def _set_all(self, value: str | None) -> None:
        for name in self._names:
            await self._set(name, value)

    async def _set(self, name: str, value: str | None) -> None:
        """The protocol's old call replaces all of a topic's own settings: the others are said again."""
        settings = {key: text for key, text in (await self._own(name)).items() if key != SETTING}
        settings |= {} if value is None else {SETTING: value}
        wanted = ConfigResource(ConfigResourceType.TOPIC, name, configs=settings)
        [answer] = await _asked(self._admin.alter_configs([wanted]))
        code, message, *_ = answer.resources[0]
        _demand(code, message, name)

    async def _own(self, name: str) -> dict[str, str]:
        [answer] = await _asked(self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)]))
        code, message, _type, _name, entries = answer.resources[0]
        _demand(code, message, name)
        return {key: text for key, text, _read_only, source, *_ in entries if source == _OF_THE_TOPIC}


@asynccontextmanager
async def open_topics(settings: KafkaSettings, names: Sequence[str]) -> AsyncIterator[Topics]:
    """Raises ``KafkaUnreachable``."""
    admin = AIOKafkaAdminClient(
        client_id="tidemark-demo", request_timeout_ms=settings.request_timeout_ms, **settings.client_kwargs()
    )
    try:
        await _asked(admin.start())
        yield Topics(admin, names)
    finally:
        await admin.close()


async def _asked(asking: Awaitable[_T]) -> _T:
    try:
        return await asking
    except (KafkaError, OSError) as error:
        raise KafkaUnreachable(str(error) or type(error).__name__) from error


def _demand(code: int, message: str | None, topic: str) -> None:
    if code:
        raise KafkaUnreachable(f"the settings of topic {topic!r}: {message or for_code(code).__name__}")
