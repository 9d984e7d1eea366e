"""A page is split into its elements, or refused as a whole; one bad element spoils only itself."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events.split import MalformedPage, split_page

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON, max_size=4), st.sampled_from(["", "/events", "/a~1b/x~0y", "/list/1"]), st.booleans())
def test_a_page_of_json_comes_apart_into_its_elements(elements: list[Any], pointer: str, spoilt: bool) -> None:
    shown = {"": elements, "/events": {"n": 1, "events": elements}, "/a~1b/x~0y": {"a/b": {"x~y": elements}}}
    page = shown.get(pointer, {"list": [0, elements]})
    body = json.dumps(page)
    if spoilt:  # the scanner's way: a value that is no JSON, beside
        body = body.replace('"n": 1', '"n": NaN').replace('"list": [0,', '"list": [NaN,')

    assert [json.loads(raw) for raw in split_page(body.encode(), pointer)] == elements


@pytest.mark.parametrize(
    "bad",
    [
        b'{"a":NaN}',
        b'{"a":1e}',
        b"{'a':1}",
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\\"}, ["}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"a":[1}}',
        b"nonsense",
        b'{"a":1} {"b":2}',
        b'{"a":/* no comment */1}',
        b'{"text":"' + b"x" * 2_000_000 + b'"}',
    ],
)
def test_one_bad_element_spoils_only_itself(bad: bytes) -> None:
    good = b'{"id":"[,]{","n":1}'

    for pointer, body in (("", b"[%b , %b,\n%b]"), ("/d/events", b'{"d":{"x":[],"events":[%b,%b,%b]}}')):
        assert split_page(body % (good, bad, good), pointer) == [good, bad, good]


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"\xef\xbb\xbf[]", b'{"events":[]}', b'{"n":NaN,"events":[ ]}'])
def test_an_empty_array_is_a_page_without_events(body: bytes) -> None:
    assert split_page(body, "/events" if b"events" in body else "") == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", ""),
        (b"   ", ""),
        (b"null", ""),
        (b'"[]"', ""),
        (b"<html><body>[1]</body></html>", ""),
        (b'{"error":"down"}', ""),
        (b'{"error":"down"}', "/events"),
        (b'[{"a":1},{"b":2}', ""),
        (b'[{"a":1},{"b":', ""),
        (b'[{"a":1},{"b":"x', ""),
        (b'[{"a":NaN},{"b":2', ""),
        (b"[1,,2]", ""),
        (b"[1,2,]", ""),
        (b"[1}", ""),
        (b"[1]]", ""),
        (b"[1][2]", ""),
        (b"[1] trailing", ""),
        (b'{"events":{}}', "/events"),
        (b'{"events":null}', "/events"),
        (b'{"events" [1]}', "/events"),
        (b'{"events":[1],"events":[2]}', "/events"),
        (b'{"events":[NaN],"events":[2]}', "/events"),
        (b'{"events":[1]', "/events"),
        (b'{"events":[1]}}', "/events"),
        (b"[[1]]", "/1"),
        (b"[" * 100_000, ""),
        ("[1]".encode("utf-16"), ""),
    ],
)
def test_anything_else_is_malformed_and_no_event(body: bytes, pointer: str) -> None:
    with pytest.raises(MalformedPage):
        split_page(body, pointer)


def test_a_name_that_events_carry_too_does_not_hide_the_array() -> None:
    assert split_page(b'{"events":[{"events":[1]},{"events":2}]}', "/events") == [b'{"events":[1]}', b'{"events":2}']


def test_a_malformed_page_is_not_quoted() -> None:
    with pytest.raises(MalformedPage) as caught:
        split_page(b"<html>secret</html>")

    assert "secret" not in str(caught.value)


def test_a_page_of_too_many_elements_is_refused_before_each_is_made_an_event() -> None:
    with pytest.raises(MalformedPage, match="11 elements, more than 10"):
        split_page(b"[" + b"0," * 10 + b"0]", elements_max=10)
