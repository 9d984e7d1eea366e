"""Which chains a trace reads: all that may hold the key, and of others none."""

from services.cli.trace_reading import chains_of
from shared.kafka.partitions import partition_of_keys
from shared.raw.keys import Chain

OLDER = [Chain("cdc.things", 1, partition) for partition in range(3)]
NEWEST = [Chain("cdc.things", 2, partition) for partition in range(12)]


def test_a_key_is_looked_for_where_it_lay_before_partitions_were_added() -> None:
    for number in range(50):
        key = f"k{number}"
        found = chains_of([*OLDER, *NEWEST], 2, 12, key)
        due = {Chain("cdc.things", 2, partition_of_keys([key.encode()], count)[0]) for count in (1, 3, 6, 12)}

        assert set(OLDER) | due <= set(found)


def test_partitions_that_no_number_of_them_gives_are_passed_over() -> None:
    assert all(len(chains_of(NEWEST, 2, 12, f"k{number}")) < len(NEWEST) for number in range(50))
    assert chains_of(NEWEST, 2, 1, "k") == NEWEST[:1]


def test_without_a_key_or_kafkas_word_all_are_read() -> None:
    assert chains_of(NEWEST, 2, 12, None) == chains_of(NEWEST, 2, None, "k") == NEWEST
