"""The demo's receiver takes what the notifier signs, and nothing else."""

import base64
from collections.abc import Mapping

import pytest

from deploy.demo.receiver import SKEW_S_MAX, main, signed_by
from services.stale_notifier.channels.webhook import signed_headers

KEY, OTHER = bytes(range(24)), bytes(range(1, 25))
NOW_S = 1_793_709_300
BODY = b'{"data": {}}'


def headers(key: bytes = KEY, at_s: int = NOW_S) -> dict[str, str]:
    return signed_headers("msg_1", at_s, BODY, [OTHER, key])


def test_what_the_notifier_signs_is_taken_during_a_rotation_of_its_secret_too() -> None:
    assert signed_by(KEY, headers(), BODY, NOW_S)
    assert signed_by(OTHER, headers(), BODY, NOW_S)


@pytest.mark.parametrize(
    ("given", "body"),
    [
        ({}, BODY),
        (headers(key=bytes(24)), BODY),
        (headers(), BODY + b" "),
        (headers() | {"webhook-id": "msg_2"}, BODY),
        (headers(at_s=NOW_S - int(SKEW_S_MAX) - 1), BODY),
        (headers() | {"webhook-timestamp": "now"}, BODY),
        (headers() | {"webhook-timestamp": "²"}, BODY),
        (headers() | {"webhook-signature": ""}, BODY),
    ],
)
def test_what_is_not_signed_by_the_secret_or_not_now_is_refused(given: Mapping[str, str], body: bytes) -> None:
    assert not signed_by(KEY, given, body, NOW_S)


@pytest.mark.parametrize("secret", ["", "whsec_!"])
def test_a_secret_that_is_none_is_refused_before_the_start(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"BANK_NOTICES_SECRET": secret, "RECEIVER_PORT": "65000"}) == 2
    assert "BANK_NOTICES_SECRET" in capsys.readouterr().err


def test_a_wrong_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "whsec_" + base64.b64encode(KEY).decode()

    assert main({"BANK_NOTICES_SECRET": secret, "RECEIVER_PORT": "none"}) == 2
    assert "RECEIVER_PORT" in capsys.readouterr().err
