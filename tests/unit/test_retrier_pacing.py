from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.dynamo_retrier.gates import Gates
from services.dynamo_retrier.pacing import Share

STEPS = st.lists(
    st.tuples(st.floats(0, 0.7), st.integers(1, 30), st.floats(0, 2.5), st.booleans()), min_size=1, max_size=60
)


@given(STEPS, st.booleans())
def test_no_second_holds_more_than_the_share_by_send_time_and_by_acknowledgement(
    steps: list[tuple[float, int, float, bool]], slowly: bool
) -> None:
    share, now_s, pending = Share(40), 0.0, list[tuple[float, int]]()
    sent: list[tuple[float, int]] = []
    acked: list[tuple[float, int]] = []
    if slowly:
        share.start_slowly(0.0)
    for pause_s, wanted, latency_s, _ in steps:
        now_s += pause_s
        for done_s, count in sorted(pending):
            if done_s <= now_s:
                share.settle(done_s, count)
                acked.append((done_s, count))
        pending = [one for one in pending if one[0] > now_s]
        if granted := share.take(now_s, wanted):
            sent.append((now_s, granted))
            pending.append((now_s + latency_s, granted))

    assert busiest(sent) <= 40
    assert busiest(acked) <= 40


def busiest(trace: Sequence[tuple[float, int]]) -> int:
    return max((sum(n for s, n in trace if end - 1.0 < s <= end) for end, _ in trace), default=0)


def test_the_whole_share_is_used_when_answers_are_quick() -> None:
    share, taken, now_s = Share(100), 0, 0.0
    while now_s < 10.0:
        granted = share.take(now_s, 30)
        share.settle(now_s + 0.001, granted)
        taken += granted
        now_s += 0.01

    assert 950 <= taken <= 1_000


def test_what_was_never_sent_takes_no_share() -> None:
    share = Share(10)
    assert share.take(0.0, 25) == 10
    share.settle(0.1, 0, unsent=10)
    assert share.take(0.1, 25) == 10


def test_after_an_outage_the_share_doubles_from_a_tenth_to_the_whole() -> None:
    share = Share(1_000)
    share.start_slowly(50.0)

    assert [share.limit(50.0 + second) for second in (0, 0.9, 1, 2, 3, 4, 5)] == [100, 100, 200, 400, 800, 1_000, 1_000]
    assert Share(3).limit(0.0) == 3


def gates() -> Gates:
    return Gates(["a", "b"], random_unit=lambda: 1.0)


def test_a_topic_that_fails_lets_one_row_through_after_each_pause() -> None:
    closed = gates()
    assert closed.allowed("a", 0.0, 50) == 50
    assert closed.failed("a", 0.0)
    assert closed.allowed("a", 0.5, 50) == 0
    assert closed.allowed("a", 1.0, 50) == 1
    closed.claimed("a")
    assert closed.allowed("a", 1.0, 50) == 0, "a second probe"
    assert not closed.failed("a", 1.0)
    closed.settled("a")
    assert closed.allowed("a", 2.9, 50) == 0
    assert closed.allowed("a", 3.0, 50) == 1


def test_there_is_one_probe_over_all_topics_and_an_answer_lets_the_others_try_at_once() -> None:
    closed = gates()
    for topic in ("a", "b"):
        for _ in range(9):
            closed.failed(topic, 0.0)
    assert closed.allowed_of_all(10.0, 50) == 0
    closed.claimed("a")
    assert closed.allowed("b", 40.0, 50) == 0
    closed.failed("b", 39.0)
    assert closed.answered("a", 40.0), "Kafka is back"
    closed.settled("a")
    assert closed.allowed("a", 40.0, 50) == 50
    assert closed.allowed("b", 40.0, 50) == 1
    assert not closed.answered("b", 40.1), "it was back before"
    assert closed.allowed_of_all(40.1, 50) == 50


def test_one_topic_that_comes_back_while_others_flow_is_no_reason_to_slow_them() -> None:
    closed = gates()
    closed.failed("a", 0.0)
    assert closed.allowed("b", 0.0, 50) == 1, "nobody knows about the others any more"
    assert not closed.answered("b", 0.5)
    assert closed.allowed("b", 0.5, 50) == 50
    closed.failed("a", 1.5)
    assert closed.allowed("b", 1.5, 50) == 50, "a further probe says nothing new"
    assert not closed.answered("a", 4.0)


def test_a_row_that_never_came_to_kafka_ends_the_probe_without_a_verdict() -> None:
    closed = gates()
    closed.failed("a", 0.0)
    closed.claimed("a")
    closed.settled("a")
    assert closed.allowed("a", 1.0, 50) == 1
