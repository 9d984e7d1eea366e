"""The walk on real servers, with the four services as processes and a bank that is busy meanwhile."""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from deploy.demo.books import Stores, StoreSettings
from deploy.demo.refusal import Topics, open_topics
from deploy.demo.walk import Patience, Story, sheet
from deploy.local.stack import Stack
from shared.config import load_config
from shared.kafka.settings import KafkaSettings
from tests.integration.running import Running, running_on

_UNSEEN = """INSERT INTO change_outbox
    SELECT nextval('change_number'), entity, '2001-01-01T00:00:00Z',
        jsonb_set(payload::jsonb, '{updated_at}', '"2001-01-01T00:00:00.000Z"')::text
    FROM change_outbox WHERE entity = 'account_events' LIMIT 1 RETURNING id"""


@pytest.fixture(scope="module")
def place(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Its invalid events are stale after 4 seconds."""
    with running_on(stack, tmp_path_factory.mktemp("walk"), stale_after_s=4) as own:
        own.write(seconds=300, rate=5)
        yield own
    asyncio.run(own.drop_bank())


@asynccontextmanager
async def topics_of(place: Running) -> AsyncIterator[Topics]:
    settings = KafkaSettings(bootstrap=place.settings["TIDEMARK_KAFKA_BOOTSTRAP"])
    async with open_topics(settings, list(place.entities.topics)) as topics:
        yield topics


async def refuse(place: Running) -> None:
    """As a walk that was killed leaves it."""
    async with topics_of(place) as topics:
        await topics._set_all("0")


async def refusing(place: Running) -> list[str]:
    """The topics that did until now."""
    async with topics_of(place) as topics:
        return await topics.heal()


@pytest.mark.timeout(400)
def test_the_walk_shows_every_hop_heals_what_a_killed_one_left_and_may_be_repeated(place: Running) -> None:
    for number in range(2):
        if number:
            asyncio.run(refuse(place))

        code, output, errors = place.tidemark("demo", "--within", "60")
        print(output)

        assert code == 0, output + errors
        assert output.splitlines()[-1] == "missing: 0"
        healed = output.count("was still refusing records, since a walk was killed: healed")
        assert healed == 2 * number, "both topics"
        hops = [line[10:21].strip() for line in output.splitlines() if line[6:8] == " s"]
        assert hops[healed : healed + 5] == ["bank", "poller", "Kafka", "raw", "Delta"]
        assert "kafka_topic: refused by the broker: InvalidTimestampError" in output
        assert re.search(r"published under the same event id [0-9a-f]{32}, attempt [1-9]", output)
        assert "1 stale event (invalid at /opened_at)" in output
        assert ("told before: once per root cause" in output) == (number > 0)
        assert asyncio.run(refusing(place)) == []


@pytest.mark.timeout(200)
def test_a_change_that_gets_stuck_is_named_with_its_hop_and_kafka_is_healed_all_the_same(place: Running) -> None:
    place.stop("sink")
    no_sink, said, errors = place.tidemark("demo", "--within", "6")
    place.start("sink")

    assert no_sink == 1, said + errors
    assert re.search(r"STUCK +at raw: change \d+ has not come there in 6 s: seen at .*, in Kafka, ", said)
    assert "s3-sink's log" in said

    place.stop("poller")
    no_poller, said, errors = place.tidemark("demo", "--within", "1")
    place.start("poller")

    assert no_poller == 1, said + errors
    assert re.search(r"STUCK +at poller: .* no store knows event [0-9a-f]{32}", said)
    assert asyncio.run(refusing(place)) == []


@pytest.mark.timeout(200)
def test_a_walk_that_is_told_to_end_while_kafka_refuses_heals_it_first(place: Running) -> None:
    command = [place.python, "-m", "deploy.demo.tidemark", "demo", "--within", "60"]
    environment = {"PATH": os.environ["PATH"], **place.settings}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as walking:
        assert walking.stdout is not None
        assert any("refuses all records" in line for line in walking.stdout)
        walking.terminate()

        assert walking.wait(60) == 130
    assert asyncio.run(refusing(place)) == []


@pytest.mark.timeout(200)
async def test_a_change_that_the_poller_never_saw_is_missing_from_the_sheet(
    place: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as resources:
        settings = load_config(StoreSettings, place.settings)
        stores = await Stores.open(settings, place.settings["BANK_DSN"], place.entities.namespace, resources)
        number = await stores.bank.fetchval(_UNSEEN)

        assert not await sheet(stores, place.entities, Patience(hop_s=2), Story())

    said = capsys.readouterr().out
    assert f"account_events: in no place: change {number}, never seen" in said
    assert said.splitlines()[-1] == "missing: 1"


def test_without_its_settings_the_walk_says_all_that_is_missing(place: Running, tmp_path: Path) -> None:
    place.settings, kept = {**place.settings, "BANK_DSN": "", "BANK_NOTICES_URL": ""}, place.settings
    try:
        code, _, errors = place.tidemark("demo")
    finally:
        place.settings = kept

    assert code == 2
    assert "BANK_DSN" in errors
    assert "BANK_NOTICES_URL" in errors
