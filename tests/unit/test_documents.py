"""Links, anchors and commands of every document, and the references that are written from the code."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.configuration_reference import FILE, GROUPS, PROCESSES, anchor, missing, written
from services.delta_loader.__main__ import parser as loader_parser
from tests.unit.test_readmes import EXAMPLES, FENCED, READMES, ROOT, TEXT_OF_CODE

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.M)
ELSEWHERE = ("http://", "https://", "mailto:")
LOADER = re.compile(r"^(?:spark-submit .*services/delta_loader/__main__\.py|python3? -m services\.delta_loader) (.+)$")
SERVICE = re.compile(r"^python3? -m services\.(\w+)(?: (.*))?$")
WITHOUT_ARGUMENTS = frozenset({"poller_producer", "s3_sink", "dynamo_retrier", "stale_notifier"})
VERBS = "get|put|head|create|list|delete|describe|batch|update|query|scan"
CALL = re.compile(rf'(?:(?:call|_try)\(\s*"|client\.)((?:{VERBS})\w*)["(]')
"""Of AWS: by our own wrappers, or on a client itself."""
RIGHTS = {
    "HeadBucket": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "HeadObject": "GetObject",
    "DeleteObjects": "DeleteObject",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "BatchExecuteStatement": "PartiQLUpdate",
}
"""Calls whose right has another name."""


def anchors(text: str) -> set[str]:
    """Of all headings, as GitHub makes them: a repeated one is numbered."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(FENCED.sub("", text)):
        name = anchor(LINK.sub("]", heading).replace("`", ""))
        found[name] = found.get(name, -1) + 1
    return {name if number == 0 else f"{name}-{number}" for name, last in found.items() for number in range(last + 1)}


def broken_links(file: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(TEXT_OF_CODE.sub("", FENCED.sub("", text))):
        if link.startswith(ELSEWHERE):
            continue
        path, _, wanted = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if path and not (target.exists() and target.is_relative_to(ROOT)):
            yield f"{link}: no such file"
        elif wanted and wanted not in anchors(text if target == file else target.read_text()):
            yield f"{link}: no such heading"


def commands(text: str) -> Iterator[str]:
    yield from TEXT_OF_CODE.findall(FENCED.sub("", text))
    for _, block in FENCED.findall(text):
        yield from (re.split(r" {2,}|\s#", line.strip())[0] for line in block.splitlines())


def refused(command: str) -> str:
    """Why the loader, or a service without arguments, does not take it; ``""``: it does, or it is none of these."""
    if (started := SERVICE.match(command)) and started[1] in WITHOUT_ARGUMENTS:
        return f"{command}: takes no arguments" if started[2] else ""
    typed = LOADER.match(command)
    if typed is None:
        return ""
    words = re.sub(r"…|\.\.\.", " ", typed[1]).replace("[", " ").replace("]", " ")
    words = words.replace("CHAIN:START-END", "cdc.x/1/0:0-9")
    words = re.sub(r"\b[A-Z][A-Z_]*\b", lambda found: EXAMPLES.get(found[0], "x"), words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            loader_parser().parse_args(shlex.split(words))
    except SystemExit:
        return f"{command}: {said.getvalue().strip().splitlines()[-1]}"
    return ""


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading_that_are_there(file: Path) -> None:
    assert list(broken_links(file, file.read_text())) == []


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_of_the_services_are_understood(file: Path) -> None:
    assert [said for command in commands(file.read_text()) if (said := refused(command))] == []


def test_a_broken_link_is_found() -> None:
    text = "# Here it is\n[a](#here-it-is) [b](#there) [c](nowhere.md) [e](README.md#licence)"

    assert list(broken_links(ROOT / "NOTES.md", text)) == ["#there: no such heading", "nowhere.md: no such file"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("python -m services.delta_loader batch ENTITY --full-refresch", "unrecognized arguments"),
        ("python -m services.delta_loader btach", "invalid choice"),
        ("python -m services.delta_loader batch ENTITY --range 1-2", "--range"),
        ("python -m services.s3_sink --once", "takes no arguments"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, complaint: str) -> None:
    assert complaint in refused(command)


def test_commands_are_found_where_they_stand() -> None:
    found = {command for file in READMES for command in commands(file.read_text())}

    assert sum(LOADER.match(command) is not None for command in found) >= 8
    assert "python -m services.delta_loader batch ENTITY --full-refresh" in found


def test_every_variable_has_a_line() -> None:
    assert missing() == [], "say in one line what it is for: under its field, or in deploy/configuration_reference.py"


def test_the_configuration_reference_is_what_the_code_says() -> None:
    assert FILE.read_text() == written(), "write it anew: python -m deploy.configuration_reference"


def test_every_process_and_group_has_its_section() -> None:
    named = anchors(written())

    assert {anchor(title) for title in (*(one.name for one in PROCESSES), *(one.title for one in GROUPS))} <= named


def test_the_security_guide_names_the_right_of_every_call_to_aws() -> None:
    sources = [file.read_text() for part in ("services", "shared") for file in (ROOT / part).rglob("*.py")]
    names = {name for text in sources for name in CALL.findall(text)} - {"get"}  # HTTP's
    operations = {"".join(word.capitalize() for word in name.split("_")) for name in names}
    guide = (ROOT / "deploy" / "SECURITY.md").read_text()

    assert len(operations) >= 20
    assert [name for name in sorted(operations) if not re.search(rf"\b{RIGHTS.get(name, name)}\b", guide)] == []
