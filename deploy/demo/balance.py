"""The balance sheet of the conservation law, over distinct event ids. Pure: ``books.py`` counts, this compares.

A change is accounted for when it is in a raw object, parked or archived. Three questions are asked of each entity: is
everything that the poller has *seen* accounted for, is everything that the bank has *really* done, and was somebody
told of what has nothing but its archived copy left? And one of each partition: is every Kafka offset in a raw object
exactly once? The answers count event ids, so that these are held against the bank's own numbers: a change under two
ids would be counted twice, and an id that is no change's would hide a loss.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from deploy.demo import lake_balance
from deploy.demo.lake_balance import LakeBalance

NAMED_MAX = 10
"""How many culprits a line names; the counts are always whole."""

Place = tuple[int, int]
"""Partition and offset."""


class Truth(Struct, frozen=True, kw_only=True):
    """What the bank says about one change. Any one of ``event_ids`` will do: a row may come back to an old state."""

    name: str  # in the bank's words: "change 17", or "row 17, version 3"
    event_ids: tuple[str, ...]
    number: str | None = None  # events: the bank's own number of the change, as its JSON shows it


class RawRow(Struct, frozen=True, kw_only=True):
    event_id: str | None
    place: Place
    order: tuple[int, int, int, str] | None = (
        None  # (rank, tiebreak, rev, event id): the last one of a key is its state
    )
    key: str = ""
    version: int | None = None
    number: str | None = None  # the bank's own number of the change


class ParkedItem(Struct, frozen=True, kw_only=True):
    event_id: str
    reason: str
    maybe_sent: bool = False
    place: Place | None = None  # an undecodable record: its offset is accounted for here


class ArchivedItem(Struct, frozen=True, kw_only=True):
    event_id: str
    told: bool  # a channel has accepted a notice about its group
    place: Place | None = None  # as a parked item's


class Books(Struct, frozen=True, kw_only=True):
    """What the real stores hold of one entity."""

    entity: str
    shows: Literal["events", "rows"]
    truth: Sequence[Truth]
    seen: frozenset[str]
    raw: Sequence[RawRow]
    parked: Sequence[ParkedItem]
    archived: Sequence[ArchivedItem] = ()  # parked ones have their copy here before they leave
    log: Mapping[int, range]  # Kafka's offsets per partition
    final_versions: Mapping[str, int] = {}  # rows: each key's version in the bank, where the row is not flawed
    chain_problems: Sequence[str] = ()  # of the ledger: gaps and overlaps between objects


class Balance(Struct, frozen=True, kw_only=True):
    """The sheet of one entity. Lists hold the culprits' names, sorted."""

    entity: str
    shows: Literal["events", "rows"]
    truth: int
    seen: int
    raw: int
    raw_rows: int
    parked: int
    parked_by_reason: Mapping[str, int]
    archived: int  # and no longer parked
    twice: Mapping[str, int]  # in raw and parked, by reason of the parking
    redriven: int  # in raw and archived: given up once, and published after all
    unrecorded: Sequence[str]  # in raw, parked or archived, but not among the seen entries: a fault of events
    repeated: int  # raw rows beyond one per event id
    offsets: int
    missing: Sequence[str]  # event ids and changes that are nowhere
    untold: Sequence[str]  # event ids that are in the archive alone, and nobody was told
    offsets_missing: Sequence[str]
    offsets_twice: Sequence[str]
    offsets_unknown: Sequence[str]  # in a raw object, but not in Kafka
    nameless: int  # raw rows without an event id
    confused: Sequence[str]  # event ids that stand for two changes or for none, and changes under two event ids
    outdated: Sequence[str]  # rows: keys whose newest raw row is not the bank's final version
    chain_problems: Sequence[str]

    @property
    def adds_up(self) -> bool:
        names = (
            self.missing,
            self.untold,
            self.offsets_missing,
            self.offsets_twice,
            self.offsets_unknown,
            self.outdated,
        )
        return not any((*names, self.confused, self.chain_problems, self.nameless, self.never_recorded))

    @property
    def never_recorded(self) -> Sequence[str]:
        """Of rows none is a fault: a state published before an unclean stop may never be shown again, as events are."""
        return self.unrecorded if self.shows == "events" else ()


def balance(books: Books) -> Balance:
    raw_ids = {row.event_id for row in books.raw if row.event_id is not None}
    parked = {item.event_id: item for item in books.parked if item.event_id}
    archived = {item.event_id for item in books.archived if item.event_id}
    accounted = raw_ids | parked.keys() | archived
    places = Counter(row.place for row in books.raw)
    set_aside = {item.place for item in books.parked} | {item.place for item in books.archived}
    places.update(place for place in set_aside if place is not None and place not in places)
    offsets = {(partition, offset) for partition, span in books.log.items() for offset in span}
    return Balance(
        entity=books.entity,
        shows=books.shows,
        truth=len(books.truth),
        seen=len(books.seen),
        raw=len(raw_ids),
        raw_rows=len(books.raw),
        parked=len(parked),
        parked_by_reason=_counted(item.reason for item in parked.values()),
        archived=len(archived - parked.keys()),
        twice=_counted(parked[event_id].reason for event_id in raw_ids & parked.keys()),
        redriven=len(raw_ids & archived),
        unrecorded=sorted(accounted - books.seen - _undecodable(books) - {""}),
        repeated=sum(1 for row in books.raw if row.event_id is not None) - len(raw_ids),
        offsets=len(offsets),
        missing=sorted(_unaccounted(books, accounted)),
        untold=sorted(set(_untold(books)) - raw_ids - parked.keys()),
        offsets_missing=_places(offsets - places.keys()),
        offsets_twice=_places(place for place, count in places.items() if count > 1),
        offsets_unknown=_places(places.keys() - offsets),
        nameless=sum(1 for row in books.raw if row.event_id is None),
        confused=sorted(_confused(books)),
        outdated=sorted(_outdated(books, parked.keys())),
        chain_problems=list(books.chain_problems),
    )


def _unaccounted(books: Books, accounted: set[str]) -> Iterable[str]:
    """Each lost change once, though it may be both seen and true."""
    lost = books.seen - accounted
    names = {event_id: change.name for change in books.truth for event_id in change.event_ids}
    for event_id in lost:
        yield f"{names.get(event_id, 'a state since changed')}, seen as {event_id}"
    for change in books.truth:
        if accounted.isdisjoint(change.event_ids) and lost.isdisjoint(change.event_ids):
            yield f"{change.name}, never seen"


def _untold(books: Books) -> Iterable[str]:
    """A record that has no event id is named by its offset."""
    told = {item.event_id for item in books.archived if item.told}
    parked = {item.place for item in books.parked}
    for item in books.archived:
        if item.event_id and item.event_id not in told:
            yield item.event_id
        elif not item.event_id and not item.told and item.place is not None and item.place not in parked:
            yield "offset {}/{}".format(*item.place)


def _undecodable(books: Books) -> set[str]:
    """What foreign records in Kafka may call themselves."""
    parked = {item.event_id for item in books.parked if item.place is not None}
    return parked | {item.event_id for item in books.archived if item.place is not None}


def _confused(books: Books) -> Iterable[str]:
    """Two changes under one event id would hide the loss of one; the bank's own numbers tell."""
    numbers: dict[str, str] = {}
    for change in books.truth:
        for event_id in change.event_ids:
            if change.number is not None and numbers.setdefault(event_id, change.number) != change.number:
                yield f"{change.name} shares {event_id} with change {numbers[event_id]}"
    for row in books.raw:
        if row.number is not None and row.event_id is not None and numbers.get(row.event_id, row.number) != row.number:
            yield f"the raw row {row.place[0]}/{row.place[1]} of change {row.number} is named {row.event_id}"
    yield from _under_two_ids(books)
    yield from _strange_events(books) if books.shows == "events" else _strange_states(books)


def _under_two_ids(books: Books) -> Iterable[str]:
    """A change that was numbered twice is two changes for everybody downstream. The bank's versions never come back."""
    ids: dict[str, set[str]] = {}
    for row in books.raw:
        name = f"change {row.number}" if books.shows == "events" else f"row {row.key}, version {row.version}"
        if row.event_id is not None and (row.number if books.shows == "events" else row.version) is not None:
            ids.setdefault(name, set()).add(row.event_id)
    for name, found in ids.items():
        if len(found) > 1:
            yield f"{name} stands in raw rows under {len(found)} event ids: {_named(sorted(found))}"


def _strange_events(books: Books) -> Iterable[str]:
    """Event ids that no change of the bank has; but foreign records in Kafka may have any."""
    known = {event_id for change in books.truth for event_id in change.event_ids}
    for row in books.raw:
        if row.event_id is not None and row.event_id not in known:
            yield f"the raw row {row.place[0]}/{row.place[1]} is named {row.event_id}, which is no change of the bank"
    for item in books.parked:
        if item.event_id and item.place is None and item.event_id not in known:
            yield f"parked as {item.reason}: {item.event_id}, which is no change of the bank"


def _strange_states(books: Books) -> Iterable[str]:
    """Of rows only the last state is known; and each state has a name of its own."""
    known = {change.name: change.event_ids for change in books.truth}
    versions: dict[str, str] = {}
    for row in books.raw:
        if row.version is None or row.event_id is None:
            continue
        name = f"row {row.key}, version {row.version}"
        if versions.setdefault(row.event_id, name) != name:
            yield f"{name} shares {row.event_id} with {versions[row.event_id]}"
        if books.final_versions.get(row.key) == row.version and row.event_id not in known.get(name, ()):
            yield f"the raw row {row.place[0]}/{row.place[1]} of {name} is named {row.event_id}, which is not its id"


def _outdated(books: Books, parked: Iterable[str]) -> Iterable[str]:
    """Keys whose last raw row, by the order that Delta will use, is not what the bank's table holds.

    A key with a parked event is left out: its last state may be the parked one.
    """
    last: dict[str, RawRow] = {}
    for row in books.raw:
        if row.order is not None and (row.key not in last or row.order > (last[row.key].order or row.order)):
            last[row.key] = row
    parked_ids = set(parked)
    waiting = {change.name for change in books.truth if not parked_ids.isdisjoint(change.event_ids)}
    for key, version in books.final_versions.items():
        name = f"row {key}, version {version}"
        if name not in waiting and (key not in last or last[key].version != version):
            yield name


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _places(places: Iterable[Place]) -> list[str]:
    return [f"{partition}/{offset}" for partition, offset in sorted(places)]


def render(sheets: Sequence[Balance], lakes: Sequence[LakeBalance] = ()) -> list[str]:
    """The sheet as text. Its last line with the word "missing" says how many changes are missing in all."""
    lines = _table(sheets, lakes)
    archived = any(sheet.archived for sheet in sheets)
    for sheet in sheets:
        lines += [f"  {sheet.entity}: {line}" for line in _faults(sheet)]
    for lake in lakes:
        lines += [f"  {lake.entity}: {line}" for line in lake_balance.faults(lake)]
    if all(sheet.adds_up for sheet in sheets) and all(lake.adds_up for lake in lakes):
        where = "in the raw bucket, parked or archived" if archived else "in the raw bucket or parked"
        lines += ["", f"Every change is {where}, and every Kafka offset is in one raw object."]
        lines += ["The stream's tables, the batch's and the bank's own are equal, row for row."] if lakes else []
    else:
        lines += ["", "THE BOOKS DO NOT ADD UP: see above."]
    return [*lines, f"missing: {sum(len(sheet.missing) for sheet in sheets)}"]


def _table(sheets: Sequence[Balance], lakes: Sequence[LakeBalance]) -> list[str]:
    reasons = sorted({reason for sheet in sheets for reason in sheet.parked_by_reason})
    doubled = sorted({reason for sheet in sheets for reason in sheet.twice})
    redriven = any(sheet.redriven for sheet in sheets)
    rows: list[tuple[str, Sequence[int | str]]] = [
        ("in the bank (outbox changes, or rows)", [sheet.truth for sheet in sheets]),
        ("seen by the poller (Postgres)", [sheet.seen for sheet in sheets]),
        ("in raw objects (S3)", [sheet.raw for sheet in sheets]),
        ("parked (DynamoDB)", [sheet.parked for sheet in sheets]),
        *((f"    {reason}", [sheet.parked_by_reason.get(reason, 0) for sheet in sheets]) for reason in reasons),
        ("archived, and gone from there (S3)", [sheet.archived for sheet in sheets]),
        ("in two places", [sum(sheet.twice.values()) + sheet.redriven for sheet in sheets]),
        *((f"    parked as {reason}", [sheet.twice.get(reason, 0) for sheet in sheets]) for reason in doubled),
        *([("    archived, and published since", [sheet.redriven for sheet in sheets])] if redriven else []),
        ("in no place", [len(sheet.missing) for sheet in sheets]),
        ("in some, but not recorded as seen", [len(sheet.unrecorded) for sheet in sheets]),
        ("Kafka offsets", [sheet.offsets for sheet in sheets]),
        ("raw rows", [sheet.raw_rows for sheet in sheets]),
        ("    of an event that has one already", [sheet.repeated for sheet in sheets]),
        ("offsets in no raw object", [len(sheet.offsets_missing) for sheet in sheets]),
        ("offsets in two raw objects", [len(sheet.offsets_twice) for sheet in sheets]),
    ]
    if any(sheet.shows == "rows" for sheet in sheets):
        outdated = [len(sheet.outdated) if sheet.shows == "rows" else "-" for sheet in sheets]
        rows.append(("rows whose last state is not the bank's", outdated))
    rows += lake_balance.table_rows(lakes)
    width = max(16, *(len(sheet.entity) + 2 for sheet in sheets))
    head = f"{'Balance sheet, distinct event ids':<42}" + "".join(f"{sheet.entity:>{width}}" for sheet in sheets)
    body = [f"{name:<42}" + "".join(_cell(value, width) for value in values) for name, values in rows]
    return [head, "─" * len(head), *body, "─" * len(head)]


def _cell(value: int | str, width: int) -> str:
    return f"{value:>{width},}" if isinstance(value, int) else f"{value:>{width}}"


def _faults(sheet: Balance) -> list[str]:
    """One line per kind of hole, in words that don't end in a number that could be mistaken for the total."""
    found = [
        ("in no place", sheet.missing),
        ("archived and gone, but nobody was told", sheet.untold),
        ("offset in no raw object", sheet.offsets_missing),
        ("offset in two raw objects", sheet.offsets_twice),
        ("raw row of no Kafka offset", sheet.offsets_unknown),
        ("not the bank's last state", sheet.outdated),
        ("ledger", sheet.chain_problems),
        ("confused", sheet.confused),
        ("in some place, but never recorded as seen", sheet.never_recorded),
    ]
    lines = [f"{text}: {_named(names)}" for text, names in found if names]
    return [*lines, f"raw rows without an event id: {sheet.nameless}"] if sheet.nameless else lines


def _named(names: Sequence[str]) -> str:
    more = f"; and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return "; ".join(names[:NAMED_MAX]) + more
