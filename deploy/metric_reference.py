"""``python -m deploy.metric_reference``: the tables of ``deploy/prometheus/METRICS.md``, from ``shared.metrics``."""

from collections.abc import Iterator
from pathlib import Path

from shared.metrics import METRICS, SERVICES, Metric

REFERENCE = Path(__file__).parent / "prometheus" / "METRICS.md"
BEGIN, END = "<!-- tables: python -m deploy.metric_reference -->", "<!-- end of tables -->"


def renewed(text: str) -> str:
    """``text`` with its tables written anew. Raises ``ValueError`` where they have no place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{REFERENCE} has no place for its tables: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{''.join(_tables())}{END}{after}"


def _tables() -> Iterator[str]:
    groups: dict[tuple[str, ...], list[Metric]] = {}
    for metric in METRICS.values():
        groups.setdefault(metric.services, []).append(metric)
    for services, metrics in groups.items():
        title = "Every service" if services == SERVICES else ", ".join(f"`{service}`" for service in services)
        yield f"\n### {title}\n\n| metric | labels | type | unit | what it says |\n|---|---|---|---|---|\n"
        yield from map(_line, metrics)
    yield "\n"


def _line(metric: Metric) -> str:
    name = metric.series[0] if metric.kind == "counter" else metric.name
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    return f"| `{name}` | {labels} | {metric.kind} | {metric.unit} | {metric.text.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    REFERENCE.write_text(renewed(REFERENCE.read_text("utf-8")), "utf-8")
