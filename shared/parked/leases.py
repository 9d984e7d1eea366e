"""A parked item as a worker sees it: a hint of the index, a row of the table, a row under a lease. Pure."""

from typing import Any

from msgspec import Struct, structs

from shared.events.model import Reason, RejectedEvent
from shared.parked.items import Item, wire
from shared.parked.model import KafkaPosition, ParkedEvent, State, legible

ERRORS_MAX = 5  # kept in META
RECEIPTS_MAX = 10
CODE_CHARS_MAX = 64


class Due(Struct, frozen=True):
    """What the index ``due`` shows. It may be behind the table: only a claim tells."""

    pk: str
    sk: str
    state: State
    ver: int
    entity: str
    reason: Reason
    due_ms: int
    item_id: str


class Error(Struct, frozen=True):
    """One failure in a row's history: never a value of the event."""

    at_ms: int
    kind: str  # a reason or another class of error
    code: str


class Receipt(Struct, frozen=True):
    """A channel has accepted the notice about this row."""

    channel: str
    dedup_key: str
    provider_id: str
    at_ms: int


class Body(Struct, frozen=True):
    """Where the bytes of one rev lie: an item of the same partition, or an object of the bucket."""

    sha: str  # of the raw bytes
    sk: str | None = None
    object_key: str | None = None


class Edit(Struct, frozen=True):
    rev: int
    who: str
    why: str
    at_ms: int
    body: Body


class Row(Struct, frozen=True, kw_only=True):
    """One META, read consistently. ``event`` lacks its raw bytes: a ``Claimed`` has them."""

    pk: str
    sk: str
    item_id: str
    event: ParkedEvent  # with the newest rev
    state: State
    ver: int
    att: int  # counted attempts of this round
    tries: int  # all claims, for ever
    tries_free: int  # of them: those that no limit counts (earlier rounds, those with a known end)
    tries_before: int  # of them: those of earlier rounds
    first_at_ms: int
    deadline_ms: int
    due_ms: int
    round: int  # one more by each wake and edit: what a lease of an earlier round decides is void
    key_cut: bool  # ``event.key`` is no more than the legible start: derive the key from the raw bytes
    errs: tuple[Error, ...]
    arch_uri: str | None
    arch_sha: str | None
    ntf: tuple[Receipt, ...]
    grace_until_ms: int | None  # not deleted before
    edits: tuple[Edit, ...]
    original: Body  # as parked, never overwritten
    nonce: str
    lease_token: str | None
    lease_owner: str | None
    lease_until_ms: int  # nobody may claim it before; an edit takes the token away but leaves this. 0: not leased
    done_token: str | None  # of the write that ended the last lease, or of the last wake
    stale_why: str

    @property
    def tries_counted(self) -> int:
        return self.tries - self.tries_free

    @property
    def tries_of_round(self) -> int:
        return self.tries - self.tries_before

    @property
    def newest(self) -> Body:
        return self.edits[-1].body if self.edits else self.original


class Claimed(Row, frozen=True, kw_only=True):
    """A row under a lease of ours, its event complete with the raw bytes of the newest rev."""

    token: str
    lease_until_s: float  # monotonic, with a margin: begin nothing after it


def due_of(item: Item) -> Due:
    """From the index ``due``."""
    due_ms, _, item_id = item["due"]["S"].partition("#")
    return Due(
        pk=item["pk"]["S"],
        sk=item["sk"]["S"],
        state=State(item["st"]["S"]),
        ver=int(item["ver"]["N"]),
        entity=item["entity"]["S"],
        reason=Reason(item["reason"]["S"]),
        due_ms=int(due_ms),
        item_id=item_id,
    )


def read_row(item: Item) -> Row:
    """From a META. Attributes that parking doesn't write have their defaults."""
    edits = edits_of(item)
    return Row(
        pk=item["pk"]["S"],
        sk=item["sk"]["S"],
        item_id=item["item"]["S"],
        event=_event_of(item, edits[-1].rev if edits else int(item["rev"]["N"])),
        state=State(item["st"]["S"]),
        ver=int(item["ver"]["N"]),
        att=int(item["att"]["N"]),
        tries=int(item["tries"]["N"]),
        tries_free=_number(item, "tries_free"),
        tries_before=_number(item, "tries_0"),
        first_at_ms=int(item["first_at"]["N"]) // 1000,
        deadline_ms=int(item["deadline_at"]["N"]),
        due_ms=int(item["due"]["S"].partition("#")[0]),
        round=_number(item, "round"),
        key_cut="key_cut" in item,
        errs=tuple(_error_of(part["M"]) for part in _list(item, "errs")),
        arch_uri=_text(item, "arch_uri"),
        arch_sha=_text(item, "arch_sha"),
        ntf=tuple(_receipt_of(part["M"]) for part in _list(item, "ntf")),
        grace_until_ms=_number(item, "grace_until") if "grace_until" in item else None,
        edits=edits,
        original=Body(sha=item["body_sha"]["S"], sk=_text(item, "body"), object_key=_text(item, "s3_uri")),
        nonce=item["nonce"]["S"],
        lease_token=_text(item, "lease_tok"),
        lease_owner=_text(item, "lease_own"),
        lease_until_ms=_number(item, "lease_until"),
        done_token=_text(item, "done_tok"),
        stale_why=_text(item, "stale_why") or "",
    )


def edits_of(item: Item) -> tuple[Edit, ...]:
    return tuple(_edit_of(part["M"]) for part in _list(item, "edits"))


def claimed_row(row: Row, token: str, lease_until_s: float) -> Claimed:
    return Claimed(**structs.asdict(row), token=token, lease_until_s=lease_until_s)


def with_raw(claimed: Claimed, raw: bytes) -> Claimed:
    return structs.replace(claimed, event=structs.replace(claimed.event, raw=raw))


def with_position(claimed: Claimed, position: KafkaPosition | None) -> Claimed:
    return structs.replace(claimed, event=structs.replace(claimed.event, kafka=position))


def error_of(cause: RejectedEvent | str, kind: str, at_ms: int) -> Error:
    """``kind``: the class of a cause that is no more than a code."""
    if isinstance(cause, RejectedEvent):
        return Error(at_ms, cause.reason, legible(cause.path, CODE_CHARS_MAX))
    return Error(at_ms, kind, legible(cause, CODE_CHARS_MAX))


def errors_wire(errors: tuple[Error, ...]) -> dict[str, Any]:
    kept = errors[-ERRORS_MAX:]
    return _list_wire([{"at": error.at_ms, "kind": error.kind, "code": error.code} for error in kept])


def receipts_wire(receipts: tuple[Receipt, ...]) -> dict[str, Any]:
    kept = receipts[-RECEIPTS_MAX:]
    return _list_wire([
        {"channel": receipt.channel, "dedup": receipt.dedup_key, "id": receipt.provider_id, "at": receipt.at_ms}
        for receipt in kept
    ])  # fmt: skip


def edits_wire(edits: tuple[Edit, ...]) -> dict[str, Any]:
    return _list_wire([
        {"rev": edit.rev, "who": edit.who, "why": edit.why, "at": edit.at_ms, "sha": edit.body.sha}
        | ({"body": edit.body.sk} if edit.body.sk is not None else {})
        | ({"s3_uri": edit.body.object_key} if edit.body.object_key is not None else {})
        for edit in edits
    ])  # fmt: skip


def own_bodies(row: Row) -> list[Body]:
    """The bodies that no other META can name, since their keys hold a nonce: what may go once the row is gone.

    An object without our nonce in its key may stand for other rows as well: it is left to the collector of orphans.
    """
    key = row.original.object_key
    own_original = key is None or key.endswith(f"-{row.nonce}.zst")
    return [*([row.original] if own_original else []), *(edit.body for edit in row.edits)]


def _event_of(item: Item, rev: int) -> ParkedEvent:
    digest = item["pk"]["S"].rpartition("#")[2]
    hash_hex = item["body_sha"]["S"][:32] if digest.startswith("!raw") else digest
    return ParkedEvent(
        entity=item["entity"]["S"],
        topic=item["topic"]["S"],
        key=_text(item, "key"),
        key_hash=bytes.fromhex(hash_hex),
        updated_us=int(item["updated_us"]["N"]),
        event_id=item["id"]["S"],
        rank=int(item["rank"]["N"]),
        tiebreak=int(item["tie"]["N"]),
        rev=rev,
        reason=Reason(item["reason"]["S"]),
        path=item["path"]["S"],
        detail=item["detail"]["S"],
        raw=b"",
        subject=_text(item, "sub"),
        fingerprint=_text(item, "sfp"),
        owner=item["owner"]["S"],
        maybe_sent=item["maybe_sent"]["BOOL"],
        at_us=int(item["first_at"]["N"]),
        kafka=_position_of(item["kafka"]["M"]) if "kafka" in item else None,
    )


def _position_of(part: dict[str, Any]) -> KafkaPosition:
    headers = tuple(
        (pair["L"][0]["S"], pair["L"][1].get("B")) for pair in part["headers"]["L"]
    )  # NULL: it has no value
    return KafkaPosition(
        topic=part["topic"]["S"],
        generation=int(part["generation"]["N"]),
        partition=int(part["partition"]["N"]),
        offset=int(part["offset"]["N"]),
        timestamp_ms=int(part["timestamp_ms"]["N"]),
        key=part["key"]["B"] if "key" in part else None,
        headers=headers,
        cut="cut" in part,
    )


def _error_of(part: Item) -> Error:
    return Error(int(part["at"]["N"]), part["kind"]["S"], part["code"]["S"])


def _receipt_of(part: Item) -> Receipt:
    return Receipt(part["channel"]["S"], part["dedup"]["S"], part["id"]["S"], int(part["at"]["N"]))


def _edit_of(part: Item) -> Edit:
    body = Body(sha=part["sha"]["S"], sk=_text(part, "body"), object_key=_text(part, "s3_uri"))
    return Edit(int(part["rev"]["N"]), part["who"]["S"], part["why"]["S"], int(part["at"]["N"]), body)


def _list_wire(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"L": [{"M": {name: wire(value) for name, value in part.items()}} for part in parts]}


def _list(item: Item, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = item[name]["L"] if name in item else []
    return found


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"]) if name in item else 0


def _text(item: Item, name: str) -> str | None:
    return item[name]["S"] if name in item else None
