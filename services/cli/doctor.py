"""``tidemark doctor``: looks at the whole stack from where it runs, and says what is wrong, where, and what to do.

All looks run at once, each within its own time, so that a server that hangs costs no more than that. It reads; what it
writes is one probe object per bucket, which it removes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct

from services.cli import doctor_buckets, doctor_configuration, doctor_servers, doctor_source
from services.cli.doctor_findings import CHECKS, Report, document, exit_code, render
from services.cli.edges import Edges, meaning
from services.cli.outcome import Outcome
from shared.config import ConfigError
from shared.entities import Entities
from shared.logs import get_logger

HERE = frozenset({"configuration", "secrets", "disk"})
"""Checks that need no server."""
_CANCEL_S = 1.0
"""A look that doesn't even end when it is cancelled is left behind."""

log = get_logger(__name__)


class Look(Struct, frozen=True):
    """One thing to look at, by itself. ``see``: the setting that says where it is."""

    check: str
    thing: str
    see: str
    run: Callable[[Report], Awaitable[None]]


async def run(
    edges: Edges, environ: Mapping[str, str], *, only: Sequence[str], source: bool, within_s: float
) -> Outcome:
    wanted = set(only) or {check for check in CHECKS if check != "source" or source}
    looks = [look for look in _looks(edges, environ) if look.check in wanted]
    reports = {look: await _bounded(look, within_s) for look in looks if look.check in HERE}
    # First, since the settings bring every library with them: loading those is no server's time.
    await _open_s3(edges)
    away = [look for look in looks if look not in reports]
    reports |= zip(away, await asyncio.gather(*(_bounded(look, within_s) for look in away)), strict=True)
    findings = [found for look in looks for found in reports[look].findings]
    return Outcome(exit_code=exit_code(findings), lines=render(findings), document=document(findings))


def _looks(edges: Edges, environ: Mapping[str, str]) -> Iterator[Look]:
    folder = _folder(edges)
    entities = () if folder is None else tuple(folder.entities.values())
    servers, buckets, source = doctor_servers, doctor_buckets, doctor_source
    read = doctor_configuration
    yield Look("configuration", "entity folder", "TIDEMARK_ENTITIES_DIR", partial(read.look_at_folder, edges))
    yield Look("configuration", "settings", "TIDEMARK_*", partial(read.look_at_settings, environ, folder))
    yield Look("secrets", "entity folder", "TIDEMARK_ENTITIES_DIR", partial(read.look_at_secrets, environ, folder))
    dsn, bootstrap, url = "TIDEMARK_POSTGRES_DSN", "TIDEMARK_KAFKA_BOOTSTRAP", "TIDEMARK_REGISTRY_URL"
    yield Look("postgres", "server", dsn, partial(servers.look_at_postgres, edges, entities))
    yield Look("kafka", "brokers", bootstrap, partial(servers.look_at_kafka, edges, entities))
    yield Look("registry", "server", url, partial(servers.look_at_registry, edges, entities))
    dynamodb = "AWS_ENDPOINT_URL_DYNAMODB and AWS_REGION"
    yield Look("dynamodb", "table", dynamodb, partial(servers.look_at_dynamodb, edges))
    for role in buckets.ROLES:
        yield Look("buckets", role.name, "AWS_ENDPOINT_URL and AWS_REGION", partial(buckets.look_at, edges, role))
    yield Look("clocks", "postgres", dsn, partial(servers.look_at_postgres_clock, edges))
    yield Look("clocks", "s3", "AWS_ENDPOINT_URL", partial(buckets.look_at_clock, edges))
    yield Look("disk", "folders", "TMPDIR and TIDEMARK_CACHE_DIR", partial(read.look_at_disk, environ))
    for entity in entities:
        see = f"`url` of source {entity.source.name!r}"
        yield Look("source", entity.name, see, partial(source.look_at, edges, entity))


async def _open_s3(edges: Edges) -> None:
    """Once for all looks at buckets. Asks nothing; what is wrong with it each of them says."""
    with suppress(Exception):
        await edges.buckets()


async def _bounded(look: Look, within_s: float) -> Report:
    """What was found so far stands when the time is over."""
    report = Report(look.check)
    task = asyncio.ensure_future(look.run(report))
    done, _ = await asyncio.wait({task}, timeout=within_s)
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        text = f"no answer within {within_s:g} s: frozen, overloaded, or behind a firewall that says nothing"
        report.no_answer(look.thing, text, f"see {look.see}; --within gives it longer")
    elif (error := task.exception()) is not None:
        known = meaning(error)
        if known is None:  # the other looks are worth having all the same
            log.debug("look_failed", check=look.check, thing=look.thing, exc_info=error)
            report.wrong(look.thing, f"{type(error).__name__}: {error}", "--debug shows where; it may be a bug of ours")
        else:
            report.meant(look.thing, known.exit_code, known.text, look.see)
    if look.check == "clocks" and not report.is_answered:
        return report.instead("not compared: see its own check")
    return report


def _folder(edges: Edges) -> Entities | None:
    """As far as it can be read: variables that aren't set are found by the configuration's check."""
    try:
        return edges.entities
    except ConfigError:
        try:
            return edges.entities_without_environment()
        except ConfigError:
            return None
