"""A Confluent-compatible schema registry (Apicurio, Confluent, Karapace) over HTTP.

Registries differ: an id may skip numbers, the same schema may have one id under two subjects, and Apicurio's own
default compatibility is NONE, so that nothing is ever refused until ``set_compatibility``.
"""

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport
from msgspec import Struct

from shared.config import read_secret
from shared.registry.differences import describe_differences
from shared.registry.settings import RegistrySettings
from shared.retry import retry

ANSWER_BYTES_MAX = 8 * 1024 * 1024
VERSIONS_MAX = 1000
RETRY_BASE_S = 0.2
RETRY_CAP_S = 2.0

Compatibility = Literal[
    "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
]

_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA = 40401, 40402, 40403


class RegistryError(Exception):
    """The registry's answer, or that there was none."""


class RegistryUnavailable(RegistryError):
    """No answer, or one that says "later". It says nothing about any schema or event: wait, or use what is cached."""


class RegistryRefused(RegistryError):
    """It answers, but not to us (credentials), or not what a registry answers (a wrong address)."""


class UnknownSubject(RegistryError):
    def __init__(self, subject: str) -> None:
        super().__init__(f"the registry knows no subject {subject!r}; register its schema, or use `register: file`")
        self.subject = subject


class UnknownSchema(RegistryError):
    def __init__(self, schema_id: int) -> None:
        super().__init__(f"the registry knows no schema with id {schema_id}")
        self.schema_id = schema_id


class SchemaInvalid(RegistryError):
    """The registry can't read the schema."""


class SchemaIncompatible(RegistryError):
    """The schema breaks the subject's compatibility rule."""

    def __init__(self, subject: str, why: str) -> None:
        super().__init__(
            f"the schema is incompatible with the versions of {subject!r}: {why or 'the registry says no more'}. "
            "A new field needs a default, and no field may change its type"
        )
        self.subject = subject


class RegisteredSchema(Struct, frozen=True):
    """One version of a subject. ``schema`` is Avro's JSON text."""

    subject: str
    version: int
    schema_id: int
    schema: str


class Registry:
    """Each call takes at most ``attempts`` times ``timeout_s`` (connect and read each), and the waits between."""

    def __init__(self, http: httpx.AsyncClient, attempts: int) -> None:
        self._http = http
        self._attempts = attempts

    @classmethod
    async def open(cls, settings: RegistrySettings, stack: AsyncExitStack) -> "Registry":
        """Closes with ``stack``. Makes no request: the registry may be down. Raises ``ConfigError``."""
        auth = None
        if settings.user is not None and settings.password_file is not None:
            auth = httpx.BasicAuth(settings.user, read_secret(settings.password_file))
        http = httpx.AsyncClient(
            base_url=settings.url.rstrip("/") + "/",
            auth=auth,
            timeout=settings.timeout_s,
            headers={"Accept": f"{_CONTENT_TYPE}, application/json", "Accept-Encoding": "identity"},
            transport=AiohttpTransport(verify=settings.ssl_context(), trust_env=False),
            trust_env=False,
        )
        return cls(await stack.enter_async_context(http), settings.attempts)

    async def register(self, subject: str, schema: str) -> int:
        """Make ``schema`` the newest version, or find it among the subject's; the id. Compatibility is asked first.

        A deployment that was rolled back meets its own older version: nothing is registered then.
        Raises ``SchemaIncompatible``, ``SchemaInvalid``, ``RegistryUnavailable``, ``RegistryRefused``.
        """
        body = {"schema": schema}
        status, found = await self._ask("POST", f"subjects/{quote(subject, safe='')}", body)
        if status == 200:
            return _whole_number(found, "id")
        versions = f"subjects/{quote(subject, safe='')}/versions"
        status, verdict = await self._ask("POST", f"compatibility/{versions}/latest", body, {"verbose": "true"})
        if status == 200 and verdict.get("is_compatible") is False:
            raise SchemaIncompatible(subject, await self._why(subject, schema, verdict.get("messages") or ()))
        if status not in (200, 404):  # 404: there is no version to be compatible with
            _refuse(status, verdict)
        status, answer = await self._ask("POST", versions, body)
        if status == 409:
            raise SchemaIncompatible(subject, str(answer.get("message", "")))
        if status != 200:
            _refuse(status, answer)
        return _whole_number(answer, "id")

    async def schema_by_id(self, schema_id: int) -> str:
        """Raises ``UnknownSchema``, ``RegistryUnavailable``, ``RegistryRefused``."""
        status, answer = await self._ask("GET", f"schemas/ids/{schema_id}")
        if status == 404 and answer.get("error_code") == _NO_SCHEMA:
            raise UnknownSchema(schema_id)
        if status != 200:
            _refuse(status, answer)
        return _text(answer, "schema")

    async def latest(self, subject: str) -> RegisteredSchema:
        """Raises ``UnknownSubject``, ``RegistryUnavailable``, ``RegistryRefused``."""
        return await self._version(subject, "latest")

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        """All versions, oldest first; never empty. Raises ``UnknownSubject``, ``RegistryUnavailable``, …"""
        status, numbers = await self._ask("GET", f"subjects/{quote(subject, safe='')}/versions")
        if status == 404:
            _subject_or_refuse(subject, numbers)
        if status != 200 or not isinstance(numbers, list):
            _refuse(status, numbers)
        if not numbers:
            raise UnknownSubject(subject)
        if len(numbers) > VERSIONS_MAX:
            raise RegistryRefused(f"{subject!r} has {len(numbers)} versions, more than {VERSIONS_MAX}")
        return [await self._version(subject, str(number)) for number in sorted(numbers)]

    async def compatibility(self) -> str:
        """The global level. Raises ``RegistryUnavailable``, ``RegistryRefused``."""
        status, answer = await self._ask("GET", "config")
        if status != 200:
            _refuse(status, answer)
        return _text(answer, "compatibilityLevel")

    async def set_compatibility(self, level: Compatibility) -> None:
        """Set the global level. Raises ``RegistryUnavailable``, ``RegistryRefused``."""
        status, answer = await self._ask("PUT", "config", {"compatibility": level})
        if status != 200:
            _refuse(status, answer)

    async def reachable(self) -> bool:
        """Whether it answers as a registry does."""
        try:
            await self.compatibility()
        except RegistryError:
            return False
        return True

    async def _why(self, subject: str, schema: str, messages: Iterable[object]) -> str:
        """The registry's own words; Apicurio has none here, so we compare with the newest version ourselves."""
        words = [str(message) for message in messages]
        return "; ".join(words or describe_differences((await self.latest(subject)).schema, schema))

    async def _version(self, subject: str, version: str) -> RegisteredSchema:
        status, answer = await self._ask("GET", f"subjects/{quote(subject, safe='')}/versions/{version}")
        if status == 404:
            _subject_or_refuse(subject, answer)
        if status != 200:
            _refuse(status, answer)
        return RegisteredSchema(
            subject, _whole_number(answer, "version"), _whole_number(answer, "id"), _text(answer, "schema")
        )

    async def _ask(
        self, method: str, path: str, body: object = None, params: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON body. Every request may be repeated: registering is idempotent."""
        return await retry(
            lambda: self._ask_once(method, path, body, params or {}),
            on=(RegistryUnavailable,),
            base_s=RETRY_BASE_S,
            cap_s=RETRY_CAP_S,
            attempts=self._attempts,
        )

    async def _ask_once(self, method: str, path: str, body: object, params: Mapping[str, str]) -> tuple[int, Any]:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": _CONTENT_TYPE}
        try:
            async with self._http.stream(method, path, content=content, headers=headers, params=params) as response:
                answer = await _read(response)
        except (httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RegistryUnavailable(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise RegistryUnavailable(f"{method} {path}: status {response.status_code}")
        if response.status_code in (401, 403):
            raise RegistryRefused(f"{method} {path}: status {response.status_code}; check user and password_file")
        try:
            return response.status_code, msgspec.json.decode(answer)
        except msgspec.DecodeError:
            raise RegistryRefused(
                f"{method} {path}: status {response.status_code} without JSON; check the url"
            ) from None


async def _read(response: httpx.Response) -> bytes:
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise RegistryRefused(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _subject_or_refuse(subject: str, answer: Any) -> None:
    if isinstance(answer, dict) and answer.get("error_code") in (_NO_SUBJECT, _NO_VERSION):
        raise UnknownSubject(subject)


def _refuse(status: int, answer: Any) -> None:
    message = str(answer.get("message", "")) if isinstance(answer, dict) else ""
    if status == 422:
        raise SchemaInvalid(message or "the registry can't read the schema")
    raise RegistryRefused(f"status {status}: {message or 'check the url'}")


def _whole_number(answer: Any, name: str) -> int:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, int):
        raise RegistryRefused(f"an answer without {name!r}; check the url")
    return value


def _text(answer: Any, name: str) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise RegistryRefused(f"an answer without {name!r}; check the url")
    return value
