"""Each channel against receivers that take, refuse, limit, hang, cut, or show a wrong certificate."""

import asyncio
import base64
import hashlib
import hmac
import io
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
import trustme

from deploy.local.stack import Stack
from services.stale_notifier.channels.opening import Route, open_channels
from services.stale_notifier.notice import Channel, ChannelRefused, ChannelUnavailable, Kind
from shared import logs
from shared.aws import open_client
from shared.config import ConfigError
from shared.owners import (
    AlertmanagerSettings,
    AnyChannelSettings,
    Owner,
    PagerDutySettings,
    Secret,
    SlackSettings,
    SmtpSettings,
    SnsSettings,
    WebhookSettings,
)
from tests.fakes.http_source import Reply
from tests.fakes.notices import NOTICE, HttpReceiver, MailReceiver, MailScript, notice

SECRETS = {
    "HOOK_SECRET": "whsec_" + base64.b64encode(b"new-secret-of-the-test-hook").decode(),
    "HOOK_OLD_SECRET": base64.b64encode(b"old-secret-of-the-test-hook").decode(),
    "PD_KEY": "0123456789abcdef0123456789abcdef",
    "AM_TOKEN": "token-of-the-alertmanager",
    "MAIL_PASSWORD": "password-of-the-mail",
}
HTTP_KINDS = ("slack", "webhook", "pagerduty", "alertmanager")
PATH = "/services/T0/B0/secret-path"


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


async def opened(exits: AsyncExitStack, settings: AnyChannelSettings) -> Channel:
    (route,) = (await open_channels([Owner(name="ledger", channels=(settings,))], exits))["ledger"]
    return route.channel


def settings_of(kind: str, url: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AnyChannelSettings:
    base: dict[str, Any] = {"name": kind, "timeout_s": 0.5} | changes
    whole = url.removesuffix("/cdc") + PATH
    match kind:
        case "slack":
            monkeypatch.setenv("SLACK_URL", whole)
            return SlackSettings(url=Secret(env="SLACK_URL"), **base)
        case "webhook":
            secret, old = Secret(env="HOOK_SECRET"), Secret(env="HOOK_OLD_SECRET")
            return WebhookSettings(url=whole, secret=secret, old_secret=old, **base)
        case "pagerduty":
            return PagerDutySettings(url=whole, key=Secret(env="PD_KEY"), **base)
        case "alertmanager":
            return AlertmanagerSettings(url=whole, secret=Secret(env="AM_TOKEN"), auth_prefix="Bearer ", **base)
    raise AssertionError(kind)


Open = Callable[..., Any]


@pytest.fixture
def open_http(exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> Open:
    async def open_(kind: str, url: str, **changes: Any) -> Channel:
        return await opened(exits, settings_of(kind, url, monkeypatch, **changes))

    return open_


async def unavailable(channel: Channel) -> ChannelUnavailable:
    with pytest.raises(ChannelUnavailable) as caught:
        await channel.send(NOTICE)
    assert_keeps_secrets(caught.value)
    return caught.value


async def refused(channel: Channel) -> ChannelRefused:
    with pytest.raises(ChannelRefused) as caught:
        await channel.send(NOTICE)
    assert_keeps_secrets(caught.value)
    return caught.value


def assert_keeps_secrets(error: BaseException) -> None:
    for secret in (*SECRETS.values(), "secret-path"):
        assert secret not in str(error)


# --- taken


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_what_is_taken_gives_a_receipt(open_http: Open, kind: str) -> None:
    async with HttpReceiver(Reply(b'{"status":"success","dedup_key":"its-own"}', status=202)) as receiver:
        channel = await open_http(kind, receiver.url)
        receipt = await channel.send(NOTICE)

    (posted,) = receiver.posted
    assert posted.path == PATH + ("/api/v2/alerts" if kind == "alertmanager" else "")
    assert posted.headers["content-type"] == "application/json"
    assert receipt.channel == kind
    assert receipt.dedup_key == NOTICE.dedup_key
    assert receipt.status == "202"
    assert abs(receipt.at_ms / 1000 - time.time()) < 60
    expected = {"pagerduty": "its-own", "alertmanager": NOTICE.dedup_key}.get(kind, NOTICE.notice_id)
    assert receipt.provider_id == expected
    assert "stale events" in json.dumps(json.loads(posted.body))


async def test_secrets_go_where_the_receivers_look_for_them(open_http: Open) -> None:
    async with HttpReceiver() as receiver:
        await (await open_http("alertmanager", receiver.url)).send(NOTICE)
        await (await open_http("pagerduty", receiver.url)).send(NOTICE)

    alert, event = receiver.posted
    assert alert.headers["authorization"] == "Bearer token-of-the-alertmanager"
    assert json.loads(event.body)["routing_key"] == SECRETS["PD_KEY"]


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"x" * 1_000_000, chunked=True),
        Reply(b"x" * 100, cut_after=250),
        Reply(b"ok", drip_s=0.2, drip_from=150),
        Reply(b"\xff{", headers={"content-type": "text/html"}),
    ],
    ids=["huge", "cut", "slow", "garbled"],
)
async def test_once_the_status_says_taken_the_body_changes_nothing(open_http: Open, kind: str, reply: Reply) -> None:
    async with HttpReceiver(reply) as receiver:
        receipt = await (await open_http(kind, receiver.url)).send(NOTICE)

    assert receipt.status == "200"


async def test_a_retried_webhook_has_the_same_id_and_body_and_verifies_with_either_key(open_http: Open) -> None:
    async with HttpReceiver(Reply(status=500), Reply(b"", status=204)) as receiver:
        channel = await open_http("webhook", receiver.url)
        await unavailable(channel)
        await channel.send(NOTICE)

    first, again = receiver.posted
    assert first.body == again.body
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == NOTICE.notice_id
    signed = f"{again.headers['webhook-id']}.{again.headers['webhook-timestamp']}.".encode() + again.body
    keys = (b"new-secret-of-the-test-hook", b"old-secret-of-the-test-hook")
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    assert again.headers["webhook-signature"] == " ".join(f"v1,{signature}" for signature in expected)
    assert abs(int(again.headers["webhook-timestamp"]) - time.time()) < 60


async def test_a_rotated_secret_is_used_from_the_next_notice_on(
    open_http: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with HttpReceiver() as receiver:
        channel = await open_http("pagerduty", receiver.url)
        monkeypatch.setenv("PD_KEY", "f" * 32)
        await channel.send(NOTICE)
        monkeypatch.delenv("PD_KEY")
        error = await unavailable(channel)

    assert json.loads(receiver.posted[0].body)["routing_key"] == "f" * 32
    assert "PD_KEY: not set" in str(error)
    assert len(receiver.posted) == 1


async def test_slack_gets_one_message_a_second(open_http: Open) -> None:
    async with HttpReceiver() as receiver:
        channel = await open_http("slack", receiver.url)
        started_s = time.monotonic()
        await asyncio.gather(channel.send(NOTICE), channel.send(notice(number=2)))

    assert time.monotonic() - started_s >= 0.95
    assert len(receiver.posted) == 2


async def test_owners_who_share_a_slack_channel_share_its_pace_and_its_rests(
    exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with HttpReceiver(Reply(status=429, headers={"retry-after": "60"})) as receiver:
        same = settings_of("slack", receiver.url, monkeypatch)
        routes = await open_channels([Owner(name=name, channels=(same,)) for name in ("a", "b")], exits)
        await unavailable(routes["a"][0].channel)
        await unavailable(routes["b"][0].channel)

    assert len(receiver.posted) == 1


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_no_proxy_of_the_environment_is_used(open_http: Open, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with HttpReceiver() as receiver:
        await (await open_http(kind, receiver.url)).send(NOTICE)

    assert len(receiver.posted) == 1


async def test_an_alert_is_posted_again_with_its_labels_and_a_later_end(open_http: Open) -> None:
    async with HttpReceiver() as receiver:
        channel = await open_http("alertmanager", receiver.url, repost_s=30)
        await channel.send(NOTICE)
        await channel.send(notice(kind=Kind.RESOLVED, number=2))

    (firing,), (resolved,) = (json.loads(posted.body) for posted in receiver.posted)
    assert channel.repost_s == 30
    assert firing["labels"] == resolved["labels"]
    ends_s = datetime.fromisoformat(firing["endsAt"]).timestamp()
    assert 110 < ends_s - time.time() <= 120
    assert datetime.fromisoformat(resolved["endsAt"]).timestamp() <= time.time()


# --- not now


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_retry_after_is_obeyed_in_full(open_http: Open, kind: str) -> None:
    async with HttpReceiver(Reply(status=429, headers={"retry-after": "37"}), Reply(b"ok")) as receiver:
        channel = await open_http(kind, receiver.url)
        first = await unavailable(channel)
        second = await unavailable(channel)

    assert first.retry_after_s == 37
    assert second.retry_after_s is not None
    assert 30 < second.retry_after_s <= 37
    assert len(receiver.posted) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_may_be_a_date_by_the_receiver_s_clock(open_http: Open, status: int) -> None:
    its_now = datetime(2031, 5, 1, 12, tzinfo=UTC)  # whatever ours says
    headers: dict[str, str | None] = {
        "date": format_datetime(its_now, usegmt=True),
        "retry-after": format_datetime(its_now + timedelta(minutes=5), usegmt=True),
    }
    async with HttpReceiver(Reply(status=status, headers=headers)) as receiver:
        error = await unavailable(await open_http("slack", receiver.url))

    assert error.retry_after_s == 300


@pytest.mark.parametrize("text", [None, "soon", "-5", "", "9" * 40])
async def test_a_429_without_a_readable_time_rests_nevertheless(open_http: Open, text: str | None) -> None:
    async with HttpReceiver(Reply(status=429, headers={"retry-after": text})) as receiver:
        error = await unavailable(await open_http("webhook", receiver.url))

    assert error.retry_after_s == 30


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("status", [500, 502, 503, 408])
async def test_a_receiver_s_trouble_passes(open_http: Open, kind: str, status: int) -> None:
    async with HttpReceiver(Reply(status=status)) as receiver:
        error = await unavailable(await open_http(kind, receiver.url))

    assert error.retry_after_s is None
    assert f"answers {status}" in str(error)


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    "reply",
    [Reply(hangs=True), Reply(drip_s=0.1, drip_from=9), Reply(b"x", cut_after=5), Reply(b"x", cut_after=0)],
    ids=["hangs", "drips", "cut", "closes"],
)
async def test_no_answer_is_waited_for_without_end(open_http: Open, kind: str, reply: Reply) -> None:
    async with HttpReceiver(reply) as receiver:
        channel = await open_http(kind, receiver.url, timeout_s=0.3)
        started_s = time.monotonic()
        error = await unavailable(channel)

    assert time.monotonic() - started_s < 3
    assert "no answer" in str(error)


async def test_a_receiver_that_is_not_there_is_not_asked_all_the_time(open_http: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/cdc"
    channel = await open_http("slack", url)

    error = await unavailable(channel)

    assert "can't be reached" in str(error)
    assert error.retry_after_s is not None


# --- refused


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    ("status", "permanent"), [(410, True), (404, True), (403, True), (401, True), (400, False), (413, False)]
)
async def test_a_refusal_says_whether_the_channel_or_the_notice_is_meant(
    open_http: Open, kind: str, status: int, permanent: bool
) -> None:
    async with HttpReceiver(Reply(b"invalid_blocks", status=status)) as receiver:
        error = await refused(await open_http(kind, receiver.url))

    assert error.permanent is permanent
    assert f"answers {status} (invalid_blocks)" in str(error)


async def test_what_the_receiver_says_is_told_without_secrets(open_http: Open) -> None:
    said = f"no such key {SECRETS['PD_KEY']}\nat you".encode()
    async with HttpReceiver(Reply(said, status=400)) as receiver:
        error = await refused(await open_http("pagerduty", receiver.url))

    assert "(no such key [hidden] at you)" in str(error)


async def test_a_redirect_is_not_followed(open_http: Open) -> None:
    async with HttpReceiver() as other, HttpReceiver(Reply(status=307, headers={"location": other.url})) as receiver:
        error = await refused(await open_http("webhook", receiver.url))

    assert error.permanent
    assert other.posted == []


# --- where nothing may be sent


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:a9fe:a9fe]", "2852039166", "0"])
async def test_metadata_services_are_not_posted_to(open_http: Open, kind: str, host: str) -> None:
    error = await refused(await open_http(kind, f"http://{host}", plain_http=True))

    assert error.permanent


def names(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """From now on ``hook.example`` is there."""
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **more: Any) -> Any:
        return real(address if host == "hook.example" else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_name_that_leads_to_this_machine_is_refused_unless_listed(
    open_http: Open, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names(monkeypatch, "127.0.0.1")
    async with HttpReceiver() as receiver:
        url = f"http://hook.example:{receiver.port}/cdc"
        error = await refused(await open_http(kind, url, plain_http=True))
        unasked = len(receiver.posted)
        await (await open_http(kind, url, plain_http=True, allow_addresses=("127.0.0.0/8",))).send(NOTICE)

    assert error.permanent
    assert unasked == 0
    assert len(receiver.posted) == 1


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200"])
async def test_a_name_that_leads_to_metadata_is_refused(
    open_http: Open, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    names(monkeypatch, address)

    error = await refused(await open_http("webhook", "https://hook.example"))

    assert "see allow_addresses" in str(error)


# --- certificates


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_receiver_with_a_trusted_certificate_is_told(
    open_http: Open, authority: trustme.CA, ca_file: str, kind: str
) -> None:
    async with HttpReceiver(tls=server_tls(authority, "127.0.0.1")) as receiver:
        await (await open_http(kind, receiver.url, ca_file=ca_file)).send(NOTICE)

    assert len(receiver.posted) == 1


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(("name", "known"), [("127.0.0.1", False), ("other.example", True)])
async def test_a_receiver_with_another_certificate_is_told_nothing(
    open_http: Open, authority: trustme.CA, ca_file: str, kind: str, name: str, known: bool
) -> None:
    async with HttpReceiver(tls=server_tls(authority, name)) as receiver:
        error = await unavailable(await open_http(kind, receiver.url, **({"ca_file": ca_file} if known else {})))

    assert "no trusted TLS connection" in str(error)
    assert receiver.posted == []


# --- mail


def mail_settings(receiver: MailReceiver, ca_file: str | None, **changes: Any) -> SmtpSettings:
    usual: dict[str, Any] = {"name": "mail", "host": "127.0.0.1", "port": receiver.port, "timeout_s": 0.5}
    usual |= {"sender": "t@bank.example", "to": ("a@x.example", "b@x.example"), "ca_file": ca_file}
    usual |= {"user": "tidemark", "password": Secret(env="MAIL_PASSWORD")}
    return SmtpSettings(**(usual | changes))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_mail_goes_out_over_tls_after_the_log_in(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str, tls: str
) -> None:
    async with MailReceiver(tls=server_tls(authority, "127.0.0.1"), implicit=tls == "implicit") as receiver:
        channel = await opened(exits, mail_settings(receiver, ca_file, tls=tls))
        receipt = await channel.send(NOTICE)

    (mail,) = receiver.mails
    message = message_from_bytes(mail.removesuffix(b".\r\n"), policy=policy.default)
    assert message["Message-ID"] == receipt.provider_id == f"<{NOTICE.notice_id}@bank.example>"
    assert "tidemark parked redrive --group" in message.get_body().get_content()  # type: ignore[union-attr]
    assert receiver.log_ins == [f"\0tidemark\0{SECRETS['MAIL_PASSWORD']}"]
    assert {"AUTH", "MAIL", "RCPT", "DATA"} <= set(receiver.in_tls)
    assert receipt.status == "250, 2 of 2 recipients"


async def test_a_repeated_mail_is_the_same_mail(exits: AsyncExitStack, authority: trustme.CA, ca_file: str) -> None:
    async with MailReceiver(tls=server_tls(authority, "127.0.0.1")) as receiver:
        channel = await opened(exits, mail_settings(receiver, ca_file))
        await channel.send(NOTICE)
        await channel.send(NOTICE)

    assert receiver.mails[0] == receiver.mails[1]


async def test_a_mail_server_on_this_machine_may_do_without_tls(exits: AsyncExitStack) -> None:
    async with MailReceiver() as receiver:
        channel = await opened(exits, mail_settings(receiver, None, tls="none", user=None, password=None))
        await channel.send(NOTICE)

    assert len(receiver.mails) == 1
    assert receiver.log_ins == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(("name", "known"), [("127.0.0.1", False), ("other.example", True)])
async def test_a_mail_server_with_another_certificate_gets_neither_password_nor_mail(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str, tls: str, name: str, known: bool
) -> None:
    async with MailReceiver(tls=server_tls(authority, name), implicit=tls == "implicit") as receiver:
        error = await unavailable(await opened(exits, mail_settings(receiver, ca_file if known else None, tls=tls)))

    assert "no trusted TLS connection" in str(error)
    assert (receiver.log_ins, receiver.mails) == ([], [])


async def test_a_mail_server_that_offers_no_starttls_gets_nothing(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str
) -> None:
    script = MailScript(offers=("AUTH PLAIN",))
    async with MailReceiver(script, tls=server_tls(authority, "127.0.0.1")) as receiver:
        error = await unavailable(await opened(exits, mail_settings(receiver, ca_file)))

    assert "nothing was sent" in str(error)
    assert "AUTH" not in receiver.commands
    assert receiver.mails == []


@pytest.mark.parametrize(
    ("answers", "permanent"),
    [
        ({"connect": "421 busy"}, None),
        ({"EHLO": "451 later", "HELO": "451 later"}, None),
        ({"MAIL": "452 full"}, None),
        ({".": "451 greylisted"}, None),
        ({"RCPT": "450 greylisted"}, None),
        ({"AUTH": "454 later"}, None),
        ({"AUTH": "535 wrong password"}, True),
        ({"MAIL": "550 not you"}, True),
        ({"RCPT": "550 nobody"}, True),
        ({"connect": "554 no mail here"}, True),
        ({".": "552 too large"}, False),
    ],
)
async def test_the_mail_server_s_code_says_what_is_meant(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str, answers: dict[str, str], permanent: bool | None
) -> None:
    async with MailReceiver(MailScript(answers), tls=server_tls(authority, "127.0.0.1")) as receiver:
        channel = await opened(exits, mail_settings(receiver, ca_file))
        error: ChannelUnavailable | ChannelRefused
        error = await (unavailable(channel) if permanent is None else refused(channel))

    assert getattr(error, "permanent", None) is permanent
    assert next(iter(answers.values()))[:3] in str(error)
    assert receiver.mails == []


async def test_one_good_recipient_is_enough(exits: AsyncExitStack, authority: trustme.CA, ca_file: str) -> None:
    script = MailScript({"RCPT TO:<A@X.EXAMPLE>": "550 nobody"})
    async with MailReceiver(script, tls=server_tls(authority, "127.0.0.1")) as receiver:
        receipt = await (await opened(exits, mail_settings(receiver, ca_file))).send(NOTICE)

    assert receipt.status == "250, 1 of 2 recipients"


@pytest.mark.parametrize(
    "script",
    [
        *(MailScript(hangs_at=at) for at in ("connect", "EHLO", "STARTTLS", "AUTH", "RCPT", "DATA", ".")),
        MailScript(drip_s=0.05),
    ],
    ids=lambda script: script.hangs_at or "drips",
)
async def test_a_mail_server_is_not_waited_for_without_end(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str, script: MailScript
) -> None:
    async with MailReceiver(script, tls=server_tls(authority, "127.0.0.1")) as receiver:
        channel = await opened(exits, mail_settings(receiver, ca_file, timeout_s=0.4))
        started_s = time.monotonic()
        await unavailable(channel)

    assert time.monotonic() - started_s < 3


async def test_a_mail_that_was_taken_is_delivered_though_the_goodbye_is_not_heard(
    exits: AsyncExitStack, authority: trustme.CA, ca_file: str
) -> None:
    script = MailScript(hangs_at="QUIT")
    async with MailReceiver(script, tls=server_tls(authority, "127.0.0.1")) as receiver:
        receipt = await (await opened(exits, mail_settings(receiver, ca_file))).send(NOTICE)

    assert receipt.status.startswith("250")
    assert len(receiver.mails) == 1


async def test_mail_does_not_go_to_a_metadata_service_either(
    exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, "169.254.169.254")
    settings = SmtpSettings(name="mail", host="hook.example", sender="t@bank.example", to=("a@x.example",))

    error = await refused(await opened(exits, settings))

    assert error.permanent


# --- SNS, on the stack


@pytest.fixture
async def topic(stack: Stack, exits: AsyncExitStack) -> AsyncIterator[tuple[str, Any, str]]:
    """A topic with a queue behind it: (topic arn, sqs client, queue url)."""
    sns, sqs = await open_client("sns", exits), await open_client("sqs", exits)
    name = f"stale-{uuid4().hex[:8]}"
    arn = (await sns.create_topic(Name=name))["TopicArn"]
    url = (await sqs.create_queue(QueueName=name))["QueueUrl"]
    attributes = await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    await sns.subscribe(
        TopicArn=arn,
        Protocol="sqs",
        Endpoint=attributes["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    yield arn, sqs, url
    await sns.delete_topic(TopicArn=arn)
    await sqs.delete_queue(QueueUrl=url)


async def test_a_topic_s_subscribers_get_the_notice_and_can_filter_it(
    exits: AsyncExitStack, topic: tuple[str, Any, str]
) -> None:
    arn, sqs, url = topic
    receipt = await (await opened(exits, SnsSettings(name="topic", topic_arn=arn))).send(NOTICE)

    got = await sqs.receive_message(QueueUrl=url, WaitTimeSeconds=10, MessageAttributeNames=["All"])
    (message,) = got["Messages"]
    assert "tidemark parked redrive --group" in message["Body"]
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert attributes["dedup_key"] == NOTICE.dedup_key
    assert (attributes["entity"], attributes["reason"], attributes["kind"]) == ("accounts", "invalid", "new")
    assert receipt.status == "200"
    assert receipt.provider_id


async def test_a_topic_that_is_gone_is_refused_for_good(exits: AsyncExitStack, topic: tuple[str, Any, str]) -> None:
    channel = await opened(exits, SnsSettings(name="topic", topic_arn=f"{topic[0]}-gone"))

    assert (await refused(channel)).permanent


async def test_a_topic_of_another_region_is_refused_at_start(stack: Stack, exits: AsyncExitStack) -> None:
    with pytest.raises(ConfigError, match="not in us-east-1"):
        await opened(exits, SnsSettings(name="topic", topic_arn="arn:aws:sns:eu-west-1:000000000000:stale"))


async def test_sns_that_can_t_be_reached_is_not_waited_for(
    stack: Stack, exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    channel = await opened(exits, SnsSettings(name="topic", topic_arn="arn:aws:sns:us-east-1:000000000000:stale"))

    await unavailable(channel)


# --- opening


async def test_routes_are_in_the_order_of_trying(exits: AsyncExitStack) -> None:
    first = PagerDutySettings(name="pagerduty", key=Secret(env="PD_KEY"))
    second = AlertmanagerSettings(name="alertmanager", url="http://localhost:9093", escalate_after_h=4)

    routes = await open_channels([Owner(name="ledger", channels=(first, second)), Owner(name="none")], exits)

    assert [(route.channel.name, route.escalate_after_s) for route in routes["ledger"]] == [
        ("pagerduty", None),
        ("alertmanager", 4 * 3600),
    ]
    assert routes["none"] == ()
    assert all(isinstance(route, Route) for route in routes["ledger"])


async def test_every_missing_secret_is_named_before_the_first_notice(
    exits: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_URL", "ftp://hooks.example/secret-path")
    monkeypatch.setenv("HOOK_SECRET", "tooshort")
    channels = (
        SlackSettings(name="slack", url=Secret(env="SLACK_URL")),
        WebhookSettings(name="webhook", url="https://hook.example", secret=Secret(env="HOOK_SECRET")),
        PagerDutySettings(name="pagerduty", key=Secret(env="NOT_SET")),
        AlertmanagerSettings(name="alertmanager", url="https://am.example", ca_file="/nowhere.pem"),
    )

    with pytest.raises(ConfigError) as caught:
        await open_channels([Owner(name="ledger", channels=channels)], exits)

    assert [problem.split(":")[1].strip() for problem in caught.value.problems] == [
        "channel slack",
        "channel webhook",
        "NOT_SET",
        "channel alertmanager",
    ]
    assert_keeps_secrets(caught.value)


@pytest.fixture
def restored_logs() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


async def test_neither_a_secret_nor_an_address_that_is_one_gets_into_the_logs(
    restored_logs: None, open_http: Open
) -> None:
    stream = io.StringIO()
    logs.configure("test", level="debug", format="json", stream=stream)
    async with HttpReceiver(Reply(status=404)) as receiver:
        for kind in HTTP_KINDS:
            error = await refused(await open_http(kind, receiver.url))
            logs.get_logger("test").error("channel_refused", why=str(error), exc_info=error)

    written = stream.getvalue()
    assert written.count("channel_refused") == len(HTTP_KINDS)
    for secret in (*SECRETS.values(), "secret-path"):
        assert secret not in written
