"""One notice for all tests of it, and receivers on loopback that answer as they are told."""

import asyncio
import base64
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from msgspec import structs

from services.stale_notifier.notice import Kind, Notice, dedup_key
from tests.fakes.http_source import HttpSource, Reply

FINGERPRINT = "5f2c9a1d0b7e4c3388aa"

NOTICE = Notice(
    owner="ledger",
    contact="#ledger",
    entity="accounts",
    reason="invalid",
    path="/balance",
    rule="must be a number, is a string",
    fingerprint=FINGERPRINT,
    kind=Kind.NEW,
    number=1,
    dedup_key=dedup_key("", "accounts", "invalid", FINGERPRINT),
    count=2000,
    first_seen_ms=1_767_225_600_000,
    last_seen_ms=1_767_229_200_000,
    subject="cdc.accounts-value",
    versions=(3, 4),
    evidence_uri="s3://tidemark-parked/evidence/2026/01/01/accounts/5f2c9a1d.json.zst",
    evidence_sha256="ab" * 32,
    delete_after_ms=1_767_834_000_000,
    at_ms=1_767_229_260_000,
)


def notice(**changes: Any) -> Notice:
    return structs.replace(NOTICE, **changes)


@dataclass(frozen=True)
class Posted:
    path: str
    headers: dict[str, str]
    body: bytes


class HttpReceiver(HttpSource):
    """As ``HttpSource``, but takes what is posted: ``receiver.posted``."""

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(*(replies or (Reply(b"ok"),)), tls=tls)
        self.posted: list[Posted] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.posted.append(Posted(lines[0].split(" ")[1], headers, body))
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if reply.hangs:
            await asyncio.Event().wait()
        await self._answer(writer, reply)
        return not reply.closes and reply.cut_after is None


@dataclass
class MailScript:
    """What a mail server says otherwise than usual: to a command, ``.`` (a mail's end) or ``connect``."""

    answers: dict[str, str] = field(default_factory=dict)
    offers: tuple[str, ...] = ("STARTTLS", "AUTH PLAIN")
    hangs_at: str = ""
    drip_s: float | None = None  # the greeting, byte by byte


class MailReceiver:
    """An SMTP server for one test: ``mails`` are those it has accepted, ``log_ins`` who has come in."""

    def __init__(
        self, script: MailScript | None = None, tls: ssl.SSLContext | None = None, implicit: bool = False
    ) -> None:
        self.mails: list[bytes] = []
        self.envelopes: list[list[str]] = []
        self.log_ins: list[str] = []
        self.commands: list[str] = []
        self.in_tls: list[str] = []
        self._script = script or MailScript()
        self._tls = tls
        self._implicit = implicit
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        context = self._tls if self._implicit else None
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
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

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._converse(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._script
        envelope: list[str] = []
        secured = self._implicit

        async def say(at: str, usual: str) -> None:
            if script.hangs_at == at:
                await asyncio.Event().wait()
            writer.write((script.answers.get(at, usual) + "\r\n").encode())
            await writer.drain()

        if script.drip_s is not None:
            for byte in b"220 " + b"x" * 10_000:
                writer.write(bytes([byte]))
                await asyncio.sleep(script.drip_s)
        await say("connect", "220 receiver")
        while line := (await reader.readline()).decode().strip():
            word = line.split(" ")[0].upper()
            self.commands.append(word)
            if secured:
                self.in_tls.append(word)
            match word:
                case "EHLO":
                    offers = [offer for offer in script.offers if not (secured and offer == "STARTTLS")]
                    await say(
                        word, "\r\n".join(["250-receiver", *(f"250-{offer}" for offer in offers), "250 8BITMIME"])
                    )
                case "STARTTLS":
                    await say(word, "220 go ahead")
                    assert self._tls is not None
                    await writer.start_tls(self._tls)
                    secured = True
                case "AUTH":
                    self.log_ins.append(base64.b64decode(line.split(" ")[2]).decode())
                    await say(word, "235 come in")
                case "MAIL" | "RCPT":
                    envelope.append(line)
                    await say(line.upper() if line.upper() in script.answers else word, "250 ok")
                case "DATA":
                    await say(word, "354 go on")
                    mail = await reader.readuntil(b"\r\n.\r\n")
                    await say(".", "250 taken")
                    if script.answers.get(".", "250").startswith("250"):
                        self.mails.append(mail)
                        self.envelopes.append(envelope)
                case "QUIT":
                    await say(word, "221 bye")
                    return
                case _:
                    await say(word, "250 ok")
