"""``tidemark doctor`` against the real servers: green after bootstrap, and right about whatever is broken."""

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.buckets import PROBE
from shared.aws import open_client
from tests.fakes.dynamodb_proxy import Answer, DynamoProxy, Forward, Request
from tests.fakes.http_source import HttpSource, Reply
from tests.fakes.proxy import free_port

ID, AT, NOTE = (
    '{"name": "id", "type": "long"}',
    '{"name": "at", "type": "string"}',
    '{"name": "note", "type": "string"}',
)
SCHEMA = '{"type": "record", "name": "thing", "fields": [%s]}'
FOLDER = """
entities:
  accounts: {source: bank, key: id, updated_at: at, schema: thing.avsc, owner: ledger, partitions: 1, shows: events}
  payments: {source: bank, key: id, updated_at: at, schema: thing.avsc, owner: ledger, partitions: 1}
sources: {bank: {url: "%s"%s}}
owners: {ledger: {contact: "#ledger"}}
"""
ONE_ENTITY = """
entities:
  things: {source: bank, key: id, updated_at: at, schema: thing.avsc, owner: ledger, shows: %s}
sources: {bank: {url: "%s"}}
owners: {ledger: {contact: "#ledger"}}
"""
NOWHERE = "http://127.0.0.1:1/cdc"
Finding = dict[str, str]
Doctor = Callable[..., tuple[int, list[Finding]]]


class Ward:
    """A namespace with an entity folder and buckets of its own; the environment names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"doc{uuid.uuid4().hex[:10]}"
        self.buckets = {role: f"{self.name}-{role}" for role in ("raw", "parked", "archive", "lake")}
        self.env = {
            "TIDEMARK_ENTITIES_DIR": str(folder),
            "TIDEMARK_NAMESPACE": self.name,
            "TIDEMARK_RAW_BUCKET": self.buckets["raw"],
            "TIDEMARK_PARKED_BUCKET": self.buckets["parked"],
            "TIDEMARK_ARCHIVE_BUCKET": self.buckets["archive"],
            "TIDEMARK_LAKE_URI": f"s3a://{self.buckets['lake']}/tables",
            "TIDEMARK_POSTGRES_BUDGET_S": "1",
        }
        self.source()
        self.schema(ID, AT)

    def source(self, url: str = NOWHERE, more: str = "") -> None:
        (self.folder / "bank.yaml").write_text(FOLDER % (url, more))

    def schema(self, *fields: str) -> None:
        (self.folder / "thing.avsc").write_text(SCHEMA % ", ".join(fields))


@contextmanager
def bootstrapped(folder: Path) -> Iterator[Ward]:
    with pytest.MonkeyPatch.context() as patch:
        ward = Ward(folder)
        for name, value in ward.env.items():
            patch.setenv(name, value)
        assert main(["bootstrap"]) == 0
        yield ward


@pytest.fixture(scope="module")
def shared_ward(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """Sound, and left so: for what is broken by settings alone."""
    with bootstrapped(tmp_path_factory.mktemp("sound")) as ward:
        yield ward


@pytest.fixture
def ward(stack: Stack, tmp_path: Path) -> Iterator[Ward]:
    """One to break."""
    with bootstrapped(tmp_path) as own:
        yield own


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def run(*more: str) -> tuple[int, list[Finding]]:
        capsys.readouterr()
        code = main(["doctor", "--json", *more])
        document: Any = json.loads(capsys.readouterr().out)
        assert document["exit_code"] == code
        return code, document["findings"]

    return run


def bad(findings: list[Finding]) -> list[Finding]:
    return [found for found in findings if found["verdict"] not in ("ok", "note")]


def told(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    return {found["thing"]: (found["text"], found["remedy"]) for found in bad(findings)}


def test_after_bootstrap_all_is_well_and_no_probe_is_left(shared_ward: Ward, doctor: Doctor) -> None:
    code, findings = doctor()

    assert (code, bad(findings)) == (0, [])
    assert {found["check"] for found in findings if found["verdict"] == "ok"} == {
        *("configuration", "secrets", "postgres", "kafka", "registry", "dynamodb", "buckets", "clocks", "disk")
    }
    assert asyncio.run(_keys(*shared_ward.buckets.values())) <= {PROBE, f"{shared_ward.name}/{PROBE}"}


async def _keys(*buckets: str) -> set[str]:
    async with AsyncExitStack() as opened:
        s3 = await open_client("s3", opened)
        listed = [await s3.list_objects_v2(Bucket=bucket) for bucket in buckets]
        return {item["Key"] for page in listed for item in page.get("Contents", ())}


def test_what_is_missing_or_unfit_is_named_with_its_remedy_and_all_else_is_green(
    ward: Ward, doctor: Doctor, stack: Stack
) -> None:
    accounts, payments = (f"{ward.name}.cdc.{entity}" for entity in ("accounts", "payments"))

    async def break_things() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.env["TIDEMARK_KAFKA_BOOTSTRAP"])
        await admin.start()
        try:
            await admin.delete_topics([accounts, payments])
            compacted = NewTopic(payments, 1, 1, topic_configs={"cleanup.policy": "compact", "retention.ms": "1000"})
            for _attempt in range(100):  # the name is free a moment after the deletion
                answer = await admin.create_topics([compacted])
                if answer.topic_errors[0][1] == 0:
                    break
                await asyncio.sleep(0.1)
        finally:
            await admin.close()
        async with AsyncExitStack() as opened:
            s3 = await open_client("s3", opened)
            rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}}
            await s3.put_bucket_lifecycle_configuration(
                Bucket=ward.buckets["raw"], LifecycleConfiguration={"Rules": [rule]}
            )
            await s3.delete_bucket(Bucket=ward.buckets["parked"])
            dynamodb = await open_client("dynamodb", opened)
            await dynamodb.update_table(
                TableName=f"{ward.name}_tidemark_parked",
                GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": "grp"}}],
            )

    asyncio.run(break_things())
    ward.schema(ID, AT, NOTE.replace("}", ', "default": ""}'))
    code, findings = doctor()
    found = told(findings)

    assert code == 1
    assert "does not exist" in found[accounts][0]
    assert "tidemark bootstrap" in found[accounts][1]
    of_payments = [one for one in bad(findings) if one["thing"] == payments]
    assert ["compaction" in one["text"] for one in of_payments] == [True, False]
    assert "--add-config cleanup.policy=delete" in of_payments[0]["remedy"]
    assert "--add-config retention.ms=" in of_payments[1]["remedy"]
    for entity in (accounts, payments):
        assert "not registered" in found[f"{entity}-value"][0]
        assert found[f"{entity}-value"][1] == "tidemark bootstrap"
    assert "lifecycle rule tidy" in found[f"raw {ward.buckets['raw']}"][0]
    assert "TIDEMARK_PARKED_BUCKET" in found[f"parked {ward.buckets['parked']}"][1]
    assert "index 'grp'" in found[f"table {ward.name}_tidemark_parked"][0]
    assert {one["check"] for one in bad(findings)} == {"kafka", "registry", "dynamodb", "buckets"}
    sound = {one["thing"] for one in findings if one["verdict"] == "ok" and one["check"] == "buckets"}
    assert sound == {f"{role} {ward.buckets[role]}" for role in ("archive", "lake")}


def test_before_bootstrap_everything_is_missing_and_nothing_else_is_wrong(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    ward = Ward(tmp_path)
    for name, value in ward.env.items():
        monkeypatch.setenv(name, value)
    code, findings = doctor()

    assert code == 1
    assert {found["check"] for found in bad(findings)} == {"postgres", "kafka", "registry", "dynamodb", "buckets"}
    assert all("tidemark bootstrap" in found["remedy"] for found in bad(findings))


def test_a_paused_entity_is_a_note_with_the_command_that_resumes_it(ward: Ward, doctor: Doctor) -> None:
    assert main(["entity", "pause", "payments", "--reason", "bad rows"]) == 0
    code, findings = doctor("--only", "postgres")

    (note,) = [found for found in findings if found["verdict"] == "note"]
    assert (code, note["thing"], note["remedy"]) == (0, "payments", "tidemark entity resume payments")
    assert "bad rows" in note["text"]


SERVERS = {
    "postgres": ("TIDEMARK_POSTGRES_DSN", "postgresql://app:canary@127.0.0.1:{port}/tidemark"),
    "kafka": ("TIDEMARK_KAFKA_BOOTSTRAP", "127.0.0.1:{port}"),
    "registry": ("TIDEMARK_REGISTRY_URL", "http://127.0.0.1:{port}/apis/ccompat/v7"),
    "dynamodb": ("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:{port}"),
    "buckets": ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:{port}"),
}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_frozen_servers_are_all_given_up_in_time_and_what_needs_none_is_green(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    for variable, value in SERVERS.values():
        monkeypatch.setenv(variable, value.format(port=silent_port))
    code, findings = doctor("--within", "1s")

    assert code == 3
    assert {(found["check"], found["verdict"]) for found in bad(findings)} == {
        (check, "no answer") for check in SERVERS
    }
    for found in bad(findings):
        assert "no answer within 1 s" in found["text"]
        assert SERVERS[found["check"]][0].removesuffix("_S3") in found["remedy"]
    assert {found["check"] for found in findings if found["verdict"] == "ok"} == {"configuration", "secrets", "disk"}
    assert "canary" not in json.dumps(findings)


def test_one_frozen_server_does_not_keep_the_others_from_being_green(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    monkeypatch.setenv("TIDEMARK_KAFKA_BOOTSTRAP", f"127.0.0.1:{silent_port}")
    code, findings = doctor("--within", "5s")

    assert code == 3
    assert [(found["check"], found["thing"], found["verdict"]) for found in bad(findings)] == [
        ("kafka", "brokers", "no answer")
    ]


@pytest.mark.parametrize("check", SERVERS)
def test_a_server_that_is_stopped_is_named_with_its_setting_and_the_others_are_green(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    variable, value = SERVERS[check]
    monkeypatch.setenv(variable, value.format(port=free_port()))
    code, findings = doctor()

    assert code == 3
    assert {(found["check"], found["verdict"]) for found in bad(findings)} == {(check, "no answer")}
    assert all(variable.removesuffix("_S3") in found["remedy"] for found in bad(findings))
    assert "canary" not in json.dumps(findings)


def test_a_registry_url_without_its_path_is_refused_with_what_it_should_be(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, stack: Stack
) -> None:
    monkeypatch.setenv("TIDEMARK_REGISTRY_URL", stack.env["TIDEMARK_REGISTRY_URL"].partition("/apis/")[0])
    code, findings = doctor()

    (found,) = bad(findings)
    assert (code, found["check"]) == (1, "registry")
    assert "/apis/ccompat/v7" in found["remedy"]


def test_a_database_that_is_not_there_is_a_matter_of_the_dsn(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, stack: Stack
) -> None:
    monkeypatch.setenv("TIDEMARK_POSTGRES_DSN", stack.env["TIDEMARK_POSTGRES_DSN"] + "_not_there")
    code, findings = doctor()

    (found,) = bad(findings)
    assert (code, found["check"], found["verdict"]) == (2, "postgres", "config")
    assert "tidemark_not_there" in found["text"]


def test_an_address_that_is_none_is_a_matter_of_its_setting(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    code, findings = doctor("--only", "buckets", "--only", "kafka")

    assert (code, {(found["check"], found["verdict"]) for found in bad(findings)}) == (2, {("buckets", "config")})
    assert all("AWS_ENDPOINT_URL" in found["remedy"] for found in bad(findings))


def test_a_broker_that_does_not_let_us_in_is_told_from_one_that_is_away(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("canary")
    monkeypatch.setenv("TIDEMARK_KAFKA_SECURITY", "SASL_PLAINTEXT")
    monkeypatch.setenv("TIDEMARK_KAFKA_SASL_USERNAME", "tidemark")
    monkeypatch.setenv("TIDEMARK_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "password"))
    code, findings = doctor()

    (found,) = bad(findings)
    assert (code, found["check"], found["verdict"]) == (2, "kafka", "config")
    assert "takes connections" in found["text"]
    assert "TIDEMARK_KAFKA_SECURITY" in found["remedy"]
    assert "canary" not in json.dumps(findings)


def test_wrong_credentials_are_told_from_a_server_that_is_away(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(variable: str, check: str, reply: Reply) -> Finding:
        async with HttpSource(reply) as server:
            monkeypatch.setenv(variable, f"http://127.0.0.1:{server.port}")
            code, findings = await asyncio.to_thread(doctor, "--only", check)
        (found,) = findings
        assert (code, found["verdict"]) == (2, "config")
        return found

    of_registry = asyncio.run(refused("TIDEMARK_REGISTRY_URL", "registry", Reply(status=401)))
    denied = Reply(b'{"__type": "AccessDeniedException"}', 400)
    of_table = asyncio.run(refused("AWS_ENDPOINT_URL_DYNAMODB", "dynamodb", denied))

    assert "TIDEMARK_REGISTRY_PASSWORD_FILE" in of_registry["remedy"]
    assert "DescribeTable (AccessDeniedException)" in of_table["text"]
    assert of_table["remedy"] == "check rights and names"


def test_each_right_on_the_table_that_is_withheld_is_named_and_its_ttl_refused(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, stack: Stack
) -> None:
    async def denied(_request: Request, _forward: Forward) -> Answer:
        return 400, {"__type": "com.amazon.coral.service#AccessDeniedException", "message": "not you"}

    async def with_ttl(_request: Request, _forward: Forward) -> Answer:
        return 200, {"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": "due"}}

    async def inside() -> list[tuple[int, list[Finding]]]:
        async with DynamoProxy(stack.env["AWS_ENDPOINT_URL_DYNAMODB"]) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
            proxy.fail("PutItem", denied)
            proxy.fail("Query", denied)
            first = await asyncio.to_thread(doctor, "--only", "dynamodb")
            proxy.fail("DescribeTimeToLive", with_ttl)
            return [first, await asyncio.to_thread(doctor, "--only", "dynamodb")]

    (code, rights), (ttl_code, ttl) = asyncio.run(inside())

    assert (code, [found["text"] for found in bad(rights)]) == (2, ["we may not PutItem", "we may not Query"])
    assert "dynamodb:PutItem" in bad(rights)[0]["remedy"]
    (found,) = bad(ttl)
    assert (ttl_code, found["text"].startswith("TTL is on")) == (1, True)


def test_a_misspelt_variable_a_wrong_value_and_an_unreadable_file_are_all_named(
    shared_ward: Ward, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK_SINK_OBJECT_BYTE_MAX", "5000000")
    monkeypatch.setenv("TIDEMARK_LOAD_OBJECTS_MAX", "many")
    monkeypatch.setenv("TIDEMARK_REGISTRY_PASSWORD_FILE", "/nowhere/password")
    code, findings = doctor("--only", "configuration", "--only", "postgres")
    found = told(findings)

    assert code == 2
    assert set(found) == {
        *("TIDEMARK_SINK_OBJECT_BYTE_MAX", "TIDEMARK_LOAD_OBJECTS_MAX", "TIDEMARK_REGISTRY_PASSWORD_FILE")
    }
    assert found["TIDEMARK_SINK_OBJECT_BYTE_MAX"][1] == "rename it to TIDEMARK_SINK_OBJECT_BYTES_MAX"
    assert "a whole number" in found["TIDEMARK_LOAD_OBJECTS_MAX"][0]
    assert "/nowhere/password" in found["TIDEMARK_REGISTRY_PASSWORD_FILE"][0]
    assert [one["verdict"] for one in findings if one["check"] == "postgres"] == ["ok"]


def test_a_secret_that_cannot_be_read_is_named_by_file_and_line_and_the_servers_are_looked_at_all_the_same(
    ward: Ward, doctor: Doctor
) -> None:
    ward.source(more=", auth: {value_env: DOCTORS_TOKEN}")
    code, findings = doctor()

    assert (code, {found["check"] for found in bad(findings)}) == (2, {"configuration", "secrets"})
    assert all("DOCTORS_TOKEN" in found["text"] for found in bad(findings))
    assert f"{ward.folder}/bank.yaml:5" in told(findings)

    ward.source(more=", auth: nowhere.token")
    code, findings = doctor()
    assert (code, {found["check"] for found in bad(findings)}) == (2, {"configuration"})
    assert "nowhere.token" in bad(findings)[0]["text"]
    assert {found["check"] for found in findings if found["verdict"] == "ok"} >= {
        *("postgres", "kafka", "registry", "dynamodb", "buckets")
    }


class _Store(BaseHTTPRequestHandler):
    """Calls itself S3-compatible: takes ``If-None-Match`` for decoration, or refuses us, by a clock of its own."""

    protocol_version = "HTTP/1.1"
    refuses = False
    behind_s = 0.0

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer(404 if "lifecycle" in self.path else 200)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    do_POST = do_PUT

    def _answer(self, status: int = 200) -> None:
        head = self.command == "HEAD"
        body = b""
        if status == 404:
            body = b"<Error><Code>NoSuchLifecycleConfiguration</Code></Error>"
        if self.refuses and not head:
            status, body = 403, b"<Error><Code>AccessDenied</Code></Error>"
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() - self.behind_s, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Store]]:
    handler = type("Store", (_Store,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=server.serve_forever, name="store")
    serving.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_store_that_overwrites_or_refuses_us_or_has_another_time_is_named(
    shared_ward: Ward, doctor: Doctor, store: type[_Store]
) -> None:
    store.behind_s = 3_600
    code, findings = doctor()
    found = told(findings)

    assert code == 1
    assert set(found) == {"s3", *(f"{role} {bucket}" for role, bucket in shared_ward.buckets.items())}
    assert "1 h behind" in found["s3"][0]
    assert "If-None-Match" in found[f"raw {shared_ward.buckets['raw']}"][0]
    assert "TIDEMARK_RAW_BUCKET" in found[f"raw {shared_ward.buckets['raw']}"][1]

    store.behind_s, store.refuses = 0, True
    code, findings = doctor("--only", "buckets", "--only", "clocks")
    assert code == 2
    assert {one["verdict"] for one in bad(findings)} == {"config"}
    assert f"s3:PutObject on arn:aws:s3:::{shared_ward.buckets['raw']}" in bad(findings)[0]["remedy"]


BASE_S = int(time.time()) - 600


def page(*rows: str) -> bytes:
    """``a1`` is key ``a``, a second after some moment of late; its value is a secret."""
    return json.dumps([{"id": row[0], "at": iso(BASE_S + int(row[1:])), "note": "canary"} for row in rows]).encode()


def iso(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


@pytest.fixture
def asked(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> Callable[..., tuple[int, list[Finding]]]:
    """What the doctor says of a source that answers so. Nothing was made for it: Postgres has no cursor."""
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(tmp_path))
    monkeypatch.setenv("TIDEMARK_NAMESPACE", f"doc{uuid.uuid4().hex[:10]}")
    (tmp_path / "thing.avsc").write_text(SCHEMA % f"{ID}, {AT}")

    async def inside(replies: tuple[Reply, ...], shows: str, within: str) -> tuple[int, list[Finding]]:
        async with HttpSource(*replies) as source:
            (tmp_path / "bank.yaml").write_text(ONE_ENTITY % (shows, source.url))
            return await asyncio.to_thread(doctor, "--only", "source", "--within", within)

    def ask(*replies: Reply, shows: str = "rows", within: str = "8s") -> tuple[int, list[Finding]]:
        code, findings = asyncio.run(inside(replies, shows, within))
        assert "canary" not in json.dumps(findings)
        assert {(found["check"], found["thing"]) for found in findings} == {("source", "things")}
        return code, findings

    return ask


@pytest.mark.parametrize(
    ("reply", "code", "says", "remedy"),
    [
        (Reply(status=401), 1, "answers 401", "check its url"),
        (Reply(status=500), 3, "answers 500", "`url` of source 'bank'"),
        (Reply(b"<html>canary</html>"), 1, "is no page", "`records`"),
        (Reply(b'{"data": [1]}'), 1, "is no page", "`records`"),
        (Reply(page("a1"), headers={"age": "30"}), 1, "a copy 30 s old", "exempt this path"),
        (Reply(page(), headers={"date": "Thu, 01 Jan 2026 00:00:00 GMT"}), 1, "behind this machine's", "chronyc"),
        (Reply(b'[{"nr": "canary"}]'), 1, "no readable key or time stamp", "`key` and `updated_at`"),
        (Reply(page("a-86400")), 1, "older than what was asked for", "`since_param`"),
        (Reply(hangs=True), 3, "no answer within 1 s", "`url` of source 'bank'"),
    ],
)
def test_what_a_source_does_wrong_is_said_with_the_remedy_and_without_values(
    asked: Callable[..., tuple[int, list[Finding]]], reply: Reply, code: int, says: str, remedy: str
) -> None:
    exit_code, findings = asked(reply, within="1s" if reply.hangs else "8s")

    (found,) = bad(findings)
    assert exit_code == code
    assert says in found["text"]
    assert remedy in f"{found['text']} {found['remedy']}"


def test_a_source_that_answers_the_contract_is_green_and_an_order_that_changes_is_told(
    asked: Callable[..., tuple[int, list[Finding]]],
) -> None:
    same, swapped = Reply(page("a1", "b1")), Reply(page("b1", "a1"))

    assert [found["verdict"] for found in asked(same)[1]] == ["ok"]
    assert asked(same, shows="events")[0] == 0
    code, (unstable,) = asked(same, swapped, shows="events")
    assert (code, unstable["verdict"]) == (1, "wrong")
    assert "another order" in unstable["text"]
    code, findings = asked(same, swapped)
    assert (code, [found["verdict"] for found in findings]) == (0, ["ok", "note"])
    (note,) = [found for found in asked(Reply(page("a1"), headers={"date": None}))[1] if found["verdict"] == "note"]
    assert "no Date" in note["text"]
