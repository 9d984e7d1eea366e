"""What the READMEs and our own messages tell people to type and to write is what the code takes."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from deploy.entity_reference import END, README, missing, renewed
from services.cli.arguments import parser
from services.cli.parked_arguments import STATES
from shared.entities import load_entities

ROOT = Path(__file__).parents[2]
READMES = sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
SOURCES = sorted(path for part in ("services", "shared", "deploy") for path in (ROOT / part).rglob("*.py"))
TEXT_OF_CODE = re.compile(r"`([^`\n]+)`")
VERBS = re.compile(r"`tidemark (\w+) [^`]*`((?: · `[^`]+`)+)")
"""`tidemark entity list` · `pause ENTITY`: the group stands once."""
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
EXAMPLES = {
    "COMMAND": "status",
    "FILTER": "--entity payments",
    "CHECK": "kafka",
    "TIME": "2026-01-31T00:00:00Z",
    "D": "2026-01-31",
    "DAY": "2026-01-31",
    "AGE": "7d",
    "N": "5",
    "GROUP": "0123456789abcdef",
    **{state: state for state in STATES},
}
"""For what stands in capitals; all else is a word of its own."""
SCHEMA = """{"type": "record", "name": "Row", "fields": [{"name": "id", "type": "string"},
    {"name": "op", "type": "string"}, {"name": "updated_at", "type": "string"}]}"""


def commands() -> Iterator[tuple[str, str]]:
    """(where, `tidemark …` as it is written), of every README and every message."""
    for file in READMES:
        text = file.read_text()
        spans = [*TEXT_OF_CODE.findall(FENCED.sub("", text)), *_lines(text)]
        for group, verbs in VERBS.findall(text):
            spans += [f"tidemark {group} {verb}" for verb in TEXT_OF_CODE.findall(verbs)]
        yield from ((file.relative_to(ROOT).as_posix(), span) for span in spans if _is_command(span))
    for file in SOURCES:
        found = [span for span in TEXT_OF_CODE.findall(file.read_text()) if _is_command(span)]
        yield from ((file.relative_to(ROOT).as_posix(), span) for span in found)


def _lines(text: str) -> Iterator[str]:
    for _, block in FENCED.findall(text):
        yield from (line.split(" #")[0].strip() for line in block.splitlines())


def _is_command(span: str) -> bool:
    return re.match(r"(\./deploy/local/)?tidemark( |$)", span) is not None and not re.search(r"(…|\.\.\.) *\S", span)


def readings(span: str) -> Iterator[list[str]]:
    """What ``tidemark a [--b] x|y …`` stands for: with all that is optional, in each of its alternatives."""
    typed = re.sub(r"^\S*tidemark", "", span).replace("[", " ").replace("]", " ")
    typed = re.sub(r"\{[^}]*\}", "X", typed)  # of an f-string
    typed = re.sub(r"\b[A-Z][A-Z_]*\b", lambda found: EXAMPLES.get(found[0], "x"), typed)
    words = [word.split("|") for word in shlex.split(re.sub(r"…|\.\.\.", " ", typed))]
    for chosen in product(*words):
        yield [word for word in chosen if word]


@pytest.mark.parametrize(("where", "span"), sorted(set(commands())))
def test_every_command_that_people_are_told_to_type_is_understood(
    where: str, span: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in readings(span):
        said = refusal(words, capsys)
        if said and not any(word.startswith("--") for word in words):  # its name alone
            said = refusal([*words, "--help"], capsys)
        assert not said, f"{where}: `{span}` is refused: {said}"


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser says; ``""``: it takes them."""
    try:
        parser({}).parse_args(words)
    except SystemExit as end:
        said = capsys.readouterr().err.strip().splitlines()
        return "" if end.code == 0 else said[-1]
    return ""


def test_commands_are_found_where_they_stand() -> None:
    found = {span for _, span in commands()}

    assert {"tidemark status", "./deploy/local/tidemark …", "tidemark parked redrive --job ID"} <= found
    assert "tidemark entity pause ENTITY --reason WHY" in found
    assert list(readings("tidemark entity pause|resume ENTITY [--json]")) == [
        ["entity", "pause", "x", "--json"],
        ["entity", "resume", "x", "--json"],
    ]


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_readme_names_is_there(file: Path) -> None:
    """Scripts, modules to run, files that are linked or named by their path."""
    text = file.read_text()
    scripts = re.findall(r"(?<![\w/])\./(deploy/local/\w+)", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT_OF_CODE.sub("", text)) if "://" not in link]
    named = re.findall(r"`((?:services|shared|deploy|tests)/[\w./-]+)`", text)
    modules = re.findall(r"python3? -m ((?:services|deploy|tests)[\w.]*)", text)
    modules += [name.rstrip(".") for name in re.findall(r"`(services\.[\w.]+)`", text) if name.count(".") < 3]

    gone = [name for name in scripts + named if not (ROOT / name).exists()]
    gone += [link for link in linked if not (file.parent / link).exists()]
    gone += [name for name in modules if not _is_module(name)]
    assert gone == []


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("file", [file for file in READMES if "\n```yaml\n" in file.read_text()], ids=str)
def test_the_entity_files_in_a_readme_are_taken(file: Path, tmp_path: Path) -> None:
    for number, (language, block) in enumerate(FENCED.findall(file.read_text())):
        if language != "yaml":
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "all.yaml").write_text(block.replace("/run/secrets/", f"{folder}/"))
        for schema in re.findall(r"\S+\.avsc", block):
            (folder / schema).write_text(SCHEMA)
        for transform in re.findall(r"[\w.-]+\.sql", block):
            (folder / transform).write_text("SELECT * FROM events")
        (folder / "crm").write_text("secret")

        assert load_entities(folder).entities


def test_each_key_of_entity_files_is_explained_and_no_other() -> None:
    assert missing() == [], "say in one line what it is for: deploy/entity_reference.py"


def test_the_reference_of_entity_files_is_what_the_code_says() -> None:
    text = README.read_text()

    assert END in text
    assert renewed(text) == text, "write it anew: python -m deploy.entity_reference"
