"""The batch on Spark 3.5 and Delta 3.3: what it may import and call, and what it does without."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.delta_loader import session
from services.delta_loader.evolution import AddColumn, Breaking, plan
from services.delta_loader.spark_types import ArrayOf, Member, Simple, SparkType, StructOf, to_json
from shared.config import ConfigError
from tests.fakes.spark_session import FakeSpark

FOLDER = Path(session.__file__).parent
STREAM = {"source", "stream"}
NEWER = ("pyspark.sql.datasource", "pyspark.sql.streaming.datasource", "pyspark.sql.functions.")
FUNCTIONS = {
    *("coalesce", "col", "concat_ws", "count", "current_timestamp", "expr", "lead", "lit", "max", "max_by", "min"),
    *("sha2", "struct", "sum", "to_json", "when"),
}
"""Seen in Spark 3.5: look there before one is added."""
ID, INT, LONG, TEXT = map(Simple, ("long", "integer", "long", "string"))


def imported(file: Path) -> Iterator[str]:
    """What is imported when the module is; imports inside functions are not."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_what_the_batch_imports_is_in_spark_3_5() -> None:
    waiting, seen, found = ["__main__"], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or not (FOLDER / f"{name}.py").exists():
            continue
        seen.add(name)
        names = list(imported(FOLDER / f"{name}.py"))
        found |= {one for one in names if one.startswith(NEWER)}
        waiting += [part for one in names if one.startswith("services.delta_loader.") for part in one.split(".")[2:4]]

    assert found == set()
    assert {"batch", "tables", "maintain", "refresh"} <= seen
    assert not seen & STREAM


def test_the_functions_that_the_batch_calls_are_in_spark_3_5() -> None:
    used = {
        node.attr
        for file in FOLDER.glob("*.py")
        if file.stem not in STREAM
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "F"
    }

    assert used <= FUNCTIONS


def table(**members: SparkType) -> str:
    return to_json(StructOf(tuple(Member(name, kind, name != "id") for name, kind in members.items())))


def test_where_no_column_can_be_widened_columns_are_added_and_a_wider_type_asks_for_a_full_refresh() -> None:
    was = table(id=ID, n=INT, items=ArrayOf(INT))

    assert plan(was, table(id=ID, n=INT, items=ArrayOf(INT), b=TEXT), widens=False) == (
        AddColumn(("b",), TEXT, "items"),
    )
    with pytest.raises(Breaking, match="--full-refresh") as caught:
        plan(was, table(id=ID, n=LONG, items=ArrayOf(LONG)), widens=False)
    assert caught.value.differences == (
        "column n: int in the table, bigint wanted: it takes Spark 4",
        "column items.element: int in the table, bigint wanted: it takes Spark 4",
    )


class SparkOf(FakeSpark):
    """A Spark of this version, with these classes, and with or without Hadoop's native library."""

    def __init__(self, version: str, *classes: str, native: bool = False, codecs: str | None = None) -> None:
        super().__init__(*classes)
        self.version, self.codecs = version, codecs
        self._native = native
        self._jsc = self
        self.org = self.apache = self.hadoop = self.io = self.compress = self.ZStandardCodec = self

    def isNativeCodeLoaded(self) -> bool:
        return self._native

    def hadoopConfiguration(self) -> "SparkOf":
        return self

    def get(self, _name: str) -> str | None:
        return self.codecs

    def set(self, name: str, value: str) -> None:
        assert name == "io.compression.codecs"
        self.codecs = value


def test_a_spark_that_leaves_zstd_to_hadoop_gets_our_codec_or_is_refused() -> None:
    read: Any = session.read_zstd
    newer = SparkOf("4.1.0", session.ZSTD_CODEC)
    alone, beside = SparkOf("3.5.9", session.ZSTD_CODEC), SparkOf("4.0.1-amzn-0", session.ZSTD_CODEC, codecs="a,b")
    native = SparkOf("3.5.9", native=True)
    for spark in (newer, alone, beside, native):
        read(spark)

    assert (newer.codecs, native.codecs) == (None, None)
    assert (alone.codecs, beside.codecs) == (session.ZSTD_CODEC, f"a,b,{session.ZSTD_CODEC}")
    with pytest.raises(ConfigError, match=r"compressed by zstd.*tidemark-delta-log-store"):
        read(SparkOf("3.5.9"))
