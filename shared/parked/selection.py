"""Which parked events an operator means. Kept with a job, so that it means the same events when the job goes on."""

from typing import Any

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from shared.events.model import Reason
from shared.parked.causes import ANY, fits
from shared.parked.groups import cause_of
from shared.parked.items import ParkedRow
from shared.parked.leases import Row
from shared.parked.model import KEY_CHARS_MAX, SHARDS, ParkedEvent, State, group_partition, legible, shard
from shared.parked.queries import ParkedFilter

IDS_MAX = 100
"""A selection is kept in one item of the table."""


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is given must fit. Times are of first parking, ``since_us`` inclusive, ``until_us`` exclusive."""

    entities: tuple[str, ...]
    reasons: tuple[Reason, ...] = ()
    """(): any."""
    state: State | None = None
    owner: str | None = None
    path: str | None = None
    """A JSON pointer; ``*`` stands for any one step of it."""
    key: str | None = None
    group: str | None = None
    """A root cause's id, as notices and ``groups`` show it."""
    ids: tuple[str, ...] = ()
    since_us: int | None = None
    until_us: int | None = None

    @property
    def filter(self) -> ParkedFilter:
        """As much of it as the index can see to. ``takes`` decides."""
        exact_path = self.path if self.path is not None and ANY not in self.path else None
        return ParkedFilter(
            entities=self.entities,
            reasons=self.reasons or tuple(Reason),
            state=self.state,
            owner=self.owner,
            path=exact_path,
            since_us=self.since_us,
            until_us=self.until_us,
        )

    @property
    def is_all_index(self) -> bool:
        """The index's own filters are enough."""
        return self.key is None and self.group is None and not self.ids and ANY not in (self.path or "")

    @property
    def partitions(self) -> list[str]:
        """Of the index ``grp``, in an order that never changes: a job's place in it is a number."""
        shards = sorted({shard(item_id) for item_id in self.ids}) if self.ids else list(range(SHARDS))
        return [
            group_partition(entity, reason, number)
            for entity in self.entities
            for reason in self.reasons or tuple(Reason)
            for number in shards
        ]

    def takes(self, row: ParkedRow) -> bool:
        return self._fits(row, row.item_id, row.state, row.key)

    def still_takes(self, row: Row) -> bool:
        """By the table itself: since the index was read, the row may have got another state or cause."""
        return self._fits(row.event, row.item_id, row.state, row.event.key)

    def only(self, entity: str) -> "Selection":
        return replace(self, entities=(entity,))

    def before(self, at_us: int) -> "Selection":
        """Nothing that is parked from ``at_us`` on, so that walking over it ends."""
        return replace(self, until_us=min(at_us, self.until_us or at_us))

    def _fits(self, refused: ParkedRow | ParkedEvent, item_id: str, state: State, key: str | None) -> bool:
        return (
            (not self.reasons or refused.reason in self.reasons)
            and (self.state is None or state is self.state)
            and (self.owner is None or refused.owner == self.owner)
            and (self.path is None or fits(self.path, refused.path))
            and (self.key is None or key == legible(self.key, KEY_CHARS_MAX))
            and (not self.ids or item_id in self.ids)
            and (self.group is None or cause_of(refused).id == self.group)
        )


def document_of(selection: Selection) -> dict[str, Any]:
    """For the audit trail and for ``--json``: only what was given."""
    found: dict[str, Any] = to_builtins(selection)
    return found
