"""Kafka, the registry and Postgres behind TLS: what is trusted is talked to, and nothing else."""

import asyncio
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import trustme
from aiokafka import AIOKafkaConsumer
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deploy.local.kafka import Listener
from deploy.local.stack import Stack
from shared.checkpoints.model import CheckpointsMisconfigured, CheckpointsUnavailable
from shared.checkpoints.postgres import Checkpoints
from shared.checkpoints.settings import PostgresSettings
from shared.events.model import Reason
from shared.kafka.admin import KafkaAdmin
from shared.kafka.publisher import Publisher
from shared.kafka.records import Outgoing
from shared.kafka.settings import KafkaSettings
from shared.registry.client import Registry, RegistryUnavailable
from shared.registry.settings import RegistrySettings
from tests.fakes.proxy import TcpProxy, free_port

PASSWORD = "s3cret-of-the-test"


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's and a client's certificate by it, and another authority that signed nothing."""

    folder: Path
    authority: trustme.CA

    def write(self) -> None:
        self.authority.cert_pem.write_to_path(self.folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(self.folder / "other-ca.pem")
        for name, owner in (("server", "127.0.0.1"), ("client", "tidemark.example")):
            issued = self.authority.issue_cert(owner)
            key = load_pem_private_key(issued.private_key_pem.bytes(), None)
            # Java reads PKCS #8 only.
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            (self.folder / f"{name}.key").write_bytes(pem)
            (self.folder / f"{name}.crt").write_bytes(chain)
            (self.folder / f"{name}.pem").write_bytes(pem + chain)
        (self.folder / "password").write_text(PASSWORD)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self["server.crt"], self["server.key"])
        return context

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    folder = Path(tempfile.mkdtemp(prefix="tidemark-tls-"))
    try:
        made = Certificates(folder, trustme.CA())
        made.write()
        yield made
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Broker:
    tls: KafkaSettings
    """Proves itself by a client certificate."""
    sasl: KafkaSettings
    """Proves itself by a password."""
    inner_port: int
    proxy_port: int


@pytest.fixture(scope="module")
def broker(stack: Stack, certificates: Certificates) -> Iterator[Broker]:
    ports: list[int] = []
    proxy_port = free_port()
    keystore = {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(certificates["server.pem"])}
    truststore = {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(certificates["ca.pem"])}
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_tidemark="{PASSWORD}";'
    sasl = {"sasl.enabled.mechanisms": "PLAIN", "plain.sasl.jaas.config": login}

    def listeners(free: Callable[[], int]) -> list[Listener]:
        while len(ports) < 2:
            if (port := free()) not in ports:
                ports.append(port)
        return [
            Listener("MUTUAL", ports[0], proxy_port, "SSL", {**keystore, **truststore, "ssl.client.auth": "required"}),
            Listener("PASSWORD", ports[1], ports[1], "SASL_SSL", {**keystore, **sasl}),
        ]

    name = f"tls-broker-{uuid4().hex[:6]}"
    stack.add_broker(name, listeners)
    stack.start(name)
    quick = {"ca_file": certificates["ca.pem"], "delivery_deadline_s": 2.0, "probe_deadline_s": 2.0}
    pair = {"cert_file": certificates["client.crt"], "key_file": certificates["client.key"]}
    account = {"sasl_mechanism": "PLAIN", "sasl_username": "tidemark", "sasl_password_file": certificates["password"]}
    try:
        yield Broker(
            KafkaSettings(bootstrap=f"127.0.0.1:{proxy_port}", security="SSL", **quick, **pair),  # type: ignore[arg-type]  # mixed values
            KafkaSettings(bootstrap=f"127.0.0.1:{ports[1]}", security="SASL_SSL", **quick, **account),  # type: ignore[arg-type]  # mixed values
            ports[0],
            proxy_port,
        )
    finally:
        stack.kill(name)


@pytest.fixture
async def proxy(broker: Broker) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(broker.inner_port, port=broker.proxy_port) as running:
        yield running


@pytest.fixture
async def edges() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


def page(count: int) -> list[Outgoing]:
    return [Outgoing(b"%d" % n, b"v%d" % n, (), 1) for n in range(count)]


async def made_topic(settings: KafkaSettings, edges: AsyncExitStack) -> str:
    admin, topic = await KafkaAdmin.open(settings, edges), f"d-tls-{uuid4().hex[:8]}"
    await admin.ensure_topic(topic, partitions=1, replication=1)
    assert (await admin.identity(topic)).partitions == 1
    return topic


async def consumed(settings: KafkaSettings, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", **settings.client_kwargs())
    await consumer.start()
    try:
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_kafka_with_certificates_on_both_sides(broker: Broker, edges: AsyncExitStack, proxy: TcpProxy) -> None:
    topic = await made_topic(broker.tls, edges)
    publisher = await Publisher.open(broker.tls, edges)

    assert await publisher.publish(topic, page(100)) == [None] * 100

    assert await consumed(broker.tls, topic, 100) == [record.value for record in page(100)]


async def test_kafka_with_a_password_over_tls(broker: Broker, edges: AsyncExitStack) -> None:
    topic = await made_topic(broker.sasl, edges)
    publisher = await Publisher.open(broker.sasl, edges)

    assert await publisher.publish(topic, page(100)) == [None] * 100

    assert await consumed(broker.sasl, topic, 100) == [record.value for record in page(100)]


async def test_lost_acknowledgements_over_tls_end_in_time(
    broker: Broker, edges: AsyncExitStack, proxy: TcpProxy
) -> None:
    topic = await made_topic(broker.tls, edges)
    publisher = await Publisher.open(broker.tls, edges)
    await publisher.publish(topic, page(3))
    await proxy.set_mode("half_open")

    during = [await publisher.publish(topic, page(3)) for _ in range(2)]
    await proxy.set_mode("pass")

    reasons = [[outcome and outcome.reason for outcome in outcomes] for outcomes in during]
    assert reasons == [[Reason.KAFKA_UNKNOWN] * 3, [Reason.KAFKA_UNAVAILABLE] * 3]
    assert await publisher.publish(topic, page(3)) == [None] * 3


async def test_a_broker_that_can_not_prove_itself_gets_nothing(
    broker: Broker, edges: AsyncExitStack, certificates: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("not the password")
    distrustful = KafkaSettings(
        bootstrap=broker.sasl.bootstrap,
        security="SASL_SSL",
        ca_file=certificates["other-ca.pem"],
        sasl_mechanism="PLAIN",
        sasl_username="tidemark",
        sasl_password_file=certificates["password"],
    )
    mistaken = KafkaSettings(
        bootstrap=broker.sasl.bootstrap,
        security="SASL_SSL",
        ca_file=certificates["ca.pem"],
        sasl_mechanism="PLAIN",
        sasl_username="tidemark",
        sasl_password_file=tmp_path / "password",
    )

    for settings in (distrustful, mistaken):
        publisher = await Publisher.open(settings, edges)
        (outcome,) = await publisher.publish("any", page(1))
        assert outcome is not None
        assert outcome.reason is Reason.KAFKA_UNAVAILABLE


async def test_the_registry_behind_tls(stack: Stack, edges: AsyncExitStack, certificates: Certificates) -> None:
    address = urlsplit(stack.env["TIDEMARK_REGISTRY_URL"])
    async with TcpProxy(address.port or 0, tls=certificates.server_context()) as tls_end:
        url = f"https://127.0.0.1:{tls_end.port}{address.path}"
        trusting = await Registry.open(RegistrySettings(url=url, ca_file=certificates["ca.pem"]), edges)
        distrustful = await Registry.open(RegistrySettings(url=url, ca_file=certificates["other-ca.pem"]), edges)

        assert await trusting.compatibility()
        with pytest.raises(RegistryUnavailable, match="certificate"):
            await distrustful.compatibility()


class PostgresTls(TcpProxy):
    """The TLS end of a Postgres: the stack's own is built without TLS, so this stands before it."""

    def __init__(self, target_port: int, context: ssl.SSLContext) -> None:
        super().__init__(target_port)
        self._context = context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == b"\0\0\0\x08\x04\xd2\x16\x2f", "the client asks for TLS first"
        writer.write(b"S")
        await writer.start_tls(self._context)
        await super()._serve(reader, writer)


async def test_postgres_behind_tls(stack: Stack, edges: AsyncExitStack, certificates: Certificates) -> None:
    plain = urlsplit(stack.env["TIDEMARK_POSTGRES_DSN"])
    async with PostgresTls(plain.port or 0, certificates.server_context()) as tls_end:
        dsn = f"postgresql://{plain.username}:{plain.password}@127.0.0.1:{tls_end.port}{plain.path}"
        trusting = await Checkpoints.open(
            PostgresSettings(dsn=dsn, ca_file=certificates["ca.pem"]), edges, schema=f"d_tls_{uuid4().hex[:8]}"
        )
        await trusting.migrate()
        assert await trusting.pending_migrations() == []

        settings = PostgresSettings(dsn=dsn, ca_file=certificates["other-ca.pem"], budget_s=0.5)
        distrustful = await Checkpoints.open(settings, edges)
        with pytest.raises(CheckpointsMisconfigured, match="certificate"):
            await distrustful.ping()


async def test_a_postgres_without_tls_is_not_talked_to_where_tls_is_asked_for(
    stack: Stack, edges: AsyncExitStack, certificates: Certificates
) -> None:
    settings = PostgresSettings(dsn=stack.env["TIDEMARK_POSTGRES_DSN"], ca_file=certificates["ca.pem"], budget_s=0.5)
    checkpoints = await Checkpoints.open(settings, edges)

    with pytest.raises(CheckpointsUnavailable):
        await checkpoints.ping()
