"""Freshness and heartbeats of services that run: a quiet table stays fresh, a broken pipe ages and says where."""

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.integration.running import Running

ENTITY = "account_events"
PARTITIONS = ("0", "1", "2")
SERIES = re.compile(r"^tidemark_(fresh|heartbeat)_timestamp_seconds\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

Seen = dict[tuple[str, str, str], float]
"""(fresh or heartbeat, stage, partition) → its time."""


@pytest.fixture
def place(stack: Stack, tmp_path: Path) -> Iterator[Running]:
    """Nothing is ever written to the bank, and its entities beat each second."""
    own = Running(stack, tmp_path)
    file = tmp_path / "entities" / "events.yaml"
    file.write_text(re.sub(r"^(\s+)source: bank$", r"\1source: bank\n\1heartbeat_s: 1", file.read_text(), flags=re.M))
    try:
        own.start("bank", "receiver")
        own.bootstrap()
        own.start("sink", "poller")
        yield own
    finally:
        own.stop("poller", "sink", "receiver", "bank")
        asyncio.run(own.drop_bank())


def seen(place: Running, service: str) -> Seen:
    port = place.stack.port(f"{place.name}-{service}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: Seen = {}
    for what, labels, value in SERIES.findall(text):
        one = dict(LABEL.findall(labels))
        if one["entity"] == ENTITY:
            found[what, one["stage"], one["partition"]] = float(value)
    return found


def until(place: Running, service: str, claim: Callable[[Seen], bool], within_s: float = 30) -> Seen:
    until_s = time.monotonic() + within_s
    while not claim(found := seen(place, service)):
        assert time.monotonic() < until_s, found
        time.sleep(0.2)
    return found


def fresher_than(at_s: float) -> Callable[[Seen], bool]:
    """All that the sink shows of the entity's partitions, heartbeats too."""
    return lambda found: all(
        found.get((what, "raw", partition), 0.0) > at_s for what in ("fresh", "heartbeat") for partition in PARTITIONS
    )


@pytest.mark.timeout(200)
def test_a_quiet_entity_stays_fresh_and_a_stopped_poller_shows_where_it_is_broken(place: Running) -> None:
    began_s = time.time()
    until(place, "sink", fresher_than(began_s))
    poller = until(place, "poller", lambda found: found.get(("fresh", "source", ""), 0.0) > began_s)
    assert poller["heartbeat", "kafka", ""] > began_s
    assert max(poller.values()) <= time.time()

    place.stop("poller")
    stopped_s = time.time()
    aged = until(place, "sink", lambda found: found["fresh", "raw", "0"] > stopped_s)

    assert max(aged["heartbeat", "raw", partition] for partition in PARTITIONS) < stopped_s, "the pipe is cut before it"

    place.start("poller")
    started_s = time.time()
    until(place, "sink", fresher_than(started_s))
    place.stop("poller", "sink")
    code, verdict = place.audit()

    assert code == 0, verdict
