"""The servers' image: Dockerfile and entry scripts, and beside them the archives that the local stack has unpacked."""

import os
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

from deploy.local.engine import Engine, EngineFailed
from deploy.local.places import HERE, Installed
from deploy.local.supervision import tail

IMAGES = Path(__file__).parent / "images"
SERVERS = "tidemark-ci/servers:1"


def build_servers(one: Engine, at: Installed, log: Path) -> None:
    """Build it from a context that is written straight into the engine. Raises ``EngineFailed``."""
    command = ["docker", "build", "--network", "host", "--tag", SERVERS, "-"]
    with (
        log.open("ab") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=one.env) as build,
    ):
        assert build.stdin
        # docker looks at the first 512 bytes for a file's header; PAX would put one of its own there.
        with (
            suppress(BrokenPipeError),
            tarfile.open(fileobj=build.stdin, mode="w|", format=tarfile.GNU_FORMAT) as context,
        ):
            for file in sorted(IMAGES.iterdir()):
                context.add(file, file.name)
            context.add(HERE / "kafka_config" / "log4j2.properties", "log4j2.properties")
            context.add(os.path.realpath(at.registry_java.parents[1]), "java")
            context.add(at.kafka_jars, "kafka")
            context.add(at.registry, "registry")
    if build.returncode:
        raise EngineFailed(f"the servers' image wasn't built:\n{tail(log, 25)}")
