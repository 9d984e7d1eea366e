"""One run of the demo: set up, write with a Kafka outage in the middle, drain, and compare the books.

What the outage parked is re-driven when Kafka is back; a schema version registered then wakes what it accepts; what
nothing cures becomes stale, its owner is told, and it leaves for the archive. A stream carries the raw objects into
Delta meanwhile; a batch builds the same tables again from all of them; both and the bank must be equal.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from itertools import takewhile
from pathlib import Path

from msgspec import Struct

from deploy.demo.balance import balance, render
from deploy.demo.books import Stores, StoreSettings, read_books
from deploy.demo.dashboards import Ask, Dashboards
from deploy.demo.drain import NotDrained, drained
from deploy.demo.lake import DemoLake
from deploy.demo.progress import Screen, entity_progress, fetch, lines, merged_offsets
from deploy.demo.receiver import Receiver
from deploy.grafana.panels import LOADER
from deploy.local.environment import environment
from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.local.stack import Stack
from deploy.local.supervision import StackFailed
from shared.config import load_config
from shared.entities import Entities, load_entities

OUTAGE_S = 12.0
DELIVERY_DEADLINE_S = 2.0  # instead of 15, so that a short outage parks events
DRAIN_S_MAX = 150.0
CATCH_UP_S_MAX = 450.0  # besides, for the stream: a machine that is busy otherwise
FRAME_S = 0.5
GRACE_S = 3.0  # instead of seven days: from the notice to the deletion
SERVICES = {
    "sink": "services.s3_sink",
    "poller": "services.poller_producer",
    "retrier": "services.dynamo_retrier",
    "notifier": "services.stale_notifier",
}
HERE = Path(__file__).resolve().parent


class Options(Struct, frozen=True, kw_only=True):
    seconds: float
    writers: int
    rate: float
    manner: str
    plain: bool
    keep: bool
    name: str
    spark: bool = True
    dashboards: Ask = "skip"


class Demo:
    """One run. Sets up, writes with an outage in the middle, drains, and compares."""

    poller_env: Mapping[str, str] = {}
    """Settings of the poller alone."""

    def __init__(
        self,
        options: Options,
        stack: Stack,
        screen: Screen,
        began_s: float,
        broker: str = "kafka",
        places: Mapping[str, str] | None = None,
    ) -> None:
        """``began_s``: on the monotonic clock. ``broker``: the one to kill. ``places`` override the stack's own."""
        self._options = options
        self.stack = stack
        self._screen = screen
        self._broker = broker
        self._python = str(stack.product_python)
        self._began_s = began_s
        self._phase = "starting"
        self._bank = {
            "BANK_DSN": stack.env["TIDEMARK_POSTGRES_DSN"].rpartition("/")[0] + "/bank",
            "BANK_PORT": str(stack.free_port("bank")),
        }
        self._receiver = Receiver(self._say, stack.free_port("notices"))
        self._env = {
            "BANK_NOTICES_URL": self._receiver.url,
            "BANK_NOTICES_SECRET": self._receiver.secret,
            "TIDEMARK_WAKE_PERIOD_S": "2",
            "TIDEMARK_REFRESH_S": "2",
            "TIDEMARK_GRACE_S": str(GRACE_S),
            "TIDEMARK_NOTIFIER_POLL_S": "1",
            "TIDEMARK_NOTIFIER_GROUP_WAIT_S": "1",
            "BANK_URL": f"http://127.0.0.1:{self._bank['BANK_PORT']}/cdc",
            "TIDEMARK_ENTITIES_DIR": str(self._choose_entities(stack.folder / "entities")),
            "TIDEMARK_KAFKA_DELIVERY_DEADLINE_S": str(DELIVERY_DEADLINE_S),
            "TIDEMARK_SINK_OBJECT_AGE_S_MAX": "2",
            **(places or {}),
        }
        self.settings = {**stack.env, **self._env}
        self.entities: Entities = load_entities(
            self.settings["TIDEMARK_ENTITIES_DIR"], self.settings["TIDEMARK_NAMESPACE"], self.settings
        )
        self._lake = DemoLake(stack, self.settings, self.entities) if options.spark else None
        self._merged: dict[str, dict[str, float]] = {name: {} for name in self.entities.entities}
        self._dashboards = Dashboards.of(stack, self._say, options.dashboards)

    async def run(self) -> int:
        """The exit code: 0 only when everything adds up."""
        async with AsyncExitStack() as resources:
            await self._receiver.start()
            resources.push_async_callback(self._receiver.close)
            await self._set_up()
            await self._write()
            stores = await self.open_stores(resources)
            try:
                await drained(stores, self.entities, DRAIN_S_MAX, self._waiting, self._untold)
                if self._lake is not None:
                    await self._caught_up(self._lake, stores)
            except NotDrained as error:
                self._screen.say(str(error))
            await asyncio.to_thread(self._draw)
            self._screen.keep()
            shown = await asyncio.to_thread(self._panels_have_data)
            clean = self._options.keep or await asyncio.to_thread(self._end_services)
            complete, _ = await asyncio.gather(self._audit(), self._build())
            books = await read_books(stores, self.entities)
            lakes = [] if self._lake is None else await self._lake.sheets(stores, books)
        sheets = [balance(one) for one in books]
        self._screen.say("\n".join(["", *render(sheets, lakes)]))
        self._say(f"the whole demo took {time.monotonic() - self._began_s:.0f} s")
        equal = all(lake.adds_up for lake in lakes)
        adds_up = clean and complete and equal and all(sheet.adds_up for sheet in sheets)
        code = 0 if adds_up and shown else 1
        if self._options.keep:
            await self._stay()
        return code

    @property
    def stale_after_s(self) -> float:
        """Long enough for the outage to end and for the new schema to cure what it can."""
        return 0.3 * self._options.seconds + OUTAGE_S + 20

    def _choose_entities(self, folder: Path) -> Path:
        return choose_entities(folder, self._options.manner, self.stale_after_s)

    async def _set_up(self) -> None:
        self.stack.add(self._process("bank", "deploy.demo.bank", f"http://127.0.0.1:{self._bank['BANK_PORT']}/health"))
        await asyncio.to_thread(self.stack.start, "bank")
        self._say("the bank is open; tidemark bootstrap:")
        for line in await self._bootstrap():
            self._screen.say(f"    {line}")
        for name, module in SERVICES.items():
            port = self.stack.free_port(name)
            more = self.poller_env if name == "poller" else {}
            ready = f"http://127.0.0.1:{port}/ready"
            self.stack.add(self._process(name, module, ready, TIDEMARK_HTTP_PORT=str(port), **more))
            await asyncio.to_thread(self.stack.start, name)
        self._say(f"ready: {', '.join(SERVICES)}")
        if self._lake is not None:
            await self._lake.make_buckets()
            self._lake.add_stream()
        if self._dashboards is not None:
            spark = self._lake is not None
            await asyncio.to_thread(self._dashboards.start, self._python, {**self._bank, **self._env}, spark=spark)

    async def start_stream(self) -> None:
        """Spark takes its time, and the bank doesn't wait for it: what is in raw objects then is caught up with."""
        if self._lake is not None:
            try:
                await asyncio.to_thread(self.stack.start, "stream")
            except asyncio.CancelledError:
                self.stack.kill("stream")  # or the thread waits on until Spark is up, and Ctrl-C with it
                raise
            self._say("ready: stream (Spark)")

    async def _write(self) -> None:
        """Writers for the whole time, Kafka killed in the middle of it; the stream joins them."""
        options = self._options
        chosen = {"--seconds": options.seconds, "--writers": options.writers, "--rate": options.rate}
        arguments = [part for name, value in chosen.items() for part in (name, str(value))]
        command = (self._python, "-m", "deploy.demo.writers", *arguments)
        self.stack.add(Process("writers", command, needs=("bank",), env=self._bank, ends_itself=True))
        await asyncio.to_thread(self.stack.start, "writers")
        self._say(f"{options.writers} writers for {options.seconds:.0f} s, {options.rate:.0f} transactions a second")
        self._phase = "writing"
        beside = [
            asyncio.create_task(self.start_stream(), name="stream"),
            asyncio.create_task(self.trouble(), name="trouble"),
        ]
        try:
            while self.stack.is_running("writers") or not all(task.done() for task in beside):
                await self._frame()
            for task in beside:
                await task
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        self.stack.check()
        self._phase = "draining"
        self._say(f"the writers have stopped; they did: {self.stack.log_tail('writers', 1).strip()}")

    async def trouble(self) -> None:
        """What goes wrong while the bank is busy: Kafka is killed, and comes back."""
        await asyncio.sleep(max(3.0, 0.3 * self._options.seconds))
        await self.kafka_outage()
        await self._new_schema_version()

    async def _new_schema_version(self) -> None:
        """What an operator does when a source sends a field that the schema lacks."""
        add_field(Path(self.settings["TIDEMARK_ENTITIES_DIR"]), "colour")
        self._say("the field `colour` is added to the schemas; tidemark bootstrap registers them:")
        for line in await self._bootstrap():
            if "subject" in line:
                self._screen.say(f"    {line}")

    async def _caught_up(self, lake: DemoLake, stores: Stores) -> None:
        """Return once the stream's tables hold all that Kafka does. Raises ``NotDrained``."""
        deadline_s = time.monotonic() + CATCH_UP_S_MAX
        while waiting := await lake.behind(stores):
            await self._waiting(waiting)
            if time.monotonic() > deadline_s:
                raise NotDrained(f"the stream has not caught up: {waiting}")
            await asyncio.sleep(1)

    async def _untold(self) -> str:
        """What the drain waits for besides: that the owner of what nothing cures is told, and that it leaves then."""
        if self._options.manner == "rows" or self.stale_after_s > DRAIN_S_MAX:
            return ""
        if not self._receiver.notices:
            return "the first notice of stale events"
        deleted = fetch(f"http://127.0.0.1:{self.stack.port('notifier')}/metrics").get(
            "tidemark_stale_deleted_total", {}
        )
        return "" if sum(deleted.values()) else "the first stale event to leave for the archive"

    async def kafka_outage(self) -> None:
        await asyncio.to_thread(self.stack.kill, self._broker)
        self._phase = "writing, KAFKA IS DOWN"
        self._say(f"killed Kafka for {OUTAGE_S:.0f} s: what it can't take is parked in DynamoDB")
        await asyncio.sleep(OUTAGE_S)
        self._phase = "writing, Kafka is starting"
        await asyncio.to_thread(self.stack.start, self._broker)
        self._phase = "writing"
        self._say("Kafka is back")

    async def open_stores(self, resources: AsyncExitStack) -> Stores:
        settings = load_config(StoreSettings, self.settings)
        with environment({name: value for name, value in self.settings.items() if name.startswith("AWS_")}):
            return await Stores.open(settings, self._bank["BANK_DSN"], self.entities.namespace, resources)

    def _panels_have_data(self) -> bool:
        if self._dashboards is None:
            return True
        return self._dashboards.conclude(LOADER if self._lake is None else {})

    def _end_services(self) -> bool:
        """The services drain and end, each before those that it gives its work to. True: all with exit code 0."""
        watchers = [] if self._dashboards is None else list(self._dashboards.processes)
        names = [*watchers, *reversed(SERVICES), *(["stream"] if self._lake else [])]
        codes = {name: self.stack.terminate(name) for name in names}
        self._say("drained: " + ", ".join(f"{name} ended with {code}" for name, code in codes.items()))
        return not any(codes.values())

    async def _build(self) -> None:
        if self._lake is not None:
            for line in await self._lake.build():
                self._say(f"batch, into tables of its own: {line.strip()}")

    async def _audit(self) -> bool:
        """What an operator asks, of the running system or of one that stands still. True: complete."""
        chosen = ("--table", "skip" if self._lake is None else "require")
        code, output, errors = await self.tidemark("audit", *chosen)
        said = output.splitlines()
        short = [*takewhile(str.strip, said), *said[-1:]]
        self._say("tidemark audit:")
        for line in [*said, *errors.splitlines()[-15:]] if code else short:
            self._screen.say(f"    {line}")
        return not code

    async def _stay(self) -> None:
        self._screen.say("\n".join(["", *self._look_around(), "", "Everything stays up until Ctrl-C."]))
        with suppress(asyncio.CancelledError):
            while True:
                self.stack.check()
                await asyncio.sleep(1)

    def _look_around(self) -> list[str]:
        exports = " ".join(f"{name}={value}" for name, value in self._env.items())
        since = "updatedSince=1970-01-01T00:00:00Z"
        entity = next(iter(self.entities.entities.values()))
        return [
            "Look around, in another shell:",
            f'  eval "$(./deploy/local/stack env {self._options.name})"; export {exports}',
            "  ./deploy/local/tidemark status",
            "  ./deploy/local/tidemark parked list --limit 5",
            "  ./deploy/local/tidemark audit",
            f"  ./deploy/local/tidemark trace {entity.name} 1",
            f"  ./deploy/local/tidemark cursor show {entity.name}",
            f"  curl -s '{self._env['BANK_URL']}?entity={entity.source_entity}&{since}&limit=3'",
            *(
                f"  {name + ':':<10}http://127.0.0.1:{self.stack.port(name)}/metrics, /ready, /live"
                for name in SERVICES
            ),
            f"  raw objects: {self.settings['AWS_ENDPOINT_URL']}/{self.settings['TIDEMARK_RAW_BUCKET']}",
            *self._lake_places(),
            *([] if self._dashboards is None else [f"  {'queries:':<10}{self._dashboards.url}"]),
            f"  logs: ./deploy/local/stack logs {self._options.name} [poller|sink|stream|retrier|notifier|bank|kafka]",
        ]

    def _lake_places(self) -> list[str]:
        if self._lake is None:
            return []
        return [
            f"  {'stream:':<10}http://127.0.0.1:{self.stack.port('stream')}/metrics, /ready, /live",
            f"  Delta tables: {self._lake.stream_uri}/lake, and the batch's {self._lake.batch_uri}/lake",
        ]

    def _process(self, name: str, module: str, ready_url: str, **more: str) -> Process:
        return Process(
            name,
            (self._python, "-m", module),
            ready=http_answers(ready_url),
            env={**self._bank, **self._env, **more},
        )

    async def tidemark(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors of one command."""
        running = await asyncio.create_subprocess_exec(
            self._python,
            "-m",
            "services.cli",
            *arguments,
            env={"PATH": os.environ["PATH"], **self.settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
        assert running.returncode is not None
        return running.returncode, output.decode(), errors.decode()

    async def _bootstrap(self) -> list[str]:
        code, output, errors = await self.tidemark("bootstrap")
        if code:
            raise StackFailed(f"tidemark bootstrap ended with {code}:\n{output}{errors}")
        return output.splitlines()

    async def _frame(self) -> None:
        self.stack.check()
        await asyncio.to_thread(self._draw)
        await asyncio.sleep(FRAME_S)

    def _draw(self) -> None:
        poller, sink, retrier = (
            fetch(f"http://127.0.0.1:{self.stack.port(name)}/metrics") for name in ("poller", "sink", "retrier")
        )
        entities = self.entities.entities.values()
        now_s = time.time() if self._phase.startswith("writing") else None
        self._note_merged()
        found = []
        for entity in entities:
            merged = None if self._lake is None else self._merged[entity.name]
            found.append(entity_progress(entity.name, entity.topic, poller, sink, retrier, now_s, merged))
        self._screen.draw([f"{self._elapsed()}  {self._phase}", *lines(found)])

    def _note_merged(self) -> None:
        """A stream that was killed knows only what it has merged since; what it had merged stays merged."""
        if self._lake is None or not self.stack.is_running("stream"):
            return
        stream = fetch(f"http://127.0.0.1:{self.stack.port('stream')}/metrics")
        for entity in self.entities.entities.values():
            self._merged[entity.name] |= merged_offsets(stream, entity.topic)

    async def _waiting(self, what: str) -> None:
        self.stack.check()
        self._phase = f"draining: waits for {what}"
        await asyncio.to_thread(self._draw)

    def _say(self, text: str) -> None:
        self._screen.say(f"{self._elapsed()}  {text}")

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began_s)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"


def add_field(folder: Path, name: str) -> None:
    """An optional field more in every schema of the folder: compatible, and accepted where it was unknown before."""
    for file in sorted(folder.glob("*.avsc")):
        schema = json.loads(file.read_text())
        schema["fields"].append({"name": name, "type": ["null", "string"], "default": None})
        file.write_text(json.dumps(schema, indent=2))


def choose_entities(folder: Path, manner: str, stale_after_s: float = 60) -> Path:
    """The entity files of the manner, copied to ``folder``."""
    source = HERE / "entities"
    chosen = [source / "bank.yaml"]
    if manner in ("events", "both"):
        chosen += [source / "events.yaml", source / "account_events.avsc", source / "payment_events.avsc"]
    if manner in ("rows", "both"):
        chosen += sorted((source / "rows").iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    for file in chosen:
        shutil.copy(file, folder)
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("stale_after_s: 60", f"stale_after_s: {stale_after_s:g}"))
    return folder
