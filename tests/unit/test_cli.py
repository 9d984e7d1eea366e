"""The command line: exit codes, messages for people, and no client library where none is needed."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from services.cli.__main__ import main
from services.cli.arguments import parser
from services.cli.outcome import aligned, iso, moment, printable, span
from services.cli.status import Line, Partition, Problem, render
from shared.events.model import Reason

ROOT = Path(__file__).parents[2]
SCHEMA = """{"type": "record", "name": "account", "fields": [
    {"name": "id", "type": "long"}, {"name": "updated_at", "type": "string"}]}"""
FOLDER = """
entities:
  accounts: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger}
sources: {bank: {url_env: BANK_URL}}
owners: {ledger: {contact: "#ledger"}}
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the machine reaches a command, and its logging doesn't reach other tests."""
    for name in os.environ:
        if name.startswith(("TIDEMARK_", "AWS_")):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(FOLDER)
    (tmp_path / "accounts.avsc").write_text(SCHEMA)
    return tmp_path


def test_validate_passes_a_good_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BANK_URL", "https://bank.example/cdc")
    monkeypatch.setenv("TIDEMARK_ENTITIES_DIR", str(folder))

    assert main(["validate"]) == 0
    assert capsys.readouterr().out == "ok  accounts  cdc.accounts\n"


def test_validate_names_every_problem_and_exits_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.yaml").write_text("entities:\n  other: {source: bank}\n")

    assert main(["validate", "--entities", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert f"{folder}/a.yaml:4: the environment variable BANK_URL is not set" in errors
    assert f"{folder}/b.yaml:2: 'key' is missing" in errors


def test_validate_can_leave_the_environment_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", "--entities", str(folder), "--without-environment", "--namespace", "blue", "--json"]

    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["entities"][0]["topic"] == "blue.cdc.accounts"


def test_validate_compiles_the_schemas(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "accounts.avsc").write_text(SCHEMA.replace('"type": "long"', '"type": "lang"'))

    assert main(["validate", "--entities", str(folder), "--without-environment"]) == 2
    assert f"{folder}/accounts.avsc: entity accounts: " in capsys.readouterr().err


def test_an_error_is_one_document_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--json"]) == 2

    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert "TIDEMARK_ENTITIES_DIR: not set" in document["error"]


@pytest.mark.parametrize("command", [["bootstrap"], ["bootstrap", "--plan"], ["status"]])
def test_all_missing_settings_are_named_before_anything_is_touched(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--entities", str(folder)]) == 2

    errors = capsys.readouterr().err
    for setting in ("KAFKA_BOOTSTRAP", "REGISTRY_URL", "POSTGRES_DSN"):
        assert f"TIDEMARK_{setting}: not set" in errors
    assert "BANK_URL is not set" in errors


def test_a_command_asks_only_for_the_settings_of_its_own_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["entity", "pause", "accounts", "--reason", "why"]) == 2

    assert capsys.readouterr().err == "TIDEMARK_POSTGRES_DSN: not set; expected text that is not empty\n"


def test_a_server_that_is_down_exits_3_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMARK_POSTGRES_DSN", "postgresql://u:canary@127.0.0.1:1/d")
    monkeypatch.setenv("TIDEMARK_POSTGRES_BUDGET_S", "0.1")

    assert main(["entity", "list"]) == 3
    errors = capsys.readouterr().err
    assert errors.startswith("Postgres does not answer (")
    assert errors.count("\n") == 1
    assert "canary" not in errors


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["entity"],
        ["entity", "pause", "accounts"],
        ["entity", "pause", "accounts", "--reason", "  "],
        ["cursor", "set", "accounts", "--to", "yesterday", "--reason", "x"],
        ["cursor", "set", "accounts", "--to", "2026-01-01T00:00:00Z"],
        ["cursor", "set", "accounts", "--to", "1960-01-01T00:00:00Z", "--reason", "x"],
        ["parked", "list", "--reason", "bored"],
        ["parked", "list", "--limit", "0"],
        ["status", "--namespace", "A_B"],
        ["evidence", "verify", "--expect-head", "abc"],
    ],
)
def test_wrong_usage_exits_2(command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)

    assert caught.value.code == 2


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["bootstrap", "--help"], ["parked", "list", "--help"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "3  a server did not answer" in capsys.readouterr().out


def test_a_cursor_can_be_set_to_the_beginning_or_a_time() -> None:
    common = ["cursor", "set", "accounts", "--reason", "x", "--to"]

    assert parser({}).parse_args([*common, "beginning"]).to == 0
    assert parser({}).parse_args([*common, "1970-01-01T01:00:01+01:00"]).to == 1_000_000


def test_a_cursor_that_would_skip_what_is_still_to_come_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cursor", "set", "accounts", "--reason", "x", "--to", "2999-01-01T00:00:00Z"]) == 2
    assert "lies ahead" in capsys.readouterr().err


@pytest.mark.parametrize("dsn", ["canary", "postgresql://u:canary@h:port/d", "http://u:canary@h/d"])
def test_a_dsn_that_cannot_be_read_is_a_setting_to_mend_and_no_bug(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMARK_POSTGRES_DSN", dsn)

    assert main(["entity", "list"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("the Postgres dsn can't be used (")
    assert errors.endswith("see TIDEMARK_POSTGRES_DSN\n")
    assert "canary" not in errors


def test_validate_loads_no_client_library(folder: Path) -> None:
    code = (
        "import sys; from services.cli.__main__ import main\n"
        f"assert main(['validate', '--entities', {str(folder)!r}, '--without-environment']) == 0\n"
        "clients = 'aiokafka', 'aioboto3', 'botocore', 'asyncpg', 'httpx', 'aiohttp', 'polars'\n"
        "print([name for name in clients if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )

    assert found.stdout.splitlines()[-1] == "[]"


def test_columns_are_aligned_and_lines_end_with_their_text() -> None:
    assert aligned([["a", "1"], ["bbb", "22"]], ("NAME", "N"), right=frozenset({1})) == [
        "NAME   N",
        "a      1",
        "bbb   22",
    ]
    assert aligned([["a", ""]]) == ["a"]
    assert aligned([], ("NAME",)) == []


def test_times_are_readable() -> None:
    assert moment(1_767_225_600_000_001) == "2026-01-01 00:00:00Z"
    assert (moment(0), moment(None)) == ("beginning", "-")
    assert iso(1_767_225_600_000_001) == "2026-01-01T00:00:00.000001Z"
    assert [span(s) for s in (0, 59, 61, 3_600, 90_061, -5)] == ["0 s", "59 s", "1 min 1 s", "1 h", "1 d 1 h", "0 s"]


def test_text_from_outside_cannot_move_the_cursor_of_a_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"


def test_the_screen_shows_what_is_paused_what_waits_and_what_is_unknown() -> None:
    lines = [
        Line(
            entity="accounts",
            state="paused",
            paused_reason="too_many_invalid\x1b",
            paused_by="poller-1",
            cursor_us=1_767_225_600_000_000,
            owner="ledger",
            partitions=[Partition(0, 0, 10, 7), Partition(1, 5, 20, 5)],
            parked={Reason.INVALID: 3, Reason.KAFKA_UNKNOWN: 1},
        ),
        Line(entity="payments", state="?", owner="ledger"),
    ]
    screen = render(lines, [Problem("postgres", 3, "Postgres does not answer")], 1_767_225_605.0)

    assert " ".join(screen[1].split()) == "accounts paused - 2026-01-01 00:00:00Z 5 s - - 30 12 18 4"
    assert screen[2].split() == ["payments", "?", *["-"] * 9]
    assert "accounts  too_many_invalid\N{REPLACEMENT CHARACTER}  by poller-1" in screen
    assert "accounts  invalid             3  ledger" in screen
    assert screen[-1] == "postgres: Postgres does not answer"
