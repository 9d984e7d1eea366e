"""Where the local stack keeps its files, outside the checkout: downloads in a cache, running stacks in a run folder."""

import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def cache_home() -> Path:
    """Downloads and what is built from them. Deleting it costs a download, nothing else."""
    if chosen := os.environ.get("TIDEMARK_CACHE_HOME"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "tidemark"


def run_home() -> Path:
    """One folder per running stack. Not in a home: as root, Postgres runs as another user and must reach its data."""
    if chosen := os.environ.get("TIDEMARK_RUN_HOME"):
        return Path(chosen).absolute()
    return Path(f"/var/tmp/tidemark-{os.getuid()}")


def own_folder(folder: Path) -> Path:
    """Create ``folder`` open to readers; refuse one that somebody else made (its name is easy to guess)."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set TIDEMARK_RUN_HOME to a folder of your own")
    folder.chmod(0o755)
    return folder


@dataclass(frozen=True)
class Installed:
    """What ``install`` leaves behind, complete and compared with the committed sums."""

    product_python: Path
    """Every extra but the loader's, and what the tests need."""
    spark_python: Path
    """Every extra. This and the next are there only after ``install(spark=True)``."""
    spark_jars: Path
    """A folder: Delta, S3A and our log store, which ``spark.jars`` is to name."""
    servers_python: Path
    tools: Path
    """A folder of programs: helm's SDK behind ``python``, ``docker-compose``, ``checkov``, ``hadolint``. There only
    after ``install(tools=True)``."""
    localstack_index: Path
    java: Path
    """The machine's own, 17 or newer: Kafka and DynamoDB Local."""
    registry_java: Path
    """Java 25 from a wheel: the registry needs more than 17."""
    kafka_jars: Path
    kafka_template: Path
    """A formatted log folder; each broker starts from a copy."""
    dynamodb_jars: Path
    dynamodb_classes: Path
    registry: Path
    postgres_bin: Path
