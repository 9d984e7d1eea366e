"""A full refresh of a table whose raw rows were expired would take out what it can't build again: it asks first."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.delta_loader.__main__ import Opened
from services.delta_loader.links import LedgerBroken
from shared.raw.keys import Chain

CHAIN = Chain("cdc.accounts", 1, 0)


class Began(Exception):
    pass


class World:
    """A loading, its links, its thread and its tables in one, with a table at ``version``; building does not begin."""

    def __init__(self, version: int, expired: list[Chain]) -> None:
        self.config = SimpleNamespace(load=SimpleNamespace(batch_age_s_max=1))
        self.spark = None
        self._version, self._expired = version, expired

    def links(self, _entity: Any) -> "World":
        return self

    def loader(self, *_parts: Any) -> None:
        pass

    async def expired(self) -> list[Chain]:
        return self._expired

    def standing(self) -> Any:
        return SimpleNamespace(table=SimpleNamespace(version=self._version))

    async def thread(self, work: Any, *_arguments: Any) -> Any:
        if work != self.standing:
            raise Began
        return work()

    @property
    def lake(self) -> Any:
        raise Began

    def opened(self) -> Opened:
        world: Any = self
        return Opened(world, world, world.thread, world)


@pytest.mark.parametrize(
    ("version", "expired", "skip", "outcome"),
    [
        (5, [CHAIN], False, LedgerBroken),
        (5, [CHAIN], True, Began),
        (5, [], False, Began),
        (-1, [CHAIN], False, Began),
    ],
)
async def test_rows_that_no_raw_object_holds_are_not_dropped_unasked(
    version: int, expired: list[Chain], skip: bool, outcome: type[Exception]
) -> None:
    with pytest.raises(outcome, match="skip-expired" if outcome is LedgerBroken else None):
        await World(version, expired).opened().refresh(skip)
