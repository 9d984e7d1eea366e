"""What one event costs the poller: the real process against real Kafka, registry, Postgres, and a prepared source.

CPU is user + system seconds of the poller's process alone, between its first tenth and its last event: start-up is
left out, everything else is in, lookbacks and checkpoints included.
"""

import json
import os
import re
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from tests.bench.sample import ENTITY, SCHEMA

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
DEADLINE_S = 600.0


def run(stack: Stack, events: int, page_rows: int = 5_000) -> dict[str, float]:
    """Publish ``events`` events once; give CPU seconds per million, peak memory in MB, events a second."""
    with tempfile.TemporaryDirectory() as folder:
        namespace = f"bench-{uuid.uuid4().hex[:8]}"
        source, health = stack.free_port("bench-source"), stack.free_port("bench-poller")
        python = str(stack.product_python)
        env = configure(Path(folder), source, page_rows) | {
            "TIDEMARK_NAMESPACE": namespace,
            "TIDEMARK_HTTP_PORT": str(health),
            "TIDEMARK_LOG_LEVEL": "warning",
        }
        stack.add(
            Process(
                "bench-source",
                (python, "-m", "tests.bench.paged_source", str(source), str(events)),
                ready=http_answers(f"http://127.0.0.1:{source}/cdc?entity={ENTITY}&updatedSince=0&limit=1"),
            )
        )
        stack.add(Process("bench-bootstrap", (python, "-m", "services.cli", "bootstrap"), env=env, ends_itself=True))
        stack.add(
            Process(
                "bench-poller",
                (python, "-m", "services.poller_producer"),
                ready=http_answers(f"http://127.0.0.1:{health}/live"),
                env=env,
            )
        )
        stack.start("bench-source")
        stack.start("bench-bootstrap")
        assert stack.wait("bench-bootstrap", 60) == 0, stack.log_tail("bench-bootstrap")
        stack.start("bench-poller")
        try:
            return _measure(stack.pid("bench-poller"), health, events)
        finally:
            stack.terminate("bench-poller")
            stack.kill("bench-source")


def configure(folder: Path, source_port: int, page_rows: int) -> dict[str, str]:
    """Write the bench entity into ``folder``; give the settings that name it."""
    (folder / "order.avsc").write_text(json.dumps(SCHEMA))
    (folder / "bench.yaml").write_text(
        f"""
sources: {{bench: {{url: "http://127.0.0.1:{source_port}/cdc", limit_param: limit, since_format: epoch_ms}}}}
owners: {{bench: {{}}}}
entities:
  {ENTITY}:
    source: bench
    key: id
    id: event_id
    updated_at: {{field: updated_at, format: epoch_ms, granularity_us: 1000}}
    op: op
    shows: events
    schema: order.avsc
    owner: bench
    page_rows: {page_rows}
    poll_interval_s: 0.2
"""
    )
    return {"TIDEMARK_ENTITIES_DIR": str(folder), "TIDEMARK_CACHE_DIR": str(folder / "cache")}


def _measure(pid: int, health_port: int, events: int) -> dict[str, float]:
    deadline_s = time.monotonic() + DEADLINE_S
    first = None
    while True:
        done, spent_s, now_s = _published(health_port), cpu_s(pid), time.monotonic()
        if first is None and done >= events / 10:
            first = (done, spent_s, now_s)
        if first is not None and done >= events:
            break
        assert now_s < deadline_s, f"only {done} of {events} events after {DEADLINE_S} s"
        time.sleep(0.1)
    counted = done - first[0]
    return {
        "cpu_s_per_million": (spent_s - first[1]) / counted * 1e6,
        "peak_mb": peak_mb(pid),
        "events_per_s": counted / (now_s - first[2]),
        "events": float(counted),
    }


def _published(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        found = re.search(rf'^tidemark_published_total\{{entity="{ENTITY}"\}} (\S+)$', answer.read().decode(), re.M)
    return int(float(found[1])) if found else 0


def cpu_s(pid: int) -> float:
    """User and system seconds of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mb(pid: int) -> float:
    """Its peak resident memory so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found, "the poller is gone"
    return int(found[1]) / 1024
