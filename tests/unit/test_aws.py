import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from botocore.exceptions import ReadTimeoutError

from shared.aws import open_client
from shared.raw.objects import StoreUnavailable
from shared.raw.s3 import S3Store


@pytest.fixture(params=["reads", "is frozen"])
async def silent_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A store that never answers, and reads what is sent to it, or not even that; which of both."""
    connections = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        if request.param == "is frozen":
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport is one that reads
            await ended.wait()
        else:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    ended = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with server:
        yield request.param
        ended.set()
        await asyncio.gather(*(task for task in connections if task))


@pytest.mark.parametrize("silent_store", ["reads"], indirect=True)
async def test_a_put_to_a_silent_store_ends_by_the_read_timeout(silent_store: str) -> None:
    async with AsyncExitStack() as stack:
        s3 = await open_client("s3", stack, read_timeout_s=0.1)

        async with asyncio.timeout(10):
            with pytest.raises(ReadTimeoutError):
                await s3.put_object(Bucket="b", Key="k", Body=b"x")


@pytest.mark.parametrize("silent_store", ["is frozen"], indirect=True)
async def test_a_put_whose_body_a_frozen_store_does_not_take_ends_by_the_bound_of_the_call(silent_store: str) -> None:
    """The body waits in the socket, and no read has begun: the read time-out does not run."""
    async with AsyncExitStack() as stack:
        store = S3Store(await open_client("s3", stack, read_timeout_s=0.1), "b", call_s_max=0.5)

        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable, match="TimeoutError"):
                await store.create("k", bytes(16 * 1024 * 1024), {})


async def test_the_region_is_found_under_the_name_that_all_sdks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    async with AsyncExitStack() as stack:
        assert (await open_client("dynamodb", stack)).meta.region_name == "eu-north-1"
