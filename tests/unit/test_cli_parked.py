"""``tidemark parked``: what may be typed, what is meant by it, and what is refused, without any server."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace

from services.cli.__main__ import main
from services.cli.arguments import parser
from services.cli.parked_dry_run import Tried, outcome_of
from services.cli.parked_edit import refusal
from services.cli.parked_export import document
from services.cli.parked_progress import Progress
from services.stale_notifier.notice import Kind, Notice, commands
from shared.events.model import EventRules, Reason
from shared.parked.analysis import Analyst, NotYet, Retriable
from shared.parked.dry_run import Tally
from shared.parked.groups import cause_of
from shared.parked.items import draft_of, meta_item, row_of
from shared.parked.leases import read_row
from shared.parked.model import SHARDS, State, shard
from shared.parked.selection import Selection
from tests.fakes.parked_bench import event_of
from tests.unit.analysis_events import NOW_US, RULES, contract, parked, text

SCHEMA = """{"type": "record", "name": "account", "fields": [
    {"name": "id", "type": "long"}, {"name": "updated_at", "type": "string"}]}"""
FOLDER = """
entities:
  accounts: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger}
sources: {bank: {url: "http://127.0.0.1:1/cdc"}}
owners: {ledger: {contact: "#ledger"}}
"""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name.startswith(("TIDEMARK_", "AWS_")):
            monkeypatch.delenv(name)
    (tmp_path / "a.yaml").write_text(FOLDER)
    (tmp_path / "accounts.avsc").write_text(SCHEMA)
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(tmp_path))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_what_a_notice_tells_its_owner_to_type_is_understood() -> None:
    notice = Notice(
        owner="ledger",
        entity="accounts",
        reason="invalid",
        path="/amount",
        rule="expected a long",
        fingerprint=cause_of(event_of(1)).id,
        kind=Kind.NEW,
        number=1,
        dedup_key="k",
        count=2,
        first_seen_ms=0,
        last_seen_ms=0,
        at_ms=0,
    )

    for command, _ in commands(notice):
        assert parser({}).parse_args(command.split()[1:]).group == notice.fingerprint


@pytest.mark.parametrize(
    "command",
    [
        ["redrive", "--job"],
        ["redrive", "--per-second", "0"],
        ["redrive", "--group", "abc"],
        ["redrive", "--from-archive", "--day", "yesterday"],
        ["hold", "--all"],
        ["edit", "e1", "--why", "  "],
        ["discard", "--all", "--yes"],
        ["export"],
        ["export", "--out", "a", "--dir", "b"],
        ["list", "--older-than", "soon"],
        ["list", "--newer-than", "-1d"],
        ["list", "--after", "nonsense"],
        ["groups", "--path", "amount"],
        ["hold", "--all", "--why", "x", "--for", "0s"],
    ],
)
def test_wrong_usage_exits_2(command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["parked", *command])

    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["redrive"], "say which events"),
        (["redrive", "--all", "--state", "HELD"], "--all goes with no filter"),
        (["redrive", "--entity", "acounts"], "accounts"),
        (["redrive", "--job", "r1", "--entity", "accounts"], "--job"),
        (["redrive", "--all", "--schema", "x.avsc"], "--schema is for --dry-run"),
        (["redrive", "--all", "--day", "2026-01-31"], "--day goes with --from-archive"),
        (["redrive", "--from-archive", "--entity", "accounts"], "a --day"),
        (["redrive", "--from-archive", "s3://b/k", "--entity", "accounts"], "takes no filter"),
        (["hold", "--why", "x"], "say which events"),
        (["discard", "--why", "x"], "say which events"),
        (["export", "--out", "-", "--json"], "standard output"),
        (["export", "--dir", "/"], "exists"),
        (["redrive", "--dry-run", "--schema", "/nope.avsc"], "can't read /nope.avsc"),
        (["redrive", "--dry-run", "--schema", __file__], "is no JSON"),
        (["redrive", "--from-archive", "s3://b/k", "--dry-run", "--schema", "/nope.avsc"], "can't read /nope.avsc"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_touched(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parked", *command]) == 2
    assert said in capsys.readouterr().err


def test_a_schema_that_is_tried_belongs_to_one_entity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = FOLDER.replace("sources:", FOLDER.split("\n")[2].replace("accounts:", "more:", 1) + "\nsources:")
    (tmp_path / "a.yaml").write_text(folder)

    assert main(["parked", "redrive", "--dry-run", "--schema", str(tmp_path / "accounts.avsc")]) == 2
    assert "name it with --entity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ({}, True),
        ({"reasons": (Reason.INVALID, Reason.BUG)}, True),
        ({"reasons": (Reason.BUG,)}, False),
        ({"state": State.HELD}, True),
        ({"state": State.STALE}, False),
        ({"owner": "payments-team"}, True),
        ({"owner": "ledger"}, False),
        ({"path": "/lines/3/price"}, True),
        ({"path": "/lines/*/price"}, True),
        ({"path": "/lines/4/price"}, False),
        ({"path": "/*/3/*"}, True),
        ({"path": "/lines/*"}, False),
        ({"path": "*"}, False),
        ({"key": "1"}, True),
        ({"key": "11"}, False),
        ({"ids": (event_of(1).event_id, "x")}, True),
        ({"ids": ("x",)}, False),
        ({"group": cause_of(event_of(2, path="/lines/9/price")).id}, True),
        ({"group": cause_of(event_of(2)).id}, False),
    ],
)
def test_all_that_is_given_must_fit_in_the_index_and_in_the_table(given: dict[str, object], is_taken: bool) -> None:
    selection = Selection(entities=("payments",), **given)  # type: ignore[arg-type]
    item = meta_item(draft_of(event_of(1, path="/lines/3/price"), 1, 300_000))

    assert selection.takes(row_of(item)) is is_taken
    assert selection.still_takes(read_row(item)) is is_taken


def test_a_key_that_the_table_cuts_is_found_by_the_whole_of_it() -> None:
    key = "k" * 9_000
    item = meta_item(draft_of(event_of(1, key=key), 1, 300_000))

    assert Selection(entities=("payments",), key=key).takes(row_of(item))


def test_single_events_are_looked_for_in_their_own_shards_only() -> None:
    everywhere = Selection(entities=("payments",), reasons=(Reason.INVALID,))
    item_id = event_of(1).event_id

    assert len(everywhere.partitions) == SHARDS
    assert [p.rpartition("#")[2] for p in replace(everywhere, ids=(item_id,)).partitions] == [f"{shard(item_id):02d}"]


def test_progress_is_one_changing_line_on_a_terminal_and_plain_lines_elsewhere() -> None:
    now = [0.0]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, log = Terminal(), io.StringIO()
    with (
        Progress("r1", 40_112, terminal, monotonic_s=lambda: now[0]) as first,
        Progress("r1", 40_112, log, monotonic_s=lambda: now[0]) as second,
    ):
        for step in range(1, 49):
            now[0] = step / 8
            first.show(step * 125)
            second.show(step * 125)

    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") == 24
    assert log.getvalue() == "r1   5,000 of 40,112   12 %    1,000 /s\n"
    assert {len(line) for line in terminal.getvalue().replace("\x1b[K", "").strip().split("\r") if line} == {39}


def test_a_dry_run_says_how_many_would_pass_and_why_the_rest_would_not() -> None:
    tried = Tried("payments", Tally(7))
    for _ in range(39_870):
        tried.count(Retriable("k", b"", "u", b"", 0))
    for number in range(240):
        tried.count(NotYet(Reason.INVALID, f"/lines/{number % 7}/price", "expected a long", "f"))
    for _ in range(2):
        tried.count(NotYet(Reason.HOSTILE, "", "is no JSON", "f"))
    found = outcome_of([tried])

    assert found.exit_code == 1
    assert list(found.lines) == [
        "of 40,112 parked, 39,870 would pass with schema version 7",
        "",
        "ENTITY    REASON   PATH            RULE             EVENTS",
        "payments  invalid  /lines/*/price  expected a long     240",
        "payments  hostile  (the whole)     is no JSON            2",
    ]
    assert json.loads(json.dumps(found.document))["entities"][0]["refused"][0]["events"] == 240


def test_a_dry_run_in_which_all_pass_is_no_finding() -> None:
    tried = Tried("payments", Tally(7))
    tried.count(Retriable("k", b"", "u", b"", 0))

    assert outcome_of([tried]).exit_code == 0
    assert outcome_of([]).exit_code == 0


AMOUNT = ("amount", "long")
BAD = text(amount="canary", id="a")


def why_refused(old: bytes, new: bytes, rules: EventRules = RULES) -> str | None:
    analyst = Analyst(contract(AMOUNT, rules=rules), rules)
    return refusal(parked(old, rules=rules), old, new, analyst, rules, NOW_US)


def test_an_edit_that_the_contract_takes_is_allowed() -> None:
    assert why_refused(BAD, text(amount=5, id="a")) is None


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (text(amount=5, id="b"), "/id: the key must not change"),
        (text(amount=5, id="a", at="2026-11-03T12:34:57Z"), "/at: the time stamp must not change"),
        (b'{"at": "2026-11-03T12:34:56Z", "amount": 5}', "/id: the key"),
        (b'{"id": "a"', "hostile at (the whole): "),
        (text(amount="canary2", id="a"), "invalid at /amount"),
        (text(amount=5, id="a", extra=1), "invalid at /extra"),
    ],
)
def test_an_edit_that_moves_identity_or_that_the_contract_refuses_is_refused(new: bytes, why: str) -> None:
    said = why_refused(BAD, new)

    assert said is not None
    assert said.startswith(why)
    assert "canary" not in said


def test_an_edit_must_not_move_the_version_that_orders() -> None:
    rules = replace(RULES, version="amount")

    said = why_refused(text(amount=4, id="a", more=1), text(amount=5, id="a"), rules)

    assert said is not None
    assert said.startswith("/amount: the version must not change")


def test_what_could_not_be_read_before_may_become_any_event() -> None:
    assert why_refused(b'{"id": "a", "amount": ', text(amount=5, id="a")) is None


def test_an_exported_event_has_its_bytes_only_when_they_are_asked_for() -> None:
    event = event_of(1, raw=b'{"amount": "canary"}')
    there = row_of(meta_item(draft_of(event, 1, 300_000)))

    assert "raw_base64" in document(there, event, with_raw=True)
    without = document(there, event, with_raw=False)
    assert "canary" not in json.dumps(without)
    assert "raw_base64" not in without
    assert (without["group"], without["seq"]) == (cause_of(there).id, [event.rank, 0])
