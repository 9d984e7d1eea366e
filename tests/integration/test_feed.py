"""The change feed against a loopback server that misbehaves: every answer is a whole body or a named error, in time."""

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from msgspec import Struct

from shared.config import ConfigError
from shared.entities import Auth, Source
from shared.producer.budget import HostBudgets
from shared.producer.feed import (
    ChangeFeed,
    FeedClient,
    SourceAuth,
    SourceError,
    SourceMalformed,
    SourceRateLimited,
    SourceTooLarge,
    SourceUnavailable,
)
from tests.fakes.http_source import HttpSource, Reply


class Request(Struct, frozen=True):
    since_us: int = 1_767_323_045_123_456
    limit: int | None = None


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def opened(
    exits: AsyncExitStack, url: str, *, total_s: float = 5, budgets: HostBudgets | None = None, **changes: Any
) -> ChangeFeed:
    source = Source(
        name="bank",
        url=url,
        **({"connect_timeout_s": 1, "read_timeout_s": 1, "body_bytes_max": 100_000, "requests_per_s": 1000} | changes),
    )
    client = await FeedClient.open(source, budgets or HostBudgets(), exits, total_s=total_s)
    return ChangeFeed(client, "accounts", granularity_us=1000)


async def outcome(exits: AsyncExitStack, *replies: Reply, **changes: Any) -> SourceError:
    """The error that a source with these replies leads to."""
    async with HttpSource(*replies) as source:
        feed = await opened(exits, source.url, **changes)
        with pytest.raises(SourceError) as caught:
            await feed.fetch(Request())
    return caught.value


# --- what is asked, what comes back


async def test_a_page_is_asked_for_as_the_source_wants_it(exits: AsyncExitStack) -> None:
    async with HttpSource(Reply(b'[{"id": 1}]')) as source:
        feed = await opened(exits, source.url, limit_param="limit", entity_param="table")

        answer = await feed.fetch(Request(limit=100))
        await feed.fetch(Request())

    assert answer.body == b'[{"id": 1}]'
    assert answer.server_date_us is not None
    assert abs(answer.server_date_us - time.time() * 1e6) < 60e6
    first, second = source.asked
    since = "2026-01-02T03:04:05.123Z"
    assert first.path == "/cdc"
    assert first.parameters == {"table": "accounts", "updatedSince": since, "limit": "100"}
    assert second.parameters == {"table": "accounts", "updatedSince": since}
    assert first.headers["accept-encoding"] == "identity"
    assert "cache-control" not in first.headers
    assert source.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_byte_for_byte_whatever_its_content_type(exits: AsyncExitStack, chunked: bool) -> None:
    body = bytes(range(256)) * 300
    async with HttpSource(
        Reply(body, chunked=chunked, headers={"content-type": "text/html; charset=utf-16"})
    ) as source:
        answer = await (await opened(exits, source.url)).fetch(Request())

    assert answer.body == body


async def test_no_cookie_is_kept_and_no_proxy_of_the_environment_used(
    exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with HttpSource(Reply(headers={"set-cookie": "session=1"})) as source:
        feed = await opened(exits, source.url)
        await feed.fetch(Request())
        await feed.fetch(Request())

    assert "cookie" not in source.asked[1].headers


async def test_a_connection_that_the_source_closed_between_two_requests_does_no_harm(exits: AsyncExitStack) -> None:
    async with HttpSource(Reply(b"[1]", closes=True)) as source:
        feed = await opened(exits, source.url)

        bodies = [(await feed.fetch(Request())).body for _ in range(5)]

    assert bodies == [b"[1]"] * 5


# --- compression


async def test_a_body_compressed_unasked_is_inflated(exits: AsyncExitStack) -> None:
    body = gzip.compress(b"[1,") + gzip.compress(b"2]")
    async with HttpSource(Reply(body, chunked=True, headers={"content-encoding": "gzip"})) as source:
        answer = await (await opened(exits, source.url)).fetch(Request())

    assert answer.body == b"[1,2]"


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (gzip.compress(b"x" * 50_000_000), "gzip", SourceTooLarge),
        (gzip.compress(b"x" * 60_000) * 2, "gzip", SourceTooLarge),
        (gzip.compress(b"[1,2,3]")[:-4], "gzip", SourceUnavailable),
        (gzip.compress(b"[1,2,3]")[:-8] + b"\0" * 8, "gzip", SourceUnavailable),
        (b"[1,2,3]", "gzip", SourceUnavailable),
        (b"", "gzip", SourceUnavailable),
        (b"[]", "br", SourceMalformed),
        (b"[]", "zstd", SourceMalformed),
        (gzip.compress(gzip.compress(b"[]")), "gzip, gzip", SourceMalformed),
    ],
)
async def test_a_compressed_body_neither_explodes_nor_passes_damaged(
    exits: AsyncExitStack, body: bytes, encoding: str, error: type[SourceError]
) -> None:
    assert type(await outcome(exits, Reply(body, headers={"content-encoding": encoding}))) is error


# --- bodies that are too large, cut or slow


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_the_cap_is_not_read_to_its_end(exits: AsyncExitStack, chunked: bool) -> None:
    async with HttpSource(Reply(b"x" * 100_001, chunked=chunked), Reply(b"[1]")) as source:
        feed = await opened(exits, source.url)
        with pytest.raises(SourceTooLarge, match="larger than 100000 bytes"):
            await feed.fetch(Request())

        assert (await feed.fetch(Request())).body == b"[1]"


async def test_a_body_of_just_the_cap_is_read(exits: AsyncExitStack) -> None:
    async with HttpSource(Reply(b"x" * 100_000)) as source:
        assert len((await (await opened(exits, source.url)).fetch(Request())).body) == 100_000


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"[1,2,3]", cut_after=0),
        Reply(b"[1,2,3]", cut_after=20),
        Reply(b"[" + b"1," * 20_000, cut_after=10_000),
        Reply(b"[" + b"1," * 20_000, cut_after=10_000, chunked=True),
        Reply(b"[1]", headers={"content-length": "100"}, closes=True),
        Reply(b"[1]", headers={"transfer-encoding": "chunked", "content-length": None}, closes=True),
        Reply(b"[1]", headers={"x": "y" * 100_000}),
        Reply(b"[1]", hangs=True),
    ],
)
async def test_an_answer_that_is_cut_or_never_comes_is_no_page(exits: AsyncExitStack, reply: Reply) -> None:
    assert type(await outcome(exits, reply, read_timeout_s=0.3)) is SourceUnavailable


@pytest.mark.parametrize("drip_from", [3, 30, 400])
async def test_an_answer_that_drips_is_given_up_after_the_total_time(exits: AsyncExitStack, drip_from: int) -> None:
    began_s = time.monotonic()

    error = await outcome(exits, Reply(b"[" + b"1," * 500, drip_s=0.02, drip_from=drip_from), total_s=0.4)

    assert type(error) is SourceUnavailable
    assert "no whole" in str(error)
    assert time.monotonic() - began_s < 3


async def test_given_up_and_cancelled_requests_leave_no_slot_of_the_pool_taken(
    exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.producer.feed.CONNECTIONS_MAX", 2)
    async with HttpSource(Reply(hangs=True)) as source:
        feed = await opened(exits, source.url, total_s=0.1)
        for round_ in range(5):
            tasks = [asyncio.ensure_future(feed.fetch(Request())) for _ in range(4)]
            await asyncio.wait(tasks, timeout=0.01 * round_)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            with pytest.raises(SourceUnavailable, match="no whole headers"):
                await feed.fetch(Request())
        source.replies.append(Reply(b"[1]"))
        source.replies.popleft()

        assert (await feed.fetch(Request())).body == b"[1]"


# --- what a status means


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, SourceUnavailable),
        (502, SourceUnavailable),
        (503, SourceUnavailable),
        (408, SourceUnavailable),
        (429, SourceRateLimited),
        (401, SourceAuth),
        (403, SourceAuth),
        (404, SourceAuth),
        (400, SourceMalformed),
        (410, SourceMalformed),
        (201, SourceMalformed),
        (204, SourceMalformed),
        (206, SourceMalformed),
        (304, SourceMalformed),
    ],
)
async def test_every_status_but_200_has_its_class(exits: AsyncExitStack, status: int, error: type[SourceError]) -> None:
    body = b"" if status in (204, 304) else b"[1]"

    assert type(await outcome(exits, Reply(body, status=status))) is error


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest?token=abc", "file:///etc/passwd", "/elsewhere", "https://other/x"]
)
async def test_redirects_are_refused(exits: AsyncExitStack, location: str) -> None:
    async with HttpSource(Reply(status=302, headers={"location": location})) as source:
        feed = await opened(exits, source.url)
        with pytest.raises(SourceMalformed, match="redirects aren't followed") as caught:
            await feed.fetch(Request())

    assert len(source.asked) == 1
    assert "token" not in str(caught.value)


async def test_retry_after_holds_back_every_entity_on_the_host_and_no_other_host(exits: AsyncExitStack) -> None:
    async with HttpSource(Reply(status=429, headers={"retry-after": "600"})) as source, HttpSource() as other:
        budgets = HostBudgets()
        feed = await opened(exits, source.url, budgets=budgets)
        sibling = await opened(exits, source.url + "/v2", budgets=budgets)
        with pytest.raises(SourceRateLimited) as caught:
            await feed.fetch(Request())
        assert caught.value.retry_after_s == 600

        with pytest.raises(SourceRateLimited) as held_back:
            await sibling.fetch(Request())

        assert held_back.value.retry_after_s == pytest.approx(600, abs=10)
        assert len(source.asked) == 1
        assert (await (await opened(exits, other.url, budgets=budgets)).fetch(Request())).body == b"[]"


async def test_a_503_with_a_date_to_retry_after_is_a_rest_by_the_servers_clock(exits: AsyncExitStack) -> None:
    now = datetime(2001, 1, 1, tzinfo=UTC)
    headers: dict[str, str | None] = {
        "date": format_datetime(now, usegmt=True),
        "retry-after": format_datetime(now.replace(hour=1), usegmt=True),
    }

    error = await outcome(exits, Reply(status=503, headers=headers))

    assert type(error) is SourceRateLimited
    assert error.retry_after_s == 3600


async def test_a_host_that_can_not_be_reached_is_probed_ever_more_rarely(exits: AsyncExitStack) -> None:
    async with HttpSource() as source:
        url = source.url
    feed = await opened(exits, url)
    with pytest.raises(SourceUnavailable) as caught:
        await feed.fetch(Request())
    assert caught.value.retry_after_s is not None

    errors = [await asyncio.gather(feed.fetch(Request()), return_exceptions=True) for _ in range(20)]

    assert all(isinstance(error, SourceUnavailable) for (error,) in errors)


# --- caches


async def test_a_copy_from_a_cache_is_asked_for_again_without_it(exits: AsyncExitStack) -> None:
    async with HttpSource(Reply(b"[1]", headers={"age": "7"}), Reply(b"[2]", headers={"age": "0"})) as source:
        answer = await (await opened(exits, source.url)).fetch(Request())

    assert (answer.body, answer.requests) == (b"[2]", 2)
    assert source.asked[1].headers["cache-control"] == "no-cache"


async def test_a_cache_that_does_not_give_way_is_refused(exits: AsyncExitStack) -> None:
    error = await outcome(exits, Reply(headers={"age": "7"}))

    assert type(error) is SourceMalformed
    assert "7 s old" in str(error)


# --- secrets and TLS


async def test_a_rotated_secret_is_read_again_once_when_the_source_refuses_us(
    exits: AsyncExitStack, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    async with HttpSource(Reply(b"[1]"), Reply(status=401), Reply(b"[2]"), Reply(status=401)) as source:
        feed = await opened(exits, source.url, auth=Auth(value_file=str(file), prefix="Bearer "))
        await feed.fetch(Request())
        file.write_text("new\n")

        assert (await feed.fetch(Request())).body == b"[2]"
        with pytest.raises(SourceAuth, match="answers 401") as caught:
            await feed.fetch(Request())

    assert [asked.headers["authorization"][7:] for asked in source.asked] == ["old", "old", "new", "new", "new"]
    assert "new" not in str(caught.value)


async def test_a_secret_that_is_gone_is_a_matter_of_access(exits: AsyncExitStack, tmp_path: Path) -> None:
    error = await outcome(exits, Reply(), auth=Auth(value_file=str(tmp_path / "gone")))

    assert type(error) is SourceAuth
    assert "gone" in str(error)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def served_by(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_source_whose_certificate_its_ca_file_proves_is_talked_to(
    exits: AsyncExitStack, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with HttpSource(Reply(b"[1]"), tls=served_by(authority, "127.0.0.1")) as source:
        feed = await opened(exits, source.url, ca_file=str(tmp_path / "ca.pem"))

        assert (await feed.fetch(Request())).body == b"[1]"


@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("other.example", True)])
async def test_a_certificate_that_proves_nothing_is_refused(
    exits: AsyncExitStack, authority: trustme.CA, tmp_path: Path, name: str, trusted: bool
) -> None:
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")
    async with HttpSource(tls=served_by(authority, name)) as source:
        feed = await opened(exits, source.url, ca_file=str(tmp_path / "ca.pem"))

        with pytest.raises(SourceAuth, match="no trusted TLS connection"):
            await feed.fetch(Request())
    assert source.asked == []


@pytest.mark.parametrize("url", ["ftp://h/x", "file:///x", "http://user:pw@h/x", "h/x", ""])
async def test_a_url_that_is_none_of_http_is_refused_at_start(exits: AsyncExitStack, url: str) -> None:
    with pytest.raises(ConfigError, match="expected a url") as caught:
        await opened(exits, url)
    assert "pw" not in str(caught.value)
