"""The local stack's choice of ports."""

import socket

import pytest

from deploy.local.ports import FIRST, LAST, find_free


def test_ports_are_different_free_and_below_those_for_outgoing_connections() -> None:
    found = find_free(20)

    assert len(set(found)) == 20
    assert all(FIRST <= port <= LAST for port in found)
    for port in found:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_port_that_somebody_listens_on_is_never_chosen() -> None:
    with socket.socket() as listener:
        [busy] = find_free(1)
        listener.bind(("127.0.0.1", busy))
        listener.listen()
        all_others = set(range(FIRST, LAST + 1)) - {busy}

        with pytest.raises(OSError, match="no 1 free ports"):
            find_free(1, all_others)


def test_ports_of_other_stacks_are_left_to_them_even_while_those_are_down() -> None:
    taken = range(FIRST + 5_000, LAST + 1)

    assert max(find_free(50, taken)) < taken.start
