"""One batch, in memory: what happens in which order, and what a frozen, hurried or unlucky worker leaves undone."""

import json
from typing import Any

import pytest

from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.ports import ArchiveUnavailable
from services.dynamo_retrier.redrive import AT_ONCE, Batch, Deadline, Limits, Redrive
from shared.events.contract import compile_contract
from shared.events.model import EventRules, Reason, RejectedEvent
from shared.events.repair import Number
from shared.kafka.records import NotPublished, parse_headers
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.calls import ParkedUnavailable
from shared.parked.model import ParkedEvent
from shared.parked.transitions import BodyLost, LeaseLost
from shared.parked.wake import NoAnalyst
from tests.fakes.leases import AT_MS, DAY_MS, FakeBroker, FakeTable, HandClock, claimed_of, hint, item_id

RULES = EventRules(entity="payments", key=("id",), updated_at="at", updated_at_format="epoch_ms")
SCHEMA = json.dumps({
    "type": "record",
    "name": "Payment",
    "fields": [{"name": name, "type": "long"} for name in ("id", "at", "amount")],
})  # fmt: skip
AWAY = ParkedUnavailable("parked_unavailable", "no answer")
UNAVAILABLE = NotPublished(Reason.KAFKA_UNAVAILABLE, "no broker")
UNKNOWN = NotPublished(Reason.KAFKA_UNKNOWN, "no ack")


def raw(number: int, amount: object = 5) -> bytes:
    return json.dumps({"id": number, "at": AT_MS, "amount": amount}).encode()


class Scene:
    """Three good rows, a second's share of ``per_s``, a worker with a lease of a minute."""

    def __init__(self, *, per_s: int = 100, rows: int = 3) -> None:
        self.clock = HandClock()
        self.table = FakeTable(self.clock, {item_id(n): self._raw_of(n) for n in range(rows)})
        self.broker = FakeBroker(self.table)
        contract = compile_contract(RULES, SCHEMA, "cdc.payments-value", 7)
        self.analyst = Analyst(contract, RULES, (Number("/amount"),))
        self.kept: list[str] = []
        self.archive_is_up = True
        self.keep_s = 0.0
        self.share = Share(per_s)
        self.deadline = Deadline()
        self.redrive = Redrive(
            self.table,
            self.broker,
            self,
            self,
            self.share,
            Limits(lease_s=60, publish_s_max=19),
            "worker",
            monotonic_s=self.clock.monotonic_s,
            wall_ms=self.clock.wall_ms,
        )

    @staticmethod
    def _raw_of(number: int) -> bytes:
        return raw(number)

    async def current(self, entity: str) -> Analyst:
        return self.analyst

    async def keep(self, name: str, line: bytes) -> None:
        if not self.archive_is_up:
            raise ArchiveUnavailable("down")
        self.clock.now_s += self.keep_s
        self.table.did.append(("kept", json.loads(line)["item"]))
        self.kept.append(name)

    async def run(self, **changes: Any) -> Batch:
        hints = [hint(int(row, 16), **changes) for row in sorted(self.table.rows)]
        if not hints:
            return Batch("payments", self.deadline)
        return await self.redrive.batch("cdc.payments", hints, self.deadline)

    def did(self, operation: str) -> list[str]:
        return [row for what, row in self.table.did if what == operation]


async def test_a_row_is_deleted_after_its_acknowledgement_and_published_as_first_seen() -> None:
    scene = Scene()
    done = await scene.run()

    for number in range(3):
        assert [what for what, row in scene.table.did if row == item_id(number)] == [
            "claim",
            "acknowledged",
            "published",
        ]
    assert (done.claimed, done.published, done.kafka) == (3, 3, "answered")
    record = scene.broker.calls[0][1]
    said = parse_headers(record.headers)
    assert (record.key, said.event_id, said.rank, said.tiebreak) == (b"1", item_id(1), 1, 3)
    assert (said.op, said.attempt, said.rev, record.timestamp_ms) == ("u", 1, 0, AT_MS)


async def test_an_unknown_outcome_is_marked_and_an_outage_counts_for_nothing() -> None:
    scene = Scene()
    scene.broker.outcome = lambda record: UNKNOWN if record.key == b"0" else UNAVAILABLE
    done = await scene.run()

    assert done.kafka == "away"
    assert scene.did("published") == []
    unknown, error, maybe_sent, _ = scene.table.said[item_id(0)]
    assert (unknown.action, unknown.counts, maybe_sent) == ("again", False, True)
    assert error == RejectedEvent(Reason.KAFKA_UNKNOWN, "", "no ack")
    away, _, maybe_sent, _ = scene.table.said[item_id(1)]
    assert (away.action, away.counts, away.free, maybe_sent) == ("again", False, True, False)


async def test_when_kafka_goes_away_what_was_still_to_be_sent_is_given_back() -> None:
    scene = Scene(per_s=2)
    scene.broker.outcome = lambda record: UNAVAILABLE
    await scene.run()

    assert len(scene.broker.calls) == 1
    assert sorted(scene.did("again")) == [item_id(n) for n in range(3)]
    assert [said for said in scene.table.said.values() if said == ("kafka_unavailable", False, True)]


async def test_a_row_that_is_refused_under_its_lease_is_held_with_what_it_was_tried_against() -> None:
    scene = Scene()
    scene.table.rows[item_id(1)] = raw(1, amount=[])
    await scene.run()

    after, error, _, fingerprint = scene.table.said[item_id(1)]
    assert (after.action, after.reason, fingerprint) == ("hold", Reason.INVALID, scene.analyst.fingerprint)
    assert isinstance(error, RejectedEvent)
    assert error.path == "/amount"
    assert scene.did("published") == [item_id(0), item_id(2)]


async def test_a_refusal_counts_only_against_a_contract_that_is_new_to_the_row() -> None:
    scene = Scene(rows=1)
    scene.table.rows[item_id(0)] = raw(0, amount=[])
    await scene.run(reason=Reason.INVALID)
    assert scene.table.said[item_id(0)][0].counts

    scene.table.changes = {"fingerprint": scene.analyst.fingerprint}
    await scene.run(reason=Reason.INVALID)
    assert not scene.table.said[item_id(0)][0].counts


async def test_what_our_own_code_fails_on_spoils_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    analyse = Analyst.analyse

    def stumbling(self: Analyst, event: ParkedEvent, now_us: int) -> Retriable | NotYet:
        if event.key == "1":
            raise KeyError("amount")
        return analyse(self, event, now_us)

    monkeypatch.setattr(Analyst, "analyse", stumbling)
    await scene.run()

    after, error, _, _ = scene.table.said[item_id(1)]
    assert (after.action, after.reason, after.counts) == ("again", Reason.BUG, True)
    assert "KeyError" in error.detail
    assert scene.did("published") == [item_id(0), item_id(2)]


async def test_a_bug_that_stays_ends_as_stale() -> None:
    scene = Scene(rows=1)
    scene.table.changes = {"att": 4}
    claimed = claimed_of(hint(0), b"", scene.clock.now_s + 54, att=4)
    scene.table.fails["claim", item_id(0)] = [BodyLost(claimed, "the body is missing")]
    await scene.run()

    after, _, _, _ = scene.table.said[item_id(0)]
    assert (after.action, after.why) == ("stale", "attempts")


async def test_a_row_that_cannot_be_read_or_written_keeps_nobody_waiting() -> None:
    scene = Scene()
    scene.table.fails["claim", item_id(0)] = [KeyError("st")]
    scene.table.fails["published", item_id(1)] = [ValueError("item too large")]
    done = await scene.run()

    assert done.published == 1
    assert scene.did("published") == [item_id(2)]


async def test_an_answer_lost_on_the_way_back_from_the_table_is_asked_for_again() -> None:
    scene = Scene()
    scene.table.fails["published", item_id(0)] = [AWAY]
    done = await scene.run()

    assert (done.published, done.parked_away) == (3, True)
    assert len(scene.broker.calls) == 1, "published again instead"


async def test_while_the_table_is_away_no_further_rows_are_claimed() -> None:
    scene = Scene(rows=AT_ONCE + 1)
    scene.table.fails["claim", item_id(0)] = [AWAY]
    done = await scene.run()

    assert done.parked_away
    assert (done.claimed, done.published) == (AT_ONCE - 1, AT_ONCE - 1)


async def test_a_worker_frozen_between_claim_and_publish_changes_nothing() -> None:
    scene = Scene()
    scene.table.lease_s = -66.0  # it wakes when twice the lease is over
    await scene.run()

    assert scene.broker.calls == []
    assert {what for what, _ in scene.table.did} == {"claim"}


async def test_a_worker_frozen_while_it_publishes_does_not_touch_the_row() -> None:
    scene = Scene()

    def freeze() -> None:
        scene.clock.now_s += 120

    scene.broker.meanwhile = freeze
    done = await scene.run()

    assert done.published == 0
    assert {what for what, _ in scene.table.did} == {"claim", "acknowledged"}


async def test_nothing_is_published_that_could_outlast_the_lease() -> None:
    scene = Scene()
    scene.table.lease_s = 18.0
    await scene.run()

    assert scene.broker.calls == []
    assert [scene.table.said[item_id(n)] for n in range(3)] == [("out_of_time", False, True)] * 3


async def test_nothing_is_claimed_that_could_outlast_the_deadline() -> None:
    scene = Scene()
    scene.deadline.nearer(scene.clock.now_s + 18)
    await scene.run()

    assert scene.table.did == []


async def test_a_deadline_that_comes_near_gives_back_what_waits_for_its_share() -> None:
    scene = Scene(per_s=2)

    def hurry() -> None:
        scene.deadline.nearer(scene.clock.now_s + 1)

    scene.broker.meanwhile = hurry
    done = await scene.run()

    assert done.published == 2
    assert scene.table.said[item_id(2)] == ("out_of_time", False, True)


async def test_of_a_slow_table_as_many_are_claimed_as_can_still_be_published() -> None:
    scene = Scene(rows=200, per_s=1_000)
    scene.table.claim_s = 0.5  # of one after the other: 100 s for all
    done = await scene.run()

    assert 0 < done.published < 200
    assert done.published == done.claimed, "claimed, and then there was no time for it"
    scene.table.said.clear()
    for _ in range(20):
        await scene.run()
    assert scene.table.rows == {}
    assert scene.table.said == {}, "given back"


async def test_of_a_slow_archive_as_many_originals_are_kept_as_can_still_be_published() -> None:
    scene = Scene(rows=200, per_s=1_000)
    scene.table.rows = {row: raw(int(row, 16), amount="12") for row in scene.table.rows}
    scene.keep_s = 0.5
    done = await scene.run(reason=Reason.INVALID)

    assert 0 < done.published < 200
    assert done.published == len(scene.kept), "kept in vain"
    for _ in range(20):
        await scene.run(reason=Reason.INVALID)
    assert scene.table.rows == {}


async def test_a_lost_lease_is_left_alone() -> None:
    scene = Scene()
    claimed = claimed_of(hint(0), b"", 0.0)
    scene.table.fails["published", item_id(0)] = [LeaseLost(claimed, "published")]
    done = await scene.run()

    assert done.published == 2
    assert item_id(0) in scene.table.rows


async def test_the_original_of_a_repaired_event_is_kept_before_it_is_published() -> None:
    scene = Scene()
    scene.table.rows[item_id(1)] = raw(1, amount="12")
    await scene.run(reason=Reason.INVALID)

    assert [what for what, row in scene.table.did if row == item_id(1)] == [
        "claim",
        "kept",
        "acknowledged",
        "published",
    ]
    assert {parse_headers(record.headers).rev for record in scene.broker.calls[0]} == {0, 1}


async def test_without_the_archive_repaired_events_wait_and_the_others_go() -> None:
    scene = Scene()
    scene.table.rows[item_id(1)] = raw(1, amount="12")
    scene.archive_is_up = False
    await scene.run(reason=Reason.INVALID)

    assert scene.did("published") == [item_id(0), item_id(2)]
    assert scene.table.said[item_id(1)] == ("archive_unavailable", False, True)


async def test_without_its_contract_nothing_of_an_entity_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    async def none(entity: str) -> Analyst:
        raise NoAnalyst("the registry is away")

    monkeypatch.setattr(scene, "current", none)
    with pytest.raises(NoAnalyst):
        await scene.run()
    assert scene.table.did == []


async def test_rows_of_an_entity_that_is_gone_wait_for_it_until_they_are_too_old() -> None:
    scene = Scene(rows=1)
    await scene.redrive.adrift([hint(0)], Deadline())
    assert scene.table.said[item_id(0)] == ("entity_unknown", False, True)

    scene.clock.now_s += 8 * DAY_MS / 1000
    await scene.redrive.adrift([hint(0)], Deadline())
    assert scene.table.said[item_id(0)] == "entity_unknown"
    assert scene.did("stale") == [item_id(0)]
