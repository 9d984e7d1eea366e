"""One group, its channels and its item: what is sent, to whom, how often, and what a death in between repeats."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from services.stale_notifier.delivery import Delivery, Owners
from services.stale_notifier.grouping import Count, Timing, opened
from services.stale_notifier.notice import ChannelRefused, ChannelUnavailable, Notice, Receipt
from services.stale_notifier.notices import Facts
from services.stale_notifier.telling import Teller, TellingLimits
from shared import metrics
from shared.entities import Entities, load_entities
from shared.events.model import Reason
from shared.parked.groups import Cause, Group, OpenGroup
from tests.fakes.stale_bench import write_entities

T0 = 1_760_000_000_000
HOUR_S = 3600
CAUSE = Cause("accounts", Reason.INVALID, "/balance", "ab" * 8)
FACTS = Facts(path="/balance", rule="expected a long", subject="s", evidence_uri="s3://a/b", evidence_sha256="cd" * 32)


class Killed(Exception):
    """The process dies here."""


class FakeChannel:
    def __init__(self, name: str, repost_s: float | None = None) -> None:
        self.name, self.repost_s = name, repost_s
        self.sent: list[Notice] = []
        self.fails: Exception | None = None

    async def send(self, notice: Notice) -> Receipt:
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.sent.append(notice)
        return Receipt(
            channel=self.name, dedup_key=notice.dedup_key, provider_id="p1", status="200", at_ms=notice.at_ms
        )

    @property
    def kinds(self) -> list[str]:
        return [notice.kind.value for notice in self.sent]


class FakeGroups:
    """Compare-and-swap over one dictionary."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Group] = {}
        self.dies: Callable[[Group], bool] = lambda group: False

    async def get(self, owner: str, cause_id: str) -> Group | None:
        await asyncio.sleep(0)
        return self.items.get((owner, cause_id))

    async def swap(self, group: Group) -> Group | None:
        await asyncio.sleep(0)
        if self.dies(group):
            raise Killed
        key = (group.owner, group.cause.id)
        there = self.items.get(key)
        if (0 if there is None else there.ver) != group.ver:
            return None
        self.items[key] = replace(group, ver=group.ver + 1)
        return self.items[key]

    async def due(self, shard_number: int, now_ms: int, limit: int) -> list[OpenGroup]:
        return []


class World:
    def __init__(self, entities: Entities) -> None:
        self.entities = entities
        self.groups = FakeGroups()
        self.now_ms = T0
        self.events = 5
        self.slack, self.pager = FakeChannel("slack"), FakeChannel("pager")
        self.ways: dict[str, list[Any]] = {"ledger": [self.way(self.slack), self.way(self.pager, 4 * HOUR_S)]}
        self.delivery: Delivery

    def way(self, channel: FakeChannel, escalate_after_s: float | None = None) -> Any:
        return SimpleNamespace(channel=channel, escalate_after_s=escalate_after_s)

    def teller(self) -> Teller:
        owners = Owners(self.entities, self.ways)
        self.delivery = Delivery(owners)
        limits = TellingLimits(lease_s=60, grace_s=7 * 86_400, namespace="test")
        return Teller(
            self.groups, self, self, owners, self.delivery, limits, Timing(), "w",
            clock_ms=lambda: self.now_ms, random_unit=lambda: 1.0,
        )  # fmt: skip

    async def count(self, cause: Cause) -> Count:
        return Count(self.events, T0 - 9, T0 - 1) if self.events else Count()

    async def refusing(self, cause: Cause) -> tuple[int, ...]:
        return (3,)

    async def open(self, owner: str = "ledger") -> Group:
        facts = json.dumps({name: getattr(FACTS, name) for name in FACTS.__struct_fields__}).encode()
        group = await self.groups.swap(opened(owner, CAUSE, facts, self.now_ms, Timing()))
        assert group is not None
        return group

    def group(self, owner: str = "ledger") -> Group:
        return self.groups.items[owner, CAUSE.id]

    async def at_due(self, teller: Teller, owner: str = "ledger") -> Group:
        """Let the group come due, and take its turn."""
        self.now_ms = max(self.now_ms, self.group(owner).due_ms)
        await teller.work(self.hint(owner))
        return self.group(owner)

    def hint(self, owner: str = "ledger") -> OpenGroup:
        group = self.group(owner)
        return OpenGroup(owner, CAUSE.id, group.phase, "accounts", Reason.INVALID, group.ver, group.due_ms)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(load_entities(write_entities(tmp_path, [])))


async def test_the_first_notice_says_all_but_values_and_its_receipt_is_kept(world: World) -> None:
    await world.open()
    group = await world.at_due(world.teller())

    [notice] = world.slack.sent
    assert world.pager.sent == []
    assert (notice.kind, notice.number, notice.count, notice.path, notice.rule) == ("new", 1, 5, "/balance", FACTS.rule)
    assert (notice.fingerprint, notice.dedup_key) == (CAUSE.id, f"cdc:test:accounts:invalid:{CAUSE.id}")
    assert (notice.evidence_uri, notice.evidence_sha256, notice.versions) == ("s3://a/b", "cd" * 32, (3,))
    assert notice.delete_after_ms == world.now_ms + 7 * 86_400_000
    assert group.receipt is not None
    assert (group.receipt.channel, group.receipt.number, group.pending) == ("slack", 1, None)


async def test_a_group_that_is_not_due_or_held_by_another_is_left_alone(world: World) -> None:
    await world.open()
    await world.teller().work(world.hint())
    assert world.slack.sent == []

    world.now_ms = world.group().due_ms
    hint = world.hint()
    await asyncio.gather(*(world.teller().work(hint) for _ in range(5)))
    assert len(world.slack.sent) == 1


async def test_death_after_the_send_repeats_the_same_notice(world: World) -> None:
    await world.open()
    world.groups.dies = lambda group: bool(group.receipts)
    with pytest.raises(Killed):
        await world.at_due(world.teller())
    world.groups.dies = lambda group: False
    world.events = 5_000  # meanwhile
    group = await world.at_due(world.teller())

    first, second = world.slack.sent
    assert first == second
    assert group.receipt is not None


async def test_death_before_the_notice_is_kept_sends_nothing(world: World) -> None:
    await world.open()
    world.groups.dies = lambda group: group.pending is not None
    with pytest.raises(Killed):
        await world.at_due(world.teller())

    assert world.slack.sent == []
    assert world.group().pending is None


async def test_a_channel_that_is_down_is_waited_for_and_obeyed(world: World) -> None:
    world.ways["ledger"] = [world.way(world.slack)]
    await world.open()
    world.slack.fails = ChannelUnavailable("busy", retry_after_s=1_000)
    group = await world.at_due(world.teller())
    assert group.due_ms == world.now_ms + 1_000_000
    assert group.receipt is None

    world.slack.fails = None
    group = await world.at_due(world.teller())
    assert group.receipt is not None
    assert world.slack.kinds == ["new"]


async def test_the_escalation_channel_takes_over_when_the_first_has_failed_for_long(world: World) -> None:
    await world.open()
    teller = world.teller()
    world.slack.fails = ChannelUnavailable("down")
    while world.group().receipt is None:
        assert world.now_ms < T0 + 6 * HOUR_S * 1000
        await world.at_due(teller)

    assert world.now_ms >= T0 + 4 * HOUR_S * 1000
    assert world.pager.kinds == ["new"]


async def test_a_channel_that_is_gone_is_disabled_said_and_passed_over(world: World) -> None:
    await world.open()
    world.slack.fails = ChannelRefused("410", permanent=True)
    teller = world.teller()
    group = await world.at_due(teller)
    assert group.receipt is None

    group = await world.at_due(teller)
    assert group.receipt is not None
    assert world.pager.kinds == ["new"]
    assert world.delivery.usable("ledger") == {"pager"}
    assert metrics.CHANNEL_DISABLED.labels("ledger", "slack")._value.get() == 1


async def test_a_notice_that_one_channel_does_not_like_goes_to_the_next(world: World) -> None:
    other = FakeChannel("other")
    world.ways["ledger"] = [world.way(world.slack), world.way(other)]
    await world.open()
    world.slack.fails = ChannelRefused("413", permanent=False)
    teller = world.teller()
    group = await world.at_due(teller)

    assert group.receipt is not None
    assert group.receipt.channel == "other"
    assert world.delivery.usable("ledger") == {"slack", "other"}


async def test_the_whole_life_of_a_group(world: World) -> None:
    await world.open()
    teller = world.teller()
    await world.at_due(teller)
    world.events = 60
    await world.at_due(teller)
    assert world.slack.kinds == ["new", "grown"]
    while world.now_ms < T0 + 10 * HOUR_S * 1000:
        await world.at_due(teller)
    assert world.slack.kinds == ["new", "grown", "repeat", "repeat"]
    assert world.pager.kinds == ["escalation"]
    world.events = 0
    while world.group().phase != "resolved":
        assert world.now_ms < T0 + 11 * HOUR_S * 1000
        await world.at_due(teller)
    assert world.slack.kinds[-1] == world.pager.kinds[-1] == "resolved"

    everything = [*world.slack.sent, *world.pager.sent]
    assert {notice.dedup_key for notice in everything} == {f"cdc:test:accounts:invalid:{CAUSE.id}"}
    assert sorted({notice.number for notice in everything}) == [1, 2, 3, 4, 5, 6]
    assert world.slack.sent[-1].notice_id == world.pager.sent[-1].notice_id


async def test_an_escalation_that_is_refused_is_not_tried_for_ever(world: World) -> None:
    await world.open()
    teller = world.teller()
    world.pager.fails = ChannelRefused("410", permanent=True)
    while world.now_ms < T0 + 7 * HOUR_S * 1000:
        await world.at_due(teller)

    assert world.group().escalated == ("pager",)
    assert world.group().number == 3, "the first, the refused escalation, the repeat"
    assert world.slack.kinds == ["new", "repeat"]


async def test_an_end_that_one_channel_never_hears_of_is_an_end_all_the_same(world: World) -> None:
    await world.open()
    teller = world.teller()
    await world.at_due(teller)
    world.events = 0
    world.slack.fails = ChannelRefused("410", permanent=True)
    for _ in range(5):
        if (await world.at_due(teller)).phase == "resolved":
            break

    assert world.group().phase == "resolved"


async def test_a_receiver_that_forgets_gets_the_newest_notice_again(world: World) -> None:
    alerts = FakeChannel("alerts", repost_s=120)
    world.ways["ledger"] = [world.way(alerts)]
    await world.open()
    teller = world.teller()
    for _ in range(8):
        await world.at_due(teller)

    assert len(alerts.sent) >= 4
    assert {notice.number for notice in alerts.sent} == {1}


async def test_a_group_that_nobody_can_be_told_of_stays_and_says_so(world: World) -> None:
    world.ways = {}
    await world.open()
    counted = metrics.NOTICES.labels("ledger", "", "no_channel")._value
    before = counted.get()
    group = await world.at_due(world.teller())

    assert counted.get() == before + 1
    assert (group.phase, group.receipt) == ("waiting", None)
    assert group.due_ms == world.now_ms + 300_000


async def test_a_group_whose_entity_has_another_owner_now_is_left_to_that_owner(world: World) -> None:
    world.ways["former"] = [world.way(FakeChannel("old"))]
    await world.open("former")
    group = await world.at_due(world.teller(), "former")

    assert group.phase == "resolved"
