"""An HTTP proxy in front of DynamoDB that fails the way the real service does, which no emulator will."""

import json
import random
import string
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import ClientSession, web

Request = dict[str, Any]
Answer = tuple[int, dict[str, Any]]
Forward = Callable[[Request], Awaitable[Answer]]
Fault = Callable[[Request, Forward], Awaitable[Answer | None]]
"""Gets the request and a way to the real service; ``None`` cuts the connection."""

INDEX_ARN = "arn:aws:dynamodb:us-east-1:000000000000:table/t/index/{index}"


class DynamoProxy:
    """``async with DynamoProxy(endpoint) as proxy``: reach it at ``proxy.url``; ``proxy.fail`` says what goes wrong."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._faults: dict[str, list[Fault]] = {}
        self.calls: list[str] = []
        self.url = ""

    def fail(self, operation: str, *faults: Fault) -> None:
        """The next calls of ``operation`` meet ``faults``, one each."""
        self._faults.setdefault(operation, []).extend(faults)

    def heal(self) -> None:
        self._faults.clear()

    async def __aenter__(self) -> "DynamoProxy":
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        self.calls.append(operation)
        body = json.loads(await request.read())
        names = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
        headers = {name: request.headers[name] for name in names if name in request.headers}

        async def forward(body: Request) -> Answer:
            async with self._session.post(self._endpoint, data=json.dumps(body), headers=headers) as answer:
                return answer.status, json.loads(await answer.read())

        waiting = self._faults.get(operation)
        answer = await (waiting.pop(0)(body, forward) if waiting else forward(body))
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.json_response(answer[1], status=answer[0], content_type="application/x-amz-json-1.0")


def throttled(index: str) -> Fault:
    async def fault(_body: Request, _forward: Forward) -> Answer:
        reasons = [{"reason": "IndexWriteKeyRangeThroughputExceeded", "resource": INDEX_ARN.format(index=index)}]
        code = "com.amazonaws.dynamodb.v20120810#ThrottlingException"
        return 400, {"__type": code, "message": "Throughput exceeds", "throttlingReasons": reasons}

    return fault


async def broken(_body: Request, _forward: Forward) -> Answer:
    return 500, {"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError", "message": "internal"}


async def answer_lost(body: Request, forward: Forward) -> None:
    await forward(body)


async def half_written(body: Request, forward: Forward) -> Answer:
    """BatchWriteItem: the first half is applied, the rest comes back unprocessed."""
    [(table, requests)] = body["RequestItems"].items()
    half = len(requests) // 2
    status, answer = await forward({**body, "RequestItems": {table: requests[: max(1, half)]}})
    return status, {**answer, "UnprocessedItems": {table: requests[max(1, half) :]} if half else {}}


async def half_read(body: Request, forward: Forward) -> Answer:
    [(table, wanted)] = body["RequestItems"].items()
    keys: Sequence[Any] = wanted["Keys"]
    half = max(1, len(keys) // 2)
    status, answer = await forward({**body, "RequestItems": {table: {**wanted, "Keys": keys[:half]}}})
    rest = {table: {**wanted, "Keys": keys[half:]}} if keys[half:] else {}
    return status, {**answer, "UnprocessedKeys": rest}


def statements_throttled(index: str, seed: int) -> Fault:
    """BatchExecuteStatement: some statements are applied, others answer with a throttle of their own."""

    async def fault(body: Request, forward: Forward) -> Answer:
        statements = body["Statements"]
        chosen = {at for at in range(len(statements)) if random.Random(seed + at).random() < 0.5}
        applied = [statement for at, statement in enumerate(statements) if at not in chosen]
        answers = iter((await forward({**body, "Statements": applied}))[1]["Responses"]) if applied else iter(())
        error = {"Error": {"Code": "ThrottlingError", "Message": f"throttled {INDEX_ARN.format(index=index)}"}}
        return 200, {"Responses": [error if at in chosen else next(answers) for at in range(len(statements))]}

    return fault


def unique(prefix: str) -> str:
    return prefix + "".join(random.choices(string.ascii_lowercase, k=8))
