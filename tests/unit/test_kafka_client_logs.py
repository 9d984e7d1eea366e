"""aiokafka's errors about retries: the first of each kind is passed on, as a warning."""

import logging

from shared.kafka.client_logs import FewRepeats, quiet_client_logs


def line(template: str, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", level, "f", 1, template, ("x",), None)


def test_a_repeated_error_is_said_once_in_a_while() -> None:
    now = [0.0]
    few = FewRepeats(30.0, lambda: now[0])

    said = [few.filter(line("Unable connect to node with id %s")) for _ in range(100)]
    now[0] = 31.0

    assert said == [True] + [False] * 99
    assert few.filter(line("Unable connect to node with id %s"))


def test_another_error_is_not_hidden_and_counts_as_a_warning() -> None:
    few = FewRepeats()
    few.filter(line("Unable connect to node with id %s"))
    other = line("Topic %s is not authorized for this client")

    assert few.filter(other)
    assert other.levelno == logging.WARNING


def test_information_passes_unchanged() -> None:
    few = FewRepeats()

    assert all(few.filter(line("Joined group %s", logging.INFO)) for _ in range(3))


def test_the_filter_is_put_on_once() -> None:
    quiet_client_logs()
    quiet_client_logs()

    filters = logging.getLogger("aiokafka.producer.sender").filters
    assert sum(isinstance(one, FewRepeats) for one in filters) == 1
