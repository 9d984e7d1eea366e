"""One bad event among a thousand spoils only itself: through the real SDK, Kafka, registry, Postgres and DynamoDB."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from deploy.local.stack import Stack
from shared import metrics
from shared.config import load_config
from shared.events.model import Reason
from shared.lifecycle import Stop
from shared.parked.queries import ParkedFilter
from shared.producer.sdk import Producer, ProducerSettings
from tests.fakes.http_source import HttpSource, Reply
from tests.integration.topics import read_topic

EVENTS = 1_000
BAD = 500
FIRST_MS = time.time_ns() // 1_000_000 - 3_600_000
SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "at", "type": "long"},
        {"name": "amount", "type": "long"},
        {"name": "note", "type": ["null", "string"]},
    ],
}


def good(number: int) -> bytes:
    return json.dumps({"id": number, "at": FIRST_MS + number, "amount": 5, "note": None}).encode()


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(good(BAD)).items() if k != name}).encode()


def instead(name: str, text: bytes) -> bytes:
    member = json.dumps({name: json.loads(good(BAD))[name]}).encode()[1:-1]
    return good(BAD).replace(member, b'"%b": %b' % (name.encode(), text))


KINDS: dict[str, tuple[bytes, Reason, str]] = {
    "wrong_type": (instead("amount", b'"five"'), Reason.INVALID, "/amount"),
    "missing_field": (without("amount"), Reason.INVALID, "/amount"),
    "unknown_field": (instead("note", b'null, "colour": "red"'), Reason.INVALID, "/colour"),
    "nan": (instead("amount", b"NaN"), Reason.HOSTILE, ""),
    "lone_surrogate": (instead("note", b'"\\ud800"'), Reason.HOSTILE, ""),
    "two_to_the_63": (instead("amount", b"9223372036854775808"), Reason.INVALID, "/amount"),
    "deep": (instead("note", b"[" * 10_000 + b"]" * 10_000), Reason.HOSTILE, ""),
    "no_key": (without("id"), Reason.INVALID, "/id"),
    "no_timestamp": (without("at"), Reason.INVALID, "/at"),
    "two_megabytes": (instead("note", b'"%b"' % (b"x" * 2_000_000)), Reason.TOO_LARGE, ""),
}


async def test_one_bad_event_parks_one_and_publishes_999(stack: Stack, tmp_path: Path) -> None:
    pages = {kind: [good(n) if n != BAD else bad for n in range(EVENTS)] for kind, (bad, _, _) in KINDS.items()}
    pages["html_first"] = [good(n) for n in range(EVENTS)]
    async with AsyncExitStack() as resources:
        urls = {}
        for kind, rows in pages.items():
            first = [Reply(b"<html>please log in</html>")] if kind == "html_first" else []
            source = await resources.enter_async_context(HttpSource(*first, Reply(b"[" + b",".join(rows) + b"]")))
            urls[kind] = source.url
        env = stack.env | configure(tmp_path, urls)
        await asyncio.to_thread(bootstrap, env)
        producer = await Producer.open(load_config(ProducerSettings, env), resources)
        stop = Stop()
        async with asyncio.timeout(60), asyncio.TaskGroup() as captures:
            for kind in pages:
                captures.create_task(producer.capture(kind, stop))
            await until(lambda: all(settled(kind) for kind in pages))
            stop.set("test")

        for kind, (bad, reason, path) in KINDS.items():
            records = await read_topic(env["TIDEMARK_KAFKA_BOOTSTRAP"], producer.entities.entities[kind].topic)
            page = await producer.parked.find(ParkedFilter(entities=(kind,)))
            [detail] = await producer.parked.show(page.rows[0].item_id)
            assert sorted(int(r.key) for r in records) == [n for n in range(EVENTS) if n != BAD], kind
            assert [(row.reason, row.path) for row in page.rows] == [(reason, path)], kind
            assert detail.raw == bad, kind
        html = await producer.parked.find(ParkedFilter(entities=("html_first",)))
        assert html.rows == [], "a page that is no JSON parks nothing"
        assert metrics.SOURCE_ERRORS_TOTAL.labels("html_first", "source_malformed")._value.get() == 1


def settled(kind: str) -> bool:
    """All but the bad one are published, and that one is parked."""
    published = metrics.PUBLISHED.labels(kind)._value.get()
    parked = sum(metrics.PARKED.labels(kind, reason.value)._value.get() for reason in Reason)
    return bool(published + parked == EVENTS)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # metrics can only be looked at
        await asyncio.sleep(0.02)


def bootstrap(env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "services.cli", "bootstrap"]
    ended = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def configure(folder: Path, urls: dict[str, str]) -> dict[str, str]:
    (folder / "payment.avsc").write_text(json.dumps(SCHEMA))
    entity = {
        "key": "id",
        "updated_at": {"field": "at", "format": "epoch_ms", "granularity_us": 1000},
        "schema": "payment.avsc",
        "owner": "payments",
        "shows": "events",
    }
    config = {
        "sources": {kind: {"url": url, "since_format": "epoch_ms"} for kind, url in urls.items()},
        "owners": {"payments": {}},
        "entities": {kind: entity | {"source": kind} for kind in urls},
    }
    (folder / "entities.yaml").write_text(json.dumps(config))  # YAML holds JSON
    return {
        "TIDEMARK_NAMESPACE": f"bad-{uuid.uuid4().hex[:8]}",
        "TIDEMARK_ENTITIES_DIR": str(folder),
        "TIDEMARK_CACHE_DIR": str(folder / "cache"),
    }
