"""A change feed on loopback that answers as it is told: pieces, cut bodies, drips, wrong lengths, any header."""

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Reply:
    """One answer. ``headers`` replace the usual ones; a value ``None`` leaves the header out."""

    body: bytes = b"[]"
    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    chunked: bool = False
    cut_after: int | None = None  # bytes of the whole answer, headers included; then the connection is reset
    drip_s: float | None = None  # one byte at a time, so far apart
    drip_from: int = 0  # bytes that come at once before that
    hangs: bool = False  # never answers
    closes: bool = False  # closes after the answer without having said so


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    path: str
    parameters: dict[str, str]
    headers: dict[str, str]
    connection: int


class HttpSource:
    """Answers requests with ``replies`` in turn, and with the last one for ever.

    async with HttpSource(Reply(b"[1]"), Reply(status=500)) as source: ... source.url, source.asked
    """

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None) -> None:
        self.replies = deque(replies or (Reply(),))
        self.asked: list[Asked] = []
        self.connections = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/cdc"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve(reader, writer, number):
                    pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        target = urlsplit(lines[0].split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
        self.asked.append(Asked(target.path, dict(parse_qsl(target.query)), headers, connection))
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if reply.hangs:
            await asyncio.Event().wait()
        await self._answer(writer, reply)
        return not reply.closes and reply.cut_after is None

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        whole = _encode(reply)
        if reply.cut_after is not None:
            writer.write(whole[: reply.cut_after])
            await writer.drain()
            return
        at_once = whole if reply.drip_s is None else whole[: reply.drip_from]
        writer.write(at_once)
        await writer.drain()
        for position in range(len(at_once), len(whole)):
            assert reply.drip_s is not None
            await asyncio.sleep(reply.drip_s)
            writer.write(whole[position : position + 1])
            await writer.drain()


def _encode(reply: Reply) -> bytes:
    length: dict[str, str | None] = (
        {"transfer-encoding": "chunked"} if reply.chunked else {"content-length": str(len(reply.body))}
    )
    usual = {"date": formatdate(usegmt=True), "content-type": "application/json"} | length
    headers = {name: value for name, value in (usual | reply.headers).items() if value is not None}
    lines = [f"HTTP/1.1 {reply.status} Whatever"] + [f"{name}: {value}" for name, value in headers.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if not reply.chunked:
        return head + reply.body
    pieces = [reply.body[i : i + 1000] for i in range(0, len(reply.body), 1000)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
