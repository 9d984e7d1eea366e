"""The chart: what it renders is what it promises, and what can't be right is refused. Rendered, never installed."""

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # publishes no types
import kubernetes_validate  # type: ignore[import-untyped]  # publishes no types
import pytest
import yaml
from referencing import Registry, Resource

from deploy.helm import __main__ as generated
from deploy.helm import settings
from deploy.local.install import install
from shared.config import load_config
from tests.deploy.helm_chart import (
    CHART,
    GOLDEN,
    SCENARIOS,
    Answer,
    Document,
    Pod,
    Values,
    digest,
    golden_text,
    laid_over,
    pods,
    render,
    values_of,
)

KUBERNETES = ("1.33", "1.37")
CRDS = Path(__file__).resolve().parent / "crds"
FOREIGN = frozenset(path.stem for path in CRDS.glob("*.yaml"))

BLOCKS = {
    "poller-producer": "pollerProducer",
    "s3-sink": "s3Sink",
    "dynamo-retrier": "dynamoRetrier",
    "stale-notifier": "staleNotifier",
    "audit": "audit",
    "bootstrap": "bootstrap",
    "delta-loader": "loader",
    "delta-loader-batch": "loader",
    "delta-loader-care": "loader",
}
"""The label of a pod → its block of the values."""

SKIPPED_POLICIES = {
    "CKV_K8S_15": "always pulling would make each restart need the registry of images; a tag is a release's",
    "CKV_K8S_43": "whoever installs names the digest of what was built there (image.digest); nothing is published yet",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    rendered = render([{"values": values_of(scenario)} for scenario in SCENARIOS])
    for scenario, answer in zip(SCENARIOS, rendered, strict=True):
        assert not answer.error, f"{scenario}: {answer.error}"
    return dict(zip(SCENARIOS, rendered, strict=True))


@pytest.fixture(scope="module")
def documents(answers: dict[str, Answer]) -> list[tuple[str, Document]]:
    return [(scenario, document) for scenario, answer in answers.items() for document in answer.documents]


@pytest.fixture(scope="module")
def all_pods(answers: dict[str, Answer]) -> list[tuple[str, Pod]]:
    return [(scenario, pod) for scenario, answer in answers.items() for pod in pods(answer.documents)]


def test_what_the_chart_takes_from_elsewhere_is_current() -> None:
    files = generated.wanted()

    assert generated.stale(files) == [], "run python -m deploy.helm"
    changed = files | {CHART / "values.schema.json": "{}"}
    assert generated.stale(changed) == [CHART / "values.schema.json"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_render_is_the_committed_one(answers: dict[str, Answer], scenario: str) -> None:
    golden = (GOLDEN / f"{scenario}.yaml").read_text(encoding="utf-8")

    assert golden_text(answers[scenario]) == golden, "run python -m tests.deploy.helm_chart and read the difference"


def test_lint_has_nothing_to_say() -> None:
    reports = render([{"values": values_of(scenario), "lint": True} for scenario in SCENARIOS])

    assert {scenario: report.messages for scenario, report in zip(SCENARIOS, reports, strict=True)} == {
        scenario: [] for scenario in SCENARIOS
    }


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(documents: list[tuple[str, Document]], version: str) -> None:
    ours = [document for _, document in documents if document["kind"] not in FOREIGN]

    for document in ours:
        assert kubernetes_validate.validate(document, version, strict=True) == version
    deployment = next(document for document in ours if document["kind"] == "Deployment")
    misspelt = deepcopy(deployment)
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(misspelt, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field_of_a_spark_pod(all_pods: list[tuple[str, Pod]], version: str) -> None:
    """Inside spark-operator's resources are Kubernetes' own types, which their schema doesn't judge."""
    spark = [pod for _, pod in all_pods if pod.name.endswith(("/driver", "/executor"))]

    assert spark
    for pod in spark:
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": pod.labels}, "spec": pod.spec}
        kubernetes_validate.validate(whole, version, strict=True)


def test_every_foreign_resource_fits_its_schema(documents: list[tuple[str, Document]]) -> None:
    schemas = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in CRDS.glob("*.yaml")}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    registry: Registry[Any] = Registry().with_resources(
        [(name, Resource.from_contents(dialect | schema)) for name, schema in schemas.items()]
    )
    judges = {name: jsonschema.Draft202012Validator(schema, registry=registry) for name, schema in schemas.items()}
    foreign = [document for _, document in documents if document["kind"] in FOREIGN]

    assert {document["kind"] for document in foreign} == FOREIGN
    for document in foreign:
        judge = judges[document["kind"]]
        assert [error.message for error in judge.iter_errors(document["spec"])] == []
        assert list(judge.iter_errors(document["spec"] | {"misspelt": 1})), document["kind"]


def unrestricted(pod: Pod) -> list[str]:
    """What the profile ``restricted``, and more of ours, forbids in this pod."""
    spec, container = pod.spec, pod.container
    security = container.get("securityContext", {})
    whole = spec.get("securityContext", {})
    wanted = {
        "pod runAsNonRoot": whole.get("runAsNonRoot") is True,
        "pod runAsUser": whole.get("runAsUser", 0) > 0,
        "pod seccomp": whole.get("seccompProfile") == {"type": "RuntimeDefault"},
        "runAsNonRoot": security.get("runAsNonRoot") is True,
        "runAsUser": security.get("runAsUser", 0) > 0,
        "no escalation": security.get("allowPrivilegeEscalation") is False,
        "no capabilities": security.get("capabilities") == {"drop": ["ALL"]},
        "seccomp": security.get("seccompProfile") == {"type": "RuntimeDefault"},
        "root file system": security.get("readOnlyRootFilesystem") is True,
        "token": spec.get("automountServiceAccountToken") is pod.needs_api,
        "host": not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "volumes": not any("hostPath" in volume for volume in spec.get("volumes", [])),
        "limits": {"cpu", "memory"} <= set(container.get("resources", {}).get("limits", {})),
        "account": bool(spec.get("serviceAccountName")),
    }
    return [name for name, holds in wanted.items() if not holds]


def test_every_pod_is_restricted(all_pods: list[tuple[str, Pod]]) -> None:
    names = {pod.name.partition("/")[0] for _, pod in all_pods}

    assert names == {"Deployment", "Job", "SparkApplication", "ScheduledSparkApplication"}
    assert [(scenario, pod.name, faults) for scenario, pod in all_pods if (faults := unrestricted(pod))] == []


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (("securityContext", "seccompProfile"), "pod seccomp"),
        (("automountServiceAccountToken",), "token"),
        (("containers", 0, "securityContext", "capabilities"), "no capabilities"),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), "root file system"),
        (("containers", 0, "resources"), "limits"),
    ],
)
def test_a_pod_that_is_not_restricted_is_found(
    all_pods: list[tuple[str, Pod]], path: Sequence[str | int], fault: str
) -> None:
    _, pod = next((scenario, pod) for scenario, pod in all_pods if pod.name.startswith("Job"))
    spec = deepcopy(pod.spec)
    at: Any = spec
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]

    assert unrestricted(Pod(pod.name, pod.labels, spec)) == [fault]


def test_policies_hold(answers: dict[str, Answer], tmp_path: Path) -> None:
    for scenario, answer in answers.items():
        (tmp_path / f"{scenario}.yaml").write_text(yaml.safe_dump_all(answer.documents), encoding="utf-8")
    planted = next(document for document in answers["default"].documents if document["kind"] == "Deployment")
    planted["metadata"]["name"] = "planted"
    planted["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = True
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump(planted), encoding="utf-8")

    failed = checkov(tmp_path)

    assert {policy for policy, resource in failed if resource.endswith("planted")} == {"CKV_K8S_16"}
    assert [one for one in failed if not one[1].endswith("planted")] == []


def checkov(folder: Path) -> list[tuple[str, str]]:
    command = [str(install(report=lambda _: None, tools=True).tools / "checkov"), "--directory", str(folder)]
    options = [
        "--framework",
        "kubernetes",
        "--skip-download",
        "--compact",
        "--quiet",
        "--output",
        "json",
        "--soft-fail",
    ]
    skipped = ["--skip-check", ",".join(SKIPPED_POLICIES)]
    done = subprocess.run([*command, *options, *skipped], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 500
    return [(check["check_id"], check["resource"]) for check in report["results"]["failed_checks"]]


def variables(pod: Pod) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod.container.get("env", []) if "value" in one}


def ours(all_pods: list[tuple[str, Pod]]) -> Iterator[tuple[str, Pod, str]]:
    """Every pod that runs our code, with its block; of Spark's only the driver does."""
    for scenario, pod in all_pods:
        if not pod.name.endswith("/executor"):
            yield scenario, pod, BLOCKS[pod.labels["app.kubernetes.io/component"]]


def test_every_variable_is_a_setting_that_the_service_accepts(all_pods: list[tuple[str, Pod]], tmp_path: Path) -> None:
    file = tmp_path / "mounted"
    file.write_text("secret", encoding="utf-8")

    for scenario, pod, block in ours(all_pods):
        told = {name: text for name, text in variables(pod).items() if name.startswith("TIDEMARK_")}
        known = {f"TIDEMARK_{name.upper()}" for name in settings.settings(block)}
        assert set(told) <= known, f"{scenario}: {pod.name}"
        environ = {name: str(file) if name.endswith("_FILE") else text for name, text in told.items()}
        for cls in settings.COMPONENTS[block]:
            load_config(cls, environ)


def test_every_secret_is_a_file_that_is_mounted(all_pods: list[tuple[str, Pod]]) -> None:
    named = 0
    for scenario, pod, _ in ours(all_pods):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        for name, path in variables(pod).items():
            if not name.endswith("_FILE"):
                continue
            folder, _, key = path.rpartition("/")
            items = volumes[mounts[folder]]["secret"]["items"]
            assert key in [item["path"] for item in items], f"{scenario}: {pod.name}: {name}"
            named += 1
        assert set(mounts.values()) == set(volumes)
    assert named > 30


def test_channels_secrets_are_the_notifiers_alone(all_pods: list[tuple[str, Pod]]) -> None:
    holders = {
        pod.labels["app.kubernetes.io/component"]
        for _, pod in all_pods
        for volume in pod.spec["volumes"]
        if volume["name"] == "secret-owners"
    }

    assert holders == {"stale-notifier"}


def test_kill_comes_after_the_drain(answers: dict[str, Answer]) -> None:
    found = {
        pod.labels["app.kubernetes.io/component"]: pod.spec["terminationGracePeriodSeconds"]
        for pod in pods(answers["full"].documents)
        if pod.name.startswith("Deployment")
    }

    assert found == {
        "poller-producer": 34 + 20,  # its own drain_s of 33.5
        "s3-sink": 20 + 20,
        "dynamo-retrier": 25 + 20,
        "stale-notifier": 40 + 20,
        "audit": 20 + 20,
    }


def test_every_image_is_a_target_of_the_dockerfile(all_pods: list[tuple[str, Pod]]) -> None:
    dockerfile = (CHART.parents[1] / "images" / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM base AS ([a-z0-9-]+)$", dockerfile, re.MULTILINE))
    images = {pod.container["image"] for scenario, pod in all_pods if scenario == "default"}
    images |= {pod.container["image"] for scenario, pod in all_pods if scenario == "msk"}

    names = {image.rpartition(":")[0].rpartition("/")[2] for image in images}
    assert names == targets - {"demo", "aws"}
    assert "/opt/tidemark/spark-jars" in dockerfile


def test_only_what_is_needed_is_let_through(answers: dict[str, Answer]) -> None:
    found = {
        one["metadata"]["name"]: one["spec"] for one in answers["external"].documents if one["kind"] == "NetworkPolicy"
    }

    policy = found["demo-tidemark"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [[8080]]
    names, servers, agent, own = ([port["port"] for port in rule["ports"]] for rule in policy["egress"])
    assert (names, servers, agent, own) == ([53, 53], [443, 9093, 6432, 8443], [80], [9000])
    assert policy["egress"][2]["to"] == [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "EKS Pod Identity's agent"
    assert set(found) == {"demo-tidemark", "demo-tidemark-bootstrap", "demo-tidemark-spark"}


def test_the_scaler_asks_as_the_sink_does(answers: dict[str, Answer]) -> None:
    scaled = {one["kind"]: one["spec"] for one in answers["full"].documents if one["apiVersion"].startswith("keda.sh")}
    deployment = next(
        one
        for one in answers["full"].documents
        if one["kind"] == "Deployment" and one["metadata"]["name"] == scaled["ScaledObject"]["scaleTargetRef"]["name"]
    )
    (trigger,) = scaled["ScaledObject"]["triggers"]

    assert "replicas" not in deployment["spec"]
    assert trigger["metadata"]["consumerGroup"] == "team-a.sink"
    assert (trigger["metadata"]["sasl"], trigger["metadata"]["tls"]) == ("scram_sha256", "enable")
    (user,) = scaled["TriggerAuthentication"]["env"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {user["name"]} <= {one["name"] for one in container["env"]}
    assert user["containerName"] == container["name"]


def test_a_changed_entity_file_replaces_the_pods() -> None:
    values = values_of("default")
    other = laid_over(values, ("entities", "files", "bank.yaml"), "entities: {}")

    before, after = render([{"values": values}, {"values": other}])

    def templates(answer: Answer) -> list[object]:
        return [one["spec"]["template"]["metadata"] for one in answer.documents if one["kind"] == "Deployment"]

    assert all(old != new for old, new in zip(templates(before), templates(after), strict=True))


def test_rules_of_what_does_not_run_are_left_out(answers: dict[str, Answer]) -> None:
    values = values_of("msk")
    (lean,) = render([{"values": laid_over(values, ("audit", "enabled"), False)}])

    def components(answer: Answer) -> set[str]:
        (rule,) = (one for one in answer.documents if one["kind"] == "PrometheusRule")
        rules = [one for group in rule["spec"]["groups"] for one in group["rules"]]
        assert any("{{ $labels.entity }}" in str(one) for one in rules)
        return {one["labels"]["component"] for one in rules if "component" in one.get("labels", {})}

    assert components(answers["msk"]) - components(lean) == {"audit"}


def test_alerts_name_runbooks_and_boards_where_they_are(answers: dict[str, Answer]) -> None:
    (rule,) = (one for one in answers["full"].documents if one["kind"] == "PrometheusRule")
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one]

    assert alerts
    for alert in alerts:
        notes = alert["annotations"]
        assert notes["runbook_url"].startswith("https://git.example/tidemark/deploy/prometheus/runbooks.md#")
        assert notes["dashboard"].startswith("https://grafana.example/d/tidemark-")


def test_boards_are_those_of_the_repository(answers: dict[str, Answer]) -> None:
    boards: dict[str, Any] = {}
    for document in answers["full"].documents:
        if document["metadata"].get("labels", {}).get("grafana_dashboard") == "1":
            boards |= {name: json.loads(text) for name, text in document["data"].items()}

    folder = generated.COPIED["dashboards"]
    assert boards == {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


CHANGED: dict[str, object] = {
    "image.pullPolicy": "Never",
    "entities.existingConfigMap": None,
    "loader.batch.schedule": "@daily",
    "loader.care.schedule": "@daily",
    "audit.period": "2h",
    "keda.minReplicas": 2,
    "keda.maxReplicas": 2,
    "credentials.kafka.certKey": None,
    "credentials.kafka.keyKey": None,
}
"""Where the general change would be refused; ``None``: judged by another scenario, or a test of its own."""

ELSEWHERE = {
    "s3Sink.enabled": "default",
    "s3Sink.replicas": "default",
    "pollerProducer.replicas": "default",
    "common.image": "default",
    "common.serviceAccount.name": "made elsewhere",
    "bootstrap.config": "default",
    "dynamoRetrier.config": "default",
    "staleNotifier.config": "default",
    "audit.config": "default",
    "keda.partitions": "judged",
    "entities.existingConfigMap": "minimal",
    "credentials.kafka.certKey": "external",
    "credentials.kafka.keyKey": "external",
}
"""Not seen in ``full``: another scenario shows the value, or it decides what is refused."""


def leaves(values: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, (*path, name))
    else:
        yield path, values


def changed(path: tuple[str, ...], value: object) -> object:
    """Another value of the same kind."""
    name = ".".join(path)
    if name in CHANGED:
        return CHANGED[name]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str() if re.fullmatch(r"[0-9]+[a-zA-Z]+", value):
            return f"1{value}"
        case str() if value.isdigit():
            return f"1{value}"
        case str():
            return f"{value}x" if value else "x"
        case list():
            return ["x"] if path[-1] in ("args", "entities", "topics", "pullSecrets") else [*_one(path), *value]
        case dict():
            return value | _filling(path)
    raise AssertionError(f"{name}: {value!r}")


def _one(path: tuple[str, ...]) -> list[object]:
    return [8443] if path[-1].endswith("Ports") else [{"name": "x"}]


def _filling(path: tuple[str, ...]) -> dict[str, object]:
    match path[-1]:
        case "image":
            return {"tag": "x"}
        case "config":
            return {"log_level": "debug"} if path[0] not in ("bootstrap",) else {"raw_bucket": "other"}
        case "files":
            return {"x.sql": "y"}
        case "affinity":
            return {"podAffinity": {}}
    return {"x": "y"}


def whole_defaults() -> Values:
    """The chart's values under those of ``full``, map by map."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert isinstance(defaults, dict)
    return _merged(defaults, values_of("full"))


def _merged(below: Values, above: Values) -> Values:
    both = {name: _merged(below[name], value) for name, value in above.items() if _are_maps(below.get(name), value)}
    return below | above | both


def _are_maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def test_every_value_is_rendered(answers: dict[str, Answer]) -> None:
    """Each leaf of values.yaml is changed, one by one: the render must be another."""
    base = whole_defaults()
    found = [path for path, _ in leaves(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))]
    at: dict[tuple[str, ...], object] = {}
    for path in found:
        value: Any = base
        for step in path:
            value = value[step]
        at[path] = value
    judged = [path for path in found if ".".join(path) not in ELSEWHERE]

    quiet = laid_over(base, ("monitoring", "dashboards", "enabled"), False)  # they are most of the text
    bases = [base if path[0] == "monitoring" else quiet for path in judged]
    jobs = [laid_over(below, path, changed(path, at[path])) for below, path in zip(bases, judged, strict=True)]

    before, before_quiet, *rendered = render([{"values": values} for values in (base, quiet, *jobs)])

    assert not before.error
    results = list(zip([".".join(path) for path in judged], bases, rendered, strict=True))
    assert {name: one.error for name, _, one in results if one.error} == {}
    loud, low = digest(before), digest(before_quiet)
    assert [name for name, below, one in results if digest(one) == (loud if below is base else low)] == []
    assert len(judged) > 150


@pytest.mark.parametrize(
    ("scenario", "path", "value"),
    [
        ("default", ("s3Sink", "enabled"), False),
        ("default", ("s3Sink", "replicas"), 5),
        ("default", ("pollerProducer", "replicas"), 5),
        ("default", ("common", "image"), {"tag": "x"}),
        ("default", ("bootstrap", "config"), {"raw_bucket": "other"}),
        ("default", ("dynamoRetrier", "config"), {"log_level": "debug"}),
        ("default", ("staleNotifier", "config"), {"log_level": "debug"}),
        ("default", ("audit", "config"), {"log_level": "debug"}),
        ("minimal", ("entities", "existingConfigMap"), "other"),
        ("external", ("credentials", "kafka", "certKey"), "other"),
        ("external", ("credentials", "kafka", "keyKey"), "other"),
    ],
)
def test_what_another_scenario_shows_is_rendered(
    answers: dict[str, Answer], scenario: str, path: tuple[str, ...], value: object
) -> None:
    assert ".".join(path) in ELSEWHERE

    (other,) = render([{"values": laid_over(values_of(scenario), path, value)}])

    assert not other.error
    assert digest(other) != digest(answers[scenario])


def test_an_account_that_is_made_elsewhere_is_every_component_s() -> None:
    account = {"create": False, "name": "made-elsewhere", "annotations": {}}

    (answer,) = render([{"values": laid_over(values_of("default"), ("common", "serviceAccount"), account)}])

    assert not answer.error
    pods = [one["spec"]["template"]["spec"] for one in answer.documents if one["kind"] == "Deployment"]
    assert {pod["serviceAccountName"] for pod in pods} == {"made-elsewhere"}


def test_a_value_that_nothing_uses_would_be_found(tmp_path: Path) -> None:
    """The test above, seen red: a template that forgets a value renders the same."""
    chart = tmp_path / "tidemark"
    shutil.copytree(CHART, chart)
    services = chart / "templates" / "services.yaml"
    text = services.read_text(encoding="utf-8")
    services.write_text(text.replace("imagePullPolicy: {{ $.Values.image.pullPolicy }}", ""), encoding="utf-8")
    values = laid_over(values_of("minimal"), ("image", "pullPolicy"), "Never")

    forgotten, other = render([{"values": values_of("minimal")}, {"values": values}], chart)

    assert digest(forgotten) == digest(other)


DRIVER = {"SPARK_HOME": "/spark", "SPARK_DRIVER_BIND_ADDRESS": "10.0.0.1"}
EXECUTOR = {
    "SPARK_HOME": "/spark",
    "SPARK_CLASSPATH": "/opt/tidemark/spark-jars/*",
    "SPARK_CONF_DIR": "/conf",
    "SPARK_JAVA_OPT_10": "-Dlast=a b",
    "SPARK_JAVA_OPT_9": "-Dfirst=1",
    "SPARK_EXECUTOR_MEMORY": "2g",
    "SPARK_DRIVER_URL": "spark://d",
    "SPARK_EXECUTOR_ID": "1",
    "SPARK_EXECUTOR_CORES": "1",
    "SPARK_APPLICATION_ID": "app",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.2",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_EXECUTOR_POD_NAME": "pod",
}


def test_spark_is_started_as_its_kubernetes_backend_asks() -> None:
    entrypoint = runpy.run_path(str(CHART / "files" / "spark" / "entrypoint.py"))
    command = entrypoint["command"]

    submitted = command(["driver", "--class", "R", "local:///main.py", "stream"], DRIVER)
    assert submitted[:3] == ["/spark/bin/spark-submit", "--conf", "spark.driver.bindAddress=10.0.0.1"]
    assert submitted[3:] == ["--deploy-mode", "client", "--class", "R", "local:///main.py", "stream"]
    java = command(["executor"], EXECUTOR)
    assert java[:5] == ["java", "-Dfirst=1", "-Dlast=a b", "-Xms2g", "-Xmx2g"]
    assert java[5:7] == ["-cp", "/conf:/opt/tidemark/spark-jars/*:/spark/jars/*"]
    assert java[8:10] == ["--driver-url", "spark://d"]
    assert java[-2:] == ["--podName", "pod"]
    with pytest.raises(SystemExit, match="expected 'driver"):
        command(["stream"], DRIVER)


UNFINISHED = {"kafka_bootstrap": "k:9092", "registry_url": "http://registry"}

MISSPELT: list[tuple[tuple[str, ...], object, str]] = [
    (("s3sink",), {"replicas": 3}, "additional properties 's3sink' not allowed"),
    (("s3Sink", "replica"), 3, "additional properties 'replica' not allowed"),
    (("config", "kafka_bootstap"), "k:1", "additional properties 'kafka_bootstap' not allowed"),
    (("s3Sink", "config"), {"sink_object_byte_max": 1}, "additional properties 'sink_object_byte_max' not allowed"),
    (("s3Sink", "config"), {"sink_object_bytes_max": 1}, "minimum"),
    (("pollerProducer", "config"), {"http_port": 1}, "additional properties 'http_port' not allowed"),
    (("dynamoRetrier", "config"), {"replicas": 3}, "additional properties 'replicas' not allowed"),
    (("credentials", "postgres", "password"), "hunter2", "additional properties 'password' not allowed"),
    (("common", "resources"), {"limit": {}}, "additional properties 'limit' not allowed"),
    (("common", "probes", "liveness", "periodSecond"), 3, "additional properties 'periodSecond' not allowed"),
    (("image", "pullPolicy"), "Sometimes", "one of"),
    (("graceExtraSeconds",), 1, "minimum"),
]

APART: list[tuple[str, dict[str, object], str]] = [
    ("default", {"config": {}}, "config.kafka_bootstrap is not set: name the brokers"),
    ("default", {"config": {"kafka_bootstrap": "k:9092"}}, "config.registry_url is not set"),
    ("default", {"config": UNFINISHED}, "config.postgres_dsn is not set: as postgresql://user@host"),
    ("default", {"config.postgres_dsn": "postgresql://u:hunter2@pg/db"}, "config.postgres_dsn holds a password"),
    ("default", {"entities.files": {}}, "no entities: give their files"),
    ("default", {"entities.existingConfigMap": "m"}, "are both set"),
    ("default", {"entities.files": {"a.sql": "x" * 950_000}}, "above what one ConfigMap holds"),
    ("default", {"config.kafka_security": "SASL_SSL"}, "needs config.kafka_sasl_username"),
    ("default", {"config.kafka_sasl_username": "u"}, "are not used with config.kafka_security PLAINTEXT"),
    ("default", {"config.registry_user": "u"}, "config.registry_user goes together with"),
    ("external", {"credentials.kafka.keyKey": ""}, "go together"),
    ("external", {"config.kafka_security": "PLAINTEXT"}, "caKey, certKey and keyKey are not used"),
    ("external", {"keda.enabled": True}, "client certificates is not supported"),
    (
        "minimal",
        {"common.serviceAccount.name": "shared", "common.serviceAccount.create": True},
        "common.serviceAccount.name would be made once for each component",
    ),
    ("msk", {"keda.maxReplicas": 13}, "keda.maxReplicas 13 is above keda.partitions 12"),
    ("msk", {"keda.minReplicas": 13}, "keda.minReplicas is above keda.maxReplicas"),
    ("msk", {"s3Sink.enabled": False}, "scales s3Sink, which is not enabled"),
    ("msk", {"networkPolicy.kubernetesApiPorts": []}, "the Spark driver could start no executors"),
]


@pytest.fixture(scope="module")
def refusals() -> list[str]:
    """What is said to each of MISSPELT and of APART; "": rendered."""
    jobs = [laid_over(values_of("default"), path, value) for path, value, _ in MISSPELT]
    for scenario, changes, _ in APART:
        values = values_of(scenario)
        for name, value in changes.items():
            values = laid_over(values, name.split("."), value)
        jobs.append(values)
    return [answer.error for answer in render([{"values": values} for values in jobs])]


@pytest.mark.parametrize("number", range(len(MISSPELT)), ids=[".".join(path) for path, _, _ in MISSPELT])
def test_a_misspelt_or_impossible_value_is_refused(refusals: list[str], number: int) -> None:
    path, _, said = MISSPELT[number]

    assert said in refusals[number]
    assert "/".join(path[:-1]) in refusals[number]


@pytest.mark.parametrize("number", range(len(APART)), ids=[said for _, _, said in APART])
def test_values_that_do_not_go_together_are_refused(refusals: list[str], number: int) -> None:
    assert APART[number][2] in refusals[len(MISSPELT) + number]
