"""The doctor's looks at Postgres, Kafka, the registry and DynamoDB. Each raises what its edge raises."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from services.cli import bootstrap
from services.cli.doctor_findings import Report, parted
from services.cli.doctor_verdicts import Wanted, judge_clock, judge_table, judge_topic
from services.cli.edges import Edges, meaning
from services.cli.outcome import DOWN
from shared.entities import Entity

if TYPE_CHECKING:
    from shared.kafka.admin import KafkaAdmin
    from shared.kafka.settings import KafkaSettings

BOOTSTRAP = "tidemark bootstrap"
CONNECT_S = 2.0
UNFIT_LISTENER = (
    "see TIDEMARK_KAFKA_SECURITY and TIDEMARK_KAFKA_SASL_*, which must fit that listener, and the brokers' "
    "advertised.listeners, which must be reachable from here"
)
PROBE = "doctor-probe"
"""No key of ours: no row stands under it, nor ever will."""
CCOMPAT = "TIDEMARK_REGISTRY_URL names the Confluent-compatible API, e.g. http://HOST:8080/apis/ccompat/v7 for Apicurio"


async def look_at_postgres(edges: Edges, entities: Sequence[Entity], report: Report) -> None:
    checkpoints, schema = await edges.checkpoints(), f"schema {edges.namespace.postgres_schema()}"
    await checkpoints.clock_us()  # answers, and knows us
    if pending := await checkpoints.pending_migrations():
        report.wrong(schema, f"lacks {len(pending)} migrations: {', '.join(pending)}", BOOTSTRAP)
        return
    cursors = {status.entity: status for status in await checkpoints.entities()}
    missing = [entity.name for entity in entities if entity.name not in cursors]
    for name in missing:
        report.wrong(name, "has no cursor: no poller can read it", BOOTSTRAP)
    if not missing:
        report.ok(schema, f"all migrations are applied, {len(entities)} cursors are there")
    for entity in entities:
        status = cursors.get(entity.name)
        if status is not None and status.paused_reason:
            text = f"paused by {status.paused_by or '?'}: {status.paused_reason}"
            report.note(entity.name, text, f"tidemark entity resume {entity.name}")


async def look_at_postgres_clock(edges: Edges, report: Report) -> None:
    checkpoints = await edges.checkpoints()
    await checkpoints.clock_us()  # connects
    asked_us = time.time_ns() // 1000
    theirs_us = await checkpoints.clock_us()
    answered_us = time.time_ns() // 1000
    ahead_s, uncertain_s = (theirs_us - (asked_us + answered_us) / 2) / 1e6, (answered_us - asked_us) / 2e6
    report.judged("postgres", judge_clock("Postgres's machine", ahead_s, uncertain_s), f"{abs(ahead_s):.3f} s apart")


async def look_at_kafka(edges: Edges, entities: Sequence[Entity], report: Report) -> None:
    from shared.kafka.errors import KafkaUnreachable

    settings = edges.kafka_settings
    try:
        await _look_at_topics(edges, settings, entities, report)
    except KafkaUnreachable as error:  # the client says no more of a broker that doesn't know us
        if report.findings or await (await edges.kafka()).reachable() or not await _connects(settings.bootstrap):
            raise
        text = f"{settings.bootstrap} takes connections, and then can't be used ({error})"
        report.config("brokers", text, UNFIT_LISTENER)


async def _look_at_topics(edges: Edges, settings: "KafkaSettings", entities: Sequence[Entity], report: Report) -> None:
    kafka = await edges.kafka()
    if not entities:
        await kafka.missing([f"{PROBE}-none"])
        report.ok("brokers", "answer; no topics to look at")
    for entity in entities:
        wanted = Wanted(
            partitions=entity.partitions,
            record_bytes_max=settings.record_bytes_max,
            batch_bytes=settings.batch_bytes,
        )
        await one(entity.topic, _topic(kafka, entity.topic, wanted, settings.bootstrap, report), report)


async def _connects(bootstrap_servers: str) -> bool:
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        with suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                _reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            return True
    return False


async def _topic(kafka: "KafkaAdmin", topic: str, wanted: Wanted, bootstrap_servers: str, report: Report) -> None:
    state = await kafka.state(topic)
    fine = f"{state.partitions} partitions, {state.in_sync_min} of {state.replicas_min} replicas in sync"
    report.judged(topic, judge_topic(topic, state, wanted, bootstrap_servers), fine)


async def look_at_registry(edges: Edges, entities: Sequence[Entity], report: Report) -> None:
    from shared.registry.client import RegistryRefused

    registry = await edges.registry()
    try:
        level = await registry.compatibility()
    except RegistryRefused as error:
        what, advice = parted(str(error))
        if "password" in advice:
            report.config("server", what, "see TIDEMARK_REGISTRY_USER and TIDEMARK_REGISTRY_PASSWORD_FILE")
        else:
            report.wrong("server", f"answers, but not as a registry does: {what}", CCOMPAT)
        return
    if level in bootstrap.STRICT_ENOUGH:
        report.ok("compatibility", level)
    else:
        report.wrong("compatibility", f"is {level}: nothing incompatible would ever be refused", BOOTSTRAP)
    for entity in entities:
        await one(entity.schema_subject, _subject(edges, entity, report), report)


async def _subject(edges: Edges, entity: Entity, report: Report) -> None:
    verdict, text = await bootstrap.subject(edges, entity, plan=True)
    match verdict:
        case "ok":
            report.ok(entity.schema_subject, text)
        case "would create":
            report.wrong(entity.schema_subject, f"the file's schema is not registered; it would be {text}", BOOTSTRAP)
        case _:
            report.wrong(entity.schema_subject, text, f"register {entity.schema_file} as a new version, or correct it")


async def look_at_dynamodb(edges: Edges, report: Report) -> None:
    from botocore.exceptions import ClientError

    client, table = await edges.dynamodb(), edges.parked_settings.table
    try:
        described = (await client.describe_table(TableName=table))["Table"]
    except ClientError as error:
        if _code(error) != "ResourceNotFoundException":
            raise
        report.wrong(f"table {table}", f"does not exist in {client.meta.region_name}", BOOTSTRAP)
        return
    backups = await _state(client.describe_continuous_backups(TableName=table), "ContinuousBackupsDescription")
    recovery = backups.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus", "")
    ttl = await _state(client.describe_time_to_live(TableName=table), "TimeToLiveDescription")
    judgements = judge_table(described, ttl.get("TimeToLiveStatus", ""), recovery)
    indexes = len(described.get("GlobalSecondaryIndexes", ()))
    report.judged(f"table {table}", judgements, f"ACTIVE, {indexes} indexes")
    if not report.is_fine:  # with other keys there is nothing to try
        return
    refused = [name async for name in _refused(client, table)]
    for name in refused:
        remedy = f"allow dynamodb:{name} (SECURITY.md lists each service's rights)"
        report.config(f"table {table}", f"we may not {name}", remedy)
    if not refused:
        report.ok(f"rights on {table}", "may be read and written")


async def _refused(client: Any, table: str) -> AsyncIterator[str]:
    """Rights that we lack. Nothing is written: the condition never holds, as there is no such row."""
    from botocore.exceptions import ClientError

    key = {"pk": {"S": PROBE}, "sk": {"S": PROBE}}
    never = {"TableName": table, "ConditionExpression": "attribute_exists(pk)"}
    probes: dict[str, Callable[[], Awaitable[Any]]] = {
        "GetItem": lambda: client.get_item(TableName=table, Key=key),
        "PutItem": lambda: client.put_item(Item=key, **never),
        "UpdateItem": lambda: client.update_item(Key=key, UpdateExpression="REMOVE doctor_probe", **never),
        "DeleteItem": lambda: client.delete_item(Key=key, **never),
        "Query": lambda: client.query(
            TableName=table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": PROBE}},
            Limit=1,
        ),
    }
    for name, probe in probes.items():
        try:
            await probe()
        except ClientError as error:
            if _code(error) in ("AccessDeniedException", "AccessDenied"):
                yield name
            elif _code(error) != "ConditionalCheckFailedException":
                raise


async def one(thing: str, look: Awaitable[None], report: Report) -> None:
    """A thing that is refused doesn't keep the others from being looked at; a server that is away does."""
    try:
        await look
    except Exception as error:
        known = meaning(error)
        if known is None or known.exit_code == DOWN:
            raise
        report.meant(thing, known.exit_code, known.text)


async def _state(call: Awaitable[Any], name: str) -> dict[str, Any]:
    """Empty where the service has no such thing, or doesn't tell us."""
    from botocore.exceptions import ClientError

    with suppress(ClientError):
        return dict((await call).get(name, {}))
    return {}


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
