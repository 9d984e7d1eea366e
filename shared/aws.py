"""One aioboto3 session and its clients, opened at start: creating one later would block the event loop on file I/O."""

import os
from base64 import b64decode
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import aioboto3
from aiobotocore.parsers import AioJSONParser, AioResponseParserFactory
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError


class _Answers(AioJSONParser):  # type: ignore[misc]  # publishes no types
    """botocore's, but for DynamoDB's items: it looks for all ten kinds of value in each attribute, which takes most of
    the time that reading a table costs.
    """

    def _handle_structure(self, shape: Any, value: Any) -> Any:
        return _attribute(value) if shape.name == "AttributeValue" else super()._handle_structure(shape, value)

    def _handle_map(self, shape: Any, value: Any) -> Any:
        return _attributes(value) if shape.value.name == "AttributeValue" else super()._handle_map(shape, value)


class _Parsers(AioResponseParserFactory):  # type: ignore[misc]
    def create_parser(self, protocol_name: str) -> Any:
        return _Answers(**self._defaults) if protocol_name == "json" else super().create_parser(protocol_name)


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _attribute(value) for name, value in values.items()}


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    """From the wire to what botocore gives: base64 to bytes, all else as it is. A new kind stays as it comes."""
    try:
        ((kind, content),) = value.items()
        match kind:
            case "B":
                return {"B": b64decode(content)}
            case "M":
                return {"M": _attributes(content)}
            case "L":
                return {"L": [_attribute(item) for item in content]}
            case "BS":
                return {"BS": [b64decode(item) for item in content]}
        return {kind: content}
    except (ValueError, TypeError, AttributeError) as error:
        raise ResponseParserError(f"an attribute of an item is not as DynamoDB writes them: {error}") from error


_SESSION = aioboto3.Session()
"""One per process: sessions hold loaders and models that are never freed."""
_SESSION._session.register_component("response_parser_factory", _Parsers())


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
    # Every other SDK, and Java's in the loader, goes by this name first; botocore knows AWS_DEFAULT_REGION only.
    region = os.environ.get("AWS_REGION") or None
    client = await stack.enter_async_context(_SESSION.client(service, region_name=region, config=config))
    # While "100 Continue" is waited for no read timeout runs: a PUT to a silent store would never end.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client
