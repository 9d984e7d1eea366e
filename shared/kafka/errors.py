"""What can be wrong between us and Kafka, by what the caller does about it."""


class KafkaUnreachable(Exception):
    """No broker answered in time, or a partition has no leader: nothing was changed; try again later."""


class TopicMissing(Exception):
    """The brokers know no such topic."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic!r} does not exist; create it with `tidemark bootstrap`")
        self.topic = topic


class TopicRefused(Exception):
    """The brokers refuse us this topic, or it can't serve us as it is."""

    def __init__(self, topic: str, why: str) -> None:
        super().__init__(f"topic {topic!r}: {why}")
        self.topic = topic
        self.why = why
