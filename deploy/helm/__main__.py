"""``python -m deploy.helm [--check]``: write what the chart takes from elsewhere in the tree, or say what differs.

A chart reads nothing outside its own folder: dashboards and alert rules are copied, the schema of its values and the
table of settings are made from the services' structs.
"""

import json
import sys
from pathlib import Path

from deploy.helm import schema, settings

CHART = Path(__file__).resolve().parent / "tidemark"
DEPLOY = CHART.parents[1]
COPIED = {"rules": DEPLOY / "prometheus" / "rules", "dashboards": DEPLOY / "grafana" / "dashboards"}


def wanted() -> dict[Path, str]:
    """Every generated file of the chart and its text."""
    files = {
        CHART / "values.schema.json": _json(schema.whole()),
        CHART / "files" / "settings.json": _json(settings.table()),
    }
    for name, folder in COPIED.items():
        for path in sorted(folder.glob("*.yaml" if name == "rules" else "*.json")):
            files[CHART / "files" / name / path.name] = path.read_text(encoding="utf-8")
    return files


def stale(files: dict[Path, str]) -> list[Path]:
    """Files that differ from what they should be, are missing, or have nothing they come from."""
    there = {path for name in COPIED for path in (CHART / "files" / name).iterdir()}
    differing = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return sorted({*differing, *(there - set(files))})


def _json(document: object) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    files = wanted()
    differing = stale(files)
    if arguments == ["--check"]:
        for path in differing:
            print(f"{path.relative_to(DEPLOY.parent)}: differs; run python -m deploy.helm", file=sys.stderr)
        return 1 if differing else 0
    for path in differing:
        if path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
