"""PagerDuty, Events API v2: one incident per group, triggered again by each notice, resolved by the last.

202 means accepted. Limits (developer.pagerduty.com): ``dedup_key`` 255 characters, ``summary`` 1,024, 512 KB in all.
"""

from typing import Any

import msgspec

from services.stale_notifier.channels.posting import Answer, Clients, Clock, Post, Poster, now_ms, read_secret
from services.stale_notifier.notice import Kind, Notice, Receipt, cut, document, legible, moment, title
from shared.owners import PagerDutySettings

SUMMARY_CHARS_MAX = 1_024


class PagerDuty:
    repost_s: float | None = None

    def __init__(self, settings: PagerDutySettings, poster: Poster, clock: Clock = now_ms) -> None:
        self.name = settings.name
        self._settings = settings
        self._poster = poster
        self._clock = clock

    @classmethod
    async def open(cls, settings: PagerDutySettings, clients: Clients) -> "PagerDuty":
        """Raises ``ConfigError``."""
        settings.key.read()
        return cls(settings, await clients.poster(settings, settings.key))

    async def send(self, notice: Notice) -> Receipt:
        key = read_secret(self.name, self._settings.key)
        body = msgspec.json.encode(event(notice, key))
        answer = await self._poster.post(Post(url=self._settings.url, body=body, secrets=(key,)))
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=_incident(answer) or notice.dedup_key,
            status=str(answer.status),
            at_ms=self._clock(),
        )


def event(notice: Notice, routing_key: str) -> dict[str, Any]:
    if notice.kind is Kind.RESOLVED:
        return {"routing_key": routing_key, "event_action": "resolve", "dedup_key": notice.dedup_key}
    return {
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": notice.dedup_key,
        "client": "tidemark",
        "payload": {
            "summary": cut(title(notice), SUMMARY_CHARS_MAX),
            "source": legible(notice.entity),
            "severity": notice.severity,
            "timestamp": moment(notice.at_ms),
            "component": legible(notice.entity),
            "group": legible(notice.owner),
            "class": legible(notice.reason),
            "custom_details": document(notice),
        },
    }


def _incident(answer: Answer) -> str:
    """The key that PagerDuty says it has filed it under."""
    try:
        said = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    key = said.get("dedup_key") if isinstance(said, dict) else None
    return legible(key, 255) if isinstance(key, str) else ""
