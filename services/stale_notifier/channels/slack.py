"""Slack: one incoming webhook, one message a notice. Its ``ok`` is the only receipt; nothing can be edited later.

Limits (docs.slack.dev, Incoming webhooks and Block Kit): one message a second; 50 blocks; a header of 150 characters,
a section of 3,000. The whole is kept below 10,000: Slack refuses somewhere above 13,000.
"""

import re
from typing import Any

import msgspec

from services.stale_notifier.channels.posting import Clients, Clock, Post, Poster, now_ms, read_url
from services.stale_notifier.notice import ChannelUnavailable, Notice, Receipt, commands, cut, facts, title
from shared.config import ConfigError
from shared.owners import SlackSettings

HEADER_CHARS_MAX = 150
SECTION_CHARS_MAX = 3_000
MESSAGE_CHARS_MAX = 10_000
MESSAGES_PER_S = 1.0

_LINK = re.compile(r"https?://[^\s<>|\"`]{1,1000}")


class Slack:
    repost_s: float | None = None

    def __init__(self, settings: SlackSettings, poster: Poster, clock: Clock = now_ms) -> None:
        self.name = settings.name
        self._settings = settings
        self._poster = poster
        self._clock = clock

    @classmethod
    async def open(cls, settings: SlackSettings, clients: Clients) -> "Slack":
        """Raises ``ConfigError``."""
        read_url(settings.name, settings.url, settings.plain_http)
        return cls(settings, await clients.poster(settings, settings.url, MESSAGES_PER_S))

    async def send(self, notice: Notice) -> Receipt:
        try:
            url = read_url(self.name, self._settings.url, self._settings.plain_http)
        except ConfigError as error:
            raise ChannelUnavailable(str(error)) from None
        answer = await self._poster.post(Post(url=url, body=msgspec.json.encode(message(notice))))
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=notice.notice_id,
            status=str(answer.status),
            at_ms=self._clock(),
        )


def message(notice: Notice) -> dict[str, Any]:
    """The webhook's payload: ``text`` for notifications, ``blocks`` for the eye."""
    blocks: list[dict[str, Any]] = [
        {
            "type": "header",
            "text": {"type": "plain_text", "text": cut(title(notice), HEADER_CHARS_MAX), "emoji": False},
        },
        _section("\n".join(f"*{escape(_unquoted(label))}:* {_shown(fact)}" for label, fact in facts(notice))),
    ]
    if act := commands(notice):
        blocks.append(_section("\n".join(f"{escape(what)}: {_code(command)}" for command, what in act)))
    blocks.append({"type": "context", "elements": [{"type": "plain_text", "text": notice.dedup_key, "emoji": False}]})
    return {"text": escape(title(notice)), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def escape(text: str) -> str:
    """The three characters that Slack asks to escape; else ``<!channel>`` in a field's name would call everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _section(markup: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": _whole_lines(markup), "verbatim": True}}


def _whole_lines(markup: str) -> str:
    """Cut between lines, so that neither an escape nor a code span is cut in two."""
    if len(markup) <= SECTION_CHARS_MAX:
        return markup
    return markup[: markup.rindex("\n", 0, SECTION_CHARS_MAX - 1)] + "\n…"


def _shown(fact: str) -> str:
    return f"<{escape(fact)}>" if _LINK.fullmatch(fact) else _code(fact)


def _code(text: str) -> str:
    """Code shows ``*`` and ``_`` as they are."""
    return f"`{escape(_unquoted(text))}`"


def _unquoted(text: str) -> str:
    return text.replace("`", "\N{MODIFIER LETTER GRAVE ACCENT}")
