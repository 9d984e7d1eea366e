"""The road from the raw bucket to Delta: the stream, the batch that builds a second lake, and the rows of both."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

from deploy.demo.balance import Books
from deploy.demo.books import OCCURRENCES, ROWS, Stores
from deploy.demo.lake_balance import BankState, LakeBalance, LakeBooks, Row, lake_balance
from deploy.local.environment import environment
from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from deploy.local.supervision import StackFailed
from shared.aws import open_client
from shared.entities import Entities, Entity
from shared.events.identity import Identifier, event_id
from shared.lake.layout import Lake
from shared.lake.reader import LakeTable, LakeUnavailable
from shared.raw.generation import newest_claim
from shared.raw.keys import Chain, Keys

BATCH_S_MAX = 600.0
INTERVAL_S = 2.0
"""How often the stream looks for new objects; 5 s are its default."""
RECHECK_S = 10.0
"""How often its tables are compared with the bucket, which is what their freshness is told by: a run may be over before
the minute that is its default."""
READY_S_MAX = 240.0
"""Spark takes half a minute to start on a busy machine of two cores."""


class DemoLake:
    """Two lakes: the stream's, and the batch's beside it."""

    def __init__(self, stack: Stack, settings: Mapping[str, str], entities: Entities) -> None:
        """``settings``: all of the demo's, which include where everything is."""
        self._stack, self._entities = stack, entities
        name = settings.get("TIDEMARK_LAKE_URI", "s3a://tidemark-lake")
        self.stream_uri, self.batch_uri = name, f"{name}-batch"
        self._settings = {
            **settings,
            "TIDEMARK_LAKE_URI": self.stream_uri,
            "TIDEMARK_LOAD_INTERVAL_S": str(INTERVAL_S),
            "TIDEMARK_LOAD_RECHECK_S": str(RECHECK_S),
            "TIDEMARK_SPARK_MASTER": "local[2]",
            # Half of what so short a life costs would be the second compiler's work.
            # Java keeps only 48 MB for such code, which a run of ten minutes fills.
            "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
        }

    async def make_buckets(self) -> None:
        async with AsyncExitStack() as resources:
            with environment(_aws(self._settings)):
                s3 = await open_client("s3", resources, read_timeout_s=30)
            for uri in (self.stream_uri, self.batch_uri):
                await s3.create_bucket(Bucket=uri.partition("://")[2])

    def add_stream(self) -> None:
        """To the stack's processes, as ``stream``; not yet started."""
        port = self._stack.free_port("stream")
        ready = http_answers(f"http://127.0.0.1:{port}/ready")
        env = {**self._settings, "TIDEMARK_HTTP_PORT": str(port)}
        command = self._command("stream")
        self._stack.add(Process("stream", command, ready=ready, env=env, ready_s_max=READY_S_MAX, stop_s_max=60))

    async def build(self) -> list[str]:
        """The second lake, from all raw objects; what the batch says of it. Raises ``StackFailed``."""
        env = {**self._settings, "TIDEMARK_LAKE_URI": self.batch_uri}
        self._stack.add(Process("batch", self._command("batch"), env=env, ends_itself=True))
        await asyncio.to_thread(self._stack.start, "batch")
        deadline_s = time.monotonic() + BATCH_S_MAX
        while self._stack.is_running("batch"):
            if time.monotonic() > deadline_s:
                raise StackFailed(f"the batch has not ended after {BATCH_S_MAX:.0f} s")
            await asyncio.sleep(0.2)  # in no thread, for which Ctrl-C would wait
        self._stack.check()
        lines = self._stack.log_tail("batch", 100).splitlines()
        return [line.strip() for line in lines if not line.strip().startswith("{")][-len(self._entities.entities) :]

    def _command(self, job: str) -> tuple[str, ...]:
        return (str(self._stack.spark_python), "-m", "services.delta_loader", job)

    async def behind(self, stores: Stores) -> str:
        """What Kafka has and the stream's tables don't, in words; ``""``: nothing."""
        for entity in self._entities.entities.values():
            claim = await newest_claim(stores.s3, Keys(self._entities.namespace.prefix("")), entity.topic)
            marks = await stores.kafka.watermarks(entity.topic)
            if claim is None:
                continue
            try:
                positions = await asyncio.to_thread(self._positions, entity)
            except LakeUnavailable as error:  # a table that is being made
                return f"{entity.name}: {error}"
            ends = {Chain(entity.topic, claim.generation, number): mark.end for number, mark in marks.items()}
            if left := sum(max(0, end - positions.get(chain, 0)) for chain, end in ends.items()):
                return f"{entity.name}: {left:,} records between the raw bucket and Delta"
        return ""

    def _positions(self, entity: Entity) -> Mapping[Chain, int]:
        table = self._table(self.stream_uri, entity)
        return {} if table is None else table.positions()

    def _table(self, uri: str, entity: Entity) -> LakeTable | None:
        lake = Lake(uri, self._entities.namespace.prefix(""))
        return LakeTable.open(lake.table(entity.name), self._settings)

    async def sheets(self, stores: Stores, all_books: Sequence[Books]) -> list[LakeBalance]:
        """Both lakes and the bank, compared; in the order of ``all_books``."""
        found = []
        for books in all_books:
            entity = self._entities.entities[books.entity]
            stream, batch = [
                await asyncio.to_thread(self._rows, uri, entity) for uri in (self.stream_uri, self.batch_uri)
            ]
            states, last = await bank_states(stores.bank, entity)
            aside = {item.event_id for item in books.parked} | {item.event_id for item in books.archived}
            lake = LakeBooks(
                entity=entity.name,
                shows=entity.rules.shows,
                keys=entity.rules.key,
                stream=stream,
                batch=batch,
                bank=states,
                last=last,
                set_aside=frozenset(aside - {row.event_id for row in books.raw}),
            )
            found.append(await asyncio.to_thread(lake_balance, lake))
        return found

    def _rows(self, uri: str, entity: Entity) -> list[Row] | None:
        table = self._table(uri, entity)
        if table is None:
            return None
        columns = table.columns
        return [dict(zip(columns, row, strict=True)) for rows in table.rows(columns) for row in rows]


async def bank_states(bank: Any, entity: Entity) -> tuple[list[BankState], dict[str, int]]:
    """What the bank says: see ``LakeBooks.bank`` and ``LakeBooks.last``.

    The last state of each key is the one in the bank's own table, of events too.
    """
    table = entity.source_entity.replace("_events", "s")
    rows = await bank.fetch(ROWS.format(one=table.removesuffix("s"), table=table))
    last = {row["id"]: row["version"] for row in rows}
    payloads = [row[3] for row in rows]
    if entity.rules.shows == "rows":
        return _states(entity, payloads), last
    own = {str(columns["id"]): columns for columns in map(flat, payloads)}
    outbox = "SELECT payload FROM change_outbox WHERE entity = $1 ORDER BY id"
    changes = _states(entity, [row[0] for row in await bank.fetch(outbox, entity.source_entity)])
    return [_last_as_in_table(change, own, last) for change in changes], last


def _states(entity: Entity, payloads: Sequence[str]) -> list[BankState]:
    sightings = Identifier(entity.rules).identify([payload.encode() for payload in payloads])
    occurrences = OCCURRENCES if entity.rules.shows == "rows" else 1
    states = []
    for payload, seen in zip(payloads, sightings, strict=True):
        columns = flat(payload)
        states.append(
            BankState(
                key=str(columns["id"]),
                version=columns["version"],
                event_ids=tuple(event_id(seen.identity, number) for number in range(occurrences)),
                columns=columns,
                deleted=columns["op"] == "d",
            )
        )
    return states


def _last_as_in_table(change: BankState, own: Mapping[str, Row], last: Mapping[str, int]) -> BankState:
    """The row knows neither the number of its last change nor whether that created it."""
    if change.version != last[change.key]:
        return change
    row = own[change.key]
    kept = {name: change.columns[name] for name in ("event_id", "op")}
    return BankState(
        key=change.key,
        version=change.version,
        event_ids=change.event_ids,
        columns={**row, **kept},
        deleted=row["op"] == "d",
    )


def flat(payload: str) -> dict[str, Any]:
    """One JSON object, by the columns' names in the lake."""
    found: dict[str, Any] = {}
    _flatten(json.loads(payload, parse_float=Decimal), "", found)
    return found


def _flatten(fields: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}__", found)
        else:
            found[prefix + name] = value


def _aws(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name.startswith("AWS_")}
