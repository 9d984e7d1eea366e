"""What Postgres keeps for one entity, and the words in which the reading algorithm and the lease speak of it.

Pure: no I/O, no clock. All ``*_us`` are microseconds since 1970, UTC.
"""

from typing import Literal

from msgspec import Struct

Lane = Literal["tail", "lookback", "cap"]


class SweepProgress(Struct, frozen=True, kw_only=True):
    """A lookback or cap lookback that is under way: it survives a kill, and only a completed one moves its mark."""

    at_us: int  # everything below has been read again
    until_us: int  # the cursor at which it began: what its mark becomes when it has been read up to there


class CursorState(Struct, frozen=True, kw_only=True):
    """All that the reading of one entity needs to go on after a kill, besides the seen entries.

    The fields named in ``COLUMNS`` are columns of ``entity_cursor``; every other field lives in its jsonb column
    ``reading`` and must have a default, so that a field can be added without a migration: the default is what a fresh
    entity, or one whose cursor an operator has moved, begins with.
    """

    cursor_us: int  # everything shown up to here is published or parked
    swept_us: int  # the cursor at which the last completed lookback began
    cap_swept_us: int  # the same for the cap lookback
    window_us: int = 60_000_000  # how far a lookback reaches behind ``swept_us``; a cap lookback's finds raise it
    longest_answer_rows: int = 0  # longest answer that held several ticks: a shorter one is not proved to be whole
    newest_us: int | None = None  # newest stamp not beyond the source's clock that the tail has shown
    newest_first_server_us: int | None = None  # the source's clock when that stamp was first shown
    latest_us: int | None = None  # last stamp of the last tail run: an answer that ends before it may have been cut
    ascending: bool | None = None  # did the last answer that held several ticks show them in order?
    lookback: SweepProgress | None = None
    cap_lookback: SweepProgress | None = None
    start_us: int | None = None  # where reading began: rows dated below were never wanted. None: at ``cursor_us``
    floor_us: int | None = None  # unseen rows dated below are late beyond the cap. None: at ``cursor_us``
    catching_up: bool = True
    """All that was read since the start was older than the lateness cap when it was read: nothing can be late there, so
    that the swept marks move with the cursor and a long history is read once, not three times."""
    republish_before_us: int | None = None
    """After an unclean takeover, until the first lookback completes: what is seen and was recorded under an older stamp
    is published again, since a later state of its row may have been published and not recorded.

    ``Grant.unclean`` is lost with the first commit of the new owner: from there on this field carries it, over stops
    and further takeovers.
    """
    republish_cap: bool = False
    """The unclean stop may have interrupted a cap lookback: only a completed one ends the republishing."""


COLUMNS = ("cursor_us", "swept_us", "cap_swept_us", "window_us", "longest_answer_rows", "newest_us")
"""Fields of ``CursorState`` that people query: columns of ``entity_cursor`` under the same names."""


class PageCommit(Struct, frozen=True, kw_only=True):
    """What one settled page changes, in one transaction."""

    state: CursorState
    shown_us: int
    """The last stamp issued for this page; for an answer without rows, the stamp of its request's start.

    Strictly rising from page to page of one entity: it is also how a commit whose answer was lost is recognised.
    """
    seen_floor_us: int  # entries dated below are no longer needed for telling repetitions
    entries: bytes = b""  # packed seen entries in the order shown; pages may be joined by concatenation
    min_us: int = 0  # least and greatest ``updated_us`` of the entries; ignored when there are none
    max_us: int = 0
    history: tuple[str, str] | None = None  # (who, why), for a move of the cursor that is no ordinary page


class SeenPage(Struct, frozen=True, kw_only=True):
    """Entries as they were committed; ``load`` gives pages in the order of their commits (rising ``seq``)."""

    seq: int
    min_us: int
    max_us: int
    entries: bytes


class Grant(Struct, frozen=True, kw_only=True):
    """A lease on one entity. ``epoch`` rises with each grant and fences every write of former owners."""

    entity: str
    owner: str  # unique per start of a process
    epoch: int
    lease_s: float
    lease_until_monotonic_s: float  # by this process's monotonic clock, on the safe side
    shown_from_us: int  # stamps of this owner are at or above this ...
    shown_limit_us: int  # ... and below this, until a renewal raises it
    shown_anchor_monotonic_s: float  # the monotonic time that belongs to ``shown_from_us``
    unclean: bool  # the previous owner did not release: its last pages may be published but not recorded
    paused_reason: str | None = None  # set when an operator paused the entity during this lease: release it


class Committed(Struct, frozen=True, kw_only=True):
    """What the owner learns from a commit."""

    seq: int  # number of this commit, for this entity
    paused_reason: str | None  # not None: stop polling and release
    tidy_due: bool  # enough pages have gathered: call ``tidy`` when convenient


class EntityStatus(Struct, frozen=True, kw_only=True):
    """One row of ``entity_cursor``, for people."""

    entity: str
    cursor_us: int
    swept_us: int
    cap_swept_us: int
    window_us: int
    longest_answer_rows: int
    newest_us: int | None
    seen_floor_us: int
    shown_us: int
    shown_limit_us: int
    epoch: int
    owner: str | None
    lease_left_s: float | None  # by Postgres's clock; negative: expired; None: nobody owns it
    paused_reason: str | None
    paused_by: str | None
    paused_at_us: int | None
    committed_at_us: int | None
    pages: int  # rows of ``seen_page``
    seen_bytes: int


class Standing(Struct, frozen=True, kw_only=True):
    """Where the reading of one entity stands, all read at once: what an auditor holds the other stores against."""

    state: CursorState
    shown_us: int  # last stamp of the last committed page: whatever was shown up to here is recorded
    commit_seq: int
    held: bool  # a poller has the lease
    unclean: bool  # the last owner did not release, and nobody has committed since


class CursorMove(Struct, frozen=True, kw_only=True):
    """One row of ``cursor_history``. Equal moves in a row are kept as one, with their number in ``moves``."""

    entity: str
    at_us: int  # the last of them
    first_at_us: int
    moves: int
    who: str
    why: str
    cursor_from_us: int
    cursor_to_us: int
    swept_from_us: int
    cap_swept_from_us: int
    epoch: int


class Fenced(Exception):
    """Another poller, or an operator, has taken the entity over: stop at once; what was not committed is theirs."""

    def __init__(self, entity: str, epoch: int) -> None:
        super().__init__(f"{entity}: epoch {epoch} is over, the entity has been taken over or moved; lease it again")
        self.entity = entity


class UnknownEntity(Exception):
    """Postgres has no row for the entity: it has never been polled."""

    def __init__(self, entity: str) -> None:
        super().__init__(f"{entity!r} has no cursor yet: check the name, or start a poller for it first")
        self.entity = entity


class CheckpointsUnavailable(Exception):
    """Postgres did not answer within the budget. Transient: wait, the cursor stands, call again with the same page."""


class CheckpointsMisconfigured(Exception):
    """Postgres answers, but not as it must (no tables, no rights, wrong password): waiting won't help."""


def moved(state: CursorState, to_us: int) -> CursorState:
    """The state after an operator has set the cursor: reading begins anew there, with what is known of the source.

    Both swept marks move along and lookbacks under way are dropped. Nothing dated below is published any more.
    """
    return CursorState(
        cursor_us=to_us,
        swept_us=to_us,
        cap_swept_us=to_us,
        window_us=state.window_us,
        longest_answer_rows=state.longest_answer_rows,
        ascending=state.ascending,
        republish_before_us=state.republish_before_us,
    )
