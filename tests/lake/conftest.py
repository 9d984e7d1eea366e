"""One Spark session for all tests of the lake that run in this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from deploy.local.stack import Stack

FAST_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"


@pytest.fixture(scope="session")
def spark(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """On this machine, with Delta and our log store, and S3A's settings by the stack's environment."""
    from services.delta_loader.config import SparkSettings
    from services.delta_loader.session import open_session

    # Short-lived: compiling less costs half of the CPU, and the smaller code cache that goes with it would overflow.
    warehouse = tmp_path_factory.mktemp("warehouse")
    os.environ["SPARK_SUBMIT_OPTS"] = f"{FAST_JVM} -Dspark.sql.warehouse.dir={warehouse}"
    jars = Path(os.environ["TIDEMARK_SPARK_JARS"])
    session = open_session(SparkSettings(jars=jars, master="local[2]"), "s3a://anywhere", os.environ)
    yield session
    session.stop()
