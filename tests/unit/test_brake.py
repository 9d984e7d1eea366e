from shared.entities import PauseRules
from shared.producer.brake import Brake


def page(events: int, invalid: int) -> list[bool]:
    """``invalid`` bad ones, spread so that no two stand next to each other where that is possible."""
    flags = [False] * events
    for i in range(invalid):
        flags[i * events // invalid] = True
    return flags


def test_a_few_invalid_events_let_the_page_through() -> None:
    assert Brake(PauseRules()).refusal(0, page(1000, 50)) is None


def test_more_than_the_share_and_more_than_the_count_pauses() -> None:
    assert Brake(PauseRules()).refusal(0, page(1000, 51)) == "51 of the last 1000 events are invalid"


def test_a_large_share_of_a_small_page_is_no_reason_to_pause() -> None:
    assert Brake(PauseRules()).refusal(0, page(60, 50)) is None


def test_many_invalid_events_within_the_share_are_no_reason_to_pause() -> None:
    assert Brake(PauseRules()).refusal(0, page(60_000, 2_000)) is None


def test_pages_add_up_within_the_window() -> None:
    brake = Brake(PauseRules())
    for second in range(5):
        assert brake.refusal(second, page(100, 10)) is None
        brake.count(second, page(100, 10))

    assert brake.refusal(5, page(100, 10)) == "60 of the last 600 events are invalid"


def test_old_pages_leave_the_window_by_time_and_by_count() -> None:
    brake = Brake(PauseRules())
    brake.count(0, page(100, 50))
    assert brake.refusal(301, page(100, 10)) is None
    for _ in range(10):
        brake.count(1, page(1000, 0))
    assert brake.refusal(2, page(100, 40)) is None


def test_the_polls_of_an_idle_entity_are_not_kept() -> None:
    brake = Brake(PauseRules())
    brake.count(0, [True] * 199)
    for second in range(10_000):
        brake.count(second, [])

    assert len(brake._pages) == 1
    assert brake.refusal(1, [True]) == "200 invalid events in a row"


def test_a_row_of_invalid_events_across_pages_pauses() -> None:
    brake = Brake(PauseRules(invalid_max=10_000))
    brake.count(0, [False] + [True] * 150)

    assert brake.refusal(1, [True] * 49 + [False]) is None
    assert brake.refusal(1, [True] * 50) == "200 invalid events in a row"


def test_a_good_page_after_a_long_row_goes_through() -> None:
    brake = Brake(PauseRules(invalid_max=10_000, in_a_row_max=100))
    brake.count(0, [True] * 99)

    assert brake.refusal(1, [False] * 10) is None
