"""Prints what to open and what to type: the one-shot `urls` of docker-compose.yml."""

import os
import sys
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from shared.config import ConfigError, load_config

Port = Annotated[int, Meta(ge=1, le=65_535)]


class Urls(Struct, frozen=True, kw_only=True):
    """``URLS_*``: the ports on this machine, as Compose publishes them."""

    kafka: Port
    postgres: Port
    registry: Port
    aws: Port
    bank: Port
    receiver: Port
    poller: Port
    grafana: Port
    prometheus: Port
    kafka_ui: Port


def lines(at: Urls) -> list[str]:
    host = "127.0.0.1"
    return [
        "Tidemark is up.",
        f"  Grafana     http://{host}:{at.grafana}  Is my data fresh and complete? (profile observability)",
        f"  Prometheus  http://{host}:{at.prometheus}  (profile observability)",
        f"  Kafka UI    http://{host}:{at.kafka_ui}  (profile ui)",
        f"  the bank    http://{host}:{at.bank}/cdc?entity=account_events&updatedSince=1970-01-01T00:00:00Z&limit=3",
        f"  notices     http://{host}:{at.receiver}/notices",
        f"  the poller  http://{host}:{at.poller}/metrics, /ready, /live",
        f"  registry    http://{host}:{at.registry}/apis/ccompat/v7/subjects",
        f"  Kafka       {host}:{at.kafka}, and kafka:9092 for containers",
        f"  Postgres    {host}:{at.postgres}   S3 and DynamoDB  http://{host}:{at.aws}",
        "Then:",
        "  docker compose run --rm tidemark demo     one change through every hop, an outage, the balance sheet",
        "  docker compose run --rm tidemark status   everything on one screen",
        "  docker compose --profile observability up -d --wait",
    ]


def main(environ: Mapping[str, str]) -> int:
    try:
        print("\n".join(lines(load_config(Urls, environ, "URLS_"))), flush=True)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
