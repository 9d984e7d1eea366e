"""AWS clients of a process that dies at one of its calls, before it or after it: from then on none of them does
anything."""

from typing import Any


class Killed(BaseException):
    """The process ends here. No code of ours can catch it as an error of the world."""


class Death:
    """``at``: the number of the call, of whichever client; 0: never. ``calls`` counts those that were begun."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.calls: list[str] = []
        self._at = at
        self._after = after
        self._is_dead = False

    async def call(self, operation: str, method: Any, parameters: dict[str, Any]) -> Any:
        if self._is_dead:
            raise Killed
        self.calls.append(operation)
        if len(self.calls) == self._at:
            if self._after:
                await method(**parameters)
            self._is_dead = True
        if self._is_dead:
            raise Killed
        answer = await method(**parameters)
        if self._is_dead:
            raise Killed
        return answer


class DyingClient:
    def __init__(self, client: Any, death: Death) -> None:
        self._client = client
        self._death = death
        self.meta = client.meta

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)

        async def call(**parameters: Any) -> Any:
            return await self._death.call(operation, method, parameters)

        return call
