"""The metrics are a closed set with bounded labels."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric

from deploy.metric_reference import REFERENCE, renewed
from services.cli.audit_records import Counts, Report
from services.cli.audit_watch import show
from shared import metrics
from shared.entities import load_entities
from shared.events.model import Reason
from tests.fakes.stale_bench import write_entities

ROOT = Path(__file__).parents[2]
LABELS = {
    *("entity", "reason", "lane", "outcome", "class", "source", "topic", "target", "why", "index", "state"),
    *("cut", "generation", "partition", "service", "version", "stage"),
    *("owner", "channel"),
}
"""Each from configuration or a closed enum: no event id, key, schema id, text or address."""
UNITS = ("seconds", "bytes", "info")
MISPLACED_UNITS = re.compile(r"_(ms|us|millis|micros|minutes|hours|days|kb|mb|kilobytes|megabytes)(_|$)")


def families() -> list[Metric]:
    return list(metrics.REGISTRY.collect())


def test_every_metric_has_our_prefix_and_a_description() -> None:
    assert len(families()) > 30
    for family in families():
        assert family.name.startswith("tidemark_")
        assert family.documentation.endswith(".") or family.name.startswith("tidemark_process_")


def test_no_label_is_unbounded() -> None:
    used = {label for metric in metrics.METRICS.values() for label in metric.labels}

    assert used == LABELS


def test_rates_see_zeros_before_anything_happens() -> None:
    metrics.expect_entities(["quiet"])
    metrics.expect_topics(["cdc.quiet"])
    text = metrics.exposition().decode()

    for reason in Reason:
        assert f'tidemark_park_total{{entity="quiet",reason="{reason}"}} 0.0' in text
    assert 'tidemark_published_total{entity="quiet"} 0.0' in text
    assert 'tidemark_breaker_state{target="cdc.quiet"} 0.0' in text
    assert 'tidemark_raw_objects_total{cut="clock",topic="cdc.quiet"} 0.0' in text


def test_no_created_timestamps_double_the_series() -> None:
    metrics.expect_entities(["quiet"])

    assert "_created" not in metrics.exposition().decode()


def test_ages_are_exported_as_timestamps() -> None:
    assert not any("age" in family.name.split("_") or "lag" in family.name.split("_") for family in families())


def test_the_table_of_metrics_is_what_is_registered() -> None:
    registered = {family.name: family for family in families()}

    assert registered.keys() == metrics.METRICS.keys()
    for name, metric in metrics.METRICS.items():
        assert registered[name].type == metric.kind
        assert metric.services
        assert set(metric.services) <= set(metrics.SERVICES)


def test_every_series_that_is_exported_has_a_name_and_the_labels_of_the_table() -> None:
    metrics.expect_entities(["quiet"])
    metrics.expect_topics(["cdc.quiet"])
    names = metrics.names()
    for sample in (sample for family in families() for sample in family.samples):
        assert sample.labels.keys() - {"le"} == set(names[sample.name].labels)


@pytest.mark.parametrize("metric", metrics.METRICS.values(), ids=lambda metric: metric.name)
def test_names_say_their_units_as_prometheus_wants_them(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"tidemark_[a-z]+(_[a-z]+)*", metric.name)
    assert not MISPLACED_UNITS.search(metric.name)
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), "prometheus_client adds what is due"
    for unit in UNITS:
        before, _, after = metric.name.partition(f"_{unit}")
        assert not before.endswith(f"_{unit}")
        assert after == "" or not after.startswith("_") or metric.name.endswith(UNITS), "the unit comes last"
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_bytes"))


class Uses:
    """Names of ``shared.metrics`` that a file uses."""

    def __init__(self, file: Path) -> None:
        self._tree = ast.parse(file.read_text("utf-8"))

    def __iter__(self) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "metrics":
                yield node.attr


SET_BY_METRICS_ITSELF = {
    *("PROCESS", "GC", "TASKS", "THREADS"),  # Python knows
    *("BUILD", "TOPIC", "FRESHNESS_OBJECTIVE_S"),  # constants of the process: started, expect_freshness
    "STALE_GROUPS",  # show_groups
}


def test_each_metric_is_set_by_the_code() -> None:
    used = {name for folder in ("services", "shared") for file in (ROOT / folder).rglob("*.py") for name in Uses(file)}
    defined = {
        name
        for name, value in vars(metrics).items()
        if name.isupper() and hasattr(value, "collect") and name != "REGISTRY"
    }

    assert len(defined) > 60
    assert defined - used == SET_BY_METRICS_ITSELF


def test_the_gap_is_what_the_last_audit_found_nowhere() -> None:
    counts = Counts(seen=9, missing=3)
    report = Report(entity="holey", complete=False, counts=counts, partitions=[], findings=[], notes=[], fixed_us=0)
    show(report)

    assert metrics.REGISTRY.get_sample_value("tidemark_conservation_gap_events", {"entity": "holey"}) == 3


def test_what_an_entity_promises_is_shown_from_the_start(tmp_path: Path) -> None:
    folder = write_entities(tmp_path, [])
    text = (folder / "all.yaml").read_text("utf-8")
    (folder / "all.yaml").write_text(text.replace("{source: bank,", "{source: bank, freshness_s: 90, heartbeat_s: 60,"))
    metrics.expect_freshness(load_entities(folder).entities.values())
    shown = metrics.exposition().decode()

    assert 'tidemark_freshness_objective_seconds{entity="accounts"} 90.0' in shown
    assert 'tidemark_topic_info{entity="accounts",topic="cdc.accounts"} 1.0' in shown
    assert re.search(r'tidemark_heartbeats_total\{entity="accounts",outcome="sent"\} \d', shown)


def test_the_reference_is_the_code_s() -> None:
    text = REFERENCE.read_text("utf-8")

    assert renewed(text) == text, "write it anew: python -m deploy.metric_reference"
