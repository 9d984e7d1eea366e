"""An entity's own SQL over its rows. It may compute columns, rename and leave out; it may not decide which rows exist.

Batch and stream cut the rows differently, and each row may come again: the table stays one and the same only if the
SQL takes each row by itself and says the same about it at any time. So its analysed plan is judged by what it is made
of, not by its text: projections over the one view, deterministic, with key and lineage columns passed on as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from shared.events.columns import LINEAGE
from shared.lake.layout import CURRENT, DELETED, END_AT, START_AT

VIEW = "events"
_OWN = frozenset({DELETED, START_AT, END_AT, CURRENT})
_PLANS = frozenset({"Project", "SubqueryAlias", "View"})
_LEAVES = frozenset({"LogicalRDD", "LocalRelation", "LogicalRelation", "ExternalRDD"})
_CLOCKS = ("Current", "Now", "Local", "Session")
"""Spark calls these deterministic, since they are so within one query."""
EXPRESSIONS_MAX = 50_000


class TransformRefused(Exception):
    """The SQL is no transform. Says which part of it, and what to do instead."""


class Transform:
    """One entity's SQL in one table's session. ``sql`` None: rows pass as they are."""

    def __init__(self, spark: SparkSession, sql: str | None, keys: Sequence[str]) -> None:
        self._spark = spark
        self._sql = None if sql is None else sql.strip().rstrip(";")
        self._kept = (*keys, *LINEAGE)
        self._judged: StructType | None = None

    def __call__(self, rows: DataFrame) -> DataFrame:
        """``rows`` transformed. Raises ``TransformRefused``; judged once for each schema, on a view without rows, whose
        plan is the SQL's own and nothing else."""
        if self._sql is None:
            return rows
        if rows.schema != self._judged:
            made = self._made(self._sql, self._spark.createDataFrame([], rows.schema))
            plan: Any = made._jdf.queryExecution().analyzed()
            _judge(plan, self._kept)
            _check_names(made.columns)
            self._judged = rows.schema
        return self._made(self._sql, rows)

    def _made(self, sql: str, rows: DataFrame) -> DataFrame:
        rows.createOrReplaceTempView(VIEW)
        try:
            return self._spark.sql(sql)
        except (AnalysisException, ParseException) as error:
            raise TransformRefused(f"the transform is no SQL over these rows: {_first_lines(error)}") from error


def _judge(plan: Any, kept: Sequence[str]) -> None:
    projects = list(_walk(plan))
    for project in projects:
        for expression in _each(project.projectList()):
            _check_expression(expression)
    outputs = {attribute.name(): attribute for attribute in _each(plan.output())}
    for name in kept:
        if name not in outputs:
            raise TransformRefused(f"the transform leaves out {name!r}; key and lineage columns must stay as they are")
        if _origin(outputs[name].exprId(), projects) != name:
            raise TransformRefused(f"the transform computes {name!r}; key and lineage columns must stay as they are")


def _walk(plan: Any) -> Iterator[Any]:
    """The projections, outermost first."""
    while True:
        kind = plan.getClass().getSimpleName()
        if kind in _LEAVES:
            return
        if kind not in _PLANS:
            raise TransformRefused(
                f"the transform contains {_in_words(kind)}; it may only compute columns, row by row: filters and joins "
                "belong in a view over the table"
            )
        if kind == "Project":
            yield plan
        children = list(_each(plan.children()))
        assert len(children) == 1, kind
        plan = children[0]


def _check_expression(root: Any) -> None:
    waiting, seen = [root], 0
    while waiting:
        expression = waiting.pop()
        seen += 1
        kind = str(expression.getClass().getSimpleName())
        if seen > EXPRESSIONS_MAX:
            raise TransformRefused(f"the transform has more than {EXPRESSIONS_MAX} expressions")
        if "Subquery" in kind:
            raise TransformRefused(f"the transform reads something else than {VIEW} (a subquery)")
        children = _each(expression.children())
        changes = not expression.deterministic() and all(child.deterministic() for child in children)
        if changes or kind.startswith(_CLOCKS):
            raise TransformRefused(
                f"the transform uses {expression.prettyName()}(), which is not the same each time a row is read"
            )
        waiting += children


def _origin(expression_id: Any, projects: Sequence[Any]) -> str | None:
    """The name, in the view, of the column that this output is; ``None``: it is computed."""
    name = None
    for project in projects:
        for expression in _each(project.projectList()):
            if expression.exprId().equals(expression_id):
                kind = expression.getClass().getSimpleName()
                source = expression.child() if kind == "Alias" else expression
                if source.getClass().getSimpleName() != "AttributeReference":
                    return None
                expression_id, name = source.exprId(), source.name()
                break
    return None if name is None else str(name)


def _check_names(columns: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in columns:
        folded = name.lower()
        if folded in seen:
            raise TransformRefused(f"the transform makes two columns {name!r} (names are compared without case)")
        if folded in _OWN:
            raise TransformRefused(f"the transform makes a column {name!r}, which the table has of its own; rename it")
        seen.add(folded)


def _each(sequence: Any) -> list[Any]:
    """A Scala sequence as a list."""
    return [sequence.apply(index) for index in range(sequence.size())]


def _in_words(kind: str) -> str:
    words = {
        "Filter": "a filter (WHERE)",
        "Join": "a join",
        "Aggregate": "an aggregation (GROUP BY, DISTINCT)",
        "Deduplicate": "DISTINCT",
        "Distinct": "DISTINCT",
        "Union": "a UNION",
        "Window": "a window function",
        "Generate": "a generator (explode)",
        "Sort": "ORDER BY",
        "GlobalLimit": "LIMIT",
        "OneRowRelation": f"no rows of {VIEW}",
        "WithCTE": "WITH … AS",
    }
    return words.get(kind, kind)


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].splitlines()[:4])
