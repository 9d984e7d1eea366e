"""What a PromQL expression names, held against the metrics that the code registers. Pure, besides reading them once.

A misspelt metric, label or bucket is no error to Prometheus: the alert never fires, the panel stays empty.
"""

from collections.abc import Iterator, Mapping

import promql_parser as promql
from msgspec import Struct
from prometheus_client import Histogram
from prometheus_client.utils import floatToGoString

from shared import metrics
from shared.parked.model import State

TARGET_LABELS = frozenset({"job", "instance"})
"""Prometheus gives them to all that it scrapes."""
CLOSED: Mapping[str, frozenset[str]] = {
    "stage": frozenset({"source", "kafka", "raw", "lake"}),
    "state": frozenset({*State, "seen", "raw", "parked", "archived", "missing"}),
    "job": frozenset(metrics.SERVICES),
    "lane": frozenset(metrics.LANES),
    "class": frozenset(metrics.SOURCE_ERRORS),
    "outcome": frozenset(
        {
            *(*metrics.PAGE_OUTCOMES, *metrics.RETRY_OUTCOMES, *metrics.HEARTBEAT_OUTCOMES),
            *(*metrics.NOTICE_OUTCOMES, *metrics.EVIDENCE_OUTCOMES),
        }
    ),
}
"""Values of labels that don't come from configuration."""


class Catalogue(Struct, frozen=True):
    labels: Mapping[str, frozenset[str]]
    """By the name of a series, those of its target included."""
    buckets: Mapping[str, frozenset[str]] = {}
    """By the name of a histogram's bucket series: values of ``le``."""

    def with_recorded(self, names: list[str]) -> "Catalogue":
        """And recorded series: their labels stand before the first colon, as in ``entity_stage:…``."""
        recorded = {name: frozenset(name.partition(":")[0].split("_")) for name in names}
        return Catalogue({**self.labels, **recorded}, self.buckets)


def registered() -> Catalogue:
    """All that ``shared.metrics`` may export, and ``up``."""
    labels = {name: TARGET_LABELS | frozenset(metric.labels) for name, metric in metrics.names().items()}
    buckets = {
        f"{collector._name}_bucket": frozenset(map(floatToGoString, collector._upper_bounds))
        for collector in vars(metrics).values()
        if isinstance(collector, Histogram)
    }
    return Catalogue({"up": TARGET_LABELS, **labels, **{name: labels[name] | {"le"} for name in buckets}}, buckets)


def selectors(expr: str) -> list[promql.VectorSelector]:
    """Raises ``ValueError`` where ``expr`` is no PromQL."""
    return list(_selectors(promql.parse(expr)))


def problems(expr: str, known: Catalogue) -> list[str]:
    """What ``expr`` names that nobody exports, in words."""
    try:
        tree = promql.parse(expr)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    return [*_problems(tree, known)]


def _problems(tree: promql.Expr, known: Catalogue) -> Iterator[str]:
    for node in _nodes(tree):
        match node:
            case promql.VectorSelector():
                yield from _of_selector(node, known)
            case promql.AggregateExpr() if node.modifier is not None:
                yield from _of_labels(node.modifier.labels, node.expr, known)
            case promql.BinaryExpr() if node.modifier is not None:
                labels = [*(node.modifier.matching.labels if node.modifier.matching else ())]
                for side in (node.lhs, node.rhs):
                    yield from _of_labels(labels, side, known)


def _of_selector(selector: promql.VectorSelector, known: Catalogue) -> Iterator[str]:
    name = str(selector.name)
    if name not in known.labels:
        yield f"{name}: no such series"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in known.labels[name]:
            yield f"{name}: has no label {matcher.name}"
            continue
        if matcher.value.startswith("$"):
            continue  # a dashboard's variable
        allowed = known.buckets.get(name) if matcher.name == "le" else CLOSED.get(matcher.name)
        for value in matcher.value.split("|"):
            if allowed is not None and value not in allowed:
                yield f"{name}: {matcher.name} is never {value!r}"


def _of_labels(labels: list[str], under: promql.Expr, known: Catalogue) -> Iterator[str]:
    """Labels by which ``under`` is grouped or matched: each of its series must have them."""
    for selector in _selectors(under):
        has = known.labels.get(str(selector.name))
        for label in labels:
            if has is not None and label not in has:
                yield f"{selector.name}: has no label {label}"


def _selectors(tree: promql.Expr) -> Iterator[promql.VectorSelector]:
    yield from (node for node in _nodes(tree) if isinstance(node, promql.VectorSelector))


def _nodes(tree: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(tree, lambda node: found.append(node))
    return found
