"""``tidemark`` as the demo's image has it: ``demo`` walks a change through every hop, all else is the CLI."""

import os
import sys
from collections.abc import Sequence


def main(typed: Sequence[str]) -> int:
    if typed[:1] == ["demo"]:
        from deploy.demo import walk

        return walk.main(typed[1:], os.environ)
    from services.cli.__main__ import main as tidemark

    return tidemark(list(typed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
