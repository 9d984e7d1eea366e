"""One HTTP exchange with a server that isn't ours: how long it may take, why it failed, and what its headers say."""

import asyncio
import email.utils
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

_DIGITS_MAX = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Transport(AiohttpTransport):
    """aiohttp under httpx's interface, with a deadline up to the end of the headers, which else could drip for ever.

    The deadline cancels inside aiohttp, which then closes the connection; httpcore, which leaks its pool's slots on
    cancellation, is not in use.
    """

    def __init__(self, context: ssl.SSLContext, connector: Callable[[], aiohttp.BaseConnector], total_s: float) -> None:
        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(connector=connector(), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

        super().__init__(verify=context, trust_env=False, client=session)
        self._total_s = total_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            async with asyncio.timeout(self._total_s):
                return await super().handle_async_request(request)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole headers within {self._total_s:.0f} s") from None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it, ten at most."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        yield cause
        inner = getattr(cause, "certificate_error", None) or getattr(cause, "os_error", None)
        if isinstance(inner, BaseException):
            yield inner
        cause = cause.__cause__ or cause.__context__


def read_number(text: str | None) -> int | None:
    """A header's non-negative number; ``None`` when it is absent or none (RFC 9111: such a field is ignored)."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None


def read_date_us(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * 1_000_000


def read_retry_after_s(text: str | None, server_date_us: int | None) -> float | None:
    """Seconds, or until a date by the server's own clock where it tells it. ``None``: absent or unreadable."""
    if (seconds := read_number(text)) is not None:
        return float(seconds)
    if (until_us := read_date_us(text)) is None:
        return None
    now_us = server_date_us if server_date_us is not None else int(time.time() * 1_000_000)
    return max(0.0, (until_us - now_us) / 1_000_000)
