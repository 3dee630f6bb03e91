"""Threads that are there when they are wanted: payloads may leave no room for another one later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from services.sis_agent.agent.errors import ThreadsRefused
from services.sis_agent.agent.linux.removal import remove_tree

log = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0
_REMOVING: Final = 2


def started(count: int) -> ThreadPoolExecutor:
    """A pool of so many threads, all of them running.

    Raises:
        ThreadsRefused: this machine, or a limit of the agent's, has no room for them.
    """
    pool = ThreadPoolExecutor(count)
    together = threading.Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(together.wait)
        together.wait(_START_SECONDS)
    except RuntimeError as error:
        together.abort()
        pool.shutdown()
        raise _refused(count, error) from None
    return pool


class Removals:
    """Removes directories, a few at a time, in threads that end with the process: what is hard to remove holds up
    neither the end of the agent nor what its other threads are for. What they leave, the next agent finds.

    Raises:
        ThreadsRefused: as `started`.
    """

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Path, Callable[[], None]] | None] = queue.SimpleQueue()
        try:
            for _ in range(_REMOVING):
                threading.Thread(target=self._serve, name="removals", daemon=True).start()
        except RuntimeError as error:
            self.close()
            raise _refused(_REMOVING, error) from None

    async def remove(self, path: Path) -> None:
        """Remove a directory as far as `remove_tree` can, which logs what remains. Cancelled, it goes on all the
        same."""
        loop = asyncio.get_running_loop()
        removed = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # nobody waits: the loop is closed
                loop.call_soon_threadsafe(removed.set)

        self._wanted.put((path, tell))
        await removed.wait()

    def close(self) -> None:
        """Begin nothing more. What is wanted already is done, unless the process ends."""
        for _ in range(_REMOVING):
            self._wanted.put(None)

    def _serve(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            path, tell = wanted
            try:
                remove_tree(path)
            except Exception:
                log.exception("%s could not be removed", path)
            tell()


def _refused(count: int, error: RuntimeError) -> ThreadsRefused:
    return ThreadsRefused(
        f"{count} threads cannot be started ({error}): raise the limit of processes of this account, container or"
        " service (TasksMax=), or lower SIS_AGENT_SLOTS"
    )
