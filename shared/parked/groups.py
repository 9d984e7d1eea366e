"""Parked events that share one root cause, and the one item that says what their owner was told about them.

A group's item is changed by compare-and-swap alone: read it, compute the next, put it if its version still stands. So
a claim is a swap that moves its due time, and whoever was overtaken finds its swap refused. While a group is open the
index ``due`` shows it under its own queue, ``g``.
"""

import json
from contextlib import AsyncExitStack
from hashlib import sha256
from secrets import token_hex
from typing import Any, Literal, Protocol

import msgspec
from botocore.exceptions import ClientError
from msgspec import Struct
from msgspec.structs import replace

from shared.aws import open_client
from shared.events.model import Reason
from shared.parked.calls import Budget, Calls, Lanes
from shared.parked.causes import cause_path
from shared.parked.items import Item, wire
from shared.parked.model import SHARDS, due_partition, due_sort, shard
from shared.parked.store import ParkedSettings

QUEUE = "g"
RECEIPTS_MAX = 20
PAGE = 100

Phase = Literal["waiting", "told", "closing", "resolved"]
"""``waiting``: nothing accepted yet. ``closing``: told, and empty when last counted; settled before it is resolved."""


class Cause(Struct, frozen=True, order=True):
    """Why events were refused, as people count and act on them."""

    entity: str
    reason: Reason
    path: str  # a JSON pointer with ``*`` for places in arrays and keys of maps
    fingerprint: str  # of the contract that refused them; "": none

    @property
    def id(self) -> str:
        """16 hex digits: what ``--group`` takes."""
        text = json.dumps([self.entity, self.reason, self.path, self.fingerprint])
        return sha256(text.encode()).hexdigest()[:16]


class Refused(Protocol):
    """A ``ParkedRow`` or a ``ParkedEvent``."""

    @property
    def entity(self) -> str: ...

    @property
    def reason(self) -> Reason: ...

    @property
    def path(self) -> str: ...

    @property
    def fingerprint(self) -> str | None: ...


def cause_of(refused: Refused) -> Cause:
    return Cause(refused.entity, refused.reason, cause_path(refused.path), refused.fingerprint or "")


class Told(Struct, frozen=True):
    """A channel has accepted a notice about the group."""

    channel: str
    dedup_key: str
    provider_id: str
    status: str
    at_ms: int
    number: int  # of the notice
    kind: str


class Pending(Struct, frozen=True):
    """A notice that is to be delivered: its bytes are kept, so that each attempt sends the same ones."""

    number: int
    kind: str
    notice: bytes
    count: int
    made_ms: int
    to: tuple[str, ...] = ()  # channels still to be told; (): any one of the first line
    attempts: int = 0


class Group(Struct, frozen=True, kw_only=True):
    """One owner's group. ``opened_ms`` to ``receipts`` are the present episode's: from one emptiness to the next."""

    owner: str
    cause: Cause
    phase: Phase
    due_ms: int  # when it is looked at next
    ver: int = 0  # 0: not in the table
    episode: int = 1
    opened_ms: int
    number: int = 0  # of the newest notice, over all episodes
    told_ms: int | None = None  # when the first notice was accepted
    last_told_ms: int | None = None
    told_count: int = 0
    told_first_ms: int = 0  # the oldest event when last told
    escalated: tuple[str, ...] = ()  # channels told by escalation
    closing_ms: int | None = None  # since when it is thought to be empty
    posted_ms: int | None = None  # when it was last said again to a receiver that forgets
    receipts: tuple[Told, ...] = ()
    pending: Pending | None = None
    newest: bytes = b""  # the newest accepted notice
    facts: bytes = b""  # what notices are made from, as whoever opened the group saw it
    lease_own: str = ""

    @property
    def receipt(self) -> Told | None:
        """By which its rows may be marked as told: of this episode, and not on the way to its end."""
        resolving = self.pending is not None and self.pending.kind == "resolved"
        return self.receipts[0] if self.phase == "told" and self.receipts and not resolving else None


class OpenGroup(Struct, frozen=True):
    """As the index shows it: maybe behind."""

    owner: str
    cause_id: str
    phase: Phase
    entity: str
    reason: Reason
    ver: int
    due_ms: int


class GroupStore:
    """Over the parked table. Raises ``ParkedUnavailable``. Safe for many tasks and processes at once."""

    def __init__(self, table: Calls, table_name: str, *, budget_s: float = 20.0) -> None:
        self._table = table
        self._table_name = table_name
        self._budget_s = budget_s

    @classmethod
    async def open(cls, settings: ParkedSettings, stack: AsyncExitStack) -> "GroupStore":
        """Makes no request."""
        client = await open_client("dynamodb", stack, connections_max=10, read_timeout_s=5)
        calls = Calls(client, settings.table, Lanes(settings.calls_in_flight_max))
        return cls(calls, settings.table, budget_s=settings.budget_s)

    async def get(self, owner: str, cause_id: str) -> Group | None:
        """Strongly consistent."""
        reading: dict[str, Any] = {"TableName": self._table_name, "Key": _key(owner, cause_id), "ConsistentRead": True}
        answer = await self._table.call("get_item", Budget(self._budget_s), **reading)
        return _group_of(answer["Item"]) if "Item" in answer else None

    async def swap(self, group: Group) -> Group | None:
        """Put ``group`` where the version that it was computed from still stands. ``None``: somebody was faster."""
        token = token_hex(8)
        item = _item_of(replace(group, ver=group.ver + 1)) | {"write": wire(token)}
        put: dict[str, Any] = {
            "TableName": self._table_name,
            "Item": item,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            "ConditionExpression": "attribute_not_exists(pk)",
        }
        if group.ver:
            put |= {
                "ConditionExpression": "#ver = :ver",
                "ExpressionAttributeNames": {"#ver": "ver"},
                "ExpressionAttributeValues": {":ver": wire(group.ver)},
            }
        try:
            await self._table.call("put_item", Budget(self._budget_s), **put)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            there = error.response.get("Item", {})
            if there.get("write") != item["write"]:
                return None  # else our own write, whose answer was lost
        return replace(group, ver=group.ver + 1)

    async def due(self, shard_number: int, now_ms: int, limit: int = PAGE) -> list[OpenGroup]:
        """Earliest first; those whose holder has died among them."""
        return await self._open(shard_number, {":bound": wire(f"{now_ms + 1:013d}")}, " AND due < :bound", limit)

    async def open_groups(self, limit_per_shard: int = 10_000) -> list[OpenGroup]:
        """All that are not resolved, as the index has them."""
        found: list[OpenGroup] = []
        for number in range(SHARDS):
            found += await self._open(number, {}, "", limit_per_shard)
        return found

    async def _open(self, number: int, values: dict[str, Any], bound: str, limit: int) -> list[OpenGroup]:
        query: dict[str, Any] = {
            "TableName": self._table_name,
            "IndexName": "due",
            "KeyConditionExpression": f"dq = :dq{bound}",
            "ExpressionAttributeValues": {":dq": wire(due_partition(QUEUE, number)), **values},
        }
        found: list[OpenGroup] = []
        while len(found) < limit:
            answer = await self._table.call("query", Budget(self._budget_s), Limit=limit - len(found), **query)
            found += [_open_of(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                break
            query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return found


def _key(owner: str, cause_id: str) -> Item:
    return {"pk": wire(f"G#{owner}#{cause_id}"), "sk": wire("CUR")}


def _item_of(group: Group) -> Item:
    """A resolved group has no due time: it stays for its numbers, and shows in no queue."""
    item = _key(group.owner, group.cause.id) | {
        "ver": wire(group.ver),
        "st": wire(group.phase),
        "entity": wire(group.cause.entity),
        "reason": wire(group.cause.reason),
        "owner": wire(group.owner),
        "path": wire(group.cause.path),
        "sfp": wire(group.cause.fingerprint),
        "group": wire(msgspec.json.encode(group).decode()),
    }
    if group.phase != "resolved":
        item |= {
            "dq": wire(due_partition(QUEUE, shard(group.cause.id))),
            "due": wire(due_sort(group.due_ms, f"{group.owner}#{group.cause.id}")),
        }
    return item


def _group_of(item: Item) -> Group:
    return msgspec.json.decode(item["group"]["S"], type=Group)


def _open_of(item: Item) -> OpenGroup:
    owner, cause_id = item["pk"]["S"].removeprefix("G#").rsplit("#", 1)
    return OpenGroup(
        owner=owner,
        cause_id=cause_id,
        phase=msgspec.convert(item["st"]["S"], Phase),
        entity=item["entity"]["S"],
        reason=Reason(item["reason"]["S"]),
        ver=int(item["ver"]["N"]),
        due_ms=int(item["due"]["S"].partition("#")[0]),
    )
