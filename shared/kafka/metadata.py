"""A Metadata request of our own, v10 or v12: aiokafka's stops at v5, shows no topic id and may create the topic.

Format: https://kafka.apache.org/protocol.html#The_Messages_Metadata
"""

from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from msgspec import Struct

from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused

_NO_ID = UUID(int=0)
_UNKNOWN_TOPIC = 3
_LEADER_NOT_AVAILABLE = 5
_TOO_OLD = "the brokers show no topic ids; Kafka 2.8 or newer is needed"


class TopicIdentity(Struct, frozen=True):
    """What tells a topic from another of the same name: ``topic_id`` is new whenever it is created anew."""

    cluster_id: str
    topic_id: str
    partitions: int


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka publishes no types
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_BROKERS = CompactArray(
    ("node_id", Int32),
    ("host", CompactString("utf-8")),
    ("port", Int32),
    ("rack", CompactString("utf-8")),
    ("tags", TaggedFields),
)
_PARTITIONS = CompactArray(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)
_TOPICS = CompactArray(
    ("error_code", Int16),
    ("name", CompactString("utf-8")),
    ("topic_id", _Uuid),
    ("is_internal", Boolean),
    ("partitions", _PARTITIONS),
    ("authorized_operations", Int32),
    ("tags", TaggedFields),
)
_ASKED_TOPICS = CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))


class _Response_v10(Response):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", _BROKERS),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", _TOPICS),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Response_v12(Response):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", _BROKERS),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", _TOPICS),
        ("tags", TaggedFields),
    )


class _Request_v10(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Response_v10
    SCHEMA = Schema(
        ("topics", _ASKED_TOPICS),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request_v12(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _Response_v12
    SCHEMA = Schema(
        ("topics", _ASKED_TOPICS),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicMetadataRequest(Request[_Request_v10 | _Request_v12]):  # type: ignore[misc]  # aiokafka publishes no types
    """Asks about one topic and never creates it."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        topics: list[tuple[UUID, str, dict[int, bytes]]] = [(_NO_ID, self._topic, {})]
        flags = (False, False, False) if request_struct_class.API_VERSION == 10 else (False, False)
        return request_struct_class(topics, *flags, {})


class TopicMetadata(Struct, frozen=True):
    """What the brokers say of a topic. A leader is a node's id, -1 where there is none now."""

    identity: TopicIdentity
    leaders: dict[int, int]
    replicas: dict[int, int]
    """How many each partition has."""
    in_sync: dict[int, int]


async def ask_topic(client: AIOKafkaClient, node_id: object, topic: str) -> TopicMetadata:
    """Ask one broker about a topic. Raises ``TopicMissing``, ``TopicRefused``, ``KafkaUnreachable`` (no leader yet),
    and what aiokafka's ``send`` raises."""
    try:
        response = await client.send(node_id, TopicMetadataRequest(topic))
    except (NotImplementedError, IncompatibleBrokerVersion):
        raise TopicRefused(topic, _TOO_OLD) from None
    return read_topic(response, topic)


def read_topic(response: Any, topic: str) -> TopicMetadata:
    """The answer about ``topic``. Raises ``TopicMissing``, ``TopicRefused`` or ``KafkaUnreachable`` (no leader yet)."""
    for error_code, name, topic_id, _internal, partitions, *_ in response.topics:
        if name != topic:
            continue
        if error_code == _UNKNOWN_TOPIC:
            raise TopicMissing(topic)
        if error_code == _LEADER_NOT_AVAILABLE:
            raise KafkaUnreachable(f"topic {topic!r} has no leader")
        if error_code:
            raise TopicRefused(topic, f"refused by the brokers: {for_code(error_code).__name__}")
        if not response.cluster_id or topic_id == _NO_ID:
            raise TopicRefused(topic, _TOO_OLD)
        identity = TopicIdentity(response.cluster_id, str(topic_id), len(partitions))
        return TopicMetadata(
            identity,
            leaders={number: leader for _code, number, leader, *_ in partitions},
            replicas={number: len(replicas) for _code, number, _leader, _epoch, replicas, *_ in partitions},
            in_sync={number: len(isr) for _code, number, _leader, _epoch, _replicas, isr, *_ in partitions},
        )
    raise TopicMissing(topic)
