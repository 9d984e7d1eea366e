"""A closed window read again from the source: what it shows must have been seen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.cli.audit_records import Law
from services.cli.audit_source import SHOWN_LAYOUT, TRIES, Shown, Window, closed_window, finding_of, read_window
from services.cli.audit_spill import Spill
from shared.checkpoints.model import CursorMove, CursorState, Standing
from shared.entities import Entity, load_entities
from shared.events.identity import Identifier, event_id
from shared.producer.feed import FeedAnswer, FeedRequest, SourceRateLimited

S = 1_000_000
T0 = 1_790_000_000 * S
FOLDER = """
entities:
  things: {source: bank, key: id, updated_at: {field: at, format: epoch_us}, schema: a.avsc, owner: o, shows: events,
           lateness_cap_s: 100, page_rows: 5}
sources: {bank: {url: "http://127.0.0.1:1/cdc", limit_param: limit}}
owners: {o: {}}
"""
SCHEMA = '{"type":"record","name":"a","fields":[{"name":"id","type":"string"},{"name":"at","type":"long"}]}'


@pytest.fixture
def entity(tmp_path: Path) -> Entity:
    (tmp_path / "a.yaml").write_text(FOLDER)
    (tmp_path / "a.avsc").write_text(SCHEMA)
    return load_entities(tmp_path).entities["things"]


def standing(cap_swept_us: int) -> Standing:
    state = CursorState(cursor_us=cap_swept_us, swept_us=cap_swept_us, cap_swept_us=cap_swept_us)
    return Standing(state=state, shown_us=1, commit_seq=1, held=True, unclean=False)


def move(who: str, start_us: int, end_us: int) -> CursorMove:
    return CursorMove(
        entity="things", at_us=0, first_at_us=0, moves=1, who=who, why="", cursor_from_us=start_us,
        cursor_to_us=end_us, swept_from_us=0, cap_swept_from_us=0, epoch=1,
    )  # fmt: skip


def test_a_window_ends_where_nothing_can_be_late_within_the_cap(entity: Entity) -> None:
    assert closed_window(entity, standing(T0), [], 60) == Window(T0 - 160 * S, T0 - 100 * S)


def test_what_an_operator_stepped_over_was_not_wanted_and_idle_moves_are_none_of_these(entity: Entity) -> None:
    moves = [move("me@here", T0 - 150 * S, T0 - 140 * S), move("reading", T0 - 130 * S, T0 - 120 * S)]
    window = closed_window(entity, standing(T0), moves, 60)

    assert [us for us in (T0 - 155 * S, T0 - 145 * S, T0 - 125 * S, T0 - 90 * S) if us in window] == [
        T0 - 155 * S,
        T0 - 125 * S,
    ]


def test_it_does_not_begin_before_reading_did(entity: Entity) -> None:
    late = replace(entity, start_at="2026-09-21T14:11:00Z")  # T0 - 140 s
    assert closed_window(late, standing(T0), [], 60).start_us == T0 - 140 * S


class Feed:
    """Shows events by time, at most ``limit`` of them, and rests now and then."""

    def __init__(self, count: int, rests: int = 0) -> None:
        self.rows = [(T0 + number // 3 * S, f"k{number}") for number in range(count)]
        self.rests = rests
        self.asked = 0

    async def fetch(self, request: FeedRequest) -> FeedAnswer:
        self.asked += 1
        if self.rests:
            self.rests -= 1
            raise SourceRateLimited("resting", 0.0)
        rows = [row for row in self.rows if row[0] >= request.since_us][: request.limit]
        body = json.dumps([{"id": key, "at": at} for at, key in rows]).encode()
        return FeedAnswer(body, T0 + 86_400 * S, 0.0, 1)


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    window = Window(T0 + 2 * S, T0 + 9 * S)
    with (tmp_path / "keys").open("w+") as keys:
        yield Shown(window=window, spill=Spill(tmp_path, "source", SHOWN_LAYOUT), keys=keys)


async def no_wait(_seconds: float) -> None:
    """Time is no matter here."""


async def test_pages_are_read_to_the_windows_end_and_only_its_events_are_taken(entity: Entity, shown: Shown) -> None:
    feed = Feed(60, rests=TRIES - 1)
    await read_window(entity, feed, shown, lambda _done: None, no_wait)

    assert shown.stopped is None
    assert shown.spill.count == 7 * 3
    assert feed.asked < 30, "it stops at the window's end"


async def test_a_source_that_does_not_answer_ends_it(entity: Entity, shown: Shown) -> None:
    with pytest.raises(SourceRateLimited):
        await read_window(entity, Feed(60, rests=TRIES), shown, lambda _done: None, no_wait)


async def test_what_no_store_knows_is_named_with_its_key(entity: Entity, shown: Shown, tmp_path: Path) -> None:
    feed = Feed(60)
    await read_window(entity, feed, shown, lambda _done: None, no_wait)
    law = Law.of(entity.rules, tmp_path)
    raws = [json.dumps({"id": key, "at": at}).encode() for at, key in feed.rows]
    for number, sighting in enumerate(Identifier(entity.rules).identify(raws)):
        if number != 10:
            fields = (bytes.fromhex(event_id(sighting.identity, 0)), b"", sighting.updated_us, number, 0, False)
            law.seen.add([law.seen.layout.pack(*fields)])
    found = finding_of("things", law, shown)
    law.close()

    assert found is not None
    assert (found.kind, found.count) == ("source_unseen", 1)
    assert found.names[0].startswith("key 'k10', dated ")
    assert "--to 2026-09-21T14:13:23.000000Z" in found.repair
