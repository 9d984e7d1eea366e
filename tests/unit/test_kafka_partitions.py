"""Our murmur2 is Kafka's: a key's partition must not depend on who wrote it."""

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kafka.partitions import murmur2, partition_of_keys

# org.apache.kafka.common.utils.UtilsTest#testMurmur2, as signed 32-bit numbers.
KAFKAS_OWN_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), KAFKAS_OWN_VECTORS.items())
def test_kafkas_own_test_vectors_hold(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % 2**32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 50))
def test_a_page_of_keys_lands_where_the_default_partitioner_puts_each(keys: list[bytes], partitions: int) -> None:
    expected = [(aiokafka_murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]

    assert partition_of_keys(keys, partitions) == expected


def test_keys_of_many_lengths_keep_their_order() -> None:
    keys = [str(7**n).encode() for n in range(60)]

    assert partition_of_keys(keys, 6) == [partition_of_keys([key], 6)[0] for key in keys]
