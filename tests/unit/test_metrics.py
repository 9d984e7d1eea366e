"""The metrics are a closed set with bounded labels."""

from prometheus_client import Metric

from shared import metrics
from shared.events.model import Reason

LABELS = {
    *("entity", "reason", "lane", "outcome", "class", "source", "topic", "target", "why", "index", "state"),
    *("cut", "generation", "partition", "service", "version"),
    *("owner", "channel"),
}
"""Each from configuration or a closed enum: no event id, key, schema id, text or address."""


def families() -> list[Metric]:
    return list(metrics.REGISTRY.collect())


def test_every_metric_has_our_prefix_and_a_description() -> None:
    assert len(families()) > 30
    for family in families():
        assert family.name.startswith("tidemark_")
        assert family.documentation.endswith(".") or family.name.startswith("tidemark_process_")


def test_no_label_is_unbounded() -> None:
    metrics.expect_entities(["accounts"])
    metrics.expect_topics(["cdc.accounts"])
    used = {label for family in families() for sample in family.samples for label in sample.labels}

    assert used <= LABELS | {"le"}


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
