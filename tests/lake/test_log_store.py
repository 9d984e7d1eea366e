"""Two Spark drivers write one Delta table on S3: nothing that was acknowledged is lost, nothing is there twice.

Real drivers as child processes. One reaches S3 through a proxy that holds its commits or loses their answers, and its
JVM is frozen and thawed. Where Delta's own log store loses, that is shown too.
"""

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import pytest
from botocore.session import get_session

from deploy.local.install import install
from deploy.local.jars import copy_log_store, maven
from deploy.local.leash import leashed
from deploy.local.places import CHECKOUT, cache_home
from deploy.local.stack import Stack
from deploy.local.supervision import tail
from tests.lake.s3_proxy import Fault, Request, S3Proxy, commit

_FULL = bool(os.environ.get("TIDEMARK_TEST_FULL"))
_APPENDS, _MERGES = (20, 8) if _FULL else (4, 2)
_COMMAND_S_MAX = 270.0
pytestmark = pytest.mark.timeout(600)


class Driver:
    """A child of ours. ``tell`` doesn't wait, ``answer`` does; ``do`` is both."""

    def __init__(self, endpoint: str, jars: str, log: Path) -> None:
        self._log, self._told = log, 0
        command = leashed(sys.executable, "-m", "tests.lake.driver", endpoint, jars)
        env = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                command, cwd=CHECKOUT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The whole group, which the JVM is in."""
        with self._process:
            os.killpg(self._process.pid, signal.SIGKILL)

    def tell(self, do: str, **arguments: object) -> None:
        assert self._process.stdin
        self._told += 1
        self._process.stdin.write(json.dumps({"number": self._told, "do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """To the last command. Raises ``Refused`` with what the driver said; fails when it says nothing in time."""
        answer = self._next_answer()
        while answer["number"] < self._told:  # of a test that failed before it had asked
            answer = self._next_answer()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["ok"]

    def _next_answer(self) -> dict[str, Any]:
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], _COMMAND_S_MAX)
        line = self._process.stdout.readline() if readable else ""
        assert line, f"no answer; its last lines:\n{tail(self._log, 30)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, do: str, **arguments: object) -> Any:
        self.tell(do, **arguments)
        return self.answer()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


class Refused(Exception):
    """A driver's command failed."""


@dataclass(frozen=True)
class World:
    """Two drivers on one bucket, and a way to see what is in it without either."""

    a: Driver
    b: Driver
    proxy: S3Proxy
    """Between ``a`` and S3."""
    bucket: str
    s3: Any

    def table(self, scheme: str = "s3a") -> str:
        """A new one, made by ``a``, known to both."""
        table = f"{scheme}://{self.bucket}/{uuid.uuid4().hex[:8]}"
        self.a.do("create", table=table)
        assert self.b.do("rows", table=table) == []
        return table

    def committed(self, table: str) -> list[str]:
        """The id of every row that the table's log names, as often as it does: each commit of these tests adds rows of
        one id, and none removes any."""
        prefix = f"{table.rpartition('/')[2]}/_delta_log/"
        keys = [one["Key"] for one in self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)["Contents"]]
        ids = []
        for key in keys:
            if key.endswith(".json"):
                body = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                actions = [json.loads(line) for line in body.splitlines()]
                ids += [json.loads(one["add"]["stats"])["minValues"]["id"] for one in actions if "add" in one]
        return sorted(ids)


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, endpoint = tmp_path_factory.mktemp("drivers"), stack.env["AWS_ENDPOINT_URL"]
    jars = str(install(spark=True).spark_jars)
    s3 = get_session().create_client("s3")
    bucket = f"log-store-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=bucket)
    with (
        S3Proxy(endpoint) as proxy,
        Driver(proxy.url, jars, folder / "a.log") as a,
        Driver(endpoint, jars, folder / "b.log") as b,
    ):
        for driver in (a, b):
            driver.answer()
        yield World(a, b, proxy, bucket, s3)


@pytest.fixture(autouse=True)
def _healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").proxy.heal()


def test_of_two_drivers_at_once_every_acknowledged_commit_is_in_the_table(world: World) -> None:
    table = world.table()
    drivers = {"a": world.a, "b": world.b}
    appended = {name: [f"{name}-append-{n}" for n in range(_APPENDS)] for name in drivers}
    merged = {name: [f"{name}-merge-{n}" for n in range(_MERGES)] for name in drivers}

    for do, ids in (("append", appended), ("merge", merged)):
        for name, driver in drivers.items():
            driver.tell(do, table=table, ids=ids[name])
        for driver in drivers.values():
            driver.answer()

    acknowledged = sorted(one for ids in (appended, merged) for name in drivers for one in ids[name])
    assert world.committed(table) == acknowledged
    assert world.a.do("rows", table=table) == world.b.do("rows", table=table) == acknowledged


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        pytest.param("s3a", ["frozen", "rival"], id="ours"),
        # Both commits were acknowledged. Should this ever hold both, Delta's own store has learned it: retire ours.
        pytest.param("s3", ["frozen"], id="stock"),
    ],
)
def test_a_driver_frozen_inside_its_commit_takes_nothing_from_its_rival(
    world: World, scheme: str, expected: list[str]
) -> None:
    table = world.table(scheme)
    held = world.proxy.fault(Fault(commit, holds=True))

    world.a.tell("append", table=table, ids=["frozen"])
    assert held.met.wait(_COMMAND_S_MAX)
    with world.a.frozen():
        world.b.do("append", table=table, ids=["rival"])
        held.let_go.set()
    world.a.answer()

    assert world.committed(table) == expected


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(commit, drops_answer=True), id="the answer is lost"),
        pytest.param(Fault(commit, answers=500), id="500 after the store has applied it"),
        pytest.param(Fault(commit, answers=503, code="SlowDown"), id="503 after the store has applied it"),
        pytest.param(Fault(commit, asks_store=False, answers=500), id="500 instead"),
        pytest.param(Fault(commit, asks_store=False, drops_answer=True), id="the request is lost"),
        pytest.param(
            Fault(commit, asks_store=False, answers=409, code="ConditionalRequestConflict"), id="409, to be repeated"
        ),
    ],
)
def test_a_commit_whose_answer_says_nothing_is_neither_lost_nor_doubled(world: World, fault: Fault) -> None:
    table = world.table()
    world.proxy.fault(fault)

    world.a.do("append", table=table, ids=["one"])

    assert fault.met.is_set()
    world.b.do("append", table=table, ids=["two"])
    assert world.committed(table) == ["one", "two"]


def _reads_a_commit(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path.endswith("1.json")


def test_nothing_is_claimed_when_neither_the_answer_nor_the_file_can_be_read(world: World) -> None:
    table = world.table()
    world.proxy.fault(Fault(commit, drops_answer=True))
    world.proxy.fault(Fault(_reads_a_commit, once=False, asks_store=False, answers=403, code="AccessDenied"))

    with pytest.raises(Refused, match="It is unknown whether"):
        world.a.do("append", table=table, ids=["one"])

    assert world.committed(table) == ["one"]


def test_a_commit_of_several_parts_is_as_conditional_as_a_small_one(world: World) -> None:
    path = f"s3a://{world.bucket}/{uuid.uuid4().hex[:8]}/_delta_log/{0:020}.json"
    megabytes = {"lines": 6, "line": "x" * (1 << 20)}

    world.a.do("write", path=path, **megabytes)
    world.a.do("write", path=path, **megabytes)  # equal bytes: its own, whose answer was lost
    with pytest.raises(Refused, match=r"^java\.nio\.file\.FileAlreadyExistsException"):
        world.a.do("write", path=path, lines=6, line="y" * (1 << 20))

    assert any(request.method == "POST" and "uploadId=" in request.query for request in world.proxy.requests)


def test_a_store_that_ignores_the_condition_is_refused(world: World) -> None:
    bucket = f"{world.bucket}-careless"
    world.s3.create_bucket(Bucket=bucket)
    world.proxy.fault(Fault(commit, once=False, strips_condition=True))

    with pytest.raises(Refused, match="ignores If-None-Match"):
        world.a.do("create", table=f"s3a://{bucket}/table")


def test_a_look_for_new_commits_asks_for_those_alone(world: World) -> None:
    table = world.table()
    seen = len(world.proxy.requests)

    world.a.do("append", table=table, ids=["one"])

    lists = [unquote(one.query) for one in world.proxy.requests[seen:] if "list-type=2" in one.query]
    # Two keys are enough to see whether there is such a folder.
    of_the_log = [query for query in lists if "/_delta_log/" in query and "max-keys=2" not in query]
    assert of_the_log
    assert all("start-after=" in query for query in of_the_log), of_the_log


def test_a_vacuum_finds_what_nobody_needs_at_any_depth(world: World) -> None:
    table = world.table()
    world.a.do("append", table=table, ids=["one"])
    prefix = table.removeprefix(f"s3a://{world.bucket}/")
    orphans = [f"{prefix}/part-00000-orphan.parquet", f"{prefix}/day=1/part-00001-orphan.parquet"]
    for key in orphans:
        world.s3.put_object(Bucket=world.bucket, Key=key, Body=b"")

    world.a.do("vacuum", table=table)

    left = {one["Key"] for one in world.s3.list_objects_v2(Bucket=world.bucket, Prefix=prefix)["Contents"]}
    assert not left & set(orphans)
    assert world.a.do("rows", table=table) == ["one"]


def test_the_modules_own_tests_pass(tmp_path: Path) -> None:
    """Each failure of a commit's PUT, against a bucket in memory."""
    log = tmp_path / "log"
    copy_log_store(tmp_path / "module")
    try:
        maven(cache_home() / "m2", tmp_path / "module", log, "test")
    except subprocess.CalledProcessError:
        pytest.fail(log.read_text())
    assert "Failures: 0, Errors: 0" in log.read_text()
