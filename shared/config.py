"""Settings of a process: one frozen struct from the environment, refused before start with every error at once."""

import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct, inspect

from shared import logs

PREFIX = "TIDEMARK_"
SECRET_BYTES_MAX = 64 * 1024

_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)

_T = TypeVar("_T", bound=Struct)


class ConfigError(Exception):
    """What is wrong with the configuration, all of it: each problem reads ``where: what, and what to do``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where health and metrics are served. As a field ``http`` it reads ``TIDEMARK_HTTP_HOST`` and ``_HTTP_PORT``."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port, named in the log line ``http_listening``."""


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As a field ``log`` it reads ``TIDEMARK_LOG_LEVEL`` and ``TIDEMARK_LOG_FORMAT``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"
    """``auto``: text on a terminal, else JSON."""


def load_config(cls: type[_T], environ: Mapping[str, str], prefix: str = PREFIX) -> _T:
    """Read ``cls`` from the environment: field ``x_s`` from ``<prefix>X_S``, a nested struct by a longer prefix.

    An empty variable counts as unset. Lists are separated by commas. A field whose name ends in ``_file`` must name
    a readable file. Raises ``ConfigError`` with every problem.
    """
    problems: list[str] = []
    config = _read_struct(cls, environ, prefix, problems)
    if problems or config is None:
        raise ConfigError(sorted(set(problems)))
    return config


def read_secret(path: str | Path) -> str:
    """The secret that a file holds, without its line end; from now on logs hide it. Raises ``ConfigError``."""
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: the secret can't be read ({reason(error)}); mount or correct the file"]) from None
    secret = secret.rstrip("\r\n")
    if not secret or len(secret) > SECRET_BYTES_MAX:
        raise ConfigError([f"{path}: expected a secret of 1 to {SECRET_BYTES_MAX} characters, got {len(secret)}"])
    logs.hide(secret)
    return secret


def reason(error: BaseException) -> str:
    """A short text for people: the system's own words, without the path that stands before them anyway."""
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


def convert(value: object, to: Any, *, strict: bool = True) -> Any:
    """As ``msgspec.convert``, with paths. Raises ``ValueError`` that says in words what was expected."""
    try:
        return msgspec.convert(value, to, strict=strict, dec_hook=_path)
    except (msgspec.ValidationError, ValueError, TypeError):
        raise ValueError(f"expected {expected(to)}, got {_shown(value)}") from None


def expected(to: Any) -> str:
    """A type in words: ``a whole number, at least 1``."""
    return _in_words(inspect.type_info(to))


def guess(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` where one of the known names is close, else nothing."""
    close = difflib.get_close_matches(name, known, 1, 0.75)
    return f"; did you mean {close[0]!r}?" if close else ""


def struct_in(to: Any) -> type[Struct] | None:
    """The struct class behind ``S`` or ``S | None``."""
    options = get_args(to) if get_origin(to) in (Union, types.UnionType) else (to,)
    structs = [option for option in options if isinstance(option, type) and issubclass(option, Struct)]
    return structs[0] if structs else None


def _read_struct(cls: type[_T], environ: Mapping[str, str], prefix: str, problems: list[str]) -> _T | None:
    before = len(problems)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        variable = prefix + field.name.upper()
        nested = struct_in(field.type)
        if nested is not None:
            optional = field.default is not NODEFAULT or field.default_factory is not NODEFAULT
            if not optional or any(name.startswith(variable + "_") and text for name, text in environ.items()):
                values[field.name] = _read_struct(nested, environ, variable + "_", problems)
        elif text := environ.get(variable):
            try:
                values[field.name] = _from_text(field, text)
            except ValueError as error:
                problems.append(f"{variable}: {error}")
        elif field.required:
            problems.append(f"{variable}: not set; expected {expected(field.type)}{_typo(variable, environ)}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # a struct's own __post_init__
        problems.append(f"{prefix}*: {error}")
        return None


def _from_text(field: msgspec.structs.FieldInfo, text: str) -> Any:
    many = isinstance(inspect.type_info(field.type), _LISTS)
    value: object = [part.strip() for part in text.split(",") if part.strip()] if many else text
    result = convert(value, field.type, strict=False)
    if field.name.endswith("_file"):
        unreadable(str(result))
    return result


def unreadable(path: str | Path) -> None:
    """Raise ``ValueError`` in words unless ``path`` is a file that we may read."""
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise ValueError(f"can't read the file {str(path)!r} ({reason(error)}); mount or correct it") from None


def _typo(variable: str, environ: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(variable, [name for name in environ if name.startswith(PREFIX)], 1, 0.85)
    return f"; {close[0]} is set: a typing error?" if close and close[0] != variable else ""


def _path(to: type, value: object) -> object:
    if to is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_words(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(type=inner):
            return _in_words(inner)
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case inspect.EnumType(cls=cls):
            return "one of " + ", ".join(str(member.value) for member in cls)
        case inspect.UnionType(types=options):
            return " or ".join(_in_words(option) for option in options if not isinstance(option, inspect.NoneType))
        case inspect.IntType() | inspect.FloatType():
            return ("a whole number" if isinstance(info, inspect.IntType) else "a number") + _bounds(info)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(pattern=pattern, min_length=shortest):
            if pattern:
                return f"text that matches {pattern}"
            at_least = f"text of at least {shortest} characters"
            return at_least if (shortest or 0) > 1 else "text that is not empty" if shortest else "text"
        case inspect.ListType() | inspect.VarTupleType():
            return f"a list of {_in_words(info.item_type)}"
        case inspect.SetType() | inspect.FrozenSetType():
            return f"a list of {_in_words(info.item_type)}"
        case inspect.StructType() | inspect.DictType():
            return "a map"
    return "a file's path" if isinstance(info, inspect.CustomType) else "another type"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    parts = []
    if info.ge is not None:
        parts.append(f"at least {info.ge}")
    if info.gt is not None:
        parts.append(f"above {info.gt}")
    if info.le is not None:
        parts.append(f"at most {info.le}")
    if info.lt is not None:
        parts.append(f"below {info.lt}")
    return f", {' and '.join(parts)}" if parts else ""
