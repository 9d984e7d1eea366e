"""Several calls at once, all of them to their ends: none is left running when one has failed."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def all_of(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The answers in order. Raises the first failure, after the others have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    done: list[_T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        done.append(answer)
    return done


async def those_of(calls: Iterable[Coroutine[Any, Any, _T | None]]) -> list[_T]:
    """As ``all_of``, without the answers that are ``None``."""
    return [answer for answer in await all_of(calls) if answer is not None]
