"""``python -m deploy.grafana``: write ``dashboards/*.json``. ``--check``: write nothing; 1 when they differ."""

import argparse
import sys

from deploy.grafana.build import FOLDER, rendered


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    wanted = rendered()
    differing = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    strays = sorted(set(FOLDER.glob("*.json")) - set(wanted))
    for file in (*differing, *strays):
        print(f"{file.name}: {'is no board' if file in strays else 'differs' if check else 'written'}")
    if check:
        return 1 if differing or strays else 0
    for file in differing:
        file.write_text(wanted[file])
    for file in strays:
        file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
