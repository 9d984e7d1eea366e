"""Which rows of an answer are changes not seen before, and their numbers. DESIGN 3.2, "Repetition or change?"

Two manners. A source that shows *rows* shows a key's current state: it is a change when it differs from the key's last
recorded state, so that A, B, A within one tick are three. A source that shows *events* shows each for ever: equal ones
of one tick are told apart by counting, so that two equal bookings are two, today and when they are shown again.
"""

from collections.abc import Sequence

from msgspec import Struct, structs

from shared.events.identity import event_id, pointer, seq
from shared.events.model import Event, EventRules, Reason, RejectedEvent, Sighting
from shared.producer.seen import ANCHORED, ENTRY, KEY_BYTES, Seen

_TOO_FAR = "dated beyond the source's clock by more than future_s_max"


class TimeBounds(Struct, frozen=True, kw_only=True):
    """What an answer's stamps are held against."""

    since_us: int  # of the request
    start_us: int  # rows dated below were never wanted: reading began here
    known_us: int  # of rows dated below nobody can tell whether they were seen: their entries are forgotten
    late_us: int  # unseen rows dated below, down to there, are late beyond the cap
    floor_us: int  # unseen rows dated below are not published with this answer
    clock_us: int  # the source's clock, guarded by ours
    future_us: int  # rows dated beyond are refused


class Numbered(Struct, frozen=True, kw_only=True):
    """One answer, sorted into changes and repetitions."""

    events: list[Event]  # unseen, in the order shown
    entries: bytes  # packed, for ``events`` and for undated repetitions that must not be forgotten yet
    min_us: int  # of the entries' times; 0 when there are none
    max_us: int
    repetitions: int
    below_floor: int  # new, late beyond the cap, and neither published nor recorded


def number(
    rules: EventRules,
    seen: Seen,
    sightings: Sequence[Sighting],
    shown_from_us: int,
    bounds: TimeBounds,
    *,
    doubting: bool = True,
) -> Numbered:
    """Row i of the answer was shown at ``shown_from_us + i``. Changes nothing.

    ``doubting``: publish once more what was recorded before an unclean takeover.
    """
    settled_keys = seen.settled_keys if doubting else None
    occurrences = _rows(seen, sightings, settled_keys) if rules.shows == "rows" else _events(seen, sightings)
    anchors = _anchors(sightings, bounds)
    events: list[Event] = []
    packed, times = _renewals(seen, sightings, occurrences, anchors, shown_from_us)
    below_floor = 0
    for row, (sighting, occurrence) in enumerate(zip(sightings, occurrences, strict=True)):
        if occurrence is None:
            continue
        updated_us, mark = sighting.updated_us, 0
        if row in anchors:
            updated_us, mark = anchors[row], ANCHORED
            sighting = _refused(sighting, rules)
        elif updated_us < bounds.floor_us:
            # Mostly forgotten ones. Published, all history would come again with each answer.
            below_floor += _is_late(seen, sighting, occurrence, bounds)
            continue
        shown_us = shown_from_us + row
        identity = sighting.identity
        packed.append(ENTRY.pack(sighting.key_hash[:KEY_BYTES], identity, occurrence | mark, updated_us, shown_us))
        times.append(updated_us)
        rank, tiebreak = seq(rules, sighting, shown_us)
        events.append(Event(sighting, occurrence, event_id(identity, occurrence), shown_us, rank, tiebreak))
    return Numbered(
        events=events,
        entries=b"".join(packed),
        min_us=min(times, default=0),
        max_us=max(times, default=0),
        repetitions=occurrences.count(None),
        below_floor=below_floor,
    )


def _rows(seen: Seen, sightings: Sequence[Sighting], settled: set[bytes] | None) -> list[int | None]:
    """The occurrence of each row; None: a repetition.

    Only the key's *last* state makes a repetition. A state that was recorded before that one has come back: dropping
    it as "seen" would leave the lake with a state that the source no longer has.
    """
    counts, last = seen.counts, seen.last
    here: dict[bytes, bytes] = {}  # states in this answer, not recorded yet
    came: dict[bytes, int] = {}
    found: list[int | None] = []
    for sighting in sightings:
        key, identity = sighting.key_hash[:KEY_BYTES], sighting.identity
        count = came.get(identity)
        if count is None:
            count = counts.get(identity, 0)
        state = here.get(key)
        if (last.get(key) if state is None else state) != identity:
            found.append(count)
            here[key], came[identity] = identity, count + 1
        elif settled is None or state is not None or key in settled:
            found.append(None)
        else:
            # After an unclean stop the last state published may be another one, never recorded. Once more, under the
            # id that it had: the books count it once, and the new stamp puts it on top.
            found.append(max(count - 1, 0))
            here[key] = identity
    return found


def _events(seen: Seen, sightings: Sequence[Sighting]) -> list[int | None]:
    """The occurrence of each event; None: a repetition.

    Each answer begins with whole ticks, since it is asked for by time: counting begins anew with each.
    """
    counts = seen.counts
    shown: dict[bytes, int] = {}
    found: list[int | None] = []
    for sighting in sightings:
        identity = sighting.identity
        occurrence = shown.get(identity, 0)
        shown[identity] = occurrence + 1
        found.append(None if occurrence < counts.get(identity, 0) else occurrence)
    return found


def _anchors(sightings: Sequence[Sighting], bounds: TimeBounds) -> dict[int, int]:
    """The time under which to record the rows that have none of their own, or one that can't be trusted.

    It is the greatest sound stamp shown before them, and at least the page's ``since``: recorded far lower they would
    be forgotten while their page is still read again; in the far future they would never be.
    """
    anchors: dict[int, int] = {}
    anchor_us = bounds.since_us
    for row, sighting in enumerate(sightings):
        if sighting.key is None or sighting.updated_us > bounds.future_us:
            anchors[row] = anchor_us
        elif anchor_us < sighting.updated_us <= bounds.clock_us:
            anchor_us = sighting.updated_us
    return anchors


def _renewals(
    seen: Seen,
    sightings: Sequence[Sighting],
    occurrences: Sequence[int | None],
    anchors: dict[int, int],
    shown_from_us: int,
) -> tuple[list[bytes], list[int]]:
    """Entries, and their times, for repetitions whose recorded time is not their own and has fallen behind.

    Without them the entry would sink below the floor while its row is still shown, and the row be parked again. A date
    in the future, refused once, is renewed under its own when its time has come.
    """
    packed: list[bytes] = []
    times: list[int] = []
    for row, sighting in enumerate(sightings) if seen.anchors else ():
        recorded_us = seen.anchors.get(sighting.identity)
        updated_us = anchors.get(row, sighting.updated_us)
        if recorded_us is None or occurrences[row] is not None or updated_us <= recorded_us:
            continue
        packed_occurrence = (seen.counts[sighting.identity] - 1) | ANCHORED
        key = sighting.key_hash[:KEY_BYTES]
        packed.append(ENTRY.pack(key, sighting.identity, packed_occurrence, updated_us, shown_from_us + row))
        times.append(updated_us)
    return packed, times


def _is_late(seen: Seen, sighting: Sighting, occurrence: int, bounds: TimeBounds) -> bool:
    """Beyond the cap, and for certain: a forgotten row looks just like one that was never seen."""
    wanted_us = max(bounds.start_us, bounds.known_us)
    is_new = seen.counts.get(sighting.identity, 0) <= occurrence
    return is_new and wanted_us <= sighting.updated_us < bounds.late_us


def _refused(sighting: Sighting, rules: EventRules) -> Sighting:
    if sighting.key is None:
        return sighting  # refused already: it can't be read
    return structs.replace(sighting, refusal=RejectedEvent(Reason.FUTURE, pointer(rules.updated_at), _TOO_FAR))
