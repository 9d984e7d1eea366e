"""What a dashboard is made of, as data: a board of rows, a row of panels, a panel of queries."""

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Kind = Literal["stat", "lines", "stack", "states"]
"""One number; lines over time; lines that add up; a coloured strip per series over time."""
Colour = Literal["green", "yellow", "orange", "red", "blue", "text"]
COLUMNS = 24


class Query(Struct, frozen=True):
    expr: str
    legend: str = ""
    """``{{label}}`` stands for that label's value."""


class Step(Struct, frozen=True):
    """From ``at`` on, the panel is of this colour; ``None``: from the lowest value on."""

    at: float | None
    colour: Colour


class Panel(Struct, frozen=True, kw_only=True):
    title: str
    question: str
    """What it answers."""
    bad: str
    """What a bad picture looks like, and what to do then."""
    unit: str
    """One of Grafana's: s, bytes, short, percentunit, reqps, …"""
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8
    height: int = 7
    steps: tuple[Step, ...] = (Step(None, "text"),)
    names: tuple[tuple[str, str], ...] = ()
    """What is shown in place of a value: ``(("1", "waits"), …)``."""
    decimals: int | None = None
    maximum: float | None = None


class Row(Struct, frozen=True):
    title: str
    panels: tuple[Panel, ...]


class Board(Struct, frozen=True, kw_only=True):
    uid: str
    title: str
    question: str
    rows: tuple[Row, ...]
    variables: tuple[Literal["entity", "topic", "job"], ...] = ("entity",)
    since: str = "now-3h"

    @property
    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels


def good_below(warn: float, bad: float) -> tuple[Step, ...]:
    return Step(None, "green"), Step(warn, "orange"), Step(bad, "red")


def good_above(warn: float, good: float) -> tuple[Step, ...]:
    return Step(None, "red"), Step(warn, "orange"), Step(good, "green")


ANY_IS_BAD = (Step(None, "green"), Step(1, "red"))
NONE_IS_BAD = (Step(None, "red"), Step(1, "green"))
YES_IS_BAD = (("0", "no"), ("1", "yes"))
