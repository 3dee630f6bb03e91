"""The asynchronous client driven step by step, as if it were the synchronous one: so both can be held to one table of
calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Iterator
from typing import Any


class Blocking:
    """What `target` has, without `await`: coroutines are run to their end, asynchronous iterators are iterated."""

    def __init__(self, runner: asyncio.Runner, target: Any) -> None:
        self._runner = runner
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return self._called(found) if callable(found) else Blocking(self._runner, found)

    def _called(self, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if inspect.iscoroutine(result):
                return self._runner.run(result)
            return blocking(self._runner, result) if inspect.isasyncgen(result) else result

        return call


def blocking(runner: asyncio.Runner, generator: AsyncGenerator[Any]) -> Iterator[Any]:
    """What an asynchronous generator yields; it is closed when this is."""

    async def step() -> tuple[bool, Any]:
        async for item in generator:
            return True, item
        return False, None

    try:
        while True:
            there, item = runner.run(step())
            if not there:
                return
            yield item
    finally:
        runner.run(generator.aclose())
