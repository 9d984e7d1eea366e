"""Parked events as items: keys that make parking idempotent, and everything that a re-drive needs."""

from hashlib import sha256
from random import Random

import pytest
from msgspec.structs import replace

from shared.events.model import Event, Reason, RejectedEvent, Sighting
from shared.parked.items import (
    Draft,
    Stored,
    body_item,
    count_statement,
    decompress,
    detail_of,
    draft_of,
    id_of,
    insert_statement,
    meta_item,
    record_of,
    resolve,
    row_of,
)
from shared.parked.leases import read_row
from shared.parked.model import (
    KafkaPosition,
    ParkedEvent,
    State,
    body_key,
    due_sort,
    meta_key,
    parked_from_event,
    partition_key,
    shard,
    undecodable,
)
from shared.parked.policy import POLICIES, deadline_ms, first_due_ms
from shared.parked.store import _batches, _collapsed

AT_US = 1_760_000_000_000_000


def parked(number: int = 1, **changes: object) -> ParkedEvent:
    raw = b'{"id": %d, "amount": "ten"}' % number
    event = ParkedEvent(
        entity="payments",
        topic="cdc.payments",
        key=str(number),
        key_hash=sha256(str(number).encode()).digest()[:16],
        updated_us=AT_US - 5,
        event_id=f"{number:032x}",
        rank=AT_US,
        tiebreak=number,
        reason=Reason.INVALID,
        path="/amount",
        detail="expected a decimal",
        raw=raw,
        subject="cdc.payments-value",
        fingerprint="ab" * 8,
        owner="payments-team",
        at_us=AT_US,
    )
    return replace(event, **changes)


def drafted(event: ParkedEvent, *, sightings: int = 1, body_bytes_max: int = 1_000) -> Draft:
    return draft_of(event, sightings, body_bytes_max)


def stored(draft: Draft, **changes: object) -> Stored:
    as_is = Stored(
        nonce=draft.nonce, body_sha=draft.body_sha, seen=1, seq=draft.seq, maybe_sent=draft.event.maybe_sent, ver=1
    )
    return replace(as_is, **changes)


def test_keys_hold_only_what_is_the_same_at_every_reading() -> None:
    first = parked()
    again = parked(rank=AT_US + 9, tiebreak=7, at_us=AT_US + 60, reason=Reason.KAFKA_UNKNOWN, maybe_sent=True)

    assert (partition_key(first), meta_key(first, 0)) == (partition_key(again), meta_key(again, 0))
    assert meta_key(first, 0) == "E#00001759999999999995#" + f"{1:032x}"


def test_each_attempt_has_a_body_of_its_own() -> None:
    event = parked()

    assert body_item(drafted(event))["sk"] != body_item(drafted(event))["sk"]
    assert body_key(event, "n1").startswith("B#")


def test_garbage_is_spread_over_partitions_by_its_bytes() -> None:
    hashes = [sha256(b"garbage %d" % number).digest()[:16] for number in range(200)]
    keys = {partition_key(parked(key=None, key_hash=digest)) for digest in hashes}

    assert len(keys) > 100
    assert all(key.startswith("P#payments#!raw") for key in keys)


def test_an_item_shows_again_what_was_parked() -> None:
    event = parked(maybe_sent=True, reason=Reason.KAFKA_UNKNOWN)
    draft = drafted(event)
    detail = detail_of(meta_item(draft), decompress(body_item(draft)["raw"]["B"]))

    assert detail.raw == event.raw
    assert (detail.event_id, detail.topic, detail.seq) == (event.event_id, event.topic, (event.rank, event.tiebreak))
    assert (detail.row.key, detail.row.subject, detail.row.fingerprint) == (event.key, event.subject, event.fingerprint)
    assert (detail.row.state, detail.row.reason) == (State.PARKED, Reason.KAFKA_UNKNOWN)
    assert detail.maybe_sent
    assert id_of(meta_item(draft)).event_id == event.event_id


def test_a_meta_fits_in_one_write_unit() -> None:
    item = meta_item(drafted(parked(path="/" + "p" * 60, detail="d" * 80, event_id="f" * 32)))
    size = sum(len(name) + len(str(next(iter(value.values())))) for name, value in item.items())

    assert size <= 1_024


def test_texts_that_no_store_takes_are_escaped_and_cut() -> None:
    item = meta_item(drafted(parked(path="/\ud800", detail="x" * 10_000, key="k" * 100_000)))

    assert item["path"]["S"] == "/\\ud800"
    assert len(item["detail"]["S"]) == 256
    assert item["key_cut"]["BOOL"]


def test_a_large_body_goes_to_the_bucket_under_a_key_of_its_own() -> None:
    raw = b"".join(sha256(b"%d" % number).digest() for number in range(200))
    draft, again = drafted(parked(raw=raw)), drafted(parked(raw=raw))

    assert draft.in_bucket == f"bodies/payments/{sha256(raw).hexdigest()}-{draft.nonce}.zst"
    assert draft.in_bucket != again.in_bucket  # two rows never share an object, so it may go with its row
    assert "body" not in meta_item(draft)
    assert meta_item(draft)["s3_uri"]["S"] == draft.in_bucket


def test_an_undecodable_record_is_identified_by_its_offset() -> None:
    position = KafkaPosition("cdc.payments", 2, 0, 41, 1_760_000_000_000, b"7", (("tm-op", b"u"),))
    event = undecodable(
        entity="payments", position=position, value=b"\x00\x00", detail="trailing bytes", subject="s",
        fingerprint="f", owner="o", at_us=AT_US, event_id="e" * 32, rank=5, tiebreak=6,
    )  # fmt: skip
    item = meta_item(drafted(event))

    assert event.item_id == "cdc.payments/2/0/41"
    assert row_of(item).item_id == event.item_id
    assert id_of(item).event_id == "e" * 32
    assert item["kafka"]["M"]["offset"] == {"N": "41"}
    assert item["kafka"]["M"]["key"] == {"B": b"7"}


def test_an_event_of_the_poller_keeps_its_seq_and_bytes() -> None:
    sighting = Sighting(raw=b"{}", key="1", key_hash=b"h" * 16, updated_us=3, identity=b"i" * 16)
    event = Event(sighting=sighting, occurrence=0, event_id="a" * 32, shown_us=9, rank=9, tiebreak=1)
    made = parked_from_event(
        event, RejectedEvent(Reason.FUTURE, "/t", "beyond"), entity="e", topic="t", subject=None, fingerprint=None,
        owner="", at_us=1,
    )  # fmt: skip

    assert (made.raw, made.key, made.rank, made.tiebreak, made.reason) == (b"{}", "1", 9, 1, Reason.FUTURE)


def test_every_reason_has_a_policy_and_a_first_due_before_its_deadline() -> None:
    assert set(POLICIES) == set(Reason)
    for reason in Reason:
        assert 1_000 <= first_due_ms(reason, 1_000) <= deadline_ms(reason, 1_000)


def test_what_is_due_is_a_comparison_of_texts() -> None:
    now_ms = 1_760_000_000_000

    assert due_sort(now_ms, "ffff") < f"{now_ms + 1:013d}"
    assert due_sort(now_ms + 1, "0000") > f"{now_ms + 1:013d}"


def test_shards_are_used_evenly() -> None:
    counts = [0] * 16
    for number in range(1_600):
        counts[shard(sha256(b"%d" % number).hexdigest()[:32])] += 1

    assert min(counts) > 60


def test_our_own_insert_whose_answer_was_lost_is_new() -> None:
    draft = drafted(parked())
    resolve(draft, stored(draft))

    assert draft.outcome == "new"


def test_the_same_event_parked_before_is_counted() -> None:
    draft = drafted(parked())
    resolve(draft, stored(draft, nonce="another"))

    assert draft.outcome is None
    assert draft.stored is not None


def test_other_bytes_under_one_event_id_get_the_next_rev() -> None:
    draft = drafted(parked())
    before = draft.sk
    resolve(draft, stored(draft, nonce="another", body_sha="other"))

    assert (draft.rev, draft.stored, draft.in_conflict) == (1, None, True)
    assert draft.sk == before + "#0001"


def test_what_is_gone_is_written_anew_with_its_body() -> None:
    draft = drafted(parked())
    draft.has_body, nonce = True, draft.nonce
    resolve(draft, None)

    assert draft.needs_body
    assert draft.nonce != nonce


@pytest.mark.parametrize(("shown", "stands"), [((5, 9), (7, 0)), ((7, 1), (7, 1)), ((8, 0), (8, 0))])
def test_the_greater_seq_stands(shown: tuple[int, int], stands: tuple[int, int]) -> None:
    draft = drafted(parked(rank=shown[0], tiebreak=shown[1]), sightings=2)
    draft.stored = stored(draft, seq=(7, 0), seen=3)
    statement = count_statement(draft, "t")
    sets = statement["Statement"].split(" WHERE ")[0].count("SET ")
    values = [next(iter(value.values())) for value in statement["Parameters"][:sets]]

    assert values[0] == "5"
    assert (values[3:5] == [str(part) for part in stands]) or (stands == (7, 0) and sets == 3)


def test_an_insert_has_a_parameter_for_each_name() -> None:
    statement = insert_statement(drafted(parked()), "t")

    assert statement["Statement"].count("?") == len(statement["Parameters"])
    assert statement["Statement"].startswith('INSERT INTO "t" VALUE {')


def test_equal_events_of_one_call_are_one_item() -> None:
    kept = _collapsed([parked(rank=1), parked(rank=3), parked(rank=2), parked(2)])

    assert [(event.rank, count) for event, count in kept] == [(3, 3), (AT_US, 1)]


def test_no_batch_holds_a_key_twice_or_more_than_25() -> None:
    events = [parked(number) for number in range(30)] + [parked(29, raw=b"other bytes")]
    batches = list(_batches([drafted(event) for event in events]))

    assert [len(batch) for batch in batches] == [25, 5, 1]
    assert all(len({(draft.pk, draft.sk) for draft in batch}) == len(batch) for batch in batches)


OWN = (("tm-op", b"u"), ("tm-seq", b"5.6"))
NOISE = Random(7).randbytes(900_000)


def record(key: bytes | None, *headers: tuple[str, bytes | None]) -> ParkedEvent:
    position = KafkaPosition("cdc.payments", 2, 0, 41, 1_760_000_000_000, key, headers)
    return undecodable(
        entity="payments", position=position, value=b"\x00\x00zz", detail="trailing bytes", subject="s",
        fingerprint="f", owner="o", at_us=AT_US, event_id="e" * 32, rank=5, tiebreak=6,
    )  # fmt: skip


def item_bytes(value: object) -> int:
    """As DynamoDB counts, or more."""
    if isinstance(value, dict):
        return sum(len(str(name)) + item_bytes(part) + 3 for name, part in value.items())
    if isinstance(value, list):
        return sum(item_bytes(part) + 3 for part in value)
    return len(value if isinstance(value, bytes) else str(value).encode())


@pytest.mark.parametrize(
    "event",
    [
        record(NOISE, *OWN),
        record(b"7", ("foreign", NOISE), ("null", None), *OWN),
        record(b"7", *((f"tm-{number}", b"x") for number in range(20_000)), *OWN),
        record(b"k" * 60_000, ("h", b"x" * 60_000), *OWN),
    ],
    ids=["key", "header", "many headers", "both"],
)
def test_a_key_and_headers_that_an_item_has_no_room_for_lie_behind_the_body(event: ParkedEvent) -> None:
    draft = drafted(event, body_bytes_max=300_000)
    item = meta_item(draft)
    row = read_row(item)

    assert item_bytes(item) < 200_000
    assert draft.in_bucket or item_bytes(body_item(draft)) < 400_000
    assert decompress(draft.body) == event.raw
    assert row.event.kafka is not None
    assert row.event.kafka.cut
    assert set(OWN) <= set(row.event.kafka.headers)  # what a re-drive goes by
    assert record_of(draft.body, row.event.kafka) == event.kafka


def test_a_body_without_key_and_headers_behind_it_is_said_to_have_none() -> None:
    event = record(b"7", *OWN)
    assert event.kafka is not None
    with pytest.raises(ValueError, match="no key and headers"):
        record_of(drafted(event).body, event.kafka)


def test_a_header_without_a_value_stays_without_one() -> None:
    event = record(b"7", ("null", None), ("empty", b""), ("text", b"None"))

    item = meta_item(drafted(event))

    assert item["kafka"]["M"]["headers"]["L"][0]["L"] == [{"S": "null"}, {"NULL": True}]
    assert read_row(item).event.kafka == event.kafka
