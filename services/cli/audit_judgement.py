"""What was gathered of one entity, judged; and before anybody is alarmed, looked at once more."""

import asyncio
import time
from collections.abc import Iterable

import msgspec

from services.cli import audit_lake, audit_states
from services.cli.audit_aside import judge_archived
from services.cli.audit_findings import NAMED_MAX, Evidence, findings, verdicts
from services.cli.audit_law import Tally, attributed, compare_parts, join_by_stamp
from services.cli.audit_raw import RowReader, key_text
from services.cli.audit_records import RANGES_MAX, ChainOf, Report, State
from services.cli.audit_round import Round, Work
from services.cli.audit_seen import read_recorded_since
from services.cli.audit_source import finding_of
from services.cli.audit_spill import PARTS, packed_id
from services.cli.audit_states import States
from shared.events.lineage import is_heartbeat
from shared.kafka.records import parse_headers
from shared.raw.ledger import Damaged

RECHECKED_MAX = 1_000
"""Of what seems to be missing, so much is looked up once more."""
SILENT_MAX = 1_000
"""Offsets without a row that are looked up in Kafka."""
LOOK_S = 1.0
PARTS_AT_ONCE = 32
"""In one thread's turn: between two turns a round can be stopped."""


async def judged(round_: Round, work: Work) -> Report:
    """Reads little: what was spilled is compared in parts, and only what is missing is asked about again."""
    found = Evidence(
        entity=work.entity.name,
        law=work.law,
        chains=work.chains,
        tally=await _tallied(work),
        ends={str(chain): end for chain, end in work.ends.items()},
        generation_problem=work.generation_problem,
    )
    await _recheck_missing(round_, found)
    await _recheck_unrecorded(round_, work, found)
    found.no_row = await _without_row(round_, work)
    found.unreadable_count = work.aside.unreadable_count
    found.unreadable = [(one.row.item_id, one.row.event.reason.value) for one in work.aside.unreadable]
    await _judge_archived(round_, work, found)
    await _judge_table(round_, work, found)
    report = _report(work, found)
    if work.shown is not None:
        unseen = await asyncio.to_thread(finding_of, work.entity.name, work.law, work.shown)
        if unseen is not None:
            report.findings.append(unseen)
            report.complete = False
    return report


async def _tallied(work: Work) -> Tally:
    found = Tally()
    for first in range(0, PARTS, PARTS_AT_ONCE):
        await asyncio.to_thread(compare_parts, work.law, found, range(first, first + PARTS_AT_ONCE))
    join_by_stamp(found)
    return found


async def _recheck_missing(round_: Round, found: Evidence) -> None:
    """Parked meanwhile? That can't be, but a false alarm is worse than a question too many."""
    parked = await round_.edges.parked()
    missing = found.tally.missing
    back = set()
    for entry in missing[:RECHECKED_MAX]:
        if await parked.show(entry.id.hex()):
            back.add(entry.id)
    if back:
        found.tally.missing = [entry for entry in missing if entry.id not in back]
        found.tally.counts.missing -= len(back)
        found.tally.counts.parked += len(back)


async def _recheck_unrecorded(round_: Round, work: Work, found: Evidence) -> None:
    """What was published right before an unclean stop is recorded when it is seen again: the poller is given time."""
    _, left = attributed(work.law.pages, found.tally.unrecorded)
    found.not_recorded = left
    standing = work.standing
    if standing is None or work.entity.rules.shows != "events" or not left:
        return
    checkpoints = await round_.edges.checkpoints()
    until_s = min(round_.until_s, time.monotonic() + 2 * work.entity.lookback_period_s + 10)
    while True:
        recorded = await read_recorded_since(work.law, checkpoints, standing.commit_seq)
        left = [one for one in left if one.id not in recorded]
        now = await checkpoints.standing(work.entity.name)
        settled = now is not None and not now.held and not now.unclean
        if not left or settled or time.monotonic() >= until_s:
            break
        await round_.pause(LOOK_S)
    found.tally.counts.unrecorded -= len(found.not_recorded) - len(left)
    found.not_recorded = left
    found.waits = bool(left) and now is not None and now.unclean and not now.held


async def _without_row(round_: Round, work: Work) -> list[tuple[str, int, str]]:
    """Records that Kafka has, and that neither a raw row nor a parked item speaks of."""
    ids: dict[str, tuple[ChainOf, int]] = {}
    nameless: list[tuple[str, int, str]] = []
    looked_at = 0
    parked = await round_.edges.parked()
    for one in work.chains:
        offsets = _silent_offsets(work, one)
        unlooked = len(offsets) - max(0, SILENT_MAX - looked_at) + one.silent_more
        if unlooked > 0:
            work.notes.append(f"{one.chain}: {unlooked:,} offsets without a row were not looked up in Kafka")
        for offset in offsets[: max(0, SILENT_MAX - looked_at)]:
            looked_at += 1
            if await parked.show(f"{one.chain}/{offset}"):
                continue  # since the scan
            records = round_.edges.reread().records(one.chain.topic, one.chain.partition, offset, offset + 1)
            async for page in records:
                for record in page:
                    if is_heartbeat(record):
                        continue
                    name = parse_headers(record.headers).event_id
                    if name is None:
                        nameless.append((str(one.chain), offset, ""))
                    else:
                        ids[name] = (one, offset)
    elsewhere = await asyncio.to_thread(_accounted, work, ids)
    named = [(str(one.chain), offset, name) for name, (one, offset) in ids.items() if name not in elsewhere]
    return sorted([*named, *nameless])


def _silent_offsets(work: Work, one: ChainOf) -> list[int]:
    """Of a chain whose topic still is in Kafka: offsets that no row and no parked record stands for."""
    if one.kafka_end is None or one.kafka_begin is None:
        return []
    begin, end = one.kafka_begin, min(one.kafka_end, work.ends[one.chain])
    return [
        offset
        for first, last in one.silent
        for offset in range(max(first, begin), min(last + 1, end))
        if (one.chain, offset) not in work.aside.places
    ][:RANGES_MAX]


def _accounted(work: Work, names: Iterable[str]) -> set[str]:
    """Those that stand in raw, parked or archived under their event id: driven again since, or published twice. And
    those that were seen: one that is nowhere is told of as lost, once."""
    wanted = {packed_id(name): name for name in names}
    found: set[str] = set()
    for number in {one[0] << 2 | one[1] >> 6 for one in wanted}:
        for spill in (work.law.raw, work.law.parked, work.law.archived, work.law.seen):
            found.update(wanted[fields[0]] for fields in spill.part(number) if fields[0] in wanted)
    return found


async def _judge_archived(round_: Round, work: Work, found: Evidence) -> None:
    alone = found.tally.archived_alone
    if not alone:
        return
    archive, groups = await round_.edges.archive(), await round_.edges.groups()
    with round_.progress(f"{work.entity.name}: evidence", len(alone)) as progress:
        told = await judge_archived(
            work.aside, found.tally, archive, groups, round_.options.evidence_max, progress.show
        )
    found.damaged_evidence, found.untold = told.damaged, told.untold
    if told.unread:
        work.notes.append(f"{told.unread:,} pieces of evidence were not read; `tidemark evidence verify` reads all")


async def _judge_table(round_: Round, work: Work, found: Evidence) -> None:
    if work.table_uri is None:
        return
    if work.table is None:
        if round_.options.tables == "require":
            found.table_missing = work.table_uri
        else:
            work.notes.append(f"no table at {work.table_uri}: not judged")
        return
    quarantine = await asyncio.to_thread(round_.edges.lake_table, round_.edges.lake.quarantine(work.entity.name))
    set_aside: set[tuple[int, int]] = set()
    if quarantine is not None:
        set_aside = await asyncio.to_thread(audit_lake.read_quarantined, quarantine, work.chains)
    raw, rows = work.law.raw_states, work.law.table_states
    purged = audit_lake.purged_from(work.law.rules, work.table.purged_before_us)
    found.states = States()
    for first in range(0, PARTS, PARTS_AT_ONCE):
        judged = (raw, rows, work.chains, set_aside, range(first, first + PARTS_AT_ONCE), purged)
        await asyncio.to_thread(audit_states.compare_parts, found.states, *judged)
    found.not_quarantined = [place for place in _merged_misfits(work) if place not in set_aside]
    found.tally.counts.quarantined = len(set_aside)
    await _name_keys(round_, work, found, found.states)


def _merged_misfits(work: Work) -> list[tuple[int, int]]:
    """Rows that no MERGE can order, and that the table's positions have passed."""
    assert work.taker is not None, "the chains were walked"
    return [
        (number, offset)
        for number, offset in work.taker.misfits
        if work.chains[number].floor <= offset < (work.chains[number].position or 0)
    ]


async def _name_keys(round_: Round, work: Work, found: Evidence, states: States) -> None:
    """The keys of those that will be named, from their raw rows or the table's."""
    due = [stale.due for stale in states.stale[:NAMED_MAX]] + states.lacking[:NAMED_MAX]
    for state in due:
        text = await _raw_key(round_, work, state)
        if text is not None:
            found.keys[state.key] = text
    held = states.foreign[:NAMED_MAX] + states.twice[:NAMED_MAX]
    if held and work.table is not None:
        table, names = work.table, work.law.rules.key
        where = f"_event_id IN ({', '.join(repr(state.id.hex()) for state in held)})"
        for rows in await asyncio.to_thread(lambda: list(table.rows(names, where))):
            found.keys |= {audit_lake.key_digest(row): str(key_text(row)) for row in rows}


async def _raw_key(round_: Round, work: Work, state: State) -> str | None:
    ledger, reader = await round_.ledger(), RowReader(work.law.rules.key)
    link = await ledger.covering(work.chains[state.chain].chain, state.offset)
    if link is None:
        return None
    try:
        rows = [reader.row(line) for line in (await ledger.rows(link)).splitlines()]
    except (Damaged, msgspec.MsgspecError):
        return None
    return next((row.key for row in rows if row.offset == state.offset), None)


def _report(work: Work, found: Evidence) -> Report:
    counts = found.tally.counts
    counts.parked_by_reason = dict(sorted(work.aside.reasons.items()))
    counts.raw_rows = sum(one.rows for one in work.chains)
    if work.taker is not None:
        counts.nameless = work.taker.nameless
        counts.raw_rows -= work.taker.heartbeats  # no events
    if found.states is not None:
        counts.table_rows, counts.keys = found.states.rows, found.states.keys
        counts.unprovable = found.states.unprovable
    all_of_it = findings(found)
    return Report(
        entity=work.entity.name,
        complete=not all_of_it,
        counts=counts,
        partitions=verdicts(found),
        findings=all_of_it,
        notes=[*work.notes, *_notes(work, found)],
        fixed_us=work.law.limit_us,
        table_version=None if work.table is None else work.table.version,
    )


def _notes(work: Work, found: Evidence) -> Iterable[str]:
    """What is no fault, and yet to be known."""
    counts = found.tally.counts
    for one in work.chains:
        if one.floor:
            yield f"{one.chain}: expired below offset {one.floor}"
        for start, end in one.gaps:
            yield f"{one.chain}: Kafka's retention took offsets {start} to {end} before they were written"
    if counts.unrecorded and work.law.rules.shows == "rows":
        yield (
            f"{counts.unrecorded} states were published and are not recorded as seen: an unclean stop leaves such, of "
            "the page that it interrupted"
        )
    if found.not_recorded and found.waits:
        yield (
            f"{len(found.not_recorded)} events were published and are not recorded as seen yet: the last poller did "
            "not stop cleanly, and none runs"
        )
    if counts.expired:
        yield f"{counts.expired} events may have lain in raw objects that are expired: not judged"
    if counts.unprovable:
        yield f"{counts.unprovable} rows of the table can't be proved: their raw rows are expired or unreadable"
    if found.states is not None and found.states.purged:
        yield f"{found.states.purged:,} deleted keys are purged from the table"
    if found.states is not None and work.taker is not None and work.taker.misfits_more:
        yield f"{work.taker.misfits_more:,} more raw rows that can't be merged were not looked up in quarantine"
    if work.aside.places_more:
        yield f"{work.aside.places_more} undecodable records were not held against their offsets"
