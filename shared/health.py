"""A small HTTP server beside the work: ``/live``, ``/ready``, ``/metrics``. GET and HEAD only, on loopback by default.

| path | 200 | 503 |
|---|---|---|
| ``/live`` | every pulse beat lately | one is late: restart the process |
| ``/ready`` | every edge answered within 2 s | one did not: the body names it |
| ``/metrics`` | Prometheus's text | |
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus

from msgspec import Struct

from shared import logs, metrics
from shared.config import HttpSettings
from shared.lifecycle import Pulse

REQUEST_BYTES_MAX = 8 * 1024
REQUEST_S_MAX = 5.0
RESPONSE_S_MAX = 10.0
CONNECTIONS_MAX = 32
EDGE_S_MAX = 2.0

Edge = Callable[[], Awaitable[str | None]]
"""``None``: the edge answers. A text: why not, for people and without secrets. An exception counts as "no"."""

log = logs.get_logger(__name__)


class _Answer(Struct, frozen=True):
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


async def serve(
    http: HttpSettings, stack: AsyncExitStack, *, edges: Mapping[str, Edge], pulses: Mapping[str, Pulse]
) -> int:
    """Serve until ``stack`` closes; give the port. Raises ``OSError`` when the port is taken."""
    health = _Health(edges, pulses)
    server = await asyncio.start_server(health.answer, http.host, http.port, limit=REQUEST_BYTES_MAX)
    stack.push_async_callback(_close, server, health)
    port: int = server.sockets[0].getsockname()[1]
    log.info("http_listening", host=http.host, port=port)
    return port


async def _close(server: asyncio.Server, health: "_Health") -> None:
    server.close()
    for task in health.connections:
        task.cancel()
    await asyncio.gather(*health.connections, return_exceptions=True)


class _Health:
    def __init__(self, edges: Mapping[str, Edge], pulses: Mapping[str, Pulse]) -> None:
        self._edges = edges
        self._pulses = pulses
        self.connections: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, then the connection closes. Nothing that a client sends raises."""
        task = asyncio.current_task()
        assert task is not None
        if len(self.connections) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self.connections.add(task)
        try:
            with suppress(TimeoutError, ConnectionError, asyncio.CancelledError):
                method, path = await _request(reader)
                await _send(writer, method, await self._judge(method, path))
        finally:
            self.connections.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _judge(self, method: str, path: str) -> _Answer:
        if method not in ("GET", "HEAD"):
            return _json(HTTPStatus.METHOD_NOT_ALLOWED if method else HTTPStatus.BAD_REQUEST, {})
        match path:
            case "/live":
                late = sorted(name for name, pulse in self._pulses.items() if pulse.is_late)
                status = HTTPStatus.SERVICE_UNAVAILABLE if late else HTTPStatus.OK
                return _json(status, {"live": not late, "late": late})
            case "/ready":
                return await self._ready()
            case "/metrics":
                return _Answer(HTTPStatus.OK, metrics.exposition(), metrics.CONTENT_TYPE)
        return _json(HTTPStatus.NOT_FOUND, {"paths": ["/live", "/ready", "/metrics"]})

    async def _ready(self) -> _Answer:
        answers = await asyncio.gather(*(_ask(edge) for edge in self._edges.values()))
        refusals = {name: why for name, why in zip(self._edges, answers, strict=True) if why is not None}
        edges = {name: refusals.get(name, "ok") for name in self._edges}
        status = HTTPStatus.SERVICE_UNAVAILABLE if refusals else HTTPStatus.OK
        return _json(status, {"ready": not refusals, "edges": edges})


async def _ask(edge: Edge) -> str | None:
    try:
        async with asyncio.timeout(EDGE_S_MAX):
            return await edge()
    except TimeoutError:
        return f"no answer within {EDGE_S_MAX:g} s"
    except Exception as error:  # noqa: BLE001 (an edge of any make; its message may hold what must not be shown)
        return type(error).__name__


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path of the request; two empty texts when it is none."""
    try:
        async with asyncio.timeout(REQUEST_S_MAX):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return "", ""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return (words[0], words[1].partition("?")[0]) if len(words) == 3 and words[2].startswith("HTTP/1.") else ("", "")


async def _send(writer: asyncio.StreamWriter, method: str, answer: _Answer) -> None:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (b"" if method == "HEAD" else answer.body))
    async with asyncio.timeout(RESPONSE_S_MAX):
        await writer.drain()


def _json(status: HTTPStatus, body: Mapping[str, object]) -> _Answer:
    return _Answer(status, json.dumps(body).encode() + b"\n")
