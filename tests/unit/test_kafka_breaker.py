"""When a topic's records are sent at once, and when one is risked first."""

from shared.kafka.breaker import FAILURES_MAX, Breaker


def closed_breaker() -> Breaker:
    breaker = Breaker()
    breaker.answered()
    return breaker


def test_nothing_is_trusted_before_a_broker_has_answered() -> None:
    assert not Breaker().closed


def test_one_failure_opens_a_breaker_that_never_saw_a_broker() -> None:
    breaker = Breaker()

    assert breaker.failed()
    assert breaker.state == "open"


def test_five_failures_in_a_row_open_it_and_an_answer_between_them_starts_anew() -> None:
    breaker = closed_breaker()

    assert not any(breaker.failed() for _ in range(FAILURES_MAX - 1))
    breaker.answered()
    assert not any(breaker.failed() for _ in range(FAILURES_MAX - 1))
    assert breaker.closed
    assert breaker.failed()
    assert not breaker.closed


def test_one_unknown_outcome_opens_it_and_is_news_once() -> None:
    breaker = closed_breaker()

    assert breaker.open()
    assert not breaker.open()
    assert not breaker.failed()


def test_any_answer_closes_it() -> None:
    breaker = closed_breaker()
    breaker.open()

    breaker.answered()

    assert breaker.closed
