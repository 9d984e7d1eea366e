"""``tidemark trace`` on real stores: from the source's showing to the table's version, and why the others lost."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.local.stack import Stack
from services.cli.__main__ import main
from tests.fakes.audited_world import T0_US, AuditedWorld, Lake, refused, stamp

Trace = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedWorld]:
    made = AuditedWorld(tmp_path_factory.mktemp("trace"), ["things"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environ.items():
            patch.setenv(name, value)
        assert main(["bootstrap"]) == 0
        made.do(history)
        yield made


@pytest.fixture
def trace(world: AuditedWorld, capsys: pytest.CaptureFixture[str]) -> Trace:
    def run(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["trace", "things", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


async def history(lake: Lake) -> None:
    """Key a: three changes, the newest one published first; the second is loaded later. Key b: parked. Key c: in
    Kafka alone."""
    first, second, third = await lake.seen("things", [("a", 1, 10), ("a", 2, 20), ("a", 3, 30)])
    await lake.publish("things", [third, first])
    await lake.record("things", [first, second, third])
    await lake.show("things", [("x", 1, 1), ("y", 1, 1), ("z", 1, 1)])
    await lake.sink("things", rows_max=2)
    await lake.load("things")
    await lake.publish("things", [second])
    await lake.sink("things", rows_max=2)
    await lake.load("things")
    (late,) = await lake.seen("things", [("b", 1, 1)])
    await lake.park("things", late, refused())
    await lake.record("things", [late])
    await lake.show("things", [("c", 9, 1)])
    await lake.release("things")


def test_a_key_is_told_event_by_event_who_won_and_why_the_others_lost(trace: Trace) -> None:
    code, document = trace("a")

    assert code == 0
    assert document["key"] == "a"
    first, second, third = document["events"]
    assert third["fate"] == "won: it is what the table holds"
    for loser in (first, second):
        assert loser["fate"].startswith(f"lost against {third['event_id']}: lower seq: ")
    assert [event["records"][0]["table_version"] for event in (first, second, third)] == [0, 1, 0]
    record = second["records"][0]
    assert record["line"] == 1
    assert record["object_key"].endswith(f"/{record['offset']:020d}.ndjson.zst")
    assert second["shown"][0]["updated"] == stamp(T0_US + 2_000_000)
    assert document["held"][0]["event_id"] == third["event_id"]


def test_an_event_id_alone_leads_to_the_same(trace: Trace) -> None:
    _, whole = trace("a")

    for event in whole["events"]:
        code, document = trace("--event-id", event["event_id"])
        assert (code, document["key"], document["events"]) == (0, "a", [event])


def test_a_parked_event_is_told_with_its_reason(trace: Trace) -> None:
    code, document = trace("b")

    (event,) = document["events"]
    assert (code, event["fate"]) == (0, "parked (HELD)")
    assert (event["parked"][0]["reason"], event["parked"][0]["path"]) == ("invalid", "/amount")
    assert trace("--event-id", event["event_id"])[1]["events"] == [event]


def test_what_the_sink_has_not_written_yet_is_found_on_its_topic(trace: Trace) -> None:
    code, document = trace("c")

    (event,) = document["events"]
    assert (code, event["fate"]) == (0, "published, and not merged yet")
    assert event["records"][0]["object_key"] is None


def test_a_key_of_which_nothing_is_known_is_a_finding(trace: Trace) -> None:
    code, document = trace("nobody")
    assert (code, document["events"]) == (1, [])
    assert trace("--event-id", "0" * 32)[0] == 1


def test_a_person_reads_it_on_a_screen(world: AuditedWorld, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["trace", "things", "a"]) == 0
    text = capsys.readouterr().out

    assert text.startswith("things, key 'a'\nthe table (version 1) holds: ")
    assert text.count("fate ") == 3
    assert "merged     in version 1 of the table" in text
    assert "30" not in [word.strip(",") for word in text.split() if word.isdecimal()], "field values are not printed"
