"""The restore drill: each store is put back to what it was before the bank's last changes, or made anew, and Tidemark
goes on. Each part ends in `tidemark audit`: complete at once, or naming what is gone and then, by the command that it
prints, complete.

What an hour is, is how much has changed since the backup. The parts share one Tidemark, and go in the order written.
"""

import asyncio
import json
import shlex
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import msgspec
import pytest

from deploy.demo.books import Stores, StoreSettings, _truth, seen_ids
from deploy.demo.demo import add_field
from deploy.local.install import install
from deploy.local.processes import Process
from deploy.local.stack import Stack
from shared.aws import open_client
from shared.config import load_config
from shared.raw.generation import FIRST, newest_claim
from shared.raw.keys import Keys
from shared.raw.ledger import Ledger
from tests.integration.running import Running

WITHIN_S = 90.0
LOOK_S = 0.3
RATE = 60.0
SERVICES = ("sink", "poller", "retrier", "notifier")
_T = TypeVar("_T")


class Line(msgspec.Struct, frozen=True):
    """Of a raw row: who it is, and when it was first seen (its source has versions, so that this is the tiebreak)."""

    event_id: str = msgspec.field(name="_event_id")
    shown_us: int = msgspec.field(name="_tiebreak")


class Drill(Running):
    """One Tidemark on a broker and in a database of its own, and its stores as they are."""

    def ask(self, question: Callable[[Stores], Awaitable[_T]]) -> _T:
        async def inside() -> _T:
            async with AsyncExitStack() as resources:
                settings = load_config(StoreSettings, self.settings)
                stores = await Stores.open(settings, self.settings["BANK_DSN"], self.entities.namespace, resources)
                return await question(stores)

        return asyncio.run(inside())

    def raw(self) -> dict[str, list[int]]:
        """Event id → the stamps of its raw rows, in the order of generations and offsets; of all entities."""

        async def read(stores: Stores) -> dict[str, list[int]]:
            found: defaultdict[str, list[int]] = defaultdict(list)
            ledger = Ledger(stores.s3, Keys(self.entities.namespace.prefix("")))
            for topic in self.entities.topics:
                claim = await newest_claim(stores.s3, ledger.keys, topic)
                for number in range(FIRST, 1 + (claim.generation if claim else 0)):
                    for chain in await ledger.partitions(topic, number):
                        async for link in ledger.objects(chain):
                            for text in (await ledger.rows(link)).splitlines():
                                line = msgspec.json.decode(text, type=Line)
                                found[line.event_id].append(line.shown_us)
            return dict(found)

        return self.ask(read)

    def parked(self) -> dict[str, str]:
        """Event id → reason."""

        async def read(stores: Stores) -> dict[str, str]:
            return {item.event_id: item.reason.value for item in await stores.parked.scan_ids()}

        return self.ask(read)

    def shown(self) -> dict[str, str]:
        """Every change that the bank has made: event id → entity."""

        async def read(stores: Stores) -> dict[str, str]:
            found: dict[str, str] = {}
            for entity in self.entities.entities.values():
                changes, _ = await _truth(stores.bank, entity)
                found |= {change.event_ids[0]: entity.name for change in changes}
            return found

        return self.ask(read)

    def until(self, what: str, seen: Callable[[Stores], Awaitable[bool]]) -> None:
        async def look(stores: Stores) -> bool:
            deadline_s = asyncio.get_running_loop().time() + WITHIN_S
            while not (found := await seen(stores)) and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)  # stores tell nobody
            return found

        assert self.ask(look), f"not within {WITHIN_S:.0f} s: {what}"

    def until_read(self) -> None:
        """Every change of the bank is recorded as seen."""
        changes = self.shown()

        async def read(stores: Stores) -> bool:
            seen: set[str] = set()
            for name in self.entities.entities:
                seen |= await seen_ids(stores, self.entities, name)
            return changes.keys() <= seen

        self.until("all changes read", read)

    def until_kept(self, event_ids: Set[str]) -> None:
        """All of them in raw, or parked."""
        deadline_s = time.monotonic() + WITHIN_S
        while (left := event_ids - self.raw().keys() - self.parked().keys()) and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)
        assert not left

    def hour(self, seed: int, seconds: float = 1) -> None:
        """The bank's clients come and go: among their changes are five that no schema accepts, at least."""
        self.write(seconds, RATE, seed=seed)
        self.wait_for_writers(60)

    def complete(self, *options: str) -> list[dict[str, Any]]:
        """What the audit, which is complete, says of each entity."""
        code, document = self.audit(*(options or ("--table", "skip")))
        assert code == 0, json.dumps(document, indent=1)
        return entities_of(document)

    def repair(self, finding: Mapping[str, Any]) -> None:
        """As it is printed."""
        words = shlex.split(finding["repair"].replace("WHY", "drill"))
        code, said, errors = self.tidemark(*words[1:])
        assert code == 0, said + errors


def entities_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["entities"]
    return found


def kinds(document: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        one["entity"]: [finding["kind"] for finding in one["findings"]]
        for one in entities_of(document)
        if one["findings"]
    }


@pytest.fixture(scope="module")
def drill(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """Up, with an hour of changes behind it. Its invalid events stay parked."""
    folder = tmp_path_factory.mktemp("restore")
    own = Drill(stack, folder, stale_after_s=3600)
    own.settings["TIDEMARK_KAFKA_BOOTSTRAP"] = stack.add_broker(f"{own.name}-kafka-1")
    stack.start(f"{own.name}-kafka-1")
    server = own.settings["TIDEMARK_POSTGRES_DSN"].rpartition("/")[0]
    own.settings["TIDEMARK_POSTGRES_DSN"] = f"{server}/tidemark_{own.name}"
    asyncio.run(execute(server, f"CREATE DATABASE tidemark_{own.name}"))
    try:
        own.start("bank", "receiver")
        own.bootstrap()
        own.start(*SERVICES)
        own.hour(seed=1)
        own.until_read()
        yield own
    finally:
        own.stop("writers", *reversed(SERVICES), "receiver", "bank", "kafka-1", "kafka-2")
        asyncio.run(own.drop_bank())
        asyncio.run(execute(server, f"DROP DATABASE tidemark_{own.name} WITH (FORCE)"))


async def execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(f"{server}/postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def dump(drill: Drill, file: Path) -> None:
    """As an operator takes it, while all services run."""
    command = [str(drill.stack._installed.postgres_bin / "pg_dump"), "-Fc", "-f", str(file)]
    subprocess.run([*command, drill.settings["TIDEMARK_POSTGRES_DSN"]], check=True, timeout=60)


def restore(drill: Drill, file: Path) -> None:
    command = [str(drill.stack._installed.postgres_bin / "pg_restore"), "--clean", "--if-exists", "-d"]
    subprocess.run([*command, drill.settings["TIDEMARK_POSTGRES_DSN"], str(file)], check=True, timeout=60)


@pytest.mark.timeout(300)
def test_postgres_an_hour_old_reads_that_hour_again_under_the_same_event_ids(drill: Drill, tmp_path: Path) -> None:
    dump(drill, tmp_path / "backup")
    drill.hour(seed=2)
    drill.until_read()
    drill.complete()
    before, parked = drill.raw(), drill.parked()

    drill.stop("poller")
    restore(drill, tmp_path / "backup")
    restored = drill.complete()  # nothing is missing of what the restored Postgres has seen
    drill.start("poller")
    drill.until_read()
    after = drill.complete()

    now = drill.raw()
    assert now.keys() == before.keys()
    assert drill.parked() == parked
    again = [stamps for event_id, stamps in now.items() if len(stamps) > len(before[event_id])]
    assert len(again) > 100, "the hour is read again"
    newest = max(stamp for stamps in before.values() for stamp in stamps)
    assert all(stamp > newest for stamps in again for stamp in stamps[1:]), "the clock of first sight went back"
    assert sum(one["counts"]["seen"] for one in restored) < sum(one["counts"]["seen"] for one in after)
    assert sum(one["counts"]["repeated"] for one in after) == len(again)


@pytest.mark.full("what the source still shows is read again at every run; here it does not show all of it")
@pytest.mark.timeout(300)
def test_what_the_source_no_longer_shows_of_that_hour_is_in_raw_and_named_as_unrecorded(
    drill: Drill, tmp_path: Path
) -> None:
    dump(drill, tmp_path / "backup")
    known = drill.shown().keys()
    drill.hour(seed=8)
    drill.until_read()
    drill.complete()
    victim = min(drill.shown().keys() & drill.raw().keys() - known)

    drill.stop("poller")
    row = drill.ask(lambda stores: cut_out(stores, drill, victim))
    restore(drill, tmp_path / "backup")
    drill.start("poller")
    drill.hour(seed=9)
    drill.until_read()
    code, document = drill.audit()

    assert code == 1
    [finding] = [finding for one in entities_of(document) for finding in one["findings"]]
    assert (finding["kind"], finding["count"]) == ("unrecorded", 1)
    assert finding["names"][0].startswith(victim)
    drill.ask(lambda stores: stores.bank.execute("INSERT INTO change_outbox VALUES ($1, $2, $3, $4)", *row))
    drill.repair(finding)
    drill.until_read()
    drill.complete()


async def cut_out(stores: Stores, drill: Drill, event_id: str) -> tuple[Any, ...]:
    """The change's row, which the bank has no longer."""
    for entity in drill.entities.entities.values():
        changes, _ = await _truth(stores.bank, entity)
        for change in changes:
            if event_id in change.event_ids and change.number is not None:
                statement = "DELETE FROM change_outbox WHERE id = $1 RETURNING *"
                return tuple(await stores.bank.fetchrow(statement, int(change.number)))
    raise AssertionError(f"{event_id} is no change of the bank")


@pytest.mark.timeout(300)
def test_dynamodb_an_hour_old_names_what_was_parked_since_and_the_cursor_set_back_parks_it_again(drill: Drill) -> None:
    backup = asyncio.run(items(drill))
    was = drill.parked().keys()
    add_field(Path(drill.settings["TIDEMARK_ENTITIES_DIR"]), "colour")
    drill.bootstrap()
    drill.hour(seed=3)
    drill.until_read()

    async def woken(stores: Stores) -> bool:
        left = {item.event_id for item in await stores.parked.scan_ids()}
        return bool(was - left)

    drill.until("what the new schema version accepts is re-driven", woken)
    drill.stop("poller", "retrier", "notifier")
    drill.complete()
    there = drill.parked()
    redriven, gone = was - there.keys(), there.keys() - was

    asyncio.run(put_back(drill, backup))
    code, document = drill.audit()

    assert code == 1
    assert redriven
    assert gone
    lost = {one["entity"]: one["findings"][0] for one in entities_of(document) if one["findings"]}
    assert {finding["kind"] for finding in lost.values()} == {"lost"}
    assert sum(finding["count"] for finding in lost.values()) == len(gone)
    assert {name.split()[0] for finding in lost.values() for name in finding["names"]} == gone
    assert sum(one["counts"]["twice"] for one in entities_of(document)) == len(redriven)

    for finding in lost.values():
        drill.repair(finding)
    drill.start("poller", "retrier", "notifier")
    drill.until("what came back is re-driven once more", woken)
    drill.until_kept(gone)
    drill.complete()


async def items(drill: Drill) -> list[dict[str, Any]]:
    async with AsyncExitStack() as resources:
        client = await open_client("dynamodb", resources)
        pages = client.get_paginator("scan").paginate(TableName=table_of(drill), ConsistentRead=True)
        return [item async for page in pages for item in page["Items"]]


async def put_back(drill: Drill, backup: list[dict[str, Any]]) -> None:
    """The table as it was: what came since is gone, what has gone since is back."""
    async with AsyncExitStack() as resources:
        client = await open_client("dynamodb", resources)
        for item in await items(drill):
            await client.delete_item(TableName=table_of(drill), Key={"pk": item["pk"], "sk": item["sk"]})
        for item in backup:
            await client.put_item(TableName=table_of(drill), Item=item)


def table_of(drill: Drill) -> str:
    return load_config(StoreSettings, drill.settings).parked.within(drill.entities.namespace).table


@pytest.mark.timeout(300)
def test_kafka_made_anew_is_refused_until_the_next_generation_is_opened_and_names_what_only_it_had(
    drill: Drill,
) -> None:
    drill.stop("sink")
    before = drill.raw()
    drill.hour(seed=4)
    drill.until_read()
    only_in_kafka = drill.shown().keys() - before.keys() - drill.parked().keys()
    assert only_in_kafka
    code, said, _ = drill.tidemark("raw", "open", "account_events", "--why", "drill")
    assert (code, "its log is whole" in said) == (1, True), "nothing has happened yet that a generation would be for"

    drill.stop("poller", "retrier", "kafka-1")
    drill.settings["TIDEMARK_KAFKA_BOOTSTRAP"] = drill.stack.add_broker(f"{drill.name}-kafka-2")
    drill.stack.start(f"{drill.name}-kafka-2")
    drill.bootstrap()
    code, document = drill.audit("--wait", "1s")

    assert code == 1
    for one in entities_of(document):
        assert [finding["kind"] for finding in one["findings"]] == ["generation", "lost"]
        drill.repair({"repair": one["findings"][0]["repair"].partition(": ")[2].partition(";")[0]})

    drill.start("sink")
    code, document = drill.audit()
    assert code == 1
    lost = {one["entity"]: one["findings"] for one in entities_of(document)}
    assert {finding["kind"] for found in lost.values() for finding in found} == {"lost"}
    assert sum(finding["count"] for found in lost.values() for finding in found) == len(only_in_kafka)
    for [finding] in lost.values():
        drill.repair(finding)

    drill.start("poller", "retrier")
    drill.until_kept(only_in_kafka)
    drill.complete()


@pytest.mark.full("a topic made anew is refused by its id at every run; this one by the record that the ledger names")
@pytest.mark.timeout(300)
def test_kafka_an_hour_old_and_written_on_is_refused_too_and_names_what_the_cut_took(
    drill: Drill, tmp_path: Path
) -> None:
    """The same topic ids, and offsets beyond the ledger's end again: only the last record tells."""
    drill.start("sink", "poller", "retrier", "notifier")
    broker = next(name for name in ("kafka-2", "kafka-1") if drill.stack.is_running(f"{drill.name}-{name}"))
    folder = drill.stack._own.logs.parent / f"{drill.name}-{broker}"
    drill.stop(broker)
    shutil.copytree(folder, tmp_path / "backup")
    drill.stack.start(folder.name)
    drill.hour(seed=5)
    drill.until_read()
    drill.complete()

    drill.stop("sink", "poller", "retrier", broker)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    drill.stack.start(folder.name)
    drill.hour(seed=6, seconds=4)
    drill.start("poller", "retrier", "sink")
    drill.until_read()
    code, document = drill.audit("--wait", "5s")

    assert code == 1
    assert {kind for found in kinds(document).values() for kind in found} == {"raw_behind", "lost"}
    assert "is not the one that the ledger ends with" in drill.stack.log_tail(f"{drill.name}-sink", 50)
    for name in drill.entities.entities:
        code, said, errors = drill.tidemark("raw", "open", name, "--why", "drill")
        assert code == 0, said + errors
    drill.stop("sink")
    drill.start("sink")
    drill.complete()


@pytest.mark.timeout(600)
def test_a_lake_that_is_gone_is_built_again_from_raw_alone(drill: Drill) -> None:
    """Both generations, what was published twice, and both versions of the schema."""
    install(spark=True)
    drill.stop("poller", "retrier", "notifier", "sink")
    code, document = drill.audit("--table", "require", "--wait", "1s")
    assert code == 1
    assert {kind for found in kinds(document).values() for kind in found} == {"table_behind"}

    environment = {"TIDEMARK_SPARK_MASTER": "local[2]", "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"}
    command = (str(drill.stack.spark_python), "-m", "services.delta_loader", "batch")
    name = f"{drill.name}-batch"
    drill.stack.add(Process(name, command, env={**drill.settings, **environment}, ends_itself=True))
    drill.stack.start(name)
    assert drill.stack.wait(name, 400) == 0, drill.stack.log_tail(name)

    assert all(one["counts"]["table_rows"] == one["counts"]["keys"] for one in drill.complete("--table", "require"))
