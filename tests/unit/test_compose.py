"""docker-compose.yml, without Docker: the rules hold, and each complains when its fault is planted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.demo.urls import Urls
from shared.config import load_config
from tests.unit.compose_rules import (
    RULES,
    dead_images,
    default_of,
    enabled,
    memory_mb,
    problems,
    profile_combinations,
    started_by_up,
    variables,
)

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SEARCHED = {".yml", ".yaml", ".md", ".py", ".tpl", ".sh", ".in"}
PASSED_BY = {".git", ".venv", "node_modules", "__pycache__"}


def test_the_file_keeps_every_rule() -> None:
    assert problems(COMPOSE) == []


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Plants ``value`` at ``service.key.key``; None takes away what is there."""

    def plant(compose: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for name in way:
            compose = compose[name]
        if value is None:
            del compose[last]
        else:
            compose[last] = value

    return plant


def _orphan(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        service.get("depends_on", {}).pop("urls", None)


def _adopted_in_a_profile_only(compose: dict[str, Any]) -> None:
    _orphan(compose)
    compose["services"]["audit"]["depends_on"]["urls"] = {"condition": "service_completed_successfully"}


S = "services."
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no tag": (_set(S + "kafka.image", "${KAFKA_IMAGE:-apache/kafka}"), "kafka: image .* names no version"),
    "latest": (_set(S + "grafana.image", "${G:-grafana/grafana:latest}"), "grafana: image .* names no version"),
    "not overridable": (_set(S + "postgres.image", "postgres:18.4"), "postgres: image .* can't be overridden"),
    "dead image": (_set(S + "kafka.image", "${K:-bitnami" + "/kafka:3.9}"), "kafka: image .* can no longer be had"),
    "orphan": (_orphan, r"urls: nobody waits for its end with profiles \(none\)"),
    "orphan in core": (_adopted_in_a_profile_only, r"urls: nobody waits for its end with profiles spark, ui"),
    "no default": (_set(S + "bank.environment.BANK_WRITES_PER_S", "${RATE}"), r"\$\{RATE\} has no default"),
    "bare variable": (_set(S + "bank.environment.BANK_WRITES_PER_S", "$RATE"), r"\$RATE has no default"),
    "all addresses": (_set(S + "bank.ports", ["${BANK_PORT:-28000}:8000"]), "bank: port .* is not 127.0.0.1"),
    "usual port": (_set(S + "postgres.ports", ["127.0.0.1:${P_PORT:-5432}:5432"]), "postgres: port 5432 is taken"),
    "port twice": (_set(S + "bank.ports", ["127.0.0.1:${B_PORT:-24566}:8000"]), "bank: port 24566 is aws's"),
    "no check": (_set(S + "s3-sink.healthcheck", None), "s3-sink: no health check"),
    "check too often": (_set(S + "s3-sink.healthcheck.interval", "1s"), "s3-sink: its health check runs every 1s"),
    "no start": (_set(S + "s3-sink.healthcheck.start_interval", None), "s3-sink: its health check has no start_period"),
    "restart": (_set(S + "s3-sink.restart", "always"), "s3-sink: restart is 'always'"),
    "no limit": (_set(S + "urls.deploy", None), "urls: no memory limit"),
    "log": (_set(S + "kafka.logging", None), "kafka: its log grows"),
    "version": (_set("version", "3.9"), "version: is ignored"),
    "container name": (_set(S + "kafka.container_name", "kafka"), "kafka: container_name"),
    "writable root": (_set(S + "s3-sink.read_only", None), "s3-sink: lacks read_only"),
    "capabilities": (_set(S + "s3-sink.cap_drop", None), "s3-sink: lacks cap_drop"),
    "privileges": (_set(S + "bootstrap.security_opt", None), "bootstrap: lacks no-new-privileges"),
    "root": (_set(S + "aws.user", "0:0"), "aws: lacks a numeric user"),
    "no tmp": (_set(S + "bank.tmpfs", None), "bank: lacks tmpfs /tmp"),
    "misspelt": (
        _set(S + "s3-sink.environment.TIDEMARK_SINK_OBJECT_AGE_MAX", "5"),
        "s3-sink: TIDEMARK_SINK_OBJECT_AGE_MAX is no setting of s3-sink",
    ),
    "another's setting": (
        _set(S + "s3-sink.environment.TIDEMARK_POSTGRES_DSN", "postgresql://x@y/z"),
        "s3-sink: TIDEMARK_POSTGRES_DSN is no setting of s3-sink",
    ),
    "password": (
        _set(S + "poller-producer.environment.TIDEMARK_POSTGRES_DSN", "postgresql://app:pw@postgres/tidemark"),
        "poller-producer: TIDEMARK_POSTGRES_DSN holds a password",
    ),
    "secret": (_set("secrets", {}), "poller-producer: secret postgres_password is not declared"),
    "volume": (_set("volumes.kafka", None), "kafka: volume kafka is not declared"),
    "writable mount": (_set(S + "audit.volumes", ["./deploy:/etc/x"]), "audit: ./deploy is mounted writable"),
    "old volume": (_set(S + "postgres.volumes", ["postgres:/var/lib/postgresql/data"]), "postgres: from 18 on"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault: str) -> None:
    plant, complaint = FAULTS[fault]
    compose = _copy()

    plant(compose)

    found = problems(compose)
    assert any(re.search(complaint, problem) for problem in found), found


def _copy() -> dict[str, Any]:
    """What anchors share is one object; a fault planted in one service must be in no other."""
    copied: dict[str, Any] = json.loads(json.dumps(COMPOSE))
    return copied


def test_every_rule_has_a_planted_fault() -> None:
    silent = set(RULES)
    for plant, _ in FAULTS.values():
        compose = _copy()
        plant(compose)
        silent -= {rule for rule in silent if list(rule(compose))}

    assert not silent


def test_no_file_names_an_image_that_can_no_longer_be_had() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in ROOT.rglob("*")
        if file.suffix in SEARCHED or file.name.startswith("Dockerfile")
        if not PASSED_BY & set(file.relative_to(ROOT).parts)
        for name in dead_images(file.read_text(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize("image", ["bitnami" + "/kafka", "localstack/" + "localstack", "minio/" + "mc"])
def test_a_dead_image_is_known(image: str) -> None:
    assert dead_images(f"FROM docker.io/{image} AS x")
    assert dead_images(f"image: ${{X:-{image}:1}}")
    assert not dead_images("my-minio/mcx, localstack-core, apache/kafka")


def test_the_readme_states_what_memory_may_be_used() -> None:
    readme = (ROOT / "deploy" / "images" / "README.md").read_text()
    rows = re.findall(r"^\| `?(\w+)`? \| ([\d,]+) MB \|", readme, re.M)
    stated = {name: int(number.replace(",", "")) for name, number in rows}
    core = memory_mb(COMPOSE)
    expected = {"core": core} | {
        profile: memory_mb(COMPOSE, profile) - core for profile in ("observability", "spark", "ui")
    }
    assert stated == expected | {"all": memory_mb(COMPOSE, "observability", "spark", "ui")}


def test_the_readme_lists_every_port() -> None:
    readme = (ROOT / "deploy" / "images" / "README.md").read_text()
    ports = re.findall(r"127\.0\.0\.1:\$\{(\w+_PORT):-(\d+)\}:\d+", TEXT)
    assert ports
    assert [port for port in ports if f"`{port[0]}` | {port[1]}" not in readme] == []


def test_the_urls_that_are_printed_are_the_ones_that_are_published() -> None:
    told = COMPOSE["services"]["urls"]["environment"]
    assert set(told) == set(variables(Urls, "URLS_"))
    published = dict(re.findall(r"\$\{(\w+_PORT):-(\d+)\}:\d+", TEXT))
    for name, value in told.items():
        assert default_of(value) == published[name.removeprefix("URLS_") + "_PORT"]
    load_config(Urls, {name: default_of(value) for name, value in told.items()}, "URLS_")


def test_only_commands_are_left_out_of_up() -> None:
    assert set(COMPOSE["services"]) - set(started_by_up(COMPOSE)) == {"tidemark"}
    assert len(profile_combinations(COMPOSE)) == 2 ** len({"observability", "spark", "ui", "tools"})
    assert "prometheus" not in enabled(COMPOSE["services"], ())


def test_prometheus_asks_every_service_under_its_own_name() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    ours = {name: one for name, one in COMPOSE["services"].items() if "build" in one}

    assert set(jobs) - {"prometheus"} == {
        name for name, one in ours.items() if any(port.endswith(":8080") for port in one.get("ports", []))
    }
    for name in set(jobs) - {"prometheus"}:
        assert jobs[name]["dns_sd_configs"] == [{"names": [name], "type": "A", "port": 8080, "refresh_interval": "5s"}]
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yaml"]
    assert "./deploy/prometheus/rules:/etc/prometheus/rules:ro" in COMPOSE["services"]["prometheus"]["volumes"]
