"""``tidemark parked`` on a real table, archive and registry: what an operator does, undone half way, and done again."""

import base64
import json
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.edges import Edges, clock_ms
from shared.events.model import Reason
from shared.parked.evidence_audit import verify
from shared.parked.evidence_chain import Chain
from shared.parked.groups import cause_of
from shared.parked.leases import Row
from shared.parked.model import ParkedEvent, State
from shared.parked.queries import ParkedFilter
from shared.parked.store import ParkedStore
from tests.integration.operator_place import AMOUNT, FOLDER, NAME, NOW_US, Place, place_on, schema, typed

ROOT = Path(__file__).parents[2]
WHY = ("--why", "because")

JsonRun = Callable[..., tuple[int, Any]]


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place_on(stack, tmp_path / "entities", monkeypatch) as own:
        yield own


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> JsonRun:
    return partial(typed, capsys)


async def give_up(store: ParkedStore, row: Row) -> None:
    claimed = await store.transitions.claim(row, "test", 30.0, early=True)
    assert claimed is not None
    await store.transitions.stale(claimed, "age", permanent=True)


async def publish(store: ParkedStore, row: Row) -> None:
    claimed = await store.transitions.claim(row, "test", 30.0, early=True)
    assert claimed is not None
    await store.transitions.published(claimed)


def moment_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def codes(rows: dict[str, Row]) -> Counter[str]:
    return Counter(error.code for row in rows.values() for error in row.errs)


def test_groups_are_counted_by_root_cause_and_each_filter_finds_its_own(place: Place, run: JsonRun) -> None:
    few, many = place.refused(3, amount="canary"), place.refused(5, first=10, amount=1, lines=[{"x": "canary"}])
    outage = place.refused(2, first=20, reason=Reason.KAFKA_UNKNOWN, amount=1)
    place.park([*few, *many, *outage])

    code, found = run("groups")
    sizes = [(group["reason"], group["path"], group["events"], group["states"]) for group in found["groups"]]
    assert (code, sizes) == (
        0,
        [
            ("invalid", "/lines", 5, {"HELD": 5}),
            ("invalid", "/amount", 3, {"HELD": 3}),
            ("kafka_unknown", "", 2, {"PARKED": 2}),
        ],
    )
    assert "canary" not in json.dumps(found)

    def ids(*filters: str) -> list[str]:
        return [event["item_id"] for event in run("list", *filters)[1]["events"]]

    def ids_of(events: Sequence[ParkedEvent]) -> list[str]:
        return [event.event_id for event in events]

    assert ids("--group", cause_of(few[0]).id) == ids_of(few)
    assert ids("--group", "0" * 16) == []
    assert ids("--path", "/amount") == ids_of(few)
    assert ids("--key", "k11") == ids_of(many[1:2])
    assert ids("--id", many[2].event_id, "--id", few[0].event_id) == ids_of([few[0], many[2]])
    assert ids("--state", "PARKED") == ids_of(outage)
    assert ids("--owner", "nobody") == []
    assert ids("--older-than", "1d") == ids_of([*few, *many, *outage])
    assert ids("--newer-than", "1d") == []
    page = run("list", "--group", cause_of(many[0]).id, "--limit", "2")[1]
    rest = run("list", "--group", cause_of(many[0]).id, "--limit", "9", "--after", page["after"])[1]
    assert [event["item_id"] for event in page["events"] + rest["events"]] == ids_of(many)


def test_a_dry_run_counts_what_the_registered_or_a_given_schema_would_take_and_writes_nothing(
    place: Place, run: JsonRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.register(schema(AMOUNT))
    place.park([*place.refused(6, amount=1, name="canary"), *place.refused(2, first=10, amount="canary")])

    assert main(["parked", "redrive", "--dry-run"]) == 1
    assert capsys.readouterr().out.startswith("of 8 parked, 0 would pass with schema version 1\n")

    (tmp_path / "next.avsc").write_text(schema(AMOUNT, NAME))
    code, tried = run("redrive", "--entity", "things", "--dry-run", "--schema", str(tmp_path / "next.avsc"))
    assert (code, tried["entities"][0]["passing"], tried["entities"][0]["version"]) == (1, 6, None)

    place.register(schema(AMOUNT, NAME))
    assert main(["parked", "redrive", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "of 8 parked, 6 would pass with schema version 2"
    assert said.out.splitlines()[3].split()[:3] == ["things", "invalid", "/amount"]
    assert said.out.splitlines()[3].split()[-1] == "2"
    assert "canary" not in said.out + said.err
    assert run("redrive", "--path", "/name", "--dry-run")[0] == 0
    assert set(codes(place.rows())) == set()
    assert run("audit")[1]["entries"] == []


def test_a_bulk_redrive_wakes_what_it_selects_once_and_says_so_in_the_trail(place: Place, run: JsonRun) -> None:
    chosen, others = place.refused(5, amount="x"), place.refused(3, first=10, amount=1, more=1)
    place.park([*chosen, *others])
    group = cause_of(chosen[0]).id
    place.work(lambda store, row: give_up(store, row) if row.event.key == "k0" else _nothing())

    code, done = run("redrive", "--group", group, *WHY)

    assert (code, done["counts"], done["done"]) == (0, {"woken": 5}, True)
    rows = place.rows()
    states = {row.event.path: row.state for row in rows.values()}
    assert states == {"/amount": State.PARKED, "/more": State.HELD}
    assert codes({k: row for k, row in rows.items() if row.event.path == "/amount"})[f"job {done['job']}"] == 5
    assert run("redrive", "--job", done["job"])[1] == done
    assert run("redrive", "--group", group)[1]["counts"] == {"due": 5}
    entries = run("audit")[1]["entries"]
    assert [(e["action"], e["outcome"], e["counts"], e["why"]) for e in entries] == [
        ("redrive", "done", {"due": 5}, ""),
        ("redrive", "done", {"woken": 5}, "because"),
    ]
    assert (entries[1]["what"]["group"], entries[1]["job"]) == (group, done["job"])
    assert "@" in entries[1]["who"]
    assert run("redrive", "--job", "r0")[0] == 2
    assert run("redrive", "--id", "0" * 32)[0] == 1


async def _nothing() -> None:
    pass


async def settled_by(job: str, edges: Edges) -> int:
    return (await (await edges.desk()).jobs.get(job)).settled


def test_a_bulk_redrive_that_is_killed_goes_on_where_it_was_and_wakes_nothing_twice(place: Place, run: JsonRun) -> None:
    place.park(place.refused(60, amount="x"))
    command = [sys.executable, "-m", "services.cli", "parked", "redrive", "--all", "--per-second", "4"]
    job = ""
    settled = 0
    for _ in range(3):
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as running:
            assert running.stderr is not None
            first = running.stderr.readline()
            found = re.match(r"job (\w+): 60 events", first)
            assert found is not None, first
            job, before = found[1], settled
            while settled == before and running.poll() is None:
                settled = place.do(partial(settled_by, job))
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        command = [*command[:5], "--job", job]

    code, done = run("redrive", "--job", job, "--per-second", "1000")

    woken = codes(place.rows())
    assert (code, done["counts"], done["done"]) == (0, {"woken": 60}, True)
    assert woken == {f"job {job}": 60}
    outcomes = [entry["outcome"] for entry in run("audit")[1]["entries"]]
    assert outcomes == ["done", "begun", "begun", "begun"]


def test_held_events_wait_and_a_stale_one_is_taken_from_the_notifier(place: Place, run: JsonRun) -> None:
    outage = place.refused(2, reason=Reason.KAFKA_TOPIC, amount=1)
    place.park([*outage, *place.refused(1, first=10, amount="x")])
    place.work(lambda store, row: give_up(store, row) if row.event.key == "k10" else _nothing())

    code, done = run("hold", "--all", "--for", "2h", *WHY)

    assert (code, done["counts"]) == (0, {"held": 3})
    assert 7_100 < moment_s(done["until"]) - clock_ms() / 1000 <= 7_200
    rows = place.rows().values()
    assert {row.state for row in rows} == {State.HELD}
    assert {row.att for row in rows} == {0}
    assert all(7_100_000 < row.due_ms - clock_ms() <= 7_200_000 < row.deadline_ms - clock_ms() for row in rows)
    assert run("hold", "--all", *WHY)[1]["counts"] == {"held": 3}
    assert all(row.due_ms - clock_ms() > 600_000_000 for row in place.rows().values())
    assert 604_000 < moment_s(run("hold", "--all", "--for", "400d", *WHY)[1]["until"]) - clock_ms() / 1000 <= 604_800
    assert run("redrive", "--key", "k0")[1]["counts"] == {"woken": 1}


def test_an_edit_keeps_the_original_and_moves_neither_key_nor_time(
    place: Place, run: JsonRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.register(schema(AMOUNT))
    (event,) = place.refused(1, amount="canary")
    place.park([event])
    file = tmp_path / "new.json"

    for bad, why in [
        (event.raw.replace(b"k0", b"k1").replace(b'"canary"', b"5"), "/id: the key must not change"),
        (event.raw.replace(b":56Z", b":57Z").replace(b'"canary"', b"5"), "/at: the time stamp must not change"),
        (event.raw.replace(b"canary", b"canary2"), "invalid at /amount"),
    ]:
        file.write_bytes(bad)
        code, said = run("edit", event.event_id, "--file", str(file), *WHY)
        assert (code, said["edited"]) == (1, False)
        assert said["refused"].startswith(why)

    monkeypatch.setenv("VISUAL", f"{sys.executable} {tmp_path / 'editor.py'}")
    (tmp_path / "editor.py").write_text(
        "import sys; file = sys.argv[1]; text = open(file).read()\n"
        "open(file, 'w').write(text.replace('\"canary\"', '5') + '\\n')\n"
    )
    assert main(["parked", "edit", event.event_id, "--rev", "7", *WHY]) == 2
    assert "there is no --rev 7 of this event; there is 0" in capsys.readouterr().err
    code, said = run("edit", event.event_id, *WHY)
    assert (code, said) == (0, {"edited": True, "event_id": event.event_id, "rev": 1})

    (row,) = place.rows().values()
    assert (row.state, row.event.rev, row.event.event_id, row.event.rank) == (
        State.PARKED,
        1,
        event.event_id,
        event.rank,
    )
    shown = run("show", event.event_id, "--raw")[1]["events"][0]
    assert base64.b64decode(shown["raw_base64"]) == event.raw
    assert base64.b64decode(shown["edited_base64"]) == event.raw.replace(b'"canary"', b"5")
    assert main(["parked", "show", event.event_id]) == 0
    sheet = capsys.readouterr().out
    assert "rev 1 by" in sheet
    assert "canary" not in sheet
    (entry,) = run("audit")[1]["entries"]
    assert (entry["action"], entry["why"], entry["counts"]) == ("edit", "because", {"edited": 1})
    assert "canary" not in json.dumps(entry)


def test_an_operator_gives_an_event_its_entitys_patience_anew_and_a_hold_may_outlast_it(
    place: Place, run: JsonRun, tmp_path: Path
) -> None:
    (place.folder / "bank.yaml").write_text(FOLDER.replace("owner: ledger}", "owner: ledger, stale_after_s: 600}", 1))
    place.register(schema(AMOUNT))
    events = place.refused(5, amount="x")
    place.park(events)
    (tmp_path / "new.json").write_bytes(events[1].raw.replace(b'"x"', b"5"))

    def left_s() -> dict[str, float]:
        return {row.event.key or "": (row.deadline_ms - clock_ms()) / 1000 for row in place.rows().values()}

    assert run("redrive", "--key", "k0", *WHY)[1]["counts"] == {"woken": 1}
    assert run("edit", events[1].event_id, "--file", str(tmp_path / "new.json"), *WHY)[1]["edited"]
    assert run("hold", "--key", "k2", "--for", "2h", *WHY)[1]["counts"] == {"held": 1}
    assert run("hold", "--key", "k3", "--for", "1min", *WHY)[1]["counts"] == {"held": 1}
    place.work(lambda store, row: give_up(store, row) if row.event.key == "k4" else _nothing())
    assert run("discard", "--key", "k4", "--yes", *WHY)[1]["counts"] == {"discarded": 1}
    assert run("redrive", "--from-archive", "--day", "2026-11-03", "--entity", "things", *WHY)[1]["total"] == 1

    left = left_s()
    assert left.keys() == {"k0", "k1", "k2", "k3", "k4"}
    assert all(500 < left[key] <= 600 for key in ("k0", "k1", "k3", "k4"))
    assert 7_000 < left["k2"] <= 7_200, "as long as it was asked for"


def test_what_an_editor_typed_and_the_contract_refused_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.register(schema(AMOUNT))
    (event,) = place.refused(1, amount="x")
    place.park([event])
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c \"import sys; open(sys.argv[1], 'a').write(' ')\"")

    assert main(["parked", "edit", event.event_id, *WHY]) == 1

    kept = re.search(r"--file (\S+)", capsys.readouterr().out)
    assert kept is not None
    file = Path(kept[1])
    assert file.read_bytes() == event.raw + b" "
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.unlink()
    file.parent.rmdir()


def test_a_discarded_event_is_in_the_archive_and_its_chain_and_comes_back_from_there(
    place: Place, run: JsonRun, capsys: pytest.CaptureFixture[str]
) -> None:
    events = place.refused(4, amount="x")
    kept = place.refused(1, first=10, amount=1, more=1)
    place.park([*events, *kept])
    place.work(lambda store, row: give_up(store, row) if row.event.key == "k0" else _nothing())

    code, done = run("discard", "--path", "/amount", "--yes", *WHY)

    assert (code, done["counts"]) == (0, {"discarded": 4})
    assert list(place.rows()) == [kept[0].event_id]

    async def archived(edges: Edges) -> tuple[list[str], Any]:
        archive = await edges.archive()
        return [uri async for uri in archive.uris()], await verify(archive, clock_ms())

    uris, report = place.do(archived)
    assert len(uris) == 4
    assert (report.objects, report.problems) == (4, [])

    assert run("redrive", "--from-archive", uris[0], *WHY)[0] == 0
    assert run("redrive", "--from-archive", uris[0], *WHY)[0] == 0
    day = "2026-11-03"
    code, done = run("redrive", "--from-archive", "--day", day, "--entity", "things", *WHY)
    assert (code, done["counts"], done["total"]) == (0, {"woken": 4}, 4)
    code, done = run("redrive", "--from-archive", "--day", day, "--entity", "things", *WHY)
    assert (code, done["counts"]) == (0, {"woken": 4})
    back = {key: row for key, row in place.rows().items() if key != kept[0].event_id}
    assert {row.state for row in back.values()} == {State.PARKED}
    for event in events:
        row = back[event.event_id]
        same = replace(row.event, raw=event.raw, at_us=event.at_us)
        assert same == event
        assert row.deadline_ms > NOW_US // 1000 + 86_400_000
    assert run("redrive", "--from-archive", "--day", "2026-11-02", "--entity", "things")[1]["total"] == 0
    assert main(["parked", "redrive", "--from-archive", "s3://elsewhere/x"]) == 2
    assert main(["parked", "redrive", "--from-archive", uris[0][:-9] + "00.json.zst"]) == 1
    actions = [(entry["action"], entry["counts"]) for entry in run("audit")[1]["entries"]]
    assert actions[-1] == ("discard", {"discarded": 4})
    capsys.readouterr()


def test_an_event_that_was_edited_comes_back_once_whether_or_not_it_is_still_there(place: Place, run: JsonRun) -> None:
    (event,) = place.refused(1, amount="x")
    place.park([event])
    edited = event.raw.replace(b'"x"', b"5")

    async def edit(store: ParkedStore, row: Row) -> None:
        again = await store.transitions.edit(row, edited, "me", "why")
        claimed = await store.transitions.claim(again, "test", 30.0, early=True)
        assert claimed is not None
        await store.transitions.stale(claimed, "age", permanent=True)

    async def archive(edges: Edges) -> str:
        store, archive = await edges.parked(), await edges.archive()
        (page,) = [page async for page in store.streams.rows(ParkedFilter(entities=("things",)))]
        row = await store.transitions.look(page[0])
        assert row is not None
        claimed = await store.transitions.claim(row, "test", 30.0, early=True)
        assert claimed is not None
        written = await archive.keep(claimed, await store.transitions.original(row))
        await Chain(archive).append([written])
        claimed = await store.transitions.archived(claimed, archive.uri(written.key), written.sha256)
        await store.transitions.again(claimed, 0, "x", counts=False)
        return archive.uri(written.key)

    place.work(edit)
    uri = place.do(archive)

    assert run("redrive", "--from-archive", uri)[0] == 0
    (row,) = place.rows().values()
    assert (row.state, row.event.rev, len(row.edits)) == (State.PARKED, 1, 1)

    place.work(publish)
    assert run("redrive", "--from-archive", uri)[0] == 0
    assert run("redrive", "--from-archive", uri)[0] == 0
    (row,) = place.rows().values()
    assert (row.state, row.event.rev, row.event.event_id) == (State.PARKED, 1, event.event_id)


def test_nothing_is_discarded_while_the_archive_is_away_or_without_a_yes(
    place: Place, run: JsonRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.park(place.refused(3, amount="x"))
    before = place.rows()

    assert main(["parked", "discard", "--all", *WHY]) == 2
    assert "3 events would go" in capsys.readouterr().err
    monkeypatch.setenv("TIDEMARK_ARCHIVE_BUCKET", f"{place.namespace}-none")
    assert main(["parked", "discard", "--all", "--yes", *WHY]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["evidence", "verify"]) == 1, "a bucket that isn't there is no empty one"
    assert run("redrive", "--from-archive", "--day", "2026-11-03", "--entity", "things")[0] == 1

    assert place.rows() == before


def test_an_archive_that_fails_half_way_leaves_the_events_as_they_were(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.park(place.refused(3, amount="x"))
    before = place.rows()
    real = Chain.append

    async def no_chain(self: Chain, objects: Any) -> None:
        from shared.parked.evidence import ArchiveUnavailable

        raise ArchiveUnavailable("away")

    monkeypatch.setattr(Chain, "append", no_chain)
    assert main(["parked", "discard", "--all", "--yes", *WHY]) == 3
    after = place.rows()
    assert {(row.item_id, row.state, row.due_ms, row.att, row.lease_token) for row in after.values()} == {
        (row.item_id, row.state, row.due_ms, row.att, None) for row in before.values()
    }
    monkeypatch.setattr(Chain, "append", real)

    assert main(["parked", "discard", "--all", "--yes", *WHY]) == 0
    assert place.rows() == {}
    assert main(["parked", "audit"]) == 0
    assert "failed (ArchiveUnavailable)" in capsys.readouterr().out


def test_an_event_that_a_worker_has_is_not_discarded(
    place: Place, run: JsonRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.parked_discard.ROUND_S", 0.01)
    place.park(place.refused(2, amount="x"))

    async def lease(store: ParkedStore, row: Row) -> None:
        if row.event.key == "k0":
            assert await store.transitions.claim(row, "retrier", 300.0, early=True) is not None

    place.work(lease)
    code, done = run("discard", "--all", "--yes", *WHY)

    assert (code, done["counts"]) == (1, {"discarded": 1, "busy": 1})
    assert [row.event.key for row in place.rows().values()] == ["k0"]


def test_an_export_is_whole_private_and_has_bytes_only_when_they_are_asked_for(
    place: Place, run: JsonRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = place.refused(3, amount="canary")
    place.park(events)

    assert run("export", "--out", str(tmp_path / "a.ndjson"))[1]["events"] == 3
    assert "canary" not in (tmp_path / "a.ndjson").read_text()
    assert stat.S_IMODE((tmp_path / "a.ndjson").stat().st_mode) == 0o600
    assert run("export", "--out", str(tmp_path / "a.ndjson"))[0] == 2

    assert main(["parked", "export", "--out", "-", "--raw", "--key", "k1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert base64.b64decode(json.loads(line)["raw_base64"]) == events[1].raw

    assert run("export", "--dir", str(tmp_path / "all"), "--raw")[0] == 0
    files = sorted(path.name for path in (tmp_path / "all" / "things").iterdir())
    assert len(files) == 6
    assert (tmp_path / "all" / "things" / f"{events[0].event_id}-0.raw").read_bytes() == events[0].raw
    assert run("export", "--dir", str(tmp_path / "all"))[0] == 2
    assert [(entry["action"], entry["what"]["raw"]) for entry in run("audit")[1]["entries"]] == [
        ("export", True),
        ("export", True),
        ("export", False),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_table_that_is_away_is_exit_code_3(place: Place, run: JsonRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1")
    monkeypatch.setattr("shared.parked.walk.READ_BUDGET_S", 0.2)

    assert run("groups")[0] == 3
    assert run("redrive", "--all")[0] == 3
