"""Live progress of the demo, from the services' own /metrics. (The balance sheet never uses these numbers.)"""

import http.client
import shutil
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TextIO
from urllib.error import URLError

from msgspec import Struct, field
from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
"""Series by name, then by sorted labels."""

_TIMEOUT_S = 2.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_HEAD = f"{'entity':<18}{'shown':>9}{'published':>11}{'in raw':>9}{'lag':>7}{'fresh':>9}"
_LAKE_HEAD = f"{'in Delta':>10}{'lag':>7}"


class EntityProgress(Struct, frozen=True, kw_only=True):
    entity: str
    shown: int
    published: int
    in_raw: int
    lag: int  # records in Kafka that no raw object holds yet
    fresh_s: float | None  # age of the cursor: how far behind a busy source we are
    parked: Mapping[str, int] = field(default_factory=dict)
    breaker_open: bool = False
    paused: bool = False
    in_delta: int | None = None  # offsets that the stream has merged; ``None``: there is no stream
    delta_lag: int = 0  # offsets in raw objects that it has not


def fetch(url: str) -> Samples:
    """The series of one service; empty while it doesn't answer."""
    try:
        with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
            return parse(answer.read().decode())
    except (URLError, OSError, http.client.HTTPException):
        return {}


def parse(text: str) -> Samples:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def merged_offsets(stream: Samples, topic: str) -> dict[str, float]:
    """By partition, where this life of the stream has committed any: the first offset that is not in Delta."""
    return _by(stream, "tidemark_lake_position", "partition", topic=topic)


def entity_progress(
    entity: str,
    topic: str,
    poller: Samples,
    sink: Samples,
    retrier: Samples,
    now_s: float | None,
    merged: Mapping[str, float] | None = None,
) -> EntityProgress:
    """``now_s`` ``None``: the source is quiet, so that the age of its last change says nothing about us. ``merged``: as
    ``merged_offsets``; ``None``: nothing loads into Delta."""
    ends = _by(sink, "tidemark_sink_log_end_offset", "partition", topic=topic)
    nexts = _by(sink, "tidemark_sink_next_offset", "partition", topic=topic)
    parked = _by(retrier, "tidemark_parked_items", "reason", entity=entity)
    cursor_s = _sum(poller, "tidemark_cursor_timestamp_seconds", entity=entity)
    return EntityProgress(
        entity=entity,
        shown=int(_sum(poller, "tidemark_shown_total", entity=entity)),
        published=int(_sum(poller, "tidemark_published_total", entity=entity)),
        in_raw=int(_sum(sink, "tidemark_raw_records_total", topic=topic)),
        lag=_behind(nexts, ends),
        fresh_s=max(0.0, now_s - cursor_s) if now_s is not None and cursor_s else None,
        parked={reason: int(count) for reason, count in sorted(parked.items()) if count},
        breaker_open=_sum(poller, "tidemark_breaker_state", target=topic) > 0,
        paused=_sum(poller, "tidemark_paused", entity=entity) > 0,
        in_delta=None if merged is None else int(sum(merged.values())),
        delta_lag=0 if merged is None else _behind(merged, nexts),
    )


def _behind(positions: Mapping[str, float], ends: Mapping[str, float]) -> int:
    return int(sum(max(0.0, end - positions.get(partition, 0)) for partition, end in ends.items()))


def lines(entities: Sequence[EntityProgress]) -> list[str]:
    head = _HEAD + (_LAKE_HEAD if any(one.in_delta is not None for one in entities) else "")
    return [f"{head}  parked", *(_line(one) for one in entities)]


def _line(one: EntityProgress) -> str:
    fresh = "-" if one.fresh_s is None or one.fresh_s > 1e7 else f"{one.fresh_s:.1f} s"
    notes = [f"{count:,} {reason}" for reason, count in one.parked.items()]
    notes += ["breaker open"] if one.breaker_open else []
    notes += ["PAUSED"] if one.paused else []
    counts = f"{one.shown:>9,}{one.published:>11,}{one.in_raw:>9,}{one.lag:>7,}{fresh:>9}"
    lake = "" if one.in_delta is None else f"{one.in_delta:>10,}{one.delta_lag:>7,}"
    return f"{one.entity:<18}{counts}{lake}  {', '.join(notes) or '-'}"


def _by(samples: Samples, name: str, label: str, **labels: str) -> dict[str, float]:
    wanted = set(labels.items())
    found: Counter[str] = Counter()
    for key, value in samples.get(name, {}).items():
        if wanted <= set(key):
            found[dict(key)[label]] += value  # type: ignore[assignment]  # a gauge's number
    return dict(found)


def _sum(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for key, value in samples.get(name, {}).items() if wanted <= set(key))


class Screen:
    """Prints lines, and below them a block that is drawn over again; ``plain``: the block now and then, as lines.

    Any thread may call it.
    """

    PLAIN_EVERY_S = 5.0

    def __init__(self, *, plain: bool, out: TextIO = sys.stdout) -> None:
        self._plain = plain
        self._out = out
        self._drawn = 0
        self._plain_due_s = 0.0
        self._one_at_a_time = threading.Lock()

    def say(self, text: str) -> None:
        with self._one_at_a_time:
            self._erase()
            print(text, file=self._out, flush=True)

    def draw(self, block: Sequence[str]) -> None:
        with self._one_at_a_time:
            if not self._plain:
                self._erase()
                columns = shutil.get_terminal_size().columns
                block = [line[: columns - 1] for line in block]  # a line that wraps would be two to erase
                self._drawn = len(block)
            elif time.monotonic() < self._plain_due_s:
                return
            self._plain_due_s = time.monotonic() + self.PLAIN_EVERY_S
            print("\n".join(block), file=self._out, flush=True)

    def keep(self) -> None:
        """What is drawn stays, and the next block is drawn below it."""
        self._drawn = 0

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0
