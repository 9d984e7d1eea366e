"""Ready checks: what must not be taken for a ready server."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.local.ports import find_free
from deploy.local.ready import http_answers, kafka_answers

_ANSWER = bytes.fromhex("0000000a 000007d3 0000")


@contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer(connection.recv(4096)))

        serving = threading.Thread(target=serve)
        serving.start()
        yield listener.getsockname()[1]
        serving.join(5)


def test_a_broker_that_answers_with_our_correlation_id_is_ready() -> None:
    with server(lambda _: _ANSWER) as port:
        assert kafka_answers(port)()


def test_our_own_bytes_coming_back_are_no_broker() -> None:
    with server(lambda request: request) as port:
        assert not kafka_answers(port)()


def test_another_correlation_id_is_no_answer_to_us() -> None:
    with server(lambda _: bytes.fromhex("0000000a 00000001 0000")) as port:
        assert not kafka_answers(port)()


def test_a_server_that_closes_without_a_word_is_not_ready() -> None:
    with server(lambda _: b"") as port:
        assert not kafka_answers(port)()
    with server(lambda _: b"") as port:
        assert not http_answers(f"http://127.0.0.1:{port}/")()


def test_nobody_listening_is_not_ready() -> None:
    [port] = find_free(1)

    assert not kafka_answers(port)()
    assert not http_answers(f"http://127.0.0.1:{port}/")()


def test_only_the_status_asked_for_counts() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

    with server(lambda _: refusal) as port:
        assert not http_answers(f"http://127.0.0.1:{port}/")()
    with server(lambda _: refusal) as port:
        assert http_answers(f"http://127.0.0.1:{port}/", statuses=(503,))()
