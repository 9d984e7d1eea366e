"""Points in time as they are written in JSON, and as whole microseconds since 1970-01-01T00:00:00Z.

What is read: ISO 8601 calendar dates with a time of day, ``2026-11-03T12:34:56.123456Z``; ``T``, ``t`` or a space
between them; seconds and their fraction (any number of digits, after a point or a comma) may be missing; the offset
is ``Z``, ``+02:00``, ``+0200`` or ``+02``. ``24:00:00`` is the end of the day; ``23:59:60`` UTC, a leap second, is
the next day's first second, as in POSIX and PostgreSQL. Years 0001 to 9999, counted in UTC.
"""

import re
from datetime import date, datetime, timedelta
from functools import lru_cache

MIN_US = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_US = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1)  # naive: all arithmetic is in UTC
_EPOCH_DAY = date(1970, 1, 1).toordinal()
MIN_DAY, MAX_DAY = 1 - _EPOCH_DAY, date.max.toordinal() - _EPOCH_DAY

_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"([Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_TIME = re.compile(r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SECOND = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]")
_SCALE = (1_000_000, 100_000, 10_000, 1_000, 100, 10, 1)


def parse_iso_us(text: str, utc_offset_minutes: int | None = None) -> int:
    """Microseconds since 1970 of an ISO stamp; what is finer than a microsecond is cut off, towards the past.

    ``utc_offset_minutes`` is the offset of stamps that carry none; without it they are refused.
    Raises ``ValueError``, never quoting the text.
    """
    us = quick_iso_us(text)
    return _parse(text, utc_offset_minutes)[0] if us is None else us


def quick_iso_us(text: str) -> int | None:
    """The usual form, ``YYYY-MM-DDTHH:MM:SS[.f]Z`` with up to six digits, quickly; any other: ``None``."""
    length = len(text)
    if not 20 <= length <= 27 or text[-1] != "Z":
        return None
    if length == 20:
        return _second_us(text[:19])
    digits = text[20:-1]
    if text[19] != "." or not digits.isdigit() or not text.isascii():
        return None
    second_us = _second_us(text[:19])
    return None if second_us is None else second_us + int(digits) * _SCALE[length - 21]


def parse_exact_iso_us(text: str, utc_offset_minutes: int | None = None) -> int:
    """Like ``parse_iso_us``, but a stamp that is finer than a microsecond raises ``ValueError``: nothing is cut off."""
    us: int | None = quick_iso_us(text)
    if us is not None:
        return us
    us, exact = _parse(text, utc_offset_minutes)
    if not exact:
        raise ValueError("a time stamp finer than a microsecond")
    return us


def parse_local_us(text: str) -> int:
    """Microseconds since 1970 of a stamp that must carry no offset (a wall clock's time); raises ``ValueError``."""
    match = _ISO.fullmatch(text)
    if match is None or match[6]:
        raise ValueError("not an ISO 8601 time stamp without offset")
    return parse_exact_iso_us(text, 0)


@lru_cache(maxsize=4096)
def parse_date(text: str) -> int:
    """Days since 1970-01-01 of ``YYYY-MM-DD``; raises ``ValueError``."""
    if _DATE.fullmatch(text) is None:
        raise ValueError("not a date of the form YYYY-MM-DD")
    return date.fromisoformat(text).toordinal() - _EPOCH_DAY


def parse_time_us(text: str) -> int:
    """Microseconds since midnight of ``HH:MM[:SS[.fraction]]``, below 24 hours; raises ``ValueError`` if finer."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not a time of the form HH:MM:SS")
    hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("no such time of day")
    fraction_us, exact = _fraction_us(match[4])
    if not exact:
        raise ValueError("a time finer than a microsecond")
    return (hour * 3600 + minute * 60 + second) * 1_000_000 + fraction_us


def format_iso_us(us: int) -> str:
    """``2026-11-03T12:34:56.123456Z``; raises ``OverflowError`` outside the years 1 to 9999."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds") + "Z"


def format_local_us(us: int) -> str:
    """``2026-11-03T12:34:56.123456``: a wall clock's time, without offset."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds")


def format_date(day: int) -> str:
    """``2026-11-03``; raises ``ValueError`` outside the years 1 to 9999."""
    if not MIN_DAY <= day <= MAX_DAY:
        raise ValueError("a date outside the years 1 to 9999")
    return date.fromordinal(day + _EPOCH_DAY).isoformat()


def format_time_us(us: int) -> str:
    """``12:34:56.123456``; raises ``ValueError`` outside one day."""
    if not 0 <= us < DAY_US:
        raise ValueError("a time of day outside the day")
    return (_EPOCH + timedelta(microseconds=us)).time().isoformat(timespec="microseconds")


@lru_cache(maxsize=4096)  # neighbours in a feed share their second
def _second_us(text: str) -> int | None:
    if _SECOND.fullmatch(text) is None:
        return None
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        return None  # judged, and refused with its reason, by _parse


def _parse(text: str, utc_offset_minutes: int | None) -> tuple[int, bool]:
    """(microseconds, whether nothing finer was cut off)."""
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError("not an ISO 8601 time stamp")
    day_us = parse_date(match[1]) * DAY_US
    hour, minute, second = int(match[2]), int(match[3]), int(match[4] or 0)
    fraction_us, exact = _fraction_us(match[5])
    if hour > 24 or minute > 59 or second > 60:
        raise ValueError("no such time of day")
    if hour == 24 and (minute or second or fraction_us or not exact):
        raise ValueError("a time of day beyond 24:00:00")
    offset_us = _offset_minutes(match[6], utc_offset_minutes) * 60_000_000
    whole_us = day_us + (hour * 3600 + minute * 60 + second) * 1_000_000 - offset_us
    if second == 60 and whole_us % DAY_US:
        raise ValueError("a leap second that is not at 23:59:60 UTC")
    us = whole_us + fraction_us
    if not MIN_US <= us <= MAX_US:
        raise ValueError("a time stamp outside the years 1 to 9999")
    return us, exact


def _fraction_us(digits: str | None) -> tuple[int, bool]:
    if not digits:
        return 0, True
    return int(digits[:6].ljust(6, "0")), not digits[6:].strip("0")


def _offset_minutes(zone: str | None, default: int | None) -> int:
    if not zone:
        if default is None:
            raise ValueError("a time stamp without offset, and the entity declares none (updated_at.utc_offset)")
        return default
    if zone in "Zz":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 18 or minutes > 59:
        raise ValueError("an offset beyond 18 hours")
    total = hours * 60 + minutes
    return -total if zone[0] == "-" else total
