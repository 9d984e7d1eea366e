"""``docker compose run --rm tidemark demo``: changes of the bank, walked through every hop of a running Tidemark.

A change is made and followed into the raw bucket. Another is invalid: it is parked, becomes stale, its owner is told,
and it leaves for the archive. Kafka refuses writes meanwhile: a third is parked, and re-driven under the same event id.
Then the bank stands still for a moment, and every change of it is counted in the real stores.

It runs beside the services and reaches the stores only: it starts no process and asks no service.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, TypeVar

import asyncpg
from msgspec import Meta, Struct

from deploy.demo.balance import Balance, balance, render
from deploy.demo.books import Stores, StoreSettings, read_books
from deploy.demo.drain import NotDrained, drained
from deploy.demo.refusal import SETTING, open_topics
from deploy.demo.walk_hops import POLL_S, Parked, Record, Stuck, Traced, accepted_notices, traced, until
from services.cli import edges as edges_of
from services.cli import parked as parked_command
from services.cli.arguments import parser
from services.cli.edges import Edges
from services.cli.outcome import DOWN, FINDING, OK, USAGE, iso, span
from shared import logs
from shared.config import ConfigError, load_config
from shared.entities import Entities, Entity
from shared.events.identity import Identifier, event_id
from shared.parked.groups import Cause, Group, Told, cause_of

TRIES = 3
"""Of a change that Kafka took although it was to refuse it."""
BEFORE_S = 60.0
"""Raw objects whose records are all older than the walk by more than this are not read for a trace."""
TABLE_AGE_S_MAX = 300.0
"""A table without a newer commit has no loader that runs."""
LOCK_S = 15
_T = TypeVar("_T")

_OPENED = """INSERT INTO accounts (holder, kind, currency, balance, street, city, country)
    VALUES ('Walker', 'CHECKING', 'EUR', 100, '1 Tidal Way', 'Antwerpen', 'BE') RETURNING id"""
_MOVED = "UPDATE accounts SET city = $2, country = 'IS' WHERE id = $1 RETURNING id"
_MISWRITTEN = "UPDATE accounts SET flaw = 'opened_in_words' WHERE id = $1 RETURNING id"
_LAST_CHANGE = "SELECT id, payload FROM change_outbox WHERE id = currval('change_number')"


class BankPlaces(Struct, frozen=True, kw_only=True):
    """``BANK_DSN``, ``BANK_NOTICES_URL``."""

    dsn: Annotated[str, Meta(min_length=1)]
    notices_url: Annotated[str, Meta(min_length=1)]


class Patience(Struct, frozen=True, kw_only=True):
    """How long to wait for what."""

    hop_s: float = 30.0

    @property
    def drain_s(self) -> float:
        return 2 * self.hop_s


class Change(Struct, frozen=True):
    """One change of the bank, and the event id that its bytes have."""

    number: int
    account: int
    event_id: str


class Story:
    """Lines as things happen, with the time since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def say(self, hop: str, text: str, command: str = "") -> None:
        elapsed_s = time.monotonic() - self._began_s
        print(f"{elapsed_s:6.1f} s  {hop:<9}  {text}", flush=True)
        if command:
            print(f"{'':19}  › {command}", flush=True)

    def chapter(self, title: str) -> None:
        print(f"\n{title}", flush=True)


class Walk:
    def __init__(
        self, places: BankPlaces, edges: Edges, stores: Stores, kafka: StoreSettings, patience: Patience, story: Story
    ) -> None:
        """Raises ``ConfigError``: the folder has not the entity that the walk follows."""
        self._places, self._edges, self._stores, self._kafka = places, edges, stores, kafka
        self._patience, self._story, self._say, self._chapter = patience, story, story.say, story.chapter
        found = [one for one in edges.entities.entities.values() if one.source_entity == "account_events"]
        if not found:
            raise ConfigError(["TIDEMARK_ENTITIES_DIR: no entity of the bank's account_events, which the walk follows"])
        self._entity: Entity = found[0]
        self._identifier = Identifier(self._entity.rules)
        self._began_ms = time.time_ns() // 1_000_000
        self._since_ms = self._began_ms - int(BEFORE_S * 1000)

    async def run(self) -> bool:
        """Whether everything was seen, and the sheet adds up. Raises ``Stuck``."""
        topics = [entity.topic for entity in self._edges.entities.entities.values()]
        async with open_topics(self._kafka.kafka, topics) as kafka:
            for topic in await kafka.heal():
                self._say("Kafka", f"{topic} was still refusing records, since a walk was killed: healed")
            account = await self._one_change()
            invalid, cause = await self._invalid_change(account)
            self._chapter("Kafka refuses every record for a while")
            async with kafka.refusing():
                self._say("Kafka", f"refuses all records of {', '.join(topics)} ({SETTING}=0)")
                waiting = await self._refused_change(account)
            self._say("Kafka", "takes records again")
        await self._redriven(waiting)
        await self._told(invalid, cause)
        return await sheet(self._stores, self._edges.entities, self._patience, self._story)

    async def _one_change(self) -> int:
        """The first change, hop by hop. Returns the account."""
        self._chapter("One change, hop by hop")
        change = await self._change(_OPENED)
        self._say("bank", f"account {change.account} is opened: change {change.number}, event {change.event_id}")
        await self._until_seen(change)
        record = await self._until_in_raw(change)
        self._say_record(change, record)
        await self._lake(change)
        return change.account

    async def _lake(self, change: Change) -> None:
        """On to the table, if a loader follows the raw objects."""
        uri = self._edges.lake.table(self._entity.name)
        table = await asyncio.to_thread(self._edges.lake_table, uri)
        if table is None:
            self._say("Delta", f"no table at {uri} yet: no loader runs")
            return
        age_s = time.time() - (table.committed_ms(table.version) or 0) / 1000
        if age_s > TABLE_AGE_S_MAX:
            self._say("Delta", f"the last commit of {uri} is {span(age_s)} old: no loader runs")
            return

        async def merged() -> int | None:
            event, version = await self._trace(change)
            return version if event.fate.startswith(("won", "lost")) else None

        version = await self._until("Delta", change, merged, "the loader's log; `tidemark audit`")
        self._say("Delta", f"in the table, version {version}", f"tidemark trace {self._entity.name} {change.account}")

    async def _invalid_change(self, account: int) -> tuple[Change, Cause]:
        """A field of the wrong type, which no later schema version will accept."""
        self._chapter("A change that its schema refuses")
        change = await self._change(_MISWRITTEN, account)
        self._say("bank", f"account {account}: change {change.number} has words where a time belongs")
        item = await self._until_parked(change, "invalid")
        self._say("parked", f"{item.reason} at {item.path}: {item.detail}; event {change.event_id}",
                  f"tidemark parked show {change.event_id}")  # fmt: skip
        patience_s = self._entity.stale_after_s
        if patience_s is not None:
            self._say("parked", f"becomes stale in {span(patience_s)}, unless somebody cures it; meanwhile:")
        [detail] = await (await self._edges.parked()).show(change.event_id)
        return change, cause_of(detail.row)

    async def _refused_change(self, account: int) -> Change:
        """A change that finds Kafka refusing it. Each record gets older by a millisecond on its way, as a rule."""
        for number in range(TRIES):
            change = await self._change(_MOVED, account, f"Reykjavík {number + 1}")
            self._say("bank", f"account {account} moves: change {change.number}, event {change.event_id}")
            event = await self._until_seen(change)
            if event.parked:
                item = event.parked[0]
                self._say("parked", f"{item.reason}: {item.detail}", f"tidemark parked show {change.event_id}")
                return change
            self._say("Kafka", "took it all the same; once more")
        raise Stuck("Kafka", f"took {TRIES} changes that it was to refuse", "the topics' message.timestamp.type")

    async def _redriven(self, change: Change) -> None:
        """The retriers come by themselves; an operator who knows that the cause is gone need not wait for that."""
        typed = ["parked", "redrive", "--reason", "kafka_topic", "--why", "Kafka takes records again"]
        shown = ["tidemark", *typed[:-1], f"'{typed[-1]}'"]

        async def woken() -> Sequence[str] | None:
            """The index that the selection reads may be behind."""
            if (await self._trace(change))[0].records:
                return ["it was faster than we: published already"]
            arguments = parser({}).parse_args(typed)
            lines = (await parked_command.run(self._edges, arguments)).lines
            return lines if any("woken" in line or "forward" in line for line in lines) else None

        lines = await self._until("retrier", change, woken, "`tidemark parked list --reason kafka_topic`")
        self._say("operator", lines[0], " ".join(shown))
        record = await self._until_in_raw(change)
        self._say("retrier", f"published under the same event id {change.event_id}, attempt {record.attempt}")
        self._say_record(change, record)

        async def gone() -> bool | None:
            return None if (await self._trace(change))[0].parked else True

        await self._until("retrier", change, gone, f"`tidemark parked show {change.event_id}`; the retrier's log")
        self._say("parked", "deleted, after Kafka's ack")

    async def _told(self, change: Change, cause: Cause) -> None:
        """What nobody cured: stale, its owner told, archived, gone from DynamoDB."""
        self._chapter("What nobody cures")
        entity, look = self._entity, f"`tidemark parked show {change.event_id}`; stale-notifier's log"

        async def stale() -> Traced | None:
            event = (await self._trace(change))[0]
            is_stale = event.archived or any(item.state == "STALE" for item in event.parked)
            return event if is_stale else None

        await self._until(
            "retrier", change, stale, "the retrier's log", (entity.stale_after_s or 0) + self._patience.hop_s
        )
        self._say("retrier", f"gives change {change.number} up: stale")

        async def told() -> Group | None:
            group = await self._stores.groups.get(entity.owner.name, cause.id)
            return group if group is not None and group.phase != "resolved" and group.receipts else None

        group = await self._until("notifier", change, told, look)
        await self._noticed(group.owner, group.receipts[0])

        async def archived() -> str | None:
            event = (await self._trace(change))[0]
            return event.archived[0] if event.archived and not event.parked else None

        uri = await self._until("archive", change, archived, look)
        self._say("archive", f"{uri}; gone from DynamoDB", "tidemark evidence verify")

    async def _noticed(self, owner: str, receipt: Told) -> None:
        """The notice as the receiver has it. One that was told before the walk may be older than the receiver."""

        async def arrived() -> dict[str, Any] | None:
            notices = await accepted_notices(self._places.notices_url)
            return next((one["notice"] for one in notices if one["id"] == receipt.provider_id), None)

        if receipt.at_ms < self._began_ms and await arrived() is None:
            self._say("owner", f"{owner} was told by notice {receipt.number} before; once per root cause")
            return
        notice = await until(arrived, self._patience.hop_s)
        if notice is None:
            raise Stuck("receiver", f"notice {receipt.provider_id} was accepted, and is not shown", "its log")
        again = ", told before: once per root cause" if receipt.at_ms < self._began_ms else ""
        self._say("owner", f"{owner} has notice {receipt.number} ({receipt.channel}){again}: {notice['title']}")
        self._say("", f"rule: {notice['rule']}", notice["commands"][-1] if notice["commands"] else "")

    async def _change(self, statement: str, *arguments: str | int) -> Change:
        """Made in the bank, in one transaction; its outbox has the bytes that the source will show."""
        bank = self._stores.bank
        async with bank.transaction():
            account = await bank.fetchval(statement, *arguments)
            row = await bank.fetchrow(_LAST_CHANGE)
        (sighting,) = self._identifier.identify([row["payload"].encode()])
        return Change(row["id"], account, event_id(sighting.identity, 0))

    async def _trace(self, change: Change) -> tuple[Traced, int | None]:
        return await traced(self._edges, self._entity, str(change.account), change.event_id, self._since_ms)

    async def _until_seen(self, change: Change) -> Traced:
        """By the poller, which has published or parked it by then. The trace asks one store after the other: what came
        in between shows at the next look."""

        async def seen() -> Traced | None:
            event = (await self._trace(change))[0]
            return event if event.shown and (event.records or event.parked) else None

        look = "the poller's log; is the entity paused, or Kafka gone? `tidemark status`"
        event = await self._until("poller", change, seen, look)
        cursor = {one.entity: one for one in await self._stores.checkpoints.entities()}[self._entity.name]
        self._say("poller", f"seen at {event.shown[0].at} ({event.shown[0].page}), cursor {iso(cursor.cursor_us)}",
                  f"tidemark cursor show {self._entity.name}")  # fmt: skip
        return event

    async def _until_parked(self, change: Change, reason: str) -> Parked:
        async def parked() -> Parked | None:
            event = (await self._trace(change))[0]
            return next((item for item in event.parked if item.reason == reason), None)

        return await self._until("poller", change, parked, "the poller's log; `tidemark status`")

    async def _until_in_raw(self, change: Change) -> Record:
        async def in_raw() -> Record | None:
            return (await self._trace(change))[0].in_raw

        return await self._until("raw", change, in_raw, "s3-sink's log, and its lag in `tidemark status`")

    async def _until(
        self,
        hop: str,
        change: Change,
        seen: Callable[[], Awaitable[_T | None]],
        look_at: str,
        within_s: float | None = None,
    ) -> _T:
        """What ``seen`` finds. Raises ``Stuck`` with what is known of the change."""
        patience_s = self._patience.hop_s if within_s is None else within_s
        found = await until(seen, patience_s)
        if found is None:
            event = (await self._trace(change))[0]
            what = f"change {change.number} has not come there in {span(patience_s)}: {_known(event)}"
            raise Stuck(hop, what, look_at)
        return found

    def _say_record(self, change: Change, record: Record) -> None:
        topic, _generation, partition = record.chain.rsplit("/", 2)
        self._say("Kafka", f"topic {topic}, partition {partition}, offset {record.offset}")
        self._say("raw", f"{record.object_key} line {record.line}",
                  f"tidemark trace {self._entity.name} {change.account}")  # fmt: skip


async def sheet(stores: Stores, entities: Entities, patience: Patience, story: Story) -> bool:
    """Whether all adds up. The bank's writers wait meanwhile: nothing is committed while its outbox is locked.

    Raises ``Stuck``: a transaction of the bank keeps its outbox.
    """
    story.chapter("The balance sheet")
    async with stores.bank.transaction():
        await stores.bank.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
        try:
            await stores.bank.execute("LOCK TABLE change_outbox IN SHARE MODE")
        except asyncpg.LockNotAvailableError:
            raise Stuck("bank", f"its outbox can't be locked in {LOCK_S} s", "pg_locks of the bank") from None
        story.say("bank", "its writers wait until all that it did is through")
        until_s = time.monotonic() + patience.drain_s
        try:
            await drained(stores, entities, patience.drain_s, _nothing, _no_more)
        except NotDrained as error:
            story.say("STUCK", f"{error}; look at: `tidemark status`, `tidemark audit`")
        sheets = await _balances(stores, entities)
        while not all(one.adds_up for one in sheets) and time.monotonic() < until_s:
            await asyncio.sleep(POLL_S)
            sheets = await _balances(stores, entities)
    story.say("bank", "goes on")
    print("\n".join(["", *render(sheets)]), flush=True)
    return all(one.adds_up for one in sheets)


async def _balances(stores: Stores, entities: Entities) -> list[Balance]:
    return [balance(books) for books in await read_books(stores, entities)]


def _known(event: Traced) -> str:
    """How far it has come, in a few words."""
    places = [f"seen at {one.at}" for one in event.shown[:1]]
    places += [f"in Kafka, {one.chain} offset {one.offset}" for one in event.records[:1] if one.object_key is None]
    places += [f"in raw object {one.object_key}" for one in event.records[:1] if one.object_key is not None]
    places += [f"parked, {one.state} ({one.reason}: {one.detail})" for one in event.parked[:1]]
    places += [f"archived as {uri}" for uri in event.archived[:1]]
    return ", ".join(places) or f"no store knows event {event.event_id}"


async def _nothing(_waiting: str) -> None:
    return None


async def _no_more() -> str:
    return ""


async def _walk(environ: Mapping[str, str], patience: Patience, story: Story) -> bool:
    places = load_config(BankPlaces, environ, "BANK_")
    settings = load_config(StoreSettings, environ)
    async with AsyncExitStack() as resources:
        edges = Edges(environ, resources, str(settings.entities_dir), settings.namespace)
        edges.check_settings()
        stores = await Stores.open(settings, places.dsn, edges.namespace, resources)
        return await Walk(places, edges, stores, settings, patience, story).run()


def main(typed: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: all was seen, and the sheet adds up; 1: it doesn't, or a change is stuck; 2: settings; 3: a server is down;
    130: interrupted."""
    arguments = argparse.ArgumentParser(
        "tidemark demo", description="Walk changes of the demo's bank through every hop, and count them all."
    )
    arguments.add_argument("--within", type=float, default=30.0, metavar="S", help="to wait for each hop (30)")
    chosen = arguments.parse_args(typed)
    logs.configure("tidemark-demo", level="error", format="text", stream=sys.stderr)
    story = Story()
    # As Ctrl-C: Kafka is healed first. (The first process of a container would ignore it otherwise.)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return OK if asyncio.run(_walk(environ, Patience(hop_s=chosen.within), story)) else FINDING
    except Stuck as stuck:
        story.say("STUCK", f"at {stuck.hop}: {stuck.what}")
        story.say("", f"look at: {stuck.look_at}")
        return FINDING
    except KeyboardInterrupt:
        print("interrupted; if Kafka still refuses records, another walk heals it", file=sys.stderr)
        return 130
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        print(f"the bank does not answer ({error}); see BANK_DSN", file=sys.stderr)
        return USAGE if isinstance(error, asyncpg.InvalidCatalogNameError) else DOWN
    except Exception as error:
        known = edges_of.meaning(error)
        if known is None:
            raise
        print(known.text, file=sys.stderr)
        return known.exit_code
