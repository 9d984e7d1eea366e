"""The demo's live progress: from metrics to lines, with and without control codes."""

import io

from deploy.demo.progress import EntityProgress, Screen, entity_progress, fetch, lines, merged_offsets, parse

POLLER = """
# TYPE tidemark_shown_total counter
tidemark_shown_total{entity="accounts"} 12
tidemark_shown_total{entity="payments"} 99
# TYPE tidemark_published_total counter
tidemark_published_total{entity="accounts"} 9
# TYPE tidemark_cursor_timestamp_seconds gauge
tidemark_cursor_timestamp_seconds{entity="accounts"} 998.5
# TYPE tidemark_breaker_state gauge
tidemark_breaker_state{target="cdc.accounts"} 1
"""
SINK = """
# TYPE tidemark_raw_records_total counter
tidemark_raw_records_total{topic="cdc.accounts"} 5
# TYPE tidemark_sink_next_offset gauge
tidemark_sink_next_offset{topic="cdc.accounts",partition="0"} 5
# TYPE tidemark_sink_log_end_offset gauge
tidemark_sink_log_end_offset{topic="cdc.accounts",partition="0"} 8
tidemark_sink_log_end_offset{topic="cdc.accounts",partition="1"} 1
"""
RETRIER = """
# TYPE tidemark_parked_items gauge
tidemark_parked_items{entity="accounts",reason="invalid",state="HELD"} 1
tidemark_parked_items{entity="accounts",reason="invalid",state="STALE"} 1
tidemark_parked_items{entity="accounts",reason="kafka_unknown",state="PARKED"} 1
tidemark_parked_items{entity="accounts",reason="bug",state="PARKED"} 0
"""


def test_progress_is_read_from_the_services() -> None:
    found = entity_progress("accounts", "cdc.accounts", parse(POLLER), parse(SINK), parse(RETRIER), 1000.0)

    assert found == EntityProgress(
        entity="accounts",
        shown=12,
        published=9,
        in_raw=5,
        lag=4,
        fresh_s=1.5,
        parked={"invalid": 2, "kafka_unknown": 1},
        breaker_open=True,
    )
    [_, line] = lines([found])
    assert line.split() == [
        "accounts", "12", "9", "5", "4", "1.5", "s", "2", "invalid,", "1", "kafka_unknown,", "breaker", "open",
    ]  # fmt: skip


def test_what_is_in_delta_is_shown_where_a_stream_loads_it() -> None:
    stream = parse("""
# TYPE tidemark_lake_position gauge
tidemark_lake_position{entity="accounts",topic="cdc.accounts",generation="1",partition="0"} 3
tidemark_lake_position{entity="payments",topic="cdc.payments",generation="1",partition="0"} 70
""")
    merged = merged_offsets(stream, "cdc.accounts")

    found = entity_progress("accounts", "cdc.accounts", parse(POLLER), parse(SINK), parse(RETRIER), None, merged)

    assert (found.in_delta, found.delta_lag) == (3, 2)
    [head, line] = lines([found])
    assert head.split()[-4:] == ["in", "Delta", "lag", "parked"]
    assert line.split()[5:8] == ["-", "3", "2"]


def test_a_service_that_does_not_answer_is_shown_as_zeros() -> None:
    samples = fetch("http://127.0.0.1:9/metrics")

    assert samples == {}
    found = entity_progress("a", "cdc.a", samples, samples, samples, None)
    assert lines([found])[1].split() == ["a", *"0000", "-", "-"]


def test_a_screen_draws_over_its_last_block() -> None:
    out = io.StringIO()
    screen = Screen(plain=False, out=out)
    screen.draw(["one", "two"])
    screen.draw(["three", "four"])
    screen.say("said")

    assert out.getvalue() == "one\ntwo\n\x1b[2A\x1b[Jthree\nfour\n\x1b[2A\x1b[Jsaid\n"


def test_a_plain_screen_has_no_control_codes_and_draws_now_and_then() -> None:
    out = io.StringIO()
    screen = Screen(plain=True, out=out)
    for _ in range(5):
        screen.draw(["block"])
    screen.say("said")

    assert out.getvalue() == "block\nsaid\n"
