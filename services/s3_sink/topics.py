"""What Kafka says about a topic: which one it is, and how far it reaches."""

from shared.kafka.admin import KafkaAdmin
from shared.kafka.chunks import LogBounds
from shared.raw.generation import TopicLife


class KafkaTopics:
    """The sink's ``Topics``."""

    def __init__(self, admin: KafkaAdmin) -> None:
        self._admin = admin

    async def life(self, topic: str) -> TopicLife:
        identity = await self._admin.identity(topic)
        return TopicLife(identity.cluster_id, identity.topic_id)

    async def bounds(self, topic: str) -> dict[int, LogBounds]:
        marks = await self._admin.watermarks(topic)
        return {partition: LogBounds(mark.begin, mark.end) for partition, mark in marks.items()}
