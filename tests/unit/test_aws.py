import asyncio
from contextlib import AsyncExitStack

import pytest
from botocore.exceptions import ReadTimeoutError

from shared.aws import open_client


async def test_a_put_to_a_silent_store_ends_by_the_read_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with server:
        async with AsyncExitStack() as stack:
            s3 = await open_client("s3", stack, read_timeout_s=0.1)

            async with asyncio.timeout(10):
                with pytest.raises(ReadTimeoutError):
                    await s3.put_object(Bucket="b", Key="k", Body=b"x")
        await asyncio.gather(*(task for task in connections if task))
