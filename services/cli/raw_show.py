"""``tidemark raw show``: chains, their objects and gaps, their floors; one object and its rows."""

from argparse import Namespace
from typing import Any

from msgspec import to_builtins

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome, aligned, moment, printable
from shared.config import ConfigError
from shared.lake.positions import chain_of
from shared.raw.generation import FIRST, newest_claim
from shared.raw.keys import Chain, Keys
from shared.raw.ledger import Damaged, Ledger
from shared.raw.objects import ObjectStore, RawObject


async def run(edges: Edges, arguments: Namespace) -> Outcome:
    """Exit code 1 when a chain is not contiguous, or the object is damaged or not there."""
    store, keys = await edges.raw_store(), Keys(edges.namespace.prefix(""))
    ledger = Ledger(store, keys)
    what = arguments.what
    if what.endswith(".ndjson.zst"):
        return await _show_object(ledger, *_parsed(keys, what), arguments.rows)
    if "/" in what:
        return await _show_chain(ledger, _chain(what), arguments.limit, arguments.rows)
    return await _show_entity(edges, ledger, store, what)


async def _show_entity(edges: Edges, ledger: Ledger, store: ObjectStore, name: str) -> Outcome:
    """Each chain in a line."""
    topic = edges.entities.entities[name].topic if name in edges.entities.entities else name
    claim = await newest_claim(store, ledger.keys, topic)
    if claim is None:
        return Outcome(exit_code=FINDING, lines=[f"{topic}: no generation is claimed"], document={"chains": []})
    rows, documents, whole = [], [], True
    for number in range(FIRST, claim.generation + 1):
        for chain in await ledger.partitions(topic, number):
            report = await ledger.verify(chain)
            whole = whole and not report.problems
            problems = "; ".join(report.problems) or "contiguous"
            gaps = sum(gap.end - gap.start + 1 for gap in report.gaps)
            rows.append([
                str(chain), f"{report.floor:,}", f"{report.next_start:,}", f"{len(report.objects):,}",
                f"{report.rows:,}", f"{gaps:,}", problems,
            ])  # fmt: skip
            documents.append({
                "chain": str(chain), "floor": report.floor, "next_start": report.next_start,
                "objects": len(report.objects), "rows": report.rows, "gap_offsets": gaps,
                "problems": list(report.problems),
            })  # fmt: skip
    header = ("CHAIN", "FLOOR", "NEXT", "OBJECTS", "ROWS", "IN GAPS", "OFFSETS")
    lines = aligned(rows, header, frozenset({1, 2, 3, 4, 5})) or [f"{topic}: no object is written yet"]
    document = {"topic": topic, "generation": claim.generation, "claim": to_builtins(claim), "chains": documents}
    return Outcome(exit_code=OK if whole else FINDING, lines=lines, document=document)


async def _show_chain(ledger: Ledger, chain: Chain, limit: int, rows: int | None) -> Outcome:
    """The newest objects, oldest of them first."""
    floor = await ledger.floor_set(chain)
    report = await ledger.verify(chain)
    shown = list(report.objects)[-limit:]
    lines = [f"floor {floor.floor}" + (f", raised {floor.set_at} by {printable(floor.set_by)}" if floor.set_at else "")]
    header = ("START", "END", "ROWS", "KIND", "FIRST RECORD", "LAST RECORD", "SCHEMAS", "WRITER")
    lines += aligned([_line(link) for link in shown], header, frozenset({0, 1, 2}))
    if len(shown) < len(report.objects):
        lines.append(f"{len(report.objects) - len(shown):,} older objects are not shown (--limit)")
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    document: dict[str, Any] = {
        "chain": str(chain),
        "floor": to_builtins(floor),
        "next_start": report.next_start,
        "objects": [_fields(ledger, link) for link in shown],
        "problems": list(report.problems),
    }
    if rows and shown:
        texts = await _rows(ledger, shown, rows)
        lines += ["", *map(printable, texts)]
        document["rows"] = texts
    return Outcome(exit_code=FINDING if report.problems else OK, lines=lines, document=document)


async def _show_object(ledger: Ledger, chain: Chain, start: int, rows: int | None) -> Outcome:
    link = await ledger.link(chain, start)
    if link is None:
        return Outcome(exit_code=FINDING, lines=[f"{chain}: no object begins at {start}"], document={})
    fields = _fields(ledger, link)
    lines = aligned([[name, printable(str(value))] for name, value in fields.items()])
    code = OK
    try:
        texts = (await ledger.rows(link)).decode().splitlines()
        lines.append("its bytes are what its metadata say")
        if rows:
            lines += ["", *map(printable, texts[:rows])]
            fields["rows"] = texts[:rows]
    except Damaged as damage:
        lines.append(f"DAMAGED: {damage}")
        fields["damage"], code = str(damage), FINDING
    return Outcome(exit_code=code, lines=lines, document=fields)


async def _rows(ledger: Ledger, links: list[RawObject], count: int) -> list[str]:
    """The first ``count`` rows of the objects that are shown."""
    texts: list[str] = []
    for link in links:
        if len(texts) < count and link.count:
            texts += (await ledger.rows(link)).decode().splitlines()[: count - len(texts)]
    return texts


def _line(link: RawObject) -> list[str]:
    kind = link.kind if link.cause == "" else f"{link.kind} ({link.cause})"
    ids = ",".join(map(str, link.schema_ids)) + (",more" if link.schema_ids_more else "")
    first, last = (moment(None if ms is None else ms * 1000) for ms in (link.first_ms, link.last_ms))
    return [
        f"{link.start:,}",
        f"{link.end:,}",
        f"{link.count:,}",
        kind,
        first,
        last,
        ids or "-",
        printable(link.writer),
    ]


def _fields(ledger: Ledger, link: RawObject) -> dict[str, Any]:
    fields = to_builtins(link)
    return {"key": ledger.keys.link(link.chain, link.start), **fields, "chain": str(link.chain)}


def _chain(text: str) -> Chain:
    try:
        return chain_of(text)
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def _parsed(keys: Keys, text: str) -> tuple[Chain, int]:
    try:
        return keys.parse(text)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
