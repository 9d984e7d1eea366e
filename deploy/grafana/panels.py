"""The queries of the committed dashboards, asked of a Prometheus as Grafana would ask them. Needs no Grafana."""

import json
import math
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from msgspec import Struct

FOLDER = Path(__file__).parent / "dashboards"
RATE_INTERVAL_S = 20
"""``$__rate_interval`` is four scrapes at least; the tests scrape each second, under load that is not even."""
_TIMEOUT_S = 30.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

EMPTY_ALLOWED: Mapping[str, str] = {
    "tidemark_dynamo_throttle_total": "DynamoDB Local throttles nobody",
    "tidemark_heartbeat": "heartbeats are off unless an entity asks for them",
    "tidemark_notifier_waits_total": "has a series once an edge refused a turn",
}
"""A query that has one of these in it may find nothing; why."""
LOADER: Mapping[str, str] = dict.fromkeys(
    ("tidemark_lake_", 'stage="lake"'), "no loader runs: it needs Spark, which takes its time to start"
)
"""For whoever runs all but the loader."""


class Query(Struct, frozen=True):
    """One target of one panel, its variables in place."""

    board: str
    panel: str
    ref: str
    expr: str
    instant: bool
    legend: str


class Series(Struct, frozen=True):
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]
    """Time and value; what is no number is left out."""


class Answer(Struct, frozen=True):
    query: Query
    series: Sequence[Series]
    """Those with a point at least."""
    error: str = ""


def committed(folder: Path = FOLDER) -> list[Any]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def panels_of(document: Any) -> Iterator[Any]:
    """Without the titles of rows."""
    return (panel for panel in document["panels"] if panel["type"] != "row")


def queries(document: Any, window_s: float) -> list[Query]:
    """Each variable stands for all its values."""
    return [
        Query(
            document["uid"],
            panel["title"],
            target["refId"],
            _filled_in(target["expr"], window_s),
            bool(target.get("instant")),
            target["legendFormat"],
        )
        for panel in panels_of(document)
        for target in panel["targets"]
    ]


def _filled_in(expr: str, window_s: float) -> str:
    expr = expr.replace("$__rate_interval", f"{RATE_INTERVAL_S}s").replace("$__range", f"{math.ceil(window_s)}s")
    return re.sub(r"\$(entity|topic|job)\b", ".*", expr)


def ask(prometheus_url: str, query: Query, window_s: float, step_s: float, now_s: float | None = None) -> Answer:
    end_s = time.time() if now_s is None else now_s
    if query.instant:
        path, asked = "query", {"query": query.expr, "time": f"{end_s:.3f}"}
    else:
        begin = f"{end_s - window_s:.3f}"
        path, asked = "query_range", {"query": query.expr, "start": begin, "end": f"{end_s:.3f}", "step": str(step_s)}
    request = urllib.request.Request(f"{prometheus_url}/api/v1/{path}", data=urlencode(asked).encode())
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as answer:
            body = json.load(answer)
    except HTTPError as error:
        return Answer(query, [], error.read().decode(errors="replace")[:300])
    found = [_series(one) for one in body["data"]["result"]]
    return Answer(query, [one for one in found if one.points])


def _series(one: Any) -> Series:
    points = [one["value"]] if "value" in one else one["values"]
    numbers = [(float(at), float(value)) for at, value in points]
    return Series(one["metric"], [(at, value) for at, value in numbers if math.isfinite(value)])


def ask_all(
    prometheus_url: str, *, window_s: float = 120.0, step_s: float = 1.0, boards: Sequence[Any] | None = None
) -> list[Answer]:
    """Every query of every panel over the last ``window_s``; ``boards``: default the committed dashboards."""
    chosen = committed() if boards is None else boards
    return [
        ask(prometheus_url, query, window_s, step_s) for document in chosen for query in queries(document, window_s)
    ]


def failures(answers: Sequence[Answer], allowed: Mapping[str, str] = EMPTY_ALLOWED) -> list[str]:
    """In words: what Prometheus refused, and what found nothing without standing on the list."""
    assert answers, "nothing was asked"
    return [said for answer in answers if (said := _failure(answer, allowed))]


def _failure(answer: Answer, allowed: Mapping[str, str]) -> str:
    query = answer.query
    where = f"{query.board}, {query.panel!r} {query.ref}"
    if answer.error:
        return f"{where}: {answer.error}: {query.expr}"
    if answer.series or any(part in query.expr for part in allowed):
        return ""
    return f"{where}: no data: {query.expr}"
