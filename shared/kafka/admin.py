"""Topics: made with what we promise of them, told apart by identity, and how far they reach."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.offset import OffsetRequest
from msgspec import Struct

from shared.kafka.client_logs import quiet_client_logs
from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused
from shared.kafka.metadata import TopicIdentity, TopicMetadata, ask_topic
from shared.kafka.settings import KafkaSettings
from shared.kafka.topic_state import TopicState

CALL_S = 30.0
"""Bounds one call, without the connecting, which has bounds of its own."""
APPEAR_S = 10.0
"""How long a topic that was just made may take until the brokers know it."""
_RETRY_S = 0.1

_EARLIEST, _LATEST = -2, -1
_NOT_LEADER = 6
_ALREADY_EXISTS = 36
_T = TypeVar("_T")


class Watermarks(Struct, frozen=True):
    """``begin``: the first offset that is still there; ``end``: the offset that the next record will get."""

    begin: int
    end: int


class KafkaAdmin:
    """Connects when first used, and anew by the bootstrap list after a failure. Calls may run concurrently."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._client_kwargs = settings.client_kwargs()
        self._request_timeout_ms = settings.request_timeout_ms
        self._admin: AIOKafkaAdminClient | None = None
        self._connecting = asyncio.Lock()

    @classmethod
    async def open(cls, settings: KafkaSettings, stack: AsyncExitStack) -> "KafkaAdmin":
        """Closes with ``stack``. Raises ``ConfigError`` when a certificate or password file can't be used."""
        quiet_client_logs()
        admin = cls(settings)
        stack.push_async_callback(admin._disconnect)
        return admin

    async def reachable(self) -> bool:
        """Whether a broker answers."""
        try:
            return bool(await self._call(lambda admin: admin.describe_cluster()))
        except KafkaUnreachable:
            return False

    async def identity(self, topic: str) -> TopicIdentity:
        """Raises ``TopicMissing``, ``TopicRefused`` (or the broker shows no topic ids), ``KafkaUnreachable``."""
        return (await self._metadata(topic)).identity

    async def missing(self, topics: Iterable[str]) -> list[str]:
        """Those of ``topics`` that don't exist. Raises ``TopicRefused``, ``KafkaUnreachable``."""
        missing = []
        for topic in topics:
            try:
                await self._metadata(topic)
            except TopicMissing:
                missing.append(topic)
        return missing

    async def watermarks(self, topic: str) -> dict[int, Watermarks]:
        """Of every partition. Raises ``TopicMissing``, ``TopicRefused``, ``KafkaUnreachable`` (a leader is missing)."""
        metadata = await self._metadata(topic)
        by_leader: defaultdict[int, list[int]] = defaultdict(list)
        for partition, leader in metadata.leaders.items():
            if leader < 0:
                raise KafkaUnreachable(f"partition {partition} of {topic!r} has no leader")
            by_leader[leader].append(partition)
        marks: dict[int, Watermarks] = {}
        for leader, partitions in by_leader.items():
            begin = await self._offsets(leader, topic, partitions, _EARLIEST)
            end = await self._offsets(leader, topic, partitions, _LATEST)
            marks |= {partition: Watermarks(begin[partition], end[partition]) for partition in partitions}
        return dict(sorted(marks.items()))

    async def ensure_topic(
        self, topic: str, *, partitions: int, replication: int, config: Mapping[str, str] | None = None
    ) -> bool:
        """Make the topic unless it exists; ``config`` holds for a new one only. True: it was made.

        ``replication=-1`` takes the cluster's default. Raises ``TopicRefused`` when it can't be made, or when the one
        there is compacted (which drops changes) or has fewer partitions; ``KafkaUnreachable``.
        """
        wanted = NewTopic(topic, partitions, 1, topic_configs={"cleanup.policy": "delete", **(config or {})})
        wanted.replication_factor = replication  # the constructor refuses the protocol's -1, the cluster's default
        made = False
        if await self.missing([topic]):
            answer = await self._call(lambda admin: admin.create_topics([wanted]))
            _name, code, *message = answer.topic_errors[0]
            if code not in (0, _ALREADY_EXISTS):
                raise TopicRefused(
                    topic, f"can't be made: {message[0] if message and message[0] else for_code(code).__name__}"
                )
            made = code == 0
            await self._appear(topic)
        await self.check_topic(topic, partitions)
        return made

    async def check_topic(self, topic: str, partitions: int) -> None:
        """Raises ``TopicMissing``, ``TopicRefused`` (compacted, or fewer partitions), ``KafkaUnreachable``."""
        present = (await self._metadata(topic)).identity.partitions
        if present < partitions:
            raise TopicRefused(
                topic, f"has {present} partitions, the entity asks for {partitions}; correct one of them"
            )
        policy = await self._topic_config(topic, "cleanup.policy")
        if "compact" in policy:
            raise TopicRefused(topic, f"cleanup.policy is {policy!r}: compaction drops changes; set it to 'delete'")

    async def state(self, topic: str) -> TopicState:
        """Raises ``TopicMissing``, ``TopicRefused`` (or its configuration may not be read), ``KafkaUnreachable``."""
        metadata = await self._metadata(topic)
        return TopicState(
            partitions=metadata.identity.partitions,
            leaderless=sum(leader < 0 for leader in metadata.leaders.values()),
            replicas_min=min(metadata.replicas.values(), default=0),
            in_sync_min=min(metadata.in_sync.values(), default=0),
            settings=await self._topic_configs(topic, None),
        )

    async def _topic_config(self, topic: str, name: str) -> str:
        return (await self._topic_configs(topic, {name: ""})).get(name, "")

    async def _topic_configs(self, topic: str, asked: dict[str, str] | None) -> dict[str, str]:
        """``asked`` None: all."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=asked)
        answers = await self._call(lambda admin: admin.describe_configs([resource]))
        code, message, _type, _topic, entries = answers[0].resources[0]
        if code:
            raise TopicRefused(topic, f"its configuration can't be read: {message or for_code(code).__name__}")
        return {str(entry[0]): str(entry[1]) for entry in entries}

    async def _appear(self, topic: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + APPEAR_S
        while await self.missing([topic]):
            if loop.time() >= until:
                raise KafkaUnreachable(f"topic {topic!r} was made, but the brokers don't know it yet")
            await asyncio.sleep(_RETRY_S)

    async def _metadata(self, topic: str) -> TopicMetadata:
        """Ask any broker; one without a leader is asked about again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + APPEAR_S
        while True:
            try:
                return await self._call(lambda admin: _ask(admin._client, topic))
            except KafkaUnreachable:
                if loop.time() >= until or self._admin is None:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _offsets(self, leader: int, topic: str, partitions: list[int], at: int) -> dict[int, int]:
        request = OffsetRequest(-1, 0, [(topic, [(partition, at) for partition in partitions])])
        answer = await self._led(leader, request)
        offsets = {}
        for partition, code, _timestamp, offset in answer.topics[0][1]:
            if code:
                raise KafkaUnreachable(f"partition {partition} of {topic!r}: {for_code(code).__name__}")
            offsets[partition] = offset
        return offsets

    async def _led(self, leader: int, request: OffsetRequest) -> Any:
        """A broker that has just become a leader may not know it yet: asked again for a while."""
        loop = asyncio.get_running_loop()
        until = loop.time() + APPEAR_S
        while True:
            answer = await self._call(lambda admin: admin._client.send(leader, request))
            if loop.time() >= until or not any(part[1] == _NOT_LEADER for part in answer.topics[0][1]):
                return answer
            await asyncio.sleep(_RETRY_S)

    async def _call(self, work: Callable[[AIOKafkaAdminClient], Awaitable[_T]]) -> _T:
        admin = await self._connected()
        try:
            async with asyncio.timeout(CALL_S):
                return await work(admin)
        except (KafkaError, OSError, TimeoutError) as error:
            if self._admin is admin:
                await self._disconnect()
            raise KafkaUnreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    async def _connected(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._admin is None:
                admin = AIOKafkaAdminClient(
                    client_id="tidemark-admin", request_timeout_ms=self._request_timeout_ms, **self._client_kwargs
                )
                try:
                    await admin.start()
                except (KafkaError, OSError, TimeoutError) as error:
                    await admin.close()
                    raise KafkaUnreachable(str(error)) from error
                self._admin = admin
            return self._admin

    async def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(admin.close(), 3)


async def _ask(client: AIOKafkaClient, topic: str) -> TopicMetadata:
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    return await ask_topic(client, random.choice(nodes), topic)  # noqa: S311  # no secret depends on it
