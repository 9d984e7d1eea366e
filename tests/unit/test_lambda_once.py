"""An invocation runs the retrier once: until nothing more is due."""

import asyncio

from shared.parked.leases import Due
from shared.parked.model import shard
from tests.unit.test_retrier import Rows, Scene, rows

FULL_SHARD = 3


class EndsDuringLook(Rows):
    """A batch ends while the retrier looks what else is due, and has just passed over its entity's rows as busy."""

    passed_over = False

    async def due(self, queue: str, shard_number: int, now_ms: int, limit: int) -> list[Due]:
        if self.in_flight and self.passed_over:
            self.released.set()
            while self.in_flight:  # noqa: ASYNC110  # until the batch has ended
                await asyncio.sleep(0)
        self.passed_over = bool(self.in_flight) and (self.passed_over or shard_number == FULL_SHARD)
        return await super().due(queue, shard_number, now_ms, limit)


async def test_rows_whose_entity_was_busy_when_we_looked_are_not_left_for_the_next_invocation() -> None:
    table = EndsDuringLook(*[row for row in rows(150) if shard(row.item_id) == FULL_SHARD])
    table.hangs = {"a"}
    assert 4 < len(table.rows) < 16, "fewer than a look reads of a shard, more than a batch"
    await Scene(table, batch_rows_max=4).once()

    assert table.rows == []
