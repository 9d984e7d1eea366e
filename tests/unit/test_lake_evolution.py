"""What changes in a table when its rows do, and how rows of one schema become rows of another: by rule, in words."""

import json
from typing import Any

import pytest

from services.delta_loader.evolution import AddColumn, Breaking, Widen, plan, statements
from services.delta_loader.projection import projection
from services.delta_loader.spark_types import ArrayOf, MapOf, Member, Simple, SparkType, StructOf, to_json


def struct(**members: SparkType) -> StructOf:
    return StructOf(tuple(Member(name, kind) for name, kind in members.items()))


def table(keys: tuple[str, ...] = ("id",), **members: SparkType) -> str:
    return to_json(StructOf(tuple(Member(name, kind, name not in keys) for name, kind in members.items())))


ID, INT, LONG, FLOAT, DOUBLE, TEXT = map(Simple, ("long", "integer", "long", "float", "double", "string"))
DATE, LOCAL = Simple("date"), Simple("timestamp_ntz")


def test_a_table_that_fits_needs_nothing() -> None:
    wide = table(id=ID, a=LONG, b=DOUBLE, c=ArrayOf(struct(x=LONG, y=TEXT)), gone=TEXT)

    assert plan(wide, table(id=ID, b=FLOAT, a=INT, c=ArrayOf(struct(y=TEXT, x=INT)))) == ()
    assert statements((), "t") == []


def test_columns_are_added_at_every_level_behind_their_neighbours() -> None:
    was = table(id=ID, a=TEXT, items=ArrayOf(struct(x=INT)), by=MapOf(struct(y=struct(z=INT))), _deleted=TEXT)
    wanted = table(
        id=ID,
        a=TEXT,
        items=ArrayOf(struct(x=INT, w=INT)),
        by=MapOf(struct(y=struct(z=INT, v=LONG))),
        b=TEXT,
        c=ArrayOf(INT),
        _deleted=TEXT,
    )

    steps = plan(was, wanted)

    assert steps == (
        AddColumn(("items", "element", "w"), INT, "x"),
        AddColumn(("by", "value", "y", "v"), LONG, "z"),
        AddColumn(("b",), TEXT, "by"),
        AddColumn(("c",), ArrayOf(INT), "b"),
    )
    assert statements(steps, "delta.`x`") == [
        "ALTER TABLE delta.`x` ADD COLUMNS (`items`.`element`.`w` int AFTER `x`, "
        "`by`.`value`.`y`.`v` bigint AFTER `z`, `b` string AFTER `by`, `c` array<int> AFTER `b`)"
    ]


def test_types_grow_at_every_level() -> None:
    was = table(id=INT, d=Simple("decimal(9,2)"), a=ArrayOf(INT), m=MapOf(struct(f=FLOAT)), day=DATE, n=INT, f=FLOAT)
    wanted = table(
        id=LONG, d=Simple("decimal(9,4)"), a=ArrayOf(LONG), m=MapOf(struct(f=DOUBLE)), day=LOCAL, n=DOUBLE, f=INT
    )

    steps = plan(was, wanted, ["id"])

    assert steps == (
        Widen(("id",), INT, LONG),
        Widen(("d",), Simple("decimal(9,2)"), Simple("decimal(11,4)")),
        Widen(("a", "element"), INT, LONG),
        Widen(("m", "value", "f"), FLOAT, DOUBLE),
        Widen(("day",), DATE, LOCAL),
        Widen(("n",), INT, DOUBLE),
        Widen(("f",), FLOAT, DOUBLE),
    )
    assert statements(steps, "t")[:3] == [
        "ALTER TABLE t SET TBLPROPERTIES ('delta.enableTypeWidening' = 'true', "
        "'delta.feature.timestampNtz' = 'supported')",
        "ALTER TABLE t ALTER COLUMN `id` TYPE bigint",
        "ALTER TABLE t ALTER COLUMN `d` TYPE decimal(11,4)",
    ]


def test_a_name_that_needs_it_turns_column_mapping_on() -> None:
    (mapping, _) = statements(plan(table(id=ID), table(id=ID, s=ArrayOf(struct(**{"a b": INT})))), "t")

    assert mapping == "ALTER TABLE t SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')"


def test_what_breaks_is_told_at_once_with_what_to_do() -> None:
    was = table(id=ID, a=LONG, b=ArrayOf(struct(x=TEXT)), c=struct(x=INT), d=TEXT, Case=TEXT)
    wanted = table(id=ID, a=DOUBLE, b=ArrayOf(struct(x=INT)), c=TEXT, d=TEXT, case=TEXT)

    with pytest.raises(Breaking) as refused:
        plan(was, wanted, ["id", "d"])

    assert refused.value.differences == (
        "key: id in the table, id, d wanted",
        "column a: bigint in the table, double wanted",
        "column b.element.x: string in the table, int wanted",
        "column c: struct<`x`: int> in the table, string wanted",
        "column Case in the table, case wanted",
    )
    assert "--full-refresh" in str(refused.value)


def test_rows_are_projected_to_all_columns_of_the_table() -> None:
    source = table(a=INT, s=struct(y=INT, x=TEXT), items=ArrayOf(struct(x=INT)), m=MapOf(ArrayOf(FLOAT)), same=TEXT)
    target = table(
        id=ID,
        a=LONG,
        s=struct(**{"x": TEXT, "y": LONG, "it's": DATE}),
        items=ArrayOf(struct(x=INT, new=TEXT)),
        m=MapOf(ArrayOf(DOUBLE)),
        same=TEXT,
    )

    assert projection(source, target) == (
        "CAST(NULL AS bigint) AS `id`",
        "CAST(`a` AS bigint) AS `a`",
        "IF(`s` IS NULL, NULL, "
        "named_struct('x', `s`.`x`, 'y', CAST(`s`.`y` AS bigint), 'it\\'s', CAST(NULL AS date))) AS `s`",
        "transform(`items`, x0 -> IF(x0 IS NULL, NULL, "
        "named_struct('x', x0.`x`, 'new', CAST(NULL AS string)))) AS `items`",
        "transform_values(`m`, (k0, x0) -> transform(x0, x1 -> CAST(x1 AS double))) AS `m`",
        "`same` AS `same`",
    )


@pytest.mark.parametrize(
    "surplus",
    [{"b": INT}, {"a": LONG}, {"a": TEXT}, {"s": struct(x=INT, y=INT)}],
    ids=["column", "wider", "other", "member"],
)
def test_a_row_that_has_no_room_is_never_cut(surplus: dict[str, Any]) -> None:
    target = table(id=ID, a=INT, s=struct(x=INT))

    with pytest.raises(AssertionError, match=r"room|no column"):
        projection(table(**{"id": ID, "a": INT, "s": struct(x=INT)} | surplus), target)


def test_the_corrupt_record_is_no_column_of_the_table() -> None:
    assert projection(table(id=ID, _corrupt_record=TEXT), table(id=ID)) == ("`id` AS `id`",)


def test_what_spark_says_beside_the_types_is_read_over() -> None:
    spelled = json.loads(table(id=ID, a=LONG))
    spelled["fields"][1]["metadata"] = {"delta.typeChanges": [{"fromType": "integer", "toType": "long"}]}

    assert plan(json.dumps(spelled), table(id=ID, a=INT), ["id"]) == ()
