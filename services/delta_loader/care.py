"""What a table's care decides: its properties as code, and how old a file or a deleted row must be to go. Pure."""

import json
import re
from collections.abc import Mapping

from msgspec import Struct

RECORD = "tidemark.properties"
"""A table property: what we set last, as JSON. It tells our values from those that somebody has set by hand."""
RETENTION = "delta.deletedFileRetentionDuration"
RETENTION_S_MIN = 7 * 86_400
"""A writer gives a batch up after a day, and a reader may hold a version for days: no file leaves sooner."""
BEHIND_S = 86_400.0
"""How late an event that left the parked table may reach the Delta table: sink and loader may have stood still."""
SHOWN_IN = {"shown": "_rank", "updated_at": "_tiebreak", "version": "_tiebreak"}
"""By a table's order: the column that holds when an event was first seen, in microseconds since 1970."""

_PART = re.compile(r"(\d+)\s*([a-z]+)")
_UNITS_S = {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1}


class Kept(Struct, frozen=True):
    """A property that is not ours to change."""

    name: str
    found: str
    wanted: str


class PropertiesPlan(Struct, frozen=True):
    """``set_`` and ``unset`` lead to what is wanted, except for what is ``kept``."""

    set_: dict[str, str]
    unset: tuple[str, ...]
    kept: tuple[Kept, ...]

    @property
    def is_empty(self) -> bool:
        return not self.set_ and not self.unset


class HorizonTooNear(Exception):
    """Events that are older than the purge may still come, and would bring purged rows back to life."""


def plan_properties(found: Mapping[str, str], wanted: Mapping[str, str], defaults: Mapping[str, str]) -> PropertiesPlan:
    """What to change of a table's properties. A value counts as ours if we have recorded it, or it is the default.

    A property that we have set and that nobody wants any more is removed.
    """
    there = {name.lower(): value for name, value in found.items()}
    recorded: dict[str, str] = json.loads(there.get(RECORD, "{}"))
    ours = {**defaults, **recorded}
    kept = tuple(
        Kept(name, there[name.lower()], value)
        for name, value in sorted(wanted.items())
        if there.get(name.lower()) not in (None, value, ours.get(name))
    )
    left_alone = {one.name for one in kept}
    record = {name: value for name, value in wanted.items() if name not in left_alone}
    changed = {name: value for name, value in record.items() if there.get(name.lower()) != value}
    unset = tuple(name for name in sorted(recorded) if name not in wanted and there.get(name.lower()) == recorded[name])
    if record != recorded:
        changed[RECORD] = json.dumps(record, sort_keys=True)
    return PropertiesPlan(changed, unset, kept)


def record_of(properties: Mapping[str, str]) -> dict[str, str]:
    """What a table that is made with ``properties`` remembers of them."""
    return {RECORD: json.dumps(dict(properties), sort_keys=True)}


def problems_of(properties: Mapping[str, str]) -> list[str]:
    """Why a table with these properties can't be vacuumed: Delta goes by its own property, and by nothing else."""
    text = properties.get(RETENTION)
    seconds = RETENTION_S_MIN if text is None else interval_s(text)
    if seconds is None:
        return [f"{RETENTION}: {text!r} is no interval; expected one as 'interval 7 days'"]
    if seconds < RETENTION_S_MIN:
        return [f"{RETENTION}: {text!r} is less than 7 days: files would leave that a reader or a writer still needs"]
    return []


def interval_s(text: str) -> int | None:
    """Seconds of Delta's interval texts (``interval 1 week 2 days``); ``None``: not understood."""
    words = text.strip().lower().removeprefix("interval").strip()
    parts = _PART.findall(words)
    if not parts or _PART.sub("", words).strip():
        return None
    units = [unit.removesuffix("s") for _count, unit in parts]
    if any(unit not in _UNITS_S for unit in units):
        return None
    return sum(int(count) * _UNITS_S[unit] for (count, _unit), unit in zip(parts, units, strict=True))


def longest_stay_s(patience_s: float, grace_s: float) -> float:
    """How long after its first sight an event may still reach the table, if nobody prolongs its stay by hand."""
    return patience_s + grace_s + BEHIND_S


def check_horizon(before_us: int, now_us: int, stay_s: float) -> None:
    """Raises ``HorizonTooNear``."""
    latest_us = now_us - int(stay_s * 1_000_000)
    if before_us > latest_us:
        raise HorizonTooNear(
            f"an event that was parked may still come {stay_s / 86_400:g} days after it was first seen (its patience, "
            "the notifier's grace, and a day for sink and loader); if its key's delete were purged by then, the row "
            f"would come back to life. Name a time at least {stay_s / 86_400:g} days ago"
        )
