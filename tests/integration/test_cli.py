"""``tidemark`` against the real servers: what it makes, what it refuses, what it shows."""

import asyncio
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.buckets import PROBE, Buckets
from shared.aws import open_client
from shared.events.model import Reason
from shared.parked.model import ParkedEvent
from shared.parked.store import ParkedSettings, ParkedStore
from shared.raw.generation import TopicLife, settle
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Ledger
from shared.raw.objects import StoreUnavailable

ID, AT, NOTE = '{"name": "id", "type": "long"}', '{"name": "updated_at", "type": "string"}', '{"name": "note", %s}'
RECORD = '{"type": "record", "name": "%s", "fields": [%s]}'
FOLDER = """
entities:
  accounts: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger, partitions: 2}
  payments: {source: bank, key: id, updated_at: updated_at, schema: payments.avsc, owner: ledger, partitions: 1,
             start_at: now}
sources: {bank: {url: "http://127.0.0.1:1/cdc"}}
owners: {ledger: {contact: "#ledger"}}
"""
JsonRun = Callable[..., tuple[int, Any]]


class Place:
    """A namespace, buckets and an entity folder that no other test uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = f"cli{uuid.uuid4().hex[:10]}"
        self.raw_bucket = f"{self.namespace}-raw"
        self.schema("accounts", ID, AT)
        self.schema("payments", ID, AT)
        (folder / "bank.yaml").write_text(FOLDER)

    def schema(self, name: str, *fields: str) -> None:
        (self.folder / f"{name}.avsc").write_text(RECORD % (name, ", ".join(fields)))


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    own = Place(tmp_path)
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(own.folder))
    monkeypatch.setenv("TIDEMARK_NAMESPACE", own.namespace)
    monkeypatch.setenv("TIDEMARK_RAW_BUCKET", own.raw_bucket)
    monkeypatch.setenv("TIDEMARK_LAKE_URI", f"s3a://{own.raw_bucket}-lake/tables")
    monkeypatch.setenv("TIDEMARK_ARCHIVE_BUCKET", f"{own.namespace}-archive")
    monkeypatch.setenv("TIDEMARK_PARKED_BUCKET", f"{own.namespace}-parked")
    return own


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> JsonRun:
    def run_json(*command: str) -> tuple[int, Any]:
        code = main([*command, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run_json


def verdicts(document: Any) -> dict[tuple[str, str], str]:
    return {(thing["thing"], thing["name"]): thing["verdict"] for thing in document["things"]}


def note_of(document: Any, thing: str, name: str) -> str:
    return str(next(t["note"] for t in document["things"] if (t["thing"], t["name"]) == (thing, name)))


def test_a_plan_writes_nothing_bootstrap_makes_everything_and_again_finds_it_made(place: Place, run: JsonRun) -> None:
    code, plan = run("bootstrap", "--plan")
    assert code == 1
    planned = verdicts(plan)
    assert planned.pop(("compatibility", "(global)")) in ("ok", "would create")
    assert set(planned.values()) == {"would create"}
    assert len(planned) == 12

    assert verdicts(run("bootstrap", "--plan")[1]).items() >= planned.items()  # so the first one wrote nothing

    code, made = run("bootstrap")
    assert code == 0
    assert {key: verdict for key, verdict in verdicts(made).items() if key in planned} == dict.fromkeys(
        planned, "created"
    )

    for again in (("bootstrap",), ("bootstrap", "--plan")):
        code, found = run(*again)
        assert (code, set(verdicts(found).values())) == (0, {"ok"})


def test_a_compacted_topic_is_refused_and_the_rest_is_made(place: Place, run: JsonRun, stack: Stack) -> None:
    topic = f"{place.namespace}.cdc.accounts"

    async def compacted() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.env["TIDEMARK_KAFKA_BOOTSTRAP"])
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, 2, 1, topic_configs={"cleanup.policy": "compact"})])
        finally:
            await admin.close()

    asyncio.run(compacted())
    code, document = run("bootstrap")

    assert code == 1
    assert verdicts(document)["topic", topic] == "refused"
    assert "compaction drops changes" in note_of(document, "topic", topic)
    assert verdicts(document)["topic", f"{place.namespace}.cdc.payments"] == "created"
    assert verdicts(document)["bucket", place.raw_bucket] == "created"
    assert verdicts(document)["bucket", f"{place.raw_bucket}-lake"] == "created"


def test_a_new_version_is_registered_when_it_is_compatible_and_refused_when_not(place: Place, run: JsonRun) -> None:
    subject = f"{place.namespace}.cdc.accounts-value"
    assert run("bootstrap")[0] == 0

    place.schema("accounts", ID, AT, NOTE % '"type": "string", "default": ""')
    code, document = run("bootstrap")
    assert (code, verdicts(document)["subject", subject]) == (0, "created")
    assert note_of(document, "subject", subject) == "version 2"

    place.schema("accounts", ID, AT, NOTE % '"type": "string", "default": ""', '{"name": "more", "type": "string"}')
    code, document = run("bootstrap")
    assert (code, verdicts(document)["subject", subject]) == (1, "refused")
    assert "incompatible" in note_of(document, "subject", subject)


def test_columns_that_collide_across_versions_are_refused(place: Place, run: JsonRun) -> None:
    subject = f"{place.namespace}.cdc.accounts-value"
    nested = '{"name": "a", "type": ["null", {"type": "record", "name": "r", "fields": [{"name": "b", "type": "int"}]}]'
    place.schema("accounts", ID, AT, nested + ', "default": null}')
    assert run("bootstrap")[0] == 0

    place.schema("accounts", ID, AT, '{"name": "A__B", "type": ["null", "int"], "default": null}')
    code, document = run("bootstrap")

    assert (code, verdicts(document)["subject", subject]) == (1, "refused")
    assert "a__b" in note_of(document, "subject", subject).lower()


class _Overwriting(BaseHTTPRequestHandler):
    """A store that takes ``If-None-Match`` for decoration, as some that call themselves S3-compatible do."""

    protocol_version = "HTTP/1.1"  # that of servers which answer "Expect: 100-continue", as the client sends it

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def overwriting_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Overwriting)
    serving = threading.Thread(target=server.serve_forever, name="overwriting-store")
    serving.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_store_that_overwrites_is_refused(place: Place, run: JsonRun, overwriting_store: None) -> None:
    code, document = run("bootstrap")

    assert code == 1
    assert verdicts(document)["bucket", place.raw_bucket] == "refused"
    assert "If-None-Match" in note_of(document, "bucket", place.raw_bucket)


def test_the_probe_leaves_one_object_however_often_it_runs(place: Place, stack: Stack) -> None:
    async def probe() -> list[str]:
        async with AsyncExitStack() as resources:
            client = await open_client("s3", resources)
            buckets = Buckets(client)
            await buckets.create(place.raw_bucket)
            await buckets.create(place.raw_bucket)
            assert await buckets.exists(place.raw_bucket)
            assert not await buckets.exists(f"{place.raw_bucket}-none")
            assert await buckets.refuses_second_put(place.raw_bucket, PROBE)
            assert await buckets.refuses_second_put(place.raw_bucket, PROBE)
            listed = await client.list_objects_v2(Bucket=place.raw_bucket)
            return [item["Key"] for item in listed["Contents"]]

    assert asyncio.run(probe()) == [PROBE]


def test_a_store_that_never_answers_a_put_ends_the_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.buckets.PUT_S_MAX", 0.2)

    async def probe() -> None:
        async with AsyncExitStack() as resources:
            await Buckets(await open_client("s3", resources)).refuses_second_put("any-bucket", PROBE)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and is never accepted
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match="no answer to a PUT"):
            asyncio.run(probe())


def test_a_lifecycle_rule_that_deletes_is_refused(place: Place, run: JsonRun) -> None:
    async def add_rule() -> None:
        async with AsyncExitStack() as resources:
            client = await open_client("s3", resources)
            await client.create_bucket(Bucket=place.raw_bucket)
            rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30}}
            await client.put_bucket_lifecycle_configuration(
                Bucket=place.raw_bucket, LifecycleConfiguration={"Rules": [rule]}
            )

    asyncio.run(add_rule())
    code, document = run("bootstrap")

    assert code == 1
    assert "lifecycle rule tidy deletes objects" in note_of(document, "bucket", place.raw_bucket)


def test_a_server_that_is_down_leaves_the_others_to_be_made(
    place: Place, run: JsonRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK_REGISTRY_URL", "http://127.0.0.1:1/apis/ccompat/v7")
    code, document = run("bootstrap")
    found = verdicts(document)

    assert code == 3
    assert found["compatibility", "(global)"] == "unreachable"
    assert found["subject", f"{place.namespace}.cdc.accounts-value"] == "unreachable"
    assert found["topic", f"{place.namespace}.cdc.accounts"] == "created"
    assert found["bucket", place.raw_bucket] == "created"


def test_an_entity_is_paused_with_a_reason_and_resumed(place: Place, run: JsonRun) -> None:
    assert run("bootstrap")[0] == 0
    assert run("entity", "pause", "accounts", "--reason", "bad rows")[1] == {"entity": "accounts", "changed": True}
    assert run("entity", "pause", "accounts", "--reason", "again")[1] == {"entity": "accounts", "changed": False}

    code, listed = run("entity", "list")
    assert code == 1
    states = {entity["entity"]: (entity["state"], entity["paused_reason"]) for entity in listed}
    assert states == {"accounts": ("paused", "bad rows"), "payments": ("no poller", None)}

    assert run("entity", "resume", "accounts")[0] == 0
    assert run("entity", "list")[0] == 0
    assert main(["entity", "pause", "nobody", "--reason", "x"]) == 2


def test_a_cursor_is_moved_with_a_reason_that_stays(place: Place, run: JsonRun) -> None:
    assert run("bootstrap")[0] == 0
    code, move = run("cursor", "set", "accounts", "--to", "2026-01-01T00:00:00Z", "--reason", "skip the old ones")
    assert (code, move["cursor_to"]) == (0, "2026-01-01T00:00:00.000000Z")

    code, shown = run("cursor", "show", "accounts")
    assert (code, shown["cursor"], shown["swept"]) == (0, "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z")
    assert [(move["why"], move["cursor_from"]) for move in shown["history"]] == [
        ("skip the old ones", "1970-01-01T00:00:00.000000Z")
    ]
    assert run("cursor", "show", "payments")[1]["cursor"] > "2026-01-01"  # start_at: now
    assert main(["cursor", "show", "nobody"]) == 2


def parked_event(entity: str, number: int, reason: Reason) -> ParkedEvent:
    return ParkedEvent(
        entity=entity,
        topic=f"cdc.{entity}",
        key=str(number),
        key_hash=number.to_bytes(16, "big"),
        updated_us=1_767_225_600_000_000 + number,
        event_id=f"{number:032x}",
        rank=number,
        tiebreak=0,
        reason=reason,
        path="/amount",
        detail="expected a long",
        raw=b'{"amount": "canary-%d"}' % number,
        owner="ledger",
        at_us=1_767_225_600_000_000 + number,
    )


def test_parked_events_are_listed_counted_and_shown(
    place: Place, run: JsonRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bootstrap")[0] == 0
    events = [parked_event("accounts", n, Reason.INVALID) for n in range(3)]
    events.append(parked_event("payments", 9, Reason.KAFKA_UNKNOWN))

    async def park() -> None:
        async with AsyncExitStack() as resources:
            settings = ParkedSettings(table=f"{place.namespace}_tidemark_parked", bucket=f"{place.namespace}-parked")
            await (await ParkedStore.open(settings, resources)).park(events)

    asyncio.run(park())

    assert run("parked", "counts")[1] == [
        {"entity": "accounts", "reason": "invalid", "events": 3},
        {"entity": "payments", "reason": "kafka_unknown", "events": 1},
    ]
    first = run("parked", "list", "--entity", "accounts", "--limit", "2")[1]
    rest = run("parked", "list", "--entity", "accounts", "--limit", "2", "--after", first["after"])[1]
    listed = [event["item_id"] for event in first["events"] + rest["events"]]
    assert listed == [event.event_id for event in events[:3]]
    assert len(run("parked", "list", "--reason", "kafka_unknown")[1]["events"]) == 1

    assert main(["parked", "show", events[1].event_id]) == 0
    sheet = capsys.readouterr().out
    assert "invalid at /amount: expected a long" in sheet
    assert "canary" not in sheet

    assert main(["parked", "show", events[1].event_id, "--raw"]) == 0
    assert '{"amount": "canary-1"}' in capsys.readouterr().out
    assert run("parked", "show", "f" * 32)[0] == 1
    assert main(["parked", "list", "--entity", "acounts"]) == 2


def test_status_counts_topic_and_ledger(place: Place, run: JsonRun, stack: Stack) -> None:
    assert run("bootstrap")[0] == 0
    topic = f"{place.namespace}.cdc.payments"

    async def produce_three_and_cover_two() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=stack.env["TIDEMARK_KAFKA_BOOTSTRAP"])
        await producer.start()
        try:
            for number in range(3):
                await producer.send_and_wait(topic, b"v", key=b"%d" % number)
        finally:
            await producer.stop()
        async with AsyncExitStack() as resources:
            store = Buckets(await open_client("s3", resources)).store(place.raw_bucket)
            keys = Keys(f"{place.namespace}/")
            generation = await settle(store, keys, topic, TopicLife("c", "t"), "test")
            await Ledger(store, keys).write_gap(Chain(topic, generation.number, 0), 0, 1, "genesis", None, "test")

    asyncio.run(produce_three_and_cover_two())
    code, document = run("status")
    found = {entity["entity"]: entity for entity in document["entities"]}

    assert (code, document["problems"]) == (0, [])
    assert (found["payments"]["topic_end"], found["payments"]["raw_next"], found["payments"]["lag"]) == (3, 2, 1)
    assert (found["accounts"]["topic_end"], found["accounts"]["raw_next"], found["accounts"]["lag"]) == (0, 0, 0)
    assert found["accounts"]["state"] == "no poller"


def test_status_shows_what_it_can_while_a_server_is_down(
    place: Place, run: JsonRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("bootstrap")[0] == 0
    monkeypatch.setenv("TIDEMARK_POSTGRES_DSN", "postgresql://u:canary@127.0.0.1:1/d")
    monkeypatch.setenv("TIDEMARK_POSTGRES_BUDGET_S", "0.2")
    code, document = run("status")

    assert code == 3
    assert [problem["edge"] for problem in document["problems"]] == ["postgres"]
    assert "canary" not in json.dumps(document)
    assert [entity["topic_end"] for entity in document["entities"]] == [0, 0]
    assert [entity["state"] for entity in document["entities"]] == ["?", "?"]
