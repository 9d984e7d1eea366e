"""Keys and metadata of raw objects: what is written can be read back, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.raw.keys import OFFSET_MAX, Chain, Keys
from shared.raw.objects import LastRecord, NotOurs, RawObject, from_metadata, record_digest

offsets = st.integers(0, OFFSET_MAX - 1)
chains = st.builds(
    Chain, st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True), st.integers(0, 99_999), st.integers(0, 99_999)
)
CHAIN = Chain("bank.cdc.accounts", 3, 7)


def test_the_key_is_as_the_design_says() -> None:
    assert Keys().link(CHAIN, 42) == "raw/bank.cdc.accounts/3/00007/00000000000000000042.ndjson.zst"
    assert Keys("bank/").link(CHAIN, 42).startswith("bank/raw/")


@given(chains, offsets, st.sampled_from(["", "bank/"]))
def test_a_key_is_read_back(chain: Chain, start: int, root: str) -> None:
    assert Keys(root).parse(Keys(root).link(chain, start)) == (chain, start)


@given(chains, offsets, offsets)
def test_the_order_of_keys_is_the_order_of_offsets(chain: Chain, one: int, other: int) -> None:
    keys = Keys()
    assert (keys.link(chain, one) < keys.link(chain, other)) == (one < other)
    assert (keys.before(chain, one) < keys.link(chain, other)) == (one <= other)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "raw/t/1/00000/42.ndjson.zst",
        "raw/t/1/0/00000000000000000042.ndjson.zst",
        "raw/t/1/00000/00000000000000000042.ndjson",
        "other/raw/t/1/00000/00000000000000000042.ndjson.zst",
        "floors/t/1/00000.json",
    ],
)
def test_other_keys_are_no_raw_objects(key: str) -> None:
    with pytest.raises(ValueError, match="no key of a raw object"):
        Keys().parse(key)


raw_objects = st.builds(
    lambda start, more, **rest: RawObject(chain=CHAIN, start=start, end=start + more, **rest),
    start=st.integers(0, 2**40),
    more=st.integers(0, 2**20),
    count=st.integers(0, 2**20),
    first_ms=st.none() | st.integers(-1, 2**45),
    last_ms=st.none() | st.integers(-1, 2**45),
    schema_ids=st.lists(st.integers(0, 2**31 - 1), max_size=80, unique=True).map(lambda ids: tuple(sorted(ids))),
    sha256=st.just("ab" * 32),
    writer=st.just("cd" * 16),
    kind=st.sampled_from(["records", "gap"]),
    cause=st.sampled_from(["", "genesis", "retention"]),
    last=st.none() | st.builds(LastRecord, offsets, st.integers(-1, 2**45), st.just("ef" * 32)),
)


@given(raw_objects)
def test_metadata_is_read_back(link: RawObject) -> None:
    assert from_metadata(CHAIN, link.start, link.metadata()) == link


@given(raw_objects)
def test_metadata_fits_into_what_s3_allows(link: RawObject) -> None:
    assert all(text.isascii() and text for text in link.metadata().values())
    assert sum(len(name) + len(text) for name, text in link.metadata().items()) < 2048


def test_a_thousand_schema_ids_are_cut_short_and_say_so() -> None:
    link = RawObject(chain=CHAIN, start=0, end=0, count=0, sha256="ab", schema_ids=tuple(range(1000)))

    found = from_metadata(CHAIN, 0, link.metadata())
    assert found.schema_ids == tuple(range(100))
    assert found.schema_ids_more
    assert sum(len(name) + len(text) for name, text in link.metadata().items()) < 2048


@pytest.mark.parametrize(
    "change", [{"tm-end": "x"}, {"tm-kind": "other"}, {"tm-end": "3"}, {"tm-cause": "?"}, {"tm-count": ""}]
)
def test_an_object_with_unreadable_metadata_is_not_ours(change: dict[str, str]) -> None:
    link = RawObject(chain=CHAIN, start=5, end=9, count=2, sha256="ab")

    with pytest.raises(NotOurs):
        from_metadata(CHAIN, 5, link.metadata() | change)
    with pytest.raises(NotOurs):
        from_metadata(CHAIN, 5, {})


def test_digests_tell_an_absent_part_from_an_empty_one() -> None:
    parts: list[tuple[bytes | None, bytes | None]] = [
        (None, None), (b"", None), (None, b""), (b"", b""), (b"a", b"b"), (b"ab", b""), (b"", b"ab"), (b"1:a", b"b"),
    ]  # fmt: skip

    assert len({record_digest(key, value) for key, value in parts}) == len(parts)
