"""What is wrong, in words: what is named, how many there are, and what to type. Pure."""

import shlex
from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from services.cli.audit_law import Tally, Unrecorded, attributed
from services.cli.audit_records import ChainOf, Finding, Law, PartitionVerdict, SeenEntry
from services.cli.audit_states import States, why_lesser
from services.cli.outcome import iso, moment

NAMED_MAX = 10
"""Culprits that a finding names; counts are whole."""

Range = tuple[int, int]


class Evidence(Struct):
    """Everything that was gathered of one entity, to be put into words."""

    entity: str
    law: Law
    chains: list[ChainOf]
    tally: Tally
    ends: dict[str, int] = field(default_factory=dict)
    """By chain: Kafka's end offset, taken after the parked events were scanned."""
    generation_problem: str | None = None
    not_recorded: list[Unrecorded] = field(default_factory=list)
    """Those that stay unrecorded, although the poller had time to see them again."""
    waits: bool = False
    """Nobody polls the entity, and the last poller did not release it: what is unrecorded may yet be."""
    no_row: list[tuple[str, int, str]] = field(default_factory=list)  # (chain, offset, what the record calls itself)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (item id, reason) of parked events
    unreadable_count: int = 0
    damaged_evidence: list[tuple[str, str]] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    states: States | None = None
    keys: dict[bytes, str] = field(default_factory=dict)  # key hash → text, of those that are to be named
    table_missing: str | None = None
    not_quarantined: list[tuple[int, int]] = field(default_factory=list)


def findings(found: Evidence) -> list[Finding]:
    """In the order in which they should be looked at."""
    return [
        *_of_generation(found),
        *_of_seen_pages(found),
        *_of_chains(found),
        *_of_law(found),
        *_of_aside(found),
        *_of_table(found),
    ]


def verdicts(found: Evidence) -> list[PartitionVerdict]:
    return [
        PartitionVerdict(
            chain=str(one.chain),
            floor=one.floor,
            next_start=one.next_start,
            kafka_begin=one.kafka_begin,
            kafka_end=one.kafka_end,
            position=one.position,
            objects=one.objects,
            rows=one.rows,
            gaps=one.gaps,
            complete=not (one.unproved or one.doubled or _behind(found, one) or _unloaded(found, one)),
        )
        for one in found.chains
    ]


def _of_generation(found: Evidence) -> Iterable[Finding]:
    if found.generation_problem is not None:
        yield Finding(
            kind="generation",
            where="",
            count=1,
            text=found.generation_problem,
            repair=f"if it was made anew on purpose: tidemark raw open {found.entity} --why WHY; else restore it",
        )


def _of_seen_pages(found: Evidence) -> Iterable[Finding]:
    pages = found.law.pages
    recorded, _ = attributed(pages, found.tally.unrecorded)
    altered: dict[int, list[str]] = {}
    for one in found.tally.altered:
        says, really = one.says.hex(), one.is_really.hex()
        text = f"another key or time than {really} has" if says == really else f"{says} where {really} was shown"
        altered.setdefault(one.page, []).append(f"{text} at {iso(one.shown_us)}")
    for number, page in enumerate(pages):
        names = altered.get(number, [])
        if page.problem is None and not names:
            continue
        why = page.problem or f"{len(names)} of its entries name another event than was recorded"
        if recorded.get(number):
            why += f"; {recorded[number]} events that were shown between its neighbours are recorded nowhere else"
        yield Finding(
            kind="seen_page",
            where=page.name,
            count=max(1, len(names)),
            text=f"{page.name} is not as it was committed: {why}",
            names=_first(names),
            repair="restore it from a backup; every other store is judged without it",
        )


def _of_chains(found: Evidence) -> Iterable[Finding]:
    for one in found.chains:
        chain = str(one.chain)
        yield from (
            Finding(
                kind="raw_hole",
                where=chain,
                count=end - start + 1,
                text=f"offsets {start} to {end} of {chain} are in no object",
                repair=_mend(found, one, (start, end)),
            )
            for start, end in one.holes
        )
        yield from (
            Finding(
                kind="raw_damaged",
                where=chain,
                count=end - start + 1,
                text=f"{why} (offsets {start} to {end})",
                repair=f"restore the object from the bucket's versions or a backup; if there is none, delete it, then "
                f"tidemark raw mend {found.entity}",
            )
            for start, end, why in one.damaged
        )
        yield from (
            Finding(
                kind="raw_twice",
                where=chain,
                count=end - start + 1,
                text=f"offsets {start} to {end} of {chain} are in two objects",
                repair="a writer without conditional PUT was here: `tidemark bootstrap --plan` tests the store",
            )
            for start, end in one.doubled
        )
        if behind := _behind(found, one):
            yield Finding(
                kind="raw_behind",
                where=chain,
                count=behind[1] - behind[0] + 1,
                text=f"offsets {behind[0]} to {behind[1]} of {chain} are in no object yet",
                repair="start s3-sink; if it runs, restart it: it goes on from where the objects end",
            )
    if found.no_row:
        names = [f"{chain} offset {offset} ({name or 'nameless'})" for chain, offset, name in found.no_row]
        yield Finding(
            kind="no_row",
            where="",
            count=len(names),
            text=f"{len(names)} records in Kafka have no raw row and are not parked",
            names=_first(names),
            repair="look at them in Kafka; what the source still shows is published again by `tidemark cursor set`",
        )


def _of_law(found: Evidence) -> Iterable[Finding]:
    counts, missing = found.tally.counts, found.tally.missing
    if counts.missing:
        yield Finding(
            kind="lost",
            where="",
            count=counts.missing,
            text=f"{_events(counts.missing)} seen, but not in raw, parked or archived",
            names=_first(_sighting(entry) for entry in sorted(missing, key=lambda entry: entry.shown_us)),
            repair=read_again(found.entity, [entry.updated_us for entry in missing]),
        )
    if found.law.rules.shows == "events" and found.not_recorded and not found.waits:
        names = [_unrecorded(found, one) for one in sorted(found.not_recorded, key=lambda one: one.shown_us)]
        first, last = names[0], names[-1]
        yield Finding(
            kind="unrecorded",
            where="",
            count=len(names),
            text=f"{_events(len(names))} published or parked, but in no seen page: one is gone or was cut, or somebody "
            "else writes to the topic",
            names=_first(names) if first != last else (first,),
            repair=read_again(
                found.entity, [one.updated_us for one in found.not_recorded if one.updated_us is not None]
            ),
        )


def _of_aside(found: Evidence) -> Iterable[Finding]:
    if found.unreadable_count:
        yield Finding(
            kind="parked_unreadable",
            where="",
            count=found.unreadable_count,
            text=f"{_events(found.unreadable_count)} parked, but the raw bytes are gone or altered",
            names=_first(f"{item} ({reason})" for item, reason in found.unreadable),
            repair="restore them from a backup of the parked table or its bucket",
        )
    for uri, why in found.damaged_evidence[:NAMED_MAX]:
        yield Finding(
            kind="evidence",
            where=uri,
            count=1,
            text=why,
            repair="restore the object from the archive's versions; `tidemark evidence verify` walks the whole chain",
        )
    if found.untold:
        yield Finding(
            kind="untold",
            where="",
            count=len(found.untold),
            text=f"{_events(len(found.untold))} archived and gone, but nobody was told",
            names=_first(found.untold),
            repair=f"tidemark parked redrive --from-archive {shlex.quote(found.untold[0])}",
        )


def _of_table(found: Evidence) -> Iterable[Finding]:
    if found.table_missing is not None:
        yield Finding(
            kind="table_behind",
            where=found.table_missing,
            count=1,
            text=f"there is no table at {found.table_missing}",
            repair=_load(found, ""),
        )
    for one in found.chains:
        unloaded = _unloaded(found, one)
        if unloaded and not _before_hole(one):
            start, end = unloaded
            yield Finding(
                kind="table_behind",
                where=str(one.chain),
                count=end - start + 1,
                text=f"offsets {start} to {end} of {one.chain} are in raw, but not in the table",
                repair=_load(found, ""),
            )
    if found.not_quarantined:
        names = [f"{found.chains[number].chain} offset {offset}" for number, offset in found.not_quarantined]
        yield Finding(
            kind="quarantine",
            where="",
            count=len(names),
            text=f"{len(names)} raw rows can't be merged (no seq, event id or key), and are not in quarantine",
            names=_first(names),
            repair=_load(found, " --all"),
        )
    if found.states is not None:
        yield from _of_states(found, found.states)


def _of_states(found: Evidence, states: States) -> Iterable[Finding]:
    if states.stale_count:
        names = [
            f"key {_key(found, held.key)}: holds {held.id.hex()}, but {due.id.hex()} must win, of "
            f"{_place(found, due.chain, due.offset)} ({why_lesser(held, due)})"
            for held, due in states.stale
        ]
        yield Finding(
            kind="table_stale",
            where="",
            count=states.stale_count,
            text=f"{states.stale_count} keys hold an event that lost",
            names=_first(names),
            repair=_load(found, " --all"),
        )
    if states.lacking_count:
        yield Finding(
            kind="table_lacks",
            where="",
            count=states.lacking_count,
            text=f"{states.lacking_count} keys are in raw, but not in the table",
            names=_first(
                f"key {_key(found, one.key)}: {one.id.hex()} of {_place(found, one.chain, one.offset)}"
                for one in states.lacking
            ),
            repair=_load(found, " --all"),
        )
    if states.foreign_count:
        yield Finding(
            kind="table_foreign",
            where="",
            count=states.foreign_count,
            text=f"{states.foreign_count} rows of the table are not what raw holds where they say they came from",
            names=_first(
                f"key {_key(found, one.key)}: {one.id.hex()}, said to be {_place(found, one.chain, one.offset)}"
                for one in states.foreign
            ),
            repair=_load(found, " --full-refresh"),
        )
    if states.twice_count:
        yield Finding(
            kind="table_twice",
            where="",
            count=states.twice_count,
            text=f"{states.twice_count} rows of the table have a key that another row has",
            names=_first(f"key {_key(found, one.key)}" for one in states.twice),
            repair=_load(found, " --full-refresh"),
        )


def _behind(found: Evidence, one: ChainOf) -> Range | None:
    """Offsets that the ledger has not reached."""
    end = found.ends.get(str(one.chain), 0)
    return (one.next_start, end - 1) if one.next_start < end else None


def _unloaded(found: Evidence, one: ChainOf) -> Range | None:
    """Offsets that were in raw when the audit fixed its ends, and that the table's positions don't cover."""
    if one.position is None:
        return None
    end = min(found.ends.get(str(one.chain), one.next_start), one.next_start)
    start = max(one.position, one.floor)
    return (start, end - 1) if start < end else None


def _before_hole(one: ChainOf) -> bool:
    """The loader stops where the chain does: then the hole is what is to be named."""
    return any(end >= (one.position or 0) for _, end in one.unproved)


def _mend(found: Evidence, one: ChainOf, lost: Range) -> str:
    if one.kafka_begin is not None and one.kafka_begin <= lost[0]:
        return f"tidemark raw mend {found.entity}  (Kafka still has these records)"
    return (
        "restore the object from the bucket's versions or a backup; if there is none, "
        f"tidemark raw mend {found.entity} --lost, and publish again what is lost (below)"
    )


def _load(found: Evidence, how: str) -> str:
    return f"python -m services.delta_loader batch {found.entity}{how}"


def read_again(entity: str, times_us: Sequence[int]) -> str:
    """Reads and publishes again all that is dated since, under the same event ids: what is there already stays one."""
    since = iso(max(0, min(times_us, default=0))) or "beginning"
    return f"tidemark cursor set {entity} --to {since} --reason 'audit: read again'"


def _sighting(entry: SeenEntry) -> str:
    dated = "undated" if entry.anchored else f"dated {moment(entry.updated_us)}"
    return f"{entry.id.hex()} ({dated}, shown {iso(entry.shown_us)})"


def _unrecorded(found: Evidence, one: Unrecorded) -> str:
    place = "parked" if one.chain < 0 else _place(found, one.chain, one.offset)
    return f"{one.id.hex()} ({place}, shown {iso(one.shown_us) if one.shown_us > 0 else '-'})"


def _place(found: Evidence, chain: int, offset: int) -> str:
    known = chain < len(found.chains)
    return f"{found.chains[chain].chain if known else 'an unknown chain'} offset {offset}"


def _key(found: Evidence, key: bytes) -> str:
    return repr(found.keys[key]) if key in found.keys else f"with hash {key.hex()}"


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count:,} events are"


def _first(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name, _ in zip(names, range(NAMED_MAX), strict=False))
