"""Where the demo's notices arrive: a receiver of Standard Webhooks on loopback that prints what it is sent."""

import base64
import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web

BODY_BYTES_MAX = 1024 * 1024


class Receiver:
    """Prints the first notice whole, of the others a line; a notice that comes again counts once."""

    def __init__(self, say: Callable[[str], None], port: int) -> None:
        self._say = say
        self.url = f"http://127.0.0.1:{port}/notices"
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self._port = port
        self._seen: set[str] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/notices", self._accept)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def notices(self) -> int:
        return len(self._seen)

    async def _accept(self, request: web.Request) -> web.Response:
        notice: dict[str, Any] = await request.json()
        content = notice.get("data", notice)
        if request.headers["webhook-id"] not in self._seen:
            self._seen.add(request.headers["webhook-id"])
            self._show(content)
        return web.Response()

    def _show(self, notice: dict[str, Any]) -> None:
        self._say(f"a notice for {notice['owner']}: {notice['title']}")
        if len(self._seen) == 1:
            for name in ("rule", "first_seen", "last_seen", "delete_after"):
                self._say(f"    {name:<13}{notice[name]}")
            self._say(f"    {'evidence':<13}{notice['evidence']['uri']}")
            for command in notice["commands"]:
                self._say(f"    {command}")
