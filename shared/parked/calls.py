"""One call to the store: bounded in number, slower under throttling, retried inside a budget, and its errors sorted.

Three kinds: *transient* (throttled, 5xx, no connection, and every code that nobody foresaw: again after a jittered
pause, until the budget is spent), *refused for now* (no table, no rights: no retry helps, but the cursor must stand),
and what propagates: the store's answers to what we asked, and a known list of our own bugs. A code that AWS adds one
day, or that a KMS key or a proxy answers, is never taken for a bug: it would end the process, and waiting mends it.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    DataNotFoundError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    UnknownServiceError,
)
from botocore.parsers import ResponseParserError
from msgspec import Struct

from shared import metrics
from shared.parked.table import INDEX_NAMES
from shared.retry import backoff

BACKOFF_BASE_S = 0.05
CALL_S_MAX = 60.0  # of one call: while a body is written to a frozen store no other time-out runs
BACKOFF_CAP_S = 5.0  # well below a budget; the caller's own pause between calls grows to 30 s

THROTTLES = frozenset({"ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"})
STATEMENT_THROTTLES = frozenset({"ThrottlingError", "ProvisionedThroughputExceeded", "RequestLimitExceeded"})
STATEMENT_TRANSIENTS = STATEMENT_THROTTLES | {"InternalServerError", "TransactionConflict"}
_MISSING = frozenset({"ResourceNotFoundException", "NoSuchBucket"})
_NOT_ALLOWED = frozenset({
    "AccessDeniedException", "AccessDenied", "AllAccessDisabled", "UnrecognizedClientException", "ExpiredToken",
    "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSignatureException", "InvalidToken",
    "IncompleteSignature", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired",
    "SignatureDoesNotMatch", "TokenRefreshRequired", "NotSignedUp", "AccountProblem", "403",
})  # fmt: skip
_ANSWERS = frozenset({
    "ConditionalCheckFailedException", "PreconditionFailed", "NoSuchKey", "NotFound", "404", "412", "304",
    "ResourceInUseException", "BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted",
})  # fmt: skip
"""To what we asked: whoever calls knows what they mean."""
_BUGS = frozenset({
    "ValidationException", "SerializationException", "UnknownOperationException", "InvalidAction", "MissingAction",
    "InvalidArgument", "InvalidBucketName", "InvalidRequest", "InvalidURI", "IllegalLocationConstraintException",
    "KeyTooLongError", "MalformedXML", "MetadataTooLarge", "EntityTooLarge", "MethodNotAllowed", "InvalidRange",
})  # fmt: skip
"""Of ours: the same request is refused for ever."""
_SETTINGS = (NoCredentialsError, PartialCredentialsError, NoRegionError)
_OWN_BUGS = (ParamValidationError, UnknownServiceError, DataNotFoundError)
_WORLD = (ClientError, BotoCoreError, ResponseParserError, OSError)
_INDEX = re.compile(r":table/[\w.-]+/index/([\w.-]*\w)")


class ParkedUnavailable(Exception):
    """Nothing may move past these events: park them again later; what was already written is found again.

    ``reason`` is ``parked_throttled`` (then ``throttled_at`` names the index, or the table) or ``parked_unavailable``.
    """

    def __init__(
        self,
        reason: Literal["parked_throttled", "parked_unavailable"],
        detail: str,
        *,
        throttled_at: str = "",
        is_missing: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.throttled_at = throttled_at
        self.is_missing = is_missing  # the table or the bucket does not exist


class Trouble(Struct, frozen=True):
    """A transient: what it was, and which table or index throttled (``""``: none did)."""

    detail: str
    throttled_at: str = ""

    def unavailable(self) -> ParkedUnavailable:
        if self.throttled_at:
            return ParkedUnavailable("parked_throttled", self.detail, throttled_at=self.throttled_at)
        return ParkedUnavailable("parked_unavailable", self.detail)


def trouble_of(error: Exception, table: str) -> Trouble | None:
    """The transient that ``error`` stands for; ``None``: it is none, and is to be raised as it is.

    Raises ``ParkedUnavailable`` where no retry helps before somebody acts.
    """
    if isinstance(error, _OWN_BUGS):
        return None
    if isinstance(error, _SETTINGS):
        why = f"no AWS credentials or region ({error}): set them in the environment"
        raise ParkedUnavailable("parked_unavailable", why) from error
    if not isinstance(error, ClientError):
        return Trouble(f"{type(error).__name__}: {error}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLES:
        return Trouble(str(error), throttled_resource(error.response) or table)
    if code in _MISSING:
        raise ParkedUnavailable(
            "parked_unavailable", f"{table} does not exist ({code}); run `tidemark bootstrap`", is_missing=True
        ) from error
    if code in _NOT_ALLOWED:
        raise ParkedUnavailable("parked_unavailable", f"{table}: {error}; renew or widen the credentials") from error
    known = code in _ANSWERS or (code in _BUGS and status < 500)
    return None if known else Trouble(str(error))


def throttled_resource(response: dict[str, Any]) -> str:
    """The index that an error's throttling reasons name, else its message; ``""``: it names none."""
    for reason in response.get("ThrottlingReasons") or response.get("throttlingReasons") or ():
        if found := _INDEX.search(str(reason.get("resource", ""))):
            return found.group(1)
    found = _INDEX.search(str(response.get("Error", {}).get("Message", "")))
    return found.group(1) if found else ""


def statement_trouble(error: dict[str, Any], table: str) -> Trouble:
    """The transient of one statement in a batch, whose code is in ``STATEMENT_TRANSIENTS``."""
    if error["Code"] in STATEMENT_THROTTLES:
        return Trouble(f"{error['Code']}: {error.get('Message', '')}", throttled_resource({"Error": error}) or table)
    return Trouble(f"{error['Code']}: {error.get('Message', '')}")


def refused_statement(error: dict[str, Any], table: str) -> Exception:
    """What to raise for a statement that no retry helps."""
    text = f"{table}: {error['Code']}: {error.get('Message', '')}"
    if error["Code"] == "ValidationError":
        return RuntimeError(f"DynamoDB refused a statement of ours: {text}")
    return ParkedUnavailable("parked_unavailable", text, is_missing=error["Code"] == "ResourceNotFound")


class Lanes:
    """How many calls may be in flight: halved by a throttle, one more after each ``RECOVERY`` calls without."""

    RECOVERY = 32

    def __init__(self, in_flight_max: int) -> None:
        self.allowed = in_flight_max
        self._in_flight_max = in_flight_max
        self._in_flight = 0
        self._calm = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def lane(self) -> AsyncIterator[None]:
        """Waits for a free lane; first come, first served."""
        while self._in_flight >= self.allowed:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # the turn may have been ours: it is somebody else's now
                raise
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._wake()

    def throttled(self) -> None:
        self.allowed = max(1, self.allowed // 2)
        self._calm = 0

    def went_well(self) -> None:
        self._calm += 1
        if self._calm >= self.RECOVERY and self.allowed < self._in_flight_max:
            self.allowed += 1
            self._calm = 0
            self._wake()

    def _wake(self) -> None:
        """Let as many look again as there are lanes free; without an await, so that no cancellation can lose it."""
        free = self.allowed - self._in_flight
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


class Budget:
    """One caller's time: when the next pause would end after it, the last trouble is raised."""

    def __init__(self, budget_s: float) -> None:
        self._until_s = asyncio.get_running_loop().time() + budget_s

    async def pause(self, pause_s: float, trouble: Trouble) -> None:
        if asyncio.get_running_loop().time() + pause_s >= self._until_s:
            raise trouble.unavailable()
        await asyncio.sleep(pause_s)


def pauses() -> Iterator[float]:
    """Seconds between the tries of one call, without end."""
    return backoff(BACKOFF_BASE_S, BACKOFF_CAP_S)


class Calls:
    """The calls of one client on one table."""

    def __init__(self, client: Any, table: str, lanes: Lanes, *, call_s_max: float = CALL_S_MAX) -> None:
        self._client = client
        self._call_s_max = call_s_max
        self._table = table
        self._lanes = lanes

    async def call(self, operation: str, budget: Budget, **parameters: Any) -> dict[str, Any]:
        """Raises ``ParkedUnavailable`` when the budget is spent; errors that are no transients as they are.

        One call takes at most ``CALL_S_MAX``, whatever its budget: it may have been done then, as after any time-out.
        """
        for pause_s in pauses():
            try:
                async with self._lanes.lane(), asyncio.timeout(self._call_s_max):
                    with metrics.DYNAMO_S.time():
                        answer: dict[str, Any] = await getattr(self._client, operation)(**parameters)
                self._lanes.went_well()
                return answer
            except _WORLD as error:
                trouble = trouble_of(error, self._table)
                if trouble is None:
                    raise
                await self.back_off(pause_s, trouble, budget)
        raise AssertionError("pauses have no end")

    async def back_off(self, pause_s: float, trouble: Trouble, budget: Budget) -> None:
        """Say which index throttled, send fewer at once, and pause; or give up."""
        if trouble.throttled_at:
            self._lanes.throttled()
            known = trouble.throttled_at in (*INDEX_NAMES, self._table)
            metrics.DYNAMO_THROTTLES.labels(trouble.throttled_at if known else "other", "throttled").inc()
        await budget.pause(pause_s, trouble)
