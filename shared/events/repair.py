"""Repair rules: what an entity's owner has declared may be changed in an event that its contract refuses.

A rule names a member by its JSON pointer, in which ``*`` stands for every element of an array. It is applied only where
a refusal points at it (its pointer lies above, at or below the refused path), once per event and in the order of the
rules: a member that nobody has complained about stays as it was sent. What was done is told by rule and declared
pointer, never by value. All that a rule does not touch keeps its bytes: numbers stay as written.

No rule may touch what an event's identity and order are made of (``check_repairs``): a repaired event keeps its id, its
key and its place.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Context
from hashlib import blake2b
from typing import ClassVar, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct

from shared.events.instants import MAX_US, MIN_US, format_iso_us
from shared.events.model import EventRules, Reason, RejectedEvent

# Raised when a rule does otherwise than before: parked events are then worth another try.
_REPAIR_VERSION = 1
EVERY = "*"
RULES_MAX = 100

_POINTER = re.compile(r"(/([^/~]|~[01])+)+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_CHARS_MAX = 4_000
_EPOCH = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_EXACTLY = Context(prec=60)
_UNIT_US = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_array = msgspec.json.Decoder(list[Raw]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Verdict = TypeVar("_Verdict")


class Rename(Struct, frozen=True, tag="rename"):
    """The member is called ``to``, in the same object. Never over a member that is there."""

    rule: ClassVar[str] = "rename"
    at: str
    to: str


class Default(Struct, frozen=True, tag="default"):
    """The member where it is absent. ``value`` is JSON text."""

    rule: ClassVar[str] = "default"
    at: str
    value: bytes
    nulls: bool = False
    """Also where it is null."""


class Number(Struct, frozen=True, tag="number"):
    """Text that is a JSON number, as that number, digit by digit."""

    rule: ClassVar[str] = "number"
    at: str


class Epoch(Struct, frozen=True, tag="epoch"):
    """A number since 1970, or its text, as an ISO 8601 stamp in UTC; not if it is finer than a microsecond."""

    rule: ClassVar[str] = "epoch"
    at: str
    unit: Literal["epoch_s", "epoch_ms", "epoch_us"]


class Trim(Struct, frozen=True, tag="trim"):
    """Text without the white space around it."""

    rule: ClassVar[str] = "trim"
    at: str


class EnumMap(Struct, frozen=True, tag="enum"):
    """Text that stands on the left becomes the text on the right; an integer or a boolean counts as its JSON text."""

    rule: ClassVar[str] = "enum"
    at: str
    symbols: tuple[tuple[str, str], ...]


RepairRule: TypeAlias = Rename | Default | Number | Epoch | Trim | EnumMap


class Applied(Struct, frozen=True):
    """One rule that changed an event: at how many places. ``pointer`` is the declared one: it tells no value."""

    rule: str
    pointer: str
    times: int


class Repaired(Struct, frozen=True):
    raw: bytes
    applied: tuple[Applied, ...]


def repair(
    raw: bytes,
    refusal: RejectedEvent,
    rules: Sequence[RepairRule],
    judge: Callable[[bytes], _Verdict | RejectedEvent],
) -> tuple[Repaired, _Verdict] | RejectedEvent:
    """Apply what the refusal calls for, ask ``judge`` again, and so on; each rule once, so this ends.

    The last refusal where no rule helps. ``raw`` must be JSON without repeated names, its depth bounded.
    """
    applied: list[Applied] = []
    unused = list(rules)
    while refusal.reason is Reason.INVALID:
        before = len(applied)
        for rule in [rule for rule in unused if _is_called_by(rule, _steps(refusal.exact_path))]:
            raw, times = apply(rule, raw)
            if times:
                unused.remove(rule)
                applied.append(Applied(rule.rule, rule.at, times))
        if len(applied) == before:
            break
        verdict = judge(raw)
        if not isinstance(verdict, RejectedEvent):
            return Repaired(raw, tuple(applied)), verdict
        refusal = verdict
    return refusal


def apply(rule: RepairRule, raw: bytes) -> tuple[bytes, int]:
    """The event with the rule applied, and at how many places that changed it."""
    *parent, name = _steps(rule.at)
    match rule:
        case Rename():
            return _change(raw, parent, lambda text: _renamed(text, name, rule.to))
        case Default():
            return _change(raw, parent, lambda text: _with_default(text, name, rule))
        case Number():
            return _change(raw, [*parent, name], _number)
        case Epoch():
            return _change(raw, [*parent, name], lambda text: _iso(text, _UNIT_US[rule.unit]))
        case Trim():
            return _change(raw, [*parent, name], _trimmed)
        case EnumMap():
            symbols = dict(rule.symbols)
            return _change(raw, [*parent, name], lambda text: _mapped(text, symbols))


def check_repairs(repairs: Sequence[RepairRule], rules: EventRules) -> list[tuple[int, str]]:
    """(index of the rule, what is wrong and what to do), for each that can't be."""
    roles = {rules.updated_at: "updated_at", rules.event_id: "id", rules.version: "version"}
    roles |= dict.fromkeys(rules.key, "key")
    found = [(index, wrong) for index, rule in enumerate(repairs) if (wrong := _wrong_with(rule, roles)) is not None]
    if len(repairs) > RULES_MAX:
        found.append((RULES_MAX, f"more than {RULES_MAX} rules; correct the source, or the schema"))
    return found


def fingerprint_with(contract_fingerprint: str, repairs: Sequence[RepairRule]) -> str:
    """Changes with anything that may change what becomes of an event; the contract's own where there are no rules."""
    if not repairs:
        return contract_fingerprint
    settings = msgspec.json.encode((_REPAIR_VERSION, contract_fingerprint, repairs))
    return blake2b(settings, digest_size=16).hexdigest()


def _wrong_with(rule: RepairRule, roles: dict[str | None, str]) -> str | None:
    if _POINTER.fullmatch(rule.at) is None:
        return f"{rule.rule}: expected a JSON pointer as /amount or /lines/*/price, got {rule.at!r}"
    first, *others = steps = _steps(rule.at)
    if first == EVERY:
        return f"{rule.rule}: an event is an object; name its member before '*'"
    touched = [first, rule.to] if isinstance(rule, Rename) and not others else [first]
    for name in touched:
        if name in roles:
            return (
                f"{rule.rule}: {name!r} is the entity's {roles[name]} field; a repair never moves an event's identity "
                "or order. Correct the source, or edit single events with `tidemark parked edit`"
            )
    if isinstance(rule, Rename | Default) and steps[-1] == EVERY:
        return f"{rule.rule}: expected the name of a member at the end, not '*'"
    if isinstance(rule, Rename) and rule.to == steps[-1]:
        return f"rename: {rule.to!r} is its name already"
    return None


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _is_called_by(rule: RepairRule, refused: list[str]) -> bool:
    steps = _steps(rule.at)
    if isinstance(rule, Rename) and _meet([*steps[:-1], rule.to], refused):
        return True
    return _meet(steps, refused)


def _meet(pattern: list[str], path: list[str]) -> bool:
    """One lies at or above the other."""
    return all(
        step == wanted or (wanted == EVERY and step.isdigit()) for wanted, step in zip(pattern, path, strict=False)
    )


def _change(raw: bytes, steps: list[str], change: Callable[[bytes], bytes | None]) -> tuple[bytes, int]:
    """Decodes only what lies on the way; all else is passed on as it is."""
    if not steps:
        changed = change(raw)
        return (raw, 0) if changed is None else (changed, 1)
    step, *below = steps
    try:
        if step == EVERY:
            elements = [_change(bytes(element), below, change) for element in _array(raw)]
            times = sum(count for _, count in elements)
            return (b"[%b]" % b",".join(text for text, _ in elements), times) if times else (raw, 0)
        members = _object(raw)
    except _UNREADABLE:
        return raw, 0  # of another type than the rule expects
    if step not in members:
        return raw, 0
    text, times = _change(bytes(members[step]), below, change)
    if not times:
        return raw, 0
    members[step] = Raw(text)
    return _encode(members), times


def _renamed(raw: bytes, name: str, to: str) -> bytes | None:
    members = _members(raw)
    if members is None or name not in members or to in members:
        return None
    return _encode({to if own == name else own: text for own, text in members.items()})


def _with_default(raw: bytes, name: str, rule: Default) -> bytes | None:
    members = _members(raw)
    if members is None or (name in members and not (rule.nulls and bytes(members[name]) == b"null")):
        return None
    return _encode(members | {name: Raw(rule.value)})


def _number(raw: bytes) -> bytes | None:
    text = _scalar(raw)
    if raw[:1] != b'"' or text is None or len(text) > _NUMBER_CHARS_MAX or _NUMBER.fullmatch(text) is None:
        return None
    return text.encode()


def _iso(raw: bytes, unit_us: int) -> bytes | None:
    text = raw.decode() if raw[:1] != b'"' else _scalar(raw)
    if text is None or _EPOCH.fullmatch(text) is None:
        return None
    us = _EXACTLY.multiply(_EXACTLY.create_decimal(text), unit_us)
    if us != int(us) or not MIN_US <= us <= MAX_US:
        return None
    return _encode(format_iso_us(int(us)))


def _trimmed(raw: bytes) -> bytes | None:
    text = _scalar(raw) if raw[:1] == b'"' else None
    return None if text is None or text == text.strip() else _encode(text.strip())


def _mapped(raw: bytes, symbols: dict[str, str]) -> bytes | None:
    text = _scalar(raw)
    return _encode(symbols[text]) if text is not None and text in symbols else None


def _members(raw: bytes) -> dict[str, Raw] | None:
    try:
        return _object(raw)
    except _UNREADABLE:
        return None


def _scalar(raw: bytes) -> str | None:
    """Text as it is; an integer, true or false as written; ``None`` for all else."""
    if raw[:1] != b'"':
        text = raw.decode()
        return text if text in ("true", "false") or re.fullmatch(r"-?[0-9]{1,40}", text) else None
    try:
        return msgspec.json.decode(raw, type=str)
    except _UNREADABLE:
        return None
