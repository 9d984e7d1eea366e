"""What the books make of a piece of evidence and of its group."""

from msgspec.structs import replace

from deploy.demo.balance import ArchivedItem
from deploy.demo.books import archived_item, was_told
from services.stale_notifier.grouping import Timing, joined, opened
from shared.events.model import Reason
from shared.parked.groups import cause_of
from shared.parked.model import KafkaPosition
from tests.fakes.stale_bench import stale_event

GROUP = opened("ledger", cause_of(stale_event(1)), b"", 1, Timing())
TOLD = replace(GROUP, ver=2, phase="told", number=1, told_ms=5, last_told_ms=5)


def test_an_archived_record_that_nothing_could_decode_keeps_its_place() -> None:
    position = KafkaPosition("cdc.accounts", 0, 2, 17, 0, None, ())
    event = stale_event(1, reason=Reason.UNDECODABLE, kafka=position)

    assert archived_item(event, TOLD) == ArchivedItem(event_id=event.event_id, told=True, place=(2, 17))
    assert archived_item(stale_event(1), TOLD).place is None


def test_somebody_was_told_of_a_group_that_has_opened_again_since() -> None:
    again = joined(replace(TOLD, phase="resolved"), b"", 9, Timing())

    assert (again.episode, again.told_ms) == (2, None)
    assert was_told(again)


def test_nobody_was_told_of_a_group_without_a_notice() -> None:
    never = joined(replace(GROUP, ver=1, phase="resolved"), b"", 9, Timing())

    assert not was_told(None)
    assert not was_told(GROUP)
    assert not was_told(never), "empty before there was a notice"
