"""``tidemark audit --watch``: round after round, a verdict per entity as metrics, until SIGTERM.

Entities are audited one by one. A round only reads: stopped in the middle, it is dropped.
"""

import asyncio
import time
from argparse import Namespace
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from msgspec import Struct

from services.cli.audit import chosen, options_of
from services.cli.audit_records import Kind, Report
from services.cli.audit_round import Options, Round
from services.cli.edges import Edges, meaning
from shared import health, lifecycle, logs, metrics
from shared.config import ConfigError, HttpSettings, LogSettings, load_config
from shared.entities import Entity
from shared.lifecycle import Stop

SERVICE = "audit"
KINDS: tuple[str, ...] = get_args(Kind)

log = logs.get_logger(__name__)


class WatchConfig(Struct, frozen=True, kw_only=True):
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    drain_s: float = 20.0


def main(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Exit codes: ``shared/lifecycle``."""
    try:
        config = load_config(WatchConfig, environ)
        entities = chosen(Edges(environ, AsyncExitStack(), arguments.entities, arguments.namespace), arguments.entity)
    except ConfigError as error:
        return lifecycle.refused(SERVICE, error)
    work = partial(_watch, arguments, environ, config, entities)
    return lifecycle.run(SERVICE, work, drain_s=config.drain_s, log_settings=config.log)


async def _watch(
    arguments: Namespace, environ: Mapping[str, str], config: WatchConfig, entities: Sequence[Entity], stop: Stop
) -> None:
    metrics.expect_audits([entity.name for entity in entities], KINDS)
    metrics.expect_freshness(entities)
    async with AsyncExitStack() as stack:
        await health.serve(config.http, stack, edges={}, pulses={"loop": stop.pulse})
        while not stop.is_set:
            began_s = time.monotonic()
            async with AsyncExitStack() as connections:
                edges = Edges(environ, connections, arguments.entities, arguments.namespace)
                for entity in entities:
                    await _stoppable(_audited(edges, options_of(arguments), entity, stop), stop)
            await stop.wait(arguments.period_s - (time.monotonic() - began_s))


async def _audited(edges: Edges, options: Options, entity: Entity, stop: Stop) -> None:
    """One entity's round. A server that is away ends it without a verdict; the last one stands."""
    began_s = time.monotonic()
    try:
        with TemporaryDirectory(prefix="tidemark-audit-") as folder:
            (report,) = await Round(edges, options, Path(folder), quiet=True, pause=stop.wait).run([entity])
    except Exception as error:
        known = meaning(error)
        if known is None:
            raise
        metrics.AUDIT_FAILED.labels(entity.name).inc()
        log.warning("audit_failed", entity=entity.name, reason=known.text)
        return
    metrics.AUDIT_S.labels(entity.name).set(time.monotonic() - began_s)
    show(report)


def show(report: Report) -> None:
    """A verdict as metrics, and each finding as a line in the log."""
    name, counts = report.entity, report.counts
    metrics.AUDIT_COMPLETE.labels(name).set(report.complete)
    metrics.CONSERVATION_GAP.labels(name).set(counts.missing)
    metrics.AUDIT_ENDED.labels(name).set_to_current_time()
    for kind in KINDS:
        metrics.AUDIT_FINDINGS.labels(name, kind).set(sum(one.kind == kind for one in report.findings))
    for state in ("seen", "raw", "parked", "archived", "missing"):
        metrics.AUDIT_EVENTS.labels(name, state).set(getattr(counts, state))
    for finding in report.findings:
        log.error("audit_finding", entity=name, kind=finding.kind, text=finding.text, repair=finding.repair)
    log.info("audit_done", entity=name, complete=report.complete, findings=len(report.findings))


async def _stoppable(work: Coroutine[Any, Any, None], stop: Stop) -> None:
    """Await ``work``, or cancel it when the stop comes first."""
    working = asyncio.create_task(work, name="audit-round")
    stopping = asyncio.create_task(stop.wait(), name="stop-wait")
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return
    await working
