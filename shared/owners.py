"""Owners of entities and the channels through which they are told, as the entity folder names them::

    owners:
      ledger:
        contact: "#ledger"
        channels:
          - {kind: slack, url_env: LEDGER_SLACK_URL}
          - {kind: smtp, host: mail.example, sender: tidemark@bank.example, to: [ledger@bank.example]}
          - {kind: pagerduty, key_file: /run/secrets/pagerduty, escalate_after_h: 4}
    default_owner: ledger

The order is that of trying: the next one when the one before has failed or refused. Secrets (and addresses that are
secrets, as Slack's) are never values: ``…_env`` names a variable, ``…_file`` a file. They are not looked at here: every
service reads this folder, and only the notifier is given them.
"""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta, Struct, structs

from shared import logs
from shared.config import ConfigError, guess, read_secret
from shared.located_yaml import Located, Problems, read_form

CHANNELS_MAX = 10
_CHANNEL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")

Text = Annotated[str, Meta(min_length=1, max_length=2_000)]
Hours = Annotated[float, Meta(gt=0, le=8_760)]


class Secret(Struct, frozen=True, kw_only=True):
    """Where a secret stands. Read anew at each use, so that it can be rotated."""

    env: str | None = None
    file: str | None = None

    def read(self, environ: Mapping[str, str] = os.environ) -> str:
        """Logs hide it from now on. Raises ``ConfigError`` when it is gone."""
        if self.file is not None:
            return read_secret(self.file)
        assert self.env is not None
        secret = environ.get(self.env, "")
        if not secret:
            raise ConfigError([f"{self.env}: not set; it should hold a channel's secret"])
        logs.hide(secret)
        return secret


class ChannelSettings(Struct, frozen=True, kw_only=True):
    """What all kinds have."""

    name: str
    """Unique among its owner's channels; the kind where none is given."""
    escalate_after_h: float | None = None
    """Told only when the group has stood so long after its first notice, or when the channels before it fail."""
    allow_addresses: tuple[str, ...] = ()
    """Networks (CIDR) that are reached though they are link-local, metadata services' or loopback."""
    ca_file: str | None = None
    timeout_s: float = 10.0
    """Of connecting, and of each wait for an answer."""


class SlackSettings(ChannelSettings, frozen=True, kw_only=True):
    """An incoming webhook. Its url is a secret."""

    url: Secret
    plain_http: bool = False


class WebhookSettings(ChannelSettings, frozen=True, kw_only=True):
    """A receiver of Standard Webhooks."""

    url: str | Secret
    secret: Secret
    """``whsec_<base64>``"""
    old_secret: Secret | None = None
    """During a rotation messages are signed with both."""
    plain_http: bool = False


class SnsSettings(ChannelSettings, frozen=True, kw_only=True):
    topic_arn: str


class SmtpSettings(ChannelSettings, frozen=True, kw_only=True):
    host: str
    port: int = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    sender: str
    to: tuple[str, ...]
    user: str | None = None
    password: Secret | None = None


class PagerDutySettings(ChannelSettings, frozen=True, kw_only=True):
    key: Secret
    """The routing (integration) key."""
    url: str = "https://events.pagerduty.com/v2/enqueue"
    plain_http: bool = False


class AlertmanagerSettings(ChannelSettings, frozen=True, kw_only=True):
    url: str
    """Without ``/api/v2/alerts``."""
    secret: Secret | None = None
    """The value of ``auth_header``, after ``auth_prefix``."""
    auth_header: str = "Authorization"
    auth_prefix: str = ""
    labels: Mapping[str, str] = {}
    repost_s: float = 120.0
    """An alert that isn't posted again resolves by itself after four times that."""
    plain_http: bool = False


AnyChannelSettings: TypeAlias = (
    SlackSettings | WebhookSettings | SnsSettings | SmtpSettings | PagerDutySettings | AlertmanagerSettings
)


class Owner(Struct, frozen=True, kw_only=True):
    """Who answers for an entity's refused events."""

    name: str
    contact: str = ""
    """For people: a channel, an address."""
    channels: tuple[AnyChannelSettings, ...] = ()
    """In the order of trying."""


class _OwnerForm(Struct, kw_only=True):
    shorthand: ClassVar[str] = "contact"

    contact: str = ""
    channels: Annotated[list[dict[str, Any]], Meta(max_length=CHANNELS_MAX)] = []


class _ChannelForm(Struct, kw_only=True):
    kind: Literal["slack", "webhook", "sns", "smtp", "pagerduty", "alertmanager"]
    name: str | None = None
    escalate_after_h: Hours | None = None
    allow_addresses: Annotated[list[Text], Meta(max_length=20)] | None = None
    ca_file: Text | None = None
    timeout_s: Annotated[float, Meta(ge=0.1, le=60)] | None = None


class _SlackForm(_ChannelForm, kw_only=True):
    url_env: Text | None = None
    url_file: Text | None = None
    plain_http: bool | None = None


class _WebhookForm(_ChannelForm, kw_only=True):
    url: Text | None = None
    url_env: Text | None = None
    url_file: Text | None = None
    secret_env: Text | None = None
    secret_file: Text | None = None
    old_secret_env: Text | None = None
    old_secret_file: Text | None = None
    plain_http: bool | None = None


class _SnsForm(_ChannelForm, kw_only=True):
    topic_arn: Annotated[str, Meta(pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?$")]


_Address = Annotated[str, Meta(pattern=r"^[^@\s<>,;\x00-\x1f\x7f-\U0010ffff]+@[A-Za-z0-9.-]+$", max_length=254)]


class _SmtpForm(_ChannelForm, kw_only=True):
    host: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:_-]+$", max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    tls: Literal["starttls", "implicit", "none"] | None = None
    sender: _Address
    to: Annotated[list[_Address], Meta(min_length=1, max_length=50)]
    user: Text | None = None
    password_env: Text | None = None
    password_file: Text | None = None


class _PagerDutyForm(_ChannelForm, kw_only=True):
    key_env: Text | None = None
    key_file: Text | None = None
    url: Text | None = None
    plain_http: bool | None = None


class _AlertmanagerForm(_ChannelForm, kw_only=True):
    url: Text
    secret_env: Text | None = None
    secret_file: Text | None = None
    auth_header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")] | None = None
    auth_prefix: str | None = None
    labels: dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] | None = None
    repost_s: Annotated[float, Meta(ge=1, le=3_600)] | None = None
    plain_http: bool | None = None


_FORMS: Mapping[str, tuple[type[_ChannelForm], Callable[..., AnyChannelSettings]]] = {
    "slack": (_SlackForm, SlackSettings),
    "webhook": (_WebhookForm, WebhookSettings),
    "sns": (_SnsForm, SnsSettings),
    "smtp": (_SmtpForm, SmtpSettings),
    "pagerduty": (_PagerDutyForm, PagerDutySettings),
    "alertmanager": (_AlertmanagerForm, AlertmanagerSettings),
}
_SECRETS = {"slack": ("url",), "webhook": ("secret",), "pagerduty": ("key",)}
"""Secrets that a kind can't do without."""


def read_owner(name: str, node: Located, problems: Problems) -> Owner | None:
    """One owner of the folder; ``None`` with problems added."""
    if node.value is None:
        return Owner(name=name)
    before = len(problems)
    form = read_form(_OwnerForm, node, problems)
    if form is None or len(problems) > before:
        return None
    written = node.find("channels").value if form.channels else []
    assert isinstance(written, list)
    channels: list[AnyChannelSettings] = []
    for item in written:
        channel = _Channel(item, problems).read()
        if channel is None:
            continue
        if any(other.name == channel.name for other in channels):
            problems.add(item, f"a second channel {channel.name!r}; give it a 'name'")
        channels.append(channel)
    if channels and all(channel.escalate_after_h is not None for channel in channels):
        problems.add(node.find("channels"), "every channel has escalate_after_h; one must be told at once")
    return Owner(name=name, contact=form.contact, channels=tuple(channels)) if len(problems) == before else None


class _Channel:
    """One reading of one channel; what is wrong is collected in ``problems``."""

    def __init__(self, node: Located, problems: Problems) -> None:
        self._node = node
        self._problems = problems

    def read(self) -> AnyChannelSettings | None:
        before = len(self._problems)
        kind = self._node.find("kind").value
        if not isinstance(kind, str) or kind not in _FORMS:
            hint = guess(kind, list(_FORMS)) if isinstance(kind, str) else ""
            self._problems.add(self._node, f"kind: expected one of {', '.join(_FORMS)}{hint}")
            return None
        form_type, settings = _FORMS[kind]
        form = read_form(form_type, self._node, self._problems)
        if form is None:
            return None
        values = self._values(kind, form)
        return settings(**values) if len(self._problems) == before else None

    def _values(self, kind: str, form: _ChannelForm) -> dict[str, Any]:
        written = {key: value for key, value in structs.asdict(form).items() if value is not None}
        del written["kind"]
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in written.items()
        }
        for key in [key for key in values if key.endswith(("_env", "_file")) and key != "ca_file"]:
            self._gather_secret(values, key)
        for key in _SECRETS.get(kind, ()):
            if key not in values:
                self._problems.add(self._node, f"expected one of '{key}_env' (a variable's name) and '{key}_file'")
        values["name"] = self._name(values.get("name", kind))
        if "ca_file" in values:
            values["ca_file"] = self._beside("ca_file", values["ca_file"])
        self._check_networks(values.get("allow_addresses", ()))
        self._check_urls(form, values)
        self._check_mail(form, values)
        return values

    def _gather_secret(self, values: dict[str, Any], key: str) -> None:
        """``x_env: NAME`` becomes ``x: Secret(env=NAME)``."""
        field, _, where = key.rpartition("_")
        named = values.pop(key)
        if field in values:
            self._problems.add(self._node.find(key), f"{field}: given twice; keep one")
        elif where == "env":
            values[field] = Secret(env=named)
        else:
            values[field] = Secret(file=self._beside(key, named))

    def _beside(self, key: str, path: str) -> str:
        """Paths are relative to the yaml file."""
        return str(self._node.find(key).file.parent / path)

    def _name(self, name: str) -> str:
        if not _CHANNEL_NAME.fullmatch(name):
            self._problems.add(self._node.find("name"), f"name: expected to match {_CHANNEL_NAME.pattern}")
        return name

    def _check_networks(self, networks: tuple[str, ...]) -> None:
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                wrong = f"allow_addresses: expected a network as 169.254.1.0/24, got {network!r}"
                self._problems.add(self._node.find("allow_addresses"), wrong)

    def _check_urls(self, form: _ChannelForm, values: Mapping[str, Any]) -> None:
        """A secret's url is judged where it is read."""
        if isinstance(form, _WebhookForm) and "url" not in values:
            self._problems.add(self._node, "expected one of 'url', 'url_env' and 'url_file'")
        if isinstance(url := values.get("url"), str):
            wrong = wrong_with_url(url, plain_http=values.get("plain_http", False))
            if wrong:
                self._problems.add(self._node.find("url"), f"url: {wrong}")

    def _check_mail(self, form: _ChannelForm, values: Mapping[str, Any]) -> None:
        if not isinstance(form, _SmtpForm):
            return
        if (form.user is None) != ("password" not in values):
            self._problems.add(self._node, "'user' and a password ('password_env' or 'password_file') go together")
        if form.tls == "none" and not is_this_machine(form.host):
            self._problems.add(self._node.find("tls"), "tls: 'none' is only for a server on this machine")


def wrong_with_url(url: str, *, plain_http: bool) -> str | None:
    """Why nothing may be posted there, in words that don't quote the url, which may be a secret."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "expected https://host[:port]/path"
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or re.search(r"[\s\\]", url):
        return "expected https://host[:port]/path"
    if parts.username is not None or parts.password is not None:
        return "holds a user or password"
    if parts.fragment:
        return "holds a '#' part"
    if parts.scheme == "http" and not plain_http and not is_this_machine(host):
        return "http:// sends in the clear; use https://, or say 'plain_http: true'"
    return None


def is_this_machine(host: str) -> bool:
    """Loopback, by name or address; nothing is resolved."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
