"""Alertmanager, API v2: one alert per group. It forgets what isn't posted again, so ``repost_s`` says how often.

An alert is its labels: they are the same from the first notice to the last, and all that changes is an annotation.
Its HA peers and its own retries may tell people twice; that is Alertmanager's to limit.
"""

from typing import Any

import msgspec

from services.stale_notifier.channels.posting import Clients, Clock, Post, Poster, now_ms, read_secret
from services.stale_notifier.notice import Kind, Notice, Receipt, facts, legible, moment, text, title
from shared.owners import AlertmanagerSettings

REPOSTS_MISSED_MAX = 3
"""So many may fail in a row before the alert resolves by itself."""


class Alertmanager:
    def __init__(self, settings: AlertmanagerSettings, poster: Poster, clock: Clock = now_ms) -> None:
        self.name = settings.name
        self.repost_s: float | None = settings.repost_s
        self._settings = settings
        self._poster = poster
        self._clock = clock

    @classmethod
    async def open(cls, settings: AlertmanagerSettings, clients: Clients) -> "Alertmanager":
        """Raises ``ConfigError``."""
        if settings.secret is not None:
            settings.secret.read()
        return cls(settings, await clients.poster(settings, settings.url))

    async def send(self, notice: Notice) -> Receipt:
        settings = self._settings
        headers = {}
        if settings.secret is not None:
            headers[settings.auth_header] = settings.auth_prefix + read_secret(self.name, settings.secret)
        answer = await self._poster.post(
            Post(
                url=f"{settings.url.rstrip('/')}/api/v2/alerts",
                body=msgspec.json.encode([alert(notice, settings, self._clock())]),
                headers=headers,
            )
        )
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=notice.dedup_key,
            status=str(answer.status),
            at_ms=self._clock(),
        )


def alert(notice: Notice, settings: AlertmanagerSettings, at_ms: int) -> dict[str, Any]:
    """The alert as posted at ``at_ms``: its end lies ahead of it, until the resolved notice puts it behind."""
    if notice.kind is Kind.RESOLVED:
        ends_ms = max(notice.at_ms, notice.first_seen_ms)
    else:
        ends_ms = at_ms + int(settings.repost_s * (REPOSTS_MISSED_MAX + 1) * 1000)
    annotations = {"summary": title(notice), "description": text(notice), "kind": notice.kind.value}
    if notice.runbook_url:
        annotations["runbook_url"] = dict(facts(notice))["Runbook"]
    return {
        "labels": {
            "alertname": "TidemarkStaleEvents",
            "severity": "error",
            "owner": legible(notice.owner),
            "entity": legible(notice.entity),
            "reason": legible(notice.reason),
            "dedup_key": notice.dedup_key,
        }
        | dict(settings.labels),
        "annotations": annotations,
        "startsAt": moment(notice.first_seen_ms),
        "endsAt": moment(ends_ms),
    }
