"""The retrier as AWS Lambda functions: ``redrive`` on a schedule, ``analyse`` on a contract change or by hand.

Both may run at any time, as often and as many at once as AWS likes: leases in the table decide who has a row. Nothing
is claimed that could not be settled before the invocation's end. What to set up: ``deploy/aws/lambda/README.md``.
"""

import asyncio
import os
import time
from collections import Counter
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Struct, field

from services.dynamo_retrier.config import RetrierConfig
from services.dynamo_retrier.opening import Clients, monotonic_s, retrier_over
from services.dynamo_retrier.redrive import Deadline
from services.dynamo_retrier.sandbox import Sandbox, WaitsFor, missing
from shared import logs, metrics
from shared.config import load_config
from shared.entities import load_entities
from shared.lifecycle import Stop
from shared.parked.calls import ParkedUnavailable
from shared.parked.dry_run import Tally, dry_run
from shared.parked.queries import ParkedFilter
from shared.parked.wake import NoAnalyst, Waker

SERVICE = "dynamo-retrier"

log = logs.get_logger(__name__)

_sandbox: Sandbox | None = None
"""Made by the first invocation, not at import: a snapshot of the imported function holds no settings and no secrets."""


class Context(Protocol):
    """What we need of the runtime's."""

    aws_request_id: str
    function_name: str

    def get_remaining_time_in_millis(self) -> int: ...


class Asked(Struct, frozen=True):
    """The event of ``analyse``; members that it doesn't know are ignored, for a schedule sends its own."""

    entities: tuple[str, ...] = ()
    """None: all."""
    dry_run: bool = False
    """Count what would pass now, and wake nothing."""


class Analysed(Struct):
    waits_for: WaitsFor = ""
    complete: bool = False  # false: out of time; ask again, what was woken is not met twice
    tried: int = 0  # in memory
    woken: int = 0
    left: int = 0  # still refused, as far as a sample says
    put_off: list[str] = field(default_factory=list)  # entities whose contract or rows can't be had now
    would_pass: dict[str, str] = field(default_factory=dict)  # of a dry run, by entity


def redrive(event: object, context: Context) -> dict[str, Any]:
    """Publish what is due, until nothing is or the time is over. The counts are of this invocation."""
    sandbox = _opened(context)
    before = _outcomes()
    waits_for: WaitsFor = ""

    async def work(clients: Clients, deadline: Deadline) -> None:
        nonlocal waits_for
        waits_for = await missing(clients, kafka=True)
        if waits_for:
            sandbox.share.start_slowly(monotonic_s())
            return
        worker = f"{context.function_name}-{context.aws_request_id}"
        retrier = retrier_over(clients, sandbox.config, sandbox.entities, sandbox.share, worker, gates=sandbox.gates)
        await retrier.run(Stop(), deadline, once=True)

    in_time = sandbox.invoke(work, _remaining_s(context))
    counts = {name: count - before[name] for name, count in _outcomes().items()}
    return _told(context, {"waits_for": waits_for, "cut_short": not in_time, **counts})


def analyse(event: object, context: Context) -> dict[str, Any]:
    """Wake what the newest contracts accept, or count it; ``redrive`` then finds it due.

    Raises ``ValueError`` for an entity that is not configured.
    """
    sandbox = _opened(context)
    asked = msgspec.convert(event or {}, Asked)
    known = sandbox.entities.entities
    if unknown := [name for name in asked.entities if name not in known]:
        raise ValueError(f"not configured: {unknown}; there are {sorted(known)}")
    done = Analysed()

    async def work(clients: Clients, deadline: Deadline) -> None:
        done.waits_for = await missing(clients, kafka=False)
        if done.waits_for:
            return
        stop = Stop()
        over = asyncio.get_running_loop().call_later(deadline.until_s - monotonic_s(), stop.set, "out of time")
        try:
            for name in asked.entities or known:
                await _analyse_one(name, clients, sandbox.config.per_s_max, stop, done, dry=asked.dry_run)
        finally:
            over.cancel()
        done.complete = not stop.is_set

    sandbox.invoke(work, _remaining_s(context))
    return _told(context, msgspec.to_builtins(done))


def _opened(context: Context) -> Sandbox:
    """Raises ``ConfigError``: the invocation fails with every problem in its message, and the next one looks again."""
    global _sandbox
    if _sandbox is None:
        root = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
        defaults = {"TIDEMARK_ENTITIES_DIR": f"{root}/entities", "TIDEMARK_CACHE_DIR": "/tmp/tidemark"}  # noqa: S108 (the only folder that a function may write to, and it is its own)
        config = load_config(RetrierConfig, {**defaults, **os.environ})
        entities = load_entities(config.entities_dir, config.namespace)
        logs.configure(SERVICE, level=config.log.level, format=config.log.format)
        metrics.started(SERVICE)
        metrics.expect_retries(entities.entities)
        _sandbox = Sandbox(config, entities)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=context.aws_request_id)
    return _sandbox


def _remaining_s(context: Context) -> float:
    return context.get_remaining_time_in_millis() / 1_000


async def _analyse_one(
    name: str, clients: Clients, wakes_per_s_max: int, stop: Stop, done: Analysed, *, dry: bool
) -> None:
    if stop.is_set:
        return
    streams = clients.parked.streams

    def count(tally: Tally) -> None:
        done.would_pass[name] = tally.text()

    try:
        analyst = await clients.analysts.current(name)
        if dry:
            count(await dry_run(ParkedFilter(entities=(name,)), streams, analyst, time.time_ns() // 1_000, count))
            return
        waker = Waker(clients.analysts, streams, clients.rows, wakes_per_s_max=wakes_per_s_max)
        report = await waker.wake(name, analyst, stop=stop)
    except (NoAnalyst, ParkedUnavailable) as error:
        log.warning("entity_put_off", entity=name, why=str(error))
        done.put_off.append(name)
        return
    done.tried += report.tried
    done.woken += report.woken
    done.left += report.left


def _outcomes() -> Counter[str]:
    """What has become of rows since the sandbox began, by outcome."""
    totals = Counter(dict.fromkeys(metrics.RETRY_OUTCOMES, 0))
    for family in metrics.RETRIES.collect():
        for sample in family.samples:
            totals[sample.labels["outcome"]] += int(sample.value)
    return totals


def _told(context: Context, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, logged in CloudWatch's embedded metric format too: nobody can scrape a function."""
    figures = {name: int(value) for name, value in answer.items() if isinstance(value, int)}
    figures["waits"] = int(bool(answer["waits_for"]))
    published = {
        "Namespace": "Tidemark",
        "Dimensions": [["function"]],
        "Metrics": [{"Name": name, "Unit": "Count"} for name in figures],
    }
    emf = {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [published]}
    log.info("invocation_done", function=context.function_name, **{**answer, **figures}, _aws=emf)
    return answer
