"""A loopback TCP proxy that fails on command: what stands between a test and Kafka, S3, Postgres or a registry.

async with TcpProxy(target_port) as proxy:
    client connects to 127.0.0.1:proxy.port
    await proxy.set_mode("half_open")
"""

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Mode = Literal["pass", "refuse", "blackhole", "half_open", "drop_answers", "delay"]
"""
``refuse``: nobody listens, present connections are reset.
``blackhole``: connections are accepted and nothing is read from them; present ones stall. They go on when it ends.
``half_open``: what either side sends is taken and thrown away.
``drop_answers``: the target gets every request, its answers are thrown away.
``delay``: each piece waits ``delay_s``.
A connection that has lost bytes is dead for good, as after a real fault; only new ones work again.
"""

_PIECE_BYTES = 64 * 1024
_LAST_WORDS_S = 1.0
"""What the other side may still say after one side has ended."""


class TcpProxy:
    """Keeps its port through every mode. ``accepted`` counts connections, ``answers`` pieces that came back.

    With ``tls`` clients speak TLS to it, and it speaks plain to the target.
    """

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port or free_port()
        self.delay_s = 0.0
        self.accepted = 0
        self.answers = 0
        self.loses: Callable[[bytes], bool] | None = None
        """Requests, as they come from the socket, that never reach the target; their connection stays."""
        self._target = (target_host, target_port)
        self._tls = tls
        self._mode: Mode = "pass"
        self._changed = asyncio.Event()
        self._cut_after_bytes: int | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_listening()
        self._abort()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    @property
    def mode(self) -> Mode:
        return self._mode

    async def set_mode(self, mode: Mode) -> None:
        """From now on; ``refuse`` also resets what is connected."""
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "refuse":
            await self._stop_listening()
            self._abort()
        else:
            await self._listen()

    async def cut(self) -> None:
        """Reset every present connection; new ones are served."""
        self._abort()

    def cut_after(self, answer_bytes: int) -> None:
        """Once: let this many more bytes of answers through (of all connections), then reset the one that goes on."""
        self._cut_after_bytes = answer_bytes

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()  # not waited for: from Python 3.12 on that waits for the connections too
            self._server = None

    def _abort(self) -> None:
        for writer in self._writers:
            # A reset, not a polite end: what the kernel still holds is thrown away.
            if (connection := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        self.accepted += 1
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._connections.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._mode == "blackhole":
            await self._changed.wait()
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        self._writers.add(target_writer)
        pumps = [
            asyncio.create_task(self._pump(reader, target_writer, answers=False)),
            asyncio.create_task(self._pump(target_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(pumps, timeout=_LAST_WORDS_S)
        finally:
            self._writers.discard(target_writer)
            target_writer.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        dead = False
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                while self._mode == "blackhole":
                    await self._changed.wait()
                if self._mode == "delay":
                    await asyncio.sleep(self.delay_s)
                dead = dead or self._mode == "half_open" or (answers and self._mode == "drop_answers")
                if dead or (self.loses is not None and not answers and self.loses(piece)):
                    continue
                if answers and self._is_cut(piece, writer):
                    return
                self.answers += answers
                writer.write(piece)
                await writer.drain()
            if not dead and writer.can_write_eof():
                writer.write_eof()

    def _is_cut(self, piece: bytes, writer: asyncio.StreamWriter) -> bool:
        if self._cut_after_bytes is None:
            return False
        self._cut_after_bytes -= len(piece)
        if self._cut_after_bytes >= 0:
            return False
        writer.write(piece[: self._cut_after_bytes])
        self._cut_after_bytes = None
        return True


def free_port() -> int:
    """A free port below the ephemeral range: a loop that connects to a closed port inside it can meet itself."""
    for _ in range(200):
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port below 32768")
