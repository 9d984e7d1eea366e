"""The checker turns red for each kind of hole, and for nothing else. No servers."""

from hashlib import sha256

import pytest
from msgspec.structs import replace

from deploy.demo.balance import RawRow
from shared.parked.model import State
from tests.faults.checker import Archived, Found, Origin, ParkedRow, Posted, Record, faults, sheet_of

ON_TOPIC, PARKED, IN_GRACE, GONE = "aa", "bb", "cc", "dd"


def digest(event_id: str) -> str:
    return sha256(event_id.encode()).hexdigest()


def record(event_id: str, offset: int) -> Record:
    return Record(partition=0, offset=offset, event_id=event_id, key=event_id.encode(), rank=5, tiebreak=1)


def evidence(event_id: str) -> Archived:
    return Archived(
        event_id=event_id,
        uri=f"s3://a/{event_id}",
        sha256=f"sha {event_id}",
        raw_sha256=digest(event_id),
        cause_id="c1",
    )


def parked(event_id: str) -> ParkedRow:
    return ParkedRow(event_id=event_id, reason="invalid", state=State.HELD)


IN_GRACE_ROW = ParkedRow(
    event_id=IN_GRACE,
    reason="invalid",
    state=State.STALE,
    arch_uri=f"s3://a/{IN_GRACE}",
    arch_sha=f"sha {IN_GRACE}",
    receipts=1,
)
NOTICE = Posted("msg_1", "cdc::payments:invalid:c1", "c1", "body")
WHOLE = Found(
    entity="payments",
    expected={name: Origin(name.encode(), 5, 1, digest(name)) for name in (ON_TOPIC, PARKED, IN_GRACE, GONE)},
    records=[record(ON_TOPIC, 0)],
    parked=[parked(PARKED), IN_GRACE_ROW],
    archived=[evidence(IN_GRACE), evidence(GONE)],
    receipts=frozenset({"c1"}),
    posted=[NOTICE, NOTICE],
)


def test_each_event_in_its_place_is_no_fault() -> None:
    assert faults(WHOLE) == []
    sheet = sheet_of(WHOLE)
    assert (sheet.seen, sheet.raw, sheet.parked, sheet.archived) == (4, 1, 2, 1)


HOLES = {
    "lost": replace(WHOLE, records=[]),
    "deleted, and nobody was told": replace(WHOLE, receipts=frozenset()),
    "deleted, and no receiver has a notice": replace(WHOLE, posted=[]),
    "deleted, and no receiver has a notice (1)": replace(WHOLE, posted=[replace(NOTICE, taken=False)]),
    "published again without a reason": replace(WHOLE, records=[record(ON_TOPIC, 0), record(ON_TOPIC, 1)]),
    "published and still parked": replace(WHOLE, parked=[*WHOLE.parked, parked(ON_TOPIC)]),
    "published and archived": replace(WHOLE, records=[*WHOLE.records, record(GONE, 1)]),
    "published otherwise": replace(WHOLE, records=[replace(record(ON_TOPIC, 0), rank=6)]),
    "published under no event id": replace(
        WHOLE, records=[*WHOLE.records, replace(record(ON_TOPIC, 1), event_id=None)]
    ),
    "archived with other bytes": replace(
        WHOLE, archived=[evidence(IN_GRACE), replace(evidence(GONE), raw_sha256="other")]
    ),
    "parked without its bytes": replace(WHOLE, parked=[replace(parked(PARKED), has_body=False), IN_GRACE_ROW]),
    "told of before there was evidence": replace(
        WHOLE, parked=[parked(PARKED), replace(IN_GRACE_ROW, arch_uri=None, arch_sha=None)]
    ),
    "parked with evidence that is not in the archive": replace(WHOLE, archived=[evidence(GONE)]),
    "parked with evidence that is not in the archive (1)": replace(
        WHOLE, archived=[replace(evidence(IN_GRACE), sha256="altered"), evidence(GONE)]
    ),
    "one notice with two contents": replace(WHOLE, posted=[NOTICE, replace(NOTICE, body_sha256="another")]),
    "one notice with two contents (1)": replace(WHOLE, posted=[NOTICE, replace(NOTICE, dedup_key="another")]),
    "offset in no raw object": replace(
        WHOLE, records=[*WHOLE.records, record(ON_TOPIC, 1)], raw=[RawRow(event_id=ON_TOPIC, place=(0, 0))],
        excuses={ON_TOPIC: 1},
    ),
    "offset in two raw objects": replace(WHOLE, raw=[RawRow(event_id=ON_TOPIC, place=(0, 0))] * 2),
    "raw row of no Kafka offset": replace(
        WHOLE, raw=[RawRow(event_id=ON_TOPIC, place=(0, offset)) for offset in range(2)]
    ),
    "chain": replace(WHOLE, chain_problems=["a piece was altered"]),
}  # fmt: skip


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_is_named_and_nothing_else_is(hole: str) -> None:
    assert [line.startswith(hole.removesuffix(" (1)")) for line in faults(HOLES[hole])] == [True], faults(HOLES[hole])


def test_an_event_that_left_every_store_is_lost_wherever_it_was() -> None:
    assert "lost" in faults(replace(WHOLE, parked=[IN_GRACE_ROW]))[0]
    assert "lost" in faults(replace(WHOLE, archived=[evidence(IN_GRACE)]))[0]


def test_a_reason_with_a_name_excuses_as_many_repeats_as_it_explains() -> None:
    twice = replace(WHOLE, records=[record(ON_TOPIC, 0), record(ON_TOPIC, 1)])
    thrice = replace(WHOLE, records=[record(ON_TOPIC, offset) for offset in range(3)])

    assert faults(replace(twice, excuses={ON_TOPIC: 1})) == []
    assert faults(replace(thrice, excuses={ON_TOPIC: 1})) != []
    assert faults(replace(thrice, excuses={ON_TOPIC: 2})) == []


def test_what_is_parked_as_perhaps_sent_may_be_on_the_topic_too() -> None:
    unsure = replace(parked(ON_TOPIC), maybe_sent=True)

    assert faults(replace(WHOLE, parked=[*WHOLE.parked, unsure])) == []
    records = [record(ON_TOPIC, 0), record(ON_TOPIC, 1)]
    assert faults(replace(WHOLE, parked=[*WHOLE.parked, unsure], records=records)) == []


def test_what_was_archived_as_perhaps_sent_may_be_on_the_topic_too() -> None:
    records = [*WHOLE.records, record(GONE, 1)]
    unsure = replace(evidence(GONE), maybe_sent=True)

    assert faults(replace(WHOLE, records=records, archived=[evidence(IN_GRACE), unsure])) == []
