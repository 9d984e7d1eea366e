"""Each panel's query, asked of a real Prometheus that scraped a process with every metric of ours.

``deploy/demo`` asks the same of the real services, under load and with faults.
"""

import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from deploy.grafana import scrape
from deploy.grafana.expressions import FRESHNESS_S
from deploy.grafana.lint import catalogue
from deploy.grafana.panels import Answer, Query, ask, ask_all, committed, failures
from deploy.grafana.picture import _COLOURS, _LINES, draw, figure_of
from deploy.grafana.scrape import prometheus
from deploy.local.ports import find_free
from deploy.local.supervision import Supervision
from deploy.prometheus.promql import TARGET_LABELS
from shared import metrics

VALUES = {
    "entity": ("payments", "accounts"),
    "topic": ("cdc.payments",),
    "stage": ("source", "raw", "lake"),
    "outcome": ("published", "accepted"),
}
BOUNDS = ("0.1", "1.0", "+Inf")
WITHIN_S = 30.0


class Exporter(BaseHTTPRequestHandler):
    """Every series that the product may export, and those that rules record, with a value."""

    dead = ""
    """What a series has in it that is exported no more."""

    def do_GET(self) -> None:
        lines = [line for line in _series(time.time()) if not (self.dead and self.dead in line)]
        body = "\n".join([*lines, ""]).encode()
        self.send_response(200)
        self.send_header("Content-Type", metrics.CONTENT_TYPE)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _series(now_s: float) -> Iterator[str]:
    for name, its in catalogue().labels.items():
        labels = sorted(its - TARGET_LABELS)
        values = [BOUNDS if label == "le" else VALUES.get(label, ("x",)) for label in labels]
        for chosen in product(*values):
            text = ",".join(f'{label}="{value}"' for label, value in zip(labels, chosen, strict=True))
            yield f"{name}{{{text}}} {now_s - 5:.3f}"  # of a counter: one more each second


@pytest.fixture
def prometheus_url(tmp_path: Path) -> Iterator[str]:
    program = scrape.installed()
    if not program:
        pytest.skip("needs Debian's package `prometheus`")
    exporter = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    serving = threading.Thread(target=exporter.serve_forever, name="exporter", daemon=True)
    serving.start()
    (port,) = find_free(1)
    own = Supervision(tmp_path / "logs", print, lambda: None)
    try:
        own.start(prometheus(program, tmp_path, port, {"s3-sink": f"127.0.0.1:{exporter.server_port}"}), {})
        yield f"http://127.0.0.1:{port}"
    finally:
        own.end_all(["prometheus"], lambda process: process.stop_signal)
        exporter.shutdown()
        exporter.server_close()
        serving.join()


def _is_drawn_whole(board: Any, answers: list[Answer], file: Path) -> None:
    draw(board, answers, file)
    pixels = imread(file)[..., :3]
    for colour in (*_LINES[:3], _COLOURS["red"]):
        assert (abs(pixels - to_rgb(colour)).max(axis=-1) < 0.1).any(), f"nothing of {colour} is seen"
    shown = [text.get_text() for text in figure_of(board, answers).findobj(Text)]

    assert {panel["title"] for panel in board["panels"]} <= set(shown)
    assert "no data" not in shown
    assert "no data" in [text.get_text() for text in figure_of(board, answers[:0]).findobj(Text)]


def _await_second_scrape(prometheus_url: str) -> None:
    """A rate needs two."""
    until_s = time.monotonic() + WITHIN_S
    asked = Query("", "", "", "rate(tidemark_shown_total[30s])", True, "")
    while not ask(prometheus_url, asked, 30, 1).series:
        assert time.monotonic() < until_s, "Prometheus has scraped nothing twice"
        time.sleep(0.2)


def test_every_panel_has_data_where_every_metric_is_exported_and_a_misspelt_one_has_none(
    prometheus_url: str, tmp_path: Path
) -> None:
    _await_second_scrape(prometheus_url)

    answers = ask_all(prometheus_url, window_s=30)
    assert failures(answers, allowed={}) == []
    [home] = [board for board in committed() if board["uid"] == "tidemark-home"]
    _is_drawn_whole(home, answers, tmp_path / "home.png")

    boards = deepcopy(committed())
    [sink] = [board for board in boards if board["uid"] == "tidemark-sink"]
    target = sink["panels"][1]["targets"][0]
    target["expr"] = target["expr"].replace("tidemark_sink_log_end_offset", "tidemark_sink_logend_offset")

    [named] = failures(ask_all(prometheus_url, window_s=30, boards=boards), allowed={})

    assert named.startswith("tidemark-sink, 'Lag in records' A: no data: ")


def test_a_sink_that_is_dead_makes_no_table_look_fresher(prometheus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its series are gone; those of the other stages stay five seconds old."""
    _await_second_scrape(prometheus_url)

    monkeypatch.setattr(Exporter, "dead", 'stage="raw"')

    gone = Query("", "", "", 'absent(tidemark_fresh_timestamp_seconds{stage="raw"}) > 0', True, "")
    freshness = Query("", "", "", FRESHNESS_S.replace("$entity", ".+"), True, "")
    until_s = time.monotonic() + WITHIN_S
    while not ask(prometheus_url, gone, 30, 1).series or _least(ask(prometheus_url, freshness, 30, 1)) < 9:
        assert time.monotonic() < until_s, "the tables look as fresh as before"
        time.sleep(0.2)


def _least(answer: Answer) -> float:
    return min(one.points[-1][1] for one in answer.series)
