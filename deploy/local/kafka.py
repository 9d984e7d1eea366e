"""A broker's files: its settings and its formatted log folder."""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from deploy.local.places import HERE, Installed

_CONFIG = HERE / "kafka_config"
_TEMPLATE_CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"


@dataclass(frozen=True)
class Listener:
    """One more way into a broker. ``advertised_port`` may be a proxy's: then clients stay behind that."""

    name: str
    port: int
    advertised_port: int
    security: str = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The broker's settings for it, e.g. ``{"ssl.keystore.type": "PEM", …}``; prefixed with its name."""


def java_command(java: Path, jars: Path, *main: str) -> tuple[str, ...]:
    """Small and quick to start: 256 MB, serial collector, first compiler only."""
    return (
        str(java),
        "-Xms256m",
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:MaxDirectMemorySize=128m",
        f"-Dlog4j2.configurationFile={_CONFIG / 'log4j2.properties'}",
        "-cp",
        f"{jars}/*",
        *main,
    )


def prepare(
    folder: Path, installed: Installed, port: int, controller_port: int, extra: Sequence[Listener] = ()
) -> None:
    """Write the settings and, the first time, the log folder; what a killed broker left there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / "logs"
    settings = _settings(logs, port, controller_port, extra)
    (folder / "server.properties").write_text(settings)
    if not logs.exists():
        shutil.copytree(installed.kafka_template, logs)
        _name_cluster(logs / "meta.properties")


def _settings(logs: Path, port: int, controller_port: int, extra: Sequence[Listener]) -> str:
    plain = Listener("PLAINTEXT", port, port)
    controller = Listener("CONTROLLER", controller_port, controller_port)
    listeners = [plain, *extra]
    filled = {
        "CONTROLLER_PORT": str(controller_port),
        "LISTENERS": ",".join(f"{one.name}://127.0.0.1:{one.port}" for one in [*listeners, controller]),
        "ADVERTISED": ",".join(f"{one.name}://127.0.0.1:{one.advertised_port}" for one in listeners),
        "PROTOCOLS": ",".join(f"{one.name}:{one.security}" for one in [*listeners, controller]),
        "LOG_FOLDER": str(logs),
    }
    template = (_CONFIG / "server.properties").read_text()
    lines = [re.sub(r"@([A-Z_]+)@", lambda name: filled[name[1]], template)]
    lines += [f"listener.name.{one.name.lower()}.{key}={value}" for one in extra for key, value in one.settings.items()]
    return "\n".join(lines) + "\n"


def _name_cluster(meta: Path) -> None:
    """A cluster id of its own: raw objects of two stacks must never look like one cluster's."""
    cluster = base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
    # A leading dash reads as an option in Kafka's own tools.
    meta.write_text(meta.read_text().replace(_TEMPLATE_CLUSTER, cluster.replace("-", "A")))


def format_template(java: Path, jars: Path, template: Path) -> None:
    """Format a log folder once per machine: it costs a JVM's start. Raises ``CalledProcessError``."""
    work = template.with_name(template.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "server.properties").write_text(_settings(work / "logs", 19092, 19093, ()))
    command = java_command(java, jars, "kafka.tools.StorageTool", "format")
    command += ("-t", _TEMPLATE_CLUSTER, "-c", str(work / "server.properties"), "--ignore-formatted")
    subprocess.run(command, check=True, capture_output=True, text=True)
    os.rename(work / "logs", template)
    shutil.rmtree(work)
