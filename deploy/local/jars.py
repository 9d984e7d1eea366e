"""Java archives by Maven, compared with the committed sums. ``python -m deploy.local.jars`` rewrites the sums.

Maven's repository is ours, in the cache: it keeps each archive that has arrived, so that a rerun goes on.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from deploy.local import preflight
from deploy.local.leash import leashed
from deploy.local.places import CHECKOUT, HERE, cache_home

POMS = HERE / "jars"
SUMS = HERE / "jars.sha256"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
SERVERS, SPARK = ("kafka", "dynamodb", "registry"), ("spark",)
LOG_STORE = CHECKOUT / "services" / "delta_loader" / "log_store"


class Refused(Exception):
    """What arrived isn't what was committed."""


def fetch(repository: Path, folder: Path, groups: Sequence[str], log: Path) -> None:
    """Fill ``folder/<group>`` with each group's archives. Raises ``CalledProcessError``, ``Refused``."""
    for group in groups:
        project = folder / f"{group}.pom"
        project.mkdir(parents=True, exist_ok=True)
        shutil.copy(POMS / f"{group}.xml", project / "pom.xml")
        maven(repository, project, log, _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={folder / group}")
        shutil.rmtree(project)
    compare(sums(folder, groups), committed(groups))


def maven(repository: Path, project: Path, log: Path, *arguments: str) -> None:
    """Raises ``CalledProcessError``."""
    command = ("mvn", "-B", "-ntp", f"-Dmaven.repo.local={repository}", "-f", str(project / "pom.xml"), *arguments)
    with log.open("a") as output:
        subprocess.run(leashed(*command), check=True, stdout=output, stderr=subprocess.STDOUT, cwd=project)


def build_log_store(repository: Path, project: Path, log: Path) -> Path:
    """Our own archive, made in ``project``, a folder to be; its path. Raises ``CalledProcessError``."""
    copy_log_store(project)
    # Not `package`, which would first fetch all that its tests need.
    maven(repository, project, log, "compile", "jar:jar")
    return next((project / "target").glob("tidemark-delta-log-store-*.jar"))


def copy_log_store(project: Path) -> None:
    """Its module: Maven writes beside the sources."""
    shutil.copytree(LOG_STORE, project, ignore=shutil.ignore_patterns("target"))


def sums(folder: Path, groups: Sequence[str]) -> dict[str, str]:
    """sha256 of every file of these groups under ``folder``, by its path there."""
    files = sorted(file for group in groups for file in (folder / group).rglob("*") if file.is_file())
    found = {}
    for file in files:
        with file.open("rb") as content:
            found[str(file.relative_to(folder))] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def committed(groups: Sequence[str]) -> dict[str, str]:
    lines = [line.split() for line in SUMS.read_text().splitlines()]
    return {name: digest for digest, name in lines if name.split("/")[0] in groups}


def compare(found: dict[str, str], expected: dict[str, str]) -> None:
    """Raises ``Refused`` naming each file that differs, is missing or wasn't expected."""
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        named = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise Refused(
            f"not what {SUMS.name} lists: {named}. Nothing of it was run. "
            f"If a download broke, remove {cache_home() / 'm2'} and start again"
        )


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as content:
        if hasattr(tarfile, "data_filter"):  # Debian 12's Python 3.11.2 hasn't got it; the sum was compared
            content.extraction_filter = tarfile.data_filter
        content.extractall(folder)
    archive.unlink()


def compile_launcher(jars_folder: Path, classes: Path) -> None:
    """Raises ``CalledProcessError``."""
    source = HERE / "java" / "LoopbackDynamoDB.java"
    command = [preflight.tool("javac"), "-cp", f"{jars_folder}/*", "-d", str(classes), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> None:
    """For whoever changes a version: fetch into a folder of its own and write the sums of what came."""
    folder = cache_home() / "jars.sums"
    shutil.rmtree(folder, ignore_errors=True)
    groups = (*SERVERS, *SPARK)
    try:
        fetch(cache_home() / "m2", folder, groups, Path(os.devnull))
    except Refused as refused:
        print(f"differs from the committed list: {refused}")
    SUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in sums(folder, groups).items()))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
