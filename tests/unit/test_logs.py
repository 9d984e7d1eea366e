"""Log lines are JSON with stable names, and hold neither secrets nor field values."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_one_json_object_with_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("s3-sink", format="json")
    logs.get_logger("sink").info("object_written", records=3, key="raw/x")

    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "object_written",
        "level": "info",
        "service": "s3-sink",
        "module": "sink",
        "records": 3,
        "key": "raw/x",
    }


def test_a_logger_made_before_the_configuration_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.get_logger("early")
    logs.configure("x", format="json", level="warning")
    log.info("not_shown")
    log.warning("shown")

    assert [line["event"] for line in lines(capsys)] == ["shown"]


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "canary-7"},
        {"postgres_dsn": "canary-7"},
        {"headers": {"Authorization": "canary-7"}},
        {"request": {"deep": [{"api_key": "canary-7"}]}},
        {"lease": {"sasl_password_file": "canary-7"}},
        {"payload": {"iban": "canary-7"}},
        {"raw": b"canary-7"},
        {"anything": b"canary-7"},
        {"rows": ["canary-7"]},
        {"value": "canary-7"},
        {"url": "https://user:canary-7@bank.example/cdc"},
        {"why": "connect to postgres://u:canary-7@h/db failed"},
        {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": "canary-7"}}}}}}}},
    ],
)
def test_secrets_and_payloads_never_reach_stdout(capsys: pytest.CaptureFixture[str], fields: dict[str, Any]) -> None:
    for form in ("json", "text"):
        logs.configure("x", format=form)
        logs.get_logger("x").error("failed", **fields)

        out = capsys.readouterr().out
        assert "failed" in out
        assert "canary-7" not in out


def test_a_known_secret_is_hidden_wherever_it_turns_up(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("x", format="json")
    logs.hide("sesame-42")
    log = logs.get_logger("x")

    def authorise(secret: str) -> None:
        raise RuntimeError(f"refused: {secret}")

    try:
        authorise("sesame-42")
    except RuntimeError:
        log.exception("failed", detail="the key sesame-42 is refused")
    logging.getLogger("other").error("sesame-42")

    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "RuntimeError" in out
    assert "sesame-42" not in out


def test_a_traceback_holds_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("x", format="json")
    try:
        event = "canary" + "-8"
        raise KeyError(len(event))
    except KeyError:
        logs.get_logger("x").exception("failed")

    assert "canary-8" not in capsys.readouterr().out


def test_libraries_are_routed_and_their_chatter_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("x", format="json")
    logging.getLogger("botocore.endpoint").info("chatter")
    logging.getLogger("aiokafka.cluster").warning("lost %s", "broker 1")

    (line,) = lines(capsys)
    assert (line["event"], line["module"], line["message"]) == ("library_message", "aiokafka.cluster", "lost broker 1")


def test_libraries_are_no_louder_than_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("x", format="json", level="error")
    logging.getLogger("aiokafka").warning("lost")

    assert lines(capsys) == []


def test_long_texts_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("x", format="json")
    logs.get_logger("x").info("long", text="a" * 100_000, items=list(range(100_000)))

    assert len(capsys.readouterr().out) < 10_000


def test_a_closed_stdout_stops_nothing() -> None:
    stream = io.StringIO()
    logs.configure("test", format="json", stream=stream)
    stream.close()

    logs.get_logger("here").error("nobody_reads_this")
    logging.getLogger("library").error("nor this")
