"""The committed rule files, as data."""

import re
from functools import cache
from pathlib import Path

import msgspec
import yaml
from msgspec import Struct

FOLDER = Path(__file__).parent / "rules"
RUNBOOKS = Path(__file__).parent / "runbooks.md"


class Rule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One that records, or an alert."""

    expr: str
    record: str = ""
    alert: str = ""
    wait: str = msgspec.field(default="", name="for")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Group(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    rules: list[Rule]
    interval: str = ""


class RuleFile(Struct, frozen=True, forbid_unknown_fields=True):
    groups: list[Group]


def rules(folder: Path = FOLDER) -> list[Rule]:
    return [rule for group in groups(folder) for rule in group.rules]


@cache
def groups(folder: Path = FOLDER) -> list[Group]:
    """Raises ``msgspec.ValidationError`` on an unknown key."""
    files = [msgspec.convert(yaml.safe_load(file.read_text()), RuleFile) for file in sorted(folder.glob("*.yaml"))]
    return [group for file in files for group in file.groups]


def alerts(folder: Path = FOLDER) -> list[Rule]:
    return [rule for rule in rules(folder) if rule.alert]


def recorded(folder: Path = FOLDER) -> list[str]:
    return [rule.record for rule in rules(folder) if rule.record]


def labels_shown(rule: Rule) -> set[str]:
    """Labels that the alert's texts name."""
    return set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
