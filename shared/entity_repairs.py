"""Repair rules of an entity, as the entity folder writes them::

    repair:
      - {rename: /amt, to: amount}
      - {default: /currency, value: EUR}
      - {number: /lines/*/price}
      - {epoch: /opened_at, unit: epoch_ms}
      - {trim: /name}
      - {enum: /status, map: {actv: active}}

Each item names one rule, and where. What a rule does: ``shared.events.repair``.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, structs

from shared.events.model import EventRules
from shared.events.repair import Default, EnumMap, Epoch, Number, Rename, RepairRule, Trim, check_repairs
from shared.located_yaml import Located, Problems, read_form

_OPTIONS: dict[str, tuple[str, ...]] = {
    "rename": ("to",),
    "default": ("value", "nulls"),
    "number": (),
    "epoch": ("unit",),
    "trim": (),
    "enum": ("map",),
}
_OPTIONAL = ("nulls",)

_Pointer = Annotated[str, Meta(min_length=2, max_length=400)]


class _RepairForm(Struct, kw_only=True):
    rename: _Pointer | None = None
    to: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    default: _Pointer | None = None
    value: Any = None
    nulls: bool | None = None
    number: _Pointer | None = None
    epoch: _Pointer | None = None
    unit: Literal["epoch_s", "epoch_ms", "epoch_us"] | None = None
    trim: _Pointer | None = None
    enum: _Pointer | None = None
    map: Annotated[dict[str, str], Meta(min_length=1, max_length=1_000)] | None = None


def read_repairs(node: Located, rules: EventRules, problems: Problems) -> tuple[RepairRule, ...]:
    """The list under ``repair``; every rule that can't be is a problem with its line."""
    if not isinstance(node.value, list):
        problems.add(node, "repair: expected a list of rules, as - {trim: /name}")
        return ()
    read = [(item, rule) for item in node.value if (rule := _rule(item, problems)) is not None]
    for index, wrong in check_repairs([rule for _, rule in read], rules):
        problems.add(read[index][0], f"repair: {wrong}")
    return tuple(rule for _, rule in read)


def _rule(node: Located, problems: Problems) -> RepairRule | None:
    before = len(problems)
    form = read_form(_RepairForm, node, problems)
    if form is None or len(problems) > before:
        return None
    assert isinstance(node.value, dict)
    named = [name for name in _OPTIONS if name in node.value]
    if len(named) != 1:
        problems.add(node, f"repair: expected one of {', '.join(_OPTIONS)} in each rule, got {len(named)}")
        return None
    (name,) = named
    if _has_its_options(name, node, problems):
        return _made(name, form)
    return None


def _has_its_options(name: str, node: Located, problems: Problems) -> bool:
    assert isinstance(node.value, dict)
    before = len(problems)
    needed = (name, *(option for option in _OPTIONS[name] if option not in _OPTIONAL))
    for option in needed:
        if option not in node.value or (node.value[option].value is None and option != "value"):
            problems.add(node, f"repair: {name} needs {'a pointer' if option == name else repr(option)}")
    for key in node.value.keys() - {name, *_OPTIONS[name]}:
        problems.add(node.key(key), f"repair: {key!r} is not for {name}")
    return len(problems) == before


def _made(name: str, form: _RepairForm) -> RepairRule:
    at: str = structs.asdict(form)[name]
    match name:
        case "rename":
            return Rename(at, form.to or "")
        case "default":
            return Default(at, msgspec.json.encode(form.value), form.nulls is True)
        case "number":
            return Number(at)
        case "epoch":
            return Epoch(at, form.unit or "epoch_s")
        case "trim":
            return Trim(at)
    return EnumMap(at, tuple(sorted((form.map or {}).items())))
