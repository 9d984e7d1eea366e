"""Raw objects → Delta by the loader's core: any order, repetition and split of the rows gives the same table."""

import ast
import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from services.delta_loader import history, refresh
from services.delta_loader.evolution import Breaking
from services.delta_loader.links import ChunkLimits, LedgerBroken
from services.delta_loader.loader import Span
from services.delta_loader.tables import RowsMissing, RuleChanged
from services.delta_loader.transform import TransformRefused
from shared import metrics
from shared.lake.positions import Positions
from shared.raw.keys import Chain
from tests.lake.raw_rows import HEARTBEAT, Change
from tests.lake.worlds import BROKEN, V2, V3, World, change, gone


@pytest.fixture
def world(spark: SparkSession, tmp_path: Path) -> World:
    return World(spark, tmp_path)


def positions(world: World, name: str = "lake") -> Positions:
    return world.tables(name).standing().positions


async def test_the_newest_event_of_each_key_wins_whatever_comes_last(world: World) -> None:
    await world.topic.write([change(1, 10), change(2, 10), change(1, 30), change(3, 5)])
    await world.topic.write([change(1, 20), gone(2, 11), change(3, 5)], partition=1)

    loaded = await world.load(properties={})
    again = await world.load()

    assert (loaded.rows, loaded.commits, again.commits) == (7, 1, 0)
    assert world.short() == [(1, "r30", False), (2, None, True), (3, "r5", False)]
    assert positions(world) == {world.topic.chain(0): 4, world.topic.chain(1): 3}


async def test_any_split_order_and_repetition_gives_the_same_table(world: World) -> None:
    chaos = random.Random(5)
    changes: list[Change] = [change(chaos.randrange(12), rank) for rank in range(60)]
    changes += [gone(chaos.randrange(12), rank) for rank in range(60, 70)]
    late = [change(one, 1000, rev=rev, note=f"rev {rev}") for one in (1, 2) for rev in (2, 1)]
    changes += late + chaos.sample(changes, 20)
    chaos.shuffle(changes)
    for first in range(0, len(changes), 10):
        await world.topic.write(changes[first : first + 10], partition=chaos.randrange(3))

    await world.load("at once")
    world.limits = ChunkLimits(objects=2, bytes=1 << 30, rows=1_000)
    pieces = await world.load("in pieces")
    whole_again = await world.load("in pieces", Span(reading={}))

    assert pieces.commits == 5
    assert whole_again.rows == len(changes)
    assert world.rows("at once") == world.rows("in pieces")
    assert {row["id"]: row["note"] for row in world.rows("at once")} | {1: "rev 2", 2: "rev 2"} == {
        row["id"]: row["note"] for row in world.rows("at once")
    }


async def test_rows_that_change_nothing_move_the_positions_all_the_same(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.load()
    await world.topic.write([change(1, 10), change(1, 9)])
    await world.load()

    assert positions(world) == {world.topic.chain(): 3}
    assert (await world.load()).commits == 0


async def test_rows_without_order_key_or_form_are_kept_aside_once(world: World) -> None:
    await world.topic.write([change(1, 10), Change("2", change(2, 1).fields, None, "e" * 32)])
    good = world.topic.rows([change(3, 7)], world.topic.chain(), 3)[0]
    await world.topic.write_body(b'{"id": "no number", "_rank": 1}\n' + good, 2)

    loaded = await world.load()
    await world.load(span=Span(reading={}))

    aside = world.rows(of="quarantine")
    assert loaded.quarantined == 2
    assert [(row["id"], row["note"]) for row in world.rows()] == [(1, "r10"), (3, "r7")]
    assert sorted(row["reason"] for row in aside) == ["corrupt", "no_order"]
    assert {row["reason"]: row["row_text"] for row in aside}["corrupt"] == '{"id": "no number", "_rank": 1}'
    assert positions(world) == {world.topic.chain(): 4}


async def test_heartbeats_move_positions_and_are_in_no_table(world: World) -> None:
    for partition in (0, 1):
        await world.topic.write([HEARTBEAT], partition)
    alone = await world.load()
    await world.topic.write([change(1, 10), HEARTBEAT, change(2, 5), HEARTBEAT])
    mixed = await world.load()
    again = await world.load("again", Span(reading={}), history=True)

    assert [(one.rows, one.commits, one.quarantined) for one in (alone, mixed, again)] == [
        (2, 1, 0),
        (4, 1, 0),
        (6, 1, 0),
    ]
    assert positions(world) == positions(world, "again") == {world.topic.chain(0): 5, world.topic.chain(1): 1}
    assert [row["id"] for row in world.rows()] == [row["id"] for row in world.rows("again")] == [1, 2]
    assert not list(world.root.rglob("*quarantine*"))
    shown = [
        metrics.REGISTRY.get_sample_value(
            "tidemark_heartbeat_timestamp_seconds", {"entity": "accounts", "stage": "lake", "partition": partition}
        )
        for partition in ("0", "1")
    ]
    assert shown == [1_700_000_000.004, 1_700_000_000.0]


async def test_columns_are_added_and_widened_and_a_breaking_change_stops_in_words(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.load()
    world.add_schema(2, V2)
    await world.topic.write([change(2, 11, schema_id=2, fields={"limit": 7}), change(1, 12)])
    await world.load()
    world.add_schema(3, V3)
    await world.topic.write([change(3, 13, schema_id=3, fields={"limit": 2**40}), change(2, 14)])
    await world.load()
    world.add_schema(4, BROKEN)
    await world.topic.write([change(4, 15, schema_id=4, fields={"note": True})])

    with pytest.raises(Breaking, match="note"):
        await world.load()

    found = [(row["id"], row["limit"], row["_rank"]) for row in world.rows()]
    assert found == [(1, None, 12), (2, None, 14), (3, 2**40, 13)]
    assert positions(world) == {world.topic.chain(): 5}


async def test_a_schema_id_that_only_the_rows_name_renews_the_schema(world: World) -> None:
    await world.topic.write([change(1, 10)])
    loader = world.loader()
    await world.claim()
    await loader.load()
    world.add_schema(2, V2)
    body, count, _ids = world.topic.rows([change(2, 11, schema_id=2, fields={"limit": 7})], world.topic.chain(), 1)
    await world.topic.write_body(body, count)
    await loader.load()

    assert [(row["id"], row["limit"]) for row in world.rows()] == [(1, None), (2, 7)]


async def test_a_hole_in_the_chain_is_not_stepped_over(world: World) -> None:
    for rank in range(3):
        await world.topic.write([change(rank, rank)])
    world.store.delete(world.topic.keys.link(world.topic.chain(), 1))

    with pytest.raises(LedgerBroken, match=r"offsets 1 to 1 of cdc\.accounts/1/0 are in no object"):
        await world.load()


async def test_an_object_with_fewer_rows_than_it_claims_stops_the_merge(world: World) -> None:
    body, _count, _ids = world.topic.rows([change(1, 1)], world.topic.chain(), 0)
    await world.topic.write_body(body, 2)

    with pytest.raises(RowsMissing, match="1 rows were read where the metadata of 1 raw object"):
        await world.load()

    assert positions(world) == {}


async def test_expired_objects_are_no_part_of_a_new_table_and_missing_from_an_old_one(world: World) -> None:
    for rank in range(3):
        await world.topic.write([change(rank, rank)])
    world.limits = ChunkLimits(objects=1, bytes=1 << 30, rows=1_000)
    await world.load("old", Span(through={world.topic.chain(): 0}))
    world.store.delete(world.topic.keys.link(world.topic.chain(), 0))
    world.store.delete(world.topic.keys.link(world.topic.chain(), 1))
    await world.store.create(world.topic.keys.floor(world.topic.chain()), b'{"floor": 2}', {})

    await world.load("new")
    with pytest.raises(LedgerBroken, match=r"offsets 1 to 1 of .* were expired before they were merged"):
        await world.load("old")
    await world.load("old", Span(past_floor=True))

    assert positions(world, "new") == positions(world, "old") == {world.topic.chain(): 3}


async def test_after_a_restore_the_positions_are_those_of_the_restored_version(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.load()
    restored = world.tables().table.at().version
    await world.topic.write([change(2, 11)])
    await world.load()
    DeltaTable.forPath(world.spark, world.lake("lake").table("accounts")).restoreToVersion(restored)
    behind = positions(world)
    await world.topic.write([change(3, 12)])
    await world.load()

    assert behind == {world.topic.chain(): 1}
    assert [row["id"] for row in world.rows()] == [1, 2, 3]


async def test_another_writer_in_between_is_found_and_the_chunk_done_again(world: World) -> None:
    await world.topic.write([change(1, 10), change(2, 10)])
    await world.load()
    await world.topic.write([change(1, 11), change(2, 9)])
    tables, other = world.tables(), world.tables()
    plain, calls = tables._fit, list[int]()

    def fit(schema: Any) -> None:
        plain(schema)
        if not calls:
            calls.append(1)
            other.table.set_properties({"delta.appendOnly": "false"})

    tables._fit = fit  # type: ignore[method-assign]
    loaded = await world.loader(tables=tables).load()

    assert loaded.commits == 1
    assert [(row["id"], row["_rank"]) for row in world.rows()] == [(1, 11), (2, 10)]
    assert positions(world) == {world.topic.chain(): 4}


async def test_a_full_refresh_puts_a_new_table_in_place_by_one_commit(world: World) -> None:
    await world.topic.write([change(1, 10), change(2, 10)])
    await world.load()
    await world.topic.write([gone(2, 12), change(3, 5)])
    sql = "SELECT *, upper(note) AS loud FROM events"
    old, aside = world.tables(transform=sql), world.tables("aside", transform=sql)
    refresh.begin(aside)
    await world.loader(tables=aside).load()
    before = old.table.at().version
    refresh.put_in_place(aside, old)
    refresh.remove(aside)
    await world.topic.write([change(4, 1)])
    await world.load(transform=sql)

    commit = old.table._log.read(before + 1)
    assert commit is not None
    assert commit.note is not None
    assert commit.note.replaces
    assert [(row["id"], row["loud"]) for row in world.rows()] == [(1, "R10"), (2, None), (3, "R5"), (4, "R1")]
    assert positions(world) == {world.topic.chain(): 5}
    assert "clustering" in str(world.spark.sql(f"DESCRIBE DETAIL {old.table.name}").collect()[0]["tableFeatures"])


async def test_a_table_made_for_another_order_is_refused_until_it_is_built_anew(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.load()
    await world.topic.write([change(1, 11)])

    with pytest.raises(RuleChanged, match="--full-refresh"):
        await world.load(order="version")


async def test_the_live_rows_have_a_name_in_the_catalog(world: World) -> None:
    await world.topic.write([change(1, 10), change(2, 10), gone(2, 11)])
    await world.load(catalog="tidemark_test")
    world.add_schema(2, V2)
    await world.topic.write([change(3, 11, schema_id=2, fields={"limit": 7})])
    await world.load(catalog="tidemark_test")
    live = world.spark.sql("SELECT id, limit FROM tidemark_test.accounts_live ORDER BY id").collect()
    world.spark.sql("DROP SCHEMA tidemark_test CASCADE")

    assert [tuple(row) for row in live] == [(1, None), (3, 7)]


REFUSED = {
    "SELECT * FROM events WHERE id > 1": "a filter",
    "SELECT * FROM events JOIN (SELECT 1 AS one) ON true": "a join",
    "SELECT DISTINCT * FROM events": "DISTINCT",
    "SELECT * FROM events LIMIT 3": "LIMIT",
    "SELECT *, row_number() OVER (ORDER BY id) AS n FROM events": "a window function",
    "SELECT *, explode(array(1, 2)) AS n FROM events": "a generator",
    "SELECT *, rand() AS n FROM events": r"rand\(\)",
    "SELECT *, current_timestamp() AS n FROM events": "current_timestamp",
    "SELECT *, (SELECT max(id) FROM events) AS n FROM events": "a subquery",
    "SELECT * EXCEPT (id), id + 1 AS id FROM events": "computes 'id'",
    "SELECT * EXCEPT (_rank), _tiebreak AS _rank FROM events": "computes '_rank'",
    "SELECT * EXCEPT (_event_id) FROM events": "leaves out '_event_id'",
    "SELECT *, 1 AS NOTE FROM events": "two columns",
    "SELECT *, missing FROM events": "missing",
    "SELECT * FROM nowhere": "nowhere",
    "SELECT * FROM events UNION ALL SELECT * FROM events": "UNION",
}


async def test_a_transform_that_decides_which_rows_exist_is_refused(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.claim()

    for sql, words in REFUSED.items():
        with pytest.raises(TransformRefused, match=words):
            await world.load("refused", transform=sql)

    assert positions(world, "refused") == {}


async def test_a_transform_computes_columns_from_each_row(world: World) -> None:
    await world.topic.write([change(1, 10), gone(2, 3)])
    sql = "SELECT x.* EXCEPT (owner__name), concat(owner__name, '!') AS who FROM (SELECT * FROM events) x;"
    await world.load(transform=sql)

    assert [(row["id"], row["who"], "owner__name" in row) for row in world.rows()] == [
        (1, "owner 1!", False),
        (2, None, False),
    ]


def intervals(world: World, name: str) -> Sequence[tuple[Any, ...]]:
    found = world.read(name, "history").selectExpr(
        "id", "note", "unix_micros(__start_at) a", "unix_micros(__end_at) b", "__current", "_rev"
    )
    return sorted((tuple(row) for row in found.collect()), key=lambda row: (row[0], row[2], row[5]))


async def test_late_events_split_the_intervals_of_the_history(world: World) -> None:
    await world.topic.write([change(1, 10), change(1, 30), change(2, 5)])
    await world.load("slowly", history=True)
    await world.topic.write([change(1, 20), gone(1, 40), change(1, 30, rev=1, note="mended")])
    await world.load("slowly", history=True)
    await world.load("slowly", Span(reading={}), history=True)
    await world.load("at once", history=True)

    expected = [
        (1, "r10", 10, 20, False, 0),
        (1, "r20", 20, 30, False, 0),
        (1, "r30", 30, 30, False, 0),
        (1, "mended", 30, 40, False, 1),
        (1, None, 40, None, True, 0),
        (2, "r5", 5, None, True, 0),
    ]
    assert intervals(world, "slowly") == intervals(world, "at once") == expected


class Killed(Exception):
    pass


@pytest.mark.parametrize("rival", [Span(), Span(through={Chain("cdc.accounts", 1, 1): 0})], ids=["all", "what follows"])
async def test_a_writer_that_dies_between_two_rounds_leaves_no_wrong_end_in_the_history(
    world: World, monkeypatch: pytest.MonkeyPatch, rival: Span
) -> None:
    await world.topic.write([change(1, 10)])
    await world.load(history=True)
    await world.topic.write([change(1, 20)])
    await world.topic.write([change(1, 30)], partition=1)
    compute, rounds = history._intervals, count()

    def overtaken(*arguments: Any, **named: Any) -> Any:
        """The first round's are computed from a version that is history when they are committed; there is no third."""
        number, found = next(rounds), compute(*arguments, **named)
        if number == 0:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, world.load(span=rival, history=True)).result()
        if number == 2:
            raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(history, "_intervals", overtaken)
        with pytest.raises(Killed):
            await world.load(span=Span(through={world.topic.chain(0): 1}), history=True)
    await world.load(history=True)

    assert [row[1:5] for row in intervals(world, "lake")] == [
        ("r10", 10, 20, False),
        ("r20", 20, 30, False),
        ("r30", 30, None, True),
    ]
    assert positions(world) == {world.topic.chain(0): 2, world.topic.chain(1): 1}


async def test_a_history_that_is_kept_from_now_on_begins_with_the_first_event(world: World) -> None:
    await world.topic.write([change(1, 10)])
    await world.load()
    await world.topic.write([change(1, 20)])
    await world.load(history=True)

    assert [row[1:4] for row in intervals(world, "lake")] == [("r10", 10, 20), ("r20", 20, None)]
    assert world.short() == [(1, "r20", False)]


async def test_ranges_and_older_generations_are_loaded_too(world: World) -> None:
    await world.topic.write([change(1, 10)], generation=1)
    await world.topic.write([change(1, 20)], generation=2)
    await world.topic.write([change(2, 20)], generation=2)
    await world.claim(2)
    chain = world.topic.chain(generation=2)
    await world.load("part", Span(through={chain: 1}, reading={chain: 1}))
    part = world.short("part"), positions(world, "part")
    await world.load("part")

    assert part == ([(2, "r20", False)], {})
    assert world.short("part") == [(1, "r20", False), (2, "r20", False)]
    assert positions(world, "part") == {world.topic.chain(): 1, chain: 2}


def test_the_batch_imports_nothing_that_spark_3_5_has_not() -> None:
    folder = Path(__file__).parents[2] / "services" / "delta_loader"
    newer = ("pyspark.sql.datasource", "pyspark.sql.streaming.datasource")
    allowed = {"source.py", "stream.py"}
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith(newer) for name in names):
                found.add(file.name)

    assert found <= allowed
