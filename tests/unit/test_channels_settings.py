"""Channels in the entity folder: every kind can be written, everything wrong is named by file and line."""

import json
from pathlib import Path

import pytest

from shared.config import ConfigError
from shared.entities import Entities, load_entities
from shared.owners import (
    AlertmanagerSettings,
    PagerDutySettings,
    Secret,
    SlackSettings,
    SmtpSettings,
    SnsSettings,
    WebhookSettings,
)

ENTITY = """sources: {bank: {url: "https://bank.example/cdc"}}
entities:
  accounts: {source: bank, key: id, updated_at: at, schema: accounts.avsc, owner: ledger}
"""
FIELDS = [{"name": "id", "type": "long"}, {"name": "at", "type": "string"}]
ALL = """owners:
  ledger:
    contact: "#ledger"
    channels:
      - {kind: slack, url_env: SLACK_URL}
      - {kind: webhook, url: "https://hook.example/x", secret_file: key, old_secret_env: OLD, timeout_s: 5}
      - {kind: sns, topic_arn: "arn:aws:sns:eu-west-1:123456789012:stale"}
      - {kind: smtp, host: mail.example, sender: t@bank.example, to: [a@x.example], user: t, password_file: key}
      - {kind: pagerduty, key_env: PD_KEY, escalate_after_h: 4}
      - kind: alertmanager
        url: http://127.0.0.1:9093
        secret_env: AM_TOKEN
        auth_prefix: "Bearer "
        labels: {team: ledger}
        allow_addresses: [169.254.1.0/24]
"""


def loaded(path: Path, owners: str, entity: str = ENTITY) -> Entities:
    (path / "accounts.avsc").write_text(json.dumps({"type": "record", "name": "account", "fields": FIELDS}))
    (path / "e.yaml").write_text(entity)
    (path / "o.yaml").write_text(owners)
    return load_entities(path, environ={})


def problems_of(path: Path, owners: str, entity: str = ENTITY) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(path, owners, entity)
    return [problem.removeprefix(f"{path}/") for problem in caught.value.problems]


def channel_problems(path: Path, channel: str) -> list[str]:
    return problems_of(path, f"owners:\n  ledger:\n    channels:\n      - {{{channel}}}\n")


def test_all_kinds_of_channels_in_the_order_of_trying(tmp_path: Path) -> None:
    owner = loaded(tmp_path, ALL).entities["accounts"].owner

    assert owner.channels == (
        SlackSettings(name="slack", url=Secret(env="SLACK_URL")),
        WebhookSettings(
            name="webhook",
            url="https://hook.example/x",
            secret=Secret(file=str(tmp_path / "key")),
            old_secret=Secret(env="OLD"),
            timeout_s=5,
        ),
        SnsSettings(name="sns", topic_arn="arn:aws:sns:eu-west-1:123456789012:stale"),
        SmtpSettings(
            name="smtp",
            host="mail.example",
            sender="t@bank.example",
            to=("a@x.example",),
            user="t",
            password=Secret(file=str(tmp_path / "key")),
        ),
        PagerDutySettings(name="pagerduty", key=Secret(env="PD_KEY"), escalate_after_h=4),
        AlertmanagerSettings(
            name="alertmanager",
            url="http://127.0.0.1:9093",
            secret=Secret(env="AM_TOKEN"),
            auth_prefix="Bearer ",
            labels={"team": "ledger"},
            allow_addresses=("169.254.1.0/24",),
        ),
    )


@pytest.mark.parametrize(
    ("channel", "says"),
    [
        ("kind: slak, url_env: SLACK_URL", "kind: expected one of slack, webhook"),
        ("url_env: SLACK_URL", "kind: expected one of"),
        ("kind: slack", "expected one of 'url_env' (a variable's name) and 'url_file'"),
        ("kind: slack, url: 'https://hooks.example/secret'", "unknown key 'url'"),
        ("kind: slack, url_env: SLACK_URL, url_file: key", "url: given twice; keep one"),
        ("kind: webhook, url: 'http://hook.example', secret_file: key", "url: http:// sends in the clear"),
        ("kind: webhook, url: 'https://u:p@hook.example', secret_file: key", "url: holds a user or password"),
        ("kind: webhook, url: 'ftp://hook.example', secret_file: key", "url: expected https://host"),
        ("kind: webhook, secret_file: key", "expected one of 'url', 'url_env' and 'url_file'"),
        ("kind: webhook, url: 'https://hook.example'", "expected one of 'secret_env'"),
        ("kind: sns, topic_arn: stale", "topic_arn: expected text that matches"),
        ("kind: smtp, host: m.example, sender: t@x.example, to: []", "to: expected a list"),
        ('kind: smtp, host: m.example, sender: "t@x.example\\r\\n", to: [a@x.example]', "sender: expected text"),
        ("kind: smtp, host: m.example, sender: t@x.example, to: [a@x.example], user: t", "go together"),
        ("kind: smtp, host: m.example, sender: t@x.example, to: [a@x.example], tls: none", "only for a server on this"),
        ("kind: pagerduty", "expected one of 'key_env'"),
        ("kind: pagerduty, key_env: PD_KEY, escalate_after_h: 0", "escalate_after_h: expected a number, above 0"),
        ("kind: slack, url_env: SLACK_URL, escalate_after_h: 4", "one must be told at once"),
        ("kind: slack, url_env: SLACK_URL, allow_addresses: [all]", "allow_addresses: expected a network"),
        ("kind: slack, url_env: SLACK_URL, name: 'a b'", "name: expected to match"),
    ],
)
def test_a_wrong_channel_is_refused_in_words(tmp_path: Path, channel: str, says: str) -> None:
    found = channel_problems(tmp_path, channel)

    assert all(problem.startswith("o.yaml:4: ") for problem in found)
    assert sum(says in problem for problem in found) == 1
    assert "hooks.example/secret" not in "".join(found)


def test_two_channels_of_one_kind_need_names(tmp_path: Path) -> None:
    slack = "      - {kind: slack, url_env: SLACK_URL%s}\n"
    two = f"owners:\n  ledger:\n    channels:\n{slack % ''}{slack}"

    assert problems_of(tmp_path, two % "") == ["o.yaml:5: a second channel 'slack'; give it a 'name'"]
    owner = loaded(tmp_path, two % ", name: slack-ops").owners["ledger"]
    assert [channel.name for channel in owner.channels] == ["slack", "slack-ops"]


def test_an_entity_without_owner_gets_the_default_owner(tmp_path: Path) -> None:
    ownerless = ENTITY.replace(", owner: ledger", "")

    found = loaded(tmp_path, ALL + "  platform: {}\ndefault_owner: platform\n", ownerless)

    assert found.entities["accounts"].owner.name == "platform"
    assert found.default_owner is not None
    assert found.default_owner.name == "platform"
    assert (
        loaded(tmp_path, ALL + "  platform: {}\ndefault_owner: platform\n").entities["accounts"].owner.name == "ledger"
    )


def test_an_entity_needs_an_owner_or_a_default_one(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, ALL, ENTITY.replace(", owner: ledger", ""))

    assert found == "e.yaml:3: 'owner' is missing; name one of 'owners:', or a 'default_owner:' for all"


def test_a_default_owner_must_be_defined_and_stand_once(tmp_path: Path) -> None:
    assert problems_of(tmp_path, ALL + "default_owner: ledgr\n") == [
        "o.yaml:16: default_owner 'ledgr' is not defined; did you mean 'ledger'?"
    ]
    twice = problems_of(tmp_path, ALL + "default_owner: ledger\n", ENTITY + "default_owner: ledger\n")
    assert twice == [f"o.yaml:16: default_owner stands twice (first in {tmp_path}/e.yaml:4)"]


def test_services_that_are_not_given_the_channels_secrets_read_the_folder_all_the_same(tmp_path: Path) -> None:
    channels = loaded(tmp_path, ALL).owners["ledger"].channels  # neither the variables nor the file are there

    assert len(channels) == 6
