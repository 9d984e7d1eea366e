"""What DynamoDB says that calls consumed (``ReturnConsumedCapacity``), by operation; the indexes' part is in it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from shared.aws import _SESSION

WRITES = ("UpdateItem", "DeleteItem", "PutItem", "BatchExecuteStatement", "ExecuteStatement", "BatchWriteItem")
READS = ("GetItem", "Query", "BatchGetItem")


def meter(units: Counter[str], calls: Counter[str] | None = None) -> Callable[[], None]:
    """Add up what every DynamoDB call of clients opened from now on consumes. Returns how to end it."""

    def ask(params: dict[str, Any], model: Any, **_: Any) -> None:
        if "ReturnConsumedCapacity" in model.input_shape.members:
            params["ReturnConsumedCapacity"] = "INDEXES"

    def add(parsed: dict[str, Any], model: Any, **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        for one in consumed if isinstance(consumed, list) else [consumed]:
            units[model.name] += one["CapacityUnits"]
        if calls is not None:
            calls[model.name] += 1

    events = _SESSION._session
    events.register("before-parameter-build.dynamodb", ask)
    events.register("after-call.dynamodb", add)

    def forget() -> None:
        events.unregister("before-parameter-build.dynamodb", ask)
        events.unregister("after-call.dynamodb", add)

    return forget
