"""Failpoints: each call over an edge has a name, and at those that are chosen something goes wrong, once.

Two layers. A *port* is what a service's loop calls (``leases.published``); within it lie the calls of the AWS client
that it makes (``leases.published/DeleteItem#2``): so a death can be put between the two deletions of one transition.
``trouble`` says how the port's own contract tells its caller that a call failed.
"""

import asyncio
import inspect
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiobotocore.client import AioBaseClient
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from msgspec import Struct

Kind = Literal["die_before", "die_after", "refused", "lost_answer", "hang"]
KINDS: tuple[Kind, ...] = ("die_before", "die_after", "refused", "lost_answer", "hang")
"""``refused``: it fails and has done nothing; ``lost_answer``: it fails and has done everything; ``hang``: it stands
still for ``hang_s``, longer than any lease, and then does what it was asked to do."""

DEATH = 137
ENV = "TIDEMARK_FAULT"

Trouble = Callable[[str, Sequence[Any], bool], Any]
"""(method, arguments, is it sent?) → raises, or returns what the caller gets to know."""


class Plan(Struct, frozen=True):
    points: tuple[str, ...] = ()  # at each of them once
    kind: Kind = "die_after"
    hang_s: float = 0.0


class _Port:
    """The port call that is under way in this task and in those that it starts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._made: Counter[str] = Counter()

    def point(self, operation: str) -> str:
        self._made[operation] += 1
        return f"{self.name}/{operation}#{self._made[operation]}"


_within: ContextVar[_Port | None] = ContextVar("within", default=None)


class Failpoints:
    """``journal`` gets a line when a point is reached first, and when the plan strikes at one."""

    def __init__(self, plan: Plan, journal: Path) -> None:
        self._plan = plan
        self._journal = journal
        self._reached: set[str] = set()
        self._left = set(plan.points)

    @classmethod
    def of_environment(cls) -> "Failpoints":
        plan = msgspec.json.decode(os.environ.get(ENV, "{}"), type=Plan)
        points = cls(plan, Path(os.environ[f"{ENV}_JOURNAL"]))
        points._take_clients()
        return points

    def port(
        self, name: str, port: Any, trouble: Trouble, label: Callable[[str, Sequence[Any]], str] | None = None
    ) -> Any:
        """``port``, its coroutine methods named ``name.method``, or as ``label`` has it."""
        return _Faulty(self, name, port, trouble, label or (lambda method, _arguments: method))

    async def call(self, point: str, made: Callable[[], Awaitable[Any]], trouble: Callable[[bool], Any]) -> Any:
        if point not in self._reached:
            self._reached.add(point)
            self._write(f"reached {point}")
        if point not in self._left:
            return await made()
        self._left.discard(point)
        kind = self._plan.kind
        if kind in ("die_after", "lost_answer"):
            try:
                await made()
            except BaseException:
                self._left.add(point)  # what failed by itself has no effect to hide: the next such call will do
                raise
        self._write(f"fired {point}")
        match kind:
            case "die_before" | "die_after":
                os._exit(DEATH)
            case "refused":
                return trouble(False)
            case "lost_answer":
                return trouble(True)
            case "hang":
                await asyncio.sleep(self._plan.hang_s)
                self._write(f"went on {point}")
                return await made()

    def _take_clients(self) -> None:
        """Every call of every AWS client in this process goes by here."""
        plain = AioBaseClient._make_api_call

        async def call(client: Any, operation: str, parameters: Any) -> Any:
            port = _within.get()
            if port is None:
                return await plain(client, operation, parameters)

            def trouble(sent: bool) -> Any:
                url = client.meta.endpoint_url
                raise (ReadTimeoutError if sent else ConnectTimeoutError)(endpoint_url=url)

            return await self.call(port.point(operation), lambda: plain(client, operation, parameters), trouble)

        AioBaseClient._make_api_call = call

    def _write(self, line: str) -> None:
        with self._journal.open("a") as journal:
            journal.write(line + "\n")


class _Faulty:
    """A port with failpoints; whatever else it has is as it was."""

    def __init__(self, points: Failpoints, name: str, port: Any, trouble: Trouble, label: Any) -> None:
        self._points, self._name, self._port, self._trouble, self._label = points, name, port, trouble, label

    def __getattr__(self, method: str) -> Any:
        plain = getattr(self._port, method)
        if not inspect.iscoroutinefunction(plain):
            return plain

        async def call(*arguments: Any, **named: Any) -> Any:
            point = f"{self._name}.{self._label(method, arguments)}"
            came_from = _within.set(_Port(point))
            try:
                return await self._points.call(
                    point, lambda: plain(*arguments, **named), lambda sent: self._trouble(method, arguments, sent)
                )
            finally:
                _within.reset(came_from)

        return call
