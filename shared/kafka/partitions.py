"""Which partition a key belongs to: murmur2 as in Kafka's default partitioner, for a whole page at once.

All keys of one length are hashed together, each in a 64-bit lane of one large Python integer: a lane holds the 32-bit
state, and a product with the 31-bit constant still fits. So the interpreter runs once per word and not once per key.
"""

import sys
from array import array
from collections.abc import Sequence

_SEED = 0x9747B28C
_M = 0x5BD1E995
_WORD = 0xFFFFFFFF


def partition_of_keys(keys: Sequence[bytes], partitions: int) -> list[int]:
    """The partition of each key, as the Java client's ``DefaultPartitioner`` chooses it."""
    if partitions == 1:
        return [0] * len(keys)
    chosen = [0] * len(keys)
    by_length: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        by_length.setdefault(len(key), []).append(index)
    for length, indexes in by_length.items():
        hashes = _murmur2_of_equal_lengths([keys[index] for index in indexes], length)
        for index, value in zip(indexes, hashes, strict=True):
            chosen[index] = (value & 0x7FFFFFFF) % partitions
    return chosen


def murmur2(key: bytes) -> int:
    """Unsigned 32-bit murmur2 with Kafka's seed."""
    return _murmur2_of_equal_lengths([key], len(key))[0]


def _murmur2_of_equal_lengths(keys: list[bytes], length: int) -> list[int]:
    count = len(keys)
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    low_words = ones * _WORD
    state = ones * (_SEED ^ length)
    columns = _word_columns(keys, length, count)
    whole_words = length // 4
    for word in columns[:whole_words]:
        word = (word * _M) & low_words
        word ^= (word >> 24) & (ones * 0xFF)
        word = (word * _M) & low_words
        state = ((state * _M) & low_words) ^ word
    if length % 4:
        state = ((state ^ columns[whole_words]) * _M) & low_words
    state ^= (state >> 13) & (ones * (_WORD >> 13))
    state = (state * _M) & low_words
    state ^= (state >> 15) & (ones * (_WORD >> 15))
    hashes = array("Q", state.to_bytes(8 * count, "little"))
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes.tolist()


def _word_columns(keys: list[bytes], length: int, count: int) -> list[int]:
    """The i-th little-endian word of every key, one word a lane; the last one is filled up with zeros."""
    padding = b"\0" * (-length % 4)
    words = array("I", padding.join(keys) + padding)
    width = (length + 3) // 4
    if sys.byteorder == "big":
        words.byteswap()
    columns = []
    for position in range(width):
        lanes = array("Q", words[position::width])
        if sys.byteorder == "big":
            lanes.byteswap()
        columns.append(int.from_bytes(lanes.tobytes(), "little"))
    return columns
