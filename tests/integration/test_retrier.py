"""Retriers as real processes over a real Kafka, DynamoDB and registry: what was parked is on its topic afterwards."""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import ConsumerRecord
from msgspec.structs import replace

from deploy.local.stack import Stack
from services.dynamo_retrier.census import Census
from shared.aws import open_client
from shared.entities import PauseRules
from shared.events.model import Reason
from shared.kafka.publisher import Publisher
from shared.kafka.records import parse_headers
from shared.kafka.settings import KafkaSettings
from shared.lifecycle import Stop
from shared.parked.model import ParkedEvent, State
from shared.producer.brake import Brake
from shared.producer.delivery import Delivery, Destination
from tests.fakes.proxy import TcpProxy
from tests.fakes.retrier_world import (
    DELIVERY_S,
    ENTITY,
    LEASE_S,
    TOPICLESS,
    RetrierWorld,
    busiest_second,
    due_now,
    ids,
    retrier_world,
    schema,
)

FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
TROUBLES = 100
"""Kills and freezes at random moments."""
PARKED_IN_OUTAGE = 5_000 if FULL else 500
COLOUR = {"name": "colour", "type": ["null", "string"], "default": None}


@dataclass(frozen=True)
class Broker:
    name: str
    bootstrap: str


@pytest.fixture
def broker(stack: Stack) -> Iterator[Broker]:
    """A private one, that may die."""
    name = f"retrier-broker-{uuid4().hex[:6]}"
    bootstrap = stack.add_broker(name)
    stack.start(name)
    try:
        yield Broker(name, bootstrap)
    finally:
        if stack.is_running(name):
            stack.kill(name)


def are_as_first_seen(records: Sequence[ConsumerRecord], events: Sequence[ParkedEvent]) -> bool:
    by_id = {event.event_id: event for event in events}
    for record in records:
        said = parse_headers(record.headers)
        event = by_id[said.event_id or ""]
        assert (record.key, said.rank, said.tiebreak) == ((event.key or "").encode(), event.rank, event.tiebreak)
        assert said.op == "u"
        assert said.attempt >= 1
    return True


async def test_parked_events_go_to_their_topic_as_first_seen_and_leave_the_table(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path, topic_config={"message.timestamp.type": "LogAppendTime"}) as world:
        events = world.parked(range(300))
        await world.store.park(events)
        name = await world.start(publishes_per_s_max=500, refresh_s=0.5)
        await world.drained()

        records = await world.records()
        assert Counter(ids(records)) == Counter(event.event_id for event in events)
        assert are_as_first_seen(records, events)
        assert {parse_headers(record.headers).attempt for record in records} == {1}
        assert busiest_second(record.timestamp for record in records) <= 100, "by the broker's clock"
        assert await world.items() == 0, "a body was left behind"
        assert await world.metric(name, f'tidemark_retries_total{{entity="{ENTITY}",outcome="published"}}') == 300
        group = f'entity="{ENTITY}",reason="kafka_unavailable"'
        await _shows(world, name, f'tidemark_parked_items{{{group},state="PARKED"}}', 0)
        await _shows(world, name, f"tidemark_parked_oldest_timestamp_seconds{{{group}}}", None)


@pytest.mark.timeout(600 if FULL else 180)
async def test_what_an_outage_parked_is_on_the_topic_after_it_and_within_the_share(
    stack: Stack, tmp_path: Path, broker: Broker
) -> None:
    per_s = 1_000 if FULL else 100
    async with retrier_world(stack, tmp_path, broker.bootstrap) as world, AsyncExitStack() as resources:
        kafka = KafkaSettings(bootstrap=broker.bootstrap, delivery_deadline_s=DELIVERY_S, probe_deadline_s=DELIVERY_S)
        delivery = _delivery(world, await Publisher.open(kafka, resources))
        events = world.events(range(100 + PARKED_IN_OUTAGE))
        await delivery.deliver(events[:100])
        name = await world.start(publishes_per_s_max=per_s * 5)
        await world.store.park(world.parked(range(99, 100)))  # has been sent: so it is there twice
        await world.drained()
        await asyncio.to_thread(stack.kill, broker.name)
        for first in range(100, len(events), 250):
            await delivery.deliver(events[first : first + 250])

        before = await world.until(lambda rows: len(rows) == PARKED_IN_OUTAGE and not any(r.lease_token for r in rows))
        probed = await world.until(lambda rows: sum(row.tries for row in rows) > sum(row.tries for row in before))
        assert sum(row.tries for row in probed) <= sum(row.tries for row in before) + 2, "more than a probe at a time"
        assert {row.att for row in probed} == {0}, "an outage counted as an attempt"

        await asyncio.to_thread(stack.start, broker.name)
        await world.drained(within_s=300 if FULL else 120)
        records = await world.records()
        again = [r for r in records if parse_headers(r.headers).attempt and r.key != b"99"]
        sent = Counter(ids(records))
        unsure = {row.event.event_id for row in probed if row.event.maybe_sent} | {events[99].event_id}
        assert set(sent) == {event.event_id for event in events}
        assert {event_id for event_id, count in sent.items() if count > 1} <= unsure
        assert busiest_second(record.timestamp for record in again) <= per_s
        first_ms = min(record.timestamp for record in again)
        assert sum(record.timestamp < first_ms + 1_000 for record in again) <= per_s // 5, "no slow start"
        assert await world.metric(name, f'tidemark_retries_total{{entity="{ENTITY}",outcome="lease_lost"}}') == 0


async def test_two_retriers_share_the_work_and_publish_nothing_twice(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = world.parked(range(400))
        await world.store.park(events)
        names = [await world.start(number, publishes_per_s_max=500, batch_rows_max=20) for number in (1, 2)]
        await world.drained()

        assert Counter(ids(await world.records())) == Counter(event.event_id for event in events)
        series = f'tidemark_retries_total{{entity="{ENTITY}",outcome="published"}}'
        shares = [await world.metric(name, series) for name in names]
        assert sum(share or 0 for share in shares) == 400
        assert min(share or 0 for share in shares) > 50, shares


async def test_whoever_was_frozen_for_twice_its_lease_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = world.parked(range(150))
        await world.store.park(events)
        frozen = await world.start(1, publishes_per_s_max=100)
        async with asyncio.timeout(60):
            while not await _frozen_with_leases(world, frozen):
                stack.thaw(frozen)
        await world.start(2, publishes_per_s_max=5_000)
        await asyncio.sleep(2 * LEASE_S)  # this is what the claim is about
        await world.drained()
        before = await world.records()

        stack.thaw(frozen)
        lost = f'tidemark_retries_total{{entity="{ENTITY}",outcome="lease_lost"}}'
        async with asyncio.timeout(20):
            while not await world.metric(frozen, lost):
                pass
        after = await world.records()
        assert ids(after) == ids(before)
        assert Counter(ids(after)) == Counter(event.event_id for event in events)
        assert await world.items() == 0


@pytest.mark.full("tests/faults/test_kills.py has ten of these, with notifiers beside them")
@pytest.mark.timeout(1_800)
async def test_killed_and_frozen_at_random_moments_nothing_is_lost_and_repeats_are_the_same_event(
    stack: Stack, tmp_path: Path
) -> None:
    rows = 40 * TROUBLES
    async with retrier_world(stack, tmp_path) as world:
        events = world.parked(range(rows))
        settings: dict[str, object] = {"publishes_per_s_max": 100, "batch_rows_max": 30, "replicas": 2}
        await world.store.park(events)
        names = [await world.start(number, **settings) for number in range(2)]
        thaws: list[asyncio.Task[None]] = []
        for number in range(2, TROUBLES + 2):
            await asyncio.sleep(random.uniform(0, 1.0))  # the moment is what is random here
            victim = names.pop(random.randrange(len(names)))
            if random.random() < 0.7:
                await asyncio.to_thread(stack.kill, victim)
            else:
                stack.freeze(victim)
                thaws.append(asyncio.create_task(_end_later(stack, victim)))
            names.append(await world.start(number, **settings))
        await world.start(TROUBLES + 2, publishes_per_s_max=5_000)
        await world.drained(within_s=120 + rows / 20)
        await asyncio.gather(*thaws)

        records = await world.records()
        sent = Counter(ids(records))
        assert set(sent) == {event.event_id for event in events}
        assert are_as_first_seen(records, events)
        repeats = sum(count - 1 for count in sent.values())
        assert repeats <= TROUBLES * 30, "more than the batches that were under way"
        assert await world.rows() == []


async def test_a_stopped_retrier_leaves_no_lease_and_nothing_half_done(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        events = world.parked(range(200))
        await world.store.park(events)
        name = await world.start(publishes_per_s_max=200)
        await world.until(lambda rows: len(rows) < 180)
        exit_code = await asyncio.to_thread(stack.terminate, name)

        left = await world.rows()
        assert exit_code == 0
        assert 0 < len(left) < 180
        assert [row for row in left if row.lease_token] == []
        assert Counter([*ids(await world.records()), *(row.event.event_id for row in left)]) == Counter(
            event.event_id for event in events
        )


async def test_a_new_schema_version_wakes_what_it_accepts_and_leaves_the_rest(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        coloured = world.parked(range(40), Reason.INVALID, colour="red")
        shaped = world.parked(range(40, 50), Reason.INVALID, shape="round")
        await world.store.park([replace(event, path="/colour") for event in coloured])
        await world.store.park([replace(event, path="/shape") for event in shaped])
        name = await world.start(refresh_s=0.5, wake_period_s=0.5)
        held = f'tidemark_parked_items{{entity="{ENTITY}",reason="invalid",state="HELD"}}'
        await _shows(world, name, held, 50)
        oldest = await world.metric(
            name, f'tidemark_parked_oldest_timestamp_seconds{{entity="{ENTITY}",reason="invalid"}}'
        )
        assert oldest == min(event.at_us for event in (*coloured, *shaped)) / 1_000_000
        assert await world.records() == []

        await world.register(schema(COLOUR))
        await world.drained(left=10)
        assert Counter(ids(await world.records())) == Counter(event.event_id for event in coloured)
        assert {row.event.event_id for row in await world.rows()} == {event.event_id for event in shaped}
        await _shows(world, name, held, 10)


async def test_a_repaired_event_has_the_next_rev_and_its_original_is_kept(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path, repair=[{"number": "/amount"}]) as world:
        s3 = await open_client("s3", world.resources)
        bucket = world.env["TIDEMARK_ARCHIVE_BUCKET"]
        events = world.parked(range(5), Reason.INVALID, amount="12")
        await world.store.park([replace(event, path="/amount") for event in events])
        name = await world.start(wake_period_s=0.5)
        await world.until(lambda rows: any(error.code == "archive_unavailable" for row in rows for error in row.errs))
        assert await world.records() == [], "published, and no original kept"

        await s3.create_bucket(Bucket=bucket)
        await world.drained()
        said = [parse_headers(record.headers) for record in await world.records()]
        assert sorted(header.event_id or "" for header in said) == sorted(event.event_id for event in events)
        assert {header.rev for header in said} == {1}
        listed = await s3.list_objects_v2(Bucket=bucket, Prefix=f"{world.name}/repaired/{ENTITY}/")
        assert len(listed["Contents"]) == 5
        kept = await s3.get_object(Bucket=bucket, Key=listed["Contents"][0]["Key"])
        assert json.loads(await kept["Body"].read())["rev"] == 1
        assert await world.metric(name, f'tidemark_repaired_total{{entity="{ENTITY}"}}') == 5


async def test_without_the_registry_what_its_cached_schema_accepts_goes_on(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world, TcpProxy(stack.port("registry")) as proxy:
        url = world.env["TIDEMARK_REGISTRY_URL"].replace(str(stack.port("registry")), str(proxy.port))
        name = await world.start(registry_url=url)
        await world.store.park(world.parked(range(3)))
        await world.drained()
        await proxy.set_mode("refuse")
        await asyncio.to_thread(stack.restart, name)
        await world.store.park(world.parked(range(3, 6)))
        await world.drained()

        assert len(await world.records()) == 6


async def test_what_cannot_be_sent_keeps_nobody_waiting(stack: Stack, tmp_path: Path) -> None:
    async with retrier_world(stack, tmp_path) as world:
        good, broken = world.parked(range(50)), world.parked([50])[0]
        adrift = replace(world.parked([51])[0], entity="forgotten")
        late = replace(world.parked([52])[0], entity="forgotten", at_us=1)
        topicless = [replace(event, entity=TOPICLESS) for event in world.parked(range(60, 80))]
        unusable = replace(broken, reason=Reason.BUG, raw=b"{", path="")
        await world.store.park([due_now(event) for event in (*topicless, unusable, adrift, late, *good)])
        await world.start()
        rows = await world.until(lambda rows: len(rows) == 23 and all(row.tries for row in rows))

        assert Counter(ids(await world.records())) == Counter(event.event_id for event in good)
        states = {row.event.event_id: (row.state, row.event.reason) for row in rows}
        assert states[broken.event_id] == (State.HELD, Reason.HOSTILE)
        assert states[adrift.event_id] == (State.PARKED, Reason.KAFKA_UNAVAILABLE)
        assert [row.state for row in rows if row.stale_why] == [State.STALE], "too old, and its entity is gone"
        refused = await world.until(lambda rows: not any(row.lease_token for row in rows))
        assert Counter(row.event.reason for row in refused if row.event.entity == TOPICLESS) == {Reason.KAFKA_TOPIC: 20}


def _delivery(world: RetrierWorld, publisher: Publisher) -> Delivery:
    to = Destination(
        entity=ENTITY, topic=world.entity.topic, owner="payments", outage_parked_events_max=PARKED_IN_OUTAGE
    )
    return Delivery(to, world.contract, Brake(PauseRules()), publisher, world.store, Stop())


async def _frozen_with_leases(world: RetrierWorld, name: str) -> bool:
    """Freeze it when it holds leases and publishes nothing: most of the time it waits for its share."""
    await world.until(lambda rows: any(row.lease_token for row in rows))
    world.stack.freeze(name)
    held = {row.event.event_id for row in await world.rows() if row.lease_token}
    return len(held) >= 2 and not held & set(ids(await world.records()))


async def _end_later(stack: Stack, name: str) -> None:
    await asyncio.sleep(2 * LEASE_S)
    stack.thaw(name)
    await asyncio.sleep(2)
    await asyncio.to_thread(stack.kill, name)


async def _shows(world: RetrierWorld, name: str, series: str, value: float | None) -> None:
    async with asyncio.timeout(60):
        while await world.metric(name, series) != value:  # noqa: ASYNC110  # metrics can only be looked at
            await asyncio.sleep(0.05)


async def test_the_census_is_the_same_by_listing_and_by_counting(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with retrier_world(stack, tmp_path) as world:
        await world.store.park([*world.parked(range(30)), *world.parked(range(30, 50), Reason.INVALID)])
        await world.store.park([replace(event, entity="forgotten") for event in world.parked(range(3))])
        row = next(row for row in await world.rows() if row.event.entity == ENTITY)
        taken = await world.store.transitions.claim(row, "test", 60.0, early=True)
        assert taken is not None
        await world.store.transitions.stale(taken, "given up", permanent=True)
        census = await Census.open(world.table, [ENTITY, TOPICLESS], world.resources)
        listed = await census.count()
        monkeypatch.setattr("services.dynamo_retrier.census.LISTED_MAX", 0)

        assert listed == await census.count()
        assert sum(sum(states.values()) for states in listed.values()) == 50
        assert {entity for entity, _ in listed} == {ENTITY}
