"""Each alert, in Prometheus's own evaluation: it fires in one test of its own, and does not in another."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import Struct

from deploy.prometheus.promql import registered, selectors
from deploy.prometheus.rules import FOLDER, Rule, alerts, labels_shown, rules

CASES = Path(__file__).parent / "promtool"
FILES = sorted(file.name for file in FOLDER.glob("*.yaml"))
LABELS = re.compile(r'(\w+)="([^"]*)"')


class Case(Struct, frozen=True):
    """One test of a file for promtool, which asks about one alert."""

    name: str
    asked: Mapping[str, str]
    """Labels of ALERTS that the query names."""
    expected: Mapping[str, str] | None
    """Labels of the alert that fires; ``None``: none does."""
    series: frozenset[str]
    """Names of the series that it is given."""

    def is_of(self, rule: Rule) -> bool:
        component = rule.labels.get("component")
        return self.asked["alertname"] == rule.alert and self.asked.get("component") == component


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    assert found, "promtool is missing: apt-get install prometheus"
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


@cache
def cases() -> list[Case]:
    return [case for file in sorted(CASES.glob("*.yaml")) for case in _cases(yaml.safe_load(file.read_text()))]


def _cases(document: Mapping[str, Any]) -> Iterator[Case]:
    for test in document["tests"]:
        for asked in test["promql_expr_test"]:
            samples = asked.get("exp_samples", [])
            yield Case(
                test["name"],
                dict(LABELS.findall(asked["expr"])),
                dict(LABELS.findall(samples[0]["labels"])) if samples else None,
                frozenset(one["series"].partition("{")[0] for one in test["input_series"]),
            )


def faults(rule: Rule, known: list[Case]) -> list[str]:
    """What the tests of one alert lack."""
    own = [case for case in known if case.is_of(rule)]
    read = inputs(rule.expr)
    amiss = [f"{case.name}: gives none of {sorted(read)}" for case in own if not case.series & read and read != {"up"}]
    fires = [case.expected for case in own if case.expected is not None]
    if not fires:
        amiss.append(f"{rule.alert}: no test in which it fires")
    if len(fires) == len(own):
        amiss.append(f"{rule.alert}: no test in which it does not fire")
    for shown in fires:
        amiss += [
            f"{rule.alert}: its text names {label}, which it lacks" for label in labels_shown(rule) - shown.keys()
        ]
    return amiss


def inputs(expr: str) -> set[str]:
    """Series that are scraped, on which ``expr`` rests."""
    by_name = {rule.record: rule.expr for rule in rules() if rule.record}
    names = {str(found.name) for found in selectors(expr)}
    return {found for name in names for found in (inputs(by_name[name]) if name in by_name else {name})}


def test_the_rules_pass_every_lint() -> None:
    ended = promtool("check", "rules", "--lint=all", "--lint-fatal", *(FOLDER / name for name in FILES))

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", FILES)
def test_alerts_fire_when_they_should_and_only_then(name: str) -> None:
    ended = promtool("test", "rules", CASES / name)

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule.alert}-{rule.labels.get('component', '')}")
def test_each_alert_has_a_test_that_fires_and_one_that_does_not(rule: Rule) -> None:
    assert faults(rule, cases()) == []


def test_an_alert_without_its_tests_is_found() -> None:
    rule = next(rule for rule in alerts() if rule.alert == "TidemarkRawGap")
    of_it = [case for case in cases() if case.is_of(rule)]

    assert faults(rule, [case for case in of_it if case.expected is None]) == [
        "TidemarkRawGap: no test in which it fires"
    ]
    assert faults(rule, [case for case in of_it if case.expected]) == [
        "TidemarkRawGap: no test in which it does not fire"
    ]


@pytest.mark.parametrize(
    ("was", "planted"),
    [
        ("max by (topic) (tidemark_sink_refused_topic) == 1", "max by (topic) (tidemark_sink_refused_topic) == 2"),
        ("max by (topic) (tidemark_sink_refused_topic) == 1", "max by (topic) (tidemark_sink_refused_topik) == 1"),
        ("max by (topic) (tidemark_sink_refused_topic) == 1", "max by (topic) (tidemark_sink_refused_topic) >= 0"),
        ("for: 2m", "for: 2h"),
    ],
    ids=["never", "misspelt", "always", "too late"],
)
def test_a_spoilt_alert_is_found(was: str, planted: str, tmp_path: Path) -> None:
    text = (FOLDER / "lake.yaml").read_text()
    assert text.count(was) == 1
    (tmp_path / "lake.yaml").write_text(text.replace(was, planted))
    document = yaml.safe_load((CASES / "lake.yaml").read_text())
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(document | {"rule_files": ["lake.yaml"]}))

    ended = promtool("test", "rules", tmp_path / "cases.yaml")

    assert ended.returncode == 1
    assert "TidemarkSinkRefusedTopic" in ended.stdout + ended.stderr


def test_the_tests_give_only_series_that_the_code_exports() -> None:
    given = {name for case in cases() for name in case.series}

    assert given <= registered().labels.keys()
