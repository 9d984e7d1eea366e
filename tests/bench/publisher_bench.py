"""``python -m tests.bench.publisher_bench --stack NAME``: CPU microseconds per record of the publisher alone."""

import argparse
import asyncio
import io
import time
from contextlib import AsyncExitStack
from uuid import uuid4

import fastavro

from deploy.local.stack import Stack
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import Outgoing
from shared.kafka.settings import Compression, KafkaSettings
from tests.bench.sample import SCHEMA, event

CODECS: tuple[Compression, ...] = ("none", "snappy", "lz4", "zstd", "gzip")
PARTITIONS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--stack", required=True, help="a running stack")
    arguments.add_argument("--records", type=int, default=100_000)
    arguments.add_argument("--page", type=int, default=1_000, help="records of one publish call")
    chosen = arguments.parse_args()
    stack = Stack.attach(chosen.stack)
    try:
        bootstrap = stack.env["TIDEMARK_KAFKA_BOOTSTRAP"]
        for codec in CODECS:
            cpu_us, per_s = asyncio.run(measure(bootstrap, codec, chosen.records, chosen.page))
            print(f"{codec:<8}{cpu_us:7.2f} CPU us per record{per_s:10,.0f} records/s", flush=True)
    finally:
        stack.down()  # of an attached stack: only what was added here


async def measure(bootstrap: str, codec: Compression, count: int, page_rows: int) -> tuple[float, float]:
    """CPU microseconds per record, and records per second, after one page to warm up."""
    pages = [records(first, page_rows) for first in range(0, min(count, 20 * page_rows), page_rows)]
    async with AsyncExitStack() as edges:
        settings = KafkaSettings(bootstrap=bootstrap, compression=codec)
        admin, topic = await KafkaAdmin.open(settings, edges), f"bench-{uuid4().hex[:8]}"
        await admin.ensure_topic(topic, partitions=PARTITIONS, replication=1, config={"retention.ms": "60000"})
        publisher = await Publisher.open(settings, edges)
        assert not any(await publisher.publish(topic, pages[0]))
        began, cpu_began = time.perf_counter(), time.process_time()
        for number in range(count // page_rows):
            assert not any(await publisher.publish(topic, pages[number % len(pages)]))
        cpu_s, took_s = time.process_time() - cpu_began, time.perf_counter() - began
    published = count // page_rows * page_rows
    return cpu_s / published * 1e6, published / took_s


def records(first: int, count: int) -> list[Outgoing]:
    schema = fastavro.parse_schema(SCHEMA)
    made = []
    for number in range(first, first + count):
        body = io.BytesIO()
        fastavro.schemaless_writer(body, schema, event(number))
        headers = (("tm-event-id", b"0123456789abcdef" * 2), ("tm-seq", b"1763999999%06d.0" % number), ("tm-op", b"u"))
        made.append(Outgoing(b"%d" % number, b"\0\0\0\0\1" + body.getvalue(), headers, 1_763_999_000_000 + number))
    return made


if __name__ == "__main__":
    main()
