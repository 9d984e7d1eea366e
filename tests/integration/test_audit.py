"""``tidemark audit`` on real stores: silent while all is well and busy, and exact about what is taken away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.audit_round import Options, Round
from tests.fakes.audited_world import T0_US, AuditedWorld, Lake, order_of, refused, stamp

EVENTS = [f"e{number}" for number in range(18)]
ROWS = ["r0", "r1"]
Audit = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedWorld]:
    made = AuditedWorld(tmp_path_factory.mktemp("audit"), EVENTS, ROWS, lake="s3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environ.items():
            patch.setenv(name, value)
        assert main(["bootstrap"]) == 0
        made.do(Lake.make_lake)
        made.do(Lake.take_schema_id)
        yield made


@pytest.fixture
def audit(world: AuditedWorld, capsys: pytest.CaptureFixture[str]) -> Audit:
    def run(*arguments: str, wait: str = "3s") -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["audit", *arguments, "--wait", wait, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def kinds(document: Any) -> list[str]:
    return [finding["kind"] for entity in document["entities"] for finding in entity["findings"]]


def changes(count: int, first: int = 0) -> list[tuple[str, int, object]]:
    """Every seventh is refused by the schema."""
    return [(f"k{n % 5}", n, "much" if n % 7 == 6 else n) for n in range(first, first + count)]


async def filled(lake: Lake, entity: str) -> None:
    await lake.show(entity, changes(20))
    await lake.show(entity, changes(20, 20))
    await lake.sink(entity)
    await lake.release(entity)


def test_all_is_well(world: AuditedWorld, audit: Audit) -> None:
    world.do(lambda lake: filled(lake, "e0"))

    code, document = audit("e0")

    assert (code, kinds(document)) == (0, [])
    counts = document["entities"][0]["counts"]
    assert (counts["seen"], counts["raw"], counts["parked"], counts["missing"]) == (40, 35, 5, 0)
    assert document["complete"] is True


def named(document: Any) -> Any:
    (entity,) = document["entities"]
    return entity["findings"]


def test_a_raw_object_that_is_deleted_is_named_and_no_event_is_called_lost_while_kafka_has_it(
    world: AuditedWorld, audit: Audit
) -> None:
    async def delete_one(lake: Lake) -> tuple[str, int, int]:
        await filled(lake, "e1")
        ledger = await lake.ledger()
        chain = (await ledger.partitions(lake.edges.entities.entities["e1"].topic, 1))[0]
        second = [link async for link in ledger.objects(chain)][1]
        await lake.delete_object(ledger.keys.link(chain, second.start))
        return str(chain), second.start, second.end

    chain, start, end = world.do(delete_one)

    code, document = audit("e1")

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["where"], finding["count"]) == ("raw_hole", chain, end - start + 1)
    assert f"offsets {start} to {end} of {chain} are in no object" in finding["text"]
    counts = document["entities"][0]["counts"]
    assert (counts["missing"], counts["in_kafka"]) == (0, end - start + 1)
    verdicts = {part["chain"]: part["complete"] for part in document["entities"][0]["partitions"]}
    assert verdicts.pop(chain) is False
    assert all(verdicts.values())

    assert finding["repair"].startswith("tidemark raw mend e1  ")
    assert main(["raw", "mend", "e1", "--dry-run"]) == 1
    assert main(["raw", "mend", "e1"]) == 0
    code, document = audit("e1")
    assert (code, document["entities"][0]["counts"]["in_kafka"], document["entities"][0]["counts"]["raw"]) == (0, 0, 35)


def test_a_parked_item_that_is_removed_is_named_with_the_command_that_reads_it_again(
    world: AuditedWorld, audit: Audit
) -> None:
    async def remove_one(lake: Lake) -> tuple[str, int]:
        await filled(lake, "e2")
        client = (await lake.edges.census())._table._client
        async for page in (await lake.edges.census()).scan():
            row = next(one.row for one in page if one.row.event.entity == "e2")
            table = lake.edges.parked_settings.table
            await client.delete_item(TableName=table, Key={"pk": {"S": row.pk}, "sk": {"S": row.sk}})
            return row.event.event_id, row.event.updated_us
        raise AssertionError("something is parked")

    event_id, updated_us = world.do(remove_one)

    code, document = audit("e2")

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["count"]) == ("lost", 1)
    assert finding["names"][0].startswith(event_id)
    assert finding["repair"].startswith(f"tidemark cursor set e2 --to {stamp(updated_us)}")


def test_a_seen_page_with_one_altered_entry_is_named_and_the_event_is_not_called_lost(
    world: AuditedWorld, audit: Audit
) -> None:
    async def alter_one(lake: Lake) -> int:
        await filled(lake, "e3")
        (first, *_) = await lake.sql("SELECT seq, entries FROM {schema}.seen_page WHERE entity = 'e3' ORDER BY seq")
        entries = bytearray(first["entries"])
        entries[3 * 44 + 12] ^= 1  # the fourth entry's identity
        await lake.sql(
            "UPDATE {schema}.seen_page SET entries = $1 WHERE entity = 'e3' AND seq = $2", bytes(entries), first["seq"]
        )
        return int(first["seq"])

    seq = world.do(alter_one)

    code, document = audit("e3")

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["where"], finding["count"]) == ("seen_page", f"seen_page {seq} in Postgres", 1)


@pytest.mark.parametrize(("entity", "how"), [("e4", "garbage"), ("e5", "cut")])
def test_a_seen_page_that_was_overwritten_or_cut_is_named_alone(
    world: AuditedWorld, audit: Audit, entity: str, how: str
) -> None:
    async def overwrite(lake: Lake) -> int:
        await filled(lake, entity)
        (first, *_) = await lake.sql(
            "SELECT seq, entries FROM {schema}.seen_page WHERE entity = $1 ORDER BY seq", entity
        )
        entries = first["entries"]
        entries = bytes(byte ^ 0x5A for byte in entries) if how == "garbage" else entries[:-44]
        await lake.sql(
            "UPDATE {schema}.seen_page SET entries = $1 WHERE entity = $2 AND seq = $3", entries, entity, first["seq"]
        )
        return int(first["seq"])

    seq = world.do(overwrite)

    code, document = audit(entity)

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["where"]) == ("seen_page", f"seen_page {seq} in Postgres")


def test_a_seen_page_that_is_gone_leaves_published_events_that_nobody_recorded(
    world: AuditedWorld, audit: Audit
) -> None:
    async def delete_page(lake: Lake) -> None:
        await filled(lake, "e6")
        await lake.sql("DELETE FROM {schema}.seen_page WHERE entity = 'e6' AND seq = 1")

    world.do(delete_page)

    code, document = audit("e6")

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["count"]) == ("unrecorded", 20)


def test_an_object_whose_bytes_were_altered_is_named_by_its_offsets(world: AuditedWorld, audit: Audit) -> None:
    async def alter(lake: Lake) -> str:
        await filled(lake, "e7")
        ledger, store = await lake.ledger(), await lake.edges.raw_store()
        chain = (await ledger.partitions(lake.edges.entities.entities["e7"].topic, 1))[0]
        key = ledger.keys.link(chain, 0)
        stored = await store.read(key)
        assert stored is not None
        await lake.put_object(key, stored.body[:-1] + bytes([stored.body[-1] ^ 1]), stored.metadata)
        return str(chain)

    chain = world.do(alter)

    code, document = audit("e7")

    assert code == 1
    (finding,) = named(document)
    assert (finding["kind"], finding["where"]) == ("raw_damaged", chain)
    assert "differs from its sha256" in finding["text"]


def test_what_the_sink_has_not_written_yet_is_waited_for_and_then_named(world: AuditedWorld, audit: Audit) -> None:
    async def unsunk(lake: Lake) -> None:
        await filled(lake, "e8")
        await lake.show("e8", [("k1", 100, 1)])
        await lake.release("e8")

    world.do(unsunk)

    code, document = audit("e8", wait="1s")
    (finding,) = named(document)
    assert (code, finding["kind"], finding["count"]) == (1, "raw_behind", 1)
    assert "s3-sink" in finding["repair"]

    async def sunk(lake: Lake) -> None:
        await lake.sink("e8")

    world.do(sunk)
    assert audit("e8")[0] == 0


async def loaded(lake: Lake, entity: str) -> None:
    await filled(lake, entity)
    await lake.load(entity)


def test_a_table_that_holds_every_keys_winner_is_complete(world: AuditedWorld, audit: Audit) -> None:
    world.do(lambda lake: loaded(lake, "e10"))

    code, document = audit("e10", "--table", "require")

    (entity,) = document["entities"]
    assert (code, entity["findings"]) == (0, [])
    assert (entity["counts"]["table_rows"], entity["counts"]["keys"], entity["table_version"]) == (5, 5, 0)
    assert all(part["position"] == part["kafka_end"] for part in entity["partitions"])


def test_a_table_that_must_be_there_and_is_not_is_a_finding(world: AuditedWorld, audit: Audit) -> None:
    world.do(lambda lake: filled(lake, "e11"))

    assert audit("e11")[0] == 0
    code, document = audit("e11", "--table", "require")
    assert (code, kinds(document)) == (1, ["table_behind"])


def test_a_table_that_lags_is_waited_for_and_then_named_with_its_offsets(world: AuditedWorld, audit: Audit) -> None:
    async def lagging(lake: Lake) -> None:
        await loaded(lake, "e12")
        await lake.show("e12", [("k1", 900, 1)])
        await lake.sink("e12")
        await lake.release("e12")

    world.do(lagging)

    code, document = audit("e12", wait="1s")
    (finding,) = named(document)
    assert (code, finding["kind"], finding["count"]) == (1, "table_behind", 1)
    assert finding["repair"] == "python -m services.delta_loader batch e12"


def test_a_key_that_holds_a_loser_and_one_that_is_missing_are_named(world: AuditedWorld, audit: Audit) -> None:
    """The table is written as if a MERGE had kept the wrong row of k1, and as if it had dropped k2."""

    async def wrong(lake: Lake) -> tuple[str, str]:
        await filled(lake, "e13")
        rows = await lake.rows("e13")
        of_k1 = sorted((row for row in rows if row["id"] == "k1"), key=order_of)
        await lake.load_rows("e13", [row for row in rows if row is not of_k1[-1]], skip_keys=["k2"])
        return of_k1[-2]["_event_id"], of_k1[-1]["_event_id"]

    loser, winner = world.do(wrong)

    code, document = audit("e13")

    stale, lacks = named(document)
    assert (code, stale["kind"], stale["count"], lacks["kind"], lacks["count"]) == (
        1,
        "table_stale",
        1,
        "table_lacks",
        1,
    )
    assert f"key 'k1': holds {loser}, but {winner} must win" in stale["names"][0]
    assert "lower seq: " in stale["names"][0]
    assert lacks["names"][0].startswith("key 'k2': ")


def test_a_hole_in_raw_is_named_alone_though_the_table_stands_before_it(world: AuditedWorld, audit: Audit) -> None:
    async def holed(lake: Lake) -> str:
        await filled(lake, "e14")
        ledger = await lake.ledger()
        chain = (await ledger.partitions(lake.edges.entities.entities["e14"].topic, 1))[0]
        second = [link async for link in ledger.objects(chain)][1]
        await lake.delete_object(ledger.keys.link(chain, second.start))
        others = dict.fromkeys(await ledger.partitions(chain.topic, 1), 10**6)
        await lake.load("e14", through=others | {chain: second.start})
        return str(chain)

    chain = world.do(holed)

    code, document = audit("e14", wait="1s")

    (finding,) = named(document)
    assert (code, finding["kind"], finding["where"]) == (1, "raw_hole", chain)


def test_an_object_that_went_after_it_was_merged_is_named_and_the_rows_it_gave_are_not_faults(
    world: AuditedWorld, audit: Audit
) -> None:
    async def holed(lake: Lake) -> str:
        await loaded(lake, "e15")
        ledger = await lake.ledger()
        chain = (await ledger.partitions(lake.edges.entities.entities["e15"].topic, 1))[0]
        newest = (await ledger.tail(chain)).newest
        assert newest is not None
        await lake.delete_object(ledger.keys.link(chain, newest.start))
        return str(chain)

    chain = world.do(holed)

    code, document = audit("e15", wait="1s")

    (finding,) = named(document)
    assert (code, finding["kind"], finding["where"]) == (1, "raw_hole", chain)
    assert document["entities"][0]["counts"]["unprovable"] > 0


@pytest.mark.parametrize("entity", ["e9", "r0"])
def test_no_false_alarm_while_pollers_retriers_and_the_sink_are_busy(world: AuditedWorld, entity: str) -> None:
    """Pages are shown, parked events are published and leave the table, objects are cut, all while audits run."""

    async def busy(lake: Lake) -> list[tuple[bool, list[str]]]:
        await lake.show(entity, changes(20))
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(lake, entity, stop))
        outcomes = []
        try:
            for _ in range(5):
                with TemporaryDirectory() as folder:
                    round_ = Round(lake.edges, Options(wait_s=20), Path(folder), quiet=True)
                    (report,) = await round_.run([lake.edges.entities.entities[entity]])
                outcomes.append((report.complete, [finding.text for finding in report.findings]))
                assert report.counts.seen > 0
        finally:
            stop.set()
            await writing
        return outcomes

    assert world.do(busy) == [(True, [])] * 5


async def _write(lake: Lake, entity: str, stop: asyncio.Event) -> None:
    parked: list[tuple[Any, Any]] = []
    second = 100
    while not stop.is_set():
        events = await lake.seen(entity, [(f"k{n % 7}", second * 10 + n, second) for n in range(10)])
        second += 1
        await lake.publish(entity, events[:7])
        parked += [(event, await lake.park(entity, event, refused())) for event in events[7:]]
        await lake.record(entity, events)
        await lake.sink(entity, rows_max=5)
        while len(parked) > 6:
            event, one = parked.pop(0)
            await lake.publish(entity, [event])
            await lake.unpark(one)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.05)


class Source(ThreadingHTTPServer):
    """Shows ``events``, whatever it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.events: list[bytes] = []
        self.asked = 0

    def __enter__(self) -> "Source":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Source)
        self.server.asked += 1
        body = b"[" + b",".join(self.server.events) + b"]"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Silent."""


@pytest.mark.parametrize("entity", ["e16", "r1"])
def test_the_source_shows_a_change_that_nobody_saw(world: AuditedWorld, audit: Audit, entity: str) -> None:
    with Source() as source:
        world.url = f"http://127.0.0.1:{source.server_port}/cdc"
        world.write_folder()

        async def shown(lake: Lake) -> None:
            first = await lake.show(entity, [(f"k{number}", number, number) for number in range(20)])
            await lake.show(entity, [("late", 5000, 1)])  # which closes the window before
            await lake.sink(entity)
            await lake.release(entity)
            source.events += [event.sighting.raw for event in first]

        world.do(shown)
        code, document = audit(entity, "--source", "--window", "2h")
        assert (code, kinds(document)) == (0, [])
        assert any("the source shows 20 changes" in note for note in document["entities"][0]["notes"])

        hidden = {"id": "hidden", "at": stamp(T0_US + 7_000_000), "amount": 1}
        source.events.insert(8, json.dumps(hidden).encode())
        code, document = audit(entity, "--source", "--window", "2h")

        (finding,) = named(document)
        assert (code, finding["kind"], finding["count"]) == (1, "source_unseen", 1)
        assert finding["names"][0].startswith("key 'hidden', dated ")
        assert finding["repair"].startswith(f"tidemark cursor set {entity} --to {hidden['at']}")
        assert source.asked > 0


def test_a_watch_serves_its_verdicts_and_stops_on_sigterm(world: AuditedWorld) -> None:
    world.do(lambda lake: filled(lake, "e17"))
    command = [sys.executable, "-m", "services.cli", "audit", "e17", "--watch", "--period", "1s", "--wait", "3s"]
    environ = {**os.environ, "TIDEMARK_LOG_FORMAT": "json"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as watching:
        try:
            assert watching.stdout is not None
            port, rounds = 0, 0
            for line in watching.stdout:
                entry = json.loads(line)
                port = entry.get("port", port)
                rounds += entry["event"] == "audit_done"
                if rounds == 2:
                    break
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
        finally:
            watching.send_signal(signal.SIGTERM)
        rest = watching.stdout.read().decode()

    assert 'tidemark_audit_complete{entity="e17"} 1.0' in text
    assert 'tidemark_audit_events{entity="e17",state="seen"} 40.0' in text
    assert 'tidemark_audit_findings{entity="e17",why="lost"} 0.0' in text
    assert watching.returncode == 0, rest
