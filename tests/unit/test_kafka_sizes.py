"""Sizes: never below what goes over the wire, and refusals are believed for a while only."""

from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kafka.records import Outgoing
from shared.kafka.sizes import BATCH_BYTES_MIN, FORGET_S, SizeLimits, record_bytes


@settings(max_examples=50)
@given(
    st.binary(min_size=1, max_size=300),
    st.none() | st.binary(max_size=40_000),
    st.lists(st.tuples(st.sampled_from(["tm-event-id", "tm-seq", "h"]), st.binary(max_size=200)), max_size=5),
)
def test_a_record_is_never_larger_than_we_say(
    key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    batch = BatchBuilder(10**7, 0)
    batch.append(timestamp=1_763_999_999_000, key=key, value=value, headers=headers)

    said = record_bytes(Outgoing(key, value, tuple(headers), 1_763_999_999_000))

    assert batch.size() <= said <= batch.size() + 100


def test_a_refused_batch_halves_the_room_until_it_is_forgotten() -> None:
    limits = SizeLimits(512 * 1024)
    assert limits.batch_bytes(0.0) is None

    limits.batch_refused(100_000, 0.0)

    assert limits.batch_bytes(1.0) == 50_000
    assert limits.batch_bytes(FORGET_S) is None


def test_the_room_never_shrinks_to_nothing() -> None:
    limits = SizeLimits(512 * 1024)

    for _ in range(50):
        limits.batch_refused(10, 0.0)

    assert limits.batch_bytes(0.0) == BATCH_BYTES_MIN


def test_the_smallest_refused_record_sets_the_limit() -> None:
    limits = SizeLimits(512 * 1024)

    limits.record_refused(5000, 0.0)
    limits.record_refused(9000, 0.0)

    assert limits.record_bytes(1.0) == 4999
    assert limits.record_bytes(FORGET_S) > 10**9
