"""Logs: one JSON object a line on stdout, stable event names, no secrets and no field values of any event."""

import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "[hidden]"
TEXT_CHARACTERS_MAX = 4_000
DEPTH_MAX = 6
ITEMS_MAX = 100
SECRETS_MAX = 256

SECRET_KEY = re.compile(
    r"passw|secret|authorization|cookie|credential|api_?key|access_?key|private_?key|(^|_)(dsn|token|auth)($|_)", re.I
)
PAYLOAD_KEYS = frozenset({"raw", "body", "payload", "value", "record", "row", "rows", "document", "events"})
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")

QUIET: Mapping[str, int] = {
    "aiokafka": logging.WARNING,
    "aiobotocore": logging.WARNING,
    "asyncio": logging.WARNING,
    "botocore": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "urllib3": logging.WARNING,
}

_TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
_TEXT_TRACEBACKS = structlog.processors.format_exc_info

_secrets: OrderedDict[str, None] = OrderedDict()


def hide(secret: str) -> None:
    """From now on replace ``secret`` in every line, whatever key it hides behind (the newest 256 are remembered)."""
    if len(secret) >= 4:
        _secrets[secret] = None
        _secrets.move_to_end(secret)
        while len(_secrets) > SECRETS_MAX:
            _secrets.popitem(last=False)


def configure(
    service: str,
    *,
    level: str = "info",
    format: Literal["auto", "json", "text"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the libraries' standard logging, to stdout unless told. JSON, on a terminal text."""
    chosen = stream or sys.stdout
    text = format == "text" or (format == "auto" and chosen.isatty())
    stream = cast(TextIO, _Unbreakable(chosen))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(service),
    ]
    ending: list[Processor] = [
        _TEXT_TRACEBACKS if text else _TRACEBACKS,
        redact,
        structlog.dev.ConsoleRenderer(colors=False) if text else structlog.processors.JSONRenderer(default=_as_text),
    ]
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    _route_libraries(level, stream, shared, ending)


class _Unbreakable:
    """Drops what can't be written (a closed stdout, a full disk): a log line must never stop the work it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry ``module=name``. Call as ``log.info("object_written", key=key)``."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(module=name))


def redact(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Hide secrets and payloads by their keys, bytes whatever their key, and known secrets whatever their place."""
    return {key: _redacted(str(key), value, 0) for key, value in line.items()}


def _redacted(key: str, value: Any, depth: int) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if value is None or isinstance(value, bool | int | float):
        return HIDDEN if value is not None and key in PAYLOAD_KEYS else value
    if SECRET_KEY.search(key) or key in PAYLOAD_KEYS:
        return HIDDEN
    if depth >= DEPTH_MAX:
        return "[...]"
    if isinstance(value, Mapping):
        return {str(k): _redacted(str(k), v, depth + 1) for k, v in list(value.items())[:ITEMS_MAX]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted("", item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    return _clean(str(value))


def _clean(text: str) -> str:
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _USERINFO.sub(HIDDEN + "@", text)
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "[...]"


def _named(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        line.setdefault("service", service)
        return line

    return add


def _library_line(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """A library's free text is no event name: names stay a closed set that one can search for."""
    record: logging.LogRecord = line["_record"]
    line["message"] = line["event"]
    line["event"] = "library_message"
    line["module"] = record.name
    return line


def _route_libraries(level: str, stream: TextIO, shared: list[Processor], ending: list[Processor]) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(level.upper())  # a logger's own filter may have lowered a line's level
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*shared, _library_line], processors=[remove, *ending])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in QUIET.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))
    logging.captureWarnings(True)


def _as_text(value: object) -> str:
    return _clean(str(value))
