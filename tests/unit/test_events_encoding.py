"""Compiled encoders write fastavro's bytes, and accept nothing that the judge would refuse."""

import io
import json
import random

import fastavro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.events.contract import compile_contract
from shared.events.encoder import compile_encoder
from shared.events.identity import Identifier
from shared.events.judge import Judge, Refused
from shared.events.model import RejectedEvent
from shared.events.schema import parse
from tests.unit.events_schemas import RULES, AvroType, Sample, avro_types, event_type

FEW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))

INTRUDERS = (
    "null", "true", "0", "-0", "1", "1.0", "-0.0", "1e400", "1E-400", "NaN", "2147483648", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "16777217", "3.5e38", "9" * 5000, "0.005",
    '""', '"1"', '"NaN"', '"\\ud800"', '"QQ=="', '"QR=="', '"QQ"', '"0001-01-01T00:00:00+14:00"', '"2026-11-03"',
    '"2026-11-03T12:34:56"', '"2026-11-03T12:34:56.1234567Z"', '"2026-11-03T24:00:00Z"', '"12:60:00"', '"red"',
    '"9999-12-31T23:59:60Z"', '"1_0"', '" 1"', '"1.234"', '"00.10"', "[]", "{}", "[null]", '{"a":1}', '{"f0":1,"f0":1}',
    "253402300800000", "-62135596800001", "86400000", "2932897", "[1", "'1'", "\ufeff1", '"\x00"',
)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> tuple[AvroType, list[Sample]]:
    made = event_type(draw(avro_types()))
    return made, draw(st.lists(made.samples, min_size=1, max_size=3))


@FEW
@given(events())
def test_compiled_bytes_equal_fastavro_s_and_read_back_equal(event: tuple[AvroType, list[Sample]]) -> None:
    made, samples = event
    root, parsed = parse(json.dumps(made.schema)), fastavro.parse_schema(made.schema)

    bodies = compile_encoder(RULES, root, b"").encode_page([sample.text.encode() for sample in samples])

    for sample, body in zip(samples, bodies, strict=True):
        if body is None:
            assert has_floats(made)  # a large one may have been rounded: left to the judge
            continue
        expected = io.BytesIO()
        fastavro.schemaless_writer(expected, parsed, sample.datum)
        assert body == expected.getvalue()
        assert fastavro.schemaless_reader(io.BytesIO(body), parsed, None) == sample.datum


@FEW
@given(events())
def test_the_general_path_writes_the_same_bytes(event: tuple[AvroType, list[Sample]]) -> None:
    made, samples = event
    root, parsed = parse(json.dumps(made.schema)), fastavro.parse_schema(made.schema)
    judge = Judge(RULES, root)

    for sample in samples:
        expected = io.BytesIO()
        fastavro.schemaless_writer(expected, parsed, sample.datum)
        assert judge.encode(sample.text.encode()) == expected.getvalue()


@settings(FEW, max_examples=50)
@given(events(), st.sampled_from(INTRUDERS), st.integers(0, 2**32))
def test_compiled_code_accepts_nothing_that_the_judge_refuses(
    event: tuple[AvroType, list[Sample]], intruder: str, seed: int
) -> None:
    made, samples = event
    root = parse(json.dumps(made.schema))
    raw = with_intruder(samples[0].text, intruder, random.Random(seed)).encode()

    (body,) = compile_encoder(RULES, root, b"").encode_page([raw])

    if body is not None:
        assert body == Judge(RULES, root).encode(raw)


@settings(FEW, max_examples=20)
@given(events(), st.sampled_from(INTRUDERS), st.integers(0, 2**32))
def test_a_contract_never_raises_and_its_two_paths_agree(
    event: tuple[AvroType, list[Sample]], intruder: str, seed: int
) -> None:
    made, samples = event
    schema = json.dumps(made.schema)
    raw = with_intruder(samples[0].text, intruder, random.Random(seed)).encode()
    (sighting,) = Identifier(RULES).identify([raw])

    (outcome,) = compile_contract(RULES, schema, "things-value", 1).encode([sighting])

    if sighting.refusal is not None:
        assert outcome == sighting.refusal
        return
    try:
        judged: bytes | RejectedEvent = b"\x00\x00\x00\x00\x01" + Judge(RULES, parse(schema)).encode(raw)
    except Refused as refused:
        judged = refused.rejection
    assert outcome == judged


def has_floats(made: AvroType) -> bool:
    return "float" in (text := json.dumps(made.schema)) or "double" in text


def with_intruder(text: str, intruder: str, random_: random.Random) -> str:
    """The event with one value replaced, or, where the draw says so, one member doubled."""
    tokens = [index for index, character in enumerate(text) if character in ":,["]
    at = random_.choice(tokens) + 1
    end = at
    while end < len(text) and text[end] not in ",]}":
        end += 1
    if random_.random() < 0.1:
        return text[:-1] + ',"value":' + intruder + "}"
    return text[:at] + intruder + text[end:]
