"""SIGTERM and SIGINT of a process that serves: before it serves they end it at once, while it serves they ask it to
drain, and after that nothing hurries it: a second one must not kill it in the middle of its last moments.

An event loop's own handlers would be gone as soon as the loop is closed, some time before the interpreter ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def prepare() -> None:
    """To be called once by a process that does nothing but serve, before it does, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _end_at_once)


@contextmanager
def asked(ask: Callable[[], object]) -> Iterator[None]:
    """While it lasts, the signals call `ask` in this event loop. Afterwards a process that was prepared ignores them
    for good, and in any other they mean what they meant before. In the main thread."""
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(ask)

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            # A function would be dropped when the interpreter is finalised, and the default would be back.
            signal.signal(number, signal.SIG_IGN if handler is _end_at_once else handler)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # The first process of a container is not ended by its own signal.
    os._exit(128 + number)
