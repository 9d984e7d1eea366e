"""SNS: one message a notice, with attributes to filter by. Standard topics deliver at least once, in any order.

Limits (docs.aws.amazon.com/sns): 256 KB with attributes, a subject of printable ASCII below 100 characters, ten
attributes where they are delivered raw.
"""

from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from services.stale_notifier.channels.posting import Clock, now_ms
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, Notice, Receipt, cut, text, title
from shared.aws import open_client
from shared.config import ConfigError
from shared.owners import SnsSettings

SUBJECT_CHARS_MAX = 99
MESSAGE_CHARS_MAX = 60_000  # four bytes each fit, and the attributes

_GONE = frozenset({"NotFound", "NotFoundException", "AuthorizationError", "AuthorizationErrorException", "KMSDisabled"})
_GONE |= {"AccessDenied", "AccessDeniedException", "EndpointDisabled", "KMSAccessDenied", "KMSNotFound"}
_NOT_THIS_ONE = frozenset({"InvalidParameter", "InvalidParameterException", "InvalidParameterValue", "ValidationError"})


class SnsClient(Protocol):
    """What is needed of an aioboto3 client."""

    async def publish(self, **parameters: Any) -> dict[str, Any]: ...


class Sns:
    repost_s: float | None = None

    def __init__(self, settings: SnsSettings, client: SnsClient, clock: Clock = now_ms) -> None:
        self.name = settings.name
        self._topic_arn = settings.topic_arn
        self._client = client
        self._clock = clock

    async def send(self, notice: Notice) -> Receipt:
        try:
            answer = await self._client.publish(**publication(notice, self._topic_arn))
        except ClientError as error:
            raise _judged(self.name, error) from None
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise ChannelUnavailable(f"channel {self.name}: SNS can't be reached ({type(error).__name__})") from None
        return Receipt(
            channel=self.name,
            dedup_key=notice.dedup_key,
            provider_id=str(answer["MessageId"]),
            status=str(answer["ResponseMetadata"]["HTTPStatusCode"]),
            at_ms=self._clock(),
        )


async def open_sns_client(stack: AsyncExitStack, topics: list[SnsSettings]) -> Any:
    """One for all topics, which must be of its region. Closes with ``stack``. Raises ``ConfigError``."""
    client = await open_client("sns", stack, connections_max=8)
    region = client.meta.region_name
    elsewhere = [topic for topic in topics if topic.topic_arn.split(":")[3] != region]
    if elsewhere:
        raise ConfigError(
            [
                f"channel {topic.name}: {topic.topic_arn} is not in {region}, this process's region"
                for topic in elsewhere
            ]
        )
    return client


def publication(notice: Notice, topic_arn: str) -> dict[str, Any]:
    """Parameters of ``Publish``. A FIFO topic drops a repeated delivery within five minutes by itself."""
    attributes = {
        "owner": notice.owner,
        "entity": notice.entity,
        "reason": notice.reason,
        "kind": notice.kind.value,
        "severity": notice.severity,
        "dedup_key": notice.dedup_key,
        "notice_id": notice.notice_id,
    }
    parameters: dict[str, Any] = {
        "TopicArn": topic_arn,
        "Subject": subject(notice),
        "Message": cut(text(notice), MESSAGE_CHARS_MAX),
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": value} for name, value in attributes.items() if value
        },
    }
    if topic_arn.endswith(".fifo"):
        parameters |= {
            "MessageGroupId": sha256(notice.dedup_key.encode()).hexdigest(),
            "MessageDeduplicationId": notice.notice_id,
        }
    return parameters


def subject(notice: Notice) -> str:
    """ASCII below 100 characters, beginning with a letter, as SNS asks."""
    line = "".join(char if " " <= char <= "~" else "?" for char in title(notice))
    return line if len(line) <= SUBJECT_CHARS_MAX else line[: SUBJECT_CHARS_MAX - 3] + "..."


def _judged(name: str, error: ClientError) -> ChannelUnavailable | ChannelRefused:
    """Anything that isn't known to be for good may pass: throttling, 5xx, expired credentials."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = f"channel {name}: SNS answers {code or 'an error'}"
    if code in _GONE:
        return ChannelRefused(f"{message}: check the topic and the rights on it", permanent=True)
    if code in _NOT_THIS_ONE:
        return ChannelRefused(message, permanent=False)
    return ChannelUnavailable(message)
