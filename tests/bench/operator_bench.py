"""What an operator waits for: ``tidemark parked redrive --dry-run`` over tens of thousands of parked events.

The events lack a field that schema version 7 brings; six in a thousand have another fault, which no version cures. The
command runs as it is typed, in a process of its own, against real DynamoDB and registry.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from deploy.local.environment import environment
from deploy.local.stack import Stack
from shared.aws import open_client
from shared.config import load_config
from shared.entities import Entities, Entity, load_entities
from shared.events.contract import Contract, compile_contract
from shared.events.identity import Identifier
from shared.events.model import RejectedEvent
from shared.parked.model import ParkedEvent
from shared.parked.store import ParkedSettings, ParkedStore
from shared.registry.client import Registry
from shared.registry.settings import RegistrySettings
from tests.bench.poller_bench import ROOT, configure
from tests.bench.sample import ENTITY, SCHEMA, event
from tests.bench.units import READS

EVENTS = 40_112
VERSIONS = 7
BEYOND_CURE = 166  # one in so many
PARKED_AT_ONCE = 1_000


class Took(Struct, kw_only=True):
    """One command's. ``s`` without the interpreter's start."""

    command: str
    s: float
    cpu_s: float
    peak_mb: float
    units: dict[str, float]
    calls: dict[str, int]
    said: str

    @property
    def read_units(self) -> float:
        return sum(self.units.get(name, 0.0) for name in READS)

    def text(self, events: int) -> str:
        calls = ", ".join(f"{count:,} {name}" for name, count in sorted(self.calls.items()))
        return (
            f"{self.command:<28}{self.s:8.1f} s{events / self.s:9,.0f} events/s{self.cpu_s:7.1f} CPU s"
            f"{self.peak_mb:6.0f} MB peak{self.read_units:10,.0f} read units ({calls})\n        {self.said}"
        )


def run(stack: Stack, events: int) -> str:
    """Park ``events`` rows, look at them as an operator does, and say what that took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = stack.env | configure(folder, 9, 1) | {"TIDEMARK_NAMESPACE": f"bench-{uuid.uuid4().hex[:8]}"}
        entities = load_entities(folder, environ["TIDEMARK_NAMESPACE"])
        with environment(environ):
            began_s = time.perf_counter()
            table = asyncio.run(_fill(environ, entities, events))
            parked_s = time.perf_counter() - began_s
            try:
                found = [_typed(folder, *command) for command in COMMANDS]
            finally:
                asyncio.run(_remove(table))
    head = f"operator  {events:,} events parked in {parked_s:.0f} s"
    return "\n".join([head, *(took.text(events) for took in found)])


COMMANDS = (("redrive", "--dry-run"), ("groups",))


def _typed(folder: Path, *command: str) -> Took:
    figures = folder / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.metered_cli", str(figures), "parked", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.splitlines()
    said = lines[0] if command[0] == "redrive" else f"{len(lines) - 1} groups"
    return Took(command=f"parked {' '.join(command)}", said=said, **json.loads(figures.read_text()))


async def _fill(environ: dict[str, str], entities: Entities, events: int) -> str:
    """As the poller parks what version 1 refuses; versions 2 to 7 are registered afterwards."""
    entity = entities.entities[ENTITY]
    async with AsyncExitStack() as resources:
        registry = await Registry.open(load_config(RegistrySettings, environ, "TIDEMARK_REGISTRY_"), resources)
        schema_id = await registry.register(entity.schema_subject, json.dumps(SCHEMA))
        first = compile_contract(entity.rules, json.dumps(SCHEMA), entity.schema_subject, schema_id)
        store = await ParkedStore.open(ParkedSettings().within(entities.namespace), resources)
        await store.ensure_table()
        for start in range(0, events, PARKED_AT_ONCE):
            await store.park(_refused(entity, first, range(start, min(events, start + PARKED_AT_ONCE))))
        for version in range(2, VERSIONS + 1):
            await registry.register(entity.schema_subject, json.dumps(_schema(version)))
    return entities.namespace.table("tidemark_parked")


def _schema(version: int) -> dict[str, Any]:
    """Each version has an optional field more; the last one the field that the events have."""
    names = [f"more_{number}" for number in range(2, min(version, VERSIONS - 1) + 1)]
    names += ["colour"] if version == VERSIONS else []
    return SCHEMA | {
        "fields": [*SCHEMA["fields"], *({"name": n, "type": ["null", "string"], "default": None} for n in names)]
    }


def _refused(entity: Entity, contract: Contract, numbers: range) -> list[ParkedEvent]:
    raws = [json.dumps(_event(number), separators=(",", ":")).encode() for number in numbers]
    sightings = Identifier(entity.rules).identify(raws)
    found = []
    for sighting, verdict in zip(sightings, contract.encode(sightings), strict=True):
        assert isinstance(verdict, RejectedEvent)
        found.append(
            ParkedEvent(
                entity=ENTITY,
                topic=entity.topic,
                key=sighting.key,
                key_hash=sighting.key_hash,
                updated_us=sighting.updated_us,
                event_id=sighting.identity.hex(),
                rank=sighting.updated_us,
                tiebreak=0,
                reason=verdict.reason,
                path=verdict.path,
                detail=verdict.detail,
                raw=sighting.raw,
                subject=contract.subject,
                fingerprint=contract.fingerprint,
                owner=entity.owner.name,
                at_us=time.time_ns() // 1_000 - 60_000_000,
            )
        )
    return found


def _event(number: int) -> dict[str, Any]:
    found = event(number) | {"colour": "red"}
    return found if number % BEYOND_CURE else found | {"amount_cents": "12.99"}


async def _remove(table: str) -> None:
    async with AsyncExitStack() as resources:
        await (await open_client("dynamodb", resources)).delete_table(TableName=table)
