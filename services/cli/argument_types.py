"""Single arguments, checked while they are read: a wrong one is usage (exit code 2), named with what was expected."""

import re
from argparse import ArgumentTypeError
from datetime import date

from shared.entities import NAMESPACE_PATTERN, time_us

LIMIT_MAX = 1_000
PER_SECOND_MAX = 5_000.0
AGE_S_MAX = 10 * 366 * 86_400

_AGE = re.compile(r"(\d{1,9})(s|min|h|d)")
_UNITS_S = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_GROUP = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLACE = re.compile(r"[0-9]{20}#.+#[0-9]{4,}")


def text(value: str) -> str:
    stripped = value.strip()
    if not stripped or len(stripped) > 500:
        raise ArgumentTypeError("expected 1 to 500 characters")
    return stripped


def moment_us(value: str) -> int:
    if value == "beginning":
        return 0
    try:
        us = time_us(value)
    except ValueError:
        raise ArgumentTypeError(f"expected a time as 2026-01-31T00:00:00Z, got {value!r}") from None
    if us < 0:
        raise ArgumentTypeError("expected a time from 1970 on")
    return us


def limit(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= LIMIT_MAX:
        raise ArgumentTypeError(f"expected 1 to {LIMIT_MAX}, got {value!r}")
    return int(value)


def namespace(value: str) -> str:
    if value and not NAMESPACE_PATTERN.fullmatch(value):
        raise ArgumentTypeError(f"expected to match {NAMESPACE_PATTERN.pattern}, got {value!r}")
    return value


def age_s(value: str) -> int:
    found = _AGE.fullmatch(value)
    if found is None or int(found[1]) * _UNITS_S[found[2]] > AGE_S_MAX:
        raise ArgumentTypeError(f"expected an age as 30s, 15min, 6h or 7d, got {value!r}")
    return int(found[1]) * _UNITS_S[found[2]]


def duration_s(value: str) -> int:
    seconds = age_s(value)
    if not seconds:
        raise ArgumentTypeError(f"expected a time as 30s, 15min, 6h or 7d, above 0, got {value!r}")
    return seconds


def per_second(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= PER_SECOND_MAX:
        raise ArgumentTypeError(f"expected events per second, 0.1 to {PER_SECOND_MAX:g}, got {value!r}")
    return rate


def day(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ArgumentTypeError(f"expected a day as 2026-01-31, got {value!r}") from None


def group(value: str) -> str:
    if not _GROUP.fullmatch(value):
        raise ArgumentTypeError(f"expected the 16 hex digits that notices and `parked groups` show, got {value!r}")
    return value


def sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ArgumentTypeError(f"expected the 64 hex digits that `evidence verify` prints as head, got {value!r}")
    return value


def pointer(value: str) -> str:
    if value and not value.startswith("/"):
        raise ArgumentTypeError(f"expected a JSON pointer as /amount or /lines/*/price, got {value!r}")
    return value


def place(value: str) -> str:
    if not _PLACE.fullmatch(value):
        raise ArgumentTypeError(f"expected what the last line of an earlier list says, got {value!r}")
    return value
