"""The Spark session: made with what every table of ours needs, or refused.

What spark-submit, an operator or EMR have set stands, besides the few settings that values or safety depend on.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark import SparkConf
from pyspark.sql import SparkSession

from services.delta_loader.config import SparkSettings
from services.delta_loader.schema import SESSION_SETTINGS
from shared.config import ConfigError
from shared.lake.layout import on_s3

LOG_STORE = "io.tidemark.delta.ConditionalS3LogStore"
ZSTD_CODEC = "io.tidemark.delta.ZstdCodec"
LOGGING = Path(__file__).with_name("log4j2.properties")

TABLE_SETTINGS: Mapping[str, str] = {
    **SESSION_SETTINGS,
    "spark.sql.ansi.enabled": "true",  # Spark 3.5 and 4 differ in their defaults
    "spark.sql.session.timeZone": "UTC",
    # The source of a MERGE is kept in memory, or read again from immutable objects by a deterministic plan.
    "spark.databricks.delta.merge.materializeSource": "none",
    # An entity's columns come from its Avro schema; a commit that adds one by itself would hide a mistake.
    "spark.databricks.delta.schema.autoMerge.enabled": "false",
}
"""Of each table's own session."""

LIGHTLY: Mapping[str, str] = {
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}

_DELTA: Mapping[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_COMMITS: Mapping[str, str] = {
    "spark.delta.logStore.s3a.impl": LOG_STORE,
    "spark.delta.logStore.s3.impl": LOG_STORE,
}
_DEFAULTS: Mapping[str, str] = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.streaming.numRecentProgressUpdates": "10",
    # Each query closes its own JSON and shuffle files; a driver that runs for months must not keep all of them.
    "spark.cleaner.periodicGC.interval": "10min",
}
_ON_THIS_MACHINE: Mapping[str, str] = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def spark_conf(settings: SparkSettings, lake_uri: str, environ: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """What must be so, and what is so unless Spark was told otherwise. Raises ``ConfigError``."""
    must = {**_DELTA, **(_COMMITS if on_s3(lake_uri) else {})}
    may = {**_DEFAULTS, "spark.master": settings.master, "spark.driver.memory": settings.driver_memory}
    if settings.master.startswith("local"):
        may |= _ON_THIS_MACHINE
        cores = settings.master.removeprefix("local[").removesuffix("]")
        may["spark.sql.shuffle.partitions"] = cores if cores.isdecimal() else str(os.cpu_count() or 2)
    may["spark.driver.extraJavaOptions"] = f"-XX:+UseSerialGC -Dlog4j2.configurationFile=file:{LOGGING}"
    if settings.jars is not None:
        may["spark.jars"] = ",".join(_jars(settings.jars))
    return must, may | _s3a(environ)


def _jars(folder: Path) -> list[str]:
    jars = sorted(map(str, folder.glob("*.jar")))
    if not jars:
        raise ConfigError([f"TIDEMARK_SPARK_JARS: no *.jar in {str(folder)!r}; install them there, or unset it"])
    return jars


def _s3a(environ: Mapping[str, str]) -> dict[str, str]:
    """S3A's settings by the variables that all AWS clients obey. Credentials it finds by itself."""
    found: dict[str, str] = {}
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        found |= {
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": str(endpoint.startswith("https://")).lower(),
        }
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if region:
        found["spark.hadoop.fs.s3a.endpoint.region"] = region
    return found


def open_session(settings: SparkSettings, lake_uri: str, environ: Mapping[str, str]) -> SparkSession:
    """Start Spark, or take the session there is. Raises ``ConfigError`` where a commit would not be safe."""
    must, may = spark_conf(settings, lake_uri, environ)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if may.get("spark.driver.host") == "127.0.0.1":
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    told = SparkConf()
    chosen = {**{name: value for name, value in may.items() if told.get(name) is None}, **must}
    if extensions := told.get("spark.sql.extensions"):
        names = [name for name in extensions.split(",") if name != must["spark.sql.extensions"]]
        chosen["spark.sql.extensions"] = ",".join([must["spark.sql.extensions"], *names])
    builder = SparkSession.builder.appName("tidemark-delta-loader")
    for name, value in chosen.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        refuse_unsafe(spark, lake_uri)
        read_zstd(spark)
    except ConfigError:
        spark.stop()
        raise
    return spark


def refuse_unsafe(spark: SparkSession, lake_uri: str) -> None:
    """Delta's own log store loses commits of a second driver on S3, silently. Raises ``ConfigError``."""
    problems: list[str] = []
    jvm: Any = spark._jvm
    if not loadable(jvm, _DELTA["spark.sql.extensions"]):
        problems.append(
            "Delta Lake is not on Spark's class path; name the folder of its archives in TIDEMARK_SPARK_JARS, "
            "or start Spark with --packages io.delta:delta-spark_<Spark>_<Scala>:<version>"
        )
    if on_s3(lake_uri):
        problems += _unsafe_commits(spark, jvm)
    if problems:
        raise ConfigError(problems)


def _unsafe_commits(spark: SparkSession, jvm: Any) -> list[str]:
    if not loadable(jvm, LOG_STORE):
        return [
            f"the log store {LOG_STORE} is not on Spark's class path: without it two writers of a table on S3 lose "
            "each other's commits; add tidemark-delta-log-store-*.jar (services/delta_loader/log_store) to the archives"
        ]
    conf = spark.sparkContext.getConf()
    return [
        f"{name} is {conf.get(name)!r}, not {LOG_STORE}: this Spark was started before the loader could say so; "
        "set it where Spark is started"
        for name in _COMMITS
        if conf.get(name) != LOG_STORE
    ]


def read_zstd(spark: SparkSession) -> None:
    """Raw objects are compressed by zstd. Spark reads that by itself from 4.1 on; before, Hadoop does: by our codec, or
    by its own where it has its native library. Raises ``ConfigError`` where it has neither."""
    if version(spark) >= (4, 1):
        return
    jvm: Any = spark._jvm
    if loadable(jvm, ZSTD_CODEC):
        conf: Any = spark.sparkContext._jsc.hadoopConfiguration()
        known = conf.get("io.compression.codecs")
        conf.set("io.compression.codecs", f"{known},{ZSTD_CODEC}" if known else ZSTD_CODEC)
    elif not jvm.org.apache.hadoop.io.compress.ZStandardCodec.isNativeCodeLoaded():
        raise ConfigError(
            [
                f"Spark {spark.version} can't read raw objects, which are compressed by zstd: {ZSTD_CODEC} is not on "
                "its class path, and Hadoop has no native library; add tidemark-delta-log-store-*.jar "
                "(services/delta_loader/log_store) to the archives"
            ]
        )


def version(spark: SparkSession) -> tuple[int, int]:
    """Spark's: major and minor."""
    major, minor, *_ = spark.version.split(".")
    return int(major), int(minor)


def loadable(jvm: Any, class_name: str) -> bool:
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    try:
        jvm.java.lang.Class.forName(class_name, False, loader)
    except Exception:  # noqa: BLE001 (py4j wraps whatever the JVM throws; the question is only whether it can be had)
        return False
    return True


@contextmanager
def planned_lightly(session: SparkSession, light: bool) -> Iterator[None]:
    """For small batches: a commit of a few rows is all planning, and compiling code for each of its dozen queries, and
    re-planning them between their stages, costs nearly half of that."""
    settings = LIGHTLY if light else {}
    for name, value in settings.items():
        session.conf.set(name, value)
    try:
        yield
    finally:
        for name in settings:
            session.conf.unset(name)


def lives(spark: SparkSession) -> bool:
    """False: the JVM is gone, or its context stopped. Nothing in this process brings it back."""
    try:
        return not spark.sparkContext._jsc.sc().isStopped()
    except Exception:  # noqa: BLE001 (py4j says in a dozen ways that nobody answers)
        return False


def table_session(spark: SparkSession) -> SparkSession:
    """A session of one table's own: what is set for its commit must not reach another's."""
    session = spark.newSession()
    for name, value in TABLE_SETTINGS.items():
        session.conf.set(name, value)
    return session
