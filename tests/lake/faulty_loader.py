"""``python -m tests.lake.faulty_loader POINT batch|stream …``: the loader, which dies at a named point.

``before_commit``: all is ready for the MERGE; ``after_commit``: it is in the table, and nobody has been told.
"""

import os
import sys
from typing import Any

from services.delta_loader import tables
from services.delta_loader.__main__ import main

DEATH = 137


def arm(point: str) -> None:
    plain = vars(tables)["merge"]

    def merge(*arguments: Any) -> None:
        if point == "before_commit":
            os._exit(DEATH)
        plain(*arguments)
        os._exit(DEATH)

    vars(tables)["merge"] = merge


if __name__ == "__main__":
    if sys.argv[1] != "none":
        arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
