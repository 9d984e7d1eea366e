"""From a board to what Grafana provisions: JSON, the same for the same board."""

import json
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # Its newer form of dashboards is read by Grafana 12 and later alone; this one by all that are in use.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as layout
    from grafana_foundation_sdk.models import dashboard as model

from deploy.grafana.board import COLUMNS, Board, Panel
from deploy.grafana.boards import BOARDS

FOLDER = Path(__file__).parent / "dashboards"
TAG = "tidemark"

_SOURCE = layout.DataSourceRef(type_val="prometheus", uid="${datasource}")
_VARIABLES = {
    "entity": ("label_values(tidemark_freshness_objective_seconds, entity)", "Entity"),
    "topic": ('label_values(tidemark_topic_info{entity=~"$entity"}, topic)', "Topic"),
    "job": ("label_values(tidemark_build_info, job)", "Service"),
}
_Panel = timeseries.Panel | stat.Panel | statetimeline.Panel


def rendered() -> dict[Path, str]:
    """The text of each file."""
    return {FOLDER / f"{board.uid}.json": text_of(board) for board in BOARDS}


def text_of(board: Board) -> str:
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(_dashboard(board).build()) + "\n"


def _dashboard(board: Board) -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.question)
        .tags([TAG])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time(board.since, "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(model.VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
    )
    for name in board.variables:
        made = made.with_variable(_variable(name))
    for other in BOARDS:
        if other.uid != board.uid:
            made = made.link(_link(other))
    number = 1
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(number))
        number += 1
        _refuse_ragged(board, row.title, [panel.width for panel in row.panels])
        for panel in row.panels:
            made = made.with_panel(_panel(panel, number))
            number += 1
    return made


def _refuse_ragged(board: Board, row: str, widths: list[int]) -> None:
    """Panels that don't fill their lines would be moved by Grafana, and drawn elsewhere than here."""
    filled = 0
    for width in widths:
        filled = (filled + width) % COLUMNS if filled + width <= COLUMNS else -1
        if filled < 0:
            break
    if filled:
        raise ValueError(f"{board.uid}, row {row!r}: widths {widths} don't fill lines of {COLUMNS}")


def _variable(name: str) -> dashboard.QueryVariable:
    query, label = _VARIABLES[name]
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SOURCE)
        .query({"query": query, "refId": name})
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
    # All topics are those of the chosen entities.
    return made if name == "topic" else made.all_value(".*")


def _link(board: Board) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(board.title)
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/{board.uid}")
        .tooltip(board.question)
        .keep_time(True)
        .include_vars(True)
    )


def _panel(panel: Panel, number: int) -> _Panel:
    made = (
        _of_kind(panel)
        .id(number)
        .title(panel.title)
        .description(f"**{panel.question}**\n\n{panel.bad}")
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(panel.height)
        .span(panel.width)
        .thresholds(_thresholds(panel))
    )
    if panel.names:
        made = made.mappings([_named(panel.names)])
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    if panel.maximum is not None:
        made = made.max(panel.maximum)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        asked = prometheus.Dataquery().ref_id(letter).expr(query.expr).datasource(_SOURCE).legend_format(query.legend)
        made = made.with_target(asked.instant() if panel.kind == "stat" else asked.range())
    return made


def _of_kind(panel: Panel) -> _Panel:
    match panel.kind:
        case "stat":
            reduced = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
            coloured = layout.BigValueColorMode.BACKGROUND if len(panel.steps) > 1 else layout.BigValueColorMode.NONE
            made = stat.Panel().reduce_options(reduced).color_mode(coloured).no_value("no data")
            return made.graph_mode(layout.BigValueGraphMode.NONE).color_scheme(_colour_by("thresholds"))
        case "states":
            shown = layout.VisibilityMode.AUTO if panel.names else layout.VisibilityMode.NEVER
            return (
                statetimeline.Panel()
                .show_value(shown)
                .merge_values(True)
                .row_height(0.8)
                .legend(_legend())
                .color_scheme(_colour_by("thresholds"))
            )
        case "lines" | "stack":
            made_lines = timeseries.Panel().legend(_legend()).show_points(layout.VisibilityMode.NEVER).min(0)
            made_lines = made_lines.color_scheme(_colour_by("palette-classic")).line_width(1.5)
            if len(panel.steps) > 1:
                style = common.GraphThresholdsStyleConfig().mode(layout.GraphThresholdsStyleMode.DASHED)
                made_lines = made_lines.thresholds_style(style)
            if panel.kind == "stack":
                stacked = common.StackingConfig().mode(layout.StackingMode.NORMAL).group("A")
                made_lines = made_lines.stacking(stacked).fill_opacity(30)
            return made_lines


def _legend() -> common.VizLegendOptions:
    shown = common.VizLegendOptions().show_legend(True).placement(layout.LegendPlacement.BOTTOM)
    return shown.display_mode(layout.LegendDisplayMode.LIST)


def _colour_by(mode: str) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId(mode))


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=step.at, color=step.colour) for step in panel.steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _named(names: tuple[tuple[str, str], ...]) -> model.ValueMap:
    options = {value: model.ValueMappingResult(text=text) for value, text in names}
    return model.ValueMap(options=dict(options))


def as_document(text: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(text)
    return document
