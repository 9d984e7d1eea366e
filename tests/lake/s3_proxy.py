"""A loopback HTTP proxy between a Spark driver and S3 that holds, answers, or loses the answer of chosen requests.

Threads, not asyncio: what is held waits for the test, which itself waits for a driver.
"""

import http.client
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "host"})
_COMMIT = re.compile(r"/_delta_log/\d{20}\.json$")
_HELD_S_MAX = 300.0


@dataclass
class Request:
    method: str
    path: str
    query: str
    condition: str
    """``If-None-Match``."""
    status: int = 0
    """What the store answered; 0: it was never asked."""

    @property
    def is_commit(self) -> bool:
        return self.method == "PUT" and bool(_COMMIT.search(self.path))


@dataclass
class Fault:
    """What happens to the next request that ``meets`` says; once, then all is well again."""

    meets: Callable[[Request], bool]
    once: bool = True
    holds: bool = False
    """Stop here until ``let_go``."""
    answers: int = 0
    """Answer this instead of the store, with an S3 error of that status."""
    asks_store: bool = True
    drops_answer: bool = False
    """Cut the connection instead of answering."""
    strips_condition: bool = False
    code: str = "InternalError"
    met: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)


def commit(request: Request) -> bool:
    return request.is_commit


class S3Proxy:
    """``with S3Proxy(endpoint) as proxy``: the store is at ``proxy.url``. ``requests`` is all that came, in order."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = urlsplit(endpoint)
        self._faults: list[Fault] = []
        self._taking = threading.Lock()
        self.requests: list[Request] = []
        proxy = self

        class Handler(_Handler):
            serves = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3-proxy", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fault in self._faults:
            fault.let_go.set()
        self.heal()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fault(self, fault: Fault) -> Fault:
        """From now on ``fault`` waits for its request."""
        with self._taking:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._taking:
            self._faults.clear()

    def take(self, request: Request) -> Fault | None:
        with self._taking:
            waiting = (one for one in self._faults if not (one.once and one.met.is_set()) and one.meets(request))
            if found := next(waiting, None):
                found.met.set()
            return found

    def ask(self, request: Request, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert self._endpoint.hostname
        store = http.client.HTTPConnection(self._endpoint.hostname, self._endpoint.port, timeout=_HELD_S_MAX)
        try:
            target = request.path + (f"?{request.query}" if request.query else "")
            store.request(request.method, target, body=body, headers=headers)
            answer = store.getresponse()
            request.status = answer.status
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            store.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serves: S3Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        request = Request(self.command, url.path, url.query, self.headers.get("If-None-Match", ""))
        self.serves.requests.append(request)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        fault = self.serves.take(request) or Fault(commit)
        if fault.holds:
            fault.let_go.wait(_HELD_S_MAX)
        if fault.strips_condition:
            headers.pop("If-None-Match", None)
        status, answered, content = 0, dict[str, str](), b""
        if fault.asks_store:
            status, answered, content = self.serves.ask(request, headers, body)
        if fault.drops_answer:
            self.close_connection = True
            return
        if fault.answers:
            status, answered = fault.answers, {"Content-Type": "application/xml"}
            content = f"<Error><Code>{fault.code}</Code><Message>asked for</Message></Error>".encode()
        self._answer(status, answered, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        pass
