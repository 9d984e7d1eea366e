"""Under which conditions the table lets a transition happen: PARKED.md 1.3 as data, and the requests made of it. Pure.

Each clause prevents one accident. All of a transition's clauses hold at once, checked by DynamoDB in the write itself.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from shared.parked.items import Item

Transition = Literal[
    "claim", "claim_early", "renew", "published", "again", "stale", "stale_for_good", "hold", "wake", "wake_operator",
    "archived", "notified", "finish", "edit",
]  # fmt: skip

_LEASED = {"leased": "#lease_tok = :token"}  # fencing: whoever was frozen past its lease changes nothing
_SAME_ROUND = {"same_round": "#round = :round"}  # a row woken under our lease is not put to sleep again
_TRIED = {"tried": "#st IN (:PARKED, :HELD)"}
_STALE = {"stale": "#st = :STALE"}
_UNCHANGED = {"unchanged": "#ver = :ver"}
_WAITS = {"waits": "#st IN (:PARKED, :HELD, :STALE)"}

CLAUSES: dict[Transition, dict[str, str]] = {
    "claim": {**_UNCHANGED, **_WAITS, "is_due": "#due < :due_bound"},
    "claim_early": {
        **_UNCHANGED,
        **_WAITS,
        "not_leased": "(attribute_not_exists(#lease_until) OR #lease_until <= :now)",
    },
    "renew": _LEASED,
    "published": {**_LEASED, **_TRIED},
    "again": {**_LEASED, **_SAME_ROUND},
    "stale": {
        **_LEASED,
        **_SAME_ROUND,
        **_TRIED,
        "spent": "(#att >= :att_max OR #tries >= :tries_max OR #deadline_at <= :now)",
    },
    "stale_for_good": {**_LEASED, **_SAME_ROUND, **_TRIED},
    "hold": {**_LEASED, **_SAME_ROUND, **_TRIED},
    "wake": {**_UNCHANGED, "held": "#st = :HELD"},
    "wake_operator": {**_UNCHANGED, "at_rest": "#st IN (:HELD, :STALE)"},
    "archived": {**_LEASED, **_STALE},
    "notified": {**_LEASED, **_STALE, "archived": "attribute_exists(#arch_sha)"},
    # A lease moves the due time, so that "grace is over" needs an attribute of its own.
    "finish": {
        **_LEASED,
        **_STALE,
        "grace_over": "#grace_until <= :now",
        "archived": "attribute_exists(#arch_sha)",
        "notified": "size(#ntf) > :zero",
    },
    "edit": {**_UNCHANGED, **_WAITS},
}

_CONSTANTS: dict[str, dict[str, Any]] = {
    "PARKED": {"S": "PARKED"},
    "HELD": {"S": "HELD"},
    "STALE": {"S": "STALE"},
    "zero": {"N": "0"},
    "one": {"N": "1"},
}
_NAME = re.compile(r"#(\w+)")
_VALUE = re.compile(r":(\w+)")


def update_request(
    transition: Transition,
    key: Item,
    values: Mapping[str, dict[str, Any]],
    *,
    sets: Mapping[str, dict[str, Any]],
    computes: tuple[str, ...] = (),
    removes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """``values``: what the clauses compare with; ``sets``: attribute and value; ``computes``: assignments as text."""
    assignments = [*(f"#{name} = :new_{name}" for name in sets), *computes]
    text = "SET " + ", ".join(assignments)
    if removes:
        text += " REMOVE " + ", ".join(f"#{name}" for name in removes)
    new = {f"new_{name}": value for name, value in sets.items()}
    return {"UpdateExpression": text, "ReturnValues": "ALL_NEW", **_conditional(transition, key, text, values, new)}


def delete_request(transition: Transition, key: Item, values: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return _conditional(transition, key, "", values, {})


def _conditional(
    transition: Transition,
    key: Item,
    text: str,
    values: Mapping[str, dict[str, Any]],
    new: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Only the names and values that the expressions use: DynamoDB refuses others."""
    condition = " AND ".join(CLAUSES[transition].values())
    known = {**_CONSTANTS, **values, **new}
    used = f"{text} {condition}"
    request = {
        "Key": {name: key[name] for name in ("pk", "sk")},
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {f"#{name}": name for name in _NAME.findall(used)},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if found := {f":{name}": known[name] for name in _VALUE.findall(used)}:
        request["ExpressionAttributeValues"] = found
    return request
