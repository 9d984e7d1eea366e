"""Whatever parked items, groups, servers and buckets say, the configuration alone makes the number of series."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.dynamo_retrier.census import Census
from services.dynamo_retrier.pacing import Share
from services.dynamo_retrier.redrive import Deadline
from services.dynamo_retrier.retrier import Pace, Retrier
from services.stale_notifier.census import Gauges
from services.stale_notifier.delivery import Owners
from shared import metrics
from shared.entities import load_entities
from shared.events.model import Reason
from shared.parked.calls import Budget, Calls, Lanes, Trouble
from shared.parked.groups import Group, OpenGroup
from shared.parked.leases import Due
from shared.parked.model import State
from shared.raw.keys import Chain
from tests.fakes.leases import hint
from tests.fakes.stale_bench import write_entities
from tests.unit import test_lake_loader, test_notifier_rows, test_retrier_redrive

MARK = "nobody-s-"
ROUNDS = 12


class Names:
    """Names that nobody configured, never the same twice."""

    def __init__(self) -> None:
        self._random = random.Random(6)
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        odd = self._random.choice(["", '"', "\n", "\\", "é", "\N{PILE OF POO}", "{}", "a" * 500, " "])
        return f"{MARK}{self._count}{odd}"


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
    }


class Scene:
    def __init__(self, folder: Path) -> None:
        self.name = Names()
        self.owners = Owners(load_entities(write_entities(folder / "owners", [])), {})
        self.notifier = test_notifier_rows.Scene(folder / "notifier")
        self.redriving = test_retrier_redrive.Scene(rows=0)
        self.groups: list[OpenGroup] = []
        self.loader = test_lake_loader.loader(test_lake_loader.Table(), 0)
        self.generation = 0

    async def retrier(self) -> None:
        """Items of entities that are not configured."""
        table, retrier = self.redriving.table, self._retrier()
        for number in range(3):
            entity = self.name()
            row = hint(number, entity=entity)
            table.rows[row.item_id] = b"{}"
            retrier._busy[entity] = 1
            await retrier._batch(entity, [row], Deadline())
            table.rows.pop(row.item_id, None)

    def _retrier(self) -> Retrier:
        none: Any = None
        return Retrier({"payments": "cdc.payments"}, none, self.redriving.redrive, Share(100), Pace())

    async def census(self) -> None:
        """The table's items, as the index shows them."""
        none: Any = None
        items = [{"entity": {"S": self.name()}, "reason": {"S": reason.value}, "st": {"S": "P"}} for reason in Reason]
        assert Census(none, "t", ["payments"])._grouped([items]) == {}

    async def stale_rows(self) -> None:
        """Evidence, notices and deletions of rows whose entity is not configured."""
        scene, table = self.notifier, self.notifier.table
        numbers = range(test_notifier_rows.ROWS)
        fresh = test_notifier_rows.Table(scene.clock, 5)
        table.rows = {
            item: replace(row, event=replace(row.event, entity=self.name(), reason=Reason.INVALID))
            for item, row in fresh.rows.items()
        }
        for _step in range(3):
            scene.clock.now_s += 10
            hints: Sequence[Due] = [
                replace(hint(n), state=State.STALE, ver=table.rows[f"{n:032x}"].ver)
                for n in numbers
                if f"{n:032x}" in table.rows
            ]
            await scene.rows.work(hints)

    async def stale_groups(self) -> None:
        self.groups = [OpenGroup(self.name(), "c", "told", self.name(), reason, 1, 1) for reason in Reason]
        await Gauges(self, self, self.owners).refresh()

    async def due(self, queue: str, shard_number: int, now_ms: int, limit: int) -> list[Due]:
        return []

    async def open_groups(self) -> list[OpenGroup]:
        return self.groups

    async def get(self, owner: str, cause_id: str) -> Group | None:
        return None

    async def throttles(self) -> None:
        """DynamoDB's error texts name what they like."""
        calls = Calls(None, "tidemark_parked", Lanes(8))
        for index in (self.name(), "due", "grp", "tidemark_parked"):
            await calls.back_off(0.0, Trouble("throttled", throttled_at=index), Budget(10))

    async def generations(self) -> None:
        """A topic that is made anew, again and again."""
        for _ in range(20):
            self.generation += 1
            self.loader._show_position(Chain("cdc.a", self.generation, 0), 5)
            self.loader._show_position(Chain("cdc.a", max(1, self.generation - 1), 0), 7)


@pytest.mark.parametrize(
    "site", [Scene.retrier, Scene.census, Scene.stale_rows, Scene.stale_groups, Scene.throttles, Scene.generations]
)
async def test_no_hostile_value_becomes_a_label_and_no_series_is_added_for_ever(
    tmp_path: Path, site: Callable[[Scene], Any]
) -> None:
    scene, seen = Scene(tmp_path), []
    for _ in range(ROUNDS):
        await site(scene)
        seen.append(len(series()))

    assert seen[-1] == max(seen[2:]) == seen[ROUNDS // 2]
    assert not [labels for _, labels in series() if any(MARK in value for _, value in labels)]


async def test_only_the_newest_generation_s_position_is_shown(tmp_path: Path) -> None:
    metrics.LAKE_POSITION.clear()
    scene = Scene(tmp_path)
    await scene.generations()

    shown = [dict(labels) for name, labels in series() if name == "tidemark_lake_position"]
    assert [one["generation"] for one in shown if one["topic"] == "cdc.a"] == ["20"]


def test_what_is_expected_at_the_start_is_all_that_a_configuration_can_need() -> None:
    """The number grows with entities, and by the same for each."""
    counts = []
    for number in range(3):
        metrics.expect_entities([f"e{number}"])
        metrics.expect_topics([f"cdc.e{number}"])
        metrics.expect_retries([f"e{number}"])
        metrics.expect_lake([f"e{number}"])
        counts.append(len(series()))

    assert counts[2] - counts[1] < 400
