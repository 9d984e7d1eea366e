"""``tidemark raw`` on a real bucket and a real table's positions."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from services.cli.__main__ import main
from services.cli.edges import clock_ms
from shared.raw.keys import Chain
from tests.fakes.audited_world import AuditedWorld, Lake, stamp

Run = Callable[..., tuple[int, Any]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedWorld]:
    made = AuditedWorld(tmp_path_factory.mktemp("raw"), ["shown", "loaded", "unloaded"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environ.items():
            patch.setenv(name, value)
        assert main(["bootstrap"]) == 0
        yield made


@pytest.fixture
def run(world: AuditedWorld, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_json(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run_json


async def filled(lake: Lake, entity: str) -> None:
    for page in range(3):
        await lake.show(entity, [(f"k{number}", page * 10 + number, number) for number in range(10)])
    await lake.sink(entity, rows_max=3)
    await lake.release(entity)


def soon() -> str:
    return stamp((clock_ms() + 60_000) * 1000)


def test_chains_objects_and_rows_are_shown(world: AuditedWorld, run: Run) -> None:
    world.do(lambda lake: filled(lake, "shown"))

    code, entity = run("raw", "show", "shown")
    assert code == 0
    assert sum(chain["rows"] for chain in entity["chains"]) == 30

    chain = entity["chains"][0]["chain"]
    code, shown = run("raw", "show", chain, "--limit", "2", "--rows", "2")
    assert (code, len(shown["objects"]), len(shown["rows"])) == (0, 2, 2)
    assert json.loads(shown["rows"][0])["_kafka_offset"] == shown["objects"][0]["start"]

    code, one = run("raw", "show", shown["objects"][0]["key"])
    assert (code, one["start"]) == (0, shown["objects"][0]["start"])
    assert run("raw", "show", f"{chain}x")[0] == 2
    missing = shown["objects"][0]["key"].replace(f"{shown['objects'][0]['start']:020d}", f"{7_777_777:020d}")
    assert run("raw", "show", missing)[0] == 1


def test_what_is_old_and_in_the_table_expires_and_the_audit_stays_silent(world: AuditedWorld, run: Run) -> None:
    async def loaded(lake: Lake) -> None:
        await filled(lake, "loaded")
        await lake.load("loaded")

    world.do(loaded)
    before = soon()

    code, planned = run("raw", "expire", "loaded", "--before", before, "--dry-run")
    assert (code, run("raw", "show", "loaded")[1]["chains"][0]["floor"]) == (0, 0)
    code, gone = run("raw", "expire", "loaded", "--before", before)
    assert (code, gone["chains"]) == (0, planned["chains"])
    for chain in run("raw", "show", "loaded")[1]["chains"]:
        assert (chain["objects"], chain["floor"] > 0, chain["problems"]) == (1, True, [])

    code, document = run("audit", "loaded", "--wait", "3s")
    (entity,) = document["entities"]
    assert (code, entity["findings"]) == (0, [])
    assert entity["counts"]["expired"] > 0
    assert entity["counts"]["table_rows"] == 10


def test_what_the_table_has_not_passed_stays_unless_it_is_given_up(world: AuditedWorld, run: Run) -> None:
    world.do(lambda lake: filled(lake, "unloaded"))

    code, refused = run("raw", "expire", "unloaded", "--before", soon())
    assert code == 1
    assert all(chain["objects"] == 0 and "has not passed" in chain["stays"] for chain in refused["chains"])

    async def half_loaded(lake: Lake) -> Chain:
        ledger = await lake.ledger()
        chain = (await ledger.partitions(lake.edges.entities.entities["unloaded"].topic, 1))[0]
        await lake.load("unloaded", through={chain: 6})
        return chain

    chain = world.do(half_loaded)
    code, half = run("raw", "expire", "unloaded", "--before", soon())
    assert (code, {one["chain"]: one["floor"] for one in half["chains"]}[str(chain)]) == (1, 6)

    code, all_of_it = run("raw", "expire", "unloaded", "--before", soon(), "--unloaded")
    assert code == 0
    assert all(one["stays"] == "the newest object stays" for one in all_of_it["chains"])


def test_maintenance_is_the_loaders_its_output_and_exit_code_pass_through(world: AuditedWorld, tmp_path: Path) -> None:
    """The loader's package is stood in for: what is tested is the way there and back."""
    package = tmp_path / "services" / "delta_loader"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "__init__.py").write_text(
        f"__path__.append({str(ROOT / 'services')!r})\n"  # the rest of the services is ours
    )
    (package / "__main__.py").write_text(
        "import signal, sys, os\n"
        "print(sys.argv[1:], os.environ['TIDEMARK_NAMESPACE'], flush=True)\n"
        "if 'wait' in sys.argv: signal.pause()\n"
        "sys.exit(7)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "services.cli", "table", "maintain", "--vacuum", "things"]

    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, f"['maintain', '--vacuum', 'things'] {world.namespace}\n")

    running = subprocess.Popen([*command, "wait"], env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() != ""
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 128 + signal.SIGTERM
    running.stdout.close()
