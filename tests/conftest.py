"""What all tests share: the local stack for those that ask for it, and no silent skips in CI."""

import os
from collections.abc import Generator, Iterator

import pytest

from deploy.local import engine
from deploy.local.records import StackTaken
from deploy.local.stack import Stack, StackFailed

_IN_CI = os.environ.get("CI", "") not in ("", "0", "false")
_NOT_RUN = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Real servers on loopback, with their addresses in ``stack.env`` and in ``os.environ``.

    The running stack that TIDEMARK_STACK names, else one of this session's own. Servers of a named one are shared: a
    test that needs an outage starts a private broker or database (``add_broker``, ``add_postgres``) or uses a proxy.
    """
    name = os.environ.get("TIDEMARK_STACK")
    running = Stack.attach(name) if name else _own_stack()
    before = dict(os.environ)
    os.environ.update(running.env)
    try:
        yield running
    finally:
        os.environ.clear()
        os.environ.update(before)
        running.down()


def _own_stack() -> Stack:
    """The first free name of a few, so that each run clears away what a killed one left."""
    for number in range(1, 20):
        own = Stack(f"test-{number}")
        try:
            own.up()
        except StackTaken:
            continue
        return own
    raise StackFailed("twenty test runs own a stack already")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``@pytest.mark.full(why)``: only with the large counts, since another test shows the same at every run.
    ``@pytest.mark.containers``: only where an engine can be had; a CI machine that can't ever have one says so."""
    if not os.environ.get("TIDEMARK_TEST_FULL"):
        _leave_out(config, items, "full")
    if _IN_CI and (reason := engine.impossible()):
        if _leave_out(config, items, "containers"):
            config.stash[_NOT_RUN] = f"containers ({reason})"
    elif not _IN_CI and (reason := engine.why_not()):
        for item in items:
            if item.get_closest_marker("containers"):
                item.add_marker(pytest.mark.skip(reason=f"containers: {reason}"))
                config.stash[_NOT_RUN] = f"containers ({reason})"


def _leave_out(config: pytest.Config, items: list[pytest.Item], marker: str) -> bool:
    """Deselect those that carry it; were there any?"""
    marked = [item for item in items if item.get_closest_marker(marker)]
    if marked:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]
    return bool(marked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if what := config.stash.get(_NOT_RUN, ""):
        # deploy/local/checks.py repeats it among its closing lines.
        terminalreporter.write_line(f"not run here: {what}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """A process that died unasked fails the test that saw it; an emulator, whose state is gone, ends the run."""
    running = getattr(item, "funcargs", {}).get("stack")
    yield
    if not isinstance(running, Stack):
        return
    try:
        running.check()
    except StackFailed as failure:
        deaths = running.deaths
        if not deaths or any(death.forgets for death in deaths):
            pytest.exit(str(failure), returncode=1)
        for death in deaths:
            running.forgive(death.name)
        raise


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _IN_CI:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        # CI has all that any test needs: a skip there means that something isn't tested.
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
