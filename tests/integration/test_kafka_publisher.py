"""The publisher against a real broker, through every kind of outage.

The law of each test: what is reported acknowledged is in the log, what is reported certainly unsent isn't, and only
what is reported unknown may be either.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.local.kafka import Listener
from deploy.local.stack import Stack
from shared.events.model import Reason
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import NotPublished, Outgoing
from shared.kafka.settings import KafkaSettings
from tests.fakes.kafka_log import read_topic
from tests.fakes.proxy import TcpProxy, free_port

Outcomes = list[NotPublished | None]

DEADLINE_S = 1.0
DESTRUCTION_S = 4.0
"""What a call may take beyond its deadline."""


@dataclass(frozen=True)
class Broker:
    """A private broker with two ways in: straight, and one that leads clients through a proxy's port."""

    name: str
    stack: Stack
    direct: str
    inner_port: int
    proxy_port: int

    @property
    def proxied(self) -> str:
        return f"127.0.0.1:{self.proxy_port}"


@pytest.fixture(scope="module")
def broker(stack: Stack) -> Iterator[Broker]:
    proxy_port, inner_ports = free_port(), []

    def listeners(free: Any) -> list[Listener]:
        inner_ports.append(free())
        return [Listener("PROXIED", inner_ports[0], proxy_port)]

    name = f"publisher-broker-{uuid4().hex[:6]}"
    direct = stack.add_broker(name, listeners)
    stack.start(name)
    try:
        yield Broker(name, stack, direct, inner_ports[0], proxy_port)
    finally:
        if stack.is_running(name):
            stack.kill(name)


@pytest.fixture
async def edges() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def proxy(broker: Broker) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(broker.inner_port, port=broker.proxy_port) as running:
        yield running


async def topic_on(broker: Broker, partitions: int = 3, **config: str) -> str:
    topic = f"d-{uuid4().hex[:10]}"
    async with AsyncExitStack() as opened:
        admin = await KafkaAdmin.open(KafkaSettings(bootstrap=broker.direct), opened)
        dotted = {name.replace("_", "."): value for name, value in config.items()}
        await admin.ensure_topic(topic, partitions=partitions, replication=1, config=dotted)
    return topic


async def publisher_at(bootstrap: str, edges: AsyncExitStack, **settings: Any) -> Publisher:
    values = {"delivery_deadline_s": DEADLINE_S, "probe_deadline_s": DEADLINE_S, "topic_wait_s": 0.3, **settings}
    return await Publisher.open(KafkaSettings(bootstrap=bootstrap, **values), edges)


def page(first: int, count: int, value: bytes = b"v") -> list[Outgoing]:
    headers = (("tm-op", b"u"),)
    return [
        Outgoing(b"key-%d" % n, b"%d:%s" % (n, value), headers, 1_763_999_000_000 + n)
        for n in range(first, first + count)
    ]


def reasons(outcomes: Outcomes) -> Counter[Reason | None]:
    return Counter(None if outcome is None else outcome.reason for outcome in outcomes)


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not claim():  # noqa: ASYNC110  # nothing to be woken by
            await asyncio.sleep(0.01)


class Books:
    """What was reported of each record, to be held against the log."""

    def __init__(self) -> None:
        self._reported: list[tuple[bytes | None, NotPublished | None]] = []

    def note(self, records: Sequence[Outgoing], outcomes: Outcomes) -> Outcomes:
        assert len(records) == len(outcomes)
        self._reported += [(record.value, outcome) for record, outcome in zip(records, outcomes, strict=True)]
        return outcomes

    async def hold_against(self, broker: Broker, topic: str) -> None:
        found = Counter(record.value for record in await read_topic(broker.direct, topic))
        for value, outcome in self._reported:
            if outcome is None:
                assert found[value] == 1, f"{value!r} is acknowledged and {found[value]} times in the log"
            elif outcome.reason is Reason.KAFKA_UNKNOWN:
                assert found[value] <= 1
            else:
                assert found[value] == 0, f"{value!r} is reported {outcome.reason} and is in the log"
        assert found.total() <= len(self._reported)


async def test_a_page_is_acknowledged_and_in_the_log_once(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker)
    publisher = await publisher_at(broker.direct, edges)
    records = page(0, 3000)

    outcomes = await publisher.publish(topic, records)

    assert reasons(outcomes) == {None: 3000}
    log = await read_topic(broker.direct, topic)
    assert sorted(record.value for record in log) == sorted(record.value or b"" for record in records)
    assert {record.partition for record in log} == {0, 1, 2}
    first = next(record for record in log if record.key == b"key-7")
    assert first.timestamp == 1_763_999_000_007
    assert first.headers == (("tm-op", b"u"),)


async def test_records_of_one_key_keep_their_order_over_several_batches(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker)
    publisher = await publisher_at(broker.direct, edges, batch_bytes=2048)
    records = [Outgoing(b"k%d" % (n % 5), b"%06d" % n + b"x" * 50, (), 1) for n in range(2000)]

    await publisher.publish(topic, records)

    for key, same in itertools.groupby(
        sorted(await read_topic(broker.direct, topic), key=lambda r: r.key), lambda r: r.key
    ):
        values = [record.value for record in same]
        assert values == [record.value for record in records if record.key == key]


async def test_a_tombstone_has_no_value(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker)
    publisher = await publisher_at(broker.direct, edges)

    assert await publisher.publish(topic, [Outgoing(b"k", None, (("tm-op", b"d"),), 1)]) == [None]

    (record,) = await read_topic(broker.direct, topic)
    assert (record.key, record.value) == (b"k", None)


async def test_an_empty_page_is_no_work(broker: Broker, edges: AsyncExitStack) -> None:
    publisher = await publisher_at("127.0.0.1:9", edges)

    assert await publisher.publish("any", []) == []


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_read_back(broker: Broker, edges: AsyncExitStack, codec: str) -> None:
    topic = await topic_on(broker, 1)
    publisher = await publisher_at(broker.direct, edges, compression=codec)

    assert not any(await publisher.publish(topic, page(0, 200)))

    assert [record.value for record in await read_topic(broker.direct, topic)] == [r.value for r in page(0, 200)]


async def test_kafka_down_at_the_start_costs_no_time_and_nothing_unknown(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic, books = await topic_on(broker), Books()
    await proxy.set_mode("refuse")
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=15.0)
    began = time.monotonic()

    down = books.note(records := page(0, 50), await publisher.publish(topic, records))
    assert time.monotonic() - began < 1.0
    assert not await publisher.reachable()
    await proxy.set_mode("pass")
    up = books.note(records := page(50, 50), await publisher.publish(topic, records))

    assert reasons(down) == {Reason.KAFKA_UNAVAILABLE: 50}
    assert reasons(up) == {None: 50}
    assert await publisher.reachable()
    assert not publisher.breaker_open(topic)
    await books.hold_against(broker, topic)


@pytest.mark.parametrize("mode", ["blackhole", "half_open", "drop_answers"])
async def test_lost_acknowledgements_are_unknown_and_the_rest_of_the_outage_costs_nothing_more(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy, mode: Any
) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges)
    books.note(records := page(0, 30), await publisher.publish(topic, records))
    await proxy.set_mode(mode)
    began = time.monotonic()

    first = books.note(records := page(100, 30), await publisher.publish(topic, records))
    assert time.monotonic() - began < DEADLINE_S + DESTRUCTION_S
    assert publisher.breaker_open(topic)
    later = [books.note(records, await publisher.publish(topic, records)) for records in (page(200, 30), page(300, 30))]
    await proxy.set_mode("pass")
    after = books.note(records := page(400, 30), await publisher.publish(topic, records))

    assert reasons(first) == {Reason.KAFKA_UNKNOWN: 30}
    assert all(reasons(outcomes) == {Reason.KAFKA_UNAVAILABLE: 30} for outcomes in later)
    assert reasons(after) == {None: 30}
    assert not publisher.breaker_open(topic)
    await books.hold_against(broker, topic)


async def test_while_a_broker_answers_everything_but_writes_each_page_risks_one_record(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=3.0)
    books.note(records := page(0, 30), await publisher.publish(topic, records))
    proxy.loses = lambda request: request[4:6] == b"\0\0"  # the key of a Produce request

    pages = [books.note(records := page(n, 30), await publisher.publish(topic, records)) for n in (100, 200, 300)]
    proxy.loses = None
    after = books.note(records := page(400, 30), await publisher.publish(topic, records))

    assert [reasons(outcomes) for outcomes in pages] == [
        {Reason.KAFKA_UNKNOWN: 30},
        {Reason.KAFKA_UNKNOWN: 1, Reason.KAFKA_UNAVAILABLE: 29},
        {Reason.KAFKA_UNKNOWN: 1, Reason.KAFKA_UNAVAILABLE: 29},
    ]
    assert reasons(after) == {None: 30}
    await books.hold_against(broker, topic)


async def test_a_topic_without_answers_costs_others_the_page_in_flight_at_most(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    stuck, healthy = await topic_on(broker), await topic_on(broker)
    books = {stuck: Books(), healthy: Books()}
    publisher = await publisher_at(broker.proxied, edges)

    async def publish(topic: str, first: int) -> Counter[Reason | None]:
        return reasons(books[topic].note(records := page(first, 10), await publisher.publish(topic, records)))

    for topic in (stuck, healthy):
        assert await publish(topic, 0) == {None: 10}
    proxy.loses = lambda request: request[4:6] == b"\0\0" and stuck.encode() in request

    unknown, _in_flight = await asyncio.gather(publish(stuck, 100), publish(healthy, 100))
    after = [await publish(healthy, first) for first in (200, 300, 400)]

    assert unknown == {Reason.KAFKA_UNKNOWN: 10}
    assert after == [{None: 10}] * 3
    for topic, book in books.items():
        await book.hold_against(broker, topic)


async def test_a_page_that_only_waited_behind_a_stuck_one_is_certainly_unsent(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    stuck, healthy, books = await topic_on(broker), await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=2.0)
    for topic in (stuck, healthy):
        await publisher.publish(topic, page(0, 10))
    lost = []

    def loses(request: bytes) -> bool:
        lost.extend([request] * (request[4:6] == b"\0\0"))
        return request[4:6] == b"\0\0"

    proxy.loses = loses
    publishing = asyncio.create_task(publisher.publish(stuck, page(100, 10)))
    await until(lambda: len(lost) == 2)  # the second try, which is still in flight at the deadline

    waited = books.note(records := page(100, 10), await publisher.publish(healthy, records))

    assert reasons(await publishing) == {Reason.KAFKA_UNKNOWN: 10}
    assert reasons(waited) == {Reason.KAFKA_UNAVAILABLE: 10}
    await books.hold_against(broker, healthy)


async def test_nothing_of_a_destroyed_producer_is_sent_later(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic = await topic_on(broker, 1)
    publisher = await publisher_at(broker.proxied, edges)
    await publisher.publish(topic, page(0, 1))
    await proxy.set_mode("half_open")
    assert reasons(await publisher.publish(topic, page(100, 5))) == {Reason.KAFKA_UNKNOWN: 5}

    await proxy.set_mode("pass")
    await publisher.publish(topic, page(200, 5))

    values = [record.value for record in await read_topic(broker.direct, topic)]
    assert values == [record.value for record in page(0, 1) + page(200, 5)]


async def test_a_connection_that_was_cut_is_made_again_without_any_record_unknown(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=5.0)
    books.note(records := page(0, 10), await publisher.publish(topic, records))

    await proxy.cut()
    outcomes = books.note(records := page(100, 10), await publisher.publish(topic, records))

    assert reasons(outcomes) == {None: 10}
    await books.hold_against(broker, topic)


async def test_an_outage_between_pages_that_is_shorter_than_the_deadline_costs_nothing(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=10.0)
    books.note(records := page(0, 10), await publisher.publish(topic, records))
    await proxy.set_mode("refuse")

    publishing = asyncio.create_task(publisher.publish(topic, records := page(100, 10)))
    await asyncio.wait([publishing], timeout=1.5)
    assert not publishing.done()
    await proxy.set_mode("pass")

    assert reasons(books.note(records, await publishing)) == {None: 10}
    await books.hold_against(broker, topic)


async def test_an_outage_between_pages_leaves_nothing_unknown(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=2.0)
    books.note(records := page(0, 10), await publisher.publish(topic, records))
    await proxy.set_mode("refuse")
    while await publisher.reachable():  # a reset that isn't noticed yet makes the next page unknown, rightly
        pass

    outcomes = books.note(records := page(100, 10), await publisher.publish(topic, records))

    assert reasons(outcomes) == {Reason.KAFKA_UNAVAILABLE: 10}
    assert publisher.breaker_open(topic)
    await books.hold_against(broker, topic)


async def test_only_what_was_sent_is_unknown(broker: Broker, edges: AsyncExitStack, proxy: TcpProxy) -> None:
    topic, books = await topic_on(broker, 1), Books()
    publisher = await publisher_at(broker.proxied, edges, batch_bytes=1024)
    books.note(records := page(0, 5), await publisher.publish(topic, records))
    await proxy.set_mode("half_open")

    outcomes = books.note(records := page(100, 500), await publisher.publish(topic, records))

    counted = reasons(outcomes)
    assert 0 < counted[Reason.KAFKA_UNKNOWN] < 40
    assert counted[Reason.KAFKA_UNAVAILABLE] == 500 - counted[Reason.KAFKA_UNKNOWN]
    await proxy.set_mode("pass")
    await books.hold_against(broker, topic)


async def test_calls_for_other_topics_share_the_fate_of_the_producer_and_its_successor(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topics = [await topic_on(broker) for _ in range(3)]
    books = {topic: Books() for topic in topics}
    publisher = await publisher_at(broker.proxied, edges)

    async def publish_all(first: int) -> list[Outcomes]:
        records = page(first, 20)
        outcomes = await asyncio.gather(*(publisher.publish(topic, records) for topic in topics))
        return [books[topic].note(records, outcome) for topic, outcome in zip(topics, outcomes, strict=True)]

    before = await publish_all(0)
    await proxy.set_mode("drop_answers")
    during = await publish_all(100)
    await proxy.set_mode("pass")
    after = await publish_all(200)

    assert all(reasons(outcomes) == {None: 20} for outcomes in before + after)
    assert all(reasons(outcomes) == {Reason.KAFKA_UNKNOWN: 20} for outcomes in during)
    for topic in topics:
        await books[topic].hold_against(broker, topic)


async def test_nothing_is_lost_or_guessed_when_the_broker_is_killed_under_load(
    broker: Broker, edges: AsyncExitStack
) -> None:
    topics = [await topic_on(broker) for _ in range(2)]
    publisher = await publisher_at(broker.direct, edges)
    books = {topic: Books() for topic in topics}
    told: dict[str, list[Counter[Reason | None]]] = {topic: [] for topic in topics}
    up_again = asyncio.Event()

    async def load(topic: str) -> None:
        for number in itertools.count():
            records = page(number * 100, 100, b"x" * 500)
            told[topic].append(reasons(books[topic].note(records, await publisher.publish(topic, records))))
            if up_again.is_set() and told[topic][-1] == {None: 100}:
                return
            await asyncio.sleep(0.01)

    async def outage() -> None:
        await until(lambda: all(len(pages) >= 20 for pages in told.values()))
        await asyncio.to_thread(broker.stack.kill, broker.name)
        await until(lambda: all(Reason.KAFKA_UNAVAILABLE in pages[-1] for pages in told.values()))
        await asyncio.to_thread(broker.stack.start, broker.name)
        up_again.set()

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        for topic in topics:
            tasks.create_task(load(topic))
        tasks.create_task(outage())

    for topic in topics:
        total = sum(told[topic], Counter[Reason | None]())
        assert total[Reason.KAFKA_UNKNOWN] <= 100, "an outage costs at most the page in flight"
        await books[topic].hold_against(broker, topic)


async def test_a_hanging_broker_costs_the_page_in_flight_and_no_more(broker: Broker, edges: AsyncExitStack) -> None:
    topic, books = await topic_on(broker), Books()
    publisher = await publisher_at(broker.direct, edges)
    books.note(records := page(0, 20), await publisher.publish(topic, records))
    broker.stack.freeze(broker.name)
    try:
        pages = [books.note(records := page(n, 20), await publisher.publish(topic, records)) for n in (100, 200, 300)]
    finally:
        broker.stack.thaw(broker.name)
    after = books.note(records := page(400, 20), await publisher.publish(topic, records))

    assert [reasons(outcomes) for outcomes in pages] == [
        {Reason.KAFKA_UNKNOWN: 20},
        {Reason.KAFKA_UNAVAILABLE: 20},
        {Reason.KAFKA_UNAVAILABLE: 20},
    ]
    assert reasons(after) == {None: 20}
    await books.hold_against(broker, topic)


async def test_an_unknown_topic_is_told_quickly_and_does_not_hold_up_others(
    broker: Broker, edges: AsyncExitStack
) -> None:
    topic = await topic_on(broker)
    publisher = await publisher_at(broker.direct, edges, delivery_deadline_s=15.0)
    began = time.monotonic()

    missing, present = await asyncio.gather(
        publisher.publish("d-never-made", page(0, 10)), publisher.publish(topic, page(0, 10))
    )

    assert time.monotonic() - began < 3.0
    assert reasons(missing) == {Reason.KAFKA_TOPIC: 10}
    assert reasons(present) == {None: 10}
    assert not publisher.breaker_open("d-never-made"), "an answer was given, so there is no outage"


async def test_a_topic_that_is_made_later_is_found(broker: Broker, edges: AsyncExitStack) -> None:
    publisher = await publisher_at(broker.direct, edges)
    topic = f"d-later-{uuid4().hex[:6]}"
    assert reasons(await publisher.publish(topic, page(0, 3))) == {Reason.KAFKA_TOPIC: 3}
    admin = await KafkaAdmin.open(KafkaSettings(bootstrap=broker.direct), edges)

    assert await admin.ensure_topic(topic, partitions=1, replication=1)

    assert reasons(await publisher.publish(topic, page(0, 3))) == {None: 3}


async def test_a_topic_that_is_deleted_under_the_publisher_is_told(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker)
    publisher = await publisher_at(broker.direct, edges)
    await publisher.publish(topic, page(0, 3))
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.direct)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()

    outcomes: list[Outcomes] = []
    async with asyncio.timeout(20):
        while not outcomes or reasons(outcomes[-1]) != {Reason.KAFKA_TOPIC: 3}:
            outcomes.append(await publisher.publish(topic, page(0, 3)))

    assert sum(any(outcome) for outcome in outcomes) <= 3  # pages are acknowledged until the broker has deleted it


@pytest.mark.parametrize("at", [0, 7, 99])
async def test_a_record_that_is_too_large_for_the_topic_spoils_only_itself(
    broker: Broker, edges: AsyncExitStack, at: int
) -> None:
    topic, books = await topic_on(broker, 1, max_message_bytes="3000"), Books()
    publisher = await publisher_at(broker.direct, edges, delivery_deadline_s=5.0, compression="none")
    records = page(0, 100, b"x" * 100)
    records[at] = Outgoing(b"big", b"x" * 5000, (), 1)

    for _ in range(2):
        outcomes = await publisher.publish(topic, records)
        assert [i for i, outcome in enumerate(outcomes) if outcome is not None] == [at]
        refused = outcomes[at]
        assert refused is not None
        assert refused.reason is Reason.TOO_LARGE

    books.note(records[:at] + records[at + 1 :], [None] * 99)
    assert len(await read_topic(broker.direct, topic)) == 2 * 99


async def test_a_record_above_our_own_limit_is_never_sent(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker, 1)
    publisher = await publisher_at(broker.direct, edges, record_bytes_max=10_000)

    outcomes = await publisher.publish(topic, [*page(0, 2), Outgoing(b"k", b"x" * 10_000, (), 1)])

    assert reasons(outcomes) == {None: 2, Reason.TOO_LARGE: 1}
    assert len(await read_topic(broker.direct, topic)) == 2


@pytest.mark.parametrize("mode", ["half_open", "refuse", "blackhole"])
async def test_the_end_of_the_process_does_not_wait_for_kafka(broker: Broker, proxy: TcpProxy, mode: Any) -> None:
    topic = await topic_on(broker)
    async with AsyncExitStack() as edges:
        publisher = await publisher_at(broker.proxied, edges, delivery_deadline_s=60.0)
        await publisher.publish(topic, page(0, 3))
        await proxy.set_mode(mode)
        publishing = asyncio.create_task(publisher.publish(topic, page(10, 3)))
        await asyncio.sleep(0)
        began = time.monotonic()
    took_s = time.monotonic() - began
    publishing.cancel()
    await asyncio.wait([publishing])

    assert took_s < 10.0


async def test_a_topic_is_told_apart_from_its_successor_of_the_same_name(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await topic_on(broker, 2)
    admin = await KafkaAdmin.open(KafkaSettings(bootstrap=broker.direct), edges)
    first = await admin.identity(topic)
    client = AIOKafkaAdminClient(bootstrap_servers=broker.direct)
    await client.start()
    await client.delete_topics([topic])
    await client.close()
    while not await admin.missing([topic]):  # each ask is a round trip, and the test has a time limit
        pass

    await admin.ensure_topic(topic, partitions=2, replication=1)
    second = await admin.identity(topic)

    assert first.cluster_id == second.cluster_id
    assert first.topic_id != second.topic_id
    assert first.partitions == 2
