"""What the sink may hold, and when it cuts."""

from typing import Annotated

from msgspec import Meta, Struct

Bytes = Annotated[int, Meta(ge=64 * 1024)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]


class SinkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the sink cuts and what it may hold. As a field ``sink``: the ``TIDEMARK_SINK_*`` variables."""

    object_bytes_max: Bytes = 32 * 1024 * 1024
    """Compressed. An object is cut at the next chunk beyond it; Spark reads one object in one task."""
    object_records_max: Annotated[int, Meta(ge=1)] = 1_000_000
    object_age_s_max: Seconds = 30.0
    """An object is cut this long after its first offset was read, on an idle partition too."""
    buffered_bytes_max: Annotated[int, Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    """Held for unwritten objects over all partitions; beyond it nothing is read until objects are written."""
    pack_records: Annotated[int, Meta(ge=1)] = 5_000
    """Records of a partition are flattened and compressed in runs of about this many."""
    puts_at_once_max: Annotated[int, Meta(ge=1, le=256)] = 16
    undecodable_in_a_row_max: Annotated[int, Meta(ge=0)] = 50
    """One more stops the partition: a broken producer or registry, not a broken record."""
    recheck_s: Seconds = 30.0
    """How often a refused topic, and a partition that waits for a schema, is looked at again."""
    revoke_wait_s: Seconds = 5.0
    """How long a rebalance waits for requests under way; buffers are dropped and read again by the next owner."""
    slot_age_s_max: Seconds = 3600.0
    """A place in the ledger known for longer than this is looked up anew before anything is written there."""
