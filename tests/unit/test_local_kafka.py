"""The broker's files."""

from pathlib import Path

import pytest

from deploy.local import kafka
from deploy.local.places import Installed


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    template = tmp_path / "template"
    template.mkdir()
    (template / "meta.properties").write_text("node.id=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAQ\n")
    return Installed(**dict.fromkeys(Installed.__dataclass_fields__, template))


def settings(folder: Path) -> dict[str, str]:
    lines = (folder / "server.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_a_listener_may_be_advertised_at_a_proxys_port(installed: Installed, tmp_path: Path) -> None:
    kafka.prepare(
        tmp_path / "kafka", installed, 20001, 20002, [kafka.Listener("PROXIED", 20003, advertised_port=20009)]
    )

    written = settings(tmp_path / "kafka")
    assert "PROXIED://127.0.0.1:20003" in written["listeners"]
    assert written["advertised.listeners"] == "PLAINTEXT://127.0.0.1:20001,PROXIED://127.0.0.1:20009"
    assert written["listener.security.protocol.map"] == "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"


def test_a_listeners_own_settings_carry_its_name(installed: Installed, tmp_path: Path) -> None:
    secure = kafka.Listener("TLS", 20003, 20003, "SSL", {"ssl.keystore.type": "PEM"})

    kafka.prepare(tmp_path / "kafka", installed, 20001, 20002, [secure])

    assert settings(tmp_path / "kafka")["listener.name.tls.ssl.keystore.type"] == "PEM"


def test_every_address_is_on_loopback_and_nothing_is_left_to_fill_in(installed: Installed, tmp_path: Path) -> None:
    kafka.prepare(tmp_path / "kafka", installed, 20001, 20002)

    written = settings(tmp_path / "kafka")
    for name in ("listeners", "advertised.listeners"):
        assert all("//127.0.0.1:" in address for address in written[name].split(","))
    assert "@" not in written["listeners"] + written["log.dirs"]


def test_each_broker_is_a_cluster_of_its_own_and_stays_it(installed: Installed, tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        kafka.prepare(tmp_path / name, installed, 20001, 20002)
        (tmp_path / name / "logs" / "records").touch()
    first, second = ((tmp_path / name / "logs" / "meta.properties").read_text() for name in ("one", "two"))

    assert first != second
    assert "AAAAAAAAAAAAAAAAAAAAAQ" not in first
    kafka.prepare(tmp_path / "one", installed, 20001, 20002)
    assert (tmp_path / "one" / "logs" / "meta.properties").read_text() == first
    assert (tmp_path / "one" / "logs" / "records").exists()
