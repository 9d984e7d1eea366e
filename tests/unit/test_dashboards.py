"""The dashboards are what their code says, and ask for nothing that isn't exported."""

import json
import re
import shlex
from copy import deepcopy
from typing import Any

import pytest
import yaml

from deploy.demo.dashboards import Dashboards
from deploy.grafana.board import Board, Panel, Query, Row
from deploy.grafana.boards import BOARDS
from deploy.grafana.build import FOLDER, rendered, text_of
from deploy.grafana.lint import catalogue, complaints, complaints_of, not_shown
from deploy.grafana.panels import Answer, Series, committed, failures, panels_of, queries
from deploy.grafana.scrape import configuration
from deploy.local.stack import Stack
from deploy.local.supervision import StackFailed
from deploy.prometheus.promql import Catalogue
from services.cli.arguments import parser

KNOWN = catalogue()
HOME = json.loads((FOLDER / "tidemark-home.json").read_text())


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    differing = [file.name for file, text in rendered().items() if file.read_text() != text]

    assert not differing, "write them again: python -m deploy.grafana"
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in rendered()}


def test_a_board_gives_the_same_text_each_time() -> None:
    assert [text_of(board) for board in BOARDS] == [text_of(board) for board in BOARDS]


def test_no_dashboard_has_anything_to_complain_about() -> None:
    assert [said for document in committed() for said in complaints(document, KNOWN)] == []


def test_every_metric_stands_on_a_panel() -> None:
    assert not_shown(committed(), KNOWN) == set()


def test_a_metric_that_stands_on_no_panel_is_named() -> None:
    more = Catalogue({**KNOWN.labels, "tidemark_forgotten_total": frozenset({"job"})}, KNOWN.buckets)

    assert not_shown(committed(), more) == {"tidemark_forgotten_total"}


def test_the_home_board_links_to_all_others() -> None:
    assert [link["url"] for link in HOME["links"]] == [f"/d/{board.uid}" for board in BOARDS[1:]]


def test_a_panel_asks_no_more_than_it_has_letters_for() -> None:
    for board in BOARDS:
        for panel, drawn in zip(board.panels, panels_of(json.loads(text_of(board))), strict=True):
            assert len(drawn["targets"]) == len(panel.queries)


@pytest.mark.parametrize(
    ("expr", "complaint"),
    [
        ("sum(rate(tidemark_shwon_total[$__rate_interval]))", "tidemark_shwon_total: no such series"),
        (
            "sum(rate(tidemark_shown_total{topic='x'}[$__rate_interval]))",
            "tidemark_shown_total: has no label topic",
        ),
        ("sum by (topic) (rate(tidemark_shown_total[$__rate_interval]))", "sum by: no label topic"),
        ("max by (entity) (sum by (job) (rate(tidemark_shown_total[$__range])))", "max by: no label entity"),
        ("sum(tidemark_shown_total)", "tidemark_shown_total is a counter: it needs rate or increase"),
        ("sum(rate(tidemark_paused[$__rate_interval]))", "tidemark_paused is a gauge: rate says nothing about it"),
        ("sum(rate(tidemark_shown_total[5m]))", "rate over 300s: it needs $__rate_interval or $__range"),
        ("histogram_quantile(0.9, sum by (topic) (rate(tidemark_raw_put_seconds_bucket[$__range])))", "no label le"),
        ("tidemark_paused / tidemark_sink_next_offset", "they never match; say `on`"),
        ("tidemark_paused / on (topic) tidemark_lease_held", "/ on: no label topic"),
        ("sum(tidemark_paused{entity=~'$entty'})", "unknown variable"),
        ("sum(tidemark_paused", "unclosed left parenthesis"),
        ('sum(rate(tidemark_retries_total{outcome="publshed"}[$__range]))', "outcome is never 'publshed'"),
        ("max_over_time(tidemark_paused[1d])", "a range within max_over_time"),
    ],
)
def test_a_wrong_query_is_named(expr: str, complaint: str) -> None:
    assert any(complaint in said for said in complaints_of(expr, "", KNOWN)), complaints_of(expr, "", KNOWN)


def test_a_label_that_a_join_brings_along_may_be_grouped_by() -> None:
    joined = "sum by (topic) (tidemark_sink_next_offset) * on (topic) group_right () tidemark_topic_info"

    assert complaints_of(f"sum by (entity) ({joined})", "{{entity}}", KNOWN) == []
    assert complaints_of(f"sum by (partition) ({joined})", "", KNOWN) == ["sum by: no label partition"]


def test_a_legend_that_names_no_label_of_the_result_is_named() -> None:
    found = complaints_of("sum by (entity) (tidemark_paused)", "{{entity}} {{topic}}", KNOWN)

    assert found == ["legend: {{topic}} is no label of sum by (entity) (tidemark_paused)"]


def _panel(document: Any) -> Any:
    return next(panels_of(document))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda board: _panel(board).update(description=""), "has no description"),
        (lambda board: _panel(board).update(title=""), "has no title"),
        (lambda board: _panel(board)["fieldConfig"]["defaults"].pop("unit"), "has no unit"),
        (lambda board: _panel(board).update(id=board["panels"][2]["id"]), "two panels have one id"),
        (lambda board: _panel(board).update(datasource={"uid": "prometheus"}), "asks another source"),
        (lambda board: _panel(board)["datasource"].update(uid="${DS_PROMETHEUS}"), "the form for sharing"),
        (lambda board: _panel(board).update(targets=[]), "asks nothing"),
        (lambda board: board.update(editable=True), "is editable"),
        (lambda board: board["templating"].update(list=[]), "has no variable `datasource`"),
    ],
)
def test_a_damaged_dashboard_is_named(damage: Any, complaint: str) -> None:
    document = deepcopy(HOME)
    damage(document)

    assert any(complaint in said for said in complaints(document, KNOWN))


def test_panels_that_do_not_fill_their_lines_are_refused() -> None:
    panel = Panel(title="a", question="b?", bad="c", unit="s", queries=(Query("up"),), width=10)

    with pytest.raises(ValueError, match="don't fill lines of 24"):
        text_of(Board(uid="x", title="x", question="x?", rows=(Row("row", (panel, panel)),)))


def test_every_command_in_a_description_exists() -> None:
    commands = {
        command
        for document in committed()
        for panel in panels_of(document)
        for command in re.findall(r"`tidemark ([^`]+)`", panel["description"])
    }

    assert len(commands) > 10
    for command in commands:
        try:
            parser({}).parse_args(shlex.split(command))
        except SystemExit:
            pytest.fail(f"tidemark {command}: there is no such command")


def test_every_question_is_one_and_every_panel_says_what_to_do() -> None:
    for board in BOARDS:
        assert board.question.endswith("?")
        for panel in board.panels:
            assert panel.question.endswith("?"), panel.title
            assert panel.bad.endswith("."), panel.title


def test_an_empty_answer_fails_unless_its_metric_stands_on_the_list() -> None:
    paused, shown = queries(_two_panels(), 60)
    empty = [Answer(paused, []), Answer(shown, [])]

    assert failures(empty, {"tidemark_paused": "why"}) == [f"x, 'shown' A: no data: {shown.expr}"]
    assert failures([Answer(shown, [Series({}, [(1.0, 0.0)])])], {}) == []
    assert failures([Answer(paused, [], "parse error")], {"tidemark_paused": "why"}) == [
        "x, 'paused' A: parse error: tidemark_paused{entity=~\".*\"}"
    ]


def _two_panels() -> Any:
    return {
        "uid": "x",
        "panels": [
            {"type": "stat", "title": title, "targets": [{"refId": "A", "expr": expr, "legendFormat": ""}]}
            for title, expr in (
                ("paused", 'tidemark_paused{entity=~"$entity"}'),
                ("shown", "rate(tidemark_shown_total[$__rate_interval])"),
            )
        ],
    }


def test_grafana_finds_source_and_boards_without_a_click() -> None:
    folder = FOLDER.parent / "provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards/tidemark.yaml").read_text())["providers"]

    assert source["uid"] == "prometheus"
    assert HOME["templating"]["list"][0]["current"]["value"] == source["uid"]
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def test_each_job_is_scraped_under_its_service_name() -> None:
    scraped = yaml.safe_load(configuration({"s3-sink": "127.0.0.1:1"}))["scrape_configs"]

    assert scraped == [{"job_name": "s3-sink", "static_configs": [{"targets": ["127.0.0.1:1"]}]}]


def test_the_demo_needs_no_prometheus_unless_its_panels_are_to_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    stack = Stack("unused")

    assert Dashboards.of(stack, print, "auto") is None
    with pytest.raises(StackFailed, match="package `prometheus`"):
        Dashboards.of(stack, print, "require")
