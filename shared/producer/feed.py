"""The change feed over HTTP: one bounded request, its whole body, or an error that says what the caller is to do.

Nothing of the body is judged here, nor is its content type believed: that is for whoever splits it into events.
"""

import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

import aiohttp
import httpx
from msgspec import Struct

from shared.config import ConfigError
from shared.entities import Source, TimeFormat
from shared.producer.budget import HostBudget, HostBudgets, HostResting
from shared.producer.exchange import Transport, causes, read_date_us, read_number, read_retry_after_s

CONNECTIONS_MAX = 100
"""Per source. An entity has one request in flight."""
TOTAL_S = 120.0
"""One request may take so long, however steadily it drips; looked at between two pieces of the body."""
RATE_LIMITED_S = 30.0
"""The rest after a 429 that doesn't say how long."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SourceError(Exception):
    """The source gave no page; the cursor stands. ``error_class`` is the metric label, see ``metrics.SOURCE_ERRORS``.

    ``retry_after_s``: no request would be sent before; ``None``: the caller's own backoff for this class.
    """

    error_class: ClassVar[str]

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SourceUnavailable(SourceError):
    """No connection, 5xx, a body that was cut or came too slowly: ask again later."""

    error_class = "source_unavailable"


class SourceRateLimited(SourceError):
    """The source wants a rest, or our own rate is used up. ``retry_after_s`` is always given, and is the whole time."""

    error_class = "source_rate_limited"


class SourceAuth(SourceError):
    """401, 403, 404 or a TLS failure, also with the secret read anew: a person must look at it."""

    error_class = "source_auth"


class SourceMalformed(SourceError):
    """An answer that is no page: a redirect, another status, a stale copy from a cache, an encoding not asked for."""

    error_class = "source_malformed"


class SourceTooLarge(SourceMalformed):
    """The body is above ``body_bytes_max``: a smaller page may do."""


class FeedRequest(Protocol):
    """What to ask for; ``reading.Request`` is one."""

    @property
    def since_us(self) -> int: ...
    @property
    def limit(self) -> int | None: ...


class FeedAnswer(Struct, frozen=True, gc=False):
    """A complete body of status 200, decompressed, and not from a cache."""

    body: bytes
    server_date_us: int | None  # the header ``Date``, whole seconds
    elapsed_s: float  # of the last request
    requests: int  # 1, or more when the secret was read anew or a cache was bypassed


class ChangeFeed:
    """The changes of one entity. Bound to the client of its source."""

    def __init__(
        self,
        client: "FeedClient",
        source_entity: str,
        *,
        granularity_us: int = 1,
        utc_offset_minutes: int | None = None,
    ) -> None:
        self._client = client
        self._source = client.source
        self._entity = source_entity
        self._granularity_us = granularity_us
        self._utc_offset_minutes = utc_offset_minutes

    async def fetch(self, request: FeedRequest) -> FeedAnswer:
        """Ask once, and again only by the rules for stale copies and secrets. Raises ``SourceError``.

        Every wait inside has a bound: don't put a timeout around it.
        """
        return await self._client.get(self._parameters(request))

    def _parameters(self, request: FeedRequest) -> dict[str, str]:
        source = self._source
        since = since_text(request.since_us, source.since_format, self._granularity_us, self._utc_offset_minutes)
        parameters = {source.entity_param: self._entity, source.since_param: since}
        if request.limit is not None and source.limit_param is not None:
            parameters[source.limit_param] = str(request.limit)
        return parameters


class FeedClient:
    """The connections to one source. Sends nothing before the first ``get``."""

    def __init__(self, source: Source, budget: HostBudget, client: httpx.AsyncClient, total_s: float) -> None:
        self.source = source
        self._budget = budget
        self._client = client
        self._total_s = total_s
        self._secret: str | None = None

    @classmethod
    async def open(
        cls, source: Source, budgets: HostBudgets, stack: AsyncExitStack, *, total_s: float = TOTAL_S
    ) -> "FeedClient":
        """Closes with ``stack``. Raises ``ConfigError`` on a url or CA file that can't be used."""
        parts = urlsplit(source.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError([f"source {source.name}: expected a url http(s)://host/path, without user or password"])
        context = _tls(source)
        client = httpx.AsyncClient(
            transport=Transport(context, partial(_connector, context), total_s),
            timeout=httpx.Timeout(
                connect=source.connect_timeout_s, read=source.read_timeout_s, write=source.read_timeout_s, pool=10
            ),
            # Identity: what is not compressed can't explode, and costs less CPU to receive.
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "tidemark"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # an answer must not depend on the one before
            follow_redirects=False,
            trust_env=False,
        )
        await stack.enter_async_context(client)
        budget = budgets.of(source.url, source.requests_per_s)
        return cls(source, budget, client, total_s)

    async def get(self, parameters: dict[str, str]) -> FeedAnswer:
        """One page. Raises ``SourceError``."""
        age_s, answer = await self._authorised(parameters, no_cache=False)
        if age_s > 0:
            asked = answer.requests
            age_s, answer = await self._authorised(parameters, no_cache=True)
            answer = FeedAnswer(answer.body, answer.server_date_us, answer.elapsed_s, asked + answer.requests)
        if age_s > 0:
            raise SourceMalformed(
                f"a cache before the source answers with a copy {age_s} s old, even to no-cache: exempt this path there"
            )
        return answer

    async def _authorised(self, parameters: dict[str, str], no_cache: bool) -> tuple[int, FeedAnswer]:
        """Once more with the secret read anew where the source refuses us: it may have been rotated."""
        try:
            return await self._in_turn(parameters, no_cache, requests=1)
        except _Refused:
            self._secret = None
        try:
            return await self._in_turn(parameters, no_cache, requests=2)
        except _Refused as error:
            raise SourceAuth(str(error)) from None

    async def _in_turn(self, parameters: dict[str, str], no_cache: bool, requests: int) -> tuple[int, FeedAnswer]:
        try:
            async with self._budget.turn():
                return await self._once(parameters, no_cache, requests)
        except HostResting as error:
            kind = SourceRateLimited if error.limited else SourceUnavailable
            raise kind(str(error), error.retry_after_s) from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from error

    async def _once(self, parameters: dict[str, str], no_cache: bool, requests: int) -> tuple[int, FeedAnswer]:
        started_s = time.monotonic()
        url = httpx.URL(self.source.url, params=parameters)
        async with self._client.stream("GET", url, headers=self._headers(no_cache)) as response:
            self._budget.reached()
            date_us = read_date_us(response.headers.get("date"))
            self._judge_status(response, date_us)
            body = await self._body(response, started_s)
        answer = FeedAnswer(body, date_us, time.monotonic() - started_s, requests)
        return read_number(response.headers.get("age")) or 0, answer

    def _headers(self, no_cache: bool) -> dict[str, str]:
        headers = {"cache-control": "no-cache", "pragma": "no-cache"} if no_cache else {}
        if (auth := self.source.auth) is not None:
            if self._secret is None:
                try:
                    self._secret = auth.value()
                except ConfigError as error:
                    raise SourceAuth(f"source {self.source.name}: {error}") from None
            headers[auth.header] = self._secret
        return headers

    def _judge_status(self, response: httpx.Response, date_us: int | None) -> None:
        """Return on 200, else raise what the status means. Bodies of errors are not read."""
        status = response.status_code
        retry_after_s = read_retry_after_s(response.headers.get("retry-after"), date_us)
        if status == 200:
            return
        if status == 429 or (status == 503 and retry_after_s is not None):
            rest_s = RATE_LIMITED_S if retry_after_s is None else max(retry_after_s, 1.0)
            self._budget.rest(rest_s)
            raise SourceRateLimited(f"the source answers {status}: no request for {rest_s:.0f} s", rest_s)
        if status in (401, 403, 404, 407):
            raise _Refused(f"the source answers {status}: check its url, the entity's name and our secret")
        if status >= 500 or status in (408, 425):
            raise SourceUnavailable(f"the source answers {status}")
        if response.has_redirect_location:
            to = urlsplit(response.headers["location"])
            raise SourceMalformed(
                f"the source answers {status} to {to.scheme}://{to.hostname}: redirects aren't followed"
            )
        raise SourceMalformed(f"the source answers {status}, which is no page")

    async def _body(self, response: httpx.Response, started_s: float) -> bytes:
        limit = self.source.body_bytes_max
        if (read_number(response.headers.get("content-length")) or 0) > limit:
            raise _too_large(limit)
        inflate = _inflater(response.headers.get("content-encoding", ""), limit)
        pieces: list[bytes] = []
        size = 0
        async for received in response.aiter_raw():
            for piece in inflate(received):
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                pieces.append(piece)
            if time.monotonic() - started_s > self._total_s:
                raise SourceUnavailable(f"no whole answer within {self._total_s:.0f} s, {size} bytes came")
        for _ in inflate(b""):
            raise AssertionError("an ended body holds nothing more")
        return b"".join(pieces)

    def _failure(self, error: BaseException) -> SourceError:
        name = self.source.name
        if any(isinstance(cause, ssl.SSLError | ssl.CertificateError) for cause in causes(error)):
            return SourceAuth(f"source {name}: no trusted TLS connection ({error}); check its certificate and ca_file")
        if any(
            isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) for cause in causes(error)
        ):
            return SourceUnavailable(f"source {name} can't be reached ({error})", self._budget.unreachable())
        return SourceUnavailable(f"source {name}: no whole answer ({error or type(error).__name__})")


def since_text(since_us: int, time_format: TimeFormat, granularity_us: int, utc_offset_minutes: int | None) -> str:
    """The time as the source writes its own: rounded down to its granularity, ISO with as many digits as that needs.

    ISO is UTC with ``Z``; with an offset the source's stamps are local times without one, and so is this. No source has
    numbers below 0, and many refuse them.
    """
    floored_us = since_us - since_us % granularity_us
    if time_format != "iso8601":
        floored_us = max(floored_us, 0)
    match time_format:
        case "epoch_s":
            return str(floored_us // 1_000_000)
        case "epoch_ms":
            return str(floored_us // 1_000)
        case "epoch_us":
            return str(floored_us)
        case "iso8601":
            moment = _EPOCH + timedelta(microseconds=floored_us, minutes=utc_offset_minutes or 0)
            if granularity_us % 1_000_000 == 0:
                digits = "seconds"
            else:
                digits = "milliseconds" if granularity_us % 1_000 == 0 else "microseconds"
            return moment.replace(tzinfo=None).isoformat(timespec=digits) + ("Z" if utc_offset_minutes is None else "")


class _Refused(Exception):
    """The source does not know us, or not the entity; a new secret may help."""


def _connector(context: ssl.SSLContext) -> aiohttp.BaseConnector:
    return aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=context, keepalive_timeout=60)


def _tls(source: Source) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=source.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError([f"source {source.name}: ca_file {source.ca_file}: no CA certificates ({error})"]) from None


def _inflater(encoding: str, limit: int) -> Callable[[bytes], Iterator[bytes]]:
    """What turns received pieces into the body's, ``limit`` bytes at most at a time; called with ``b""`` at the end."""
    match encoding.strip().lower():
        case "" | "identity":
            return lambda piece: iter((piece,)) if piece else iter(())
        case "gzip" | "x-gzip":
            return _Gunzip(limit).pieces
        case other:
            raise SourceMalformed(f"the source compresses with {other!r}, which we did not ask for")


class _Gunzip:
    """Some sources compress unasked. Members may follow one another, as the format allows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._member = zlib.decompressobj(wbits=31)

    def pieces(self, received: bytes) -> Iterator[bytes]:
        if not received and not self._member.eof:
            raise SourceUnavailable("the compressed body was cut")
        while received:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            try:
                piece = self._member.decompress(received, self._limit + 1)  # one byte more is enough to refuse it
            except zlib.error as error:
                raise SourceUnavailable(f"the compressed body is damaged ({error})") from None
            received = self._member.unused_data
            if piece:
                yield piece


def _too_large(limit: int) -> SourceTooLarge:
    return SourceTooLarge(
        f"the body is larger than {limit} bytes: lower page_rows, or raise the source's body_bytes_max"
    )
