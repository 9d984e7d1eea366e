import json
from collections.abc import Sequence

import pytest

from shared.entities import PauseRules
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.events.model import Event, EventRules, Reason, RejectedEvent, Sighting
from shared.events.repair import Rename, RepairRule, Trim
from shared.kafka.records import NotPublished
from shared.lifecycle import Stop
from shared.producer.brake import Brake
from shared.producer.delivery import Delivery, Destination, Interrupted, PauseEntity, Repairs
from tests.fakes.delivery import FakeKafka, FakeParked

RULES = EventRules(entity="accounts", key=("id",), updated_at="at", updated_at_format="epoch_us", op="op")
SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Account",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "at", "type": "long"},
            {"name": "op", "type": "string"},
            {"name": "name", "type": "string"},
        ],
    }
)
UNAVAILABLE = NotPublished(Reason.KAFKA_UNAVAILABLE, "no broker")
UNKNOWN = NotPublished(Reason.KAFKA_UNKNOWN, "no ack within 15 s")


class ImpatientStop(Stop):
    """Every wait ends at once; ``waits`` of them are granted before the stop is set."""

    def __init__(self, waits: int = 1_000) -> None:
        super().__init__()
        self.waits = waits

    async def wait(self, timeout_s: float | None = None) -> bool:
        self.waits -= 1
        return self.waits < 0


def events(*rows: object) -> list[Event]:
    raws = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    sightings = Identifier(RULES).identify(raws)
    return [Event(s, 0, f"{i:032x}", i, i, 0) for i, s in enumerate(sightings)]


def good(number: int) -> dict[str, object]:
    return {"id": number, "at": 1, "op": "u", "name": "x"}


def bad(number: int) -> dict[str, object]:
    return {"id": number, "at": 1, "op": "u", "name": 7}


def delivery(
    kafka: FakeKafka,
    parked: FakeParked,
    *,
    stop: Stop | None = None,
    outage_max: int = 10_000,
    repairs: tuple[RepairRule, ...] = (),
) -> Delivery:
    to = Destination(entity="accounts", topic="cdc.accounts", owner="ledger", outage_parked_events_max=outage_max)
    contract = compile_contract(RULES, SCHEMA, "cdc.accounts-value", 7)
    own = Repairs(RULES, repairs)
    return Delivery(to, contract, Brake(PauseRules()), kafka, parked, stop or ImpatientStop(), own)


def renamed(number: int) -> dict[str, object]:
    return {"id": number, "at": 1, "op": "u", "nom": "x"}


async def test_a_flood_that_the_entitys_repairs_cure_does_not_pause_it() -> None:
    kafka, parked = FakeKafka(), FakeParked()
    one = delivery(kafka, parked, repairs=(Rename("/nom", "name"),))

    for page in range(3):
        await one.deliver(events(*map(renamed, range(page * 100, page * 100 + 100)), good(1_000 + page)))

    assert len(parked.events) == 300, "the retrier repairs them, not the poller"
    assert {event.reason for event in parked.events} == {Reason.INVALID}
    assert len(kafka.acked) == 3


async def test_a_flood_that_no_repair_cures_pauses_the_entity_whatever_repairs_there_are() -> None:
    one = delivery(FakeKafka(), FakeParked(), repairs=(Rename("/nom", "name"), Trim("/name")))

    with pytest.raises(PauseEntity, match="200 invalid events in a row"):
        await one.deliver(events(*map(renamed, range(50)), *map(bad, range(100, 300))))


async def test_one_bad_event_parks_itself_and_the_rest_is_published() -> None:
    kafka, parked = FakeKafka(), FakeParked()

    await delivery(kafka, parked).deliver(events(*map(good, range(500)), bad(500), *map(good, range(501, 1000))))

    assert len(kafka.acked) == 999
    assert [(p.key, p.reason, p.path) for p in parked.events] == [("500", Reason.INVALID, "/name")]


async def test_what_kafka_never_got_is_parked_while_the_outage_budget_lasts() -> None:
    kafka, parked = FakeKafka([UNAVAILABLE]), FakeParked()

    await delivery(kafka, parked).deliver(events(*map(good, range(10))))

    assert len(parked.events) == 10
    assert {(p.reason, p.maybe_sent) for p in parked.events} == {(Reason.KAFKA_UNAVAILABLE, False)}
    assert kafka.acked == []


async def test_beyond_the_outage_budget_events_wait_for_kafka_instead_of_being_parked() -> None:
    kafka, parked = FakeKafka([UNAVAILABLE] * 5), FakeParked()

    await delivery(kafka, parked, outage_max=4).deliver(events(*map(good, range(10))))

    assert len(parked.events) == 4
    assert len(kafka.acked) == 6


async def test_the_outage_budget_counts_over_pages_and_is_fresh_after_kafka_took_a_page() -> None:
    kafka, parked = FakeKafka([UNAVAILABLE, UNAVAILABLE, None, UNAVAILABLE]), FakeParked()
    one = delivery(kafka, parked, outage_max=4)

    await one.deliver(events(*map(good, range(4))))
    await one.deliver(events(good(4)))
    await one.deliver(events(good(5)))

    assert [p.key for p in parked.events] == ["0", "1", "2", "3", "5"]
    assert [record.key for record in kafka.acked] == [b"4"]


async def test_an_event_of_unknown_outcome_is_parked_whatever_the_budget_and_says_so() -> None:
    kafka, parked = FakeKafka([UNKNOWN]), FakeParked()

    await delivery(kafka, parked, outage_max=0).deliver(events(good(1)))

    assert [(p.reason, p.maybe_sent) for p in parked.events] == [(Reason.KAFKA_UNKNOWN, True)]


async def test_a_topic_that_takes_nothing_does_not_flood_the_parked_table() -> None:
    missing = NotPublished(Reason.KAFKA_TOPIC, "unknown topic")
    kafka, parked = FakeKafka([missing] * 3), FakeParked()

    await delivery(kafka, parked, outage_max=4).deliver(events(*map(good, range(10))))

    assert (len(parked.events), len(kafka.acked)) == (4, 6)


async def test_a_stop_while_events_wait_leaves_the_page_unfinished() -> None:
    down = FakeKafka([UNAVAILABLE] * 9)
    with pytest.raises(Interrupted):
        await delivery(down, FakeParked(), outage_max=0, stop=ImpatientStop(2)).deliver(events(good(1)))
    with pytest.raises(Interrupted):
        await delivery(FakeKafka(), FakeParked(failures=9), stop=ImpatientStop(2)).deliver(events(bad(1)))


async def test_parking_is_tried_until_it_is_durable() -> None:
    parked = FakeParked(failures=3)

    await delivery(FakeKafka(), parked).deliver(events(bad(1)))

    assert [p.key for p in parked.events] == ["1"]


async def test_a_flood_of_invalid_events_pauses_before_anything_is_sent_or_parked() -> None:
    kafka, parked = FakeKafka(), FakeParked()

    with pytest.raises(PauseEntity, match="too_many_invalid: 200 invalid events in a row"):
        await delivery(kafka, parked).deliver(events(good(0), *map(bad, range(1, 201))))

    assert (kafka.calls, parked.events) == (0, [])


async def test_an_event_that_trips_our_own_code_spoils_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka, parked = FakeKafka(), FakeParked()
    one = delivery(kafka, parked)
    encode = one.contract.encode

    def trip(sightings: Sequence[Sighting]) -> list[bytes | RejectedEvent | None]:
        if any(sighting.key == "3" for sighting in sightings):
            raise ZeroDivisionError
        return encode(sightings)

    monkeypatch.setattr(one.contract, "encode", trip)
    await one.deliver(events(*map(good, range(5))))

    assert [record.key for record in kafka.acked] == [b"0", b"1", b"2", b"4"]
    assert [(p.key, p.reason) for p in parked.events] == [("3", Reason.BUG)]


async def test_an_event_that_is_no_json_is_parked_with_its_raw_bytes() -> None:
    parked = FakeParked()

    await delivery(FakeKafka(), parked).deliver(events(b'{"id": 1, "at": 1, "op": NaN}'))

    assert [(p.reason, p.raw) for p in parked.events] == [(Reason.HOSTILE, b'{"id": 1, "at": 1, "op": NaN}')]
