"""The application in the SDK's README, as printed there, killed again and again."""

import asyncio
import random
import re
import uuid
from pathlib import Path

from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from shared.kafka.records import parse_headers
from tests.bench.poller_bench import configure
from tests.bench.sample import ENTITY
from tests.integration.topics import read_topic, records_in

README = Path(__file__).parents[2] / "shared/producer/README.md"
EVENTS = 20_000
PAGE_ROWS = 100
KILLS = 5


async def test_the_ten_line_application_loses_nothing_over_kills(stack: Stack, tmp_path: Path) -> None:
    program = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert program
    application = tmp_path / "application.py"
    application.write_text(program[1].replace('"accounts"', f'"{ENTITY}"'))
    source = stack.free_port("sdk-source")
    namespace = f"sdk-{uuid.uuid4().hex[:8]}"
    python = str(stack.product_python)
    env = configure(tmp_path, source, PAGE_ROWS) | {
        "TIDEMARK_NAMESPACE": namespace,
        "TIDEMARK_LEASE_S": "1",
        "PYTHONPATH": str(README.parents[2]),
    }
    ready = http_answers(f"http://127.0.0.1:{source}/cdc?entity={ENTITY}&updatedSince=0&limit=1")
    command = (python, "-m", "tests.bench.paged_source", str(source), str(EVENTS), "10")
    stack.add(Process("sdk-source", command, ready=ready))
    stack.add(Process("sdk-bootstrap", (python, "-m", "services.cli", "bootstrap"), env=env, ends_itself=True))
    stack.add(Process("sdk-application", (python, str(application)), env=env))
    stack.start("sdk-source")
    stack.start("sdk-bootstrap")
    assert stack.wait("sdk-bootstrap", 60) == 0, stack.log_tail("sdk-bootstrap")
    topic, bootstrap = f"{namespace}.cdc.{ENTITY}", stack.env["TIDEMARK_KAFKA_BOOTSTRAP"]

    for _ in range(KILLS):
        before = await records_in(bootstrap, topic)
        stack.start("sdk-application")
        await _more_than(bootstrap, topic, before + random.randrange(PAGE_ROWS * 10))
        stack.kill("sdk-application")
    assert await records_in(bootstrap, topic) < EVENTS, "the kills came after the work was done: they showed nothing"
    stack.start("sdk-application")
    await _distinct(bootstrap, topic, EVENTS)
    stack.kill("sdk-application")
    stack.kill("sdk-source")

    records = await read_topic(bootstrap, topic)
    ids = {parse_headers(record.headers).event_id for record in records}
    assert len(ids) == EVENTS
    assert len(records) - EVENTS <= KILLS * PAGE_ROWS, "more than one page a kill was sent twice"


async def _more_than(bootstrap: str, topic: str, count: int) -> None:
    async with asyncio.timeout(60):
        while await records_in(bootstrap, topic) <= count:
            pass


async def _distinct(bootstrap: str, topic: str, count: int) -> None:
    await _more_than(bootstrap, topic, count - 1)
    async with asyncio.timeout(60):
        while len({parse_headers(r.headers).event_id for r in await read_topic(bootstrap, topic)}) < count:
            pass
