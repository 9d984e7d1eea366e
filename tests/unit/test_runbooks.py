"""Each alert has a runbook, each runbook an alert; and the rules name only what the code exports."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec import structs

from deploy.grafana.expressions import BUDGET
from deploy.prometheus.promql import Catalogue, problems, registered, selectors
from deploy.prometheus.rules import FOLDER, RUNBOOKS, Rule, alerts, groups, labels_shown, recorded, rules
from shared import metrics
from tests.unit.test_readmes import ROOT, commands, readings, refusal

URL = "deploy/prometheus/runbooks.md#"
PARTS = ("**At risk**:", "**Look**:", "**Do**:", "**Ends**")
BOARDS = ROOT / "deploy" / "grafana" / "dashboards"
NO_TWIN = {
    "tidemark_parked_oldest_timestamp_seconds": "absent: nothing is parked",
    "tidemark_audit_ended_timestamp_seconds": "TidemarkAuditAbsent compares with the audits that were begun",
}
"""Timestamps whose absence is no alarm by itself, and why."""
TEMPLATE = re.compile(r"\{\{ (?:\$labels\.\w+|\$value(?: \| humanize(?:Duration|Percentage)?)?) \}\}")


def sections(text: str) -> dict[str, str]:
    """By their headings."""
    parts = re.split(r"^## (\S+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def faults(found: Sequence[Rule], runbooks: str) -> list[str]:
    """What is amiss between alerts and runbooks."""
    written = sections(runbooks)
    amiss = [f"{name}: a runbook of no alert" for name in written.keys() - {rule.alert for rule in found}]
    for rule in found:
        if rule.alert not in written:
            amiss.append(f"{rule.alert}: no runbook")
            continue
        amiss += [f"{rule.alert}: its runbook lacks {part}" for part in PARTS if part not in written[rule.alert]]
        if rule.annotations.get("runbook_url") != URL + rule.alert.lower():
            amiss.append(f"{rule.alert}: runbook_url should be {URL + rule.alert.lower()}")
        if "`tidemark " not in written[rule.alert]:
            amiss.append(f"{rule.alert}: its runbook names no command")
    return amiss


def known() -> Catalogue:
    return registered().with_recorded(recorded())


def test_each_alert_has_a_runbook_with_all_its_parts() -> None:
    assert faults(alerts(), RUNBOOKS.read_text()) == []


def test_an_alert_without_a_runbook_is_found() -> None:
    text = RUNBOOKS.read_text().replace("## TidemarkTableStale", "## TidemarkTableStall")

    assert faults(alerts(), text) == ["TidemarkTableStall: a runbook of no alert", "TidemarkTableStale: no runbook"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.alert or rule.record)
def test_rules_name_only_what_the_code_exports(rule: Rule) -> None:
    assert problems(rule.expr, known()) == []


@pytest.mark.parametrize(
    ("expr", "complaint"),
    [
        ("tidemark_pausd == 1", "tidemark_pausd: no such series"),
        ("rate(tidemark_shown[5m])", "tidemark_shown: no such series"),
        ('tidemark_paused{topic="x"}', "tidemark_paused: has no label topic"),
        ("max by (topic) (tidemark_paused)", "tidemark_paused: has no label topic"),
        ("tidemark_paused * on (topic) tidemark_lease_held", "tidemark_paused: has no label topic"),
        ('tidemark_retries_total{outcome="faild"}', "tidemark_retries_total: outcome is never 'faild'"),
        ('up{job="sink"}', "up: job is never 'sink'"),
        (
            'rate(tidemark_lateness_seconds_bucket{le="1800"}[5m])',
            "tidemark_lateness_seconds_bucket: le is never '1800'",
        ),
        ("entity:tidemark_stale:boolean", "entity:tidemark_stale:boolean: no such series"),
        ("sum(", "no PromQL: unclosed left parenthesis"),
    ],
)
def test_a_misspelt_name_is_found(expr: str, complaint: str) -> None:
    assert complaint in problems(expr, known())


def test_every_alert_says_who_is_to_act_and_where_to_look() -> None:
    for rule in alerts():
        assert rule.labels["severity"] in ("page", "ticket"), rule.alert
        assert rule.annotations.keys() == {"summary", "description", "runbook_url", "dashboard", "panel"}, rule.alert
        texts = TEMPLATE.sub("", " ".join(rule.annotations.values()))
        assert "{{" not in texts, f"{rule.alert}: a template that no test covers"


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule.alert}-{rule.labels.get('component', '')}")
def test_the_panel_that_an_alert_names_is_on_its_board(rule: Rule) -> None:
    link = urlsplit(rule.annotations["dashboard"])
    board = json.loads((BOARDS / f"{link.path.removeprefix('/d/')}.json").read_text())
    panels = [*board["panels"], *(inner for panel in board["panels"] for inner in panel.get("panels", ()))]
    variables = {f"var-{variable['name']}" for variable in board["templating"]["list"]}

    assert link.path == f"/d/{board['uid']}"
    assert rule.annotations["panel"] in {panel["title"] for panel in panels}
    assert parse_qs(link.query).keys() <= variables


def test_an_alert_about_an_entity_names_it() -> None:
    about = [rule for rule in alerts() if "by (entity" in rule.expr or rule.expr.startswith("entity")]

    assert len(about) > 15
    assert all("entity" in labels_shown(rule) for rule in about)


def test_ages_have_a_twin_that_fires_when_the_timestamp_is_absent() -> None:
    aged, guarded = set[str](), set[str]()
    for rule in rules():
        names = {str(found.name) for found in selectors(rule.expr)}
        if "time() -" in rule.expr:
            aged |= {name for name in names if name.endswith("_timestamp_seconds")}
        if rule.expr.startswith("absent("):
            guarded |= names

    assert aged - guarded == NO_TWIN.keys()


def test_every_service_has_its_absent_rule() -> None:
    assert [rule.labels["component"] for rule in alerts() if rule.alert == "TidemarkServiceAbsent"] == [
        *(name for name in metrics.SERVICES if name not in ("delta-loader", "audit")),
        "audit",
        "delta-loader",
    ]


def test_alerts_burn_the_budget_that_the_boards_show() -> None:
    burns = [rule.expr for rule in alerts() if rule.alert.startswith("TidemarkFreshnessBudgetBurn")]

    assert len(burns) == 2
    assert all(expr.count(f"* {BUDGET:g}") == 2 for expr in burns)


def test_groups_have_names_of_their_own() -> None:
    names = [group.name for group in groups()]

    assert len(set(names)) == len(names)


def test_an_unknown_key_in_a_rule_is_refused(tmp_path: Path) -> None:
    text = (FOLDER / "lake.yaml").read_text()
    (tmp_path / "lake.yaml").write_text(text.replace("        for: 10m", "        fur: 10m"))

    with pytest.raises(ValueError, match="fur"):
        rules(tmp_path)


def test_expressions_take_no_new_syntax() -> None:
    """Prometheus 2.42 and 3 take the same: no native histograms, no UTF-8 names, no durations as expressions."""
    newer = re.compile(
        r"histogram_(count|sum|avg|fraction)|\{\"|limitk|limit_ratio|info\(|mad_over_time|ts_of_|double_"
    )

    assert [rule.alert for rule in rules() if newer.search(rule.expr)] == []
    assert newer.search(structs.replace(alerts()[0], expr="histogram_count(x)").expr)


def test_a_runbook_command_that_does_not_exist_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    of_runbooks = {span for where, span in commands() if where == RUNBOOKS.relative_to(ROOT).as_posix()}

    assert len(of_runbooks) > 25
    assert "tidemark raw open ENTITY --why WHY" in of_runbooks
    for planted in (
        "tidemark raw reopen ENTITY --why WHY",
        "tidemark entity resume ENTITY --now",
        "tidemark cursor set X",
    ):
        assert all(refusal(words, capsys) for words in readings(planted)), planted
