"""What the lake costs: rows merged by batch, how late a record is by stream, S3 requests a trigger.

Real processes against real Kafka, registry and an emulated S3 (which is slower than S3 for many small requests, and is
not counted in the CPU seconds). The driver is one process on this machine, as ``python -m services.delta_loader`` is.
"""

import asyncio
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import parse_qs

from msgspec import Struct

from deploy.local.environment import environment
from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from shared.aws import open_client
from shared.config import load_config
from shared.entities import Entity, load_entities
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import EVENT_ID, OP, SEQ, Outgoing
from shared.kafka.settings import KafkaSettings
from shared.lake.layout import Lake, commit_file
from shared.lake.positions import commit_of
from shared.raw.keys import Keys
from shared.raw.s3 import S3Store
from shared.registry.client import Registry
from shared.registry.settings import RegistrySettings
from tests.bench.poller_bench import DEADLINE_S, ROOT, configure, cpu_s, peak_mb
from tests.bench.sample import ENTITY, FIRST_US, SCHEMA, event, raw
from tests.lake.raw_rows import Change, Topic
from tests.lake.s3_proxy import Request, S3Proxy

ROWS = 300_000
UPDATES = 0.1
OBJECT_ROWS = 25_000
STRIDE = 7_919
"""Prime: updates are spread over all keys."""

STREAM_RECORDS = 1_500
STREAM_PER_S = 25
SINK_AGE_S, TRIGGER_S = 1.0, 1.0
WARM_COMMITS = 3

OLD_OBJECTS = (100, 2_000)
OLD_COMMITS = 4
"""As many in both tables, so that Delta's checkpoints fall on the same turns."""
TURNS = 6
IDLE_TRIGGERS = 10
FRESH = 10_000_000
PUTS_AT_ONCE = 20


class Place(Struct):
    """A world of one part's own: names, buckets, and the settings that name them."""

    environ: dict[str, str]
    entity: Entity
    keys: Keys
    lake: Lake
    raw_bucket: str
    lake_bucket: str
    folder: Path

    @property
    def log_prefix(self) -> str:
        return f"{self.lake.table(ENTITY).removeprefix(f's3a://{self.lake_bucket}/')}"


def run(stack: Stack, rows: int = ROWS) -> Iterator[str]:
    """One text after the other, as each is known."""
    yield _batch(stack, rows)
    yield _stream(stack, max(200, min(STREAM_RECORDS, rows // 20)))
    yield _requests(stack)


# Places


@contextmanager
def _place(stack: Stack, partitions: int) -> Iterator[Place]:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        environ = stack.env | configure(folder, 9, 1_000)
        file = folder / "bench.yaml"
        file.write_text(file.read_text() + f"    partitions: {partitions}\n")
        environ |= {
            "TIDEMARK_NAMESPACE": name,
            "TIDEMARK_RAW_BUCKET": f"{name}-raw",
            "TIDEMARK_LAKE_URI": f"s3a://{name}-lake",
            "TIDEMARK_SPARK_MASTER": "local[2]",
            "TIDEMARK_LOG_FORMAT": "json",
        }
        entities = load_entities(folder, name)
        prefix = entities.namespace.prefix("")
        place = Place(
            environ=environ,
            entity=entities.entities[ENTITY],
            keys=Keys(prefix),
            lake=Lake(environ["TIDEMARK_LAKE_URI"], prefix),
            raw_bucket=f"{name}-raw",
            lake_bucket=f"{name}-lake",
            folder=folder,
        )
        with environment(environ):
            asyncio.run(_make_buckets(place))
            try:
                yield place
            finally:
                asyncio.run(_remove_buckets(place))


async def _make_buckets(place: Place) -> None:
    async with AsyncExitStack() as resources:
        client = await open_client("s3", resources)
        for bucket in (place.raw_bucket, place.lake_bucket):
            await client.create_bucket(Bucket=bucket)


async def _remove_buckets(place: Place) -> None:
    async with AsyncExitStack() as resources:
        client = await open_client("s3", resources)
        for bucket in (place.raw_bucket, place.lake_bucket):
            while found := (await client.list_objects_v2(Bucket=bucket)).get("Contents"):
                names = [{"Key": one["Key"]} for one in found]
                await client.delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True})
            await client.delete_bucket(Bucket=bucket)


@asynccontextmanager
async def _topic(place: Place) -> AsyncIterator[Topic]:
    """Raw objects of the entity, written without a sink."""
    async with AsyncExitStack() as resources:
        schema_id = await _registered(place, resources)
        store = S3Store(await open_client("s3", resources), place.raw_bucket)
        topic = Topic(store, place.keys, place.entity.topic, ["id"], {schema_id: json.dumps(SCHEMA)})
        claim = place.keys.claim(place.entity.topic, 1)
        if await store.head(claim) is None:
            await store.create(claim, b"{}", {})
        yield topic


async def _registered(place: Place, resources: AsyncExitStack) -> int:
    registry = await Registry.open(load_config(RegistrySettings, place.environ, "TIDEMARK_REGISTRY_"), resources)
    return await registry.register(place.entity.schema_subject, json.dumps(SCHEMA))


def _change(number: int, key: int, schema_id: int) -> Change:
    fields = event(number) | {"id": key}
    return Change(str(key), fields, (FIRST_US + number, 0), f"{number:032x}", schema_id=schema_id)


# Batch


class Took(Struct):
    """One run of the loader. ``merging_s``: without the start of Python, JVM and Spark."""

    wall_s: float
    merging_s: float
    cpu_s: float
    jvm_mb: float
    rows: int

    def text(self, what: str) -> str:
        per_s = self.rows / self.merging_s
        return (
            f"lake batch     {what:<34}{self.text_of_all()}  {per_s:7,.0f} rows/s in {self.merging_s:.1f} s of merging"
        )

    def text_of_all(self) -> str:
        return f"{self.wall_s:7.1f} s{self.cpu_s:8.1f} CPU s{self.jvm_mb:7,.0f} MB JVM peak"


def _batch(stack: Stack, rows: int) -> str:
    with _place(stack, 1) as place:
        asyncio.run(_write(place, range(rows), range(rows)))
        new = _loader(stack, place, "batch")
        updates = int(rows * UPDATES)
        keys = [number * STRIDE % rows for number in range(updates)]
        asyncio.run(_write(place, range(rows, rows + updates), keys))
        again = _loader(stack, place, "batch")
        idle = _loader(stack, place, "batch")
        care = _loader(stack, place, "maintain")
    return "\n".join(
        [
            new.text(f"{rows:,} rows into an empty table"),
            again.text(f"{updates:,} updates over all keys"),
            f"lake batch     {'nothing new':<34}{idle.text_of_all()}",
            f"lake maintain  {'of that table':<34}{care.text_of_all()}",
        ]
    )


async def _write(place: Place, numbers: Sequence[int], keys: Sequence[int]) -> None:
    async with _topic(place) as topic:
        schema_id = next(iter(topic.schemas))
        chain = topic.chain()
        tail = await topic.ledger.tail(chain)
        topic.next[chain] = tail.newest.next_start if tail.newest is not None else 0
        for first in range(0, len(numbers), OBJECT_ROWS):
            pairs = zip(numbers[first : first + OBJECT_ROWS], keys[first : first + OBJECT_ROWS], strict=True)
            await topic.write([_change(number, key, schema_id) for number, key in pairs])


def _loader(stack: Stack, place: Place, *arguments: str, **more: str) -> Took:
    """One run of the loader to its end. CPU and memory are those of its processes, looked at five times a second."""
    log_file = place.folder / "loader.log"
    with log_file.open("w") as log:
        began_s = time.monotonic()
        child = subprocess.Popen(
            [str(stack.spark_python), "-m", "services.delta_loader", *arguments],
            cwd=ROOT,
            env={**_clean(), **place.environ, **more},
            stdout=log,
            stderr=log,
        )
        spent: dict[int, float] = {}
        jvm_mb = 0.0
        while child.poll() is None:
            assert time.monotonic() - began_s < DEADLINE_S, log_file.read_text()[-2_000:]
            jvm_mb = max(jvm_mb, _look(child.pid, spent))
            time.sleep(0.2)
        wall_s = time.monotonic() - began_s
    assert child.returncode == 0, log_file.read_text()[-4_000:]
    merged = [line for line in _json_lines(log_file) if line.get("event") == "rows_merged"]
    seconds = sum(line["seconds"] for line in merged)
    return Took(wall_s, seconds, sum(spent.values()), jvm_mb, sum(line["count"] for line in merged))


def _look(pid: int, spent: dict[int, float]) -> float:
    """CPU seconds of the process and all below it, into ``spent``; the JVM's peak memory in MB."""
    jvm_mb = 0.0
    for one in _tree(pid):
        try:
            spent[one] = cpu_s(one)
            if Path(f"/proc/{one}/comm").read_text().strip() == "java":
                jvm_mb = max(jvm_mb, peak_mb(one))
        except (OSError, AssertionError, IndexError):
            continue  # it has ended meanwhile
    return jvm_mb


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "TIDEMARK_"))}


# Stream


def _stream(stack: Stack, records: int) -> str:
    with _place(stack, 1) as place, _running(stack, place, "s3_sink", "delta_loader") as started_s:
        late = asyncio.run(_lateness(place, records))
        loader = stack.pid("bench-delta_loader")
        used: dict[int, float] = {}
        jvm_mb = _look(loader, used)
        share = sum(used.values()) / (time.monotonic() - started_s)
    percent = quantiles(late, n=100, method="inclusive")
    return (
        f"lake stream    Kafka append → visible in Delta  {percent[49]:5.1f} s p50{percent[98]:7.1f} s p99"
        f"{max(late):7.1f} s max  {len(late):,} records at {STREAM_PER_S}/s; objects of {SINK_AGE_S:g} s, a look every "
        f"{TRIGGER_S:g} s; {share:.2f} CPU, {jvm_mb:.0f} MB JVM peak"
    )


@contextmanager
def _running(stack: Stack, place: Place, *services: str, **more: str) -> Iterator[float]:
    """Sink and stream as processes of the stack; when they were started."""
    settings = place.environ | {
        "TIDEMARK_SINK_OBJECT_AGE_S_MAX": str(SINK_AGE_S),
        "TIDEMARK_LOAD_INTERVAL_S": str(TRIGGER_S),
        "TIDEMARK_LOAD_RECHECK_S": "86400",
        **more,
    }
    commands = {"s3_sink": ("-m", "services.s3_sink"), "delta_loader": ("-m", "services.delta_loader", "stream")}
    began_s = time.monotonic()
    asyncio.run(_make_topic(place))
    for service in services:
        port = stack.free_port(f"bench-{service}")
        stack.add(
            Process(
                f"bench-{service}",
                (str(stack.spark_python), *commands[service]),
                ready=http_answers(f"http://127.0.0.1:{port}/live"),
                env=settings | {"TIDEMARK_HTTP_PORT": str(port)},
                stop_s_max=60.0,
            )
        )
        stack.start(f"bench-{service}")
    try:
        yield began_s
    finally:
        for service in services:
            stack.terminate(f"bench-{service}")


async def _make_topic(place: Place) -> None:
    async with AsyncExitStack() as resources:
        admin = await KafkaAdmin.open(load_config(KafkaSettings, place.environ, "TIDEMARK_KAFKA_"), resources)
        await admin.ensure_topic(place.entity.topic, partitions=1, replication=1)
        await _registered(place, resources)


async def _lateness(place: Place, records: int) -> list[float]:
    """Seconds from the send of each record to the first look that finds it in the newest version. One partition, so
    that records have their offsets in the order in which they were sent."""
    async with AsyncExitStack() as resources:
        schema_id = await _registered(place, resources)
        publisher = await Publisher.open(load_config(KafkaSettings, place.environ, "TIDEMARK_KAFKA_"), resources)
        client = await open_client("s3", resources)
        sent_s: list[float] = []
        seen = _Seen(client, place)

        async def send(count: int) -> None:
            made = _outgoing(place.entity, schema_id, range(len(sent_s), len(sent_s) + count))
            sent_s.extend([time.monotonic()] * count)
            assert not any(await publisher.publish(place.entity.topic, made))

        async with asyncio.timeout(DEADLINE_S):
            for _warm in range(WARM_COMMITS):
                await send(1)
                await seen.until(len(sent_s))
            warm = len(sent_s)
            looking = asyncio.create_task(seen.until(warm + records))
            tick_s = time.monotonic()
            step = max(1, STREAM_PER_S // 5)
            while len(sent_s) < warm + records:
                await send(min(step, warm + records - len(sent_s)))
                tick_s += step / STREAM_PER_S
                await asyncio.sleep(max(0.0, tick_s - time.monotonic()))
            await looking
        return [seen.at_s[offset] - sent_s[offset] for offset in range(warm, warm + records)]


class _Seen:
    """When each offset was first found in the table's log."""

    def __init__(self, client: Any, place: Place) -> None:
        self._client, self._place = client, place
        self._version = 0
        self.at_s: list[float] = []

    async def until(self, offsets: int) -> None:
        while len(self.at_s) < offsets:
            if (positions := await self._next()) is None:
                await asyncio.sleep(0.1)
                continue
            self.at_s.extend([time.monotonic()] * (positions - len(self.at_s)))

    async def _next(self) -> int | None:
        """What the next version holds of the partition; ``None``: there is none yet."""
        key = commit_file(self._place.log_prefix, self._version)
        try:
            answer = await self._client.get_object(Bucket=self._place.lake_bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            return None
        body = await answer["Body"].read()
        infos = [line for line in map(json.loads, body.splitlines()) if "commitInfo" in line]
        commit = commit_of(self._version, infos[0]["commitInfo"])
        self._version += 1
        return max(commit.note.positions.values(), default=0) if commit.note is not None else 0


def _outgoing(entity: Entity, schema_id: int, numbers: range) -> list[Outgoing]:
    contract = compile_contract(entity.rules, json.dumps(SCHEMA), entity.schema_subject, schema_id)
    sightings = Identifier(entity.rules).identify([raw(number) for number in numbers])
    made = []
    for number, sighting, value in zip(numbers, sightings, contract.encode(sightings), strict=True):
        assert isinstance(value, bytes), value
        headers = ((EVENT_ID, b"%032x" % number), (SEQ, b"%d.0" % number), (OP, b"u"))
        made.append(Outgoing((sighting.key or "").encode(), value, headers, int(time.time() * 1000)))
    return made


# Requests


class Requests(Struct):
    """Of one table: those of a trigger that finds nothing, and those that one new object adds, by kind."""

    old: int
    idle: float
    turns: list[Counter[str]]

    @property
    def typical(self) -> Counter[str]:
        """Without the turns in which Delta writes a checkpoint of its log."""
        usual = median(turn.total() for turn in self.turns)
        return min(self.turns, key=lambda turn: abs(turn.total() - usual))

    def text(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.typical.items()))
        return (
            f"lake requests  {self.old:5,} old objects{self.idle:6.1f} a trigger that finds nothing"
            f"{self.typical.total():6d} more a trigger with one object ({kinds})"
        )


def _requests(stack: Stack) -> str:
    found = [_requests_at(stack, old) for old in OLD_OBJECTS]
    few, many = found
    text = "\n".join(one.text() for one in found)
    assert few.idle == many.idle, text
    assert few.typical.total() == many.typical.total(), text
    return f"{text}\n               equal: a trigger's requests don't grow with the bucket"


def _requests_at(stack: Stack, old: int) -> Requests:
    with _place(stack, 1) as place, S3Proxy(stack.env["AWS_ENDPOINT_URL"]) as proxy:
        asyncio.run(_write_old(place, old))
        _loader(stack, place, "batch", TIDEMARK_LOAD_OBJECTS_MAX=str(old // OLD_COMMITS))
        with _running(stack, place, "delta_loader", AWS_ENDPOINT_URL=proxy.url):
            return asyncio.run(_counted(place, proxy, old))


async def _write_old(place: Place, count: int) -> None:
    async with _topic(place) as topic:
        schema_id = next(iter(topic.schemas))
        for first in range(0, count, PUTS_AT_ONCE):
            numbers = range(first, min(count, first + PUTS_AT_ONCE))
            await asyncio.gather(*(topic.write([_change(number, number, schema_id)]) for number in numbers))


async def _counted(place: Place, proxy: S3Proxy, old: int) -> Requests:
    """Counted from the beginning of one trigger to that of another."""

    def looks() -> list[int]:
        return [number for number, one in enumerate(proxy.requests) if _is_look(one, place)]

    async def after(count: int) -> int:
        """Where, among the requests, the last of so many further triggers begins."""
        wanted = len(looks()) + count
        while len(found := looks()) < wanted:  # noqa: ASYNC110  # the proxy tells nobody
            await asyncio.sleep(0.02)
        return found[wanted - 1]

    async with asyncio.timeout(DEADLINE_S), _topic(place) as topic:
        schema_id = next(iter(topic.schemas))
        topic.next[topic.chain()] = old
        begins = await after(3)
        idle = (await after(IDLE_TRIGGERS) - begins) / IDLE_TRIGGERS
        turns = []
        for number in range(FRESH, FRESH + TURNS):  # the same rows in both tables: they fall on the same files
            begins = await after(1)
            await topic.write([_change(number, number, schema_id)])
            while not _committed(proxy.requests[begins:]):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.02)
            window = proxy.requests[begins : await after(2)]
            turn = Counter(map(_kind, window))
            turn["LIST"] -= sum(_is_look(one, place) for one in window) * round(idle)
            turns.append(turn)
        return Requests(old, idle, turns)


def _committed(requests: Sequence[Request]) -> bool:
    return any(one.is_commit and one.status == 200 for one in requests)


def _is_look(request: Request, place: Place) -> bool:
    """Each trigger begins with a look for generations."""
    asked = parse_qs(request.query)
    return asked.get("prefix") == [place.keys.claims(place.entity.topic)]


def _kind(request: Request) -> str:
    return "LIST" if "list-type" in request.query else request.method
