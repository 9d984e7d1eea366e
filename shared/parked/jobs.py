"""Bulk re-drives as items of the parked table (``J#<id>``): what is meant, how far it has come, who wanted it and why.

A job belongs to whoever saved it last: each save is a compare-and-swap. So anybody may take a job over at any time,
whether its runner is dead or not, and a runner that was overtaken finds its next save refused and stops.
"""

from collections.abc import Callable
from secrets import token_hex
from typing import Any, Literal

import msgspec
from botocore.exceptions import ClientError
from msgspec import Struct
from msgspec.structs import replace

from shared.parked.calls import Budget, Calls
from shared.parked.items import Item, wire
from shared.parked.selection import Selection
from shared.parked.walk import Position

BUDGET_S = 20.0

Woke = Literal["woken", "hurried", "due", "busy", "gone", "damaged"]
"""What became of a row: ``hurried``: it was due later, and is now; ``due``: it was to be tried now anyway; ``busy``: a
worker has it; ``gone``: it has left the table, or is no longer what was selected; ``damaged``: its evidence is."""


class UnknownJob(Exception):
    pass


class JobTaken(Exception):
    """Somebody else has taken the job over: stop. What was done so far is done."""


class FromArchive(Struct, frozen=True):
    """All evidence of one entity's events that were first parked on this day (``2026-01-31``)."""

    entity: str
    day: str


class Job(Struct, frozen=True, kw_only=True):
    id: str
    ver: int = 0  # 0: not in the table
    who: str
    why: str
    per_second: float
    selection: Selection | None = None  # one of the two
    archive: FromArchive | None = None
    total: int  # when it was begun
    position: Position = Position()
    """In the archive: ``after`` is the last object that is settled."""
    counts: dict[Woke, int] = {}
    created_ms: int
    changed_ms: int
    done: bool = False

    @property
    def by(self) -> str:
        """What rows remember of it: so each is woken once, however often the job is killed."""
        return f"job {self.id}"

    @property
    def settled(self) -> int:
        return sum(self.counts.values())

    def moved(self, position: Position, outcomes: list[Woke]) -> "Job":
        counts = dict(self.counts)
        for outcome in outcomes:
            counts[outcome] = counts.get(outcome, 0) + 1
        return replace(self, position=position, counts=counts)


def new_job_id() -> str:
    return f"r{token_hex(5)}"


class JobStore:
    """Raises ``ParkedUnavailable``."""

    def __init__(self, table: Calls, table_name: str, clock_ms: Callable[[], int]) -> None:
        self._table = table
        self._table_name = table_name
        self._clock_ms = clock_ms

    async def get(self, job_id: str) -> Job:
        """Strongly consistent. Raises ``UnknownJob``."""
        reading: dict[str, Any] = {"TableName": self._table_name, "Key": _key(job_id), "ConsistentRead": True}
        answer = await self._table.call("get_item", Budget(BUDGET_S), **reading)
        if "Item" not in answer:
            raise UnknownJob(f"there is no job {job_id!r}; `tidemark parked audit` names those of the last weeks")
        return msgspec.json.decode(answer["Item"]["job"]["S"], type=Job)

    async def save(self, job: Job) -> Job:
        """Put it where the version that it was computed from stands. Raises ``JobTaken``."""
        saved = replace(job, ver=job.ver + 1, changed_ms=self._clock_ms())
        token = token_hex(8)
        item = _key(job.id) | {
            "ver": wire(saved.ver),
            "write": wire(token),
            "job": wire(msgspec.json.encode(saved).decode()),
        }
        put: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
        if job.ver:
            put = {
                "ConditionExpression": "#ver = :ver",
                "ExpressionAttributeNames": {"#ver": "ver"},
                "ExpressionAttributeValues": {":ver": wire(job.ver)},
            }
        put |= {"TableName": self._table_name, "Item": item, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        try:
            await self._table.call("put_item", Budget(BUDGET_S), **put)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            if error.response.get("Item", {}).get("write") != item["write"]:  # else our own, whose answer was lost
                raise JobTaken(f"job {job.id} was taken over by another run of it: this one stops") from None
        return saved


def _key(job_id: str) -> Item:
    return {"pk": wire(f"J#{job_id}"), "sk": wire("CUR")}
