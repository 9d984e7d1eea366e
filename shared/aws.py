"""One aioboto3 session and its clients, opened at start: creating one later would block the event loop on file I/O."""

from contextlib import AsyncExitStack
from typing import Any

import aioboto3
from botocore.config import Config
from botocore.handlers import add_expect_header

_SESSION = aioboto3.Session()
"""One per process: sessions hold loaders and models that are never freed."""


async def open_client(
    service: str, stack: AsyncExitStack, *, connections_max: int = 32, read_timeout_s: float = 10
) -> Any:
    """Open a low-level client that closes with ``stack``. Endpoint, region and credentials come from ``AWS_*``.

    Few silent retries by the SDK: the callers have budgets of their own.
    """
    config = Config(
        connect_timeout=2,
        read_timeout=read_timeout_s,
        max_pool_connections=connections_max,
        retries={"mode": "standard", "total_max_attempts": 3},
        s3={"addressing_style": "path"},
    )
    client = await stack.enter_async_context(_SESSION.client(service, config=config))
    # While "100 Continue" is waited for no read timeout runs: a PUT to a silent store would never end.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client
