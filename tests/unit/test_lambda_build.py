"""The zip of the Lambda functions: from the lock and nothing else, the same bytes from the same files."""

import os
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from deploy.aws import build_lambda
from deploy.aws.build_lambda import EXTRA, HANDLERS, BuildFailed, closure, locked, prune, write_zip

LOCK = [
    "app-core==1 \\\n    --hash=sha256:00\n    # via tidemark (pyproject.toml)\n",
    "leaf.one==2 ; sys_platform == 'linux' \\\n    --hash=sha256:01\n    # via\n    #   app-core\n    #   other\n",
    "other==3 \\\n    --hash=sha256:02\n    # via tidemark (pyproject.toml:dev)\n",
    "deep==4 \\\n    --hash=sha256:03\n    # via leaf-one\n",
    "alien==5 \\\n    --hash=sha256:04\n    # via other\n",
]


def tree_of(folder: Path, names: list[str], at_s: int) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
        path.chmod(0o600 if at_s % 2 else 0o644)
        os.utime(path, (at_s, at_s))
    return folder


def test_what_is_wanted_comes_with_all_that_is_there_because_of_it_and_nothing_else() -> None:
    chosen = closure(["app-core"], LOCK)
    assert [entry.partition("==")[0] for entry in chosen] == ["app-core", "leaf.one", "deep"]
    assert "--hash=sha256:01" in chosen[1]


def test_a_requirement_that_the_lock_lacks_stops_the_build() -> None:
    with pytest.raises(BuildFailed, match=r"missing is not in requirements\.lock; renew the lock"):
        closure(["missing"], LOCK)


def test_the_function_gets_its_own_packages_each_with_hashes() -> None:
    entries = {entry.partition("==")[0]: entry for entry in locked(EXTRA)}
    assert {"aiokafka", "cramjam", "aioboto3", "botocore", "fastavro", "msgspec", "structlog", "pyyaml"} <= set(entries)
    assert not {"polars", "pytest", "hypothesis", "awslambdaric", "ruff"} & set(entries)
    assert all("--hash=sha256:" in entry for entry in entries.values())


def test_the_same_files_give_the_same_bytes_whenever_and_in_whatever_order_they_were_made(tmp_path: Path) -> None:
    names = ["b/two.py", "a.py", "b/one.so", "ü.txt"]
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    write_zip(tree_of(tmp_path / "x", names, 1_000_001), first)
    write_zip(tree_of(tmp_path / "y", names[::-1], 2_000_000), second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == sorted(names)
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100755}


def test_a_zip_that_aws_would_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_lambda, "UNZIPPED_BYTES_MAX", 20)
    with pytest.raises(BuildFailed, match="AWS takes 250 MB"):
        write_zip(tree_of(tmp_path / "x", ["a.py", "b.py"], 1), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_models_of_other_services_stay_out_and_what_botocore_always_reads_stays_in(tmp_path: Path) -> None:
    data = "botocore/data"
    kept = [f"{data}/endpoints.json", f"{data}/dynamodb/x.json", f"{data}/s3/x.json", "a.dist-info/METADATA"]
    gone = [f"{data}/ec2/x.json", "bin/tool", "a.dist-info/RECORD"]
    tree = tree_of(tmp_path / "x", [*kept, *gone], 1)
    prune(tree)
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_handlers_that_the_builder_names_are_there(handler: str) -> None:
    module, _, name = handler.rpartition(".")
    assert callable(getattr(import_module(module), name))
