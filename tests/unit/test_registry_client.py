"""What each answer of a registry means to us. The real one is asked in tests/integration/test_registry.py."""

from collections.abc import Callable

import httpx
import pytest

from shared.registry.client import (
    ANSWER_BYTES_MAX,
    RegistryRefused,
    RegistryUnavailable,
    SchemaIncompatible,
    SchemaInvalid,
    UnknownSchema,
    UnknownSubject,
)
from shared.registry.client import Registry as RealRegistry
from shared.registry.differences import describe_differences

Answer = Callable[[httpx.Request], httpx.Response]


def registry(answer: Answer, attempts: int = 1) -> RealRegistry:
    return RealRegistry(httpx.AsyncClient(base_url="http://registry/", transport=httpx.MockTransport(answer)), attempts)


def always(status: int, body: object) -> Answer:
    return lambda _: httpx.Response(status, json=body)


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
async def test_a_failing_registry_is_unavailable_and_nothing_else(status: int) -> None:
    with pytest.raises(RegistryUnavailable):
        await registry(always(status, {"error_code": 50001})).schema_by_id(1)


async def test_no_answer_is_unavailable() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RegistryUnavailable):
        await registry(refuse).schema_by_id(1)


async def test_a_passing_failure_is_tried_again() -> None:
    answers = [httpx.Response(503), httpx.Response(200, json={"schema": '"int"'})]

    assert await registry(lambda _: answers.pop(0), attempts=2).schema_by_id(1) == '"int"'


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_say_what_to_check(status: int) -> None:
    with pytest.raises(RegistryRefused, match="password_file"):
        await registry(always(status, {})).schema_by_id(1)


async def test_another_server_at_the_address_is_no_unknown_schema() -> None:
    with pytest.raises(RegistryRefused, match="url"):
        await registry(lambda _: httpx.Response(404, text="<html>not here</html>")).schema_by_id(1)
    with pytest.raises(RegistryRefused):
        await registry(always(404, {"message": "no such path"})).schema_by_id(1)
    with pytest.raises(RegistryRefused):
        await registry(always(200, {"hello": "world"})).schema_by_id(1)


async def test_unknown_things_are_told_apart() -> None:
    with pytest.raises(UnknownSchema):
        await registry(always(404, {"error_code": 40403})).schema_by_id(7)
    with pytest.raises(UnknownSubject):
        await registry(always(404, {"error_code": 40401})).latest("s")
    with pytest.raises(UnknownSubject):
        await registry(always(200, [])).versions("s")


async def test_an_endless_answer_is_cut_off() -> None:
    with pytest.raises(RegistryRefused, match="more than"):
        await registry(lambda _: httpx.Response(200, content=b"x" * (ANSWER_BYTES_MAX + 1))).schema_by_id(1)


async def test_nothing_is_registered_that_the_registry_calls_incompatible() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path == "/subjects/s":
            return httpx.Response(404, json={"error_code": 40403, "message": "not among its versions"})
        return httpx.Response(200, json={"is_compatible": False, "messages": ["field b has no default"]})

    with pytest.raises(SchemaIncompatible, match="field b has no default"):
        await registry(answer).register("s", "{}")
    assert asked == ["/subjects/s", "/compatibility/subjects/s/versions/latest"]


async def test_a_deployment_that_was_rolled_back_finds_its_older_version_and_registers_nothing() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"id": 7, "version": 1})

    assert await registry(answer).register("s", "{}") == 7
    assert asked == ["/subjects/s"]


async def test_an_incompatible_schema_that_slips_past_the_question_is_named_too() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/compatibility"):
            return httpx.Response(200, json={"is_compatible": True})
        return httpx.Response(409, json={"error_code": 409, "message": "b at /fields/1"})

    with pytest.raises(SchemaIncompatible, match="b at /fields/1"):
        await registry(answer).register("s", "{}")


async def test_a_schema_that_can_not_be_read_is_invalid() -> None:
    with pytest.raises(SchemaInvalid, match="no Avro"):
        await registry(always(422, {"error_code": 42201, "message": "no Avro"})).register("s", "{}")


async def test_a_subject_with_a_slash_stays_one_subject() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert b"a%2Fb%3F" in request.url.raw_path
        return httpx.Response(200, json={"version": 1, "id": 4, "schema": '"int"'})

    assert (await registry(answer).latest("a/b?")).schema_id == 4


def test_differences_are_named_by_path() -> None:
    old = """{"type": "record", "name": "R", "fields": [
        {"name": "a", "type": "int"}, {"name": "gone", "type": "int"},
        {"name": "in", "type": {"type": "record", "name": "I", "fields": [{"name": "x", "type": "int"}]}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}}]}"""
    new = """{"type": "record", "name": "R", "fields": [
        {"name": "a", "type": "string"}, {"name": "b", "type": "int"}, {"name": "c", "type": "int", "default": 0},
        {"name": "in", "type": {"type": "record", "name": "I", "fields": [{"name": "x", "type": ["null", "int"]}]}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A"]}}]}"""

    assert describe_differences(old, new) == [
        "/a: int became string",
        "/b: new, without a default",
        "/c: new",
        "/in/x: int became [null, int]",
        "/e: symbol 'B' vanished",
        "/gone: vanished",
    ]
