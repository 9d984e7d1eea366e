"""A Spark driver in a process of its own, told what to do line by line: ``python -m tests.lake.driver ENDPOINT JARS``.

Reads numbered JSON commands and answers each with one JSON line: ``{"number": …, "ok": …}``, or ``"error"`` with the
exception's class and message. Tables at ``s3a://…`` are written through our log store, those at ``s3://…`` through
Delta's own.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]  # it publishes none
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

OUR_STORE = "io.tidemark.delta.ConditionalS3LogStore"
STOCK_STORE = "io.delta.storage.S3SingleDriverLogStore"
_MERGES_MAX = 30


def session(endpoint: str, jars: Path) -> SparkSession:
    settings = {
        "spark.master": "local[1]",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        # It lives for a minute: less compiling pays.
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        "spark.jars": ",".join(map(str, sorted(jars.glob("*.jar")))),
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # A test's files are young, and VACUUM is to take them.
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "1",
        "spark.delta.logStore.s3a.impl": OUR_STORE,
        "spark.delta.logStore.s3.impl": STOCK_STORE,
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.endpoint": endpoint,
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
        "spark.hadoop.fs.s3a.access.key": "test",
        "spark.hadoop.fs.s3a.secret.key": "test",
        # The smallest part, so that a commit of a few MB is a multipart upload.
        "spark.hadoop.fs.s3a.multipart.size": "5M",
        "spark.hadoop.fs.s3a.fast.upload.buffer": "bytebuffer",
    }
    builder: Any = SparkSession.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark: SparkSession = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


class Driver:
    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def create(self, table: str) -> int:
        self._spark.sql(f"CREATE TABLE delta.`{table}` (id STRING, n INT) USING delta")
        return 0

    def append(self, table: str, ids: list[str]) -> int:
        """One commit per id; how many."""
        for one in ids:
            self._row(one).write.format("delta").mode("append").save(table)
        return len(ids)

    def merge(self, table: str, ids: list[str]) -> int:
        """One MERGE per id, again when another writer was in the way; how many tries it took."""
        tries = 0
        for one in ids:
            self._row(one).createOrReplaceTempView("source")
            while True:
                tries += 1
                try:
                    self._spark.sql(
                        f"MERGE INTO delta.`{table}` t USING source s ON t.id = s.id"
                        " WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
                    )
                    break
                except (PySparkException, Py4JJavaError) as error:
                    if "Concurrent" not in str(error) or tries > _MERGES_MAX:
                        raise
                    time.sleep(random.uniform(0.1, 0.5))
        return tries

    def _row(self, one: str) -> Any:
        return self._spark.sql(f"SELECT '{one}' AS id, 1 AS n")

    def rows(self, table: str) -> list[str]:
        return sorted(row.id for row in self._spark.read.format("delta").load(table).collect())

    def vacuum(self, table: str) -> int:
        self._spark.sql(f"VACUUM delta.`{table}` RETAIN 0 HOURS").collect()
        return 0

    def write(self, path: str, lines: int, line: str, overwrite: bool = False) -> int:
        """The log store itself, without Delta: ``lines`` times ``line``."""
        java: Any = self._spark.sparkContext._jvm
        conf = self._spark.sparkContext._jsc.hadoopConfiguration()
        target = java.org.apache.hadoop.fs.Path(path)
        actions = java.java.util.Collections.nCopies(lines, line).iterator()
        java.io.tidemark.delta.ConditionalS3LogStore(conf).write(target, actions, overwrite, conf)
        return lines


def main() -> None:
    # What Spark and its JVM print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    endpoint, jars = sys.argv[1:]
    driver = Driver(session(endpoint, Path(jars)))
    print(json.dumps({"number": 0, "ok": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        number = command.pop("number")
        try:
            answer: dict[str, Any] = {"ok": getattr(driver, command.pop("do"))(**command)}
        except Py4JJavaError as error:
            answer = {"error": str(error.java_exception.toString())}
        except PySparkException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"number": number} | answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
