"""``services.stale_notifier`` as it is wired, with failpoints at its edges and shorter waits: a child of the tests."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from msgspec.structs import replace

import services.stale_notifier.__main__ as wiring
from services.stale_notifier import grouping, rows
from services.stale_notifier.notice import ChannelUnavailable
from shared.parked.evidence import ArchiveUnavailable
from shared.parked.groups import Group
from tests.faults.failpoints import Failpoints
from tests.faults.faulty_retrier import table_trouble


def archive_trouble(method: str, _arguments: Sequence[Any], sent: bool) -> NoReturn:
    raise ArchiveUnavailable(f"{method}: {'the answer is lost' if sent else 'not reached'}")


def channel_trouble(_method: str, _arguments: Sequence[Any], _sent: bool) -> NoReturn:
    raise ChannelUnavailable("failpoint")


def registry_trouble(_method: str, _arguments: Sequence[Any], _sent: bool) -> tuple[int, ...]:
    """Never raises for a registry that is down."""
    return ()


def swap_label(method: str, arguments: Sequence[Any]) -> str:
    """Each swap of a group is another step of its life."""
    if method != "swap":
        return method
    group: Group = arguments[0]
    if group.ver == 0:
        return "swap(open)"
    pending = f", {group.pending.kind} pending" if group.pending is not None else ""
    return f"swap({group.phase}{pending})"


def with_failpoints(points: Failpoints) -> dict[str, Any]:
    """What ``__main__`` makes, made with ports that may fail."""
    made = dict(vars(wiring))

    def faulty_rows(leases: Any, archive: Any, chain: Any, groups: Any, *rest: Any, **named: Any) -> Any:
        return made["Rows"](
            points.port("leases", leases, table_trouble),
            points.port("archive", archive, archive_trouble),
            points.port("chain", chain, archive_trouble),
            points.port("joined_groups", groups, table_trouble, swap_label),
            *rest,
            **named,
        )

    def teller(groups: Any, counts: Any, versions: Any, *rest: Any, **named: Any) -> Any:
        return made["Teller"](
            points.port("groups", groups, table_trouble, swap_label),
            points.port("counts", counts, table_trouble),
            points.port("versions", versions, registry_trouble),
            *rest,
            **named,
        )

    def notifier(queue: Any, groups: Any, *rest: Any, **named: Any) -> Any:
        return made["Notifier"](
            points.port("queue", queue, table_trouble),
            points.port("group_queue", groups, table_trouble),
            *rest,
            **named,
        )

    async def open_channels(*arguments: Any) -> Any:
        routes = await made["open_channels"](*arguments)
        return {
            owner: tuple(replace(route, channel=points.port("channel", route.channel, channel_trouble)) for route in of)
            for owner, of in routes.items()
        }

    return {"Rows": faulty_rows, "Teller": teller, "Notifier": notifier, "open_channels": open_channels}


def hurry() -> None:
    """The waits that a test would have to sit out. Their lengths are no part of what is tested here."""
    vars(grouping)["CHANNEL_BACKOFF_S"] = (0.3, 2.0)
    vars(grouping)["ROW_WAIT_S"] = (0.4, 2.0)
    vars(rows)["ARCHIVE_BACKOFF_S"] = (0.3, 2.0)


def main() -> int:
    hurry()
    vars(wiring).update(with_failpoints(Failpoints.of_environment()))
    return wiring.main()


if __name__ == "__main__":
    sys.exit(main())
