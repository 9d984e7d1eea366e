"""Installing: what is checked before, what is refused after, what a rerun keeps."""

import os
import sys
from pathlib import Path

import pytest

from deploy.local import install, jars, places, preflight
from deploy.local.checks import _SUMMARY


def program(folder: Path, name: str, says: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\nprintf '{says}\\n'\n")
    file.chmod(0o755)


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder in which programs are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path


def test_all_that_is_missing_is_listed_at_once_with_one_command(only_path: Path) -> None:
    program(only_path, "mvn", "Apache Maven 3.6.3 (x)")

    with pytest.raises(preflight.NotReady) as refused:
        preflight.check()

    message = str(refused.value)
    assert "with javac" in message
    assert "found: none" in message
    assert "found: 3.6.3" in message
    assert message.endswith("apt-get install -y openjdk-17-jdk-headless maven")


def test_newer_than_needed_and_coloured_is_enough(only_path: Path) -> None:
    program(only_path, "javac", "javac 21.0.2")
    program(only_path, "mvn", r"\033[1mApache Maven 3.8.7\033[m")

    assert preflight.missing() == []


def test_what_differs_from_the_committed_sums_is_refused_by_name() -> None:
    committed = {"kafka/a.jar": "aa", "kafka/b.jar": "bb", "kafka/c.jar": "cc"}

    with pytest.raises(jars.Refused, match=r"kafka/b\.jar, kafka/c\.jar, kafka/stranger\.jar"):
        jars.compare({"kafka/a.jar": "aa", "kafka/b.jar": "00", "kafka/stranger.jar": "dd"}, committed)


def test_equal_sums_pass() -> None:
    committed = jars.committed((*jars.SERVERS, *jars.SPARK))
    assert committed

    jars.compare(committed, dict(committed))


def test_whoever_does_not_ask_for_spark_does_not_get_it(tmp_path: Path) -> None:
    light, all_of_it = install._Parts(tmp_path), install._Parts(tmp_path, wants_spark=True)

    assert set(all_of_it.all()) - set(light.all()) == {all_of_it.spark, all_of_it.spark_jars}
    assert all(name.split("/")[0] in jars.SERVERS for name in jars.committed(jars.SERVERS))
    assert "pyspark" not in (places.CHECKOUT / "requirements.lock").read_text()
    # Otherwise where they are could not be told before they are there.
    assert light.installed() == all_of_it.installed()


def test_a_change_of_sparks_archives_leaves_the_servers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = install._Parts(tmp_path, wants_spark=True)
    (tmp_path / "sums").write_text(jars.SUMS.read_text().replace("spark/delta-storage-", "spark/delta-store-"))
    monkeypatch.setattr(jars, "SUMS", tmp_path / "sums")
    after = install._Parts(tmp_path, wants_spark=True)

    assert set(before.all()) ^ set(after.all()) == {before.spark_jars, after.spark_jars}


def test_an_interrupted_part_is_made_anew_and_a_complete_one_kept(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "half").touch()

    with install._building(part) as wanted:
        assert wanted
        assert not part.exists()
        part.mkdir()
    with install._building(part) as wanted:
        assert not wanted


def test_the_interpreter_behind_an_environment_is_the_one_that_names_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = install._Parts(tmp_path).all()
    (tmp_path / "python").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    assert install._Parts(tmp_path).all() == before


def test_nothing_is_cached_in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TIDEMARK_CACHE_HOME", "XDG_CACHE_HOME", "TIDEMARK_RUN_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert places.cache_home() == Path.home() / ".cache" / "tidemark"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.cache_home() == tmp_path / "tidemark"
    monkeypatch.setenv("TIDEMARK_CACHE_HOME", str(tmp_path / "mine"))
    assert places.cache_home() == tmp_path / "mine"
    assert not places.run_home().is_relative_to(places.CHECKOUT)


def test_locks_name_no_index_and_hash_everything() -> None:
    for lock in (*places.CHECKOUT.glob("*.lock"), *places.HERE.glob("*.lock")):
        text = lock.read_text()

        assert "://" not in text.replace("# via", "")
        assert "--index" not in text
        pinned = [line for line in text.splitlines() if line[:1].isalpha()]
        assert all("==" in line and line.endswith("\\") for line in pinned)


@pytest.mark.parametrize(
    ("line", "is_summary"),
    [
        ("====== 612 passed in 41.03s ======", True),
        ("1 failed, 611 passed, 2 warnings in 61.00s (0:01:01)", True),
        ("FAILED tests/unit/test_x.py::test_y - assert 1 passed in 2.0s", False),
        ("demo: missing: 0", False),
    ],
)
def test_pytests_last_line_is_recognised(line: str, is_summary: bool) -> None:
    assert bool(_SUMMARY.match(line)) is is_summary
