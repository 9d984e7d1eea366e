"""What the doctor thinks of what it saw, and how it says so."""

import pytest
from msgspec.structs import replace

from services.cli.doctor_findings import Finding, Judgement, Report, exit_code, parted, render
from services.cli.doctor_verdicts import (
    Wanted,
    date_ahead_s,
    judge_answers,
    judge_clock,
    judge_disk,
    judge_table,
    judge_topic,
    order_differs,
    unknown_variables,
)
from services.cli.outcome import DOWN, FINDING, OK, USAGE
from shared.events.identity import Identifier
from shared.events.model import EventRules, Sighting
from shared.kafka.topic_state import TopicState
from shared.parked.table import definition

WANTED = Wanted(partitions=3, record_bytes_max=1_048_576, batch_bytes=524_288)
SOUND = TopicState(
    partitions=3,
    leaderless=0,
    replicas_min=3,
    in_sync_min=3,
    settings={
        "cleanup.policy": "delete",
        "min.insync.replicas": "2",
        "retention.ms": "604800000",
        "retention.bytes": "-1",
        "max.message.bytes": "1048588",
    },
)
ROWS = EventRules(entity="things", key=("id",), updated_at="at")
EVENTS = replace(ROWS, shows="events")
SECOND_US = 1_000_000


def with_settings(**settings: str) -> TopicState:
    return replace(SOUND, settings={**SOUND.settings, **{name.replace("_", "."): to for name, to in settings.items()}})


def test_a_sound_topic_has_nothing_to_be_said_of() -> None:
    assert judge_topic("cdc.a", SOUND, WANTED, "kafka:9092") == []
    assert judge_topic("cdc.a", replace(SOUND, partitions=12), WANTED, "kafka:9092") == []
    assert judge_topic("cdc.a", with_settings(retention_ms="-1"), WANTED, "kafka:9092") == []


@pytest.mark.parametrize(
    ("state", "says", "remedy"),
    [
        (replace(SOUND, partitions=2), "has 2 partitions, the entity asks for 3", "--topic cdc.a --partitions 3"),
        (with_settings(cleanup_policy="compact,delete"), "compaction drops changes", "cleanup.policy=delete"),
        (replace(SOUND, leaderless=1), "1 of 3 partitions have no leader", "start the brokers"),
        (replace(SOUND, replicas_min=1, in_sync_min=1), "no write can succeed", "min.insync.replicas=1"),
        (replace(SOUND, in_sync_min=1), "a partition has 1 replicas in sync", "start the brokers"),
        (with_settings(retention_ms="3600000"), "3600000 (1 h)", "retention.ms=604800000"),
        (
            with_settings(max_message_bytes="600000"),
            "below TIDEMARK_KAFKA_RECORD_BYTES_MAX",
            "max.message.bytes=1048576",
        ),
    ],
)
def test_what_is_wrong_with_a_topic_is_said_with_the_command_that_mends_it(
    state: TopicState, says: str, remedy: str
) -> None:
    (found,) = judge_topic("cdc.a", state, WANTED, "kafka:9092")

    assert found.is_wrong
    assert says in found.text
    assert remedy in found.remedy


def test_a_topic_that_refuses_every_record_is_named() -> None:
    state = with_settings(**{"message.timestamp.before.max.ms": "0"})

    (found,) = judge_topic("cdc.a", state, WANTED, "kafka:9092")

    assert "every record is refused" in found.text
    assert "--delete-config message.timestamp.before.max.ms" in found.remedy


def test_a_limit_below_a_batch_too_is_one_finding_and_a_limit_of_the_log_a_note() -> None:
    (small,) = judge_topic("cdc.a", with_settings(max_message_bytes="1000"), WANTED, "kafka:9092")
    (note,) = judge_topic("cdc.a", with_settings(retention_bytes="1000"), WANTED, "kafka:9092")

    assert "RECORD_BYTES_MAX (1048576), TIDEMARK_KAFKA_BATCH_BYTES (524288)" in small.text
    assert "max.message.bytes=1048576" in small.remedy
    assert not note.is_wrong


def test_a_table_is_judged_by_keys_indexes_their_states_ttl_and_recovery() -> None:
    sound = {**definition("parked"), "TableStatus": "ACTIVE"}
    assert judge_table(sound, "DISABLED", "ENABLED") == []
    assert judge_table(sound, "", "") == []

    (recovery,) = judge_table(sound, "DISABLED", "DISABLED")
    assert not recovery.is_wrong
    (ttl,) = judge_table(sound, "ENABLED", "ENABLED")
    assert (ttl.is_wrong, "--table-name parked" in ttl.remedy) == (True, True)

    first, second = sound["GlobalSecondaryIndexes"]
    (creating,) = judge_table(
        {**sound, "GlobalSecondaryIndexes": [{**first, "IndexStatus": "CREATING"}, second]}, "", ""
    )
    assert creating.text == "index 'due' is CREATING, not ACTIVE"
    (deleting,) = judge_table(
        {**sound, "GlobalSecondaryIndexes": [first, {**second, "IndexStatus": "DELETING"}]}, "", ""
    )
    (missing,) = judge_table({**sound, "GlobalSecondaryIndexes": [first]}, "", "")
    assert deleting == missing
    assert "index 'grp' is missing" in missing.text


def test_a_clock_may_differ_by_what_cursors_bear_and_no_more() -> None:
    assert judge_clock("x", 2.4, 0.5) == judge_clock("x", -2.4, 0.5) == []
    (ahead,), (behind,) = judge_clock("x", 60.0, 0.5), judge_clock("x", -3_600.0, 0.5)
    assert "1 min ahead of" in ahead.text
    assert "1 h behind" in behind.text
    assert "chronyc" in ahead.remedy


def test_a_date_without_fractions_is_compared_as_its_middle() -> None:
    ahead_s, uncertain_s = date_ahead_s(10 * SECOND_US, 10 * SECOND_US + 200_000, 10 * SECOND_US + 400_000)
    assert ahead_s == pytest.approx(0.2)
    assert uncertain_s == pytest.approx(0.6)


def test_a_misspelt_variable_is_wrong_a_foreign_one_is_noted_and_links_of_kubernetes_are_left_alone() -> None:
    known = {"TIDEMARK_KAFKA_BOOTSTRAP", "TIDEMARK_RAW_BUCKET"}
    links = {"TIDEMARK_SINK_SERVICE_HOST", "TIDEMARK_SINK_SERVICE_PORT_HTTP", "TIDEMARK_SINK_PORT_8080_TCP_ADDR"}
    found = dict(unknown_variables({"TIDEMARK_KAFKA_BOOTSTRP", "TIDEMARK_ZZZ", *known, *links}, known))

    assert list(found) == ["TIDEMARK_KAFKA_BOOTSTRP", "TIDEMARK_ZZZ"]
    assert found["TIDEMARK_KAFKA_BOOTSTRP"].remedy == "rename it to TIDEMARK_KAFKA_BOOTSTRAP"
    assert not found["TIDEMARK_ZZZ"].is_wrong
    assert [name for name, _ in unknown_variables({"TIDEMARK_X_PORT"}, known)] == ["TIDEMARK_X_PORT"]


def sightings(*rows: str) -> list[Sighting]:
    """``a1`` is key ``a`` at second 1."""
    raws = [b'{"id": "%b", "at": "1970-01-01T00:00:0%bZ"}' % (row[:1].encode(), row[1:].encode()) for row in rows]
    return Identifier(ROWS).identify(raws)


@pytest.mark.parametrize(
    ("first", "again", "differs"),
    [
        ("a1 b1 c2", "a1 b1 c2", False),
        ("a1 b1 c2", "b1 a1 c2", True),
        ("a1 b1 c2", "c2 a1 b1", False),  # the order between ticks is another matter
        ("a1 b1", "a1 d1 b1 e2", False),  # new rows meanwhile
        ("a1 b1", "", False),
    ],
)
def test_only_another_order_within_a_time_stamp_is_unstable(first: str, again: str, differs: bool) -> None:
    assert order_differs(sightings(*first.split()), sightings(*again.split())) is differs


def test_an_unstable_order_is_wrong_where_it_decides_what_is_newest_and_else_a_note() -> None:
    one, other = sightings("a1", "b1"), sightings("b1", "a1")

    assert [found.is_wrong for found in judge_answers(EVENTS, 0, one, other)] == [True]
    assert [found.is_wrong for found in judge_answers(replace(EVENTS, version="v"), 0, one, other)] == [False]
    assert [found.is_wrong for found in judge_answers(ROWS, 0, one, other)] == [False]
    assert judge_answers(EVENTS, 0, one, one) == []


def test_answers_are_judged_without_a_word_about_their_values() -> None:
    canary = Identifier(ROWS).identify([b'{"canary": "4711"}', b"[4711]"])
    (unreadable,) = judge_answers(ROWS, 0, canary, canary)
    assert unreadable.text.startswith("2 of 2 rows have no readable key or time stamp")
    assert unreadable.is_wrong
    assert "4711" not in unreadable.text

    mixed = [*canary, *sightings("a1")]
    assert not judge_answers(ROWS, 0, mixed, mixed)[0].is_wrong
    (early,) = judge_answers(ROWS, 5 * SECOND_US, sightings("a1", "b6"), [])
    assert early.text == "1 of 2 rows are older than what was asked for"
    assert "since_param" in early.remedy
    (unsorted,) = judge_answers(ROWS, 0, sightings("a2", "b1"), [])
    assert not unsorted.is_wrong


def test_a_disk_needs_room_and_leave_to_write() -> None:
    assert judge_disk(10 * 1024**3, 20 * 1024**3, is_writable=True) == []
    (full,) = judge_disk(50 * 1024**2, 20 * 1024**3, is_writable=True)
    assert full.text.startswith("50 MiB free of 20 GiB")
    assert [one.text for one in judge_disk(10 * 1024**3, 20 * 1024**3, is_writable=False)] == ["may not be written"]


def test_the_gravest_finding_is_the_exit_code() -> None:
    fine, note = Finding("kafka", "ok", "a"), Finding("kafka", "note", "b")
    wrong, config, down = (Finding("kafka", verdict, "c") for verdict in ("wrong", "config", "no answer"))

    assert exit_code([]) == exit_code([fine, note]) == OK
    assert exit_code([fine, wrong]) == FINDING
    assert exit_code([config, wrong]) == USAGE
    assert exit_code([down, config, wrong]) == DOWN


def test_each_finding_is_a_line_with_what_to_do_below_it_and_nothing_from_outside_moves_the_terminal() -> None:
    report = Report("kafka")
    report.ok("cdc.a", "3 partitions")
    report.wrong("cdc.b\x1b[2J", "is compacted", "alter it")
    report.judged("cdc.c", [Judgement("is small", "widen it", is_wrong=False)], "well")

    lines = render(report.findings)

    assert lines == [
        "ok     kafka  cdc.a      3 partitions",
        "WRONG  kafka  cdc.b\N{REPLACEMENT CHARACTER}[2J  is compacted",
        "                         do: alter it",
        "ok     kafka  cdc.c      well",
        "note   kafka  cdc.c      is small",
        "                         do: widen it",
        "",
        "1 finding, 1 note, 2 fine",
    ]


def test_the_advice_at_the_end_of_an_error_is_the_remedy() -> None:
    text = "Kafka does not answer (status 401; check the user; it failed); see TIDEMARK_KAFKA_BOOTSTRAP"
    assert parted(text) == (
        "Kafka does not answer (status 401; check the user; it failed)",
        "see TIDEMARK_KAFKA_BOOTSTRAP",
    )
    assert parted("it failed; seeing is believing") == ("it failed; seeing is believing", "")

    report = Report("kafka")
    report.meant("brokers", DOWN, text)
    report.meant("brokers", USAGE, "one: wrong\nother: wrong")
    assert [(found.verdict, found.remedy) for found in report.findings] == [
        ("no answer", "see TIDEMARK_KAFKA_BOOTSTRAP"),
        ("config", ""),
        ("config", ""),
    ]
