"""The parked store's calls: which errors are tried again, how throttling is named, when it gives up."""

import asyncio
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoRegionError,
    ParamValidationError,
)

from shared.parked.calls import (
    Budget,
    Calls,
    Lanes,
    ParkedUnavailable,
    Trouble,
    refused_statement,
    statement_trouble,
    throttled_resource,
    trouble_of,
)
from shared.parked.table import definition, differences, is_active

INDEX_ARN = "arn:aws:dynamodb:eu-west-1:1:table/tidemark_parked/index/grp"


def client_error(code: str, status: int = 400, **more: Any) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return ClientError(answer, "PutItem")


class Failing:
    """A client that fails a number of times, then answers."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.calls = 0

    async def query(self, **_parameters: object) -> dict[str, Any]:
        self.calls += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        return {"Items": []}


def test_a_throttle_names_the_index_that_its_reasons_name() -> None:
    error = client_error("ThrottlingException", ThrottlingReasons=[{"reason": "x", "resource": INDEX_ARN}])
    trouble = trouble_of(error, "tidemark_parked")

    assert trouble is not None
    assert trouble.throttled_at == "grp"
    assert trouble.unavailable().reason == "parked_throttled"


def test_a_throttle_without_an_index_names_the_table() -> None:
    trouble = trouble_of(client_error("ProvisionedThroughputExceededException"), "tidemark_parked")

    assert trouble is not None
    assert trouble.throttled_at == "tidemark_parked"


def test_an_index_is_found_in_a_message_too() -> None:
    assert throttled_resource({"Error": {"Message": f"throttled: {INDEX_ARN}."}}) == "grp"
    assert throttled_resource({"Error": {"Message": "throttled"}}) == ""
    assert statement_trouble({"Code": "ThrottlingError", "Message": INDEX_ARN}, "t").throttled_at == "grp"
    assert statement_trouble({"Code": "InternalServerError", "Message": INDEX_ARN}, "t").throttled_at == ""


@pytest.mark.parametrize("error", [client_error("InternalServerError", 500), EndpointConnectionError(endpoint_url="u")])
def test_failures_of_the_service_and_the_line_are_transient(error: Exception) -> None:
    trouble = trouble_of(error, "t")

    assert trouble is not None
    assert trouble.unavailable().reason == "parked_unavailable"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("RequestTimeout", 400),  # what a process gets that was frozen during a PUT
        ("RequestTimeTooSkewed", 403),
        ("KMSThrottlingException", 400),
        ("KMS.KMSInvalidStateException", 400),
        ("SlowDown", 503),
        ("LimitExceededException", 400),
        ("ItemCollectionSizeLimitExceededException", 400),
        ("ACodeThatAwsAddsOneDay", 400),
        ("SignatureDoesNotMatch", 403),
        ("MissingAuthenticationToken", 403),
        ("AllAccessDisabled", 403),
        ("InvalidAccessKeyId", 403),
        ("InvalidToken", 400),
    ],
)
async def test_what_waiting_mends_makes_the_store_unavailable_and_raises_nothing_else(code: str, status: int) -> None:
    client = Failing([client_error(code, status)] * 100)
    with pytest.raises(ParkedUnavailable):
        await Calls(client, "t", Lanes(2)).call("query", Budget(0.01))


@pytest.mark.parametrize(
    "error", [CredentialRetrievalError(provider="iam-role", error_msg="away"), NoRegionError(), TimeoutError()]
)
async def test_credentials_that_cannot_be_had_now_make_the_store_unavailable(error: Exception) -> None:
    with pytest.raises(ParkedUnavailable):
        await Calls(Failing([error] * 100), "t", Lanes(2)).call("query", Budget(0.01))


@pytest.mark.parametrize("code", ["ConditionalCheckFailedException", "PreconditionFailed", "NoSuchKey", "404"])
async def test_the_stores_answers_reach_who_asked(code: str) -> None:
    with pytest.raises(ClientError):
        await Calls(Failing([client_error(code)]), "t", Lanes(2)).call("query", Budget(5.0))


async def test_a_call_to_a_frozen_store_ends() -> None:
    class Frozen:
        async def query(self, **_parameters: object) -> dict[str, Any]:
            await asyncio.get_running_loop().create_future()
            return {}

    async with asyncio.timeout(5):
        with pytest.raises(ParkedUnavailable, match="TimeoutError"):
            await Calls(Frozen(), "t", Lanes(1), call_s_max=0.01).call("query", Budget(0.0))


def test_our_own_mistakes_are_no_transients() -> None:
    assert trouble_of(client_error("ValidationException"), "t") is None
    assert trouble_of(ParamValidationError(report="x"), "t") is None
    assert isinstance(refused_statement({"Code": "ValidationError"}, "t"), RuntimeError)
    assert isinstance(refused_statement({"Code": "ItemCollectionSizeLimitExceeded"}, "t"), ParkedUnavailable)


@pytest.mark.parametrize(("code", "missing"), [("ResourceNotFoundException", True), ("AccessDeniedException", False)])
def test_what_an_operator_must_mend_is_not_tried_again(code: str, missing: bool) -> None:
    with pytest.raises(ParkedUnavailable) as caught:
        trouble_of(client_error(code), "t")

    assert caught.value.is_missing is missing


async def test_transients_are_tried_again_inside_the_budget() -> None:
    client = Failing([client_error("InternalServerError", 500)] * 2)
    await Calls(client, "t", Lanes(2)).call("query", Budget(5.0))

    assert client.calls == 3


async def test_a_spent_budget_raises_the_last_trouble() -> None:
    client = Failing([client_error("ThrottlingException")] * 1000)
    with pytest.raises(ParkedUnavailable, match="parked_throttled"):
        await Calls(client, "t", Lanes(2)).call("query", Budget(0.01))


async def test_throttles_let_fewer_calls_fly_and_calm_lets_more() -> None:
    lanes = Lanes(8)
    calls = Calls(Failing([client_error("ThrottlingException")]), "t", lanes)
    await calls.call("query", Budget(5.0))
    assert lanes.allowed == 4

    for _ in range(Lanes.RECOVERY * 4):
        await calls.call("query", Budget(5.0))
    assert lanes.allowed == 8


async def test_no_more_calls_are_in_flight_than_lanes() -> None:
    lanes, most, now = Lanes(3), 0, 0

    async def one() -> None:
        nonlocal most, now
        async with lanes.lane():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(one())

    assert most == 3


async def test_a_cancelled_call_gives_its_lane_and_its_turn_away() -> None:
    lanes = Lanes(1)
    entered: list[int] = []

    async def one(number: int) -> None:
        async with lanes.lane():
            entered.append(number)
            await asyncio.sleep(3600 if number < 2 else 0)

    tasks = [asyncio.create_task(one(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.wait_for(asyncio.gather(*tasks[2:]), 1)

    assert entered == [0, 2, 3]


async def test_a_budget_refuses_a_pause_that_would_outlive_it() -> None:
    with pytest.raises(ParkedUnavailable, match="parked_unavailable: down"):
        await Budget(1.0).pause(2.0, Trouble("down"))


def described(**changes: Any) -> dict[str, Any]:
    table = definition("t") | {"TableStatus": "ACTIVE"}
    table["GlobalSecondaryIndexes"] = [index | {"IndexStatus": "ACTIVE"} for index in table["GlobalSecondaryIndexes"]]
    return table | changes


def test_the_table_that_we_define_does_not_differ() -> None:
    assert differences(described()) == []
    assert is_active(described())


def test_a_table_is_active_only_with_its_indexes() -> None:
    indexes = described()["GlobalSecondaryIndexes"]
    indexes[1]["IndexStatus"] = "CREATING"

    assert not is_active(described(GlobalSecondaryIndexes=indexes))


def test_what_differs_is_said() -> None:
    indexes = described()["GlobalSecondaryIndexes"]
    indexes[1]["Projection"] = {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["st"]}
    found = differences(
        described(
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[indexes[1]],
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "N" if name == "gs" else "S"} for name in ("id", "gk", "gs")
            ],
        )
    )

    assert len(found) == 4
    assert "'id': 'HASH'" in found[0]
    assert found[1] == "index 'due' is missing"
    assert "key 'gs' has type N" in found[2]
    assert "does not project" in found[3]
