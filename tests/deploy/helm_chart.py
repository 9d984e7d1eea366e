"""The chart as Helm renders it: documents, pods. ``python -m tests.deploy.helm_chart`` writes the goldens anew."""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from deploy.local.install import install

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "tidemark"
RENDER = CHART.parent / "render.py"
GOLDEN = Path(__file__).resolve().parent / "golden"
SCENARIOS = ("default", "minimal", "msk", "external", "full")

Document = dict[str, Any]
Values = dict[str, Any]


class Answer(Struct, frozen=True):
    """Of one job: the rendered texts by template, what lint says, or why it was refused."""

    manifests: dict[str, str] = {}
    messages: list[str] = []
    error: str = ""

    @property
    def documents(self) -> list[Document]:
        texts = (text for name, text in sorted(self.manifests.items()) if name.endswith(".yaml"))
        return [document for text in texts for document in yaml.safe_load_all(text) if document]


class Pod(Struct, frozen=True):
    """A pod that the chart asks for, by whatever kind: as the Kubernetes types, put together."""

    name: str
    labels: Mapping[str, str]
    spec: Document
    needs_api: bool = False

    @property
    def container(self) -> Document:
        (one,) = self.spec["containers"]
        assert isinstance(one, dict)
        return one


def values_of(scenario: str) -> Values:
    text = (CHART / "ci" / f"{scenario}-values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert isinstance(values, dict)
    return values


def render(jobs: Sequence[Mapping[str, Any]], chart: Path = CHART) -> list[Answer]:
    """All jobs in one process: Helm's library is large."""
    python = install(report=lambda _: None, tools=True).tools / "python"
    done = subprocess.run(
        [str(python), str(RENDER), str(chart)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [Answer(**answer) for answer in json.loads(done.stdout)]


def laid_over(values: Values, path: Sequence[str | int], value: object) -> Values:
    """A copy with one value changed; maps on the way are made."""
    copy = deepcopy(values)
    at: Any = copy
    for step in path[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    at[path[-1]] = value
    return copy


def pods(documents: Sequence[Document]) -> Iterator[Pod]:
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        match document["kind"]:
            case "Deployment" | "Job":
                template = document["spec"]["template"]
                yield Pod(name, template["metadata"]["labels"], template["spec"])
            case "SparkApplication":
                yield from _spark_pods(name, document["spec"])
            case "ScheduledSparkApplication":
                yield from _spark_pods(name, document["spec"]["template"])


def _spark_pods(name: str, spec: Document) -> Iterator[Pod]:
    """What Spark makes of both: the template's, and what the operator adds to it."""
    for role in ("driver", "executor"):
        part = spec[role]
        pod = deepcopy(part["template"]["spec"])
        (container,) = pod["containers"]
        assert container["securityContext"] == part["securityContext"]
        container |= {key: part[key] for key in ("env", "volumeMounts", "ports") if key in part}
        container |= {
            "image": spec["image"],
            "resources": {"limits": {"cpu": part["coreLimit"], "memory": part["memory"]}},
        }
        pod |= {"securityContext": part["podSecurityContext"], "serviceAccountName": part["serviceAccount"]}
        mounted = {mount["name"] for mount in part["volumeMounts"]}
        pod["volumes"] = [volume for volume in spec["volumes"] if volume["name"] in mounted]
        yield Pod(f"{name}/{role}", part["labels"], pod, needs_api=role == "driver")


def golden_text(answer: Answer) -> str:
    """As documents with sorted keys. Of boards, rules and scripts only that they are there."""
    documents = answer.documents
    for document in documents:
        if document["kind"] == "ConfigMap" and "grafana_dashboard" in document["metadata"].get("labels", {}):
            document["data"] = dict.fromkeys(document["data"], "a dashboard")
        if document["kind"] == "ConfigMap" and document["metadata"]["name"].endswith("-spark"):
            document["data"] = dict.fromkeys(document["data"], "a script")
        if document["kind"] == "PrometheusRule":
            document["spec"] = {"groups": "the alert rules"}
    notes = f"# {answer.manifests['NOTES.txt'].strip()}".replace("\n", "\n# ")
    return f"{notes}\n---\n{yaml.safe_dump_all(documents, sort_keys=True, width=120)}"


def digest(answer: Answer) -> str:
    return hashlib.sha256(json.dumps(answer.manifests, sort_keys=True).encode()).hexdigest()


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for scenario, answer in zip(SCENARIOS, render([{"values": values_of(name)} for name in SCENARIOS]), strict=True):
        assert not answer.error, answer.error
        (GOLDEN / f"{scenario}.yaml").write_text(golden_text(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
