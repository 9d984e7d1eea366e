"""What Spark on Kubernetes calls an image's entry point: ``driver …`` or ``executor``, each told by its environment.

PySpark's own package brings Spark, but not this. The variables are those that Spark's Kubernetes backend sets.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path


def home(environ: Mapping[str, str]) -> str:
    if chosen := environ.get("SPARK_HOME"):
        return chosen
    found = find_spec("pyspark")
    if found is None or found.origin is None:
        raise SystemExit("no pyspark in this image: set SPARK_HOME, or use the image delta-loader")
    return str(Path(found.origin).parent)


def driver(spark: str, environ: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    address = f"spark.driver.bindAddress={environ['SPARK_DRIVER_BIND_ADDRESS']}"
    return [f"{spark}/bin/spark-submit", "--conf", address, "--deploy-mode", "client", *arguments]


def executor(spark: str, environ: Mapping[str, str]) -> list[str]:
    java = f"{environ['JAVA_HOME']}/bin/java" if environ.get("JAVA_HOME") else "java"
    parts = [environ.get("SPARK_CONF_DIR", f"{spark}/conf"), environ.get("SPARK_CLASSPATH", ""), f"{spark}/jars/*"]
    memory = environ["SPARK_EXECUTOR_MEMORY"]
    return [
        java,
        *options(environ),
        f"-Xms{memory}",
        f"-Xmx{memory}",
        "-cp",
        ":".join(part for part in parts if part),
        "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
        *("--driver-url", environ["SPARK_DRIVER_URL"]),
        *("--executor-id", environ["SPARK_EXECUTOR_ID"]),
        *("--cores", environ["SPARK_EXECUTOR_CORES"]),
        *("--app-id", environ["SPARK_APPLICATION_ID"]),
        *("--hostname", environ["SPARK_EXECUTOR_POD_IP"]),
        *("--resourceProfileId", environ["SPARK_RESOURCE_PROFILE_ID"]),
        *("--podName", environ["SPARK_EXECUTOR_POD_NAME"]),
    ]


def options(environ: Mapping[str, str]) -> list[str]:
    """``SPARK_JAVA_OPT_0`` and so on, by number."""
    prefix = "SPARK_JAVA_OPT_"
    numbered = [(int(name.removeprefix(prefix)), text) for name, text in environ.items() if name.startswith(prefix)]
    return [text for _, text in sorted(numbered)]


def command(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    match arguments:
        case ["driver", *others]:
            return driver(home(environ), environ, others)
        case ["executor"]:
            return executor(home(environ), environ)
    raise SystemExit(f"expected 'driver …' or 'executor', got {list(arguments)!r}")


def main() -> None:
    chosen = command(sys.argv[1:], os.environ)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    reaper = shutil.which("tini")  # Python's workers leave children behind, and this is the first process
    whole = [reaper, "-s", "--", *chosen] if reaper else chosen
    os.execvp(whole[0], whole)


if __name__ == "__main__":
    main()
