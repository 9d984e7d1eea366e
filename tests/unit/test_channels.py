"""What each channel sends: golden payloads, its receiver's limits, and no value of any event."""

import asyncio
import base64
import json
from email import message_from_bytes, policy
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stale_notifier.channels import alertmanager, pagerduty, slack, smtp, sns, webhook
from services.stale_notifier.channels.guard import AddressRefused, Guard
from services.stale_notifier.disclosure import Disclosure
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, Kind, Notice
from shared.config import ConfigError
from shared.events.contract import compile_contract
from shared.events.identity import Identifier
from shared.events.model import EventRules, RejectedEvent
from shared.owners import AlertmanagerSettings, Secret, SmtpSettings, SnsSettings
from tests.fakes.notices import NOTICE, notice

GOLDEN = Path(__file__).parent / "golden"
TOPIC = "arn:aws:sns:us-east-1:000000000000:stale"
ALERTS = AlertmanagerSettings(name="am", url="https://am.example", labels={"team": "ledger"}, repost_s=60)
MAIL = SmtpSettings(name="mail", host="mail.example", sender="tidemark@bank.example", to=("a@x.example", "b@x.example"))
RESOLVED = notice(kind=Kind.RESOLVED, number=3, count=0)


def sent(channel: str, told: Notice) -> Any:
    match channel:
        case "slack":
            return slack.message(told)
        case "webhook":
            return json.loads(webhook.payload(told))
        case "sns":
            return sns.publication(told, TOPIC)
        case "pagerduty":
            return pagerduty.event(told, "R" * 32)
        case "alertmanager":
            return alertmanager.alert(told, ALERTS, told.at_ms)
        case "smtp":
            return smtp.mail(told, MAIL).as_bytes(policy=policy.default).decode("ascii")
    raise AssertionError(channel)


CHANNELS = ("slack", "webhook", "sns", "pagerduty", "alertmanager", "smtp")


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("told", [NOTICE, RESOLVED], ids=lambda told: str(told.kind))
def test_the_payload_is_the_golden_one(channel: str, told: Notice) -> None:
    """To renew: delete the file, run, read the difference."""
    file = GOLDEN / f"{channel}-{told.kind}.{'eml' if channel == 'smtp' else 'json'}"
    payload = sent(channel, told)
    written = payload if isinstance(payload, str) else json.dumps(payload, indent=2, ensure_ascii=False) + "\n"
    if not file.exists():
        file.write_text(written, encoding="utf-8")
        pytest.fail(f"{file.name} did not exist; it does now: read it")

    assert written == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_same_notice_gives_the_same_bytes(channel: str) -> None:
    assert json.dumps(sent(channel, notice())) == json.dumps(sent(channel, notice()))


# --- Slack

TEXTS = st.text(alphabet=st.sampled_from("&<>`*_!@|\n\u2028é𝄞a/"), max_size=400)


@given(TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=20))
@settings(max_examples=60)
def test_a_slack_message_keeps_within_the_limits_whatever_a_field_is_called(
    path: str, rule: str, samples: dict[str, str]
) -> None:
    message = slack.message(notice(path=path, rule=rule, samples=samples, evidence_uri=f"s3://{rule * 9}"))

    assert len(message["blocks"]) <= 50
    assert len(json.dumps(message, ensure_ascii=False)) <= slack.MESSAGE_CHARS_MAX
    for block in message["blocks"]:
        texts = block["elements"] if block["type"] == "context" else [block["text"]]
        most = {"header": 150, "section": 3_000, "context": 3_000}[block["type"]]
        assert all(1 <= len(element["text"]) <= most for element in texts)
        for element in texts:
            if element["type"] == "mrkdwn":
                bare = element["text"].replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
                assert not set("&<>") & set(bare)
                assert element["text"].count("`") % 2 == 0


def test_a_field_called_like_a_mention_calls_nobody() -> None:
    message = slack.message(notice(path="/<!channel>", rule="<@U1> & `co`"))

    written = json.dumps(message, ensure_ascii=False)
    assert "&lt;!channel&gt;" in message["text"]
    assert "`&lt;@U1&gt; &amp; ˋcoˋ`" in message["blocks"][1]["text"]["text"]
    assert "<!channel>" not in written.replace(message["blocks"][0]["text"]["text"], "")  # plain text is not parsed
    assert message["blocks"][0]["text"]["type"] == "plain_text"


def test_only_a_plain_link_is_a_link() -> None:
    def runbook(url: str) -> str:
        lines = slack.message(notice(runbook_url=url))["blocks"][1]["text"]["text"].split("\n")
        return next(str(line) for line in lines if "Runbook" in line)

    assert runbook("https://wiki.example/a?b=1&c=2") == "*Runbook:* <https://wiki.example/a?b=1&amp;c=2>"
    assert runbook("https://x.example|click>") == "*Runbook:* `https://x.example|click&gt;`"
    assert runbook("javascript:x") == "*Runbook:* `javascript:x`"


# --- Standard Webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signatures_are_those_of_the_standard_s_vector() -> None:
    headers = webhook.signed_headers(*VECTOR, [webhook.signing_key("hook", SECRET)])

    assert headers == {
        "webhook-id": VECTOR[0],
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_during_a_rotation_either_key_verifies() -> None:
    other = webhook.signing_key("hook", base64.b64encode(b"k" * 32).decode())

    both = webhook.signed_headers(*VECTOR, [other, webhook.signing_key("hook", SECRET)])["webhook-signature"].split(" ")

    assert len(both) == 2
    assert both[1] == SIGNATURE
    assert both[0] == webhook.signed_headers(*VECTOR, [other])["webhook-signature"]


def test_another_id_time_or_body_has_another_signature() -> None:
    key = [webhook.signing_key("hook", SECRET)]
    id_, at_s, body = VECTOR

    assert SIGNATURE not in {
        webhook.signed_headers("msg_x", at_s, body, key)["webhook-signature"],
        webhook.signed_headers(id_, at_s + 1, body, key)["webhook-signature"],
        webhook.signed_headers(id_, at_s, body + b" ", key)["webhook-signature"],
    }


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!!!", base64.b64encode(b"short").decode(), "é" * 40, SECRET + "!"]
)
def test_a_signing_secret_of_another_form_is_refused_unquoted(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        webhook.signing_key("hook", secret)

    assert "24 to 64 bytes" in str(caught.value)
    assert len(secret) < 8 or secret not in str(caught.value)


# --- SNS


@given(st.text(max_size=300))
@settings(max_examples=50)
def test_an_sns_subject_is_short_ascii(path: str) -> None:
    subject = sns.subject(notice(path=path, entity="comptes_é"))

    assert subject.isascii()
    assert subject.isprintable()
    assert 1 <= len(subject) <= 99
    assert subject[0].isalnum()


@given(st.dictionaries(st.text(), st.text(), max_size=12))
@settings(max_examples=30)
def test_an_sns_message_is_far_below_256_kb_and_has_no_empty_attribute(samples: dict[str, str]) -> None:
    parameters = sns.publication(notice(samples=samples, owner=""), TOPIC)

    size = len(json.dumps(parameters, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    assert size < 256 * 1024
    assert len(parameters["MessageAttributes"]) <= 10
    assert all(attribute["StringValue"] for attribute in parameters["MessageAttributes"].values())


def test_a_fifo_topic_gets_the_group_and_the_notice_s_id() -> None:
    first = sns.publication(NOTICE, f"{TOPIC}.fifo")
    second = sns.publication(notice(number=2), f"{TOPIC}.fifo")

    assert first["MessageGroupId"] == second["MessageGroupId"]
    assert first["MessageDeduplicationId"] == NOTICE.notice_id != second["MessageDeduplicationId"]


# --- PagerDuty and Alertmanager


def test_pagerduty_triggers_and_resolves_one_incident() -> None:
    triggered, resolved = pagerduty.event(NOTICE, "R"), pagerduty.event(RESOLVED, "R")

    assert (triggered["event_action"], resolved["event_action"]) == ("trigger", "resolve")
    assert triggered["dedup_key"] == resolved["dedup_key"]
    assert len(triggered["payload"]["summary"]) <= 1_024
    assert pagerduty.event(notice(kind=Kind.ESCALATION), "R")["payload"]["severity"] == "critical"


def test_an_alert_keeps_its_labels_from_the_first_notice_to_the_last() -> None:
    labels = [alertmanager.alert(notice(kind=kind, number=n), ALERTS, 0)["labels"] for n, kind in enumerate(Kind)]

    assert all(each == labels[0] for each in labels)
    assert labels[0]["team"] == "ledger"


def test_an_alert_ends_ahead_of_its_post_until_it_is_resolved() -> None:
    posted_ms = NOTICE.at_ms + 3_600_000

    assert alertmanager.alert(NOTICE, ALERTS, posted_ms)["endsAt"] == "2026-01-01T02:05:00Z"
    assert alertmanager.alert(RESOLVED, ALERTS, posted_ms)["endsAt"] == "2026-01-01T01:01:00Z"


# --- mail


def test_a_mail_is_the_same_bytes_each_time_and_a_group_is_one_thread() -> None:
    first, again, later = (smtp.mail(told, MAIL) for told in (NOTICE, notice(), notice(kind=Kind.GROWN, number=2)))

    assert first.as_bytes() == again.as_bytes()
    assert first["Message-ID"] == f"<{NOTICE.notice_id}@bank.example>"
    assert first["References"] == later["References"]
    assert first["Message-ID"] != later["Message-ID"]


@given(st.text(max_size=300))
@settings(max_examples=30)
def test_nothing_that_a_field_is_called_becomes_a_header(path: str) -> None:
    written = smtp.mail(notice(path=f"\r\nBcc: x@y.example\r\n\r\n{path}"), MAIL).as_bytes(policy=policy.SMTP)

    headers = message_from_bytes(written, policy=policy.default)
    assert headers["Bcc"] is None
    assert max(map(len, written.split(b"\r\n"))) <= 998


# --- no value of any event

CANARY = "canary51ab"
SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "account",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "at", "type": "string"},
            {"name": "balance", "type": ["null", "double"], "default": None},
            {"name": "status", "type": {"type": "enum", "name": "status", "symbols": ["open", "shut"]}},
            {"name": "limits", "type": {"type": "map", "values": "long"}, "default": {}},
            {"name": "country", "type": "string", "public": True},
        ],
    }
)
GOOD = {"id": 1, "at": "2026-01-01T00:00:00Z", "status": "open", "country": "LU"}


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"balance": CANARY}, "/balance"),
        ({"balance": {CANARY: CANARY}}, "/balance"),
        ({"status": CANARY}, "/status"),
        ({"limits": {CANARY: CANARY}}, "/limits/*"),
        ({"limits": {"a": CANARY}, "at": "2026-01-01T00:00:01Z"}, "/limits/*"),
        ({"country": 5, "status": "open", "limits": {CANARY: 1}}, "/country"),
    ],
)
def test_a_canary_in_a_refused_event_is_in_no_notice_of_any_channel(wrong: dict[str, Any], path: str) -> None:
    rules = EventRules(entity="accounts", key=("id",), updated_at="at")
    raw = json.dumps(GOOD | wrong).encode()
    (refused,) = compile_contract(rules, SCHEMA, "s", 1).encode(Identifier(rules).identify([raw]))
    assert isinstance(refused, RejectedEvent)
    disclosure = Disclosure(SCHEMA)

    told = notice(path=disclosure.path(refused.path), rule=refused.detail, samples=disclosure.samples(raw))

    assert told.path == path
    assert CANARY in raw.decode()
    for channel in CHANNELS:
        assert CANARY not in json.dumps(sent(channel, told), ensure_ascii=False)


# --- what SNS answers


class RefusingSns:
    """A client whose every call ends with this error, as botocore raises it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def publish(self, **_parameters: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        raise self._error


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (ClientError({"Error": {"Code": "NotFound"}}, "Publish"), True),
        (ClientError({"Error": {"Code": "AuthorizationError"}}, "Publish"), True),
        (ClientError({"Error": {"Code": "InvalidParameter"}}, "Publish"), False),
        (ClientError({"Error": {"Code": "Throttling"}}, "Publish"), None),
        (ClientError({"Error": {"Code": "InternalError"}}, "Publish"), None),
        (ClientError({"Error": {"Code": "ExpiredToken"}}, "Publish"), None),
        (ClientError({}, "Publish"), None),
        (EndpointConnectionError(endpoint_url="https://sns.example"), None),
        (TimeoutError(), None),
    ],
)
async def test_only_what_sns_refuses_for_good_is_refused(error: Exception, permanent: bool | None) -> None:
    channel = sns.Sns(SnsSettings(name="topic", topic_arn=TOPIC), RefusingSns(error))

    with pytest.raises(ChannelUnavailable if permanent is None else ChannelRefused) as caught:
        await channel.send(NOTICE)

    assert getattr(caught.value, "permanent", None) is permanent


# --- where nothing may be sent


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "168.63.129.16",
        "192.0.0.192",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
def test_a_name_that_leads_to_link_local_metadata_or_loopback_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match="allow_addresses"):
        Guard().passed("hook.example", [ip_address(address)])


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "93.184.216.34", "2606:2800:220:1::1", "fd12:3456::1"])
def test_other_addresses_pass_private_ones_too(address: str) -> None:
    assert Guard().passed("hook.example", [ip_address(address)]) == [ip_address(address)]


def test_of_several_addresses_only_the_good_ones_are_kept() -> None:
    good, bad = ip_address("93.184.216.34"), ip_address("169.254.169.254")

    assert Guard().passed("hook.example", [bad, good]) == [good]


def test_what_is_listed_may_be_reached_and_no_more() -> None:
    guard = Guard(["169.254.1.0/24", "fe80::/64"])

    assert guard.passed("hook.example", [ip_address("169.254.1.9"), ip_address("fe80::9")])
    with pytest.raises(AddressRefused):
        guard.passed("hook.example", [ip_address("169.254.2.9")])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "hook.example"])
def test_loopback_may_be_reached_by_its_own_name(host: str) -> None:
    Guard().check_host(host)


@pytest.mark.parametrize("host", ["2852039166", "0169.254.169.254", "169.254.43518", "169.254.169.254", "fe80::1%eth0"])
def test_an_address_in_disguise_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        Guard().check_host(host)


def test_a_secret_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "one")
    secret = Secret(env="HOOK_SECRET")
    before = secret.read()
    monkeypatch.setenv("HOOK_SECRET", "two")

    assert (before, secret.read()) == ("one", "two")
