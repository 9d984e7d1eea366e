"""Our reading of DynamoDB's answers gives what botocore's gives. When one fails, read shared/aws.py."""

import json
from base64 import b64encode
from contextlib import AsyncExitStack
from typing import Any

import botocore.session
import pytest
from aiobotocore.parsers import AioResponseParserFactory
from botocore.parsers import ResponseParserError
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.aws import _Answers, _Parsers, open_client

MODEL = botocore.session.get_session().get_service_model("dynamodb")
BLOBS = st.binary(max_size=8).map(lambda raw: b64encode(raw).decode())
NUMBERS = st.integers().map(str)
LEAVES = st.one_of(
    st.builds(lambda text: {"S": text}, st.text(max_size=5)),
    st.builds(lambda text: {"N": text}, NUMBERS),
    st.builds(lambda text: {"B": text}, BLOBS),
    st.builds(lambda flag: {"BOOL": flag}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda texts: {"SS": texts}, st.lists(st.text(max_size=3), max_size=3)),
    st.builds(lambda texts: {"NS": texts}, st.lists(NUMBERS, max_size=3)),
    st.builds(lambda texts: {"BS": texts}, st.lists(BLOBS, max_size=3)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"L": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"M": parts}, st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    ),
    max_leaves=8,
)
ITEMS = st.dictionaries(st.text(min_size=1, max_size=3), VALUES, max_size=4)


def answers(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Where items stand in the answers of the calls that we make."""
    capacity = {"TableName": "t", "CapacityUnits": 1.5, "GlobalSecondaryIndexes": {"grp": {"CapacityUnits": 1.0}}}
    keys = {"t": {"Keys": [item], "ConsistentRead": True}}
    return {
        "GetItem": {"Item": item, "ConsumedCapacity": capacity},
        "Query": {"Items": [item, item], "Count": 2, "LastEvaluatedKey": item},
        "Scan": {"Items": [item], "ScannedCount": 7},
        "UpdateItem": {"Attributes": item},
        "BatchGetItem": {"Responses": {"t": [item]}, "UnprocessedKeys": keys, "ConsumedCapacity": [capacity]},
        "BatchWriteItem": {"UnprocessedItems": {"t": [{"PutRequest": {"Item": item}}]}},
        "BatchExecuteStatement": {"Responses": [{"Error": {"Code": "DuplicateItem", "Item": item}}, {"Item": item}]},
    }


@settings(max_examples=100, deadline=None)
@given(item=ITEMS)
async def test_each_answer_is_read_as_botocore_reads_it(item: dict[str, Any]) -> None:
    for operation, document in answers(item).items():
        shape = MODEL.operation_model(operation).output_shape
        answer = {"body": json.dumps(document).encode(), "headers": {"x-amzn-requestid": "1"}, "status_code": 200}

        theirs = await AioResponseParserFactory().create_parser("json").parse(answer, shape)

        assert await _Parsers().create_parser("json").parse(answer, shape) == theirs


@given(item=ITEMS)
@settings(max_examples=30, deadline=None)
async def test_the_item_in_a_refusal_is_read_as_botocore_reads_it(item: dict[str, Any]) -> None:
    (shape,) = (shape for shape in MODEL.error_shapes if shape.name == "ConditionalCheckFailedException")
    body = {"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "message": "no", "Item": item}
    answer = {"body": json.dumps(body).encode(), "headers": {}, "status_code": 400}
    theirs, ours = AioResponseParserFactory().create_parser("json"), _Parsers().create_parser("json")

    assert await ours.parse(answer, None) == await theirs.parse(answer, None)
    assert await ours.parse(answer, shape) == await theirs.parse(answer, shape)


@pytest.mark.parametrize("value", [{}, {"S": "a", "N": "1"}, "a", ["a"], {"B": "a"}, {"L": [{}]}, {"M": "a"}])
async def test_what_is_no_attribute_is_no_answer(value: Any) -> None:
    shape = MODEL.operation_model("GetItem").output_shape
    answer = {"body": json.dumps({"Item": {"a": value}}).encode(), "headers": {}, "status_code": 200}

    with pytest.raises(ResponseParserError):
        await _Parsers().create_parser("json").parse(answer, shape)


async def test_a_kind_of_value_that_nobody_knows_yet_stays_as_it_comes() -> None:
    shape = MODEL.operation_model("GetItem").output_shape
    answer = {"body": b'{"Item": {"a": {"DATE": 1}}}', "headers": {}, "status_code": 200}

    assert (await _Parsers().create_parser("json").parse(answer, shape))["Item"] == {"a": {"DATE": 1}}


async def test_clients_read_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    async with AsyncExitStack() as stack:
        client = await open_client("dynamodb", stack)

        assert isinstance(client._endpoint._response_parser_factory.create_parser("json"), _Answers)
