"""How fresh each stage says it is: never fresher than true, whatever fails, and silent about what is not its own."""

import time

import pytest

from services.delta_loader.loader import Span
from services.s3_sink.gauges import MARKS_MAX, Marks
from shared import metrics
from shared.kafka.chunks import KnownEnd
from shared.kafka.consumer import GroupConsumer
from shared.kafka.settings import KafkaSettings
from shared.producer.feed import SourceUnavailable
from shared.raw.objects import StoreUnavailable
from tests.fakes.object_store import Fault
from tests.unit import test_capture, test_lake_loader, test_sink
from tests.unit.test_delivery import UNAVAILABLE
from tests.unit.test_sink import A, B

pytestmark = pytest.mark.usefixtures("_quick")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.FRESH.clear()
    monkeypatch.setattr("shared.producer.capture.backoff", lambda base_s, cap_s: iter(lambda: 0.0, 1.0))


def fresh(stage: str, partition: str = "", entity: str = "accounts") -> float | None:
    where = {"entity": entity, "stage": stage, "partition": partition}
    return metrics.REGISTRY.get_sample_value("tidemark_fresh_timestamp_seconds", where)


# The source


async def test_the_source_is_fresh_as_of_the_question_once_its_answer_is_durable() -> None:
    world = test_capture.World(test_capture.rows(3))
    seen: list[float] = []
    before_s = time.time()

    def done() -> bool:
        if (now := fresh("source")) is not None:
            assert len(world.kafka.acked) == 3
            seen.append(now)
        return len(seen) > 3

    await world.run(done)

    assert before_s <= seen[0] <= seen[-1] <= time.time()
    assert fresh("source") is None, "another poller may have the entity now"


async def test_a_source_is_not_fresh_while_its_rows_are_not_durable() -> None:
    world = test_capture.World(test_capture.rows(3))
    world.kafka.answers = [UNAVAILABLE] * 1_000
    seen: list[float | None] = []

    def done() -> bool:
        seen.append(fresh("source"))
        return world.kafka.calls > 0

    await world.run(done)

    assert set(seen) == {None}


async def test_a_source_that_does_not_answer_ages() -> None:
    world = test_capture.World(test_capture.rows(1))
    world.feed.faults = [SourceUnavailable("503", 0.0)] * 5
    seen: list[float | None] = []

    def done() -> bool:
        seen.append(fresh("source"))
        return not world.feed.faults

    await world.run(done)

    assert set(seen[:-1]) == {None}


async def test_a_poller_that_was_fenced_says_nothing_any_more() -> None:
    world = test_capture.World(test_capture.rows(3))
    world.checkpoints.fenced = True
    metrics.FRESH.labels("accounts", "source", "").set(1)

    await world.run(lambda: False)

    assert fresh("source") is None


# The raw bucket


async def test_a_partition_is_fresh_when_what_its_log_held_is_written_and_not_when_it_is_read() -> None:
    world = test_sink.World()
    world.fill(A, 3)
    world.log.now_s = 100.0
    async with world.running():
        await world.until(lambda: world.source.positions.get(A) == 3)
        await world.settle()
        assert fresh("raw", "0") == 0.0, "nothing was ever written, so nothing is known to be"

        world.now_s = 31.0
        await world.until(lambda: fresh("raw", "0") == 100.0)

        assert len(world.objects()) == 1


async def test_a_quiet_partition_stays_fresh() -> None:
    world = test_sink.World()
    world.fill(A, 1)
    async with world.running():
        world.now_s = 31.0
        await world.until(lambda: bool(world.objects()), passing_s=1)
        for now_s in (200.0, 201.5, 300.0):
            world.log.now_s = now_s
            await world.until(lambda now_s=now_s: fresh("raw", "0") == now_s)  # type: ignore[misc]


async def test_a_partition_ages_while_its_objects_can_t_be_written() -> None:
    world = test_sink.World()
    world.fill(A, 1)
    async with world.running():
        await world.until(lambda: bool(world.objects()), passing_s=1)
        world.log.now_s = 200.0
        await world.until(lambda: fresh("raw", "0") == 200.0)
        world.faults = lambda operation, _key: Fault(StoreUnavailable("down")) if operation == "create" else None
        world.fill(A, 1)
        for step in range(50):
            world.log.now_s = 300.0 + step
            world.now_s += 5.0
            await world.settle(20)

        assert fresh("raw", "0") == 200.0


async def test_after_a_restart_the_last_written_record_says_how_fresh_a_partition_is() -> None:
    world = test_sink.World()
    world.fill(A, 2)
    async with world.running(drains=True):
        await world.until(lambda: world.source.positions.get(A) == 2)
    metrics.FRESH.clear()
    world.fill(A, 5)
    world.log.now_s = 5_000.0
    async with world.running():
        await world.until(lambda: fresh("raw", "0") is not None)
        await world.settle()

        assert fresh("raw", "0") == 1_000.001, "in seconds, as its log has it"


async def test_a_partition_that_was_given_away_is_not_spoken_of() -> None:
    world = test_sink.World(A, B)
    world.fill(A, 1)
    world.fill(B, 1)
    async with world.running():
        await world.until(lambda: fresh("raw", "0") is not None and fresh("raw", "0", "payments") is not None)
        world.source.assigned, world.source.positions = frozenset(), {}
        await world.sink.revoked()
        await world.settle()

        assert (fresh("raw", "0"), fresh("raw", "0", "payments")) == (None, None)
        assert metrics.REGISTRY.get_sample_value("tidemark_sink_in_progress_records", {"topic": A.topic}) == 0.0


def test_ends_that_find_no_room_make_nothing_fresher_than_it_is() -> None:
    marks = Marks(0.0)
    for at_s in range(1, 1_000):
        marks.move(0, KnownEnd(at_s, float(at_s)))

    assert marks.move(0, None) == 0.0
    assert marks.move(10, None) == 10.0
    assert marks.move(999, None) == MARKS_MAX
    assert marks.move(999, KnownEnd(999, 2_000.0)) == 2_000.0
    assert marks.move(0, KnownEnd(999, 1_000.0)) == 2_000.0, "it never goes back"


async def test_kafka_s_answer_may_lie_unread_so_that_only_the_one_before_it_gives_a_time() -> None:
    member = GroupConsumer(KafkaSettings(bootstrap="127.0.0.1:9"), "g", [A.topic], _nothing)
    answers = _Answers()
    member._assigned, member._consumer = frozenset({A}), answers

    answers.end, answers.at_ms = 5, 1_000
    assert member.known_end(A) is None, "it may have been asked for at any time before"
    assert member.known_end(A) is None
    answers.end, answers.at_ms = 7, 61_000  # the process was held up for a minute, and the answer is as old
    assert member.known_end(A) == KnownEnd(7, 1.0)
    assert member.known_end(A) == KnownEnd(7, 1.0)
    answers.end, answers.at_ms = 7, 61_500
    assert member.known_end(A) == KnownEnd(7, 61.0)


class _Answers:
    """What aiokafka's consumer knows of the last answer."""

    end, at_ms = 0, 0

    def highwater(self, _partition: object) -> int:
        return self.end

    def last_poll_timestamp(self, _partition: object) -> int:
        return self.at_ms

    def assignment(self) -> frozenset[object]:
        return frozenset({A})


async def _nothing() -> None: ...


# The lake


async def test_the_lake_is_fresh_as_of_the_listing_once_all_of_it_is_merged() -> None:
    seen: list[float | None] = []
    table = test_lake_loader.Table(lambda _attempt: seen.append(fresh("lake")))
    before_s = time.time()
    loading = test_lake_loader.loader(table, 5)

    await loading.load()

    after_s = fresh("lake")
    assert seen == [None, None, None]
    assert after_s is not None
    assert before_s <= after_s <= time.time()
    await loading.load()
    assert (fresh("lake") or 0.0) > after_s, "a quiet lake stays fresh"


async def test_a_lake_that_was_not_merged_to_the_end_is_no_fresher() -> None:
    error = StoreUnavailable("down")
    table = test_lake_loader.Table(test_lake_loader.raising(error, [2]))

    with pytest.raises(StoreUnavailable):
        await test_lake_loader.loader(table, 5).load()

    assert table.attempts == 2
    assert fresh("lake") is None


async def test_what_a_query_hands_over_says_nothing_about_what_it_has_not_listed() -> None:
    span = Span(through={test_lake_loader.A: 40})

    await test_lake_loader.loader(test_lake_loader.Table(), 5).load(span)

    assert fresh("lake") is None
