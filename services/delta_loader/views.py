"""Names for people: the table and its live rows, in a schema of Spark's catalog."""

from pyspark.sql import SparkSession

from services.delta_loader.spark_types import quoted
from shared.lake.layout import DELETED


def show(spark: SparkSession, catalog: str, namespace: str, entity: str, table: str) -> None:
    """``<catalog>.[<ns>__]<entity>`` and the same with ``_live``; without a catalog, the view of this session alone.

    In the namespace '-' becomes '_': Hive's metastore takes no '-'. A view keeps the columns that it was made with, so
    it is made anew whenever the table has grown.
    """
    live = f"SELECT * FROM delta.`{table}` WHERE NOT {DELETED}"  # noqa: S608 (names of ours)
    if not catalog:
        spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW {quoted(f'{entity}_live')} AS {live}")
        return
    name = f"{namespace.replace('-', '_')}__{entity}" if namespace else entity
    schema = ".".join(map(quoted, catalog.split(".")))
    spark.sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    spark.sql(f"CREATE TABLE IF NOT EXISTS {schema}.{quoted(name)} USING delta LOCATION '{table}'")
    spark.sql(f"CREATE OR REPLACE VIEW {schema}.{quoted(f'{name}_live')} AS {live}")
