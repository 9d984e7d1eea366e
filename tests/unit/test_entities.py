"""The entity folder: five lines work, everything wrong is named at once by file and line."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import ConfigError
from shared.entities import Entities, Entity, Namespace, Source, load_entities, time_us

SCHEMA = {
    "type": "record",
    "name": "account",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "updated_at", "type": "string"},
        {"name": "note", "type": ["null", "string"]},
    ],
}
SOURCES = 'sources: {bank: {url: "https://bank.example/cdc"}}\n'
OWNERS = "owners: {ledger: {contact: '#ledger'}}\n"
FIVE_LINES = """entities:
  accounts:
    source: bank
    key: id
    updated_at: updated_at
    schema: accounts.avsc
    owner: ledger
"""


def folder_of(path: Path, **files: str) -> Path:
    (path / "accounts.avsc").write_text(json.dumps(SCHEMA))
    for name, text in files.items():
        (path / f"{name}.yaml").write_text(text)
    return path


def problems_of(path: Path, environ: dict[str, str] | None = None, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_entities(folder_of(path, **files), environ=environ)
    return [problem.removeprefix(f"{path}/") for problem in caught.value.problems]


def loaded(path: Path, **files: str) -> Entities:
    return load_entities(folder_of(path, **files))


def entity_with(path: Path, *lines: str, source: str = SOURCES) -> Entity:
    text = FIVE_LINES + "".join(f"    {line}\n" for line in lines)
    return loaded(path, a=text, s=source, o=OWNERS).entities["accounts"]


def entity_problems(path: Path, *lines: str, replacing: str = "") -> list[str]:
    kept = "".join(line + "\n" for line in FIVE_LINES.splitlines() if not replacing or replacing not in line)
    text = kept + "".join(f"    {line}\n" for line in lines)
    return problems_of(path, a=text, s=SOURCES, o=OWNERS)


def test_five_lines_make_a_working_entity_with_safe_defaults(tmp_path: Path) -> None:
    entity = entity_with(tmp_path)

    assert entity.topic == "cdc.accounts"
    assert entity.schema_subject == "cdc.accounts-value"
    assert entity.source_entity == "accounts"
    assert entity.source == Source(name="bank", url="https://bank.example/cdc")
    assert (entity.rules.key, entity.rules.updated_at, entity.rules.shows) == (("id",), "updated_at", "rows")
    assert (entity.window_s, entity.lookback_period_s, entity.lateness_cap_s, entity.cap_period_s) == (
        60,
        30,
        3600,
        600,
    )
    assert entity.schema_text is not None
    assert json.loads(entity.schema_text) == SCHEMA


def test_every_problem_is_named_at_once_by_file_and_line(tmp_path: Path) -> None:
    text = """entities:
  accounts:
    source: banc
    key: [id, missing]
    updated_at: {field: update_at}
    schema: accounts.avsc
    owner: nobody
    windw_s: 3
    poll_interval_s: 0
"""

    assert problems_of(tmp_path, a=text, s=SOURCES, o=OWNERS) == [
        "a.yaml:3: source 'banc' is not defined; did you mean 'bank'?",
        f"a.yaml:4: key field 'missing' is not in {tmp_path}/accounts.avsc; it must be, required and non-null",
        f"a.yaml:5: updated_at: field 'update_at' is not in {tmp_path}/accounts.avsc; did you mean 'updated_at'?",
        "a.yaml:7: owner 'nobody' is not defined; define it under 'owners:'",
        "a.yaml:8: unknown key 'windw_s'; did you mean 'window_s'?",
        "a.yaml:9: poll_interval_s: expected a number, above 0 and at most 31536000, got 0",
    ]


def test_missing_fields_are_all_named_with_what_to_write(tmp_path: Path) -> None:
    found = problems_of(tmp_path, a="entities:\n  accounts: {source: bank}\n", s=SOURCES, o=OWNERS)

    assert [problem.split(" is missing")[0] for problem in found] == [
        "a.yaml:2: 'key'",
        "a.yaml:2: 'owner'",
        "a.yaml:2: 'schema'",
        "a.yaml:2: 'updated_at'",
    ]
    assert found[3].endswith("or its field alone")


def test_a_key_that_may_be_null_is_refused(tmp_path: Path) -> None:
    (found,) = entity_problems(tmp_path, "key: note", replacing="key: id")

    assert "may be null" in found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("start_at: yesterday", "start_at: expected beginning, now or a time"),
        ("start_at: 2026-01-31T00:00:00", "start_at: expected beginning, now or a time"),
        ("records: events", "expected a JSON pointer"),
        ("page_rows: 100", "has no limit_param"),
        ("window_s: 7200", "above lateness_cap_s"),
        ("topic: 'a b'", "topic: expected text that matches"),
        ("op: operation", "op: field 'operation' is not in"),
        ("version: 3", "version: expected text"),
        ("shows: both", "shows: expected one of events, rows, got 'both'"),
        ("partitions: 1.5", "partitions: expected a whole number"),
        ("seen_bytes_max: '1 MB'", "seen_bytes_max: expected a whole number"),
    ],
)
def test_a_wrong_value_is_refused_in_words(tmp_path: Path, line: str, says: str) -> None:
    (found,) = entity_problems(tmp_path, line)

    assert found.startswith("a.yaml:8: ")
    assert says in found


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("schema: none.avsc", "paths are relative to the yaml file"),
        ("schema: {register: file}", "'file' is missing"),
        ("schema: broken.avsc", "broken.avsc:2 is no JSON"),
        ("schema: enum.avsc", "is no Avro record"),
        ("schema: {file: accounts.avsc, register: infer}", "expected one of file, require, got 'infer'"),
    ],
)
def test_a_wrong_schema_is_refused_in_words(tmp_path: Path, schema: str, says: str) -> None:
    (tmp_path / "broken.avsc").write_text("{\n  'a': 1}")
    (tmp_path / "enum.avsc").write_text('{"type": "enum", "name": "e", "symbols": ["A"]}')
    (found,) = entity_problems(tmp_path, schema, replacing="schema:")

    assert says in found


def test_a_schema_may_stand_in_the_registry_alone(tmp_path: Path) -> None:
    text = FIVE_LINES.replace("schema: accounts.avsc", "schema: {register: require, subject: theirs}")
    entity = loaded(tmp_path, a=text, s=SOURCES, o=OWNERS).entities["accounts"]

    assert (entity.schema_subject, entity.schema_text, entity.register) == ("theirs", None, "require")


def test_two_entities_on_one_topic_are_refused_also_where_kafka_would_confuse_them(tmp_path: Path) -> None:
    second = (
        "  other: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger, topic: %s}\n"
    )

    for topic in ("cdc.accounts", "cdc_accounts"):
        (found,) = problems_of(tmp_path, a=FIVE_LINES + second % topic, s=SOURCES, o=OWNERS)
        assert found.startswith(f"a.yaml:8: topic '{topic}' is that of entity 'accounts'")


def test_a_name_defined_twice_names_both_places(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, a=FIVE_LINES, b=SOURCES, c=SOURCES, o=OWNERS)

    assert found == f"c.yaml:1: 'bank' is defined twice (first in {tmp_path}/b.yaml:1)"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{}", "expected one of 'url' and 'url_env'"),
        ('{url: "https://u:p@bank.example/cdc"}', "holds a user or password"),
        ('{url: "http://bank.example/cdc"}', "plain_http"),
        ('{url: "https://bank.example/cdc?x=1"}', "expected no '?'"),
        ('{url: "ftp://bank.example/cdc"}', "expected https://"),
        ('{url: "https://bank.example:99999/cdc"}', "expected https://"),
        ("{url_env: BANK_URL}", "variable BANK_URL is not set"),
        ('{url: "https://b.example", auth: {value_env: KEY}}', "variable KEY is not set"),
        ('{url: "https://b.example", auth: {header: X}}', "expected one of 'value_env'"),
        ('{url: "https://b.example", auth: {value: hunter2}}', "unknown key 'value'"),
        ('{url: "https://b.example", auth: none.key}', "can't read the file"),
        ('{url: "https://b.example", ca_file: none.pem}', "can't read the file"),
    ],
)
def test_a_wrong_source_is_refused_in_words(tmp_path: Path, source: str, says: str) -> None:
    found = problems_of(tmp_path, {}, a=FIVE_LINES, s=f"sources: {{bank: {source}}}", o=OWNERS)

    assert any(problem.startswith("s.yaml:1: ") and says in problem for problem in found)
    assert not any("hunter2" in problem for problem in found)


def test_plain_http_to_this_machine_is_allowed(tmp_path: Path) -> None:
    for host in ("127.0.0.1:8080", "localhost", "[::1]:80"):
        entity = entity_with(tmp_path, source=f'sources: {{bank: {{url: "http://{host}/cdc"}}}}')
        assert host in entity.source.url


def test_a_secret_is_read_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("first-secret\n")
    source = 'sources: {bank: {url: "https://b.example", auth: {value_file: key, prefix: "Bearer "}}}'
    auth = entity_with(tmp_path, source=source).source.auth
    assert auth is not None
    assert auth.value() == "Bearer first-secret"

    (tmp_path / "key").write_text("second-secret")
    assert auth.value() == "Bearer second-secret"

    (tmp_path / "key").unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        auth.value()


def test_a_source_broken_in_two_places_is_named_twice(tmp_path: Path) -> None:
    source = 'sources: {bank: {url: "ftp://x", auth: {header: "a b", value_env: KEY}}}'
    found = problems_of(tmp_path, {}, a=FIVE_LINES, s=source, o=OWNERS)

    assert len(found) == 3


def test_the_environment_is_not_looked_at_unless_given(tmp_path: Path) -> None:
    entity = entity_with(tmp_path, source="sources: {bank: {url_env: BANK_URL, auth: {value_env: BANK_KEY}}}")

    assert entity.source.url == ""
    assert entity.source.url_env == "BANK_URL"


def test_times_are_given_by_field_format_and_offset(tmp_path: Path) -> None:
    text = FIVE_LINES.replace(
        "updated_at: updated_at", 'updated_at: {field: updated_at, utc_offset: "-03:30", granularity_us: 1000}'
    )
    rules = loaded(tmp_path, a=text, s=SOURCES, o=OWNERS).entities["accounts"].rules

    assert (rules.utc_offset_minutes, rules.granularity_us) == (-210, 1000)


def test_epoch_formats_bring_their_own_granularity(tmp_path: Path) -> None:
    text = FIVE_LINES.replace("updated_at: updated_at", "updated_at: {field: updated_at, format: epoch_ms}")
    rules = loaded(tmp_path, a=text, s=SOURCES, o=OWNERS).entities["accounts"].rules

    assert (rules.updated_at_format, rules.granularity_us) == ("epoch_ms", 1000)


def test_deletes_and_every_number_reach_the_entity(tmp_path: Path) -> None:
    entity = entity_with(
        tmp_path,
        "op: {field: note, delete: [no, 'D']}",
        "poll_interval_s: 0.25",
        "start_at: 2026-01-31T00:00:00Z",
        "pause: {events: 10, share_max: 0.5}",
        "depth_max: 9",
    )

    assert entity.rules.delete_ops == {"no", "D"}
    assert entity.rules.depth_max == 9
    assert entity.poll_interval_s == 0.25
    assert (entity.pause.events, entity.pause.share_max, entity.pause.invalid_max) == (10, 0.5, 50)
    assert entity.start_at_us(7) == 1_769_817_600_000_000


def test_start_at_is_resolved_when_the_cursor_is_made(tmp_path: Path) -> None:
    assert entity_with(tmp_path).start_at_us(77) == 0
    assert entity_with(tmp_path, "start_at: now").start_at_us(77) == 77


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("entities: [", 1, "not YAML"),
        ("\nentities: {a: {}, a: {}}", 2, "stands here twice"),
        ("entitys: {}", 1, "did you mean 'entities'?"),
        ("- a", 1, "expected a map with sources"),
        ("entities: 3", 1, "expected a map of names"),
        ("entities: {A B: {}}", 1, "expected to match"),
        ("entities: !!python/object:os.system {}", 1, "is not understood"),
        ("sources: {b: {url: !secret x}}", 1, "is not understood"),
        ("a: 1\n---\nb: 2", 2, "not YAML"),
        ("[" * 5_000, 1, "not YAML"),
        ("? [a]\n: b", 1, "a key must be text"),
    ],
)
def test_a_file_that_is_no_map_of_sections_is_refused_by_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    found = problems_of(tmp_path, x=text)

    assert any(problem.startswith(f"x.yaml:{line}: ") and says in problem for problem in found), found


def test_aliases_cannot_make_a_small_file_a_large_one(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 8)}]\n"

    assert any("split the file" in problem for problem in problems_of(tmp_path, x=bomb))


def test_a_file_with_the_other_ending_is_not_silently_skipped(tmp_path: Path) -> None:
    folder_of(tmp_path, a=FIVE_LINES, s=SOURCES, o=OWNERS)
    (tmp_path / "more.yml").write_text("entities: {}")

    with pytest.raises(ConfigError, match=r"rename it to \.yaml"):
        load_entities(tmp_path)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no entity in this folder"):
        load_entities(tmp_path)
    with pytest.raises(ConfigError, match="can't be read as a folder"):
        load_entities(tmp_path / "none")


def test_a_namespace_prefixes_every_name(tmp_path: Path) -> None:
    entities = load_entities(folder_of(tmp_path, a=FIVE_LINES, s=SOURCES, o=OWNERS), namespace="blue-1")
    entity = entities.entities["accounts"]
    space = entities.namespace

    assert entity.topic == "blue-1.cdc.accounts"
    assert entity.schema_subject == "blue-1.cdc.accounts-value"
    assert entities.topics == {"blue-1.cdc.accounts": entity}
    assert space.postgres_schema() == "blue_1_tidemark"
    assert (space.table(), space.group("s3-sink"), space.prefix("raw/")) == (
        "blue-1_tidemark_parked",
        "blue-1.s3-sink",
        "blue-1/raw/",
    )
    assert Namespace("").table() == "tidemark_parked"


def test_a_bad_namespace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected lower-case letters"):
        load_entities(tmp_path, namespace="a_b")


@given(st.datetimes(), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=50)
def test_times_survive_the_way_to_microseconds(local: datetime, offset_minutes: int) -> None:
    moment = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))

    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us(moment.isoformat())) == moment
