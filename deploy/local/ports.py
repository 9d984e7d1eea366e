"""Free ports between 10000 and 32767.

Below the range from which Linux takes outgoing ports: there, a loop that connects to a server that is down can end up
connected to itself and take it for ready.
"""

import random
import socket
from collections.abc import Collection

FIRST, LAST = 10_000, 32_767
_TRIES_MAX = 1_000


def find_free(count: int, taken: Collection[int] = ()) -> list[int]:
    """``count`` different ports that nobody listens on now and that aren't in ``taken``."""
    found: list[int] = []
    for _ in range(_TRIES_MAX):
        if len(found) == count:
            return found
        port = random.randint(FIRST, LAST)
        if port not in taken and port not in found and _is_free(port):
            found.append(port)
    raise OSError(f"no {count} free ports between {FIRST} and {LAST} after {_TRIES_MAX} tries")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do: a port whose last connections linger in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
