"""What is wrong with a dashboard, in words: the rules of grafana/dashboard-linter, and that a query may only name what
is exported, with its labels, and as its type wants it."""

import re
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import promql_parser as promql

from deploy.grafana.panels import panels_of
from deploy.prometheus.promql import Catalogue, problems, registered, selectors
from deploy.prometheus.rules import recorded

_RATES = ("rate", "increase", "irate")
_RATE_INTERVAL, _RANGE = "61s", "3661s"
"""Stand for Grafana's variables; nobody writes such durations by hand."""
_OVER_DAYS = ("avg_over_time", "last_over_time")
_SETS = ("and", "or", "unless")
_VARIABLE = re.compile(r"\$(?!(?:entity|topic|job)\b)")


def catalogue() -> Catalogue:
    """All series that may be asked for: those that are exported, and those that our rules record."""
    return registered().with_recorded(recorded())


def family_of(name: str) -> str:
    """A histogram is shown when any of its series is."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def complaints(document: Any, known: Catalogue) -> list[str]:
    board = document["uid"]
    found = list(_of_board(document, known))
    for panel in panels_of(document):
        found += (f"{board}, {panel.get('title')!r}: {said}" for said in _of_panel(panel, known))
    return found


def _of_board(document: Any, known: Catalogue) -> Iterator[str]:
    board = document["uid"]
    ids = [panel["id"] for panel in document["panels"]]
    if len(ids) != len(set(ids)):
        yield f"{board}: two panels have one id"
    if "${DS_" in repr(document):
        yield f"{board}: ${{DS_…}} is the form for sharing, which isn't resolved when it is provisioned"
    if document.get("editable"):
        yield f"{board}: is editable"
    sources = [one for one in document["templating"]["list"] if one["type"] == "datasource"]
    if [one["name"] for one in sources] != ["datasource"]:
        yield f"{board}: has no variable `datasource`"
    for one in document["templating"]["list"]:
        if one["type"] == "query":
            yield from (f"{board}, variable {one['name']}: {said}" for said in _of_variable(one, known))


def _of_variable(variable: Any, known: Catalogue) -> list[str]:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    return complaints_of(asked[1], f"{{{{{asked[2]}}}}}", known) if asked else ["asks for no values of a label"]


def _of_panel(panel: Any, known: Catalogue) -> Iterator[str]:
    for field in ("title", "description"):
        if not panel.get(field):
            yield f"has no {field}"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield "has no unit"
    if not panel.get("targets"):
        yield "asks nothing"
    for part in (panel, *panel.get("targets", ())):
        if part.get("datasource", {}).get("uid") != "${datasource}":
            yield "asks another source than ${datasource}"
    for target in panel.get("targets", ()):
        yield from complaints_of(target["expr"], target.get("legendFormat", ""), known)


def complaints_of(expr: str, legend: str, known: Catalogue) -> list[str]:
    """Of one query."""
    plain = expr.replace("$__rate_interval", _RATE_INTERVAL).replace("$__range", _RANGE)
    if _VARIABLE.search(plain):
        return [f"unknown variable: {expr}"]
    try:
        tree = promql.parse(plain)
    except ValueError as error:
        return [f"{error}: {expr}"]
    # One by one: as a whole, a join that brings a label along would be called wrong.
    if found := [said for one in selectors(plain) for said in problems(one.prettify(), known)]:
        return [f"{said}: {expr}" for said in found]
    labels = _Reader(known, found.append).labels(tree)
    found += (
        f"legend: {{{{{name}}}}} is no label of {expr}"
        for name in re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
        if name not in labels
    )
    return found


def names_in(expr: str) -> Set[str]:
    return set(re.findall(r"(?<!:)\b(?:tidemark_\w+|up)\b", expr))


class _Reader:
    """Walks a query, and says which labels its result has."""

    def __init__(self, known: Catalogue, complain: Callable[[str], None]) -> None:
        self._known, self._complain = known, complain

    def labels(self, tree: Any, within: str = "") -> frozenset[str]:
        """``within``: the function whose range this is."""
        match tree:
            case promql.VectorSelector():
                return self._selector(tree, within)
            case promql.MatrixSelector():
                self._range(tree, within)
                return self._selector(tree.vector_selector, within)
            case promql.AggregateExpr():
                return self._aggregated(tree)
            case promql.BinaryExpr():
                return self._binary(tree)
            case promql.Call():
                return self._called(tree)
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                return self.labels(tree.expr)
            case _:
                return frozenset()

    def _selector(self, selector: Any, within: str) -> frozenset[str]:
        name = selector.name
        counts = name.endswith("_total") or family_of(name) + "_bucket" in self._known.buckets
        if counts and within not in _RATES:
            self._complain(f"{name} is a counter: it needs rate or increase")
        if not counts and within in _RATES:
            self._complain(f"{name} is a gauge: {within} says nothing about it")
        return self._known.labels[name]

    def _range(self, matrix: Any, within: str) -> None:
        seconds = f"{matrix.range.total_seconds():.0f}s"
        if within in _RATES and seconds not in (_RATE_INTERVAL, _RANGE):
            self._complain(f"{within} over {seconds}: it needs $__rate_interval or $__range")
        if within not in (*_RATES, *_OVER_DAYS):
            self._complain(f"a range within {within or 'nothing'}")

    def _aggregated(self, tree: Any) -> frozenset[str]:
        inner = self.labels(tree.expr)
        if tree.modifier is None:
            return frozenset()
        chosen = frozenset(tree.modifier.labels)
        self._need(chosen, inner, f"{tree.op} by")
        return chosen if tree.modifier.type == promql.AggModifierType.By else inner - chosen

    def _called(self, call: Any) -> frozenset[str]:
        name = call.func.name
        found: frozenset[str] = frozenset().union(*(self.labels(argument, name) for argument in call.args))
        if name == "histogram_quantile":
            self._need({"le"}, found, name)
            return found - {"le"}
        if name == "label_replace":
            return found | {call.args[1].val}
        return found

    def _binary(self, tree: Any) -> frozenset[str]:
        left, right = self.labels(tree.lhs), self.labels(tree.rhs)
        if str(tree.op) in _SETS:
            return left | right
        if not (_has_series(tree.lhs) and _has_series(tree.rhs)):
            return left | right
        matching = tree.modifier.matching if tree.modifier else None
        if matching is None:
            if left != right:
                self._complain(f"{sorted(left)} {tree.op} {sorted(right)}: they never match; say `on`")
            return left
        chosen = frozenset(matching.labels)
        self._need(chosen, left & right, f"{tree.op} on")
        if tree.modifier.card == promql.VectorMatchCardinality.OneToOne:
            return chosen
        many = left if tree.modifier.card == promql.VectorMatchCardinality.ManyToOne else right
        return many | frozenset(tree.modifier.group_labels or ())

    def _need(self, wanted: Set[str], there: Set[str], where: str) -> None:
        if missing := sorted(wanted - there):
            self._complain(f"{where}: no label {', '.join(missing)}")


def _has_series(tree: Any) -> bool:
    """Whether it is a vector with series of ours, not a number."""
    found = []

    def visit(node: Any) -> None:
        found.append(isinstance(node, promql.VectorSelector | promql.MatrixSelector))

    promql.walk(tree, visit)
    return any(found)


def not_shown(documents: Sequence[Any], known: Catalogue) -> set[str]:
    """Metrics that stand on no panel; what rules record of them need not."""
    asked = [target["expr"] for board in documents for panel in panels_of(board) for target in panel["targets"]]
    shown = {family_of(name) for expr in asked for name in names_in(expr)}
    wanted = {family_of(name) for name in known.labels if ":" not in name}
    return wanted - shown
