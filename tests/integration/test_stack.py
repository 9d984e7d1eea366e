"""The local stack itself: on loopback only, two side by side, what may be killed and what may not."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local import postgres
from deploy.local.kafka import Listener
from deploy.local.places import CHECKOUT, run_home
from deploy.local.ports import find_free
from deploy.local.processes import Process
from deploy.local.records import recorded_state
from deploy.local.stack import Stack, StackFailed
from deploy.local.supervision import started_ticks
from shared.aws import open_client

_SHARED_S3_FOLDER = Path("/tmp/localstack-s3-storage")
_SERVERS = ("kafka", "registry", "localstack", "dynamodb", "postgres")
_LISTENING = "0A"
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def processes_of(folder: Path) -> dict[str, int]:
    state = recorded_state(folder)
    assert state
    return {name: child["pid"] for name, child in state["processes"].items()}


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that the process holds."""
    links = (os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir())
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def listening_addresses(pid: int) -> set[str]:
    """``address:port`` in hex, of all that the process listens on."""
    inodes, found = sockets_of(pid), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in inodes:
                found.add(fields[1])
    return found


def test_every_server_listens_on_loopback_and_nowhere_else(stack: Stack) -> None:
    for name, pid in processes_of(stack.folder).items():
        if name not in _SERVERS:
            continue
        addresses = listening_addresses(pid)

        assert addresses, name
        assert all(address.partition(":")[0] in _LOOPBACK for address in addresses), (name, addresses)


def test_env_names_every_endpoint_and_no_setting_of_the_user_reaches_a_process(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "the-users-own")
    stack.add(Process("env", ("/bin/sh", "-c", f"env >{tmp_path / 'env'}"), ends_itself=True))
    stack.start("env")
    assert stack.wait("env", within_s=10) == 0

    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert stack.env.items() <= seen.items()
    assert "AWS_PROFILE" not in seen


@pytest.mark.parametrize("name", ["localstack", "dynamodb"])
def test_an_emulator_is_never_killed_or_restarted_for_it_would_come_back_empty(stack: Stack, name: str) -> None:
    with pytest.raises(StackFailed):
        stack.kill(name)
    with pytest.raises(StackFailed):
        stack.start(name)


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*")]


async def test_s3_bodies_lie_in_the_stacks_own_folder(stack: Stack) -> None:
    bucket = f"stack-test-{time.time_ns()}"
    async with AsyncExitStack() as opened:
        s3 = await open_client("s3", opened)
        await s3.create_bucket(Bucket=bucket)
        await s3.put_object(Bucket=bucket, Key="large", Body=bytes(2_000_000))

        assert bucket in names_in(stack.folder / "localstack" / "s3")
        assert names_in(_SHARED_S3_FOLDER) == []
        await s3.delete_object(Bucket=bucket, Key="large")
        await s3.delete_bucket(Bucket=bucket)


@pytest.fixture
def broker(stack: Stack) -> Iterator[tuple[str, int]]:
    """A private broker's address, and the port of a proxy that it advertises to those who come in by its listener."""
    [proxy_port] = find_free(1)
    bootstrap = stack.add_broker("kafka-own", lambda free: [Listener("PROXIED", free(), proxy_port)])
    stack.start("kafka-own")
    yield bootstrap, proxy_port
    stack.kill("kafka-own")


async def test_a_killed_broker_comes_back_with_its_records(stack: Stack, broker: tuple[str, int]) -> None:
    bootstrap, _ = broker
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("t", num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    for _ in range(3):
        await producer.send_and_wait("t", b"x")
    await producer.stop()

    assert stack.kill("kafka-own") == -signal.SIGKILL
    stack.start("kafka-own")

    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    assert await consumer.end_offsets([TopicPartition("t", 0)]) == {TopicPartition("t", 0): 3}
    await consumer.stop()
    stack.check()


async def test_who_comes_in_by_the_extra_listener_is_sent_on_to_the_proxy(
    stack: Stack, broker: tuple[str, int]
) -> None:
    bootstrap, proxy_port = broker
    for address, port in (
        (f"127.0.0.1:{stack.port('kafka-own_proxied')}", proxy_port),
        (bootstrap, int(bootstrap[10:])),
    ):
        # The client's bootstrap goes no further than the first answer: nobody listens at the proxy's port.
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin._client.bootstrap()

        assert [node.port for node in admin._client.cluster.brokers()] == [port]
        await admin._client.close()


def test_a_crashed_postgres_comes_back_with_what_was_committed(stack: Stack) -> None:
    dsn = stack.add_postgres("postgres-own")
    binaries, port = stack._installed.postgres_bin, int(re.findall(r":(\d+)/", dsn)[0])
    stack.start("postgres-own")
    postgres.query(binaries, port, "CREATE TABLE t AS SELECT generate_series(1, 500) AS n", "tidemark")

    stack.kill("postgres-own")
    stack.start("postgres-own")

    assert postgres.query(binaries, port, "SELECT count(*) FROM t", "tidemark") == "500"
    stack.terminate("postgres-own")
    stack.check()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["./deploy/local/stack", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=200, check=False
    )


def eventually(claim: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(300)
def test_a_second_stack_stands_beside_the_first_fails_with_its_emulator_and_leaves_nothing(stack: Stack) -> None:
    """Through the command line, start to end."""
    name = f"second-{os.getpid()}"
    folder = run_home() / name
    try:
        up = command("up", name)
        assert up.returncode == 0, up.stdout + up.stderr
        second = recorded_state(folder)
        assert second
        assert not set(second["ports"].values()) & {int(port) for port in re.findall(r":(\d+)", json.dumps(stack.env))}
        assert f"export TIDEMARK_KAFKA_BOOTSTRAP=127.0.0.1:{second['ports']['kafka']}" in command("env", name).stdout
        assert command("status", name).returncode == 0
        assert "already" in command("up", name).stdout

        os.kill(second["processes"]["dynamodb"]["pid"], signal.SIGKILL)

        eventually(lambda: "dynamodb ended by SIGKILL, unasked" in command("logs", name, "stack").stdout)
        eventually(lambda: all(started_ticks(child["pid"]) is None for child in second["processes"].values()))
        status = command("status", name)
        assert status.returncode == 1
        assert f"stack {name}: failed" in status.stdout
        assert "died (-9)" in status.stdout
        assert command("env", name).returncode == 1
    finally:
        down = command("down", name)
    assert down.returncode == 0
    assert not folder.exists()
