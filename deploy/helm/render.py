"""Helm's own code, by its SDK: load the chart, judge values by its schema, render, lint. Offline.

Runs in the tools' environment (``deploy.local.install``), not in the product's, and imports nothing of the project::

    python deploy/helm/render.py CHART < jobs.json > answers.json
    python deploy/helm/render.py CHART VALUES.yaml…        prints what `helm template` would

A job: ``{"values": {…}, "lint": false, "upgrade": false}``. An answer: ``{"manifests": {template: text}}``,
``{"messages": […]}`` for a lint, or ``{"error": text}``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import helm_python as helm  # type: ignore[import-not-found]  # only in the tools' environment

RELEASE, NAMESPACE = "demo", "cdc"


def answer(chart: Any, path: str, job: dict[str, Any]) -> dict[str, Any]:
    values = job.get("values", {})
    try:
        if job.get("lint"):
            report = helm.lint(path, values, strict=True, namespace=NAMESPACE)
            texts = [message["error"] for message in report["messages"] if message["severity"] > 1]
            return {"messages": texts + report["errors"]}
        upgrade = bool(job.get("upgrade"))
        manifests = chart.render(values, name=RELEASE, namespace=NAMESPACE, is_upgrade=upgrade, is_install=not upgrade)
    except helm.HelmError as error:
        return {"error": str(error)}
    return {"manifests": {name.partition("/templates/")[2]: text for name, text in manifests.items() if text.strip()}}


def main() -> int:
    path, *files = sys.argv[1:]
    with helm.Chart.load(path) as chart:
        if not files:
            json.dump([answer(chart, path, job) for job in json.load(sys.stdin)], sys.stdout)
            return 0
        values: dict[str, Any] = {}
        for file in files:
            values |= helm.values_from_yaml(Path(file).read_text(encoding="utf-8"))
        done = answer(chart, path, {"values": values})
    if "error" in done:
        print(done["error"], file=sys.stderr)
        return 1
    for name, text in sorted(done["manifests"].items()):
        print(f"---\n# Source: {name}\n{text.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
