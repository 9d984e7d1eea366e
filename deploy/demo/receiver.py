"""Where the demo's notices arrive: a receiver of Standard Webhooks that prints what it is sent, and shows it again.

``python -m deploy.demo.receiver`` serves it alone; ``./deploy/local/demo`` has one inside. ``POST /notices`` takes
notices, ``GET /notices`` shows those taken, oldest first, ``GET /health`` answers.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from shared.config import ConfigError, load_config

BODY_BYTES_MAX = 1024 * 1024
NOTICES_MAX = 500
"""Shown again; older ones are forgotten."""
SKEW_S_MAX = 300.0
_SECRET_PREFIX = "whsec_"  # what secrets begin with, none itself


class ReceiverSettings(Struct, frozen=True, kw_only=True):
    """``RECEIVER_HOST``, ``RECEIVER_PORT``."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8090


class SharedSecret(Struct, frozen=True, kw_only=True):
    """``BANK_NOTICES_SECRET``: the one that the notifier signs with."""

    notices_secret: Annotated[str, Meta(min_length=1)]


class Receiver:
    """Prints the first notice whole, of the others a line; a notice that comes again counts once."""

    def __init__(
        self, say: Callable[[str], None], port: int, *, host: str = "127.0.0.1", secret: str | None = None
    ) -> None:
        """``secret`` ``None``: one is made. Raises ``ValueError``: not ``whsec_`` and base64."""
        self._say = say
        self.url = f"http://127.0.0.1:{port}/notices"
        self.secret = secret or _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()
        self._key = base64.b64decode(self.secret.removeprefix(_SECRET_PREFIX), validate=True)
        self._host, self._port = host, port
        self._seen: set[str] = set()
        self._shown: deque[dict[str, Any]] = deque(maxlen=NOTICES_MAX)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/notices", self._accept)
        app.router.add_get("/notices", self._list)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def notices(self) -> int:
        return len(self._seen)

    async def _accept(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not signed_by(self._key, request.headers, body, time.time()):
            raise web.HTTPUnauthorized(text="the signature is not that of BANK_NOTICES_SECRET, or its time is not now")
        notice: dict[str, Any] = await request.json()
        content = notice.get("data", notice)
        message_id = request.headers["webhook-id"]
        if message_id not in self._seen:
            self._seen.add(message_id)
            self._shown.append({"id": message_id, "received": datetime.now(UTC).isoformat(), "notice": content})
            self._show(content)
        return web.Response()

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response(list(self._shown))

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def _show(self, notice: dict[str, Any]) -> None:
        self._say(f"a notice for {notice['owner']}: {notice['title']}")
        if len(self._seen) == 1:
            for name in ("rule", "first_seen", "last_seen", "delete_after"):
                self._say(f"    {name:<13}{notice[name]}")
            self._say(f"    {'evidence':<13}{notice['evidence']['uri']}")
            for command in notice["commands"]:
                self._say(f"    {command}")


def signed_by(key: bytes, headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """As the Standard Webhooks 1.0.0 say: one of the signatures is the key's, and its time is within five minutes."""
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or not stamp.isascii() or not stamp.isdigit() or abs(int(stamp) - now_s) > SKEW_S_MAX:
        return False
    content = f"{message_id}.{stamp}.".encode() + body
    own = b"v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256))
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(own, signature) for signature in given)


async def serve(settings: ReceiverSettings, secret: str) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    receiver = Receiver(lambda line: print(line, flush=True), settings.port, host=settings.host, secret=secret)
    await receiver.start()
    await stop.wait()
    await receiver.close()


def main(environ: Mapping[str, str]) -> int:
    try:
        settings = load_config(ReceiverSettings, environ, "RECEIVER_")
        secret = load_config(SharedSecret, environ, "BANK_").notices_secret
        asyncio.run(serve(settings, secret))
    except (ConfigError, binascii.Error) as error:
        text = str(error) if isinstance(error, ConfigError) else "BANK_NOTICES_SECRET: expected whsec_ and base64"
        print(text, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
