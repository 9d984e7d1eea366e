"""``tidemark raw open``: an operator's word that a topic has a new life, so that sinks go on in the next generation.

A topic that was deleted and made anew, or whose log was cut back, begins again at offsets that raw objects have
already. Sinks refuse it until somebody says that this was meant; the old objects stay, and the audit reads them too.
"""

from argparse import Namespace
from typing import TYPE_CHECKING

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome
from services.cli.parked_selection import known
from services.cli.who import operator
from shared.raw import generation
from shared.raw.generation import TopicLife
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import record_digest

if TYPE_CHECKING:
    from shared.kafka.admin import Watermarks


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when nothing has happened that a new generation would be for."""
    (name,) = known(edges, [arguments.entity])
    topic = edges.entities.entities[name].topic
    kafka, store, keys = await edges.kafka(), await edges.raw_store(), Keys(edges.namespace.prefix(""))
    identity = await kafka.identity(topic)
    life = TopicLife(identity.cluster_id, identity.topic_id)
    claim = await generation.newest_claim(store, keys, topic)
    if claim is None:
        return _refused(topic, "no generation is claimed yet: the sink claims the first one by itself")
    if claim.life == life:
        ledger = Ledger(store, keys)
        marks = await kafka.watermarks(topic)
        whole = [await _is_whole(edges, ledger, Chain(topic, claim.generation, one), marks[one]) for one in marks]
        if all(whole):
            return _refused(topic, f"it is still the topic of generation {claim.generation}, and its log is whole")
    why = arguments.why
    if claim.life == life:  # the claim before may have been opened for the same life with the same words
        why += f" (its log does not go on where generation {claim.generation} ends)"
    number = await generation.open_next(store, keys, topic, life, operator(), why)
    lines = [f"{topic}: generation {number} is open; sinks go on with it at their next look, or when restarted"]
    document = {"topic": topic, "generation": number, "cluster_id": life.cluster_id, "topic_id": life.topic_id}
    return Outcome(exit_code=OK, lines=lines, document=document)


async def _is_whole(edges: Edges, ledger: Ledger, chain: Chain, mark: "Watermarks") -> bool:
    """Whether Kafka's log reaches the ledger's end, and has the record there that the ledger's last object names."""
    tail = await ledger.tail(chain)
    if mark.end < tail.next_start:
        return False
    last = tail.last
    if last is None or not mark.begin <= last.offset < mark.end:
        return True
    found = None
    async for page in edges.reread().records(chain.topic, chain.partition, last.offset, last.offset + 1):
        found = page[0]
    if found is None:  # whole, if retention has just taken it
        return last.offset < (await (await edges.kafka()).watermarks(chain.topic))[chain.partition].begin
    return (found.timestamp, record_digest(found.key, found.value)) == (last.timestamp_ms, last.digest)


def _refused(topic: str, why: str) -> Outcome:
    return Outcome(exit_code=FINDING, lines=[f"{topic}: {why}"], document={"topic": topic, "refused": why})
