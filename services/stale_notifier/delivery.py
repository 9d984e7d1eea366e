"""Through which channels an owner hears, which of them are left, and who hears instead where there is none.

A channel that says that it is gone (404, 410, its secret refused) is disabled until the process starts again: one ERROR
line and a gauge say so, and the next channel takes over.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.stale_notifier.grouping import FALLBACK_S_MAX, Line
from services.stale_notifier.notice import Channel, ChannelRefused, ChannelUnavailable, Notice, Receipt
from shared import metrics
from shared.entities import Entities
from shared.logs import get_logger

log = get_logger(__name__)


class Way(Protocol):
    """A channel to an owner, and from when on it is told."""

    @property
    def channel(self) -> Channel: ...

    @property
    def escalate_after_s(self) -> float | None: ...


UNKNOWN = "unknown"


class Owners:
    """Who is told about an entity's events."""

    def __init__(self, entities: Entities, ways: Mapping[str, Sequence[Way]]) -> None:
        self._entities = entities
        self._ways = {name: list(of) for name, of in ways.items() if of}

    def owner_of(self, entity: str, parked_owner: str) -> str:
        """The entity's owner as the settings have it now; without a channel, the default owner. It may have none."""
        known = self._entities.entities.get(entity)
        owner = known.owner.name if known is not None else parked_owner
        default = self._entities.default_owner
        if owner in self._ways or default is None or default.name not in self._ways:
            return owner or "nobody"
        return default.name

    def entity_label(self, entity: str) -> str:
        """For metrics: rows name what entities they like, and a name that is not configured is no label."""
        return entity if entity in self._entities.entities else UNKNOWN

    def owner_label(self, owner: str) -> str:
        """For metrics: see ``entity_label``."""
        return owner if owner in self._entities.owners else UNKNOWN

    def contact(self, owner: str) -> str:
        known = self._entities.owners.get(owner)
        return known.contact if known is not None else ""

    def channels(self, owner: str) -> dict[str, tuple[Line, Channel]]:
        """By name, in the order of trying; the default owner's come last, for when all others fail."""
        found = {
            way.channel.name: (Line(way.channel.name, way.escalate_after_s, way.channel.repost_s), way.channel)
            for way in self._ways.get(owner, ())
        }
        default = self._entities.default_owner
        if default is not None and default.name != owner and found:
            for way in self._ways.get(default.name, ()):
                name = f"{default.name}/{way.channel.name}"
                line = Line(name, FALLBACK_S_MAX, way.channel.repost_s, is_last_resort=True)
                found[name] = (line, way.channel)
        return found


class Delivery:
    """Sends notices to one owner's channels at a time. Raises what ``Channel.send`` raises."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._disabled: set[tuple[str, str]] = set()

    def lines(self, owner: str) -> list[Line]:
        return [line for line, _channel in self._owners.channels(owner).values()]

    def usable(self, owner: str) -> frozenset[str]:
        return frozenset(name for name in self._owners.channels(owner) if (owner, name) not in self._disabled)

    async def send(self, owner: str, name: str, notice: Notice) -> Receipt:
        found = self._owners.channels(owner).get(name)
        if found is None or (owner, name) in self._disabled:
            raise ChannelRefused(f"channel {name} of {owner} is disabled, or no longer in the settings", permanent=True)
        try:
            receipt = await found[1].send(notice)
        except ChannelUnavailable as error:
            metrics.NOTICES.labels(owner, name, "unavailable").inc()
            log.warning("channel_unavailable", owner=owner, channel=name, dedup_key=notice.dedup_key, error=str(error))
            raise
        except ChannelRefused as error:
            self._refused(owner, name, notice, error)
            raise
        metrics.NOTICES.labels(owner, name, "accepted").inc()
        log.info("notice_accepted", owner=owner, channel=name, kind=notice.kind.value, number=notice.number,
                 count=notice.count, dedup_key=notice.dedup_key, status=receipt.status)  # fmt: skip
        return receipt

    def _refused(self, owner: str, name: str, notice: Notice, error: ChannelRefused) -> None:
        metrics.NOTICES.labels(owner, name, "refused").inc()
        if not error.permanent:
            log.error("notice_refused", owner=owner, channel=name, dedup_key=notice.dedup_key, error=str(error))
            return
        self._disabled.add((owner, name))
        metrics.CHANNEL_DISABLED.labels(owner, name).set(1)
        log.error("channel_disabled", owner=owner, channel=name, error=str(error),
                  action="mend the channel's settings, then restart the notifier")  # fmt: skip
