"""``services.dynamo_retrier`` as it is wired, with failpoints at its edges and shorter waits: a child of the tests."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from msgspec.structs import replace

from services.dynamo_retrier import __main__, config
from services.dynamo_retrier import opening as wiring
from services.dynamo_retrier.ports import ArchiveUnavailable
from shared.events.model import Reason
from shared.kafka.records import NotPublished
from shared.parked.calls import ParkedUnavailable
from shared.parked.policy import POLICIES
from shared.parked.wake import NoAnalyst
from tests.faults.failpoints import Failpoints


def table_trouble(method: str, _arguments: Sequence[Any], sent: bool) -> NoReturn:
    raise ParkedUnavailable("parked_unavailable", f"{method}: {'the answer is lost' if sent else 'not reached'}")


def kafka_trouble(method: str, arguments: Sequence[Any], sent: bool) -> Any:
    """Publishing has outcomes and raises nothing."""
    if method == "reachable":
        return False
    reason = Reason.KAFKA_UNKNOWN if sent else Reason.KAFKA_UNAVAILABLE
    return [NotPublished(reason, "failpoint")] * len(arguments[1])


def registry_trouble(_method: str, _arguments: Sequence[Any], _sent: bool) -> NoReturn:
    raise NoAnalyst("failpoint")


def archive_trouble(_method: str, _arguments: Sequence[Any], _sent: bool) -> NoReturn:
    raise ArchiveUnavailable("failpoint")


def with_failpoints(points: Failpoints) -> dict[str, Any]:
    """What the wiring makes, made with ports that may fail."""
    made = dict(vars(wiring))

    def redrive(leases: Any, kafka: Any, analysts: Any, repairs: Any, *rest: Any, **named: Any) -> Any:
        return made["Redrive"](
            points.port("leases", leases, table_trouble),
            points.port("kafka", kafka, kafka_trouble),
            points.port("analysts", analysts, registry_trouble),
            points.port("repairs", repairs, archive_trouble),
            *rest,
            **named,
        )

    def due_queue(rows: Any, **named: Any) -> Any:
        return made["DueQueue"](points.port("queue", rows, table_trouble), **named)

    def waker(analysts: Any, streams: Any, rows: Any, **named: Any) -> Any:
        return made["Waker"](
            points.port("waker_analysts", analysts, registry_trouble),
            streams,
            points.port("waker", rows, table_trouble),
            **named,
        )

    return {"Redrive": redrive, "DueQueue": due_queue, "Waker": waker}


class NoCensus:
    """Counting for the metrics asks the table some hundred questions at each start, and has no part in the law."""

    @classmethod
    async def open(cls, *_arguments: object) -> "NoCensus":
        return cls()

    async def run(self, *_arguments: object) -> None: ...


def hurry() -> None:
    """The waits that a test would have to sit out. Their lengths are no part of what is tested here."""
    vars(__main__)["Census"] = NoCensus
    vars(config)["PRODUCER_END_S"] = 0.5  # which lets leases be shorter
    for reason in (Reason.KAFKA_UNAVAILABLE, Reason.KAFKA_UNKNOWN):
        POLICIES[reason] = replace(POLICIES[reason], base_s=0.1, cap_s=0.5)


def main() -> int:
    hurry()
    vars(wiring).update(with_failpoints(Failpoints.of_environment()))
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
