"""A webhook signed by Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks).

Each attempt to deliver a notice carries the same ``webhook-id`` and the same body, and its own timestamp. A receiver
drops what it has seen, and refuses timestamps more than five minutes off.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from services.stale_notifier.channels.posting import Clients, Clock, Post, Poster, now_ms, read_secret, read_url
from services.stale_notifier.notice import ChannelUnavailable, Notice, Receipt, document, moment
from shared.config import ConfigError
from shared.owners import WebhookSettings

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with, none itself
SECRET_BYTES = range(24, 65)


class Webhook:
    repost_s: float | None = None

    def __init__(self, settings: WebhookSettings, poster: Poster, clock: Clock = now_ms) -> None:
        self.name = settings.name
        self._settings = settings
        self._poster = poster
        self._clock = clock

    @classmethod
    async def open(cls, settings: WebhookSettings, clients: Clients) -> "Webhook":
        """Raises ``ConfigError``."""
        read_url(settings.name, settings.url, settings.plain_http)
        for secret in (settings.secret, settings.old_secret):
            if secret is not None:
                signing_key(settings.name, secret.read())
        return cls(settings, await clients.poster(settings, settings.url))

    async def send(self, notice: Notice) -> Receipt:
        url, keys = self._url_and_keys()
        body = payload(notice)
        sent_ms = self._clock()
        answer = await self._poster.post(
            Post(url=url, body=body, headers=signed_headers(notice.notice_id, sent_ms // 1000, body, keys))
        )
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=notice.notice_id,
            status=str(answer.status),
            at_ms=self._clock(),
        )

    def _url_and_keys(self) -> tuple[str, list[bytes]]:
        """Read anew, so that both can be rotated while the process runs."""
        settings = self._settings
        secrets = [read_secret(self.name, secret) for secret in (settings.secret, settings.old_secret) if secret]
        try:
            url = read_url(self.name, settings.url, settings.plain_http)
            return url, [signing_key(self.name, secret) for secret in secrets]
        except ConfigError as error:
            raise ChannelUnavailable(str(error)) from None


def payload(notice: Notice) -> bytes:
    """The same bytes for the same notice."""
    return msgspec.json.encode(
        {"type": f"tidemark.stale.{notice.kind}", "timestamp": moment(notice.at_ms), "data": document(notice)}
    )


def signed_headers(message_id: str, timestamp_s: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The three headers; one signature for each key, so that a receiver may hold either during a rotation."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def signing_key(name: str, secret: str) -> bytes:
    """The bytes behind ``whsec_<base64>``. Raises ``ConfigError``."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in SECRET_BYTES:
        raise ConfigError(
            [f"channel {name}: secret: expected {SECRET_PREFIX} and 24 to 64 bytes in base64 (openssl rand -base64 32)"]
        )
    return key
