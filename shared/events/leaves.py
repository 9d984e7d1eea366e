"""One JSON value to one Avro value, leaf by leaf: the rules that the compiled and the general path share.

How JSON spells what it has no type for:

- *bytes*, *fixed*: base64 text (the standard alphabet, padded, no white space, unused bits zero: one spelling each);
- *decimal*: a number or a string holding one; exact: more digits than the scale holds are refused, zeros aside;
- *timestamp-\\**: ISO 8601 text with offset (or the entity's ``utc_offset``), *local-timestamp-\\**: without;
  *time-\\**: ``HH:MM:SS[.f]``; *date*: ``YYYY-MM-DD``; each also as an integer in the type's own unit. Exact: what is
  finer than the unit is refused, and so is what lies outside the years 1 to 9999 or the day;
- *uuid*: 8-4-4-4-12 hex digits; on a string kept as written;
- *enum*: a symbol.

All raise ``ValueError`` with the rule that failed, never the value.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable

from shared.events.instants import (
    DAY_US,
    MAX_DAY,
    MAX_US,
    MIN_DAY,
    MIN_US,
    parse_date,
    parse_exact_iso_us,
    parse_local_us,
    parse_time_us,
    quick_iso_us,
)
from shared.events.schema import Leaf

_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,5}))?")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_NUMBER_CHARS_MAX = 4000  # below the interpreter's own limit for integers


def bytes_from_base64(text: str) -> bytes:
    try:
        found = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise ValueError("must be base64") from None
    if b64encode(found) != text.encode():
        raise ValueError("must be base64 in its canonical form (padded, unused bits zero)")
    return found


def unscaled_decimal(text: str, precision: int, scale: int) -> int:
    """The integer that a decimal of this scale stores, from a number as written. Never by way of a float."""
    match = _NUMBER.fullmatch(text) if len(text) <= _NUMBER_CHARS_MAX else None
    if match is None:
        raise ValueError("must be a decimal number")
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", int(match[4] or 0)
    shift = scale - len(fraction) + exponent
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    if shift < 0:
        digits, cut = digits[:shift], digits[shift:]
        if cut.strip("0") or not digits:
            raise ValueError(f"must have at most {scale} digits after the point")
        shift = 0
    if len(digits) + shift > precision:
        raise ValueError(f"must have at most {precision} digits, {scale} of them after the point")
    unscaled = int(digits + "0" * shift)
    return -unscaled if sign else unscaled


def decimal_bytes(unscaled: int, size: int) -> bytes:
    """Two's complement, big-endian; ``size`` 0: as long as its magnitude and a sign bit need, as fastavro has it."""
    return unscaled.to_bytes(size or (unscaled.bit_length() + 8) // 8, "big", signed=True)


def uuid_text(text: str) -> str:
    if _UUID.fullmatch(text) is None:
        raise ValueError("must be a UUID of the form 8-4-4-4-12")
    return text


def uuid_bytes(text: str) -> bytes:
    return bytes.fromhex(uuid_text(text).replace("-", ""))


def when_reader(leaf: Leaf, utc_offset_minutes: int | None) -> Callable[[str | int], int]:
    """From text, or an integer in the type's unit, to the type's integer, for date, time and timestamp types."""
    logical = leaf.logical or ""
    if logical == "date":
        return _bounded(parse_date, 1, MIN_DAY, MAX_DAY)
    unit_us = 1_000 if logical.endswith("millis") else 1
    if logical.startswith("timestamp"):
        general = _bounded(lambda text: parse_exact_iso_us(text, utc_offset_minutes), unit_us, MIN_US, MAX_US)
        return _quick(general) if unit_us == 1 else general
    if logical.startswith("local"):
        return _bounded(parse_local_us, unit_us, MIN_US, MAX_US)
    return _bounded(parse_time_us, unit_us, 0, DAY_US - 1)


def _quick(general: Callable[[str | int], int]) -> Callable[[str | int], int]:
    def read(value: str | int) -> int:
        us = quick_iso_us(value) if isinstance(value, str) else None
        return general(value) if us is None else us

    return read


def _bounded(parse: Callable[[str], int], unit: int, lowest: int, highest: int) -> Callable[[str | int], int]:
    low, high = -(-lowest // unit), highest // unit

    def read(value: str | int) -> int:
        if isinstance(value, str):
            value, rest = divmod(parse(value), unit)
            if rest:
                raise ValueError("must not be finer than a millisecond")
        if not low <= value <= high:
            raise ValueError("must lie within the years 1 to 9999" if lowest else "must lie within the day")
        return value

    return read
