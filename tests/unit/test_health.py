"""The health server answers three paths and cannot be made to do anything else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest

from shared import health
from shared.config import HttpSettings
from shared.lifecycle import Pulse


class Service:
    """Edges and pulses that the test sets, and the port that serves them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pulse = Pulse(late_after_s=30, clock=lambda: self.now_s)
        self.edges: dict[str, Callable[[], Awaitable[str | None]]] = {}
        self.port = 0

    async def send(self, request: bytes, *, close: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            if close:
                writer.write_eof()
            async with asyncio.timeout(20):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str) -> tuple[int, dict[str, object]]:
        answer = await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), json.loads(body)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        service = Service()
        service.port = await health.serve(HttpSettings(), stack, edges=service.edges, pulses={"loop": service.pulse})
        yield service


async def answers() -> str | None:
    await asyncio.sleep(0)
    return None


async def refuses() -> str | None:
    await asyncio.sleep(0)
    return "no broker"


async def raises() -> str | None:
    await asyncio.sleep(0)
    raise ConnectionError("postgres://user:secret@host refused")


async def hangs() -> str | None:
    await asyncio.Event().wait()
    return None


async def test_live_while_the_loop_turns_and_not_after(service: Service) -> None:
    assert await service.get("/live") == (200, {"live": True, "late": []})

    service.now_s = 31
    assert await service.get("/live") == (503, {"live": False, "late": ["loop"]})

    service.pulse.beat()
    assert (await service.get("/live"))[0] == 200


async def test_ready_when_every_edge_answers(service: Service) -> None:
    service.edges.update(kafka=answers, postgres=answers)

    assert await service.get("/ready") == (200, {"ready": True, "edges": {"kafka": "ok", "postgres": "ok"}})


async def test_not_ready_names_the_edges_and_no_secrets(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "EDGE_S_MAX", 0.05)
    service.edges.update(kafka=refuses, postgres=raises, s3=hangs, registry=answers)

    assert await service.get("/ready") == (
        503,
        {
            "ready": False,
            "edges": {
                "kafka": "no broker",
                "postgres": "ConnectionError",
                "s3": "no answer within 0.05 s",
                "registry": "ok",
            },
        },
    )


async def test_metrics_are_prometheus_text(service: Service) -> None:
    answer = await service.send(b"GET /metrics?x=1 HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert b"# TYPE tidemark_shown_total counter" in answer


async def test_head_has_no_body(service: Service) -> None:
    answer = await service.send(b"HEAD /live HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /secret HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /live HTTP/1.1\r\n\r\n", b"405"),
        (b"GET\r\n\r\n", b"400"),
        (b"\x16\x03\x01 tls hello\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b"400"),
        (b"GET /live", b"400"),
    ],
)
async def test_anything_else_is_refused_and_the_server_lives_on(
    service: Service, request_bytes: bytes, status: bytes
) -> None:
    answer = await service.send(request_bytes, close=True)

    assert answer == b"" or answer.split(b" ")[1] == status
    assert (await service.get("/live"))[0] == 200


async def test_a_client_that_sends_nothing_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_S_MAX", 0.05)

    assert await service.send(b"GET /live HTT") == b""


async def test_silent_clients_cannot_use_up_the_server(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTIONS_MAX", 4)
    silent = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(4)]

    assert await service.send(b"GET /live HTTP/1.1\r\n\r\n") == b""  # the fifth is closed at once

    for _, writer in silent:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(5):
        while not await service.send(b"GET /live HTTP/1.1\r\n\r\n"):
            pass  # each try is a connection of its own: the server gets its turn


async def test_closing_cuts_open_connections() -> None:
    async with AsyncExitStack() as stack:
        port = await health.serve(HttpSettings(), stack, edges={}, pulses={})
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET")
        await writer.drain()

    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
