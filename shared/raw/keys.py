"""Where things lie in the raw bucket. Pure.

    raw/<topic>/<generation>/<partition, 5 digits>/<start offset, 20 digits>.ndjson.zst     one link of a chain
    generations/<topic>/<generation, 5 digits>.json                                         who claimed the generation
    floors/<topic>/<generation>/<partition, 5 digits>.json                                  below it nothing counts

Digits are padded so that the order of the keys is the order of the offsets.
"""

import re

from msgspec import Struct

OFFSET_DIGITS = 20
OFFSET_MAX = 2**63 - 1
PARTITION_DIGITS = 5
GENERATION_DIGITS = 5
SUFFIX = ".ndjson.zst"

_OBJECT = re.compile(r"raw/([A-Za-z0-9._-]{1,249})/(\d{1,9})/(\d{5})/(\d{20})\.ndjson\.zst")


class Chain(Struct, frozen=True, order=True):
    """One partition in one life of its topic: objects whose offsets follow each other without gap or overlap."""

    topic: str
    generation: int
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.generation}/{self.partition}"


class Keys(Struct, frozen=True):
    """The bucket's layout below ``root``, a prefix that is empty or ends in ``/`` (the namespace's)."""

    root: str = ""

    def chain(self, chain: Chain) -> str:
        """The prefix of all objects of a chain."""
        return f"{self.root}raw/{chain.topic}/{chain.generation}/{chain.partition:0{PARTITION_DIGITS}d}/"

    def link(self, chain: Chain, start: int) -> str:
        """The key of the object that begins at offset ``start``."""
        return f"{self.chain(chain)}{start:0{OFFSET_DIGITS}d}{SUFFIX}"

    def before(self, chain: Chain, start: int) -> str:
        """Greater than the keys of all objects that begin below ``start``, smaller than all others of the chain."""
        return f"{self.chain(chain)}{start:0{OFFSET_DIGITS}d}"

    def parse(self, key: str) -> tuple[Chain, int]:
        """The chain and start offset of an object. Raises ``ValueError`` for any other key."""
        match = _OBJECT.fullmatch(key.removeprefix(self.root)) if key.startswith(self.root) else None
        if match is None:
            raise ValueError(f"{key!r} is no key of a raw object below {self.root!r}")
        topic, generation, partition, start = match.groups()
        return Chain(topic, int(generation), int(partition)), int(start)

    def topic(self, topic: str, generation: int) -> str:
        """The prefix of all chains of one generation."""
        return f"{self.root}raw/{topic}/{generation}/"

    def claims(self, topic: str) -> str:
        """The prefix of all claims of a topic's generations."""
        return f"{self.root}generations/{topic}/"

    def claim(self, topic: str, generation: int) -> str:
        return f"{self.claims(topic)}{generation:0{GENERATION_DIGITS}d}.json"

    def floor(self, chain: Chain) -> str:
        return f"{self.root}floors/{chain.topic}/{chain.generation}/{chain.partition:0{PARTITION_DIGITS}d}.json"
