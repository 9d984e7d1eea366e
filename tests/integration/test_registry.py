"""The registry client against a real registry: what it promises, and what the real one does differently."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from deploy.local.stack import Stack
from shared.registry.cache import SchemaCache
from shared.registry.client import (
    Registry,
    RegistryUnavailable,
    SchemaIncompatible,
    SchemaInvalid,
    UnknownSchema,
    UnknownSubject,
)
from shared.registry.settings import RegistrySettings
from tests.fakes.proxy import TcpProxy

A = {"name": "a", "type": "int"}
B_REQUIRED = {"name": "b", "type": "string"}
B_OPTIONAL = {"name": "b", "type": ["null", "string"], "default": None}


def record(*fields: dict[str, Any], name: str = "R") -> str:
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


def unique() -> str:
    return f"d{uuid4().hex[:10]}"


@pytest.fixture
async def edges() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def registry(stack: Stack, edges: AsyncExitStack) -> Registry:
    opened = await Registry.open(RegistrySettings(url=stack.env["TIDEMARK_REGISTRY_URL"]), edges)
    await opened.set_compatibility("BACKWARD")
    return opened


async def test_a_schema_has_one_id_however_often_it_is_registered(registry: Registry) -> None:
    name = unique()
    schema = record(A, name=name)

    first = await registry.register(name, schema)

    assert await registry.register(name, schema) == first
    assert json.loads(await registry.schema_by_id(first)) == json.loads(schema)
    latest = await registry.latest(name)
    assert (latest.version, latest.schema_id) == (1, first)


async def test_versions_come_oldest_first(registry: Registry) -> None:
    name = unique()
    ids = [await registry.register(name, record(*fields, name=name)) for fields in ((A,), (A, B_OPTIONAL))]

    versions = await registry.versions(name)

    assert [version.schema_id for version in versions] == ids
    assert [version.version for version in versions] == [1, 2]


async def test_an_incompatible_schema_is_refused_in_words_and_not_registered(registry: Registry) -> None:
    name = unique()
    await registry.register(name, record(A, name=name))

    with pytest.raises(SchemaIncompatible, match="/b: new, without a default"):
        await registry.register(name, record(A, B_REQUIRED, name=name))

    assert len(await registry.versions(name)) == 1


async def test_bad_avro_is_invalid(registry: Registry) -> None:
    with pytest.raises(SchemaInvalid):
        await registry.register(unique(), '{"type": "recor"}')


async def test_unknown_things_are_named(registry: Registry) -> None:
    with pytest.raises(UnknownSubject):
        await registry.versions("d-never-registered")
    with pytest.raises(UnknownSubject):
        await registry.latest("d-never-registered")
    with pytest.raises(UnknownSchema):
        await registry.schema_by_id(2_000_000_000)


async def test_compatibility_is_read_back(registry: Registry) -> None:
    assert await registry.compatibility() == "BACKWARD"
    assert await registry.reachable()


@pytest.mark.parametrize("mode", ["refuse", "half_open", "blackhole"])
async def test_the_cache_serves_while_the_registry_is_down(
    stack: Stack, registry: Registry, edges: AsyncExitStack, tmp_path: Path, mode: Any
) -> None:
    name = unique()
    schema_id = await registry.register(name, record(A, name=name))
    address = urlsplit(stack.env["TIDEMARK_REGISTRY_URL"])
    async with TcpProxy(address.port or 0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{address.path}"
        fragile = await Registry.open(RegistrySettings(url=url, timeout_s=0.5, attempts=1), edges)
        await SchemaCache(fragile, tmp_path, scope=url).versions(name)
        await proxy.set_mode(mode)
        restarted = SchemaCache(fragile, tmp_path, scope=url)

        assert (await restarted.latest(name)).schema_id == schema_id
        assert json.loads(await restarted.by_id(schema_id)) == json.loads(record(A, name=name))
        with pytest.raises(RegistryUnavailable):
            await restarted.by_id(2_000_000_001)

        await proxy.set_mode("pass")
        with pytest.raises(UnknownSchema):
            await restarted.by_id(2_000_000_001)
