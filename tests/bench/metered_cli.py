"""``python -m tests.bench.metered_cli FIGURES parked …``: the command line as typed, and what it took, into a file."""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from services.cli.__main__ import main
from tests.bench.poller_bench import cpu_s, peak_mb
from tests.bench.units import meter


def run(figures: Path, command: list[str]) -> int:
    """The command's exit code. CPU is user and system seconds of this process, start-up included."""
    units, calls = Counter[str](), Counter[str]()
    meter(units, calls)
    began_s = time.perf_counter()
    code = main(command)
    took = {"s": time.perf_counter() - began_s, "cpu_s": cpu_s(os.getpid()), "peak_mb": peak_mb(os.getpid())}
    figures.write_text(json.dumps({**took, "units": units, "calls": calls}))
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
