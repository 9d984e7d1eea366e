"""Who an event is: its key, its time, its identity, and its place in the order of one key's changes.

Nothing here reads the schema: an event that version 1 refuses and version 2 accepts is one event with one identity.

**Identity** is blake2b (16 bytes) over the compact JSON text, in UTF-8, of an array:

- ``[entity, key, updated_us, id]``, where ``id`` is the source's own event id, a string or an integer, if it sends
  one;
- ``[entity, key, updated_us, payload]`` otherwise, ``payload`` being the canonical payload;
- ``[entity, sha256]`` for an event whose key or time stamp can't be read; sha256 in hex, of its raw bytes.

``key`` is the key's text and ``updated_us`` an integer. Canonical payload: members sorted by the UTF-8 bytes of their
names, no white space, numbers as written, strings with the shortest escapes (only ``"``, ``\\`` and control
characters are escaped, as ``\\b \\t \\n \\f \\r`` or ``\\u00xx``), a repeated name: the last one, as in every parser.
An own id that is neither string nor integer counts as absent. Test vectors: tests/unit/identity_vectors.json; ids
live for years, so a change of any of this is a new kind of identity, never an edit.

**Key text**: a string as it is, an integer as written, ``true`` or ``false``; several fields: their compact JSON
array. Null, missing, fractions, objects and arrays are refused.
"""

import re
from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from hashlib import blake2b, sha256
from math import floor
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from shared.events.instants import MAX_US, MIN_US, parse_iso_us, quick_iso_us
from shared.events.model import EventRules, Reason, RejectedEvent, Sighting
from shared.events.nesting import deeper_than

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_decode_as_written = msgspec.json.Decoder(float_hook=Raw).decode  # fractions stay text; integers have but one spelling
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_MINUS_ZERO = re.compile(rb"-0(?=[,\]}\s]|\Z)")  # ... except zero
_SCALARS = (str, int, bool)
_KEY_RULE = "a key field must be a string, an integer or a boolean, and not null"
_UNITS = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_TOWARDS_THE_PAST = Context(prec=28, rounding=ROUND_FLOOR)
_INT64 = 2**63


class _Unreadable(Exception):
    """Key or time stamp can't be read: ``(path, detail)``."""


class Identifier:
    """Identifies the raw events of one entity. Holds nothing but compiled rules: one per entity, any thread."""

    def __init__(self, rules: EventRules) -> None:
        self._rules = rules
        self._probe, self._roles = _compile_probe(rules)
        self._key_text = _single_key(rules.key[0]) if len(rules.key) == 1 else _composite_key(rules.key)
        self._time_us = _time_reader(rules)

    def identify(self, raws: Sequence[bytes]) -> list[Sighting]:
        """One sighting per raw event, in order. Never raises for bad input: what can't be read carries its refusal.

        Size is no part of identity (limits change): an event above ``event_bytes_max`` is identified like any other and
        carries TOO_LARGE. One nested deeper than ``depth_max`` is not read at all: HOSTILE, identified by its bytes.
        An op that is absent or no scalar means no delete; the schema judges it.
        """
        return [self._identify(raw) for raw in raws]

    def _identify(self, raw: bytes) -> Sighting:
        rules = self._rules
        openers = raw.count(b"{") + (raw.count(b"[") if b"[" in raw else 0)
        if openers > rules.depth_max and deeper_than(raw, rules.depth_max):
            return self._unread(raw, Reason.HOSTILE, "", f"nested deeper than {rules.depth_max} levels")
        try:
            key_value, updated_at, own_id, op, version = self._roles(self._probe(raw))
            key = self._key_text(key_value)
            updated_us = self._time_us(updated_at)
            if own_id.__class__ is not str and own_id.__class__ is not int:
                own_id = Raw(canonical_payload(raw))
        except _Unreadable as unreadable:
            return self._unread(raw, Reason.INVALID, *unreadable.args)
        except msgspec.ValidationError as error:
            return self._unread(raw, Reason.INVALID, *_misshapen(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._unread(raw, Reason.HOSTILE, "", _not_json(error))
        if version.__class__ is not int or not -_INT64 <= version < _INT64:
            version = None
        refusal = None
        if len(raw) > rules.event_bytes_max:
            refusal = RejectedEvent(Reason.TOO_LARGE, "", f"larger than {rules.event_bytes_max} bytes")
        elif version is None and rules.version is not None:
            refusal = RejectedEvent(Reason.INVALID, pointer(rules.version), "the version must be a 64-bit integer")
        return Sighting(
            raw,
            key,
            sha256(key.encode()).digest()[:16],
            updated_us,
            blake2b(_encode((rules.entity, key, updated_us, own_id)), digest_size=16).digest(),
            (op if op.__class__ is str else _scalar_text(op)) in rules.delete_ops,
            version,
            refusal,
        )

    def _unread(self, raw: bytes, reason: Reason, path: str, detail: str) -> Sighting:
        digest = sha256(raw)
        identity = blake2b(_encode((self._rules.entity, digest.hexdigest())), digest_size=16).digest()
        return Sighting(raw, None, digest.digest()[:16], 0, identity, refusal=RejectedEvent(reason, path, detail))


def event_id(identity: bytes, occurrence: int) -> str:
    """32 hex digits: blake2b (16 bytes) over the 16 bytes of ``identity`` and the occurrence, 8 bytes, big-endian."""
    return blake2b(identity + occurrence.to_bytes(8, "big"), digest_size=16).hexdigest()


def seq(rules: EventRules, sighting: Sighting, shown_us: int) -> tuple[int, int]:
    """``(rank, tiebreak)``: the order of one key's changes, stamped at first sight. The higher one wins.

    An event whose version or time can't be read ranks lowest: repaired some day, it overwrites nothing newer.
    """
    if rules.version is not None:
        return sighting.version or 0, shown_us
    if rules.shows == "rows":
        return shown_us, 0
    return sighting.updated_us, shown_us


def key_hash(key: str) -> bytes:
    """The first 16 bytes of the sha256 of the key's text in UTF-8."""
    return sha256(key.encode()).digest()[:16]


def canonical_payload(raw: bytes) -> bytes:
    """The one spelling of a JSON text that identity hashes. Raises ``msgspec.DecodeError`` or ``UnicodeDecodeError``.

    The caller bounds the depth: this recurses.
    """
    if _MINUS_ZERO.search(raw) is None:
        try:
            return _encode_sorted(_decode_as_written(raw))
        except msgspec.ValidationError:
            pass  # an integer of many hundred digits
    return _canonical_slowly(raw)


def _canonical_slowly(raw: bytes) -> bytes:
    first = raw.lstrip()[:1]
    if first == b"{":
        members = sorted((name.encode(), value) for name, value in _decode_object(raw).items())
        return b"{%b}" % b",".join(
            _encode(name.decode()) + b":" + _canonical_slowly(bytes(raw)) for name, raw in members
        )
    if first == b"[":
        return b"[%b]" % b",".join(_canonical_slowly(bytes(element)) for element in _decode_array(raw))
    if first == b'"':
        return _encode(msgspec.json.decode(raw, type=str))
    return raw.strip()


def _compile_probe(rules: EventRules) -> tuple[Callable[[bytes], Any], Callable[[Any], tuple[Any, ...]]]:
    """(a decoder that reads the few members identity needs and skips the rest, a getter of their roles).

    The roles: key (a tuple, if composite), updated_at, event id, op, version. Absent: ``UNSET``. One member may play
    several roles. Fractions come as ``Raw``: as written.
    """
    attributes: dict[str, str] = {}

    def attribute(name: str | None) -> str:
        return "absent" if name is None else attributes.setdefault(name, f"member_{len(attributes)}")

    single = attribute(rules.key[0])
    key = attrgetter(*map(attribute, rules.key))
    others = [attribute(name) for name in (rules.updated_at, rules.event_id, rules.op, rules.version)]
    probe = msgspec.defstruct(
        "Probe",
        [(name, Any, UNSET) for name in attributes.values()],
        rename={python: json for json, python in attributes.items()},
        namespace={"absent": UNSET},
    )
    decode = msgspec.json.Decoder(probe, float_hook=Raw).decode
    if len(rules.key) == 1:
        return decode, attrgetter(single, *others)
    others_of = attrgetter(*others)
    return decode, lambda found: (key(found), *others_of(found))


def _single_key(name: str) -> Callable[[Any], str]:
    def text(value: Any) -> str:
        if value.__class__ is str:
            return value
        found = _scalar_text(value)
        if found is None:
            raise _Unreadable(pointer(name), _KEY_RULE)
        return found

    return text


def _composite_key(names: tuple[str, ...]) -> Callable[[Any], str]:
    def text(values: tuple[Any, ...]) -> str:
        for name, value in zip(names, values, strict=True):
            if value.__class__ not in _SCALARS:
                raise _Unreadable(pointer(name), _KEY_RULE)
        return _encode(values).decode()

    return text


def _scalar_text(value: Any) -> str | None:
    if value.__class__ is str:
        return value
    if value.__class__ is bool:
        return "true" if value else "false"
    return str(value) if value.__class__ is int else None


def _time_reader(rules: EventRules) -> Callable[[Any], int]:
    path = pointer(rules.updated_at)
    if rules.updated_at_format == "iso8601":
        return _iso_reader(path, rules.utc_offset_minutes)
    return _epoch_reader(path, rules.updated_at_format)


def _iso_reader(path: str, utc_offset_minutes: int | None) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if value.__class__ is not str:
            raise _Unreadable(path, "the time stamp must be a string in ISO 8601")
        us = quick_iso_us(value)
        if us is not None:
            return us
        try:
            return parse_iso_us(value, utc_offset_minutes)
        except ValueError as error:
            raise _Unreadable(path, str(error)) from None

    return read


def _epoch_reader(path: str, unit: str) -> Callable[[Any], int]:
    scale = _UNITS[unit]

    def read(value: Any) -> int:
        if value.__class__ is int:
            us: int | Decimal = value * scale
        elif value.__class__ is Raw and unit == "epoch_s":
            us = _seconds_to_us(bytes(value).decode())
        else:
            raise _Unreadable(path, f"the time stamp must be a number ({unit}; fractions only in epoch_s)")
        if not MIN_US <= us <= MAX_US:  # compared before it is made an integer: 1e999999 would not fit in memory
            raise _Unreadable(path, "a time stamp outside the years 1 to 9999")
        return floor(us)

    return read


def _seconds_to_us(text: str) -> Decimal:
    try:
        return _TOWARDS_THE_PAST.multiply(Decimal(text), Decimal(1_000_000))
    except ArithmeticError:
        return Decimal("Infinity")


def pointer(*steps: str | int) -> str:
    """The JSON pointer (RFC 6901) of a member."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def _misshapen(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec's complaint about JSON that the probe can't take: no object, or an integer of hundreds of digits."""
    at = re.search(r" - at `\$\.(.*)`$", str(error))
    return ("", "the event must be a JSON object") if at is None else (pointer(at[1]), "an integer of too many digits")


def _not_json(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8"
    return "nested too deep" if isinstance(error, RecursionError) else f"no JSON: {error}"
