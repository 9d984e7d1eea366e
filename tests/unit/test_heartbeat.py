"""A heartbeat goes through the whole pipe and is no change: each reader of records and raw rows knows it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from services.cli.audit_judgement import _without_row
from services.cli.audit_raw import RowReader, Taker
from services.cli.audit_records import ChainOf, Law
from services.cli.trace_reading import Wanted, in_kafka
from shared import metrics
from shared.events.columns import LINEAGE
from shared.events.flatten import KeyContract, Origin, flatten_batch
from shared.events.lineage import is_heartbeat
from shared.events.model import EventRules
from shared.kafka.records import Outgoing, heartbeats
from shared.raw.keys import Chain
from shared.raw.objects import RawObject
from tests.fakes.partition_log import MemoryRecord
from tests.unit import test_capture, test_sink
from tests.unit.test_delivery import UNAVAILABLE
from tests.unit.test_sink import A

AT_MS = 1_800_000_000_000
RULES = EventRules(entity="things", key=("id", "on"), updated_at="at", shows="events")
SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Thing",
        "fields": [{"name": "id", "type": "long"}, {"name": "on", "type": "string"}, {"name": "at", "type": "long"}],
    }
)
CHAIN = Chain("cdc.things", 1, 0)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    metrics.HEARTBEAT.clear()


def beat(offset: int = 0) -> MemoryRecord:
    (sent,) = heartbeats(1, AT_MS + offset)
    return MemoryRecord(offset, sent.timestamp_ms, sent.key, sent.value, sent.headers)


def rows_of(*records: MemoryRecord) -> Iterator[dict[str, Any]]:
    flat = flatten_batch(Origin(*_of(CHAIN)), records, {}, KeyContract(RULES.key, SCHEMA))
    assert not flat.undecodable
    assert flat.rows == len(records)
    return map(json.loads, flat.body.splitlines())


def _of(chain: Chain) -> tuple[str, int, int]:
    return chain.topic, chain.generation, chain.partition


def seen(stage: str, partition: str = "") -> float | None:
    where = {"entity": "accounts", "stage": stage, "partition": partition}
    return metrics.REGISTRY.get_sample_value("tidemark_heartbeat_timestamp_seconds", where)


def test_a_heartbeat_is_a_record_for_each_partition_without_key_and_value() -> None:
    sent = heartbeats(3, AT_MS)

    assert sent == [Outgoing(b"", None, (("tm-op", b"h"),), AT_MS, partition) for partition in range(3)]
    assert is_heartbeat(beat())
    assert not is_heartbeat(replace(beat(), key=b"7")), "a tombstone may carry what headers it likes"
    assert not is_heartbeat(replace(beat(), value=b"x"))
    assert not is_heartbeat(replace(beat(), headers=(("tm-op", b"d"),)))


def test_a_record_with_a_value_is_no_heartbeat_to_the_audit_whatever_it_calls_itself() -> None:
    line = {"_kafka_topic": "t", "_kafka_generation": 1, "_kafka_partition": 0, "_kafka_offset": 0, "_op": "h"}

    assert RowReader(RULES.key).row(json.dumps(line).encode()).is_heartbeat
    assert not RowReader(RULES.key).row(json.dumps(line | {"_schema_id": 3}).encode()).is_heartbeat


def test_its_raw_row_has_lineage_and_nothing_else() -> None:
    gone = MemoryRecord(1, AT_MS, b'[7,"x"]', None, (("tm-event-id", b"0f" * 16), ("tm-seq", b"1.2"), ("tm-op", b"d")))
    first, second, third = rows_of(beat(0), gone, beat(2))

    lineage = {name: first[name] for name in LINEAGE}
    assert first == {"id": None, "on": None, **lineage}
    assert [row["_kafka_offset"] for row in (first, second, third)] == [0, 1, 2]
    assert [row["_op"] for row in (first, second, third)] == ["h", "d", "h"]
    assert (second["id"], second["on"]) == (7, "x")
    assert first["_kafka_timestamp"].startswith("2027-01-15")
    assert {name for name in lineage if lineage[name] is None} == {"_event_id", "_rank", "_tiebreak", "_schema_id"}


def test_a_tombstone_that_calls_itself_a_heartbeat_is_a_delete_all_the_same() -> None:
    (row,) = rows_of(replace(beat(), key=b'[7,"x"]'))

    assert (row["id"], row["_op"]) == (7, "d")


def test_a_record_without_key_that_is_no_heartbeat_is_still_undecodable() -> None:
    odd = replace(beat(), headers=(("tm-op", b"d"),))
    flat = flatten_batch(Origin(*_of(CHAIN)), [odd, beat(1)], {}, KeyContract(RULES.key, SCHEMA))

    assert [bad.index for bad in flat.undecodable] == [0]


async def test_the_poller_beats_behind_its_own_records_and_not_before_they_are_durable() -> None:
    world = test_capture.World(test_capture.rows(3))
    entity, test_capture.ENTITY = test_capture.ENTITY, replace(test_capture.ENTITY, heartbeat_s=3600.0)
    shown: list[float | None] = []

    def done() -> bool:
        shown.append(seen("kafka"))
        return shown[-1] is not None and world.feed.answers > 3

    try:
        await world.run(done)
    finally:
        test_capture.ENTITY = entity

    assert [record.value is None for record in world.kafka.acked] == [False] * 3 + [True] * entity.partitions
    assert len(world.kafka.acked) == 3 + entity.partitions, "one in an hour"
    assert shown[-1] == world.kafka.acked[-1].timestamp_ms / 1000
    assert world.parked.events == []
    assert seen("kafka") is None, "the lease is gone"


async def test_a_heartbeat_that_kafka_does_not_take_is_counted_and_never_parked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.producer.capture.BEAT_AGAIN_S", 0.001)
    world = test_capture.World([])
    entity, test_capture.ENTITY = test_capture.ENTITY, replace(test_capture.ENTITY, heartbeat_s=0.001)
    world.kafka.answers = [UNAVAILABLE] * 2
    failed = metrics.HEARTBEATS.labels("accounts", "failed")
    before = failed._value.get()
    try:
        await world.run(lambda: bool(world.kafka.acked))
    finally:
        test_capture.ENTITY = entity

    assert failed._value.get() - before == 2
    assert world.parked.events == []
    assert all(record.value is None for record in world.kafka.acked)


async def test_no_entity_beats_unless_it_asks_for_it() -> None:
    world = test_capture.World(test_capture.rows(1))

    await world.run(lambda: world.feed.answers > 5)

    assert len(world.kafka.acked) == 1


async def test_the_sink_has_seen_a_heartbeat_when_its_row_is_written() -> None:
    world = test_sink.World()
    world.fill(A, 1)
    world.log.records[A].append(replace(beat(1)))
    world.log.end[A] = 2
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 2)
        await world.settle()
        assert seen("raw", "0") is None

        world.now_s = 31.0
        await world.until(lambda: seen("raw", "0") is not None)
        assert seen("raw", "0") == (AT_MS + 1) / 1000
        assert await world.offsets() == [0, 1]

        world.source.assigned, world.source.positions = frozenset(), {}
        await world.sink.revoked()
        assert seen("raw", "0") is None


def test_an_audit_counts_heartbeats_as_no_event_and_sees_no_offset_without_a_row(tmp_path: Path) -> None:
    law, chain = Law.of(RULES, tmp_path), ChainOf(chain=CHAIN)
    taker = Taker(law, [chain], with_states=True)
    body = "\n".join(map(json.dumps, rows_of(beat(0), beat(1)))).encode()

    taker.take(RawObject(chain=CHAIN, start=0, end=1, count=2), body)
    taker.take_records(CHAIN, [beat(2)])

    assert (taker.heartbeats, taker.nameless, taker.misfits, chain.silent) == (2, 0, [], [])
    assert law.raw.count == 0
    assert RowReader(RULES.key).row(body.splitlines()[0]).is_heartbeat
    law.close()


async def test_neither_trace_nor_the_look_at_kafka_takes_a_heartbeat_for_an_event(tmp_path: Path) -> None:
    class Log:
        async def records(self, *_place: object) -> Any:
            yield [beat(0)]

    hits, more = await in_kafka(Log(), {CHAIN: (0, 1)}, Wanted(("id",), key=""))  # type: ignore[arg-type]

    assert (hits, more) == ([], False)
    assert await _without_row(*_round(Log(), tmp_path)) == []


def _round(log: Any, folder: Path) -> tuple[Any, Any]:
    async def show(_name: str) -> list[object]:
        return []

    async def parked() -> Any:
        return SimpleNamespace(show=show)

    chain = ChainOf(chain=CHAIN, kafka_begin=0, kafka_end=1, silent=[(0, 0)])
    aside = SimpleNamespace(places=frozenset())
    work = SimpleNamespace(law=Law.of(RULES, folder), chains=[chain], ends={CHAIN: 1}, aside=aside, notes=[])
    return SimpleNamespace(edges=SimpleNamespace(parked=parked, reread=lambda: log)), work
