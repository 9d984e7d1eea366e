"""Which life of a topic its raw objects belong to.

A topic that is deleted and made anew starts at offset 0 again, and its old objects must not make new records look
written. So each life has a generation, a small integer claimed in the bucket for (cluster id, topic id).
"""

from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from shared.raw.keys import Keys
from shared.raw.objects import NotOurs, ObjectStore, SlotTaken

FIRST = 1
CLAIMS_MAX = 10_000
ATTEMPTS_MAX = 8


class TopicLife(Struct, frozen=True):
    """What a cluster calls a topic for as long as it lives. ``None``: it doesn't say (brokers before 3.0)."""

    cluster_id: str | None
    topic_id: str | None

    @property
    def known(self) -> bool:
        return self.cluster_id is not None and self.topic_id is not None


class Claim(Struct, frozen=True, kw_only=True):
    """The body of a claim."""

    generation: int
    cluster_id: str | None
    topic_id: str | None
    opened_at: str
    opened_by: str
    why: str

    @property
    def life(self) -> TopicLife:
        return TopicLife(self.cluster_id, self.topic_id)


class Generation(Struct, frozen=True):
    """``proven`` false: no identity could be compared, so the last record of each chain must still be in Kafka."""

    number: int
    proven: bool


class GenerationRefused(Exception):
    """The topic is not, or can't be shown to be, the one whose objects lie in the bucket. An operator decides."""


async def settle(store: ObjectStore, keys: Keys, topic: str, life: TopicLife, by: str) -> Generation:
    """The generation to write to; the first is claimed here. Raises ``GenerationRefused`` and what a store raises."""
    for _attempt in range(ATTEMPTS_MAX):
        newest = await newest_claim(store, keys, topic)
        if newest is not None:
            return _judge(topic, newest, life)
        if await _claim(store, keys, topic, FIRST, life, by, "first sight of the topic"):
            return Generation(FIRST, proven=True)
    raise GenerationRefused(
        f"{topic}: its first generation was claimed by others, and yet is not there; look into the bucket"
    )


async def open_next(store: ObjectStore, keys: Keys, topic: str, life: TopicLife, by: str, why: str) -> int:
    """An operator's word that the topic now has a new life: claim and return the next number.

    Asked twice for one identity, it answers with the number that it gave. Raises ``StoreUnavailable``, ``NotOurs``.
    """
    for _attempt in range(ATTEMPTS_MAX):
        newest = await newest_claim(store, keys, topic)
        if newest is not None and life.known and newest.life == life and newest.why == why:
            return newest.generation
        number = FIRST if newest is None else newest.generation + 1
        if await _claim(store, keys, topic, number, life, by, why):
            return number
    raise GenerationRefused(f"{topic}: others keep claiming generations; is another operator at work?")


async def newest_claim(store: ObjectStore, keys: Keys, topic: str) -> Claim | None:
    """The claim with the highest number."""
    newest: str | None = None
    after = keys.claims(topic)
    for _page in range(CLAIMS_MAX // 1000):
        page = await store.keys_after(keys.claims(topic), after)
        if page.keys:
            newest = after = page.keys[-1]
        if not page.more:
            break
    if newest is None:
        return None
    stored = await store.read(newest)
    if stored is None:
        raise NotOurs(f"the claim {newest!r} was listed, but is gone; claims must never be deleted")
    try:
        return msgspec.json.decode(stored.body, type=Claim)
    except msgspec.MsgspecError as error:
        raise NotOurs(f"{newest!r} can't be read as a claim: {error}") from error


def _judge(topic: str, newest: Claim, life: TopicLife) -> Generation:
    if not life.known or not newest.life.known:
        return Generation(newest.generation, proven=False)
    if newest.life == life:
        return Generation(newest.generation, proven=True)
    raise GenerationRefused(
        f"{topic}: its raw objects (generation {newest.generation}) belong to topic id {newest.topic_id} in cluster "
        f"{newest.cluster_id}, but Kafka now has topic id {life.topic_id} in cluster {life.cluster_id}. If the "
        f"topic was made anew on purpose, open generation {newest.generation + 1}; if not, restore the old topic"
    )


async def _claim(store: ObjectStore, keys: Keys, topic: str, number: int, life: TopicLife, by: str, why: str) -> bool:
    claim = Claim(
        generation=number,
        cluster_id=life.cluster_id,
        topic_id=life.topic_id,
        opened_at=datetime.now(UTC).isoformat(timespec="seconds"),
        opened_by=by,
        why=why,
    )
    try:
        await store.create(keys.claim(topic, number), msgspec.json.encode(claim), {})
    except SlotTaken:
        return False
    return True
