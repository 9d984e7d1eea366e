"""The parked store: what could not be published waits here, durably, with its raw bytes and the reason.

``park`` promises: when it returns, every event is in the table, exactly once, whatever crashed before. Bodies first,
then METAs by insert-if-absent; who finds a key taken reads whose it is. Nothing here deletes what a META names.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

from botocore.exceptions import ClientError
from msgspec import Meta, Struct
from msgspec.structs import replace

from shared.aws import open_client
from shared.entities import Namespace
from shared.events.model import Reason
from shared.logs import get_logger
from shared.parked.bodies import Bodies
from shared.parked.calls import (
    STATEMENT_TRANSIENTS,
    Budget,
    Calls,
    Lanes,
    ParkedUnavailable,
    Trouble,
    pauses,
    refused_statement,
    statement_trouble,
)
from shared.parked.items import (
    STORED_FIELDS,
    Draft,
    ParkedDetail,
    ParkedId,
    Stored,
    body_item,
    count_statement,
    draft_of,
    insert_statement,
    resolve,
    stored_of,
)
from shared.parked.model import ParkedEvent, meta_key, partition_key
from shared.parked.queries import ParkedFilter, ParkedPage, Queries
from shared.parked.streaming import ParkedStreams
from shared.parked.table import ParkedTableDiffers, definition, differences, is_active
from shared.parked.transitions import Clocks, Transitions

log = get_logger(__name__)

BATCH_ITEMS = 25  # of BatchExecuteStatement and of BatchWriteItem: the service's limit
ROUNDS_MAX = 64  # of one batch; each round settles an event, meets a competitor, or tries the next rev
CREATION_S_MAX = 60.0
REMOVAL_S_MAX = 1.0


class ParkedSettings(Struct, frozen=True, kw_only=True):
    table: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{3,255}$")] = "tidemark_parked"
    bucket: Annotated[str, Meta(min_length=3)] = "tidemark-parked"
    budget_s: Annotated[float, Meta(gt=0)] = 20.0
    """Of one ``park``, pauses included."""
    calls_in_flight_max: Annotated[int, Meta(ge=1, le=64)] = 8
    body_bytes_max: Annotated[int, Meta(ge=1, le=380_000)] = 300_000
    """Compressed; a larger body goes to the bucket."""

    def within(self, space: Namespace) -> "ParkedSettings":
        """These settings with the table's name in the namespace."""
        return replace(self, table=space.table(self.table))


class ParkOutcome(Struct, frozen=True):
    new: int = 0
    seen_again: int = 0
    conflicts: int = 0
    """Of the new ones: their event id stood there with other bytes, so they were parked under another rev."""


class _Failed(Struct):
    error: ParkedUnavailable | None = None


class ParkedStore:
    """DynamoDB table and bucket. Safe for many tasks and processes at once. Closes with the stack it was opened in."""

    def __init__(self, settings: ParkedSettings, dynamodb: Any, s3: Any) -> None:
        self._settings = settings
        self._lanes = Lanes(settings.calls_in_flight_max)
        self._table = Calls(dynamodb, settings.table, self._lanes)
        self._bucket = Calls(s3, f"bucket {settings.bucket}", Lanes(settings.calls_in_flight_max))
        self._queries = Queries(self._table, self._bucket, settings.table, settings.bucket)
        self._region = str(s3.meta.region_name or "")
        self._looks_first = True

    @classmethod
    async def open(cls, settings: ParkedSettings, stack: AsyncExitStack) -> "ParkedStore":
        """Makes no request: a service starts while DynamoDB is down."""
        connections_max = settings.calls_in_flight_max + 2
        dynamodb = await open_client("dynamodb", stack, connections_max=connections_max, read_timeout_s=5)
        return cls(settings, dynamodb, await open_client("s3", stack, connections_max=connections_max))

    async def park(self, events: Sequence[ParkedEvent]) -> ParkOutcome:
        """Durable when it returns. Raises ``ParkedUnavailable`` after ``budget_s``: call again, nothing doubles.

        A call under way is not cut short, so that it may take a time-out longer. Bodies that a failed or killed call
        leaves behind are named by no META and harmless.
        """
        if not events:
            return ParkOutcome()
        budget = Budget(self._settings.budget_s)
        # Only the first call of a process, and one after a failure, can meet its own traces: reading first then
        # costs less than the bodies it would write in vain.
        looks_first, self._looks_first = self._looks_first, True
        drafts = await asyncio.to_thread(self._drafts, events)
        failed = _Failed()
        batches = _batches(drafts)
        workers = min(self._settings.calls_in_flight_max, len(drafts) // BATCH_ITEMS + 1)
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(batches, looks_first, budget, failed), name=f"park-{number}")
        if failed.error is not None:
            raise failed.error
        self._looks_first = False
        return self._outcome(drafts, len(events))

    async def ensure_table(self) -> bool:
        """Create the table, or verify the one that is there; returns when it is ACTIVE. True: created now.

        Raises ``ParkedTableDiffers``, ``ParkedUnavailable``.
        """
        budget = Budget(CREATION_S_MAX)
        created = await self._create_table(budget)
        for pause_s in pauses():
            answer = await self._table.call("describe_table", budget, TableName=self._settings.table)
            if is_active(answer["Table"]):
                break
            await budget.pause(max(pause_s, 0.1), Trouble(f"table {self._settings.table!r} is not ACTIVE yet"))
        if found := differences(answer["Table"]):
            raise ParkedTableDiffers(
                f"table {self._settings.table!r} is not as Tidemark needs it: {'; '.join(found)}. "
                "Name another table, or move this one's items away and delete it"
            )
        return created

    async def ensure_bucket(self) -> bool:
        """True: created now. Raises ``ParkedUnavailable``."""
        budget = Budget(self._settings.budget_s)
        region = self._region
        place = {} if region in ("", "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            await self._bucket.call("head_bucket", budget, Bucket=self._settings.bucket)
            return False
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchBucket", "NotFound"):
                raise
        await self._bucket.call("create_bucket", budget, Bucket=self._settings.bucket, **place)
        return True

    @property
    def streams(self) -> ParkedStreams:
        """All rows that fit a filter, however many, over the same connections."""
        return ParkedStreams(self._table, self._settings.table, self._bodies())

    @property
    def transitions(self) -> Transitions:
        """What may happen to a parked row, over the same connections."""
        return self.transitions_by(Clocks())

    def transitions_by(self, clocks: Clocks) -> Transitions:
        settings = self._settings
        return Transitions(self._table, settings.table, self._bodies(), budget_s=settings.budget_s, clocks=clocks)

    def _bodies(self) -> Bodies:
        settings = self._settings
        return Bodies(
            self._table,
            self._bucket,
            settings.table,
            settings.bucket,
            budget_s=settings.budget_s,
            body_bytes_max=settings.body_bytes_max,
        )

    async def answers(self) -> None:
        """One cheap call. Raises ``ParkedUnavailable``, also while the table is missing."""
        await self._table.call("describe_table", Budget(2.0), TableName=self._settings.table)

    async def counts(self, entities: Sequence[str]) -> dict[tuple[str, Reason], int]:
        """Exact within the index's refresh, by COUNT over its shards; only what is not zero."""
        return await self._queries.counts(entities)

    async def find(self, wanted: ParkedFilter, *, limit: int = 100, after: str | None = None) -> ParkedPage:
        """Oldest first, at most ``limit`` rows; go on with the page's ``after`` until it is ``None``."""
        return await self._queries.find(wanted, limit, after)

    async def show(self, item_id: str) -> list[ParkedDetail]:
        """Every rev of an event id (or ``topic/generation/partition/offset``), with raw bytes; ``[]``: not parked."""
        return await self._queries.show(item_id)

    async def scan_ids(self) -> list[ParkedId]:
        """Every item, by a strongly consistent scan: for the books, not for a dashboard."""
        return await self._queries.scan_ids()

    def _drafts(self, events: Sequence[ParkedEvent]) -> list[Draft]:
        return [draft_of(event, count, self._settings.body_bytes_max) for event, count in _collapsed(events)]

    def _outcome(self, drafts: list[Draft], events: int) -> ParkOutcome:
        new = [draft for draft in drafts if draft.outcome == "new"]
        conflicts = [draft for draft in new if draft.in_conflict]
        if conflicts:
            # An event id that names two different bodies: the source reuses its ids, or doesn't show equal bytes.
            log.error("parked_body_differs", count=len(conflicts), entity=conflicts[0].event.entity,
                      event_id=conflicts[0].event.event_id, rev=conflicts[0].rev)  # fmt: skip
        return ParkOutcome(new=len(new), seen_again=events - len(new), conflicts=len(conflicts))

    async def _work(self, batches: Iterator[list[Draft]], looks_first: bool, budget: Budget, failed: _Failed) -> None:
        """Park batch after batch. After a failure nobody takes another, but what others have begun is finished."""
        for batch in batches:
            if failed.error is not None:
                return
            try:
                await self._park_batch(batch, looks_first, budget)
            except ParkedUnavailable as error:
                failed.error = error

    async def _park_batch(self, batch: list[Draft], looks_first: bool, budget: Budget) -> None:
        """At most 25 drafts with different keys, round after round, until each has its outcome."""
        if looks_first:
            await self._look(batch, budget)
        attempts = pauses()
        for _ in range(ROUNDS_MAX):
            pending = [draft for draft in batch if draft.outcome is None]
            if not pending:
                break
            await self._write_bodies([draft for draft in pending if draft.needs_body], budget)
            contested, trouble = await self._write_metas(pending, budget)
            if trouble is not None:
                await self._table.back_off(next(attempts), trouble, budget)
            await self._look(contested, budget)
        else:
            raise ParkedUnavailable("parked_unavailable", f"{len(pending)} events unsettled after {ROUNDS_MAX} rounds")
        await self._remove_bodies([draft for draft in batch if draft.outcome == "again" and draft.has_body])

    async def _look(self, batch: list[Draft], budget: Budget) -> None:
        """Read, consistently, what stands under the drafts' keys."""
        names = {f"#{name}": name for name in STORED_FIELDS}
        reading = {"ConsistentRead": True, "ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names}
        keys = [{"pk": {"S": draft.pk}, "sk": {"S": draft.sk}} for draft in batch]
        found: dict[tuple[str, str], Stored] = {}
        attempts = pauses()
        while keys:
            request = {self._settings.table: {"Keys": keys, **reading}}
            answer = await self._table.call("batch_get_item", budget, RequestItems=request)
            for item in answer["Responses"].get(self._settings.table, []):
                found[item["pk"]["S"], item["sk"]["S"]] = stored_of(item)
            keys = answer.get("UnprocessedKeys", {}).get(self._settings.table, {}).get("Keys", [])
            if keys:
                await self._table.back_off(next(attempts), self._partly("read"), budget)
        for draft in batch:
            resolve(draft, found.get((draft.pk, draft.sk)))

    async def _write_metas(self, batch: list[Draft], budget: Budget) -> tuple[list[Draft], Trouble | None]:
        """Insert, or count, each by itself. Returns those whose key is contested, and the transient of the others."""
        table = self._settings.table
        write = [insert_statement if draft.stored is None else count_statement for draft in batch]
        statements = [statement(draft, table) for statement, draft in zip(write, batch, strict=True)]
        answer = await self._table.call("batch_execute_statement", budget, Statements=statements)
        contested: list[Draft] = []
        trouble: Trouble | None = None
        for draft, response in zip(batch, answer["Responses"], strict=True):
            error = response.get("Error")
            if error is None:
                draft.outcome = "new" if draft.stored is None else "again"
            elif error["Code"] in ("DuplicateItem", "ConditionalCheckFailed"):
                contested.append(draft)
            elif error["Code"] in STATEMENT_TRANSIENTS:
                trouble = statement_trouble(error, table)
            else:
                raise refused_statement(error, table)
        return contested, trouble

    async def _write_bodies(self, batch: list[Draft], budget: Budget) -> None:
        """Each under a key of its own, before any META names it."""
        requests = [{"PutRequest": {"Item": body_item(draft)}} for draft in batch if not draft.in_bucket]
        await self._batch_write(requests, budget)
        for draft in batch:
            if draft.in_bucket:
                await self._put_object(draft, budget)
            draft.has_body = True

    async def _put_object(self, draft: Draft, budget: Budget) -> None:
        try:
            await self._bucket.call(
                "put_object",
                budget,
                Bucket=self._settings.bucket,
                Key=draft.in_bucket,
                Body=draft.body,
                IfNoneMatch="*",
                Metadata={"raw-sha256": draft.body_sha},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":  # then it is there, with the same content
                raise

    async def _remove_bodies(self, batch: list[Draft]) -> None:
        """Bodies that lost to the same event parked before: named by no META, harmless, so one short try will do."""
        requests = [
            {"DeleteRequest": {"Key": {name: body_item(draft)[name] for name in ("pk", "sk")}}}
            for draft in batch
            if not draft.in_bucket
        ]
        objects = [draft.in_bucket for draft in batch if draft.in_bucket]
        budget = Budget(REMOVAL_S_MAX)
        try:
            await self._batch_write(requests, budget)
            for key in objects:
                await self._bucket.call("delete_object", budget, Bucket=self._settings.bucket, Key=key)
        except ParkedUnavailable as error:
            log.info("parked_orphans_left", count=len(requests) + len(objects), error=str(error))

    async def _batch_write(self, requests: list[dict[str, Any]], budget: Budget) -> None:
        attempts = pauses()
        while requests:
            request = {self._settings.table: requests}
            answer = await self._table.call("batch_write_item", budget, RequestItems=request)
            requests = answer.get("UnprocessedItems", {}).get(self._settings.table, [])
            if requests:
                await self._table.back_off(next(attempts), self._partly("written"), budget)

    def _partly(self, done: str) -> Trouble:
        return Trouble(f"table {self._settings.table!r}: a batch was {done} only in part", self._settings.table)

    async def _create_table(self, budget: Budget) -> bool:
        try:
            await self._table.call("describe_table", budget, TableName=self._settings.table)
            return False
        except ParkedUnavailable as error:
            if not error.is_missing:
                raise
        try:
            await self._table.call("create_table", budget, **definition(self._settings.table))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUseException":
                raise
            return False  # somebody else created it meanwhile
        return True


def _collapsed(events: Iterable[ParkedEvent]) -> list[tuple[ParkedEvent, int]]:
    """Equal events once, with the greatest ``seq`` and how often they were given."""
    kept: dict[tuple[str, str, bytes], tuple[ParkedEvent, int]] = {}
    for event in events:
        place = (partition_key(event), meta_key(event, event.rev), event.raw)
        first, count = kept.get(place, (event, 0))
        greater = event if (event.rank, event.tiebreak) > (first.rank, first.tiebreak) else first
        kept[place] = (greater, count + 1)
    return list(kept.values())


def _batches(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    """Batches in which no key comes twice: DynamoDB refuses those whole."""
    batch: dict[tuple[str, str], Draft] = {}
    for draft in drafts:
        if len(batch) == BATCH_ITEMS or (draft.pk, draft.sk) in batch:
            yield list(batch.values())
            batch = {}
        batch[draft.pk, draft.sk] = draft
    if batch:
        yield list(batch.values())
