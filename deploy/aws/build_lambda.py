"""Makes the zip of the retrier's Lambda functions; the same checkout gives the same bytes.

    python -m deploy.aws.build_lambda --entities FOLDER [--python 3.13] [--arch arm64] [--out dist/…zip]

Packages are those that ``requirements.lock`` has for the function's extra, installed by uv with their hashes, as wheels
for AWS's machines. What to set up there: ``deploy/aws/lambda/README.md``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local.install import Uv, boot_binaries
from deploy.local.places import CHECKOUT, cache_home

EXTRA = "dynamo-retrier"
HANDLERS = ("services.dynamo_retrier.lambda_function.redrive", "services.dynamo_retrier.lambda_function.analyse")
TREES = ("shared", "services/dynamo_retrier")
AWS_SERVICES = frozenset({"dynamodb", "s3", "sts"})
"""What the function talks to. botocore brings the models of 400 services, 25 MB that can't be compressed."""
UNZIPPED_BYTES_MAX = 250 * 1024 * 1024
TASK_ROOT = "/var/task"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
GLIBC = "manylinux_2_28"  # AWS has 2.34 from its python3.12 on; that of python3.11 is too old for our wheels
ARCHES = {"arm64": "aarch64", "x86_64": "x86_64"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SELF = "tidemark"


class BuildFailed(Exception):
    """The message says what to do."""


@dataclass(frozen=True)
class Target:
    python: str = "3.13"
    arch: str = "arm64"

    @property
    def platform(self) -> str:
        return f"{ARCHES[self.arch]}-{GLIBC}"

    @property
    def is_ours(self) -> bool:
        """Whether the interpreter that runs this writes byte code for the target."""
        return self.python == f"{sys.version_info[0]}.{sys.version_info[1]}"


def build(out: Path, target: Target, entities: Path | None = None) -> int:
    """Write ``out``; its unzipped size in bytes. Raises ``BuildFailed``."""
    with tempfile.TemporaryDirectory(prefix="tidemark-lambda-") as work:
        tree, wanted = Path(work) / "tree", Path(work) / "requirements.txt"
        wanted.write_text("".join(locked(EXTRA)))
        _install(wanted, tree, target, Path(work))
        prune(tree)
        _add_product(tree, entities)
        if target.is_ours:
            _compile(tree)
        return write_zip(tree, out)


def locked(extra: str) -> list[str]:
    """The entries of ``requirements.lock``, hashes included, that the base and this extra need, and no others.

    Who needs whom stands in the lock's own comments (``# via``). uv then refuses to install if one were missing.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"][extra]]
    entries = re.split(r"(?m)^(?=[a-z0-9])", (CHECKOUT / "requirements.lock").read_text())[1:]
    return closure([_name(one) for one in direct], entries)


def closure(direct: Iterable[str], entries: Iterable[str]) -> list[str]:
    """Of the lock's ``entries`` those of the names in ``direct``, and of all that is there because of them."""
    by_name = {_name(entry): entry for entry in entries}
    wanted, waiting = set[str](), list(direct)
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise BuildFailed(f"{name} is not in requirements.lock; renew the lock")
        if name not in wanted:
            wanted.add(name)
            waiting += [other for other, entry in by_name.items() if name in _because_of(entry)]
    return [entry for name, entry in by_name.items() if name in wanted]


def _because_of(entry: str) -> set[str]:
    _, _, said = entry.partition("# via")
    names = (line.strip(" #") for line in said.splitlines())
    return {_name(line) for line in names if line and not line.startswith(_SELF)}


def _name(text: str) -> str:
    found = _NAME.match(text)
    assert found is not None, text
    return found.group().lower().replace("_", "-").replace(".", "-")


def _install(wanted: Path, tree: Path, target: Target, work: Path) -> None:
    log = work / "uv.log"
    arguments = (
        "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy",
        "--python", sys.executable, "--python-version", target.python, "--python-platform", target.platform,
        "--target", str(tree), "-r", str(wanted),
    )  # fmt: skip
    try:
        _uv(log, *arguments)
    except subprocess.CalledProcessError:
        raise BuildFailed(f"the packages can't be installed for {target}:\n{log.read_text()}") from None


def _uv(log: Path, *arguments: str) -> None:
    """The local stack's, else the one on the PATH."""
    if (boot_binaries() / "uv").exists():
        Uv(cache_home(), boot_binaries()).run(log, *arguments)
    elif found := shutil.which("uv"):
        with log.open("w") as output:
            subprocess.run([found, *arguments], check=True, stdout=output, stderr=subprocess.STDOUT)
    else:
        raise BuildFailed("uv is not there: `pip install uv`, or `./deploy/local/stack up NAME` once")


def prune(tree: Path) -> None:
    """Remove what no function needs: programs, what an installation says of itself, models of other AWS services."""
    shutil.rmtree(tree / "bin", ignore_errors=True)
    for record in ("RECORD", "INSTALLER", "REQUESTED", "uv_cache.json", "direct_url.json"):
        for file in tree.glob(f"*.dist-info/{record}"):
            file.unlink()
    (tree / ".lock").unlink(missing_ok=True)
    for folder in (tree / "botocore" / "data", tree / "boto3" / "data"):
        for service in [one for one in folder.glob("*") if one.is_dir() and one.name not in AWS_SERVICES]:
            shutil.rmtree(service)


def _add_product(tree: Path, entities: Path | None) -> None:
    leave = shutil.ignore_patterns("__pycache__", "*.md")
    for source in TREES:
        shutil.copytree(CHECKOUT / source, tree / source, ignore=leave)
    shutil.copy(CHECKOUT / "services" / "__init__.py", tree / "services" / "__init__.py")
    if entities is not None:
        shutil.copytree(entities, tree / "entities", ignore=leave)


def _compile(tree: Path) -> None:
    """Byte code goes into the zip, since nothing can be written there: without it each cold start compiles it all.

    By the sources' hashes and never checked: times would differ, and so would the order of sets without the seed.
    """
    command = [sys.executable, "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    env = os.environ | {"PYTHONHASHSEED": "0"}
    subprocess.run([*command, "-s", str(tree), "-p", TASK_ROOT, str(tree)], check=True, env=env)


def write_zip(tree: Path, out: Path) -> int:
    """All files of ``tree``, sorted, with one time and one mode. Raises ``BuildFailed`` when AWS would refuse it."""
    files = sorted(_files(tree))
    size = sum((tree / name).stat().st_size for name in files)
    if size > UNZIPPED_BYTES_MAX:
        raise BuildFailed(f"{size / 2**20:.0f} MB unzipped; AWS takes 250 MB: use a container image")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.part")
    with zipfile.ZipFile(partial, "w") as archive:
        for name in files:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100755 << 16  # Unix; libraries have to be executable
            archive.writestr(entry, (tree / name).read_bytes(), zipfile.ZIP_DEFLATED, 6)
    os.replace(partial, out)
    return size


def _files(tree: Path) -> Iterator[str]:
    for folder, _, names in os.walk(tree):
        for name in names:
            yield (Path(folder) / name).relative_to(tree).as_posix()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="build_lambda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entities", type=Path, help="the folder with the entities' YAML and schemas")
    parser.add_argument("--python", choices=("3.12", "3.13"), default="3.13", help="AWS runtime (default 3.13)")
    parser.add_argument("--arch", choices=sorted(ARCHES), default="arm64")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "dist" / "tidemark-retrier-lambda.zip")
    told = parser.parse_args(arguments)
    target = Target(told.python, told.arch)
    if told.entities is not None and not any(told.entities.glob("*.yaml")):
        parser.error(f"no *.yaml in {told.entities}")
    try:
        size = build(told.out, target, told.entities)
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"{told.out}: {told.out.stat().st_size / 2**20:.1f} MB, {size / 2**20:.0f} MB unzipped")
    print(f"runtime python{told.python}, {told.arch}; handlers {' and '.join(HANDLERS)}")
    if not target.is_ours:
        print(f"without byte code: run this by Python {told.python} for a cold start about a second shorter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
