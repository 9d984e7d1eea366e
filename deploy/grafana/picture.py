"""A dashboard drawn as a picture, from its own JSON and the answers to its own queries.

``python -m deploy.grafana.picture http://127.0.0.1:9090 FOLDER --minutes 30`` draws all of them.
Grafana draws it finer; this shows the same panels, in the same grid, with the same numbers.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, MultipleLocator
from msgspec import Struct

from deploy.grafana.board import COLUMNS
from deploy.grafana.panels import Answer, Series, ask_all, committed

_COLOURS = {"green": "#56a64b", "yellow": "#e0b400", "orange": "#ff780a", "red": "#e02f44", "text": "white"}
_GREY = "#57606a"
_LINES = ("#3274d9", "#ff780a", "#56a64b", "#a352cc", "#e02f44", "#0a94a8", "#e0b400", "#8f3bb8", "#6e7681", "#b877d9")
_INCH_PER_COLUMN, _INCH_PER_ROW = 0.8, 0.42
_HEAD_IN, _LEGEND_MAX = 0.7, 10
_DPI = 90
_STEPS_S = (30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400)


def draw(document: Any, answers: Sequence[Answer], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure_of(document, answers).savefig(file)


def figure_of(document: Any, answers: Sequence[Answer]) -> Figure:
    """``answers``: as ``panels.ask_all`` gives them; those of other boards are left out."""
    mine: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.query.board == document["uid"]:
            mine.setdefault(answer.query.panel, []).append(answer)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
    top_in = height * _INCH_PER_ROW + _HEAD_IN
    figure = Figure(figsize=(COLUMNS * _INCH_PER_COLUMN, top_in), dpi=_DPI, facecolor="#f4f5f5")
    _write(figure, 0.15, top_in - 0.3, document["title"], fontsize=17, weight="bold")
    right_in = COLUMNS * _INCH_PER_COLUMN - 0.15
    _write(figure, right_in, top_in - 0.3, document["description"], fontsize=11, ha="right", color=_GREY)
    for panel in document["panels"]:
        _draw_panel(figure, panel, _box_of(panel, top_in - _HEAD_IN), mine.get(panel["title"], []))
    return figure


class _Box(Struct, frozen=True):
    """In inches, from the lower left corner of the picture."""

    left: float
    bottom: float
    width: float
    high: float


def _box_of(panel: Any, top_in: float) -> _Box:
    grid, gap = panel["gridPos"], 0.06
    return _Box(
        grid["x"] * _INCH_PER_COLUMN + gap,
        top_in - (grid["y"] + grid["h"]) * _INCH_PER_ROW + gap,
        grid["w"] * _INCH_PER_COLUMN - 2 * gap,
        grid["h"] * _INCH_PER_ROW - 2 * gap,
    )


def _write(figure: Figure, x_in: float, y_in: float, text: str, **style: Any) -> None:
    figure.text(x_in, y_in, text, transform=figure.dpi_scale_trans, va="center", **style)


def _draw_panel(figure: Figure, panel: Any, box: _Box, answers: Sequence[Answer]) -> None:
    title = panel["title"]
    if panel["type"] == "row":
        _write(figure, box.left + 0.1, box.bottom + 0.15, title, fontsize=13, weight="bold")
        return
    drawn = [(_named(answer, one), one) for answer in answers for one in answer.series]
    plain = panel["type"] != "stat" or not drawn
    colour = "white" if plain else _colour(panel, drawn[0][1].points[-1][1])
    shade = "#24292e" if plain or colour == "white" else "white"
    _fill(figure, box, colour)
    _write(figure, box.left + 0.12, box.bottom + box.high - 0.15, title, fontsize=10, weight="bold", color=shade)
    middle = box.left + box.width / 2, box.bottom + 0.42 * box.high
    if not drawn:
        _write(figure, *middle, "no data", ha="center", fontsize=14, color=_GREY)
    elif panel["type"] == "stat":
        text = said(drawn[0][1].points[-1][1], panel["fieldConfig"]["defaults"]["unit"])
        _write(figure, *middle, text, ha="center", fontsize=26, weight="bold", color=shade)
    elif panel["type"] == "state-timeline":
        margin_in = 0.3 + 0.075 * max(len(name) for name, _ in drawn)
        _states(_axes(figure, box, margin_in, 0.26), panel, drawn)
    else:
        legend_in = 0.17 * _legend_lines(drawn, box.width) + 0.12
        _lines(_axes(figure, box, 0.7, 0.26 + legend_in), panel, drawn)


def _fill(figure: Figure, box: _Box, colour: str) -> None:
    edge = "#d0d7de" if colour == "white" else colour
    filled = Rectangle((box.left, box.bottom), box.width, box.high, facecolor=colour, edgecolor=edge, lw=0.8, zorder=-1)
    filled.set_transform(figure.dpi_scale_trans)
    figure.add_artist(filled)


def _axes(figure: Figure, box: _Box, left_in: float, bottom_in: float) -> Axes:
    """Within the box, its margins left free."""
    wide, high = figure.get_size_inches()
    width, height = box.width - left_in - 0.2, box.high - bottom_in - 0.38
    return figure.add_axes(
        ((box.left + left_in) / wide, (box.bottom + bottom_in) / high, width / wide, height / high), facecolor="none"
    )


def _states(axes: Axes, panel: Any, drawn: Sequence[tuple[str, Series]]) -> None:
    """A strip per series."""
    for row, (_, one) in enumerate(drawn):
        for begin, end, colour in _stretches(panel, one):
            axes.barh(row, _day(end) - _day(begin), left=_day(begin), height=0.7, color=colour, lw=0)
    axes.set_yticks(range(len(drawn)), [name for name, _ in drawn], fontsize=9)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    _time_axis(axes)
    texts = _mapped(panel)
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    names = [texts.get(f"{step['value'] or 0:g}") or _from_on(step["value"], unit) for step in steps]
    patches = [Patch(color=_COLOURS[step["color"]], label=name) for step, name in zip(steps, names, strict=True)]
    axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, frameon=False)


def _stretches(panel: Any, one: Series) -> list[tuple[float, float, str]]:
    """From, to, colour. Each point holds until the next one, unless that is late: a hole is a hole."""
    found: list[tuple[float, float, str]] = []
    longest = 3 * _gap(one)
    ends = [at for at, _ in one.points[1:]] + [one.points[-1][0] + _gap(one)]
    for (at, value), until in zip(one.points, ends, strict=True):
        end, colour = min(until, at + longest), _colour(panel, value)
        if found and found[-1][1:] == (at, colour):
            found[-1] = found[-1][0], end, colour
        else:
            found.append((at, end, colour))
    return found


def _lines(axes: Axes, panel: Any, drawn: Sequence[tuple[str, Series]]) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    below: dict[float, float] = {}
    for number, (name, one) in enumerate(drawn):
        colour = _LINES[number % len(_LINES)]
        label = name if number < _LEGEND_MAX else None
        times, values = [_day(at) for at, _ in one.points], [value for _, value in one.points]
        if stacked:
            base = [below.get(at, 0.0) for at, _ in one.points]
            top = [low + value for low, value in zip(base, values, strict=True)]
            below |= {at: high for (at, _), high in zip(one.points, top, strict=True)}
            axes.fill_between(times, base, top, color=colour, alpha=0.3, lw=0)
            values = top
        axes.plot(times, values, color=colour, lw=1.5, label=label)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    highest = max(value for _, one in drawn for _, value in one.points)
    axes.set_ylim(0, axes.get_ylim()[1] if highest > 0 else 1)
    axes.yaxis.set_major_locator(_ticks(axes.get_ylim()[1], unit))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value, unit)))
    axes.grid(axis="y", color="#eaeef2")
    _time_axis(axes)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.06, -0.17),
        ncols=_legend_columns(drawn, axes.get_position().width * COLUMNS * _INCH_PER_COLUMN),
        fontsize=8,
        frameon=False,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1.2,
        labelspacing=0.25,
    )


def _legend_columns(drawn: Sequence[tuple[str, Series]], width_in: float) -> int:
    longest = max((len(name) for name, _ in drawn[:_LEGEND_MAX]), default=1)
    return max(1, int(width_in / (0.45 + 0.072 * longest)))


def _legend_lines(drawn: Sequence[tuple[str, Series]], width_in: float) -> int:
    shown = min(len(drawn), _LEGEND_MAX)
    return -(-shown // _legend_columns(drawn, width_in - 0.9)) if shown else 0


def _ticks(top: float, unit: str) -> Locator:
    """Three or four; minutes and hours where they are seconds."""
    if unit == "s" and top > 60:
        return MultipleLocator(next((step for step in _STEPS_S if top <= 4 * step), top / 4))
    return MaxNLocator(4)


def _time_axis(axes: Axes) -> None:
    axes.xaxis_date()
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=7))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S"))  # type: ignore[no-untyped-call]
    axes.tick_params(labelsize=8, color="#d0d7de", labelcolor=_GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#d0d7de")


def _named(answer: Answer, one: Series) -> str:
    def value(found: re.Match[str]) -> str:
        return one.labels.get(found[1], "")

    return re.sub(r"\{\{\s*(\w+)\s*\}\}", value, answer.query.legend)


def _colour(panel: Any, value: float) -> str:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return _COLOURS[reached[-1]["color"]]


def _mapped(panel: Any) -> Mapping[str, str]:
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [])
    return {value: shown["text"] for one in mappings for value, shown in one["options"].items()}


def _from_on(value: float | None, unit: str) -> str:
    return "below" if value is None else f"from {said(value, unit)}"


def _gap(one: Series) -> float:
    """Seconds between two points."""
    times = [at for at, _ in one.points]
    return min((later - at for at, later in pairwise(times)), default=1.0)


def _day(at_s: float) -> float:
    number: float = date2num(datetime.fromtimestamp(at_s, UTC))  # type: ignore[no-untyped-call]
    return number


def said(value: float, unit: str) -> str:
    """A number in the panel's unit, short."""
    match unit:
        case "percentunit":
            return f"{100 * value:,.0f} %" if abs(value) >= 10 else f"{100 * value:.3g} %"
        case "s" if abs(value) >= 172_800:
            return f"{value / 86_400:.3g} d"
        case "s" if abs(value) >= 7_200:
            return f"{value / 3_600:.3g} h"
        case "s" if abs(value) >= 120:
            return f"{value / 60:.3g} min"
        case "s" if value and abs(value) < 1:
            return f"{1_000 * value:.3g} ms"
        case "s":
            return f"{value:.3g} s"
        case "bytes" | "Bps":
            return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB")) + ("/s" if unit == "Bps" else "")
        case "cps" | "reqps":
            return _scaled(value, 1000, ("", "K", "M", "G")).strip() + "/s"
        case _:
            return _scaled(value, 1000, ("", "K", "M", "G")).strip()


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    number, name = value, names[0]
    for name in names:
        if abs(number) < base or name == names[-1]:
            break
        number /= base
    return f"{number:.3g} {name}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.picture", description="Draw all dashboards.")
    parser.add_argument("prometheus_url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back (30)")
    chosen = parser.parse_args()
    window_s = 60 * chosen.minutes
    answers = ask_all(chosen.prometheus_url, window_s=window_s, step_s=max(1.0, window_s / 200))
    for document in committed():
        draw(document, answers, chosen.folder / f"{document['uid']}.png")


if __name__ == "__main__":
    main()
