"""Topics on a real broker: made, checked, measured."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from deploy.local.stack import Stack
from shared.kafka.admin import KafkaAdmin, Watermarks
from shared.kafka.errors import KafkaUnreachable, TopicMissing, TopicRefused
from shared.kafka.publisher import Publisher
from shared.kafka.records import Outgoing
from shared.kafka.settings import KafkaSettings
from tests.fakes.proxy import TcpProxy


@pytest.fixture
async def edges() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def settings(stack: Stack) -> KafkaSettings:
    return KafkaSettings(bootstrap=stack.env["TIDEMARK_KAFKA_BOOTSTRAP"])


def name() -> str:
    return f"d-admin-{uuid4().hex[:8]}"


async def test_a_topic_is_made_once(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin, topic = await KafkaAdmin.open(settings, edges), name()
    assert await admin.missing([topic]) == [topic]

    assert await admin.ensure_topic(topic, partitions=3, replication=1)
    assert not await admin.ensure_topic(topic, partitions=3, replication=1)

    assert (await admin.identity(topic)).partitions == 3
    assert await admin.missing([topic]) == []


async def test_a_compacted_topic_is_refused(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin, topic = await KafkaAdmin.open(settings, edges), name()

    with pytest.raises(TopicRefused, match="compaction drops changes"):
        await admin.ensure_topic(topic, partitions=1, replication=1, config={"cleanup.policy": "compact,delete"})


async def test_too_few_partitions_are_refused(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin, topic = await KafkaAdmin.open(settings, edges), name()
    await admin.ensure_topic(topic, partitions=1, replication=1)

    with pytest.raises(TopicRefused, match="has 1 partitions"):
        await admin.ensure_topic(topic, partitions=2, replication=1)


async def test_what_the_cluster_can_not_make_is_said(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin = await KafkaAdmin.open(settings, edges)

    with pytest.raises(TopicRefused, match="can't be made"):
        await admin.ensure_topic(name(), partitions=1, replication=5)
    with pytest.raises(TopicRefused):
        await admin.ensure_topic("no spaces", partitions=1, replication=1)


async def test_watermarks_follow_what_is_written(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin, topic = await KafkaAdmin.open(settings, edges), name()
    await admin.ensure_topic(topic, partitions=2, replication=1)
    assert await admin.watermarks(topic) == {0: Watermarks(0, 0), 1: Watermarks(0, 0)}
    publisher = await Publisher.open(settings, edges)

    await publisher.publish(topic, [Outgoing(b"%d" % n, b"v", (), 1) for n in range(50)])

    marks = await admin.watermarks(topic)
    assert sum(mark.end for mark in marks.values()) == 50
    assert all(mark.begin == 0 for mark in marks.values())


async def test_a_missing_topic_is_not_made_by_asking(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    admin, topic = await KafkaAdmin.open(settings, edges), name()

    for ask in (admin.identity, admin.watermarks):
        with pytest.raises(TopicMissing, match=topic):
            await ask(topic)
    assert await admin.missing([topic]) == [topic]


async def test_kafka_down_is_unreachable_until_it_is_back(settings: KafkaSettings, edges: AsyncExitStack) -> None:
    async with TcpProxy(int(settings.bootstrap.rpartition(":")[2])) as proxy:
        await proxy.set_mode("refuse")
        admin = await KafkaAdmin.open(KafkaSettings(bootstrap=f"127.0.0.1:{proxy.port}"), edges)
        with pytest.raises(KafkaUnreachable):
            await admin.identity("any")
        assert not await admin.reachable()

        await proxy.set_mode("pass")

        assert await admin.reachable()
