"""The stream's source: how far the raw bucket goes beyond where the stream is. Spark 4 only; no batch imports it.

An offset is, for each chain, the start of the last object taken: one number per partition, however many objects there
are. What is new is found by LIST after it, so nothing is remembered per object, nothing is too old, and the requests of
a trigger do not grow with the bucket. A row says how far to go in one chain; the loader takes it from there, from the
table's own positions, which alone decide.

Spark runs this in a Python process of its own: settings come as options, credentials as everywhere from ``AWS_*``.
"""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import boto3  # type: ignore[import-untyped]  # it publishes none
from botocore.config import Config
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.streaming.datasource import ReadAllAvailable, ReadLimit, ReadMaxFiles, SupportsTriggerAvailableNow
from pyspark.sql.types import StructType

from shared.lake.positions import Positions, chain_of
from shared.raw.keys import Chain, Keys

FORMAT = "tidemark_raw"
SCHEMA = "topic string, generation bigint, partition bigint, through bigint"
PAGE_KEYS = 1000
NOTHING = -1

Offsets = dict[str, int]
"""Chain, as text → start of the last object taken."""
Listing = Callable[[str, str, int], tuple[list[tuple[str, int]], bool]]
"""(prefix, after, limit) → keys with their bytes, and whether more follow."""


def options(bucket: str, root: str, topic: str, positions: Positions, objects: int, size: int) -> dict[str, str]:
    """For ``readStream``: where the stream begins, and what a trigger takes at most."""
    starts = {str(chain): start - 1 for chain, start in positions.items()}
    return {
        "bucket": bucket,
        "root": root,
        "topic": topic,
        "starts": json.dumps(starts),
        "objects": str(objects),
        "bytes": str(size),
    }


class RawObjects(DataSource):
    """``spark.readStream.format("tidemark_raw")``."""

    @classmethod
    def name(cls) -> str:
        return FORMAT

    def schema(self) -> str:
        return SCHEMA

    def streamReader(self, schema: StructType) -> "RawReader":
        return RawReader(self.options)


class RawReader(DataSourceStreamReader, SupportsTriggerAvailableNow):
    """Keeps nothing between calls but its connection, and where an available-now run ends."""

    def __init__(self, options: MutableMapping[str, str], listing: Listing | None = None) -> None:
        self._keys = Keys(options["root"])
        self._topic = options["topic"]
        self._starts: Offsets = json.loads(options["starts"])
        self._objects, self._bytes = int(options["objects"]), int(options["bytes"])
        self._bucket = options["bucket"]
        self._list: Listing | None = listing
        self._ends: Offsets | None = None
        self._now_only = False

    def initialOffset(self) -> Offsets:
        return self._starts

    def getDefaultReadLimit(self) -> ReadLimit:
        return ReadMaxFiles(self._objects)

    def latestOffset(self, start: Offsets, limit: ReadLimit) -> Offsets:
        """``start``, moved over as many of the next objects as the limits admit, of each chain the same share."""
        everything = isinstance(limit, ReadAllAvailable)
        objects = limit.max_files if isinstance(limit, ReadMaxFiles) else self._objects
        if self._now_only and self._ends is None:
            self._ends = {chain: found[-1][0] for chain, found in self._new(start, None).items()}
        new = self._new(start, None if everything else objects + 1)
        if self._ends is not None:
            ends = self._ends
            new = {chain: [one for one in found if one[0] <= ends.get(chain, NOTHING)] for chain, found in new.items()}
        if everything:
            return start | {chain: found[-1][0] for chain, found in new.items() if found}
        return start | _share(new, objects, self._bytes)

    def prepareForTriggerAvailableNow(self) -> None:
        self._now_only = True

    def partitions(self, start: Offsets, end: Offsets) -> Sequence[InputPartition]:
        moved = {chain: through for chain, through in end.items() if start.get(chain, NOTHING) < through}
        return [InputPartition(moved)] if moved else []

    def read(self, partition: InputPartition) -> Iterator[tuple[str, int, int, int]]:
        for text, through in partition.value.items():
            chain = chain_of(text)
            yield chain.topic, chain.generation, chain.partition, through

    def _new(self, start: Mapping[str, int], most: int | None) -> dict[str, list[tuple[int, int]]]:
        """(start, bytes) of what each chain has beyond ``start``; no more than ``most`` of one chain."""
        found = {}
        for chain in self._chains(start):
            if new := self._after(chain, start.get(str(chain), NOTHING), most):
                found[str(chain)] = new
        return found

    def _chains(self, start: Mapping[str, int]) -> list[Chain]:
        """Of an earlier generation those that are known: others of it are found by the loader's own look around."""
        known = sorted(chain_of(text) for text in start)
        claims, _more = self._listed(self._keys.claims(self._topic), self._keys.claims(self._topic), PAGE_KEYS)
        newest = max((_number(key) for key, _size in claims), default=0)
        chains: list[Chain] = []
        for generation in range(1, newest + 1):
            of_it = [chain for chain in known if chain.generation == generation]
            chains += of_it if of_it and generation < newest else self._discovered(generation)
        return chains

    def _discovered(self, generation: int) -> list[Chain]:
        prefix = self._keys.topic(self._topic, generation)
        chains: list[Chain] = []
        after = prefix
        while keys := self._listed(prefix, after, 1)[0]:
            chains.append(self._keys.parse(keys[0][0])[0])
            after = self._keys.before(chains[-1], 10**20 - 1) + "~"
        return chains

    def _after(self, chain: Chain, last: int, most: int | None) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        after, more = self._keys.before(chain, last + 1), True
        while more and (most is None or len(found) < most):
            limit = PAGE_KEYS if most is None else min(PAGE_KEYS, most - len(found))
            page, more = self._listed(self._keys.chain(chain), after, limit)
            found += [(self._keys.parse(key)[1], size) for key, size in page]
            if not page:
                break
            after = page[-1][0]
        return found

    def _listed(self, prefix: str, after: str, limit: int) -> tuple[list[tuple[str, int]], bool]:
        if self._list is None:
            self._list = s3_listing(self._bucket)
        return self._list(prefix, after, limit)


def s3_listing(bucket: str) -> Listing:
    """Blocks. Retries by the SDK's own rules; what fails after that fails the trigger, and the stream begins anew."""
    settings = Config(
        connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 5},
        s3={"addressing_style": "path"},
    )  # fmt: skip
    client: Any = boto3.client("s3", config=settings)

    def listing(prefix: str, after: str, limit: int) -> tuple[list[tuple[str, int]], bool]:
        answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=limit)
        return [(item["Key"], item["Size"]) for item in answer.get("Contents", ())], bool(answer.get("IsTruncated"))

    return listing


def _share(new: Mapping[str, Sequence[tuple[int, int]]], objects: int, room: int) -> Offsets:
    """How far each chain comes, taking turns, until there is no room. One object is always taken."""
    reached: Offsets = {}
    taken = 0
    for turn in range(max((len(found) for found in new.values()), default=0)):
        for chain, found in new.items():
            if turn >= len(found):
                continue
            begin, size = found[turn]
            if taken and (taken >= objects or size > room):
                return reached
            reached[chain] = begin
            taken, room = taken + 1, room - size
    return reached


def _number(key: str) -> int:
    digits = key.rpartition("/")[2].removesuffix(".json")
    return int(digits) if digits.isdecimal() else 0
