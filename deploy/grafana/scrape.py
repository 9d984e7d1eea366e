"""A Prometheus on loopback beside the services, where the machine has one: no part of the product needs it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml
from msgspec import to_builtins

from deploy.local.processes import Process
from deploy.local.ready import http_answers
from deploy.prometheus.rules import groups

SCRAPE_S = 1


def installed() -> str | None:
    """The program, where it is on PATH (Debian's package is ``prometheus``)."""
    return shutil.which("prometheus")


def configuration(targets: Mapping[str, str]) -> str:
    """Of ``host:port`` by job."""
    scraped = [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in sorted(targets.items())]
    times = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s", "evaluation_interval": "15s"}
    return yaml.safe_dump({"global": times, "rule_files": ["rules.yml"], "scrape_configs": scraped})


def rules() -> str:
    """Those of deploy/prometheus, worked out more often: a run of minutes has few whole minutes."""
    found = [{**to_builtins(group), "interval": f"{5 * SCRAPE_S}s"} for group in groups()]
    for group in found:
        group["rules"] = [{name: value for name, value in rule.items() if value} for rule in group["rules"]]
    return yaml.safe_dump({"groups": found})


def prometheus(program: str, folder: Path, port: int, targets: Mapping[str, str]) -> Process:
    """Its files go to ``folder``; ended like any other process of a stack."""

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(configuration(targets))
        (folder / "rules.yml").write_text(rules())

    address = f"127.0.0.1:{port}"
    command = (
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    return Process("prometheus", command, ready=http_answers(f"http://{address}/-/ready"), prepare=prepare)
