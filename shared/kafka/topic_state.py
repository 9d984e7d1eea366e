"""What a topic is like now, for people."""

from collections.abc import Mapping

from msgspec import Struct


class TopicState(Struct, frozen=True, kw_only=True):
    partitions: int
    leaderless: int
    replicas_min: int
    in_sync_min: int
    settings: Mapping[str, str]
    """Each by its name, as the brokers apply it to the topic."""
