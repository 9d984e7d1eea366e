"""Who is typing."""

import getpass
import os
import socket


def operator() -> str:
    """``user@host``, for the books. In a container without a user's name, its number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
