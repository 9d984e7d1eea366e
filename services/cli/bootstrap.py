"""``tidemark bootstrap``: everything that the services need exists afterwards, or a line says what stands in the way.

Idempotent: each thing is looked at, and made only if it is missing. With ``--plan`` nothing is written. One thing that
is refused doesn't keep the others from being made; a server that doesn't answer is asked once.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, Literal

from msgspec import Struct, to_builtins

from services.cli.buckets import PROBE, Buckets
from services.cli.edges import Edges, meaning
from services.cli.outcome import DOWN, FINDING, OK, Outcome, aligned, moment
from shared.entities import Entity
from shared.events.contract import Contract, check_columns, compile_contract

Verdict = Literal["ok", "created", "would create", "refused", "unreachable"]

STRICT_ENOUGH = frozenset({"BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"})
WANTED_COMPATIBILITY: Final = "BACKWARD"


class Finding(Struct, frozen=True):
    """What became of one thing."""

    thing: str
    name: str
    verdict: Verdict
    note: str = ""


class Thing(Struct, frozen=True):
    """One thing to make; ``edge`` is the server that it needs."""

    edge: str
    thing: str
    name: str
    settle: Callable[[], Awaitable[tuple[Verdict, str]]]


async def run(edges: Edges, *, plan: bool) -> Outcome:
    """Raises ``ConfigError`` before anything is touched."""
    edges.check_settings()
    down: dict[str, str] = {}
    findings = []
    for thing in _things(edges, plan):
        finding = await _settle(thing, down)
        findings.append(finding)
    return Outcome(
        exit_code=_exit_code(findings),
        lines=aligned([[found.verdict, found.thing, found.name, found.note] for found in findings]),
        document={"plan": plan, "things": to_builtins(findings)},
    )


def _things(edges: Edges, plan: bool) -> Iterator[Thing]:
    """In the order in which they depend on each other: compatibility is a rule for subjects, tables carry cursors."""
    space, parked = edges.namespace, edges.parked_settings
    entities = list(edges.entities.entities.values())
    yield Thing("postgres", "tables", space.postgres_schema(), partial(_tables, edges, plan))
    for entity in entities:
        yield Thing("postgres", "cursor", entity.name, partial(_cursor, edges, entity, plan))
    yield Thing("registry", "compatibility", "(global)", partial(_compatibility, edges, plan))
    for entity in entities:
        yield Thing("registry", "subject", entity.schema_subject, partial(subject, edges, entity, plan))
    for entity in entities:
        yield Thing("kafka", "topic", entity.topic, partial(_topic, edges, entity, plan))
    yield Thing("dynamodb", "table", parked.table, partial(_parked_table, edges, plan))
    yield Thing("s3", "bucket", parked.bucket, partial(_parked_bucket, edges, plan))
    for bucket in dict.fromkeys((edges.raw_bucket, edges.archive_bucket, *edges.lake_bucket)):
        yield Thing("s3", "bucket", bucket, partial(_written_once, edges, bucket, plan))


async def _settle(thing: Thing, down: dict[str, str]) -> Finding:
    if thing.edge in down:
        return Finding(thing.thing, thing.name, "unreachable", "as above")
    try:
        verdict, note = await thing.settle()
    except Exception as error:
        known = meaning(error)
        if known is None:
            raise
        if known.exit_code == DOWN:
            down[thing.edge] = known.text
        return Finding(thing.thing, thing.name, "unreachable" if known.exit_code == DOWN else "refused", known.text)
    return Finding(thing.thing, thing.name, verdict, note)


def _exit_code(findings: list[Finding]) -> int:
    verdicts = {found.verdict for found in findings}
    if "unreachable" in verdicts:
        return DOWN
    return FINDING if verdicts & {"refused", "would create"} else OK


def _made(plan: bool) -> Verdict:
    return "would create" if plan else "created"


async def _tables(edges: Edges, plan: bool) -> tuple[Verdict, str]:
    checkpoints = await edges.checkpoints()
    names = await (checkpoints.pending_migrations() if plan else checkpoints.migrate())
    return (_made(plan), ", ".join(names)) if names else ("ok", "")


async def _cursor(edges: Edges, entity: Entity, plan: bool) -> tuple[Verdict, str]:
    checkpoints = await edges.checkpoints()
    starts = entity.start_at if entity.start_at in ("beginning", "now") else moment(entity.start_at_us(0))
    if plan:
        missing = bool(await checkpoints.pending_migrations()) or entity.name not in {
            status.entity for status in await checkpoints.entities()
        }
    else:
        start_us = None if entity.start_at == "now" else entity.start_at_us(0)
        missing = await checkpoints.ensure_entity(entity.name, start_us)
    return (_made(plan), f"starts at {starts}") if missing else ("ok", "")


async def _compatibility(edges: Edges, plan: bool) -> tuple[Verdict, str]:
    registry = await edges.registry()
    level = await registry.compatibility()
    if level in STRICT_ENOUGH:
        return "ok", level
    if not plan:
        await registry.set_compatibility(WANTED_COMPATIBILITY)
    return _made(plan), f"{WANTED_COMPATIBILITY}, was {level}: nothing incompatible was ever refused"


async def subject(edges: Edges, entity: Entity, plan: bool) -> tuple[Verdict, str]:
    """A schema is registered only if it compiles, and its columns collide with those of no other version."""
    from shared.registry.client import UnknownSubject

    registry = await edges.registry()
    try:
        versions = await registry.versions(entity.schema_subject)
    except UnknownSubject:
        if entity.schema_text is None:
            raise
        versions = []
    schemas = [version.schema for version in versions]
    text = entity.schema_text
    if text is None or any(json.loads(schema) == json.loads(text) for schema in schemas):
        check_columns(schemas)
        contract = compile_contract(entity.rules, text or schemas[-1], entity.schema_subject, versions[-1].schema_id)
        return "ok", _version(versions[-1].version, contract)
    if entity.register == "require":
        return "refused", f"the file differs from all {len(versions)} registered versions, and register is 'require'"
    check_columns([*schemas, text])
    contract = compile_contract(entity.rules, text, entity.schema_subject, 0)
    if not plan:
        await registry.register(entity.schema_subject, text)
    return _made(plan), _version(versions[-1].version + 1 if versions else 1, contract)


def _version(version: int, contract: Contract) -> str:
    general = f"; runs on the slower general path: {', '.join(contract.reasons)}" if contract.general else ""
    return f"version {version}{general}"


async def _topic(edges: Edges, entity: Entity, plan: bool) -> tuple[Verdict, str]:
    kafka = await edges.kafka()
    note = f"{entity.partitions} partitions"
    if not plan:
        made = await kafka.ensure_topic(entity.topic, partitions=entity.partitions, replication=edges.replication)
        return ("created", note) if made else ("ok", "")
    if await kafka.missing([entity.topic]):
        return "would create", note
    await kafka.check_topic(entity.topic, entity.partitions)
    return "ok", ""


async def _parked_table(edges: Edges, plan: bool) -> tuple[Verdict, str]:
    from shared.parked.calls import ParkedUnavailable

    parked = await edges.parked()
    if not plan:
        return ("created" if await parked.ensure_table() else "ok"), ""
    try:
        await parked.answers()
    except ParkedUnavailable as error:
        if error.is_missing:
            return "would create", ""
        raise
    return "ok", ""


async def _parked_bucket(edges: Edges, plan: bool) -> tuple[Verdict, str]:
    if not plan:
        return ("created" if await (await edges.parked()).ensure_bucket() else "ok"), ""
    return ("ok" if await (await edges.buckets()).exists(edges.parked_settings.bucket) else "would create"), ""


async def _written_once(edges: Edges, bucket: str, plan: bool) -> tuple[Verdict, str]:
    """Ledger and Delta log need the store's refusal of a second conditional PUT: else two writers would both win."""
    buckets = await edges.buckets()
    exists = await buckets.exists(bucket)
    if not exists and not plan:
        await buckets.create(bucket)
    if not exists and plan:
        return "would create", ""
    if plan:
        return await _kept(buckets, bucket, "ok")
    if not await buckets.refuses_second_put(bucket, edges.namespace.prefix("") + PROBE):
        return (
            "refused",
            "the store overwrites in spite of If-None-Match: it can't hold a ledger or a Delta log; use another store",
        )
    return await _kept(buckets, bucket, "ok" if exists else "created")


async def _kept(buckets: Buckets, bucket: str, verdict: Verdict) -> tuple[Verdict, str]:
    rules = await buckets.expiring_rules(bucket)
    if rules:
        return "refused", f"lifecycle rule {', '.join(rules)} deletes objects; the ledger would lose links: remove it"
    return verdict, ""
