"""Opens the channels of all owners, with every problem named before the first notice is due."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, assert_never

from msgspec import Struct

from services.stale_notifier.channels.alertmanager import Alertmanager
from services.stale_notifier.channels.pagerduty import PagerDuty
from services.stale_notifier.channels.posting import Clients
from services.stale_notifier.channels.slack import Slack
from services.stale_notifier.channels.smtp import Smtp
from services.stale_notifier.channels.sns import Sns, open_sns_client
from services.stale_notifier.channels.webhook import Webhook
from services.stale_notifier.notice import Channel
from shared.config import ConfigError
from shared.owners import (
    AlertmanagerSettings,
    AnyChannelSettings,
    Owner,
    PagerDutySettings,
    SlackSettings,
    SmtpSettings,
    SnsSettings,
    WebhookSettings,
)


class Route(Struct, frozen=True):
    """A way to an owner, and from when on it is told. ``None``: from the first notice on."""

    channel: Channel
    escalate_after_s: float | None = None


async def open_channels(owners: Iterable[Owner], stack: AsyncExitStack) -> dict[str, tuple[Route, ...]]:
    """Owner's name → its routes, in the order of trying. Sends nothing. Closes with ``stack``.

    Secrets are read once, to see that they are there. Raises ``ConfigError`` with every problem.
    """
    owners = list(owners)
    clients = Clients(stack)
    topics = [channel for owner in owners for channel in owner.channels if isinstance(channel, SnsSettings)]
    sns = await open_sns_client(stack, topics) if topics else None
    problems: list[str] = []
    routes: dict[str, tuple[Route, ...]] = {}
    for owner in owners:
        opened: list[Route] = []
        for settings in owner.channels:
            try:
                channel = await _opened(settings, clients, sns)
            except ConfigError as error:
                problems += [f"owner {owner.name}: {problem}" for problem in error.problems]
                continue
            after_h = settings.escalate_after_h
            opened.append(Route(channel, None if after_h is None else after_h * 3600))
        routes[owner.name] = tuple(opened)
    if problems:
        raise ConfigError(problems)
    return routes


async def _opened(settings: AnyChannelSettings, clients: Clients, sns: Any) -> Channel:
    match settings:
        case SlackSettings():
            return await Slack.open(settings, clients)
        case WebhookSettings():
            return await Webhook.open(settings, clients)
        case SnsSettings():
            return Sns(settings, sns)
        case SmtpSettings():
            return Smtp(settings)
        case PagerDutySettings():
            return await PagerDuty.open(settings, clients)
        case AlertmanagerSettings():
            return await Alertmanager.open(settings, clients)
        case other:
            assert_never(other)
