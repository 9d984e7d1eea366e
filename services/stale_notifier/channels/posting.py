"""One POST to a receiver of notices, and what its answer means: delivered, not now, or refused.

What an error says never holds the url, a header or a secret: they may stand in it, and errors go to logs.
"""

import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from urllib.parse import urlsplit

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct

from services.stale_notifier.channels.guard import AddressRefused, Guard
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, legible
from shared.config import ConfigError
from shared.owners import ChannelSettings, Secret, wrong_with_url
from shared.producer.budget import HostBudget, HostResting
from shared.producer.exchange import Transport, causes, read_date_us, read_retry_after_s

CONNECTIONS_MAX = 20
ANSWER_BYTES_MAX = 4_096
"""Of an answer's body so much is read, and the rest left."""
TOTAL_TIMEOUTS = 3
"""One request takes at most so many times ``timeout_s`` until its answer's headers are there."""
RATE_LIMITED_S = 30.0
"""The rest after a 429 that doesn't say how long."""

Clock = Callable[[], int]
"""Milliseconds since 1970."""


class Answer(Struct, frozen=True):
    """A receiver's 2xx. The body is a nicety: cut, or empty where it didn't come whole."""

    status: int
    body: bytes


class Post(Struct, frozen=True, kw_only=True):
    """What to send. ``secrets`` stand in it and are cut from whatever the receiver says about it."""

    url: str
    body: bytes
    headers: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()


class Poster:
    """POSTs of one channel, at its pace. Connections are shared with channels of equal settings."""

    def __init__(self, settings: ChannelSettings, client: httpx.AsyncClient, guard: Guard, budget: HostBudget) -> None:
        self._name = settings.name
        self._timeout_s = settings.timeout_s
        self._client = client
        self._guard = guard
        self._budget = budget

    async def post(self, post: Post) -> Answer:
        """Raises ``ChannelUnavailable`` or ``ChannelRefused``. Every wait inside has a bound."""
        try:
            self._guard.check_host(urlsplit(post.url).hostname or "")
            async with self._budget.turn():
                return await self._once(post)
        except HostResting as error:
            raise ChannelUnavailable(str(error), error.retry_after_s) from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from None  # its own text may quote the url

    async def _once(self, post: Post) -> Answer:
        headers = {"content-type": "application/json"} | dict(post.headers)
        timeout = httpx.Timeout(self._timeout_s)
        async with self._client.stream(
            "POST", post.url, content=post.body, headers=headers, timeout=timeout
        ) as response:
            self._budget.reached()
            body = await self._body(response)
            if 200 <= response.status_code < 300:
                return Answer(response.status_code, body)
            raise self._judged(response, _said(body, (post.url, *post.headers.values(), *post.secrets)))

    async def _body(self, response: httpx.Response) -> bytes:
        """The answer's beginning. The status has decided already: a body that doesn't come changes nothing."""
        body = b""
        until_s = time.monotonic() + self._timeout_s
        try:
            async for piece in response.aiter_raw():
                body += piece[: ANSWER_BYTES_MAX - len(body)]
                if len(body) >= ANSWER_BYTES_MAX or time.monotonic() > until_s:
                    break
        except (httpx.HTTPError, aiohttp.ClientError, OSError):
            pass
        return body

    def _judged(self, response: httpx.Response, said: str) -> ChannelUnavailable | ChannelRefused:
        status = response.status_code
        message = f"channel {self._name}: the receiver answers {status}{said}"
        server_us = read_date_us(response.headers.get("date"))
        retry_after_s = read_retry_after_s(response.headers.get("retry-after"), server_us)
        if status == 429 or (status >= 500 and retry_after_s is not None):
            rest_s = RATE_LIMITED_S if retry_after_s is None else max(retry_after_s, 1.0)
            self._budget.rest(rest_s)
            return ChannelUnavailable(message, rest_s)
        if status >= 500 or status in (408, 425):
            return ChannelUnavailable(message)
        if status == 410:
            return ChannelRefused(f"{message}: it wants no more notices; remove or renew it", permanent=True)
        if 300 <= status < 400:
            return ChannelRefused(f"{message}: redirects aren't followed; correct its url", permanent=True)
        if status in (401, 403, 404, 405, 407):
            return ChannelRefused(f"{message}: check its url and secret", permanent=True)
        return ChannelRefused(message, permanent=False)

    def _failure(self, error: BaseException) -> ChannelUnavailable | ChannelRefused:
        behind = list(causes(error))
        refused = next((cause for cause in behind if isinstance(cause, AddressRefused)), None)
        if refused is not None:
            return ChannelRefused(f"channel {self._name}: {refused}", permanent=True)
        tls = next((cause for cause in behind if isinstance(cause, ssl.SSLError | ssl.CertificateError)), None)
        if tls is not None:
            why = getattr(tls, "verify_message", "") or getattr(tls, "reason", "") or type(tls).__name__
            return ChannelUnavailable(
                f"channel {self._name}: no trusted TLS connection ({why}); check its certificate and ca_file",
                self._budget.unreachable(),
            )
        kinds = " from ".join(dict.fromkeys(type(cause).__name__ for cause in behind))
        if any(isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) for cause in behind):
            return ChannelUnavailable(f"channel {self._name}: can't be reached ({kinds})", self._budget.unreachable())
        return ChannelUnavailable(f"channel {self._name}: no answer ({kinds})")


class Clients:
    """The process's HTTP clients: one, and one more for each other CA file or list of allowed addresses."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._by_trust: dict[tuple[str | None, tuple[str, ...], float], httpx.AsyncClient] = {}
        self._budgets: dict[str | Secret, HostBudget] = {}

    async def poster(self, settings: ChannelSettings, receiver: str | Secret, requests_per_s: float = 20) -> Poster:
        """Closes with the stack. Owners that name the same ``receiver`` share its pace and the rests that it asks for.

        Raises ``ConfigError`` on a CA file that can't be used.
        """
        guard = Guard(settings.allow_addresses)
        trust = (settings.ca_file, settings.allow_addresses, settings.timeout_s)
        client = self._by_trust.get(trust)
        if client is None:
            client = _client(settings, guard)
            self._by_trust[trust] = await self._stack.enter_async_context(client)
        budget = self._budgets.setdefault(receiver, HostBudget(f"channel {settings.name}"))
        budget.allow(requests_per_s)
        return Poster(settings, client, guard, budget)


def read_url(name: str, url: str | Secret, plain_http: bool) -> str:
    """Raises ``ConfigError``, which doesn't quote it."""
    whole = url.read() if isinstance(url, Secret) else url
    wrong = wrong_with_url(whole, plain_http=plain_http)
    if wrong:
        raise ConfigError([f"channel {name}: url: {wrong}"])
    return whole


def read_secret(name: str, secret: Secret) -> str:
    """While sending: a secret that is gone may be on its way. Raises ``ChannelUnavailable``."""
    try:
        return secret.read()
    except ConfigError as error:
        raise ChannelUnavailable(f"channel {name}: {error}") from None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def tls_context(settings: ChannelSettings) -> ssl.SSLContext:
    """Verifies chain and host name. Raises ``ConfigError``."""
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError([f"channel {settings.name}: ca_file: no CA certificates ({error})"]) from None


def _client(settings: ChannelSettings, guard: Guard) -> httpx.AsyncClient:
    context = tls_context(settings)
    return httpx.AsyncClient(
        transport=Transport(context, partial(_connector, context, guard), settings.timeout_s * TOTAL_TIMEOUTS),
        headers={"accept": "*/*", "accept-encoding": "identity", "user-agent": "tidemark"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
    )


def _connector(context: ssl.SSLContext, guard: Guard) -> aiohttp.BaseConnector:
    return aiohttp.TCPConnector(
        limit=CONNECTIONS_MAX, ssl=context, resolver=_GuardedResolver(guard), keepalive_timeout=15
    )


class _GuardedResolver(AbstractResolver):
    """Gives aiohttp, which connects to what it is given, none but judged addresses."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        by_address = {ip_address(entry["host"].partition("%")[0]): entry for entry in found}
        return [by_address[address] for address in self._guard.passed(host, list(by_address))]

    async def close(self) -> None:
        await self._resolver.close()


def _said(body: bytes, secrets: Sequence[str]) -> str:
    """The receiver's own words, short and without what is secret."""
    words = body.decode("utf-8", "replace")
    for secret in secrets:
        if secret:
            words = words.replace(secret, "[hidden]")
    words = legible(" ".join(words.split()))
    return f" ({words})" if words else ""
