"""Is a server ready? Each check asks once, with a short time-out, and never raises: it's called in a loop."""

import http.client
import json
import socket
import struct
import urllib.request
from collections.abc import Callable
from urllib.error import HTTPError, URLError

Check = Callable[[], bool]

_CORRELATION_ID = 0x7D3
_TIMEOUT_S = 2.0
# Loopback must never go through a proxy of the user's environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def http_answers(url: str, statuses: tuple[int, ...] = (200,)) -> Check:
    """True once a GET answers one of ``statuses``."""

    def check() -> bool:
        try:
            with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
                return answer.status in statuses
        except HTTPError as refused:
            return refused.code in statuses
        except (URLError, OSError, http.client.HTTPException):
            return False

    return check


def kafka_answers(port: int) -> Check:
    """True once the broker answers ApiVersions: its client listener opens only when it is unfenced."""
    body = struct.pack(">hhih5s", 18, 0, _CORRELATION_ID, 5, b"probe")
    request = struct.pack(">i", len(body)) + body

    def check() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
                connection.sendall(request)
                answer = connection.recv(8)
        except OSError:
            return False
        # Not an echo: a connection to a closed loopback port may meet itself and read back its own bytes.
        return len(answer) == 8 and answer != request[:8] and struct.unpack(">ii", answer)[1] == _CORRELATION_ID

    return check


def put_json(url: str, body: dict[str, str]) -> None:
    """PUT, for a server's first settings. Raises ``URLError``."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), method="PUT", headers={"Content-Type": "application/json"}
    )
    with _OPENER.open(request, timeout=30):
        pass


def wake(url: str, headers: dict[str, str]) -> None:
    """GET, for a first call that makes a lazy server load. Raises ``URLError``."""
    with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=60):
        pass
